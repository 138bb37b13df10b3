import collections
import contextlib
import functools
import io
import itertools
import json

import numpy as np
import pytest
import seqio
from testdata import tiny_world

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import (
  example_stream,
  features,
  packing,
  pipeline,
  sources,
)
from tasks import mini, mixtures


def examples(name):
  dataset = seqio.get_mixture_or_task(name).get_dataset(
    split="train", shuffle=False, seed=0
  )
  return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize("data_format", formats.FORMATS, ids=lambda f: f.name)
def test_a_format_shows_its_rows(teacher_dir, data_format):
  rows = examples(f"mini_gsm_teacher_{data_format.name}_v1")
  assert len(rows) == (20 if data_format.chain_of_thought else 10)
  for row in rows:
    length = len(row["targets"])
    assert row["targets"][-1] == 1
    assert row["teacher_top_ids"].shape == (length, 5)
    assert row["teacher_top_probs"].shape == (length, 5)
    assert row["teacher_top_mask"].shape == (length,)
    assert row["teacher_top_mask"][-1] == 0
    sums = row["teacher_top_probs"].sum(axis=1)
    assert (sums > 0).all() and (sums <= 1 + 1e-6).all()
    text = mini.VOCABULARY.decode(row["targets"].tolist())
    answer = row["answer"].decode()
    if data_format.chain_of_thought:
      assert text.endswith(f"The answer is {answer}.")
      assert row["teacher_top_mask"].any()
    else:
      assert text == f"The answer is {answer}"
      assert not row["teacher_top_mask"].any()
    prompt = row["inputs_pretokenized"].decode()
    asked = row["question"].decode()
    assert prompt.count(asked) == 1, "a question never demonstrates itself"
    assert prompt.endswith(formats.render_question(asked, data_format))
    shown = mini.NUM_DEMONSTRATIONS if data_format.in_context else 0
    assert prompt.count("Q: ") == shown + 1
    # The parts' tokens, one after another, are those of the whole text.
    assert row["inputs"].tolist() == [*mini.VOCABULARY.encode(prompt), 1]


def test_held_out_questions_are_never_shown(teacher_dir):
  held_out = {
    row["question"]
    for split in ("validation", "test")
    for row in tiny_world.read(f"{teacher_dir}/mini/mini_gsm/{split}.jsonl")
  }
  training = tiny_world.read(f"{teacher_dir}/mini/mini_gsm/train.jsonl")
  held_out -= {row["question"] for row in training}
  assert held_out
  for row in examples("mini_gsm_teacher_in_context_chain_of_thought_v1"):
    prompt = row["inputs_pretokenized"].decode()
    assert not [question for question in held_out if question in prompt]


def test_rates_are_the_numbers_of_examples(teacher_dir):
  mixture = seqio.get_mixture_or_task("mini_specialize_v1")
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  assert rates == {
    "mini_gsm_teacher_in_context_answer_only_v1": 10.0,
    "mini_gsm_teacher_in_context_chain_of_thought_v1": 20.0,
    "mini_gsm_teacher_zero_shot_answer_only_v1": 10.0,
    "mini_gsm_teacher_zero_shot_chain_of_thought_v1": 20.0,
  }


def test_a_format_may_be_left_out(teacher_dir):
  name = mixtures.specialize(
    name="zero_shot_only_test",
    dataset="mini_gsm",
    in_context_answer_only=0.0,
    in_context_chain_of_thought=0.0,
    zero_shot_answer_only=1.0,
    zero_shot_chain_of_thought=3.0,
  )
  mixture = seqio.get_mixture_or_task(name)
  assert [mixture.get_rate(task) for task in mixture.tasks] == [1.0, 3.0]


def test_the_mixture_trains_packed_and_resumes(teacher_dir):
  def make():
    return pipeline.TrainIterator(
      "mini_specialize_v1",
      task_feature_lengths={"inputs": 256, "targets": 96},
      batch_size=2,
      seed=0,
    )

  whole, stopped, resumed = make(), make(), make()
  batches = [next(whole) for _ in range(8)]
  for _ in range(3):
    next(stopped)
  resumed.restore(stopped.state())
  for batch in batches[3:]:
    other = next(resumed)
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name])
  assert batches[0]["decoder_teacher_top_mask"].any()
  assert batches[0]["decoder_segment_ids"].max() > 1
  for iterator in (whole, stopped, resumed):
    iterator.close()


