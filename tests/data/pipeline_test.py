import re

import numpy as np
import pytest
import seqio

from specialize_jax import errors
from specialize_jax.data import (
  example_stream,
  pipeline,
  sources,
  task_parts,
  vocabularies,
)
from tasks import mixtures

LENGTHS = {"inputs": 192, "targets": 48}
# Two small tasks: building a tf.data graph takes longer than running it.
MIXTURE = mixtures.add_mixture(
  "pipeline_test",
  [
    ("mini_navigate_pretrain_in_context_chain_of_thought_v1", 1.0),
    ("mini_text_span_corruption_v1", 2.0),
  ],
)
NAVIGATE = "mini_navigate_pretrain_zero_shot_answer_only_v1"


def open_iterator(name=MIXTURE, **options):
  """Opens a stream, in batches of four rows, of seed 0 if nothing is said."""
  options = {
    "task_feature_lengths": LENGTHS,
    "batch_size": 4,
    "seed": 0,
    **options,
  }
  return pipeline.TrainIterator(name, **options)


@pytest.fixture
def make(world):
  made = []

  def make_iterator(*args, **options):
    made.append(open_iterator(*args, **options))
    return made[-1]

  yield make_iterator
  for iterator in made:
    iterator.close()


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.fixture(scope="module")
def unbroken(tiny_world_dir):
  """The first 48 batches of `open_iterator()`, from an iterator of its own."""
  sources.set_data_dir(tiny_world_dir)
  iterator = open_iterator()
  batches = take(iterator, 48)
  iterator.close()
  sources.set_data_dir(None)
  return batches


def assert_same(batches, others):
  assert len(batches) == len(others)
  for n, (batch, other) in enumerate(zip(batches, others, strict=True)):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(
        batch[name], other[name], err_msg=f"batch {n}, {name}"
      )


def test_a_batch_has_every_key_with_its_shape_and_dtype(make):
  batch = next(make())
  shapes = {name: (v.shape, v.dtype.name) for name, v in batch.items()}
  assert shapes == {
    "encoder_input_tokens": ((4, 192), "int32"),
    "encoder_segment_ids": ((4, 192), "int32"),
    "decoder_input_tokens": ((4, 48), "int32"),
    "decoder_target_tokens": ((4, 48), "int32"),
    "decoder_loss_weights": ((4, 48), "float32"),
    "decoder_segment_ids": ((4, 48), "int32"),
    "decoder_data_formats": ((4, 48), "int32"),
    "decoder_teacher_top_ids": ((4, 48, 5), "int32"),
    "decoder_teacher_top_probs": ((4, 48, 5), "float32"),
    "decoder_teacher_top_mask": ((4, 48), "int32"),
  }
  assert batch["encoder_segment_ids"].max() > 1


def test_the_same_seed_gives_the_same_batches_and_another_seed_others(
  make, unbroken
):
  first = take(make(), 5)
  assert_same(first, unbroken[:5])
  other = take(make(seed=1), 5)
  name = "encoder_input_tokens"
  assert any(
    (a[name] != b[name]).any() for a, b in zip(first, other, strict=True)
  )


@pytest.mark.parametrize("stop", [0, 5, 24])
def test_stop_and_resume_is_never_stopped(make, unbroken, stop):
  stopped = make()
  take(stopped, stop)
  state = stopped.state()
  resumed = make()
  take(resumed, 3)  # a restored iterator forgets what it gave before
  resumed.restore(state)
  assert_same(take(resumed, 24), unbroken[stop : stop + 24])
  assert resumed.counters.batches == stop + 24


def test_taking_a_state_changes_nothing(make, unbroken):
  watched = make()
  batches = []
  for _ in range(6):
    watched.state()
    batches += take(watched, 1)
  assert_same(batches, unbroken[:6])


def test_hosts_feed_the_rows_they_are_told_to(make, unbroken):
  for rows in ([0, 2], [1, 3], [2]):
    share = take(make(rows=rows), 4)
    picked = [{name: b[name][rows] for name in b} for b in unbroken[:4]]
    assert_same(share, picked)


