"""Each row of the table in docs/decisions/resume.md, and that it is there."""

import dataclasses
import functools
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import seqio
from etils import epath
from testdata import tiny_demo, tiny_world

from specialize_jax import errors
from specialize_jax.checkpoints import manager as managers
from specialize_jax.cot import formats
from specialize_jax.data import identity, sources
from specialize_jax.evaluation import history
from specialize_jax.reports import page
from specialize_jax.reports import results as results_lib
from specialize_jax.runs import experiment, resuming
from tasks import mixtures  # noqa: F401  (registers every task)

DOCS = pathlib.Path(__file__).parents[2] / "docs/decisions/resume.md"


def _with(part, **changes):
  return lambda run: dataclasses.replace(
    run, **{part: dataclasses.replace(getattr(run, part), **changes)}
  )


def _changed(**changes):
  return lambda run: dataclasses.replace(run, **changes)


# By the row of the table: a change, and what the error or the record has.
REFUSED = {
  "BATCH_SIZE": (_changed(batch_size=16), "BATCH_SIZE=16 .* with 8"),
  "MIXTURE_OR_TASK_NAME": (
    _changed(mixture_or_task_name="mini_sums_v1"),
    'MIXTURE_OR_TASK_NAME="mini_sums_v1" .* with "mini_facts_v1"',
  ),
  "TASK_FEATURE_LENGTHS": (
    _changed(task_feature_lengths={"inputs": 64, "targets": 64}),
    r"TASK_FEATURE_LENGTHS\.inputs=64 .* with 320",
  ),
  "pack": (_changed(pack=False), "pack=false .* with true"),
  "SEED": (_changed(seed=1), "SEED=1 .* with 0"),
  "a size of the model": (
    _with("model", mlp_dim=24),
    r"model\.mlp_dim=24 .* with 16",
  ),
  "an activation of the model": (
    _with("model", mlp_activations=("relu", "linear")),
    r"model\.mlp_activations=\[\"relu\", .* with \[\"gelu\",",
  ),
  "the optimizer": (
    _with("optimizer", name="adafactor"),
    'optimizer.name="adafactor" .* with "adamw"',
  ),
  "Muon for AdamW, or back": (
    _with("optimizer", name="muon"),
    'optimizer.name="muon" .* with "adamw"',
  ),
  "the dtype of first moments": (
    _with("optimizer", first_moment_dtype="bfloat16"),
    'optimizer.first_moment_dtype="bfloat16" .* with "float32"',
  ),
}
# Settings that are no field of a run: what another start would have.
REFUSED_DATA = {
  "the data": "data of a task",
  "the vocabulary": "vocabulary of targets",
  "the prompts": "prompts of a task",
  "a rate of the mixture": "rate of a task",
}
RECORDED = {
  "the mesh": (_changed(mesh=experiment.MeshShape(fsdp=2)), "mesh.fsdp"),
  "NUM_MICROBATCHES": (_changed(num_microbatches=2), "num_microbatches"),
  "the loss": (_with("loss", objective="sample_matching"), "loss.objective"),
  "dropout": (_with("model", dropout_rate=0.5), "model.dropout_rate"),
  "remat": (_with("model", remat_policy="full"), "model.remat_policy"),
  "the attention kernel": (
    _with("model", attention="plain"),
    "model.attention",
  ),
  "the dtype of gradients": (
    _with("model", gradient_dtype="bfloat16"),
    "model.gradient_dtype",
  ),
  "dtype": (_with("model", dtype="bfloat16"), "model.dtype"),
  "LEARNING_RATE": (_with("optimizer", learning_rate=0.5), "LEARNING_RATE"),
  "the schedule": (_with("optimizer", schedule="rsqrt"), "optimizer.schedule"),
  "TRAIN_STEPS": (_with("loop", num_steps=9), "TRAIN_STEPS"),
  "CHECKPOINT_EVERY": (_with("loop", checkpoint_every=3), "CHECKPOINT_EVERY"),
  "EVALUATIONS": (_changed(evaluations=(1,)), "evaluations"),
  "KEEP": (_changed(keep=1), "keep"),
  "INITIAL_CHECKPOINT_PATH": (
    _changed(initial_checkpoint_path="elsewhere"),
    "INITIAL_CHECKPOINT_PATH",
  ),
}
RECORDED_STARTS = {
  "the number of hosts": {"hosts": 2},
  "the number of devices": {"devices": 3},
  "the dataset file": {"dataset_file": "5678"},
  "the evaluated data": {"evaluated.data of a task": "5678"},
}
DATA = dict.fromkeys(REFUSED_DATA.values(), "1234")


@pytest.fixture(scope="module", autouse=True)
def data_dir(tmp_path_factory):
  directory = tiny_world.build(tmp_path_factory.mktemp("world"))
  sources.set_data_dir(directory)
  return pathlib.Path(directory)