_LENGTHS = {"inputs": 256, "targets": 96}


def _rendered(stream):
  """All examples of a stream, rendered one chunk at a time."""
  while chunk := stream.next_examples():
    (examples,) = stream.rendered([chunk])
    ids = stream.ids(chunk)
    assert [one["example_id"].decode() for one in examples] == ids
    yield from examples


def _assert_same_examples(examples, others, count=None):
  for one, other in zip(
    itertools.islice(examples, count),
    itertools.islice(others, count),
    strict=True,
  ):
    for name in (*features.TRAINING_FEATURES, *features.EXAMPLE_FEATURES):
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)
      assert np.asarray(one[name]).dtype == np.asarray(other[name]).dtype


@pytest.mark.parametrize(
  ("name", "num_epochs"),
  [
    ("mini_specialize_v1", 2),
    ("mini_specialize_v1", None),
    ("mini_gsm_teacher_in_context_answer_only_v1", 2),
    pytest.param(
      "mini_gsm_teacher_in_context_answer_only_v1",
      None,
      marks=pytest.mark.slow,  # as the mixture's, of one task
    ),
  ],
)
def test_outlines_are_the_examples_of_the_mixtures_own_dataset(
  teacher_dir, name, num_epochs
):
  options = {
    "task_feature_lengths": _LENGTHS, "seed": 3, "num_epochs": num_epochs
  }  # fmt: skip
  (outlines,) = example_stream.training_streams(name, **options)
  assert isinstance(outlines, example_stream.OutlineStream)
  dataset = example_stream.training_dataset(name, **options)
  _assert_same_examples(
    _rendered(outlines),
    _rendered(example_stream.ExampleStream(dataset)),
    None if num_epochs else 150,  # more than two epochs of the mixture
  )


def test_outlines_know_the_lengths_of_their_examples(teacher_dir):
  (stream,) = example_stream.training_streams(
    "mini_specialize_v1", task_feature_lengths=_LENGTHS, seed=0, num_epochs=1
  )
  outlines = stream.next_examples()
  (examples,) = stream.rendered([outlines])
  assert [*map(packing.sizes, outlines)] == [*map(packing.sizes, examples)]


def test_a_finite_mixture_ends_at_the_same_example_after_a_resume(teacher_dir):
  def make():
    (stream,) = example_stream.training_streams(
      "mini_specialize_v1", task_feature_lengths=_LENGTHS, seed=0, num_epochs=2
    )
    return stream

  def rest(stream):
    return list(itertools.chain(*iter(stream.next_examples, [])))

  whole, resumed = make(), make()
  assert whole.next_examples()
  resumed.restore(whole.state())
  left = rest(whole)
  assert rest(resumed) == left
  assert left
  assert whole.next_examples() == []


def test_hosts_render_their_own_rows_alone(teacher_dir, monkeypatch):
  rendered = []
  of_stream = example_stream.OutlineStream.rendered

  def counted(stream, rows):
    rendered.append(sum(map(len, rows)))
    return of_stream(stream, rows)

  monkeypatch.setattr(example_stream.OutlineStream, "rendered", counted)

  def take(rows, state=None, count=6):
    with contextlib.closing(
      pipeline.TrainIterator(
        "mini_specialize_v1",
        task_feature_lengths=_LENGTHS,
        batch_size=4,
        seed=0,
        rows=rows,
        sums_up=True,
      )
    ) as iterator:
      if state is not None:
        iterator.restore(state)
      batches = [next(iterator) for _ in range(count)]
      return (
        batches,
        iterator.digests(),
        iterator.example_ids_fn()(),
        iterator.state(),
      )

  whole, digest, ids, _ = take([0, 1, 2, 3])
  in_all = sum(rendered[:6])
  first, _, _, state = take([0, 1, 2, 3], count=3)
  hosts = [[1, 3], [0, 2]]
  of_hosts = 0
  for rows in hosts:
    rendered.clear()
    share, own_digest, own_ids, _ = take(rows)
    of_hosts += sum(rendered[:6])
    assert (own_digest, own_ids) == (digest, ids)
    resumed, *_ = take(rows, state=state, count=3)
    for batch, one in zip(whole, share, strict=True):
      for name, values in one.items():
        np.testing.assert_array_equal(values, batch[name][rows])
    for batch, one in zip(whole[3:], resumed, strict=True):
      for name, values in one.items():
        np.testing.assert_array_equal(values, batch[name][rows])
  assert of_hosts == in_all


