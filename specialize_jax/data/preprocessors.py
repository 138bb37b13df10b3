"""From question rows to token ids and targets, in tf.data.

Each preprocessor takes and gives a dataset, as seqio calls it. The wording
lives in `cot/formats.py` alone: a template is taken apart there by rendering
a marker, and put together here around a tensor.
"""

from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax.cot import formats
from specialize_jax.data import demonstrations, features

Example = Mapping[str, tf.Tensor]

# A character that no question contains, to take a template apart.
_MARK = "\x7f"

# Autograph would rewrite, for seconds, what has no Python control flow over
# tensors: a mixture of a dozen tasks is built from a hundred such functions.
_as_written = tf.autograph.experimental.do_not_convert


def render(
  dataset: tf.data.Dataset,
  *,
  data_format: formats.DataFormat,
  read_demonstrations: Callable[[], Sequence[formats.Demonstration]]
  | None = None,
  num_demonstrations: int = 4,
) -> tf.data.Dataset:
  r"""Adds the text `inputs` and `targets` of a format to question rows.

  In-context formats draw demonstrations afresh for every example, without
  replacement, never the example's own question.

  Example: `zero_shot_chain_of_thought` turns the row

    question "1 + 1?"  rationale "1 + 1 = 2. The answer is 2"  answer "2"

  into the same row with

    inputs "Q: 1 + 1?\nLet's think step by step"
    targets "1 + 1 = 2. The answer is 2"

  Args:
    dataset: rows with `question`, `rationale` and `answer`.
    data_format: how to write them.
    read_demonstrations: what to draw from; called once, when the dataset is
      built. For in-context formats only.
    num_demonstrations: how many to show.

  Raises:
    UserError: there are too few demonstrations to draw from.
  """
  if not data_format.in_context:
    return dataset.map(
      _as_written(lambda row: _rendered(row, data_format, shown=None)),
      num_parallel_calls=tf.data.AUTOTUNE,
    )
  draw = demonstration_drawer(
    demonstrations.read(data_format, read_demonstrations),
    data_format,
    num_demonstrations,
  )

  @seqio.map_over_dataset(num_seeds=1)
  @_as_written
  def render_in_context(row: Example, seed: Sequence[tf.Tensor]) -> Example:
    return _rendered(row, data_format, draw(row["question"], tf.stack(seed)))

  return render_in_context(dataset)