@pytest.mark.parametrize(
  ("mixture", "name"),
  [
    (NAVIGATE, "mini_navigate/train/[0-9]+:zero_shot_answer_only"),
    ("mini_text_span_corruption_v1", "mini/text/train/[0-9]+"),
  ],
)
def test_every_host_names_all_examples_of_the_batch_it_gave_last(
  make, mixture, name
):
  one, other = make(mixture), make(mixture, rows=[1])
  for _ in range(3):
    segments = next(one)["encoder_segment_ids"]
    next(other)
    ids = one.example_ids_fn()()
    assert other.example_ids_fn()() == ids
    assert [len(row) for row in ids] == segments.max(axis=1).tolist()
    assert all(re.fullmatch(name, one_id) for row in ids for one_id in row)


def test_a_run_resumes_on_another_number_of_hosts(make, unbroken):
  one = make()
  take(one, 3)
  second = make(rows=[2, 3])
  second.restore(one.state())
  assert_same(
    take(second, 3),
    [{name: v[2:] for name, v in batch.items()} for batch in unbroken[3:6]],
  )


@pytest.mark.parametrize(
  ("batch_size", "most", "groups"),
  [
    (128, 1000, 16),
    (1024, 1000, 16),
    (64, 1000, 8),
    (48, 1000, 4),
    (32, 3, 2),
    (24, 1000, 2),
    (10, 1000, 1),
    (8, 1000, 1),
    (17, 1000, 1),
    (128, 1, 1),
  ],
)
def test_a_batch_has_as_many_groups_as_leave_each_enough(
  batch_size, most, groups
):
  assert pipeline.num_groups(batch_size, most) == groups


def test_groups_of_rendered_examples_share_each_pass_over_the_rows(make):
  """24 rows in two groups, on one host and on two of which each has one."""
  options = {"name": NAVIGATE, "batch_size": 16, "pack": False}
  one = make(**options)
  hosts = [make(**options, rows=range(i, i + 8)) for i in (0, 8)]
  seen = []
  for _ in range(6):
    whole = next(one)
    parts = [next(host) for host in hosts]
    assert_same(
      [whole],
      [{k: np.concatenate([p[k] for p in parts]) for k in whole}],
    )
    seen.append(one.example_ids_fn()())
  # Each group's rows, one by one: a row of a pass is in one of them.
  groups = [[row for b in seen for row in b[i : i + 8]] for i in (0, 8)]
  ids = [name for pair in zip(*groups, strict=True) for (name,) in pair]
  first, second = (sorted(ids[i : i + 24]) for i in (0, 24))
  assert first == second and len({*first}) == 24
  assert ids[:24] != ids[24:48]
  assert [h.counters.examples for h in hosts] != [0, 0]


def test_a_mixture_with_a_source_that_is_not_a_table_is_one_group(make):
  name = "function_for_pipeline_test"
  seqio.TaskRegistry.add(
    name,
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: None, splits=["train"]
    ),
    output_features=task_parts.training_features(vocabularies.mini()),
    preprocessors=[],
    shuffle_buffer_size=None,
  )
  assert example_stream.most_streams(name) == 1
  assert example_stream.most_streams(NAVIGATE) == 3


def test_several_streams_do_not_end():
  with pytest.raises(ValueError, match="num_epochs=2: expected None with of=3"):
    example_stream.training_streams(
      NAVIGATE,
      task_feature_lengths={"inputs": 64, "targets": 64},
      seed=0,
      num_epochs=2,
      of=3,
    )


@pytest.mark.parametrize("pack", [True, False])
def test_a_finite_stream_gives_every_example_once(make, pack):
  iterator = make(NAVIGATE, num_epochs=2, pack=pack)
  batches = list(iterator)
  with pytest.raises(StopIteration):
    next(iterator)
  segments = sum(row.max() for b in batches for row in b["decoder_segment_ids"])
  assert segments == iterator.counters.examples == 48
  assert all(b["decoder_segment_ids"].shape == (4, 48) for b in batches)