class _Hosts:
  """TrainIterators of one process, which exchange what hosts would."""

  def __init__(self, *all_rows):
    self._here = [{} for _ in all_rows]
    self.iterators = [
      pipeline.TrainIterator(
        _TWO_FORMATS,
        task_feature_lengths=_LENGTHS,
        batch_size=32,
        seed=0,
        rows=rows,
        sums_up=True,
        gather=functools.partial(self._gather, number),
      )
      for number, rows in enumerate(all_rows)
    ]

  def _gather(self, number, parts):
    self._here[number] = dict(parts)
    return dict(collections.ChainMap(*self._here))

  def together(self, functions):
    """What functions return that gather, one of each host."""
    for function in functions:
      with contextlib.suppress(ValueError):  # before it hears of all others
        function()
    return [function() for function in functions]

  def close(self):
    for iterator in self.iterators:
      iterator.close()


# Opening a mixture of all four takes twice as long.
_TWO_FORMATS = mixtures.add_mixture(
  "teacher_groups_test",
  [
    ("mini_gsm_teacher_in_context_answer_only_v1", 1.0),
    ("mini_gsm_teacher_zero_shot_chain_of_thought_v1", 2.0),
  ],
)


@pytest.fixture
def hosts(teacher_dir, monkeypatch):
  """Makes hosts; the ten questions of this world are enough for groups."""
  monkeypatch.setattr(example_stream, "_MIN_ROWS", 1)
  made = []

  def make(*all_rows):
    made.append(_Hosts(*all_rows))
    return made[-1]

  yield make
  for one in made:
    one.close()


_ALL = range(32)


