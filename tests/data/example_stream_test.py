"""Tasks of others are streamed too, or refused before the first step."""

import functools

import pytest
import seqio
import tensorflow as tf

from specialize_jax import errors
from specialize_jax.data import example_stream, identity, task_parts
from tasks import mixtures  # noqa: F401  (registers every task)

LENGTHS = {"inputs": 64, "targets": 64}
TAUGHT = "mini_gsm_teacher_zero_shot_chain_of_thought_v1"


@pytest.fixture
def add():
  """Registers tasks and mixtures for a test."""
  names = []

  def added(registry, name, *args, **kwargs):
    registry.add(name, *args, **kwargs)
    names.append((registry, name))

  yield added
  for registry, name in reversed(names):
    registry.remove(name)


def _add_numbers(add, name, dataset_fn, *more):
  """Registers a task whose examples are each a number and an EOS."""
  tokens = seqio.PassThroughVocabulary(size=384, eos_id=1)

  def examples(dataset):
    def example(number):
      ids = tf.stack([number + 2, 1])
      return {
        "inputs": ids,
        "targets": ids,
        "teacher_top_ids": tf.stack([ids] + [tf.zeros_like(ids)] * 4, 1),
        "teacher_top_probs": tf.constant([[1.0, 0, 0, 0, 0]] * 2),
        "teacher_top_mask": tf.zeros_like(ids),
        "example_id": tf.strings.as_string(number),
        "data_format": tf.constant(0),
      }

    return dataset.map(example)

  add(
    seqio.TaskRegistry,
    name,
    source=seqio.FunctionDataSource(dataset_fn, splits=("train",)),
    preprocessors=[examples, *more],
    output_features=task_parts.training_features(tokens),
  )


def _numbers(split, shuffle_files=False, seed=None):
  return tf.data.Dataset.range(6, output_type=tf.int32)


def _streamed(name, num_epochs=1):
  (stream,) = example_stream.training_streams(
    name, task_feature_lengths=LENGTHS, seed=0, num_epochs=num_epochs
  )
  return stream


def test_examples_of_one_length_are_read(add):
  _add_numbers(add, "stream_numbers", _numbers)
  examples = _streamed("stream_numbers").next_examples()
  assert sorted(one["inputs"].tolist() for one in examples) == [
    [number, 1] for number in range(2, 8)
  ]
  assert examples[3]["teacher_top_ids"].shape == (2, 5)


def test_a_source_without_a_seed_is_refused(add):
  _add_numbers(add, "stream_seedless", lambda split, shuffle_files: None)
  with pytest.raises(errors.UserError, match="takes no seed, by which"):
    _streamed("stream_seedless")


def test_a_position_that_cannot_be_saved_is_one_sentence(add):
  def generated(split, shuffle_files=False, seed=None):
    return tf.data.Dataset.from_generator(
      lambda: iter(range(6)), output_signature=tf.TensorSpec([], tf.int32)
    )

  _add_numbers(add, "stream_generated", generated)
  stream = _streamed("stream_generated", num_epochs=None)
  stream.next_examples()
  with pytest.raises(errors.UserError, match="cannot be saved, so that no run"):
    stream.state()


def _mini_stream():
  return example_stream.ExampleStream(
    example_stream.training_dataset(
      "mini_sums_v1", task_feature_lengths=LENGTHS, seed=3
    )
  )


def _inputs(stream, num_chunks):
  chunks = [stream.next_examples() for _ in range(num_chunks)]
  return [one["inputs"].tolist() for chunk in chunks for one in chunk]


def test_fused_maps_read_the_same_examples(teacher_dir, monkeypatch):
  """And a position that was saved without them is restored."""
  fused = _mini_stream()
  monkeypatch.setattr(example_stream, "_options", tf.data.Options)
  plain = _mini_stream()
  monkeypatch.undo()
  assert _inputs(fused, 3) == _inputs(plain, 3)
  states = fused.state(), plain.state()
  fewer, more = (state.count(b"ParallelMap") for state in states)
  assert fewer < 0.5 * more
  expected = _inputs(plain, 3)
  for state in states:
    resumed = _mini_stream()
    resumed.restore(state)
    assert _inputs(resumed, 2) == expected[: 2 * 32]
    again = _mini_stream()
    again.restore(resumed.state())
    assert _inputs(again, 1) == expected[2 * 32 :]


def test_a_position_of_other_tasks_is_refused(add, teacher_dir):
  _add_numbers(add, "stream_numbers", _numbers)
  stream = _streamed("stream_numbers")
  with pytest.raises(errors.UserError, match="are not those of the run that"):
    stream.restore(_mini_stream().state())


def test_a_mixture_draws_by_its_own_function(add, teacher_dir):
  """And not by the rates alone, as ours do."""

  def first_alone(datasets, rates, seed):
    return datasets[0]

  other = TAUGHT.replace("chain_of_thought", "answer_only")
  tasks = [(TAUGHT, 1.0), (other, 1.0)]
  add(seqio.MixtureRegistry, "stream_plain", tasks)
  add(seqio.MixtureRegistry, "stream_own", tasks, sample_fn=first_alone)
  plain = _streamed("stream_plain", num_epochs=None)
  assert isinstance(plain, example_stream.OutlineStream)
  own = _streamed("stream_own", num_epochs=None)
  assert len({int(one["data_format"]) for one in own.next_examples()}) == 1


@pytest.mark.parametrize(
  ("rates", "message"),
  [
    ((lambda task: 0.0, 0.0), "all rates of the mixture are 0"),
    ((1.0, -1.0), "has the rate -1: expected a number of at least 0"),
    ((1.0, lambda task: float("nan")), "has the rate nan"),
  ],
)
def test_rates_by_which_nothing_can_be_drawn_are_refused(
  add, rates, message, teacher_dir
):
  names = (TAUGHT, TAUGHT.replace("chain_of_thought", "answer_only"))
  tasks = list(zip(names, rates, strict=True))
  add(seqio.MixtureRegistry, "stream_rates", tasks)
  with pytest.raises(errors.UserError, match=message):
    _streamed("stream_rates")


def test_another_preprocessor_of_a_user_makes_other_examples(add):
  """Whatever says so: an argument, a mapping or what a function holds."""

  def keyed(dataset, *names, key_map=None):
    return dataset

  def holding(held):
    return lambda dataset: dataset if held else None

  steps = [
    functools.partial(keyed, key_map={"inputs": "question"}),
    functools.partial(keyed, key_map={"inputs": "question_with_hints"}),
    functools.partial(keyed, key_map={"inputs": {"b", "a"}}),
    functools.partial(seqio.preprocessors.rekey, key_map={"inputs": "inputs"}),
    functools.partial(seqio.preprocessors.rekey, key_map={"inputs": "other"}),
    functools.partial(keyed, "question"),
    functools.partial(keyed, "question", "answer"),
    holding("question"),
    holding(["question"]),
  ]
  found = []
  for number, step in enumerate([*steps, *steps]):
    name = f"stream_prompts_{number}"
    _add_numbers(add, name, _numbers, step)
    found.append(identity._of_preprocessors(seqio.TaskRegistry.get(name)))
  assert len(set(found)) == len(steps)
  assert found[: len(steps)] == found[len(steps) :]
