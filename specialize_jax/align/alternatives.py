"""Tokenizes the teacher's alternatives with the student's tokenizer.

An alternative at a teacher step defines another text: the sampled text before
the step, followed by the alternative. Its student tokens share a prefix with
those of the sampled text. All modes but `paper` need only the position after
that prefix, and the alternative's token there.

If a text's student tokens are the concatenation of its words' tokens, an
alternative changes one word only, and a cached look-up of that word is enough;
other texts are encoded whole.
"""

import array
import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from specialize_jax.align import columns, tables
from specialize_jax.align import layout as layout_lib

_KEY_BITS = 32  # packs two numbers into one key: faster to hash than a tuple
_KEY_MASK = (1 << _KEY_BITS) - 1
_FAR = 1 << 62
# The limit of the cache of encoded tails, in characters plus tokens, and what
# is counted for each tail besides; some 300 MB.
_MAX_CACHED, _OF_ONE = 1 << 25, 30
_MAX_ENCODED = 1 << 22  # characters that a tokenizer is given at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """Positions at which N alternatives first differ from the sampled text.

  Attributes:
    at_N: int64, index (over the batch) of the first student token that differs
      from the sampled text's; if none differs, the index after the
      alternative's last token.
    own_N: int64, the alternative's token there; -1 if it ends before.
    remaining_N: int64, the number of its tokens from there on: 0 if it ends
      before, -1 if it ends within a character and therefore has no tokens.
  """

  at_N: np.ndarray
  own_N: np.ndarray
  remaining_N: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Known:
  """Student positions at which the text before each teacher token ends.

  Attributes:
    rest_L: int64[L], the number of student tokens (over the batch) that are
      entirely within it: the position to which the probability mass outside
      the top k is assigned.
    base_L: int64[L], the first student token of the word in which it ends, or
      of the next word if it ends at the end of a word.
    stems_L: int64[L], the number of the prefix of that word that precedes the
      token, from `Alternatives._stems`; -1 if the prefix is empty.
    next_L: int64[L], the student token after that word, where the prefix is
      the whole word; elsewhere -1.
    copied_B: bool[B], whether teacher and student split a sample at the same
      bytes, so that an alternative may be used as a student token directly.
      Always false for a student that tokenizes word by word.
  """

  rest_L: np.ndarray
  base_L: np.ndarray
  stems_L: np.ndarray
  next_L: np.ndarray
  copied_B: np.ndarray


class Alternatives:
  """Tokenizes alternatives for one student, with a cache."""

  def __init__(
    self, table: tables.TeacherTable, words: tables.StudentTable
  ) -> None:
    self._table = table
    self._words = words
    self._stem_spellings: list[bytes] = []
    self._stem_places = tables.Column(np.int64)
    self._stem_numbers = tables.Numbering()
    self._stem_cache = tables.IntegerCache(self._number_stems)
    self._joined = tables.Column(np.int64)
    self._joined_numbers = tables.Numbering()
    self._joined_cache = tables.IntegerCache(self._join_stems)
    self._stem_words = tables.Column(np.int64)
    self._last_cache = tables.IntegerCache(self._last_tokens)
    self._alone = tables.Column(np.int64)
    self._alone_ids = tables.Column(np.int64)
    self._tails: dict[str, array.array[int]] = {}
    self._num_cached = 0

  def known(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    places: columns.Places,
    layout: layout_lib.Layout,
  ) -> Known:
    """Computes where the text before each teacher token ends.

    Args:
      teacher: The teacher's side of the batch.
      student: The student's side.
      places: The positions of the teacher's tokens in their texts.
      layout: The groups of both sides.
    """
    words, table = self._words, self._table
    # The number of student tokens that end at or before each place. A token
    # that covers no bytes begins a word: count it as ending with the word's
    # first byte.
    ends_P = layout.start_P + np.maximum(student.visible_P, 1)
    ended = np.cumsum(np.bincount(ends_P, minlength=layout.num_places + 1))
    after_L = places.after_space_L
    ended_L = ended[layout.start_L]
    word_bytes_W = words.visible_bytes.values[student.words_W]
    sample_W = np.repeat(
      np.arange(len(teacher.texts)), np.diff(student.word_offsets)
    )
    start_W = tables.offsets(word_bytes_W)[:-1] + sample_W
    base_W = tables.offsets(words.counts.values[student.words_W])
    begins = np.zeros(layout.num_places, np.int64)
    begins[start_W] = 1
    word = np.cumsum(begins) - 1
    inside = np.flatnonzero(~after_L & student.word_local_B[teacher.sample_L])
    word_of = word[layout.start_L[inside] - 1]
    base_L = ended_L.copy()
    base_L[inside] = base_W[word_of]
    prefix_bytes = layout.start_L[inside] - start_W[word_of]
    stems_L = np.full(len(after_L), -1, np.int64)
    stems_L[inside] = self._stems(student.words_W[word_of], prefix_bytes)
    is_whole = prefix_bytes == word_bytes_W[word_of]
    next_L = np.full(len(after_L), -1, np.int64)
    next_L[inside] = np.where(is_whole, base_W[word_of + 1], -1)
    # A separate word-start token covers white space alone: if the text ends
    # with that white space, the token is entirely within it.
    begins_L = table.begins_space.values[teacher.rows_L]
    visible_P = np.append(student.visible_P, 1)
    apart_L = after_L & ~begins_L & (visible_P[ended_L] == 0)
    firsts = teacher.offsets[:-1]
    apart_L[firsts[firsts < len(apart_L)]] = False  # no white space before it
    rest_L = ended_L + apart_L
    copied_B = np.zeros(len(teacher.texts), bool)
    if not words.word_local:
      copied_B = _same_tokens(teacher, student, places)
    copied = np.flatnonzero(copied_B[teacher.sample_L])
    rest_L[copied] = _same_place(teacher, student, copied)
    for sample in np.flatnonzero(~student.word_local_B & ~copied_B).tolist():
      mine = slice(teacher.offsets[sample], teacher.offsets[sample + 1])
      spans = self._words.student.encode_with_spans(teacher.texts[sample]).spans
      rest_L[mine] = student.offsets[sample] + np.array(
        [tokens_within(spans, start) for start in self._starts(teacher, mine)],
        np.int64,
      )
    return Known(
      rest_L=rest_L,
      base_L=base_L,
      stems_L=stems_L,
      next_L=next_L,
      copied_B=copied_B,
    )

  def read(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    places: columns.Places,
    known: Known,
    *,
    token_N: np.ndarray,
    rows_N: np.ndarray,
  ) -> Reading:
    """Compares alternatives with the sampled text, in student tokens.

    Args:
      teacher: The teacher's side of the batch.
      student: The student's side.
      places: The positions of the teacher's tokens in their texts.
      known: Where the text before each of the teacher's tokens ends.
      token_N: int64, the teacher step of each alternative, over the batch.
      rows_N: int64, the alternative's row in the teacher's table.
    """
    read = self._read_in_words(
      teacher, student, places, known, token_N=token_N, rows_N=rows_N
    )
    if not student.word_local_B.all():
      local_N = student.word_local_B[teacher.sample_L[token_N]]
      sample_N = teacher.sample_L[token_N]
      own_N = self._table.own_id.values[rows_N]
      copied_N = known.copied_B[sample_N] & (own_N >= 0)
      _copy(
        teacher,
        student,
        token_N,
        own_N,
        numbers=np.flatnonzero(copied_N),
        into=read,
      )
      whole = np.flatnonzero(~local_N & ~copied_N)
      self._read_whole(
        teacher, student, known, token_N, rows_N, numbers=whole, into=read
      )
    return read

  def single_tokens(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    places: columns.Places,
    known: Known,
    *,
    token_M: np.ndarray,
    at_M: np.ndarray,
    rows_KM: np.ndarray,
    wanted_KM: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the alternatives that are exactly one student token.

    An alternative's tokens depend only on the part of its word before it: one
    cached look-up is enough, where `read` compares token by token.

    Args:
      teacher: The teacher's side of the batch.
      student: The student's side.
      places: The positions of the teacher's tokens in their texts.
      known: Where the text before each of the teacher's tokens ends.
      token_M: int64[M], teacher steps, over the batch.
      at_M: int64[M], the student token that begins where the step begins, in
        the step's word or right after it; -1 to look up none of the step's
        alternatives, as where a separate word start precedes the token.
      rows_KM: int64[K, M], the rows of each step's alternatives in the
        teacher's table.
      wanted_KM: bool[K, M], the alternatives to look up.

    Returns:
      int64[K, M], the alternative's token, if the sampled text up to the step
      and the alternative are tokenized to the sampled tokens before `at_M` and
      exactly this one; -1 if not, if the token is the unknown piece, or if it
      is not looked up. And bool[K, M], the wanted alternatives that are not
      looked up: `read` has to compare them.
    """
    table = self._table
    stems_M = known.stems_L[token_M]
    base_M, next_M = known.base_L[token_M], known.next_L[token_M]
    is_local_M = student.word_local_B[teacher.sample_L[token_M]] & (at_M >= 0)
    in_word_M = is_local_M & (stems_M >= 0)
    in_word_M &= ~places.mid_character_L[token_M]
    # An alternative that begins with white space ends the word before it. If
    # the sampled word goes on, its prefix is tokenized as a word of its own,
    # perhaps differently.
    completes_M = in_word_M & (next_M == at_M)
    within = np.flatnonzero(in_word_M & (next_M < 0))
    stems = self._compare(
      student,
      self._stem_places.values[stems_M[within]],
      base_M[within],
      samples=teacher.sample_L,
      token_N=token_M[within],
    )
    completes_M[within] = (stems.own_N < 0) & (stems.at_N == at_M[within])
    begins_M = is_local_M & (stems_M < 0) & (base_M == at_M)
    self._add_alternatives()
    whole_KM = table.whole.values[rows_KM] & wanted_KM
    spaced_KM = (table.begins_space.values & ~table.odd.values)[rows_KM]
    alone_KM = whole_KM & (begins_M | (spaced_KM & completes_M))
    ids_KM = self._alone_ids.values[rows_KM]
    ids_KM[~alone_KM] = -1
    joined_KM = whole_KM & in_word_M
    joined_KM &= ~spaced_KM
    joined = np.flatnonzero(joined_KM)
    m = joined % len(token_M)
    last = self._last_cache.of(
      stems_M[m] << _KEY_BITS | rows_KM.ravel()[joined]
    )
    is_there = last >> _KEY_BITS == (at_M - base_M)[m]
    ids_KM.ravel()[joined] = np.where(is_there, last & _KEY_MASK, -1)
    return ids_KM, wanted_KM & ~alone_KM & ~joined_KM

  def _read_in_words(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    places: columns.Places,
    known: Known,
    *,
    token_N: np.ndarray,
    rows_N: np.ndarray,
  ) -> Reading:
    """Tokenizes alternatives of samples that are tokenized word by word."""
    table = self._table
    stems_N = known.stems_L[token_N]
    in_word_N = stems_N >= 0
    whole_N = table.whole.values[rows_N]
    # An alternative that begins with white space completes the word before it.
    splits_N = (table.begins_space.values & ~table.odd.values)[rows_N]
    splits_N &= in_word_N
    within_L = places.mid_character_L
    if not student.word_local_B.all():
      local_L = student.word_local_B[teacher.sample_L]
      whole_N, within_L = whole_N & local_L[token_N], within_L & local_L
    joined_N = in_word_N & ~splits_N & whole_N
    if within_L.any():
      within_N = in_word_N & within_L[token_N]
      splits_N &= ~within_N
      joined_N |= within_N
    at_N = known.base_L[token_N]
    place_N = self._alternatives_alone(rows_N)
    joined = np.flatnonzero(joined_N)
    place_N[joined] = self._stems_joined(stems_N[joined], rows_N[joined])
    # An alternative that ends within a character cannot be tokenized: treat it
    # as probability mass outside the top k.
    unknown = np.flatnonzero(
      ~(joined_N | splits_N | (whole_N & ~in_word_N)) | (place_N < 0)
    )
    place_N[unknown] = 0  # any string: its reading is replaced
    split = np.flatnonzero(splits_N)
    at_N[split] = known.next_L[token_N[split]]
    split = split[at_N[split] < 0]  # within the word
    stems = self._read_stems(teacher, student, known, token_N[split])
    at_N[split] = stems.at_N
    read = self._compare(
      student, place_N, at_N, samples=teacher.sample_L, token_N=token_N
    )
    # If the tokens of that prefix already differ, the alternative adds at least
    # one token after them.
    differs = np.flatnonzero(stems.own_N >= 0)
    read.at_N[split[differs]] = stems.at_N[differs]
    read.own_N[split[differs]] = stems.own_N[differs]
    read.remaining_N[split[differs]] = stems.remaining_N[differs] + 1
    read.at_N[unknown] = known.rest_L[token_N[unknown]]
    read.own_N[unknown] = -1
    read.remaining_N[unknown] = -1
    return read

  def _read_stems(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    known: Known,
    token_N: np.ndarray,
  ) -> Reading:
    """Tokenizes proper prefixes of words as if they were whole words.

    Args:
      teacher: The teacher's side.
      student: The student's side.
      known: Where the text before each token ends.
      token_N: The teacher tokens, with many repetitions.
    """
    needed_L = np.zeros(len(teacher.rows_L), bool)
    needed_L[token_N] = True
    tokens = np.flatnonzero(needed_L)
    read = self._compare(
      student,
      self._stem_places.values[known.stems_L[tokens]],
      known.base_L[tokens],
      samples=teacher.sample_L,
      token_N=tokens,
    )
    back_N = (np.cumsum(needed_L) - 1)[token_N]
    return Reading(
      at_N=read.at_N[back_N],
      own_N=read.own_N[back_N],
      remaining_N=read.remaining_N[back_N],
    )

  def _compare(
    self,
    student: columns.StudentColumns,
    places_N: np.ndarray,
    base_N: np.ndarray,
    *,
    samples: np.ndarray,
    token_N: np.ndarray,
  ) -> Reading:
    """Compares strings' tokens with the sampled text's.

    Args:
      student: The student's side.
      places_N: The strings, as rows of the student's table.
      base_N: The student token with which each string's first is compared.
      samples: int64[L], the sample of each teacher token.
      token_N: The teacher token of each string.
    """
    words, ids_P = self._words, np.append(student.ids_P, -1)
    own_N = words.firsts.values[places_N]
    counts_N = words.counts.values[places_N]
    at_N, remaining_N = base_N.copy(), counts_N.copy()
    # Compare the first token of every string, then the next one of those that
    # agree so far. A string without tokens has no first one.
    active = np.flatnonzero((ids_P[base_N] == own_N) & (counts_N > 0))
    ends = student.offsets[samples[token_N[active]] + 1]
    active, ends = _both(active, ends, where=at_N[active] < ends)
    own_N[active], remaining_N[active] = -1, 0
    at_N[active] += 1
    step = 1
    while len(active):
      active, ends = _both(active, ends, where=counts_N[active] > step)
      mine = words.ids.values[words.starts.values[places_N[active]] + step]
      here = at_N[active]
      parts = (here == ends) | (ids_P[here] != mine)
      parted = active.compress(parts)
      own_N[parted] = mine.compress(parts)
      remaining_N[parted] = counts_N[parted] - step
      active, ends = _both(active, ends, where=~parts)
      at_N[active] += 1
      step += 1
    return Reading(at_N=at_N, own_N=own_N, remaining_N=remaining_N)

  def _read_whole(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    known: Known,
    token_N: np.ndarray,
    rows_N: np.ndarray,
    *,
    numbers: np.ndarray,
    into: Reading,
  ) -> None:
    """Tokenizes alternatives by encoding their texts.

    If no token of the student crosses a space, only the text from the last
    space on is encoded, since the tokens before it are those of the sampled
    text; otherwise the whole text is.
    """
    order = numbers[
      np.argsort(teacher.sample_L[token_N[numbers]], kind="stable")
    ]
    sample_of_last, starts, bases = -1, [], []
    tails: list[str | None] = []
    for number in order.tolist():
      token = int(token_N[number])
      sample = int(teacher.sample_L[token])
      if sample != sample_of_last:
        sample_of_last = sample
        first_token = int(teacher.offsets[sample])
        mine = slice(first_token, teacher.offsets[sample + 1])
        starts = self._starts(teacher, mine)
        encoded = teacher.texts[sample].encode("utf-8")
        cuts = self._cuts(student, sample, encoded)
      start = starts[token - first_token]
      # Not at a space directly before `start`: whether it is a single one
      # depends on the alternative.
      cut = cuts[bisect.bisect_right(cuts, (max(0, start - 2), _FAR)) - 1]
      known_part = encoded[cut[0] : start]
      tails.append(decoded(known_part + self._table.spellings[rows_N[number]]))
      bases.append(cut[1])
    self._encode_tails(tails)
    for number, tail, base in zip(order.tolist(), tails, bases, strict=True):
      if tail is None:
        into.at_N[number] = known.rest_L[token_N[number]]
        into.remaining_N[number] = -1
        continue
      end = student.offsets[teacher.sample_L[token_N[number]] + 1]
      ids = self._tails[tail]
      sampled = student.ids_P[base : min(end, base + len(ids))].tolist()
      same = first_difference(ids, sampled)
      into.at_N[number] = base + same
      into.remaining_N[number] = len(ids) - same
      into.own_N[number] = ids[same] if same < len(ids) else -1

  def _encode_tails(self, tails: Sequence[str | None]) -> None:
    """Encodes the texts that are not cached, in few calls."""
    if self._num_cached > _MAX_CACHED:
      self._tails.clear()
      self._num_cached = 0
    new = [t for t in dict.fromkeys(tails) if t is not None]
    new = [tail for tail in new if tail not in self._tails]
    for some in _slices(new):
      found = self._words.student.encode_many(some)
      self._num_cached += sum(map(len, some)) + sum(map(len, found))
      self._num_cached += _OF_ONE * len(some)
      ids = (array.array("q", one) for one in found)
      self._tails.update(zip(some, ids, strict=True))

  def _cuts(
    self, student: columns.StudentColumns, sample: int, encoded: bytes
  ) -> list[tuple[int, int]]:
    """Returns the (byte, student token) pairs at which encoding can start."""
    first, end = student.offsets[sample], student.offsets[sample + 1]
    cuts = [(0, int(first))]
    if self._words.cuts_before_space:
      widths = student.visible_P[first:end]
      begins = (np.cumsum(widths) - widths).tolist()
      token_at = dict(zip(begins, range(int(first), int(end)), strict=True))
      cuts += [
        (at.start(), token_at[at.start()])
        for at in tables.SINGLE_SPACE.finditer(encoded)
        if at.start() in token_at
      ]
    return cuts

  def same_white_space(
    self,
    teacher: columns.TeacherColumns,
    student: columns.StudentColumns,
    places: columns.Places,
    distinct_KL: np.ndarray,
  ) -> np.ndarray:
    """Finds white-space alternatives that do not change the student's tokens.

    If a teacher token is only white space, an alternative that is only white
    space is equivalent if substituting it leaves the student tokens of the
    whole text unchanged.

    Args:
      teacher: The teacher's side.
      student: The student's side.
      places: The positions of the teacher's tokens in their texts.
      distinct_KL: bool[K, L], the candidates to consider.

    Returns:
      bool[K, L].
    """
    table = self._table
    rows_KL, rows_L = teacher.top_rows_KL, teacher.rows_L
    same_KL = np.zeros(distinct_KL.shape, bool)
    blank = np.flatnonzero(table.core.values[rows_L] == table.core_empty)
    same_KL[:, blank] = distinct_KL[:, blank] & (
      table.core.values[rows_KL[:, blank]] == table.core_empty
    )
    if not same_KL.any():
      return same_KL
    if self._words.student.keeps_white_space:
      # The student may still normalize white space, such as a no-break space
      # to a space.
      is_local_L = np.zeros(len(rows_L), bool)
    else:
      # For a student that tokenizes word by word, any white space that
      # separates words is equivalent to any other; white space that the student
      # removes is equivalent only next to other white space.
      is_local_L = student.word_local_B[teacher.sample_L]
      next_begins_L = np.ones(len(rows_L), bool)
      next_begins_L[:-1] = table.begins_space.values[rows_L[1:]]
      lasts = teacher.offsets[1:] - 1
      next_begins_L[lasts[np.diff(teacher.offsets) > 0]] = True
      parted_L = places.after_space_L | next_begins_L
      same_KL &= (
        table.parts_words.values[rows_KL]
        | (table.is_removed.values[rows_KL] & parted_L)
        | ~is_local_L
      )
    for token in np.flatnonzero(same_KL.any(axis=0) & ~is_local_L).tolist():
      sample = teacher.sample_L[token]
      mine = slice(teacher.offsets[sample], teacher.offsets[sample + 1])
      first, end = student.offsets[sample], student.offsets[sample + 1]
      sampled = student.ids_P[first:end].tolist()
      encoded = teacher.texts[sample].encode("utf-8")
      start = self._starts(teacher, mine)[token - mine.start]
      after = encoded[start + len(table.spellings[rows_L[token]]) :]
      for k in np.flatnonzero(same_KL[:, token]).tolist():
        white_space = table.spellings[rows_KL[k, token]]
        text = decoded(encoded[:start] + white_space + after)
        # An empty token may lie within a character.
        same_KL[k, token] = text is not None and (
          self._words.student.encode_many([text])[0] == sampled
        )
    return same_KL

  def _starts(self, teacher: columns.TeacherColumns, mine: slice) -> list[int]:
    """Returns the byte at which each token of a sample begins."""
    rows = teacher.rows_L[mine].tolist()
    sizes = [len(self._table.spellings[row]) for row in rows]
    return tables.offsets(np.array(sizes, np.int64))[:-1].tolist()

  def _stems(self, words: np.ndarray, num_bytes: np.ndarray) -> np.ndarray:
    """Returns the numbers of words' prefixes of the given lengths in bytes."""
    return self._stem_cache.of(words << _KEY_BITS | num_bytes)

  def _number_stems(self, keys: np.ndarray) -> np.ndarray:
    """Assigns numbers to prefixes, and tokenizes the new ones."""
    numbers = self._stem_numbers.of(keys.tolist())
    new = self._stem_numbers.take_new()
    self._stem_words.extend([key >> _KEY_BITS for key in new])
    cuts = [
      self._words.strings[key >> _KEY_BITS].encode("utf-8")[: key & _KEY_MASK]
      for key in new
    ]
    self._stem_spellings += cuts
    # A prefix that ends within a character is only ever used in a join.
    texts = [spelling.decode("utf-8", errors="ignore") for spelling in cuts]
    self._stem_places.extend(self._words.look_up(texts))
    return numbers

  def _stems_joined(self, stems: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Looks up prefixes joined with alternatives.

    Returns:
      Rows of the student's table; -1 where the two do not spell whole
      characters.
    """
    return self._joined_cache.of(stems << _KEY_BITS | rows)

  def _join_stems(self, keys: np.ndarray) -> np.ndarray:
    """Looks up prefixes joined with alternatives, for distinct keys."""
    numbers = self._joined_numbers.of(keys.tolist())
    spellings = self._table.spellings
    texts = [
      decoded(
        self._stem_spellings[key >> _KEY_BITS] + spellings[key & _KEY_MASK]
      )
      for key in self._joined_numbers.take_new()
    ]
    found = iter(self._words.look_up([t for t in texts if t is not None]))
    self._joined.extend([-1 if text is None else next(found) for text in texts])
    return self._joined.values[numbers]

  def _last_tokens(self, keys: np.ndarray) -> np.ndarray:
    """Finds the last tokens of prefixes joined with alternatives.

    Args:
      keys: Prefixes and alternatives, as for `_joined_cache`.

    Returns:
      The index of the last token and, in the lower bits, its id, if the tokens
      before it are those of the prefix's word and it is not the unknown piece;
      else a negative index below any other.
    """
    words = self._words
    joined = self._join_stems(keys)
    counts = np.where(joined < 0, 0, words.counts.values[joined])
    of_words = self._stem_words.values[keys >> _KEY_BITS]
    is_like = (counts > 0) & (counts <= words.counts.values[of_words] + 1)
    before = np.where(is_like, counts - 1, 0)
    starts = words.starts.values[joined]
    differs = (
      words.ids.values[tables.ragged_index(starts, before)]
      != words.ids.values[
        tables.ragged_index(words.starts.values[of_words], before)
      ]
    )
    of_differing = np.repeat(np.arange(len(keys)), before)[differs]
    is_like[of_differing] = False
    ids = words.ids.values[np.where(is_like, starts + before, 0)]
    is_like &= ids != words.student.unknown_id
    return np.where(is_like, before << _KEY_BITS | ids, -_FAR)

  def _alternatives_alone(self, rows: np.ndarray) -> np.ndarray:
    """Returns the student table's rows of alternatives without context."""
    self._add_alternatives()
    return self._alone.values[rows]

  def _add_alternatives(self) -> None:
    """Tokenizes the teacher's new spellings, each without context."""
    words = self._words
    new = range(len(self._alone), len(self._table))
    alone = words.look_up([self._table.texts[row] or "" for row in new])
    firsts = words.firsts.values[alone]
    is_one = (words.counts.values[alone] == 1) & (
      firsts != words.student.unknown_id
    )
    self._alone.extend(alone)
    self._alone_ids.extend(np.where(is_one, firsts, -1))


def _both(
  left: np.ndarray, right: np.ndarray, *, where: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the entries of two arrays where a condition holds."""
  return left.compress(where), right.compress(where)


def _same_tokens(
  teacher: columns.TeacherColumns,
  student: columns.StudentColumns,
  places: columns.Places,
) -> np.ndarray:
  """Returns which samples both sides split at the same bytes, bool[B]."""
  same_B = np.diff(teacher.offsets) == np.diff(student.offsets)
  visible_L = places.visible_L[same_B[teacher.sample_L]]
  visible_P = student.visible_P[same_B[student.sample_P]]
  sample = student.sample_P[same_B[student.sample_P]]
  same_B[sample[visible_L != visible_P]] = False
  return same_B


def _same_place(
  teacher: columns.TeacherColumns,
  student: columns.StudentColumns,
  tokens: np.ndarray,
) -> np.ndarray:
  """Returns the index of the student token that equals each teacher token."""
  sample = teacher.sample_L[tokens]
  return student.offsets[sample] + tokens - teacher.offsets[sample]


def _copy(
  teacher: columns.TeacherColumns,
  student: columns.StudentColumns,
  token_N: np.ndarray,
  own_N: np.ndarray,
  *,
  numbers: np.ndarray,
  into: Reading,
) -> None:
  """Fills in alternatives that are student tokens themselves.

  Where teacher and student tokenize a text identically, the teacher's candidate
  is taken as a student token, even if its text would be tokenized differently:
  aligning a tokenizer with itself must return the teacher's distribution.

  Args:
    teacher: The teacher's side.
    student: The student's side.
    token_N: The teacher step of each alternative.
    own_N: The student token that each alternative is.
    numbers: The alternatives to fill in.
    into: Updated in place.
  """
  at = _same_place(teacher, student, token_N[numbers])
  own = own_N[numbers]
  same = student.ids_P[at] == own
  into.at_N[numbers] = at + same
  into.own_N[numbers] = np.where(same, -1, own)
  into.remaining_N[numbers] = ~same


def decoded(spelling: bytes) -> str | None:
  """Decodes UTF-8 bytes; returns None if a character is incomplete."""
  try:
    return spelling.decode("utf-8")
  except UnicodeDecodeError:
    return None


def _slices(texts: Sequence[str]) -> Iterator[list[str]]:
  """Divides texts into batches of about `_MAX_ENCODED` characters.

  A tokenizer's result takes a hundred bytes for each token.
  """
  some, size = [], 0
  for text in texts:
    some.append(text)
    size += len(text)
    if size > _MAX_ENCODED:
      yield some
      some, size = [], 0
  if some:
    yield some


def first_difference(left: Sequence[int], right: Sequence[int]) -> int:
  """Returns the length of the longest common prefix of two sequences.

  Example:
    >>> first_difference([1, 2, 3], [1, 5]), first_difference([1], [1, 5])
    (1, 1)
  """
  shorter = min(len(left), len(right))
  return next((i for i in range(shorter) if left[i] != right[i]), shorter)


def tokens_within(spans: Sequence[tuple[int, int]], num_bytes: int) -> int:
  """Counts the student tokens that are entirely within a text's first bytes.

  Args:
    spans: The (start, end) bytes of each token.
    num_bytes: The number of bytes.
  """
  for position, (start, end) in enumerate(spans):
    if start >= num_bytes or end > num_bytes:
      return position
  return len(spans)