def demonstration_drawer(
  shown: Sequence[formats.Demonstration],
  data_format: formats.DataFormat,
  num_demonstrations: int,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Gives a function that draws demonstrations for a question.

  Args:
    shown: what to draw from; repeated questions count once.
    data_format: how a demonstration is written.
    num_demonstrations: how many to draw.

  Returns:
    A function of a question and a seed (int64 [2]) that gives the text of
    `num_demonstrations` different demonstrations, none of them the question.

  Raises:
    UserError: there are not more demonstrations than shall be drawn.
  """
  by_question = demonstrations.different(shown, num_demonstrations)
  total = len(by_question)
  asked = tf.constant(list(by_question))
  written = tf.constant(
    [
      formats.render_demonstration(one, data_format)
      for one in by_question.values()
    ]
  )

  def draw(question: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    # One more than needed: at most one of them is the question itself.
    drawn = distinct(total, num_demonstrations + 1, seed)
    others = tf.boolean_mask(
      drawn, tf.gather(asked, drawn) != tf.strings.strip(question)
    )
    return tf.strings.reduce_join(
      tf.gather(written, others[:num_demonstrations])
    )

  return draw


def distinct(total: int, count: int, seed: tf.Tensor) -> tf.Tensor:
  """Draws `count` different numbers below `total`, uniformly, in any order.

  Floyd's algorithm (Bentley and Floyd, "A sample of brilliance", 1987) draws
  the set with `count` random numbers, however large `total` is; a shuffle
  then makes its order uniform too.

  Args:
    total: how many numbers there are, at least `count`.
    count: how many to draw.
    seed: int64 [2].
  """
  chosen = tf.zeros([0], tf.int64)
  limits = tf.range(total - count + 1, total + 1, dtype=tf.int64)
  uniform = tf.random.stateless_uniform([count], seed, dtype=tf.float64)
  drawn = tf.cast(uniform * tf.cast(limits, tf.float64), tf.int64)
  for i in range(count):
    taken = tf.reduce_any(chosen == drawn[i])
    number = tf.where(taken, limits[i] - 1, drawn[i])
    chosen = tf.concat([chosen, number[None]], 0)
  return tf.random.experimental.stateless_shuffle(chosen, seed + 1)


def render_by_row(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Renders each row in the zero-shot format that its `format` names."""
  zero_shot = [f for f in formats.FORMATS if not f.in_context]

  @_as_written
  def render_row(row: Example) -> Example:
    which = tf.argmax([row["format"] == one.name for one in zero_shot])
    candidates = [_rendered(row, one, shown=None) for one in zero_shot]
    chosen = (features.INPUTS, features.TARGETS, features.DATA_FORMAT)
    return {
      **row,
      **{
        name: tf.gather([text[name] for text in candidates], which)
        for name in chosen
      },
    }

  return dataset.map(render_row, num_parallel_calls=tf.data.AUTOTUNE)


def tokenize(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Replaces the text of `inputs` and `targets` by ids that end in EOS.

  The text stays as `inputs_pretokenized` and `targets_pretokenized`; what is
  ids already, as a teacher's targets are, stays. Nothing is cut: what is too
  long is dropped, and counted, where batches are made.
  """

  @_as_written
  def tokenize_row(row: Example) -> Example:
    row = dict(row)
    for name in (features.INPUTS, features.TARGETS):
      if row[name].dtype == tf.string:
        vocabulary = output_features[name].vocabulary
        row[f"{name}_pretokenized"] = row[name]
        ids = tf.cast(vocabulary.encode_tf(row[name]), tf.int32)
        row[name] = tf.concat([ids, [vocabulary.eos_id]], 0)
    return row

  return dataset.map(tokenize_row, num_parallel_calls=tf.data.AUTOTUNE)


def name_examples(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Adds `example_id`, by which a training example can be found again.

  Args:
    dataset: rows with `question_id`, and `data_format` where they have one.
  """

  @_as_written
  def name(row: Example) -> Example:
    data_format = row.get(features.DATA_FORMAT, tf.constant(0))
    return {**row, **names_of(row["question_id"], data_format)}

  return dataset.map(name, num_parallel_calls=tf.data.AUTOTUNE)


def names_of(
  question_ids: tf.Tensor,
  data_formats: tf.Tensor,
  samples: tf.Tensor | None = None,
) -> Example:
  """Gives `features.EXAMPLE_FEATURES`, of one example or of many.

  Example: "gsm8k/train/7#3:zero_shot_chain_of_thought" is the fourth sample
  of a question; what has no samples lacks the "#3", what is of no format the
  rest.
  """
  endings = tf.constant(["", *(f":{one.name}" for one in formats.FORMATS)])
  parts = [question_ids]
  if samples is not None:
    parts += ["#", tf.strings.as_string(samples)]
  return {
    features.EXAMPLE_ID: tf.strings.join(
      [*parts, tf.gather(endings, data_formats)]
    ),
    features.DATA_FORMAT: data_formats,
  }


def add_one_hot_teacher(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Adds teacher features that say: the target, with certainty, mask 0.

  The vocabulary's unknown piece is no target: see `features`.

  Args:
    dataset: rows with `targets` as ids.
    output_features: the task's, for the vocabulary.
  """
  unknown_id = output_features[features.TARGETS].vocabulary.unk_id

  @_as_written
  def add(row: Example) -> Example:
    one_hot = one_hot_teacher(row[features.TARGETS], unknown_id)
    return {**row, **one_hot}

  return dataset.map(add, num_parallel_calls=tf.data.AUTOTUNE)


def one_hot_teacher(
  targets: tf.Tensor, unknown_id: int
) -> Mapping[str, tf.Tensor]:
  """Returns teacher features of targets that are certain, mask 0.

  Args:
    targets: int32 [P].
    unknown_id: the vocabulary's unknown piece, which is not taught.
  """
  first = [[0, 0], [0, features.NUM_CANDIDATES - 1]]
  known = tf.cast(targets != unknown_id, tf.int32)
  return {
    features.TEACHER_TOP_IDS: tf.pad((targets * known)[:, None], first),
    features.TEACHER_TOP_PROBS: tf.pad(
      tf.cast(known, tf.float32)[:, None], first
    ),
    features.TEACHER_TOP_MASK: tf.zeros_like(targets),
  }


def _rendered(
  row: Example,
  data_format: formats.DataFormat,
  shown: tf.Tensor | None,
) -> Example:
  before, after = formats.render_question(_MARK, data_format).split(_MARK)
  inputs = tf.strings.join([before, row["question"], after])
  if shown is not None:
    inputs = tf.strings.join([shown, inputs])
  if data_format.chain_of_thought:
    targets = row["rationale"]
  else:
    before, after = formats.render_target(data_format, "", _MARK).split(_MARK)
    answer = row["answer"]
    if data_format.wording.answer_is_json:
      answer = tf.strings.regex_replace(answer, r'(["\\])', r"\\\1")
      answer = tf.strings.regex_replace(answer, "\n", r"\\n")
    targets = tf.strings.join([before, answer, after])
  return {
    **row,
    features.INPUTS: inputs,
    features.TARGETS: targets,
    features.DATA_FORMAT: tf.constant(1 + formats.number_of(data_format)),
  }
