"""Growing tables of strings and their properties, as NumPy columns.

The student's tokens of a string, and the properties of a teacher token's
spelling, are computed once; a batch then contains row numbers only, and a
look-up is one NumPy index. Columns grow by doubling, so filling a table of n
entries takes O(n) time.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np

from specialize_jax.align import special_tokens, token_classes
from specialize_jax.align import student as student_lib

SINGLE_SPACE = re.compile(rb"(?<=[^ \t\r\n]) (?=[^ \t\r\n])")
"""A space between two characters that are not white space, in UTF-8."""

_BEFORE = ("Ann has", "x 12", "48/2 =", "(a)", "he said.", "\n\nIf", "  b")
_AFTER = (" sold", " 12", " +", " (x", " \u00e9t\u00e9", " it's", " $5", ' "q')


class Column:
  """A growing array."""

  def __init__(self, dtype: type) -> None:
    self._values = np.zeros(1024, dtype)
    self._size = 0

  def __len__(self) -> int:
    return self._size

  @property
  def values(self) -> np.ndarray:
    """The values appended so far, a view that later appends do not update."""
    return self._values[: self._size]

  def extend(self, values: Sequence | np.ndarray) -> None:
    """Appends values."""
    size = self._size + len(values)
    if size > len(self._values):
      grown = np.zeros(max(size, 2 * len(self._values)), self._values.dtype)
      grown[: self._size] = self.values
      self._values = grown
    self._values[self._size : size] = values
    self._size = size


class Numbering(dict):
  """Numbers keys from 0 in the order of their first look-up.

  Example:
    >>> numbering = Numbering()
    >>> numbering.of(["a", "b", "a"]).tolist(), numbering.take_new()
    ([0, 1, 0], ['a', 'b'])
  """

  def __init__(self) -> None:
    super().__init__()
    self._new: list[Hashable] = []

  def __missing__(self, key: Hashable) -> int:
    number = self[key] = len(self)
    self._new.append(key)
    return number

  def of(self, keys: Sequence[Hashable]) -> np.ndarray:
    """Returns each key's number, int64."""
    return np.fromiter(map(self.__getitem__, keys), np.int64, len(keys))

  def take_new(self) -> list:
    """Returns the keys that were numbered since the last call."""
    new, self._new = self._new, []
    return new


class IntegerCache:
  """A cache of an integer function; look-ups are array operations.

  The table is direct-mapped: a key replaces another in the same slot, whose
  value is then computed again. This is faster than finding the distinct keys of
  a batch by sorting.

  Example:
    >>> cache = IntegerCache(lambda keys: keys * 10, num_bits=4)
    >>> cache.of(np.array([3, 1, 3])).tolist()
    [30, 10, 30]
  """

  def __init__(
    self, compute: Callable[[np.ndarray], np.ndarray], num_bits: int = 19
  ) -> None:
    """Builds an empty cache.

    Args:
      compute: Returns the int64 values of an array of distinct keys.
      num_bits: The table has 2 ** `num_bits` slots.
    """
    self._compute = compute
    self._shift = np.uint64(64 - num_bits)
    self._keys = np.full(1 << num_bits, -1, np.int64)
    self._values = np.zeros(1 << num_bits, np.int64)

  def of(self, keys: np.ndarray) -> np.ndarray:
    """Returns the value of each key, int64; keys are not negative."""
    slots = self._slots(keys)
    values = self._values[slots]
    missing = np.flatnonzero(self._keys[slots] != keys)
    if len(missing):
      new, inverse = np.unique(keys[missing], return_inverse=True)
      computed = self._compute(new)
      values[missing] = computed[inverse]
      slots = self._slots(new)
      self._keys[slots] = new
      self._values[slots] = computed
    return values

  def _slots(self, keys: np.ndarray) -> np.ndarray:
    """Returns the slot of each key, by Fibonacci hashing."""
    hashed = keys.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (hashed >> self._shift).view(np.int64)