@pytest.fixture(scope="module")
def four_groups(teacher_dir):
  """Six batches of 32 rows on one host, the state in mid, and the rest."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(example_stream, "_MIN_ROWS", 1)
    (one,) = _Hosts(_ALL).iterators
  batches = [next(one) for _ in range(3)]
  state = one.state()
  batches += [next(one) for _ in range(3)]
  ids, digests = one.example_ids_fn()(), one.digests()
  one.close()
  assert digests["the number of groups of rows"] == 4
  return batches, state, ids, digests


def _assert_rows(batches, others, rows):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name, values in other.items():
      np.testing.assert_array_equal(values, batch[name][rows], err_msg=name)


# Parts of three groups, of two, of three; the first and second share a group.
_ACROSS_GROUPS = [[*range(4, 20)], [0, 3, 21, 30], [1, 2, 20, 31]]


def test_hosts_whose_rows_cross_groups_read_the_batches_of_one(
  hosts, four_groups
):
  batches, _, ids, digests = four_groups
  several = hosts(*_ACROSS_GROUPS)
  for rows, one in zip(_ACROSS_GROUPS, several.iterators, strict=True):
    _assert_rows(batches[:3], [next(one) for _ in range(3)], rows)
  state, *others = several.together([one.state for one in several.iterators])
  assert others == [state, state]
  for rows, one in zip(_ACROSS_GROUPS, several.iterators, strict=True):
    _assert_rows(batches[3:], [next(one) for _ in range(3)], rows)
    assert one.digests().items() <= digests.items()
    assert len(one.digests()) == 2 + len({row // 8 for row in rows})
  names = [one.example_ids_fn() for one in several.iterators]
  assert several.together(names) == [ids] * 3
  assert [len(row) for row in ids] == (
    batches[-1]["encoder_segment_ids"].max(axis=1).tolist()
  )
  # One host goes on from the state of the three.
  (alone,) = hosts(_ALL).iterators
  alone.restore(state)
  assert alone.counters.batches == 3
  _assert_rows(batches[3:], [next(alone) for _ in range(3)], [*_ALL])


def test_hosts_with_groups_of_their_own_go_on_from_one(hosts, four_groups):
  batches, state, _, _ = four_groups
  several = hosts(range(8), range(24, 32), range(24, 32))
  first, *same = several.iterators
  next(first)  # forgotten when it is restored
  for rows, one in (([*range(8)], first), ([*range(24, 32)], same[0])):
    one.restore(state)
    _assert_rows(batches[3:], [next(one) for _ in range(3)], rows)
  of_all = {"the number of batches", "the number of groups of rows"}
  assert not first.digests().keys() & same[0].digests().keys() - of_all
  with pytest.raises(ValueError, match="no process reads group_01, group_02"):
    several.together([one.state for one in several.iterators])


def test_each_pass_over_a_task_s_rows_is_divided_among_the_streams(teacher_dir):
  """Ten and twenty rows among three streams, which divide neither."""
  streams = example_stream.training_streams(
    "mini_specialize_v1",
    task_feature_lengths=_LENGTHS,
    seed=0,
    numbers=range(3),
    of=3,
  )
  rows = [collections.defaultdict(list) for _ in streams]
  shown = [collections.defaultdict(list) for _ in streams]
  for stream, of_task, demonstrations in zip(streams, rows, shown, strict=True):
    for _ in range(8):
      for one in stream.next_examples():
        of_task[one.task].append(one.row)
        demonstrations[one.task].append(one.shown)
  for task in range(4):
    passes = [
      row
      for places in zip(*(of_task[task] for of_task in rows), strict=False)
      for row in places
    ]
    size = len({*passes})
    assert size == (20 if task in _CHAIN_OF_THOUGHT else 10)
    orders = [passes[i : i + size] for i in range(0, len(passes) - size, size)]
    assert len(orders) > 1
    assert all(sorted(order) == [*range(size)] for order in orders)
    assert orders[0] != orders[1]
    first, second, _ = (of_task[task][:10] for of_task in shown)
    assert first != second or not first[0]  # other demonstrations


# In the order of the mixture's tasks.
_CHAIN_OF_THOUGHT = (1, 3)


def test_a_state_of_the_version_before_groups_is_continued(hosts):
  """It has one group, as has its run from then on, whatever its batch size."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(example_stream, "_MIN_ROWS", 10**6)
    (one,) = hosts(_ALL).iterators
  for _ in range(3):
    next(one)
  with np.load(io.BytesIO(one.state())) as parts:
    header = json.loads(parts["header"].tobytes())
    group = parts["group_00"].tobytes()
  with np.load(io.BytesIO(group)) as parts:
    old = {name: parts[name] for name in parts.files}
  header |= json.loads(old["header"].tobytes())
  header["counters"]["batches"] = header.pop("batches")
  header |= {"version": 4, "groups": None}
  old["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
  old["elements"] = np.frombuffer(b"of a tf.data iterator", np.uint8)
  file = io.BytesIO()
  np.savez(file, **old)
  batches = [next(one) for _ in range(3)]
  resumed, again = hosts(_ALL, range(8)).iterators
  assert resumed.digests()["the number of groups of rows"] == 4
  resumed.restore(file.getvalue())
  _assert_rows(batches[:2], [next(resumed) for _ in range(2)], [*_ALL])
  again.restore(resumed.state())
  _assert_rows(batches[2:], [next(again)], [*range(8)])
  assert again.digests()["the number of groups of rows"] == 1


def test_data_of_another_vocabulary_is_refused(teacher_dir, tmp_path):
  other = tiny_world.build(tmp_path / "other", seed=5)
  (tmp_path / "other/tfds").symlink_to(f"{teacher_dir}/tfds")
  sources.set_data_dir(other)
  try:
    with pytest.raises(errors.UserError, match="aligned to another vocabulary"):
      examples("mini_gsm_teacher_zero_shot_answer_only_v1")
  finally:
    sources.set_data_dir(teacher_dir)


def test_seqio_s_own_directory_of_datasets_comes_first(teacher_dir, tmp_path):
  seqio.set_tfds_data_dir_override(str(tmp_path))
  try:
    with pytest.raises(errors.UserError, match=f"--data_dir={tmp_path}"):
      examples("mini_gsm_teacher_zero_shot_answer_only_v1")
  finally:
    seqio.set_tfds_data_dir_override(None)
  assert examples("mini_gsm_teacher_zero_shot_answer_only_v1")