@pytest.fixture
def saved(tmp_path):
  """A checkpoint with the settings of a run."""
  run = tiny_demo.run(tmp_path / "run")
  evaluated = {"data of a task": "1234", "data of one more": "1234"}
  settings = resuming.settings(run, DATA, b"name: queues", evaluated)
  with managers.CheckpointManager(tmp_path / "run/checkpoints") as manager:
    manager.save(2, {"a": np.ones(2)}, b"", {"settings": settings})
    manager.wait()
    yield run, manager


@pytest.mark.parametrize("row", REFUSED)
def test_what_the_state_depends_on_is_refused_with_both_values(row, saved):
  run, manager = saved
  change, expected = REFUSED[row]
  now = resuming.settings(change(run), DATA, b"name: queues")
  with pytest.raises(errors.UserError, match=expected) as raised:
    resuming.check(manager, now)
  assert "in another MODEL_DIR" in str(raised.value)


@pytest.mark.parametrize("row", REFUSED_DATA)
def test_other_data_under_the_same_name_are_refused(row, saved):
  run, manager = saved
  name = REFUSED_DATA[row]
  now = resuming.settings(run, DATA | {name: "5678"}, b"name: queues")
  with pytest.raises(errors.UserError, match=f'{name}="5678".*"1234"'):
    resuming.check(manager, now)


def test_another_mixture_is_named_before_what_comes_with_it(saved):
  run, manager = saved
  other = _changed(mixture_or_task_name="mini_sums_v1")(run)
  now = resuming.settings(other, {"data of mini_sums_v1": "5678"})
  with pytest.raises(errors.UserError, match='MIXTURE_OR_TASK_NAME="mini_sums'):
    resuming.check(manager, now)


def test_a_damaged_newest_step_does_not_hide_what_the_run_was(saved):
  run, manager = saved
  changed = resuming.settings(_changed(batch_size=16)(run), DATA)
  manager.save(4, {"a": np.ones(2)}, b"", {"settings": changed})
  manager.wait()
  resuming.check(manager, changed)
  stored = pathlib.Path(run.model_dir, "checkpoints/4/metadata/metadata")
  for content in (b"", stored.read_bytes().replace(b"16", b"32"), b"{}"):
    stored.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"=16 .*\(step 2\) .*with 8"):
      resuming.check(manager, changed)


@pytest.mark.parametrize("row", RECORDED)
def test_any_other_change_is_recorded_with_both_values(row, saved, tmp_path):
  run, manager = saved
  change, name = RECORDED[row]
  now = resuming.settings(change(run), DATA, b"name: queues")
  resuming.check(manager, now)
  resuming.record(tmp_path, 2, manager.metadata(2), now)
  (written,) = map(
    json.loads, (tmp_path / "changes.jsonl").read_text().splitlines()
  )
  assert written["step"] == 2
  assert {re.sub(r"\.\d+$", "", n) for n in written["changes"]} == {name}
  (before, after), *_ = written["changes"].values()
  assert before != after


@pytest.mark.parametrize("row", RECORDED_STARTS)
def test_another_start_is_recorded_with_both_values(row, saved, tmp_path):
  run, manager = saved
  now = resuming.settings(run, DATA, b"name: queues") | RECORDED_STARTS[row]
  resuming.check(manager, now)
  resuming.record(tmp_path, 2, manager.metadata(2), now)
  (written,) = map(
    json.loads, (tmp_path / "changes.jsonl").read_text().splitlines()
  )
  (name,) = written["changes"]
  assert name in (row, *RECORDED_STARTS[row])


def test_a_change_of_a_start_that_saved_nothing_is_forgotten(saved, tmp_path):
  """It was killed, and the next one resumes without it from the same step."""
  run, manager = saved
  path = tmp_path / history.CHANGES
  now = resuming.settings(run, DATA, b"name: queues")
  resuming.record(tmp_path, 1, {"settings": now | {"hosts": 2}}, now)
  kept = path.read_text()
  resuming.record(tmp_path, 2, manager.metadata(2), now | {"hosts": 3})
  assert [row["step"] for row in history.read_changes(path)] == [1, 2]
  resuming.record(tmp_path, 2, manager.metadata(2), now)
  assert path.read_text() == kept
  resuming.record(tmp_path, 1, {"settings": now}, now)
  assert history.read_changes(path) == []


def test_what_an_earlier_release_did_not_save_is_no_change(saved, tmp_path):
  """A field that a configuration has got since had its default."""
  run, manager = saved
  now = resuming.settings(run, DATA, b"name: queues")
  then = dict(now)
  for name in ("model.gradient_dtype", "optimizer.first_moment_dtype"):
    del then[name]
  for name in ("hosts", "devices", "dataset_file"):
    del then[name]
  then = {n: v for n, v in then.items() if not n.startswith("data.prompts")}
  assert resuming.differences(then, now) == {}
  changed = now | {"optimizer.first_moment_dtype": "bfloat16"}
  assert resuming.differences(then, changed) == {
    "optimizer.first_moment_dtype": ('"float32"', '"bfloat16"')
  }