def ragged_index(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Returns the concatenated indices of runs that begin at `starts`.

  Example:
    >>> ragged_index(np.array([7, 0]), np.array([2, 3])).tolist()
    [7, 8, 0, 1, 2]
  """
  ends = np.cumsum(counts)
  total = int(ends[-1]) if len(ends) else 0
  return np.repeat(starts - ends + counts, counts) + np.arange(total)


def offsets(counts: np.ndarray) -> np.ndarray:
  """Returns the start of each run, and the end of the last, int64[n + 1].

  Example:
    >>> offsets(np.array([2, 3])).tolist()
    [0, 2, 5]
  """
  result = np.zeros(len(counts) + 1, np.int64)
  np.cumsum(counts, out=result[1:])
  return result


# Categories of characters that never combine with their neighbors when
# normalized: cased letters, digits, punctuation, symbols.
_INERT = frozenset(("Lu", "Ll", "Nd", "No", "Pc", "Pd", "Ps", "Pe", "Pi"))
_INERT |= frozenset(("Pf", "Po", "Sm", "Sc", "So"))
_IS_ASCII_SPACE = np.array([b < 128 and chr(b).isspace() for b in range(256)])


class StudentTable:
  """A growing table of strings and their student tokens.

  T5's pieces never cross a space, so a text can be tokenized word by word, and
  a word that occurred before costs one look-up. This is true of plain words
  only. A text with words that the student's normalization changes is encoded as
  a whole, and is then a single "word" of this table, as is every text of a
  student whose tokens may cross spaces.

  Attributes:
    student: The student's tokenizer.
    word_start_id: The id of the token that is a single space; -1 if none.
    strings: The strings, in order of first use.
    word_local: Whether a text can be tokenized word by word.
    plain: bool column, whether a string is a plain word: not empty, without
      white space, and with no character changed by normalization.
    counts: int column, the number of tokens of each string.
    firsts: int column, its first token; -1 if it has none.
    starts: int column, the index of its first token in `ids` and `visible`.
    visible_bytes: int column, the number of bytes of its visible characters:
      all characters if the student keeps white space, else those that are not
      white space.
    lost: int column, the number of its characters that its pieces do not spell.
    ids: int column, the tokens of all strings, concatenated.
    visible: int column, the number of visible bytes that each of these tokens
      covers; bytes that the student drops at the end count for the last token.
  """

  def __init__(self, student: student_lib.Student) -> None:
    self.student = student
    self._numbering = Numbering()
    self.strings: list[str] = []
    self._pieces = [student.id_to_piece(i) for i in range(student.vocab_size)]
    self._piece_bytes = np.array(
      [
        len(piece.replace(student_lib.WORD_START, "").encode("utf-8"))
        for piece in self._pieces
      ],
      np.int64,
    )
    self._normalize = getattr(student, "normalize", None)
    self.word_local = (
      self._normalize is not None
      and self._normalize("  a \n b ")
      == f"{student_lib.WORD_START}a{student_lib.WORD_START}b"
      and not any(student_lib.WORD_START in piece[1:] for piece in self._pieces)
    )
    self.word_start_id = self.exact_id(student_lib.WORD_START)
    self._is_plain = functools.cache(self._find_plain)
    self.splits_words = functools.cache(self._find_splits_words)
    self.removes = functools.cache(self._find_removes)
    self.plain = Column(bool)
    self.counts, self.firsts, self.starts = (Column(np.int64) for _ in range(3))
    self.visible_bytes, self.lost = (Column(np.int64) for _ in range(2))
    self.ids, self.visible = (Column(np.int64) for _ in range(2))

  def __len__(self) -> int:
    return len(self._numbering)

  @functools.cached_property
  def _spellings(self) -> list[bytes | None]:
    """The bytes that each token adds to a text."""
    return [self.student.token_bytes(i) for i in range(len(self._pieces))]

  @functools.cached_property
  def _texts(self) -> list[str]:
    """Every token as SentencePiece would write it.

    Tokens that are not text are written as in the student's vocabulary.
    """
    if self.word_local:
      return self._pieces
    return [
      piece
      if spelling is None
      else spelling.decode("utf-8", errors="replace").replace(
        " ", student_lib.WORD_START
      )
      for piece, spelling in zip(self._pieces, self._spellings, strict=True)
    ]

  @functools.cached_property
  def piece_classes(self) -> np.ndarray:
    """The `TokenClass` of every token of the vocabulary, uint8."""
    return np.array([token_classes.of_piece(t) for t in self._texts], np.uint8)

  @functools.cached_property
  def bare_pieces(self) -> list[str]:
    """Every token of the vocabulary without spaces."""
    return [text.replace(student_lib.WORD_START, "") for text in self._texts]

  def pieces_of(self, ids: Iterable[int]) -> tuple[str, ...]:
    """Returns the pieces of ids, as the vocabulary writes them."""
    return tuple([self._pieces[index] for index in ids])

  def exact_id(self, piece: str) -> int:
    """Returns the id of a piece of any type; -1 if there is none."""
    return self._exact_ids.get(piece, -1)

  def piece_id(self, piece: str) -> int:
    """Returns the id of a piece that is text; -1 if there is none."""
    index = self.exact_id(piece)
    if index >= 0 and self.student.token_bytes(index) is None:
      return -1
    return index

  def own_id(self, spelling: bytes) -> int:
    """Returns the id of the token that adds these bytes; -1 if none."""
    return self._own_ids.get(spelling, -1)

  @functools.cached_property
  def adds_spaces(self) -> bool:
    """Whether tokens that begin a word add a space where the text has none.

    As those of WordPiece do after punctuation: "twenty" of "$twenty" has the
    token of " twenty", which other vocabularies have for that text alone.
    """
    ids = self.student.encode_many(["a-b"])[0]
    return any(
      (self.student.token_bytes(index) or b"").startswith(b" ")
      for index in ids[1:]
    )

  @functools.cached_property
  def cuts_before_space(self) -> bool:
    """Whether a text can be split at `SINGLE_SPACE` before tokenization.

    No token of the vocabulary may contain such a space except at its beginning,
    and splitting must not change the tokens of a few example texts.
    """
    crossed = any(
      spelling and re.search(rb"[^ \t\r\n] ", spelling)
      for spelling in self._spellings
    )
    if crossed or not self.student.keeps_white_space:
      return False
    parts = [*_BEFORE, *_AFTER]
    ids = dict(zip(parts, self.student.encode_many(parts), strict=True))
    pairs = [(before, after) for before in _BEFORE for after in _AFTER]
    whole = self.student.encode_many([a + b for a, b in pairs])
    return all(
      found == ids[before] + ids[after]
      for found, (before, after) in zip(whole, pairs, strict=True)
    )

  @functools.cached_property
  def _exact_ids(self) -> dict[str, int]:
    return {text: index for index, text in enumerate(self._texts)}

  @functools.cached_property
  def _own_ids(self) -> dict[bytes, int]:
    """Maps bytes to ids; other tokens take precedence over byte tokens."""
    found: dict[bytes, int] = {}
    for index, spelling in enumerate(self._spellings):
      is_byte = self._pieces[index].startswith("<0x")
      if spelling is not None and (spelling not in found or not is_byte):
        found[spelling] = index
    return found

  def look_up(self, strings: Sequence[str]) -> np.ndarray:
    """Returns each string's row, int64, encoding and adding new strings."""
    places = self._numbering.of(strings)
    self._fill(self._numbering.take_new())
    return places

  def tokens_of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the concatenated tokens of strings.

    Args:
      places: The rows of the strings.

    Returns:
      The ids of the tokens, and the number of visible bytes that each covers.
    """
    index = ragged_index(self.starts.values[places], self.counts.values[places])
    return self.ids.values[index], self.visible.values[index]

  def _fill(self, strings: list[str]) -> None:
    """Adds strings; only those that are not plain are encoded a second time."""
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
    self.firsts.extend([some[0] if some else -1 for some in ids])
    self.ids.extend([index for some in ids for index in some])
    self.visible.extend(visible)
    self.plain.extend(plain)
    self.visible_bytes.extend(visible_bytes)
    self.lost.extend(lost)

  def _with_spans(self, text: str) -> tuple[list[int], list[int], int, int]:
    """Encodes a string of any kind.

    Returns:
      The ids, the number of visible bytes of each token and of the string, and
      the number of characters that the pieces do not spell.
    """
    encoding = self.student.encode_with_spans(text)
    ranks = visible_ranks(text, self.student.keeps_white_space)
    bounds = [int(ranks[start]) for start, _ in encoding.spans]
    bounds.append(int(ranks[-1]))  # include bytes dropped at the end
    widths = np.diff(bounds).tolist()
    return list(encoding.ids), widths, bounds[-1], encoding.characters_lost

  def _is_plain_word(self, string: str) -> bool:
    return self.word_local and bool(string) and all(map(self._is_plain, string))

  def _find_plain(self, character: str) -> bool:
    """Returns whether normalization never changes a character."""
    if character == student_lib.WORD_START:
      return False
    if unicodedata.category(character) not in _INERT and character not in "^`":
      return False
    kept = f"{student_lib.WORD_START}a{character}a{character}"
    return self._normalize(f"a{character}a{character}") == kept

  def is_parted_by_space(self, text: str) -> bool:
    """Returns whether all white space of a text separates student words."""
    spaces = {character for character in set(text) if character.isspace()}
    return all(space.isascii() and self.splits_words(space) for space in spaces)

  def _find_splits_words(self, character: str) -> bool:
    """Returns whether a white-space character separates student words."""
    if self._normalize is None:
      return False
    start = student_lib.WORD_START
    return self._normalize(f"a{character}b") == f"{start}a{start}b"

  def _find_removes(self, character: str) -> bool:
    """Returns whether the student's normalization removes a character."""
    if self._normalize is None:
      return False
    kept = f"{student_lib.WORD_START}ab"
    return self._normalize(f"a{character}b") == kept


def visible_ranks(text: str, keeps_white_space: bool = False) -> np.ndarray:
  """Counts the bytes of visible characters before each byte.

  Args:
    text: The text.
    keeps_white_space: Whether white space is visible to the student.

  Returns:
    int32[bytes + 1]; the last entry is the number of all visible bytes.

  Example:
    >>> visible_ranks("a b").tolist()
    [0, 1, 1, 2]
  """
  encoded = np.frombuffer(text.encode("utf-8"), np.uint8)
  if keeps_white_space:
    return np.arange(len(encoded) + 1, dtype=np.int32)
  visible = ~_IS_ASCII_SPACE[encoded]
  wide = {c for c in set(text) if c.isspace() and not c.isascii()}
  if wide:
    begins = np.flatnonzero(encoded & 0xC0 != 0x80)  # not 10xxxxxx
    for begin, character in zip(begins.tolist(), text, strict=True):
      if character in wide:
        visible[begin : begin + len(character.encode("utf-8"))] = False
  return np.concatenate([[0], np.cumsum(visible)]).astype(np.int32)


_BOOLS = (
  "whole",
  "odd",
  "begins_space",
  "ends_space",
  "line_before",
  "line_after",
  "parts_words",
  "is_removed",
  "is_special",
)
_INTS = (
  "visible",
  "core",
  "paper_id",
  "exact_id",
  "own_id",
  "lenient",
)


class TeacherTable:
  """A growing table of teacher tokens' spellings.

  Attributes:
    whole: Whether the bytes are complete characters.
    odd: Whether the token must be considered in its context, because the other
      columns are not sufficient: it is empty, not whole, has a newline between
      visible characters, or has white space that does not separate words for
      the student.
    begins_space: Whether its first character is white space.
    ends_space: Whether its last character is white space.
    line_before: Whether a newline precedes its first visible character; for a
      token without visible characters, whether it contains a newline.
    line_after: Whether a newline follows its last visible character.
    parts_words: Whether it is white space that separates two words for the
      student.
    is_removed: Whether it is empty, or white space that the student removes.
    is_special: Whether it is a special token, such as an end of sequence, that
      is no token of the student's.
    visible: The number of bytes of its non-space characters, if whole.
    core: The number of its text stripped of white space; -1 if it is not whole.
      `core_empty` is the number of the empty text.
    paper_id: The student's id of the text, " " written as "▁", as in the paper.
    exact_id: The same, but with controls and the unknown piece.
    own_id: The student's token with the same bytes, with or without a space
      before them; -1 if there is none.
    lenient: The number of the string that the paper's edit distance compares.
    spellings: The bytes of each row.
    texts: The text of each row; None if it is not whole.
    lenient_strings: The strings that `lenient` refers to.
  """

  def __init__(self, words: StudentTable) -> None:
    self._words = words
    self._numbering = Numbering()
    self._cores = Numbering()
    self._lenient = Numbering()
    self.core_empty = self._cores[""]
    self.spellings: list[bytes] = []
    self.texts: list[str | None] = []
    self.lenient_strings: list[str] = []
    for name in _BOOLS:
      setattr(self, name, Column(bool))
    for name in _INTS:
      setattr(self, name, Column(np.int64))

  def __len__(self) -> int:
    return len(self._numbering)

  def look_up(self, spellings: Sequence[bytes]) -> np.ndarray:
    """Returns each spelling's row, int64, adding new spellings."""
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
    """Computes the row of a spelling."""
    lenient = spelling.decode("utf-8", errors="replace")
    piece = lenient.replace(" ", student_lib.WORD_START)
    row = dict.fromkeys((*_BOOLS, *_INTS), False)
    row |= {
      "odd": True,
      "begins_space": lenient[:1].isspace(),
      "ends_space": lenient[-1:].isspace(),
      "visible": 0,
      "core": -1,
      "paper_id": self._words.piece_id(piece),
      "exact_id": self._words.exact_id(piece),
      "own_id": -1,
      "lenient": self._lenient[lenient.replace(" ", "")],
    }
    if not self._words.word_local:
      own_id = self._words.own_id(spelling)
      if own_id < 0 and self._words.adds_spaces:
        own_id = self._words.own_id(b" " + spelling)
      row |= {"paper_id": own_id, "exact_id": own_id, "own_id": own_id}
    try:
      text = spelling.decode("utf-8")
    except UnicodeDecodeError:
      self.texts.append(None)
      return row
    self.texts.append(text)
    keeps = self._words.student.keeps_white_space
    core = text.strip()
    leading = text[: len(text) - len(text.lstrip())]
    spaces = [character for character in text if character.isspace()]
    row |= {
      "whole": True,
      "odd": not text
      or "\n" in (text if keeps else core)
      or not (keeps or all(map(self._words.splits_words, spaces))),
      "line_before": "\n" in leading,
      "line_after": bool(core) and "\n" in text[len(text.rstrip()) :],
      "visible": len(spelling)
      - (0 if keeps else sum(len(c.encode("utf-8")) for c in spaces)),
      "core": self._cores[core],
      "parts_words": self._parts_words(text),
      "is_removed": not core and all(map(self._words.removes, text)),
      "is_special": row["own_id"] < 0 and special_tokens.is_special(text),
    }
    return row

  def _parts_words(self, text: str) -> bool:
    parts = [
      character for character in text if not self._words.removes(character)
    ]
    return (
      bool(parts)
      and text.isspace()
      and all(map(self._words.splits_words, parts))
    )
