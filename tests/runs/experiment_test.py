"""A run follows its experiment, and refuses inconsistent ones."""

import dataclasses
import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest
import seqio
from testdata import tiny_demo, tiny_world

from specialize_jax import errors
from specialize_jax.checkpoints import best, conversion, opening
from specialize_jax.data import pipeline, sources
from specialize_jax.evaluation import evaluator, history
from specialize_jax.files import locks, reading, writing
from specialize_jax.parallel import processes
from specialize_jax.runs import experiment, held_out
from specialize_jax.t5 import network
from specialize_jax.training import loop, optimizer, step
from tasks import mixtures  # noqa: F401  (registers every task)


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
  directory = tiny_world.build(tmp_path_factory.mktemp("world"))
  sources.set_data_dir(directory)
  yield directory
  sources.set_data_dir(None)


def files_of(directory):
  """The content of a directory's files; not TensorBoard's, which begin anew."""
  return {
    path.relative_to(directory): path.read_bytes()
    for path in pathlib.Path(directory).rglob("*")
    if path.is_file() and "tfevents" not in path.name
  }


def metrics_of(run):
  return pathlib.Path(run.model_dir, "metrics.jsonl").read_text()


def test_a_run_ends_at_its_last_step_and_is_evaluated(trained_run, tmp_path):
  run, state = trained_run
  assert int(state.step) == run.loop.num_steps
  rows = [json.loads(line) for line in metrics_of(run).splitlines()]
  assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
  values = experiment.evaluate_checkpoint(
    run.model_dir,
    evaluations=[
      tiny_demo.evaluation(
        "mini_gsm_zero_shot_chain_of_thought_v1", num_examples=None
      )
    ],
    output_dir=tmp_path / "eval",
  )
  assert values["mini_gsm_zero_shot_chain_of_thought_v1/n"] == 6
  # Another evaluation of it adds to the metrics, and the same one replaces its.
  evaluate = experiment.CheckpointEvaluator(
    [tiny_demo.evaluation("mini_svamp_zero_shot_chain_of_thought_v1")]
  )
  for _ in range(2):
    evaluate(run.model_dir, tmp_path / "eval")
  known = history.read(tmp_path / "eval" / "metrics.jsonl")
  assert [*known] == [6]
  assert known[6].items() > values.items()
  assert known[6]["mini_svamp_zero_shot_chain_of_thought_v1/n"] == 6
  assert (
    len((tmp_path / "eval" / "metrics.jsonl").read_text().splitlines()) == 2
  )


@pytest.mark.parametrize(
  "changes",
  [
    # Of learning rates that no other test has, whose step would be compiled.
    {
      "pack": False,
      "optimizer": optimizer.OptimizerConfig(learning_rate=1.1e-3),
    },
    {"optimizer": optimizer.OptimizerConfig(name="muon", learning_rate=1.2e-3)},
  ],
  ids=["unpacked", "muon"],
)
def test_a_step_is_compiled_once_and_before_the_first_batch(
  tmp_path, monkeypatch, changes
):
  """At a start, at a resumption, and from another run's parameters."""
  for thread in threading.enumerate():  # of tests whose runs failed
    if thread.name.startswith(step.COMPILER):
      thread.join()
  seen = []
  begin, read = step.Compilation.__init__, pipeline.TrainIterator.__next__

  def begin_and_wait(compilation, *arguments):
    seen.append("ahead")
    begin(compilation, *arguments)
    compilation.wait()

  def next_batch(iterator):
    seen.append("a batch")
    return read(iterator)

  def note(event, seconds, fun_name="", **_):
    if "backend_compile" in event and "train_step" in fun_name:
      seen.append("the step")

  monkeypatch.setattr(step.Compilation, "__init__", begin_and_wait)
  monkeypatch.setattr(pipeline.TrainIterator, "__next__", next_batch)
  jax.monitoring.register_event_duration_secs_listener(note)
  try:
    for name, num_steps in (("first", 1), ("first", 2), ("second", 1)):
      run = tiny_demo.run(
        tmp_path / name,
        loop=loop.LoopConfig(num_steps=num_steps),
        initial_checkpoint_path=(
          str(tmp_path / "first") if name == "second" else None
        ),
        **changes,
      )
      experiment.train(run)
    experiment.train(run)  # which is at its end
  finally:
    jax.monitoring.unregister_event_duration_listener(note)
  # The runs share their step (`testdata/compiled_once.py`): to compile
  # it again is to find it, and so is to call it, if the arguments are alike.
  once = ["ahead", "the step", "a batch"]
  assert seen == [*once, "ahead", "a batch", "ahead", "a batch"]


