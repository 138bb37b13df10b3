"""seqio preprocessors that render and tokenize question rows, in tf.data.

The wording is defined in `cot/formats.py` alone: here its templates are
rendered with a marker in place of the question, and split at the marker.
"""

from collections.abc import Callable, Mapping, Sequence

import seqio
import tensorflow as tf

from specialize_jax.cot import formats
from specialize_jax.data import demonstrations, features

Example = Mapping[str, tf.Tensor]

# A character that no question contains, to take a template apart.
_MARK = "\x7f"

# Autograph is disabled, as there is no Python control flow to convert: for the
# hundred functions of a mixture of a dozen tasks it would take seconds.
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

  For in-context formats, demonstrations are drawn anew for every example,
  without replacement and never the example's own question.

  Example: `zero_shot_chain_of_thought` adds to the row

    question "1 + 1?"  rationale "1 + 1 = 2. The answer is 2"  answer "2"

  the features

    inputs "Q: 1 + 1?\nLet's think step by step"
    targets "1 + 1 = 2. The answer is 2"

  Args:
    dataset: Rows with `question`, `rationale` and `answer`.
    data_format: The format.
    read_demonstrations: Returns the demonstrations to draw from, for in-context
      formats only; called once, when the dataset is built.
    num_demonstrations: The number of demonstrations in a prompt.

  Raises:
    UserError: there are too few demonstrations.
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
  """Returns a function that draws demonstrations for a question.

  Args:
    shown: The demonstrations, in which questions may be repeated.
    data_format: The format of a demonstration.
    num_demonstrations: The number to draw.

  Returns:
    A function of a question and a seed (int64[2]) that returns the text of
    `num_demonstrations` distinct demonstrations, none of them of the question.

  Raises:
    UserError: there are not more than `num_demonstrations`.
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
    # One more than needed, since one of them may be the question itself.
    drawn = distinct(total, num_demonstrations + 1, seed)
    others = tf.boolean_mask(
      drawn, tf.gather(asked, drawn) != demonstrations.stripped(question)
    )
    return tf.strings.reduce_join(
      tf.gather(written, others[:num_demonstrations])
    )

  return draw


def distinct(total: int, count: int, seed: tf.Tensor) -> tf.Tensor:
  """Draws `count` distinct numbers below `total`, in random order.

  Evaluation prompts depend on this order, which differs from that of
  `demonstrations.distinct_rows`.

  Args:
    total: The exclusive upper bound, at least `count`.
    count: The number of draws.
    seed: int64[2].
  """
  chosen = demonstrations.distinct_sets(1, total, count, seed)[0]
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

  The text is kept as `inputs_pretokenized` and `targets_pretokenized`. Features
  that are ids already, such as a teacher's targets, are not changed. Nothing is
  truncated: long examples are dropped, and counted, when batches are built.
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
  """Adds `example_id`, which identifies a training example in logs.

  Args:
    dataset: Rows with `question_id` and, optionally, `data_format`.
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
  """Returns `features.EXAMPLE_FEATURES` of one example or of a batch.

  An id such as "gsm8k/train/7#3:zero_shot_chain_of_thought" consists of the
  question's id, the index of the sample (if any) and the format (if any).
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
  """Adds the teacher features of one-hot targets, with mask 0.

  The unknown piece has no target: see `features`.

  Args:
    dataset: Rows with `targets` as ids.
    output_features: The task's output features, for the vocabulary.
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
  """Returns the teacher features of one-hot targets, with mask 0.

  Args:
    targets: int32[P].
    unknown_id: The id of the unknown piece, which has no target.
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
