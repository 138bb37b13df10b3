"""What strings are to the student, remembered: its tokens for each word.

T5's pieces never cross a space, so that a text's tokens are those of its
words, and a word met before costs one look-up. That holds for plain words
only; whatever the student's normalisation changes is encoded as a whole text
(and then is a "word" of this table by itself).
"""

import functools
import unicodedata
from collections.abc import Iterable

import numpy as np

from specialize_jax.align import growing, token_classes
from specialize_jax.align import student as student_lib

# Never the second part of a composed character, so that no neighbour changes
# what they normalise to: letters with case, digits, punctuation, symbols.
_INERT = frozenset(("Lu", "Ll", "Nd", "No", "Pc", "Pd", "Ps", "Pe", "Pi"))
_INERT |= frozenset(("Pf", "Po", "Sm", "Sc", "So"))
_IS_ASCII_SPACE = np.array([b < 128 and chr(b).isspace() for b in range(256)])


class StudentTable:
  """A growing table of strings in the student's tokens.

  Attributes:
    student: The student's tokenizer.
    word_start_id: The id of the piece that is a word start alone; -1 for none.
    strings: The strings, in the order they were met.
    word_local: Whether a text's tokens are those of its words.
    plain: bool column, whether a string is a word on its own: not empty,
      without white space, every character untouched by normalisation.
    counts: int column, the number of tokens of each string.
    starts: int column, where its tokens begin in `ids` and `visible`.
    visible_bytes: int column, the bytes of its non-space characters.
    lost: int column, its characters that its pieces do not spell.
    ids: int column, the tokens of all strings, one after another.
    visible: int column, the visible bytes that each of these tokens covers;
      what the student drops at the end goes to the last.
  """

  def __init__(self, student: student_lib.StudentTokenizer) -> None:
    self.student = student
    self._numbering = growing.Numbering()
    self.strings: list[str] = []
    self._pieces = [student.id_to_piece(i) for i in range(student.vocab_size)]
    self._piece_bytes = np.array(
      [
        len(piece.replace(student_lib.WORD_START, "").encode("utf-8"))
        for piece in self._pieces
      ],
      np.int64,
    )
    self.word_start_id = self.exact_id(student_lib.WORD_START)
    self.word_local = student.normalize("  a \n b ") == (
      f"{student_lib.WORD_START}a{student_lib.WORD_START}b"
    ) and not any(student_lib.WORD_START in piece[1:] for piece in self._pieces)
    self._is_plain = functools.cache(self._find_plain)
    self.splits_words = functools.cache(self._find_splits_words)
    self.removes = functools.cache(self._find_removes)
    self.plain = growing.Column(bool)
    self.counts, self.starts, self.visible_bytes, self.lost = (
      growing.Column(np.int64) for _ in range(4)
    )
    self.ids, self.visible = (growing.Column(np.int64) for _ in range(2))

  def __len__(self) -> int:
    return len(self._numbering)

  @functools.cached_property
  def piece_classes(self) -> np.ndarray:
    """The `TokenClass` of every piece of the vocabulary, uint8."""
    return np.array([token_classes.of_piece(p) for p in self._pieces], np.uint8)

  @functools.cached_property
  def bare_pieces(self) -> list[str]:
    """Every piece of the vocabulary without word starts."""
    return [p.replace(student_lib.WORD_START, "") for p in self._pieces]

  def pieces_of(self, ids: Iterable[int]) -> tuple[str, ...]:
    """Gives the pieces of ids."""
    return tuple([self._pieces[index] for index in ids])

  def exact_id(self, piece: str) -> int:
    """Gives the id of any piece that is spelled just so; -1 for none."""
    return self._exact_ids.get(piece, -1)

  @functools.cached_property
  def _exact_ids(self) -> dict[str, int]:
    return {piece: index for index, piece in enumerate(self._pieces)}

  def look_up(self, strings: Iterable[str]) -> np.ndarray:
    """Gives each string's place in the table, int64; encodes the new ones."""
    places = self._numbering.of(strings)
    self._fill(self._numbering.take_new())
    return places

  def tokens_of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the tokens of strings, one after another.

    Returns:
      Their ids, and the visible bytes that each covers.
    """
    index = growing.ragged_index(
      self.starts.values[places], self.counts.values[places]
    )
    return self.ids.values[index], self.visible.values[index]

  def _fill(self, strings: list[str]) -> None:
    """Encodes strings in one call where that says what each token covers."""
    if not strings:
      return
    plain = [self._is_plain_word(string) for string in strings]
    ids = self.student.encode_many(strings)
    visible, visible_bytes, lost = [], [], []
    for place, string in enumerate(strings):
      widths = self._piece_bytes[ids[place]].tolist()
      num_bytes = len(string.encode("utf-8")) if plain[place] else -1
      unknown = self.student.unknown_id in ids[place]
      num_lost = 0
      if unknown or sum(widths) != num_bytes:
        ids[place], widths, num_bytes, num_lost = self._with_spans(string)
      visible += widths
      visible_bytes.append(num_bytes)
      lost.append(num_lost)
    self.strings += strings
    counts = np.array([len(some) for some in ids], np.int64)
    self.starts.extend(len(self.ids) + np.cumsum(counts) - counts)
    self.counts.extend(counts)
    self.ids.extend([index for some in ids for index in some])
    self.visible.extend(visible)
    self.plain.extend(plain)
    self.visible_bytes.extend(visible_bytes)
    self.lost.extend(lost)

  def _with_spans(self, text: str) -> tuple[list[int], list[int], int, int]:
    """Encodes a string of any kind: ids, visible bytes of each, all, lost."""
    encoding = self.student.encode_with_spans(text)
    ranks = visible_ranks(text)
    bounds = [int(ranks[start]) for start, _ in encoding.spans]
    bounds.append(int(ranks[-1]))  # what is dropped at the end too
    widths = np.diff(bounds).tolist()
    return list(encoding.ids), widths, bounds[-1], encoding.characters_lost

  def _is_plain_word(self, string: str) -> bool:
    return bool(string) and all(map(self._is_plain, string))

  def _find_plain(self, character: str) -> bool:
    """Tells whether no neighbour and no rule changes a character."""
    if character == student_lib.WORD_START:
      return False
    if unicodedata.category(character) not in _INERT and character not in "^`":
      return False
    kept = f"{student_lib.WORD_START}a{character}a{character}"
    return self.student.normalize(f"a{character}a{character}") == kept

  def is_parted_by_space(self, text: str) -> bool:
    """Tells whether all white space of a text parts words for the student."""
    spaces = {character for character in set(text) if character.isspace()}
    return all(space.isascii() and self.splits_words(space) for space in spaces)

  def _find_splits_words(self, character: str) -> bool:
    """Tells whether a white-space character parts words for the student."""
    start = student_lib.WORD_START
    return self.student.normalize(f"a{character}b") == f"{start}a{start}b"

  def _find_removes(self, character: str) -> bool:
    """Returns whether the student's normalisation drops a character."""
    kept = f"{student_lib.WORD_START}ab"
    return self.student.normalize(f"a{character}b") == kept


def visible_ranks(text: str) -> np.ndarray:
  """Counts the bytes of non-space characters before each byte.

  Returns:
    int32[bytes + 1]; the last entry is the number of all visible bytes.

  Example:
    >>> visible_ranks("a b").tolist()
    [0, 1, 1, 2]
  """
  encoded = np.frombuffer(text.encode("utf-8"), np.uint8)
  visible = ~_IS_ASCII_SPACE[encoded]
  wide = {c for c in set(text) if c.isspace() and not c.isascii()}
  if wide:
    begins = np.flatnonzero(encoded & 0xC0 != 0x80)  # 10xxxxxx goes on
    for begin, character in zip(begins.tolist(), text, strict=True):
      if character in wide:
        visible[begin : begin + len(character.encode("utf-8"))] = False
  return np.concatenate([[0], np.cumsum(visible)]).astype(np.int32)