def test_a_run_whose_newest_checkpoint_is_damaged_resumes(tmp_path):
  """Though Orbax does not list the steps of its directory."""
  run = tiny_demo.run(
    tmp_path / "model", loop=loop.LoopConfig(num_steps=2, checkpoint_every=1)
  )
  experiment.train(run)
  account = tmp_path / "model" / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
  account.write_text("")
  assert int(experiment.train(run).step) == 2
  names = {path.name for path in (tmp_path / "model" / "checkpoints").iterdir()}
  assert names >= {"1", "2", "damaged_2"}


def test_a_run_does_not_begin_beside_the_best_checkpoint_of_another(
  trained_run, tmp_path
):
  run, _ = trained_run
  directory = shutil.copytree(run.model_dir, tmp_path / "model")
  best.place(directory, 4)
  shutil.rmtree(directory / "checkpoints")
  before = files_of(directory)
  with pytest.raises(errors.UserError, match="best/ of an earlier run, at ste"):
    experiment.train(dataclasses.replace(run, model_dir=str(directory)))
  assert files_of(directory) == before


def test_a_held_out_loss_begins_targets_with_the_model_s_own_token(trained_run):
  run, state = trained_run
  held = held_out.HeldOutLoss(
    mixture_or_task_name=run.mixture_or_task_name,
    task_feature_lengths=run.task_feature_lengths,
    split="train",
    loss=run.loss,
  )
  placed = run.mesh.placement()
  losses = []
  for start in (0, 7):
    model = dataclasses.replace(run.model, decoder_start_id=start)
    evaluate = held.evaluator(network.EncoderDecoder(model), placed)
    losses.append(evaluate(state.params, 1)["held_out/loss"])
  assert losses[0] != losses[1]


def test_every_evaluation_of_a_held_out_loss_reads_the_whole_split(trained_run):
  run, state = trained_run
  evaluate = held_out.HeldOutLoss(
    mixture_or_task_name=run.mixture_or_task_name,
    task_feature_lengths=run.task_feature_lengths,
    split="train",
    batch_size=8,
    loss=run.loss,
  ).evaluator(network.EncoderDecoder(run.model), run.mesh.placement())
  worse = jax.tree.map(lambda array: 2 * array, state.params)
  first, other, again = (
    evaluate(params, step)
    for step, params in enumerate((state.params, worse, state.params))
  )
  assert first == again
  assert first["held_out/loss"] < other["held_out/loss"]


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/6"])
def test_a_run_s_last_parameters_are_opened(trained_run, below):
  run, state = trained_run
  placed = run.mesh.placement()
  checkpoint = opening.open_checkpoint(f"{run.model_dir}/{below}")
  params = checkpoint.params(placed, run.model)
  np.testing.assert_array_equal(
    params["token_embedder"]["embedding"],
    state.params["token_embedder"]["embedding"],
  )


def test_a_run_s_export_is_evaluated_like_the_run(trained_run, tmp_path):
  run, _ = trained_run
  plan = conversion.plan(
    opening.open_checkpoint(run.model_dir), to="huggingface"
  )
  conversion.write_folder(plan, tmp_path / "folder")
  task = "mini_gsm_zero_shot_chain_of_thought_v1"
  evaluate = experiment.CheckpointEvaluator([tiny_demo.evaluation(task)])
  for path in (run.model_dir, tmp_path / "folder"):
    evaluate(path, f"{tmp_path}/{pathlib.Path(path).name}_eval")
  (ours,) = tmp_path.glob(f"model_eval/**/{task}.jsonl")
  (theirs,) = tmp_path.glob(f"folder_eval/**/{task}.jsonl")
  assert ours.read_text() == theirs.read_text()