def test_an_ended_stream_stays_ended_when_restored(make):
  ended = make(NAVIGATE, num_epochs=1)
  batches = list(ended)
  again = make(NAVIGATE, num_epochs=1)
  again.restore(ended.state())
  assert not list(again)
  fresh = make(NAVIGATE, num_epochs=1)
  start = fresh.state()
  again.restore(start)
  assert_same(list(again), batches)


@pytest.mark.parametrize("state", [b"", b"xx", b"PK\x03\x04 cut short"])
def test_what_is_not_a_state_is_refused(make, state):
  iterator = make(NAVIGATE, num_epochs=1)
  with pytest.raises(
    errors.UserError, match=f"cannot be read .{len(state)} by"
  ):
    iterator.restore(state)
  assert list(iterator)


def test_every_epoch_has_its_own_order(make):
  iterator = make(NAVIGATE, pack=False, batch_size=24, num_epochs=2)
  first, second = (b["encoder_input_tokens"].tolist() for b in iterator)
  assert sorted(first) == sorted(second)
  assert first != second


def test_examples_too_long_are_dropped_and_counted(make):
  name = mixtures.add_mixture(
    "pipeline_too_long_test",
    [
      ("mini_navigate_pretrain_in_context_chain_of_thought_v1", 1.0),
      ("mini_weak_maths_v1", 1.0),
    ],
  )
  lengths = {"inputs": 50, "targets": 16}
  iterator = make(name, task_feature_lengths=lengths, num_epochs=1)
  batches = list(iterator)
  counters = iterator.counters
  assert counters.inputs_too_long and counters.targets_too_long
  dropped = counters.inputs_too_long + counters.targets_too_long
  assert iterator.dropped().startswith(
    f"{dropped:,} of {dropped + counters.examples:,} examples dropped as longer"
    f" than TASK_FEATURE_LENGTHS ({counters.inputs_too_long:,} by their inputs"
  )
  # Every target that was kept ends in EOS: none was cut.
  assert counters.examples == sum(
    (batch["decoder_target_tokens"] == 1).sum() for batch in batches
  )


def test_lengths_that_nothing_fits_are_an_error(make):
  with pytest.raises(errors.UserError, match="raise the lengths"):
    next(make(task_feature_lengths={"inputs": 2, "targets": 2}, num_epochs=1))


def test_endless_data_that_never_fits_are_an_error(make, monkeypatch):
  monkeypatch.setattr(pipeline, "_MAX_DROPPED_IN_A_ROW", 100)
  with pytest.raises(errors.UserError, match="100 dropped for their inputs"):
    next(make(task_feature_lengths={"inputs": 2, "targets": 2}))


def test_an_unknown_task_is_an_error_that_names_near_ones(make):
  with pytest.raises(errors.UserError, match="mean mini_pretrain_v1"):
    make("mini_pretrian_v1")
  with pytest.raises(errors.UserError, match="--import=MODULE"):
    make("§§§")


def test_an_evaluation_task_is_refused_for_training(make):
  with pytest.raises(errors.UserError, match="is for evaluation"):
    make("mini_gsm_zero_shot_answer_only_v1", split="test")


def test_a_split_that_is_not_there_is_an_error(make):
  with pytest.raises(errors.UserError, match="split='dev'"):
    make(split="dev")


def test_a_batch_without_rows_is_an_error(make):
  with pytest.raises(errors.UserError, match="BATCH_SIZE=0"):
    make(batch_size=0)


def test_a_state_of_another_stream_is_an_error(make):
  state = make(seed=1).state()
  with pytest.raises(errors.UserError, match="seed=1, this run has 0"):
    make().restore(state)


def test_an_empty_dataset_is_an_error(world):
  source = sources.TableSource(
    lambda split: {"text": []}, splits=["train"], description="nothing"
  )
  seqio.TaskRegistry.add(
    "empty_for_pipeline_test",
    source=source,
    output_features=task_parts.training_features(vocabularies.mini()),
    preprocessors=[],
    shuffle_buffer_size=None,
  )
  with pytest.raises(errors.UserError, match="nothing.* is empty"):
    pipeline.TrainIterator(
      "empty_for_pipeline_test",
      task_feature_lengths=LENGTHS,
      batch_size=4,
      seed=0,
    )