def test_a_moved_directory_is_no_change(saved, tmp_path):
  run, manager = saved
  moved = dataclasses.replace(run, model_dir=str(tmp_path / "moved"))
  now = resuming.settings(moved, DATA, b"name: queues")
  resuming.record(tmp_path, 2, manager.metadata(2), now)
  assert not (tmp_path / "changes.jsonl").exists()


def test_the_table_of_the_guide_has_these_rows():
  table = DOCS.read_text().partition("## Changed settings")[2]
  rows = re.findall(r"^\| (.+?) \| (refused|recorded)", table, re.M)
  found = {
    kind: {name.replace("`", "") for name, k in rows if k == kind}
    for kind in ("refused", "recorded")
  }
  assert found["refused"] == {*REFUSED, *REFUSED_DATA}
  assert found["recorded"] == {*RECORDED, *RECORDED_STARTS}


def test_data_are_known_by_content_wherever_they_lie(data_dir, tmp_path):
  here = identity.of_mixture("mini_facts_v1")
  moved = tmp_path / "moved"
  moved.symlink_to(data_dir)
  sources.set_data_dir(moved)
  assert identity.of_mixture("mini_facts_v1") == here
  other = tmp_path / "other"
  shutil.copytree(data_dir, other)
  facts = other / "mini/facts/train.jsonl"
  facts.write_text(facts.read_text().replace("19 + 1", "19 + 2"))
  sources.set_data_dir(other)
  now = identity.of_mixture("mini_facts_v1")
  sources.set_data_dir(data_dir)
  assert {n for n in now if now[n] != here[n]} == {"data of mini_facts_v1"}


def test_files_of_a_users_source_are_known_by_content(tmp_path):
  features = {
    name: seqio.Feature(seqio.PassThroughVocabulary(8))
    for name in ("inputs", "targets")
  }
  files = {name: tmp_path / f"{name}.txt" for name in ("here", "moved")}
  for name, file in files.items():
    file.write_text("What is 2 + 2?\n")
    seqio.TaskRegistry.add(
      f"lines_{name}",
      source=seqio.TextLineDataSource({"train": str(file)}),
      output_features=features,
      preprocessors=[],
    )

  def found(name):
    return identity.of_mixture(f"lines_{name}")[f"files of lines_{name}"]

  assert found("here") == found("moved")
  files["moved"].write_text("What is 2 + 3?\n")
  assert found("here") != found("moved")


def test_a_large_file_is_known_by_its_size_and_its_ends(tmp_path):
  file = tmp_path / "corpus.txt"

  def found(size, place):
    with open(file, "wb") as stream:
      stream.truncate(size)
      stream.seek(place)
      stream.write(b"x")
    return identity._hash_of_samples([epath.Path(file)])

  size = 2**30 + 100
  assert len({found(size, place) for place in (5, size - 5)}) == 2
  assert found(size, 2**29) != found(size + 1, 2**29)


def test_other_words_around_the_same_rows_are_other_prompts(data_dir):
  provider = seqio.get_mixture_or_task("mini_svamp_zero_shot_answer_only_v1")
  here = identity._of_prompts(provider)
  (render, *others) = provider.preprocessors
  worded = dataclasses.replace(
    render.keywords["data_format"],
    wording=formats.Wording(answer_only="Ask: {question} A:"),
  )
  other = functools.partial(
    render.func, **(render.keywords | {"data_format": worded})
  )
  changed = seqio.Task(
    "other",
    source=provider.source,
    output_features=provider.output_features,
    preprocessors=[other, *others],
  )
  assert identity._of_prompts(changed) != here


def test_other_demonstrations_are_other_prompts():
  provider = seqio.get_mixture_or_task("mini_svamp_in_context_answer_only_v1")
  (render, *others) = provider.preprocessors
  read = render.keywords["read_demonstrations"]
  fewer = functools.partial(
    render.func,
    **(render.keywords | {"read_demonstrations": lambda: read()[1:]}),
  )
  changed = seqio.Task(
    "other",
    source=provider.source,
    output_features=provider.output_features,
    preprocessors=[fewer, *others],
  )
  assert identity._of_prompts(changed) != identity._of_prompts(provider)


def test_a_resumed_run_records_and_its_report_shows(
  trained_run, data_dir, tmp_path
):
  trained, _ = trained_run
  directory = shutil.copytree(trained.model_dir, tmp_path / "specialize")
  run = dataclasses.replace(trained, model_dir=str(directory))
  with pytest.raises(errors.UserError, match="BATCH_SIZE=16 .* with 8"):
    experiment.train(dataclasses.replace(run, batch_size=16))
  experiment.train(_with("loop", num_steps=7)(run))
  text = page.render(page.document(results_lib.load(tmp_path)))
  assert "Changed as a run resumed" in text
  assert re.search(r"TRAIN_STEPS.*?6.*?7", text)