def test_checkpoints_are_evaluated_on_examples_that_are_read_once(
  trained_run, data_dir, tmp_path, monkeypatch
):
  read = []

  class Counted(evaluator.Evaluator):
    def __init__(self, *args, **kwargs):
      super().__init__(*args, **kwargs)
      read.append(self)

  monkeypatch.setattr(evaluator, "Evaluator", Counted)
  run, _ = trained_run
  task = "mini_gsm_zero_shot_chain_of_thought_v1"
  evaluate = experiment.CheckpointEvaluator([tiny_demo.evaluation(task)])

  def rows_of(step, name):
    evaluate(f"{run.model_dir}/checkpoints/{step}", tmp_path / name)
    return reading.read_rows(tmp_path / name / str(step) / f"{task}.jsonl")

  first, second = rows_of(2, "first"), rows_of(4, "second")
  assert len(read) == 1
  assert [row["prompt"] for row in first] == [row["prompt"] for row in second]
  # Of corrected data they are read again.
  corrected = shutil.copytree(data_dir, tmp_path / "corrected")
  file = corrected / "mini/mini_gsm/validation.jsonl"
  rows = reading.read_rows(file)
  rows[0]["answer"] = str(int(rows[0]["answer"]) + 1)
  file.write_text("".join(json.dumps(row) + "\n" for row in rows))
  monkeypatch.setattr(sources, "_chosen", {"path": str(corrected)})
  assert rows_of(2, "third")[0]["target"] == rows[0]["answer"]
  assert first[0]["target"] != rows[0]["answer"]
  assert len(read) == 2


def test_a_missing_step_is_an_error(trained_run):
  run, _ = trained_run
  with pytest.raises(errors.UserError, match="3"):
    opening.open_checkpoint(f"{run.model_dir}/checkpoints/3")


def test_a_directory_of_another_model_is_refused_and_kept(trained_run):
  run, _ = trained_run
  other = dataclasses.replace(
    run,
    model=tiny_demo.model(mlp_dim=24),
    loop=dataclasses.replace(run.loop, num_steps=8),
  )
  before = files_of(run.model_dir)
  with pytest.raises(errors.UserError, match="mlp"):
    experiment.train(
      other, config_text="another", files={"dataset.yaml": b"another"}
    )
  assert files_of(run.model_dir) == before


def test_a_refused_start_does_not_change_the_run_that_it_finds(trained_run):
  run, _ = trained_run
  other = dataclasses.replace(
    run, mixture_or_task_name="mini_sums_v1", evaluations=()
  )
  before = files_of(run.model_dir)
  with pytest.raises(errors.UserError, match="mini_sums_v1"):
    experiment.train(
      other, config_text="another", files={"dataset.yaml": b"another"}
    )
  assert files_of(run.model_dir) == before


def test_an_evaluation_does_not_replace_the_metrics_of_a_run(trained_run):
  run, _ = trained_run
  metrics = metrics_of(run)
  with pytest.raises(errors.UserError, match="is the MODEL_DIR of a run"):
    experiment.evaluate_checkpoint(
      run.model_dir, evaluations=[], output_dir=run.model_dir
    )
  assert metrics_of(run) == metrics


@pytest.fixture
def task_in_bytes():
  """A task whose ids mean other words than those of every other task."""
  feature = seqio.Feature(seqio.ByteVocabulary(extra_ids=100))
  seqio.TaskRegistry.add(
    "in_bytes_v1",
    source=seqio.FunctionDataSource(
      lambda split, shuffle_files, seed=None: None, splits=("validation",)
    ),
    preprocessors=[],
    output_features={"inputs": feature, "targets": feature},
    metric_fns=[],
  )
  yield
  seqio.TaskRegistry.remove("in_bytes_v1")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (
      {
        "evaluations": [
          tiny_demo.evaluation("mini_math_test_v1"),
          tiny_demo.evaluation("mini_gsm_zero_shot_chain_of_thought_v1"),
        ]
      },
      "has the task mini_gsm_zero_shot_chain_of_thought_v1 twice",
    ),
    (
      {
        "evaluations": [
          dataclasses.replace(
            tiny_demo.evaluation("mini_math_test_v1"), batch_size=3
          )
        ],
      },
      "batch_size=3 for decoding cannot be sharded",
    ),
    (
      {
        "held_out_losses": [
          held_out.HeldOutLoss(
            mixture_or_task_name="mini_pretrain_v1",
            task_feature_lengths={"inputs": 64, "targets": 64},
            batch_size=3,
          )
        ]
      },
      "HeldOutLoss.batch_size=3 cannot be cut evenly",
    ),
    (
      {"evaluations": [tiny_demo.evaluation("in_bytes_v1")]},
      "vocabulary of in_bytes_v1, ByteVocabulary with .* is not that of",
    ),
    (
      {"num_microbatches": 3},
      "cannot be cut evenly over . chips .* in 3 microbatches",
    ),
    (
      {
        "loop": loop.LoopConfig(
          num_steps=1, eval_every=1, best_metrics=("no_task/accuracy",)
        )
      },
      "BEST_METRICS names 'no_task/accuracy', and no evaluation has that task",
    ),
  ],
)
def test_what_fails_at_the_first_evaluation_is_refused_before_the_first_step(
  tmp_path, changes, message, task_in_bytes
):
  run = tiny_demo.run(tmp_path / "model", "mini_pretrain_v1")
  with pytest.raises(errors.UserError, match=message):
    experiment.train(dataclasses.replace(run, **changes))
  assert not (tmp_path / "model" / "checkpoints").exists()


