"""What a teacher's tokens are, remembered: one row a spelling.

Everything that a rule asks of a token's spelling (what it covers, where it
has white space, which student pieces spell it) is found out once; a batch
then holds numbers only.
"""

from collections.abc import Iterable

import numpy as np

from specialize_jax.align import growing, student_table
from specialize_jax.align import student as student_lib

_BOOLS = (
  "whole",
  "odd",
  "begins_space",
  "ends_space",
  "line_before",
  "line_after",
  "parts_words",
  "is_removed",
)
_INTS = (
  "visible",
  "core",
  "paper_id",
  "exact_id",
  "lenient",
)


class TeacherTable:
  """A growing table of spellings.

  Attributes:
    whole: Whether the bytes are whole characters.
    odd: Whether the columns do not tell what the token does in a text: it is
      empty, or not whole, or has a newline between visible characters, or has
      white space that does not part words for the student.
    begins_space: Whether its first character is white space.
    ends_space: Whether its last character is white space.
    line_before: Whether a newline precedes its first visible character, or it
      has none and a newline.
    line_after: Whether a newline follows its last visible character.
    parts_words: Whether it is white space that parts two words for the student.
    is_removed: Whether it is nothing, or white space that the student drops.
    visible: The bytes of its non-space characters; of whole tokens.
    core: The number of its text without white space around it; -1 where it is
      not whole. `core_empty` is that of the empty text.
    paper_id: The student's id for what the paper takes it for, "▁" for " ".
    exact_id: The same, controls and the unknown piece not excepted.
    lenient: The number of the string that the paper's distance sees.
    spellings: The bytes of each row.
    texts: The text of each row, None where it is not whole.
    lenient_strings: What `lenient` numbers.
  """

  def __init__(self, words: student_table.StudentTable) -> None:
    self._words = words
    self._numbering = growing.Numbering()
    self._cores = growing.Numbering()
    self._lenient = growing.Numbering()
    self.core_empty = self._cores[""]
    self.spellings: list[bytes] = []
    self.texts: list[str | None] = []
    self.lenient_strings: list[str] = []
    for name in _BOOLS:
      setattr(self, name, growing.Column(bool))
    for name in _INTS:
      setattr(self, name, growing.Column(np.int64))

  def __len__(self) -> int:
    return len(self._numbering)

  def look_up(self, spellings: Iterable[bytes]) -> np.ndarray:
    """Gives each spelling's row, int64; adds the new ones."""
    rows = self._numbering.of(spellings)
    new = self._numbering.take_new()
    if new:
      described = [self._describe(spelling) for spelling in new]
      for name in (*_BOOLS, *_INTS):
        getattr(self, name).extend([row[name] for row in described])
      self.spellings += new
      self.lenient_strings += self._lenient.take_new()
    return rows

  def _describe(self, spelling: bytes) -> dict[str, bool | int]:
    """Finds out one row."""
    lenient = spelling.decode("utf-8", errors="replace")
    piece = lenient.replace(" ", student_lib.WORD_START)
    row = dict.fromkeys((*_BOOLS, *_INTS), False)
    row |= {
      "odd": True,
      "visible": 0,
      "core": -1,
      "paper_id": self._piece_id(piece),
      "exact_id": self._words.exact_id(piece),
      "lenient": self._lenient[lenient.replace(" ", "")],
    }
    try:
      text = spelling.decode("utf-8")
    except UnicodeDecodeError:
      self.texts.append(None)
      return row
    self.texts.append(text)
    core = text.strip()
    leading = text[: len(text) - len(text.lstrip())]
    spaces = [character for character in text if character.isspace()]
    row |= {
      "whole": True,
      "odd": not text
      or "\n" in core
      or not all(map(self._words.splits_words, spaces)),
      "begins_space": text[:1].isspace(),
      "ends_space": text[-1:].isspace(),
      "line_before": "\n" in leading,
      "line_after": bool(core) and "\n" in text[len(text.rstrip()) :],
      "visible": len(spelling) - sum(len(c.encode("utf-8")) for c in spaces),
      "core": self._cores[core],
      "parts_words": self._parts_words(text),
      "is_removed": not core and all(map(self._words.removes, text)),
    }
    return row

  def _piece_id(self, piece: str) -> int:
    index = self._words.student.piece_id(piece)
    return -1 if index is None else index

  def _parts_words(self, text: str) -> bool:
    parts = [
      character for character in text if not self._words.removes(character)
    ]
    return (
      bool(parts)
      and text.isspace()
      and all(map(self._words.splits_words, parts))
    )
