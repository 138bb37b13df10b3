"""Renders the teacher's rows in the four formats, in batches.

The parts of a prompt are known before training begins: questions,
demonstrations, answers. Each part is tokenized once, and the tokens of a prompt
are the concatenated tokens of its parts, since every part ends with white space
and T5's pieces never cross a space. An example then needs a few look-ups
instead of the tokenization of a text of some 700 tokens. (For a vocabulary
whose pieces cross spaces, whole prompts are tokenized.)
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from specialize_jax.align import columns, student, tables
from specialize_jax.cot import formats
from specialize_jax.data import (
  demonstrations,
  features,
  preprocessors,
  teacher_source,
  vocabularies,
)
from specialize_jax.records import packed_rows

BATCH_SIZE = 64
"""The number of rows that are rendered together."""

Example = Mapping[str, tf.Tensor]
_WIDTH = features.NUM_CANDIDATES


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TokenizedTexts:
  """Texts with their tokens.

  Attributes:
    texts: string[N].
    ids: int32[P], the concatenated tokens of all texts.
    starts: int64[N], the index of each text's first token.
    lengths: int64[N], the number of tokens of each text.
  """

  texts: tf.Tensor
  ids: tf.Tensor
  starts: tf.Tensor
  lengths: tf.Tensor


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Runs:
  """Sequences of different lengths, one for each of B rows.

  Attributes:
    values: int32 or float32[P, ...], the concatenated sequences.
    ends: int64[B + 1], the start of each sequence, and the end of the last.
  """

  values: Mapping[str, tf.Tensor]
  ends: tf.Tensor


def tokenize_texts(
  texts: Sequence[str],
  vocabulary: vocabularies.LocatedSentencePieceVocabulary,
) -> TokenizedTexts:
  """Tokenizes texts, each distinct word only once."""
  words = _word_table(vocabulary.sentencepiece_model_file)
  whole_B = np.zeros(len(texts), bool)
  # The student may ignore a control character that Python regards as white
  # space.
  if not words.is_parted_by_space("".join(texts)):
    whole_B[:] = [not words.is_parted_by_space(text) for text in texts]
  found = columns.student_columns(texts, whole_B, words)
  return TokenizedTexts(
    texts=tf.constant(list(texts)),
    ids=tf.constant(found.ids_P, tf.int32),
    starts=tf.constant(found.offsets[:-1], tf.int64),
    lengths=tf.constant(np.diff(found.offsets), tf.int64),
  )


def joins_tokens(
  vocabulary: vocabularies.LocatedSentencePieceVocabulary,
) -> bool:
  """Returns whether the tokens of a prompt are those of its parts."""
  return _word_table(vocabulary.sentencepiece_model_file).word_local


@functools.lru_cache(maxsize=2)
def _word_table(path: str) -> tables.StudentTable:
  return tables.StudentTable(student.SentencePieceStudent.from_file(path))


def render(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, seqio.Feature],
  *,
  source: teacher_source.TeacherSource,
  data_format: formats.DataFormat,
  read_demonstrations: Callable[[], Sequence[formats.Demonstration]]
  | None = None,
  num_demonstrations: int = 4,
) -> tf.data.Dataset:
  """Converts row numbers to training examples of a format.

  The targets of chain-of-thought formats are the teacher's distributions,
  followed by a one-hot EOS with mask 0, since records have no stop token. A
  truncated sample has no EOS, since its end is unknown. The targets of
  answer-only formats are "The answer is X", one-hot. For in-context formats,
  demonstrations are drawn anew for every example, without replacement and never
  the example's own question.

  An example has `features.TRAINING_FEATURES` and `features.EXAMPLE_FEATURES`,
  and `question_id`, `question`, `answer` and `inputs_pretokenized` as text.

  Args:
    dataset: A dataset of `source`.
    output_features: The task's output features, for the vocabulary.
    source: The source of the rows.
    data_format: The format.
    read_demonstrations: Returns the demonstrations to draw from, for in-context
      formats only; called once, when the dataset is built.
    num_demonstrations: The number of demonstrations in a prompt.

  Raises:
    UserError: there are too few demonstrations.
  """
  is_validation = teacher_source.VALIDATION in dataset.element_spec
  rendering = Rendering(
    output_features,
    source=source,
    data_format=data_format,
    read_demonstrations=read_demonstrations,
    num_demonstrations=num_demonstrations,
    split=teacher_source.VALIDATION if is_validation else "train",
  )

  # Autograph is disabled: it would take seconds, and there is no Python control
  # flow to convert.
  @tf.autograph.experimental.do_not_convert
  def examples(batch: Example) -> tf.data.Dataset:
    rows = batch["row"]
    return _one_by_one(
      *rendering.of(rows, rendering.shown(rows, batch["seed"]))
    )

  return _in_batches(dataset).flat_map(examples)


class Rendering:
  """Renders the rows of a source in a format, from tables read once."""

  def __init__(
    self,
    output_features: Mapping[str, seqio.Feature],
    *,
    source: teacher_source.TeacherSource,
    data_format: formats.DataFormat,
    read_demonstrations: Callable[[], Sequence[formats.Demonstration]]
    | None = None,
    num_demonstrations: int = 4,
    split: str = "train",
  ) -> None:
    """Reads the tables and tokenizes their texts; see `render`."""
    vocabulary = output_features[features.INPUTS].vocabulary
    questions = source.questions(split)
    # Read the rows in a thread while the questions are tokenized.
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      if data_format.chain_of_thought:
        rows = reader.submit(source.rows, split)
      self._prompts = _Prompts(
        questions,
        vocabulary,
        data_format,
        demonstrations.Drawer(
          demonstrations.read(data_format, read_demonstrations),
          num_demonstrations,
          asked=questions.texts,
        )
        if data_format.in_context
        else None,
      )
    self._targets = (
      _TeacherTargets(rows.result(), vocabulary.eos_id)
      if data_format.chain_of_thought
      else _AnswerTargets(questions, vocabulary, data_format)
    )
    self._one_per_question = source.one_per_question
    self._format_number = 1 + formats.number_of(data_format)

  def shown(self, rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws demonstrations for rows.

    Args:
      rows: int64[B].
      seed: int64[2].

    Returns:
      Their indices, int64[B, n], where n is 0 for a zero-shot format.
    """
    return self._prompts.shown(self._places(rows), seed)

  def sizes(self, rows: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    """Returns the number of tokens of inputs and targets, int64[B, 2].

    Those of inputs only where the vocabulary `joins_tokens`.
    """
    return tf.stack(
      [
        self._prompts.lengths(self._places(rows), shown),
        self._targets.lengths(rows),
      ],
      axis=1,
    )

  def outline(
    self, rows: tf.Tensor, seed: tf.Tensor
  ) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what is known of examples before they are rendered.

    Args:
      rows: int64[B].
      seed: int64[2]; with those of `render` the examples are the same.

    Returns:
      `shown` and `sizes`.
    """
    shown = self.shown(rows, seed)
    return shown, self.sizes(rows, shown)

  def of(
    self, rows: tf.Tensor, shown: tf.Tensor
  ) -> tuple[Sequence["Runs"], Example]:
    """Returns the examples of rows: features of any length, and scalars."""
    places = self._places(rows)
    texts, inputs = self._prompts.of(places, shown)
    scalars = {
      **self._prompts.named(places),
      **self.names(rows),
      f"{features.INPUTS}_pretokenized": texts,
    }
    return [inputs, self._targets.of(rows)], scalars

  def names(self, rows: tf.Tensor) -> Example:
    """Returns `features.EXAMPLE_FEATURES` of rows."""
    return preprocessors.names_of(
      self._prompts.named(self._places(rows))["question_id"],
      tf.fill(tf.shape(rows), self._format_number),
      self._targets.samples_of(rows),
    )

  def _places(self, rows: tf.Tensor) -> tf.Tensor:
    if self._one_per_question:
      return rows
    return self._targets.questions_of(rows)


def _in_batches(dataset: tf.data.Dataset) -> tf.data.Dataset:
  return _with_seeds(dataset.batch(BATCH_SIZE))


@seqio.map_over_dataset(num_seeds=1)
def _with_seeds(batch: Example, seed: Sequence[tf.Tensor]) -> Example:
  return {**batch, "seed": tf.stack(seed)}


def _one_by_one(
  runs: Sequence[Runs], scalars: Mapping[str, tf.Tensor]
) -> tf.data.Dataset:
  """Converts a batch to a dataset of its examples."""

  @tf.autograph.experimental.do_not_convert
  def one(row: tf.Tensor) -> Example:
    example = {name: values[row] for name, values in scalars.items()}
    for several in runs:
      start, end = several.ends[row], several.ends[row + 1]
      for name, values in several.values.items():
        example[name] = values[start:end]
    return example

  size = tf.shape(next(iter(scalars.values())), tf.int64)[0]
  return tf.data.Dataset.range(size).map(one)


def _ends(lengths: tf.Tensor) -> tf.Tensor:
  return tf.concat([[0], tf.cumsum(lengths)], 0)


def _gather(
  table: TokenizedTexts, which: tf.Tensor, eos_id: int
) -> tuple[tf.Tensor, tf.Tensor]:
  """Concatenates the tokens of each row's texts, and appends EOS.

  Args:
    table: The texts.
    which: int64[B, n], the texts of each row, in order.
    eos_id: The vocabulary's EOS.

  Returns:
    The int32 ids of all rows, concatenated, and the int64[B + 1] start of each.
  """
  eos_at = tf.shape(table.ids, tf.int64)[0]
  last = tf.zeros_like(which[:, :1])
  starts = tf.concat([tf.gather(table.starts, which), last + eos_at], 1)
  lengths = tf.concat([tf.gather(table.lengths, which), last + 1], 1)
  flat = tf.reshape(starts, [-1])
  index = tf.ragged.range(flat, flat + tf.reshape(lengths, [-1])).flat_values
  # Without a copy of the table, whose size would count in every batch.
  ids = tf.gather(table.ids, tf.minimum(index, eos_at - 1))
  return tf.where(index == eos_at, eos_id, ids), _ends(
    tf.reduce_sum(lengths, 1)
  )


class _Prompts:
  """Builds the inputs of a format for a batch of questions."""

  def __init__(
    self,
    questions: teacher_source.QuestionTable,
    vocabulary: vocabularies.LocatedSentencePieceVocabulary,
    data_format: formats.DataFormat,
    drawer: demonstrations.Drawer | None,
  ) -> None:
    self._questions = {
      "question_id": tf.constant(questions.ids),
      "question": tf.constant(questions.texts),
      "answer": tf.constant(questions.answers),
    }
    self._vocabulary = vocabulary
    self._drawer = drawer
    shown = drawer.demonstrations if drawer else []
    self._num_shown = len(shown)
    self._table = tokenize_texts(
      [formats.render_demonstration(one, data_format) for one in shown]
      + [formats.render_question(q, data_format) for q in questions.texts],
      vocabulary,
    )
    self._joins_tokens = joins_tokens(vocabulary)

  def shown(self, places: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws demonstrations, int64[B, n]; none for a zero-shot format."""
    if self._drawer is None:
      return tf.zeros([tf.shape(places)[0], 0], tf.int64)
    return self._drawer.draw(places, seed)

  def lengths(self, places: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    """Returns the number of tokens of prompts, EOS included, int64[B]."""
    lengths = tf.gather(self._table.lengths, self._parts(places, shown))
    return tf.reduce_sum(lengths, 1) + 1

  def _parts(self, places: tf.Tensor, shown: tf.Tensor) -> tf.Tensor:
    questions = tf.cast(places, tf.int64)[:, None] + self._num_shown
    return tf.concat([shown, questions], 1)

  def of(self, places: tf.Tensor, shown: tf.Tensor) -> tuple[tf.Tensor, Runs]:
    """Returns the texts, string[B], and the tokens of prompts."""
    parts = self._parts(places, shown)
    texts = tf.strings.reduce_join(tf.gather(self._table.texts, parts), axis=1)
    if self._joins_tokens:
      ids, ends = _gather(self._table, parts, self._vocabulary.eos_id)
    else:
      ragged = tf.cast(self._vocabulary.encode_tf(texts), tf.int32)
      eos = tf.fill([tf.shape(places)[0], 1], self._vocabulary.eos_id)
      ragged = tf.concat([ragged, eos], 1)
      ids, ends = ragged.flat_values, tf.cast(ragged.row_splits, tf.int64)
    return texts, Runs(values={features.INPUTS: ids}, ends=ends)

  def named(self, places: tf.Tensor) -> Example:
    """Returns the text features of questions."""
    return {
      name: tf.gather(values, places)
      for name, values in self._questions.items()
    }


class _AnswerTargets:
  """Builds the targets of answer-only formats for a batch of questions."""

  def __init__(
    self,
    questions: teacher_source.QuestionTable,
    vocabulary: vocabularies.LocatedSentencePieceVocabulary,
    data_format: formats.DataFormat,
  ) -> None:
    self._eos_id, self._unknown_id = vocabulary.eos_id, vocabulary.unk_id
    self._table = tokenize_texts(
      [
        formats.render_target(data_format, "", answer)
        for answer in questions.answers
      ],
      vocabulary,
    )

  def samples_of(self, rows: tf.Tensor) -> None:
    """Returns None, since an answer belongs to no sample."""
    del rows

  def lengths(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns the number of tokens of targets, EOS included, int64[B]."""
    return tf.gather(self._table.lengths, rows) + 1

  def of(self, rows: tf.Tensor) -> Runs:
    """Returns one-hot targets, except for unknown pieces, which have none."""
    ids, ends = _gather(
      self._table, tf.cast(rows, tf.int64)[:, None], self._eos_id
    )
    one_hot = preprocessors.one_hot_teacher(ids, self._unknown_id)
    return Runs(values={features.TARGETS: ids, **one_hot}, ends=ends)


class _TeacherTargets:
  """Builds the targets of chain-of-thought formats from packed rows.

  Equivalent to `packed_rows.unpack`, in TensorFlow, followed by EOS.
  """

  def __init__(self, table: teacher_source.RowTable, eos_id: int) -> None:
    self._table = table
    self._eos_id = eos_id

  def questions_of(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns the index of each row's question."""
    return tf.gather(self._table.question, rows)

  def samples_of(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns the index of each row among its question's samples."""
    return tf.gather(self._table.sample, rows)

  @functools.cached_property
  def _lengths(self) -> tf.Tensor:
    """The number of tokens of every row's target, int64[N]."""
    # Outside of the graph that asks for it first: others use it too.
    with tf.init_scope():
      flags = self._table.flags
      lengths = tf.strings.length(flags).numpy().astype(np.int64)
      joined = tf.strings.reduce_join(flags).numpy()
      last = np.maximum(np.cumsum(lengths) - 1, 0)
      bits = np.frombuffer(joined or b"\0", np.uint8)[last]
      is_whole = ((bits & packed_rows.TRUNCATED_BIT) == 0) | (lengths == 0)
      return tf.constant(lengths + is_whole)

  def lengths(self, rows: tf.Tensor) -> tf.Tensor:
    """Returns the number of tokens of targets, EOS included, int64[B]."""
    return tf.gather(self._lengths, rows)

  def of(self, rows: tf.Tensor) -> Runs:
    """Returns the teacher's distributions."""
    flags = tf.gather(self._table.flags, rows)
    lengths = tf.cast(tf.strings.length(flags), tf.int64)
    bits = tf.cast(_decode(flags, tf.uint8), tf.int32)
    counts = tf.bitwise.right_shift(bits, packed_rows.COUNT_SHIFT)
    counts &= packed_rows.COUNT_MASK
    # A row without positions has no last position; it is not truncated.
    last = tf.maximum(tf.cumsum(lengths) - 1, 0)
    is_cut = (tf.gather(bits, last) & packed_rows.TRUNCATED_BIT) > 0
    is_whole = tf.logical_not(is_cut) | (lengths == 0)
    not_own = tf.cast(tf.equal(bits & packed_rows.OWN_BIT, 0), tf.int32)
    # Append the EOS position, which `_with_last` copies to the end of each row.
    ids = _decode_ids(
      tf.gather(self._table.ids, rows), tf.reduce_sum(counts + not_own)
    )
    ids = tf.concat([ids, [self._eos_id]], 0)
    probs = _decode(tf.gather(self._table.log_probs, rows), tf.float16)
    probs = tf.concat([tf.exp(tf.cast(probs, tf.float32)), [1.0]], 0)
    counts = tf.concat([counts, [1]], 0)
    not_own = tf.concat([not_own, [0]], 0)
    first = tf.cumsum(counts + not_own, exclusive=True)
    slots = tf.range(_WIDTH)
    used = slots < counts[:, None]
    top_at = tf.where(used, (first + not_own)[:, None] + slots, 0)
    prob_at = tf.where(
      used, tf.cumsum(counts, exclusive=True)[:, None] + slots, 0
    )
    values = {
      features.TARGETS: tf.gather(ids, first),
      features.TEACHER_TOP_IDS: tf.where(used, tf.gather(ids, top_at), 0),
      features.TEACHER_TOP_PROBS: tf.where(
        used, tf.gather(probs, prob_at), 0.0
      ),
      features.TEACHER_TOP_MASK: tf.concat(
        [bits & packed_rows.MASK_BIT, [0]], 0
      ),
    }
    return _with_last(values, lengths, is_whole)


def _decode(strings: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  return tf.io.decode_raw(tf.strings.reduce_join(strings), dtype)


def _decode_ids(strings: tf.Tensor, num_ids: tf.Tensor) -> tf.Tensor:
  """Decodes ids of 2 or 4 bytes, as stored by `packed_rows`, to int32."""
  content = tf.strings.reduce_join(strings)
  return tf.cond(
    tf.strings.length(content) > 2 * num_ids,
    lambda: tf.io.decode_raw(content, tf.int32),
    lambda: tf.cast(tf.io.decode_raw(content, tf.uint16), tf.int32),
  )


def _with_last(
  values: Mapping[str, tf.Tensor], lengths: tf.Tensor, is_whole: tf.Tensor
) -> Runs:
  """Appends the last of all values to each row that is not truncated."""
  ends = _ends(lengths)
  added = tf.cast(is_whole, tf.int64)
  total = tf.broadcast_to(ends[-1], tf.shape(lengths))
  starts = tf.reshape(tf.stack([ends[:-1], total], 1), [-1])
  stops = tf.reshape(tf.stack([ends[1:], total + added], 1), [-1])
  index = tf.ragged.range(starts, stops).flat_values
  return Runs(
    values={name: tf.gather(one, index) for name, one in values.items()},
    ends=_ends(lengths + added),
  )