def test_a_run_does_not_replace_the_metrics_of_an_evaluation(tmp_path):
  run = tiny_demo.run(tmp_path / "model", "mini_pretrain_v1")
  metrics = tmp_path / "model" / "metrics.jsonl"
  row = {"step": 0, "checkpoint": "c", "group": "evaluation", "values": {}}
  writing.write_rows(metrics, [row], sealed=True)
  content = metrics.read_bytes()
  with pytest.raises(errors.UserError, match="is the EVAL_OUTPUT_DIR of an"):
    experiment.train(run)
  assert metrics.read_bytes() == content


def test_a_directory_that_the_hosts_do_not_share_is_refused(
  tmp_path, monkeypatch
):
  """The first one has written, and this one does not find it."""
  monkeypatch.setattr(experiment, "_SHARED_SECONDS", 0)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  sent = {"name": b".shared_1"}
  monkeypatch.setattr(processes, "gather", lambda here: here or sent)
  with pytest.raises(errors.UserError, match="another directory on each host"):
    experiment._check_shared(tmp_path)
  (tmp_path / ".shared_1").write_text("")
  experiment._check_shared(tmp_path)
  monkeypatch.setattr(jax, "process_index", lambda: 0)
  experiment._check_shared(tmp_path / "new")
  assert not list((tmp_path / "new").iterdir())


def test_an_unknown_mixture_writes_nothing(tmp_path):
  run = tiny_demo.run(tmp_path / "model", "mini_pretrian_v1")
  with pytest.raises(errors.UserError, match="mini_pretrain_v1"):
    experiment.train(run)
  assert not (tmp_path / "model").exists()


def test_a_second_writer_is_refused_before_any_work(tmp_path):
  run = tiny_demo.run(tmp_path)
  with locks.directory(tmp_path, "MODEL_DIR"):
    with pytest.raises(errors.UserError, match="MODEL_DIR=.* is being written"):
      experiment.train(run)
    with pytest.raises(errors.UserError, match="EVAL_OUTPUT_DIR=.* is being"):
      experiment.evaluate_checkpoint(
        "nowhere", evaluations=[], output_dir=tmp_path
      )


def test_an_empty_mixture_writes_nothing(tmp_path):
  with pytest.raises(errors.UserError, match="empty"):
    mixtures.specialize(
      name="nothing",
      dataset="mini_gsm",
      in_context_answer_only=0,
      in_context_chain_of_thought=0,
      zero_shot_answer_only=0,
      zero_shot_chain_of_thought=0,
    )


def test_another_checkpoint_of_a_step_does_not_replace_its_evaluation(tmp_path):
  """Every Hugging Face folder is of step 0."""
  path = tmp_path / "metrics.jsonl"
  row = {"step": 0, "values": {"t/accuracy": 0.5}, "checkpoint": {"sum": "a"}}
  path.write_text(json.dumps(row) + "\n")
  more = {**row, "values": {"u/accuracy": 0.1}}
  assert experiment._other_rows(path, more) == [row]
  with pytest.raises(errors.UserError, match="another checkpoint of step 0"):
    experiment._other_rows(path, {**more, "checkpoint": {"sum": "b"}})
