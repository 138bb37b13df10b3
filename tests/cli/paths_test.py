"""Every command, every path that it takes, every way for one to be bad.

Each flag is tried with all others right, so that only the path under test can
be refused; and nothing may appear anywhere, whatever the command had begun.
"""

import argparse
import importlib
import inspect
import json
import os
import pathlib
import re
import tempfile

import pytest
from testdata import own_domain, tiny_vocabulary

from specialize_jax.cli import gin_files, main
from specialize_jax.runs import experiment

_ROW = {"prediction": "The answer is 7.", "target": "7", "text": "3 + 4?"}
_RESPONSE = {
  "question_id": 0,
  "question": "What is 3 + 4?",
  "answer": "7",
  "choices": [
    {
      "text": "7",
      "finish_reason": "stop",
      "logprobs": {
        "tokens": ["7"],
        "token_logprobs": [-0.1],
        "top_logprobs": [{"7": -0.1}],
      },
    }
  ],
}
_LENGTHS = """ --gin.TASK_FEATURE_LENGTHS={"inputs":64,"targets":64}"""

# Each command's arguments, all right, {} being a directory of good files; and
# of its paths, which are read (a file, a directory, either) or written.
_COMMANDS = {
  "score": (
    "--task=gsm8k --inputs={}/rows.jsonl --output={}/new.jsonl",
    {"--inputs": "read file", "--output": "written file"},
  ),
  "align": (
    "--records={}/store --vocabulary={}/spiece.model --output={}/new.jsonl"
    " --report={}/new.json",
    {
      "--records": "read path",
      "--vocabulary": "read file",
      "--output": "written file",
      "--report": "written file",
    },
  ),
  "inspect": (
    "--records={}/store --vocabulary={}/spiece.model --html={}/new.html"
    " --data_dir={} --tfds_data_dir={}",
    {
      "--records": "read path",
      "--vocabulary": "read file",
      "--html": "written file",
      "--data_dir": "read directory",
      "--tfds_data_dir": "read directory",
    },
  ),
  "import": (
    "--input={}/responses.jsonl --questions={}/questions.jsonl"
    " --output={}/new_store",
    {
      "--input": "read path",
      "--questions": "read file",
      "--output": "written directory",
    },
  ),
  "prepare": (
    "--records={}/store --vocabulary={}/spiece.model --data_dir={}/new_tfds"
    " --questions={}/questions.jsonl --report={}/new.json --manual_dir={}",
    {
      "--records": "read path",
      "--vocabulary": "read file",
      "--questions": "read file",
      "--report": "written file",
      "--data_dir": "written directory",
      "--manual_dir": "read directory",
    },
  ),
  "teach": (
    "--questions={}/questions.jsonl --output={}/new_store --model=m"
    " --base_url=http://127.0.0.1:9/v1 --prompt={}/prompt.txt --data_dir={}",
    {
      "--questions": "read file",
      "--prompt": "read file",
      "--data_dir": "read directory",
      "--output": "written directory",
    },
  ),
  "convert": (
    "--checkpoint={}/folder --output={}/new --vocabulary={}/spiece.model",
    {
      "--checkpoint": "read checkpoint",
      "--output": "written directory",
      "--vocabulary": "read file",
    },
  ),
  "generate": (
    "--checkpoint={}/folder --inputs={}/rows.jsonl --outputs={}/new.jsonl"
    " --vocabulary={}/spiece.model",
    {
      "--checkpoint": "read checkpoint",
      "--inputs": "read file",
      "--outputs": "written file",
      "--vocabulary": "read file",
    },
  ),
  "select": (
    "--model_dir={}/run --output={}/new.json --data_dir={} --tfds_data_dir={}",
    {
      "--model_dir": "read directory",
      "--output": "written file",
      "--data_dir": "read directory",
      "--tfds_data_dir": "read directory",
    },
  ),
  "report": (
    "--results_dir={}/results --run={}/run --before={}/run --after={}/run"
    " --output={}/new.html --figures_dir={}/new --markdown={}/new.md",
    {
      "--run": "read directory",
      "--before": "read directory",
      "--after": "read directory",
      "--results_dir": "read directory",
      "--output": "written file",
      "--figures_dir": "written directory",
      "--markdown": "written file",
    },
  ),
  "plan": (
    "--model=flan_t5_base --topology=v5e:2x2 --output={}/new.json"
    " --figure={}/new.png --write_topology={}/new.gin",
    {
      "--output": "written file",
      "--figure": "written file",
      "--write_topology": "written file",
      "--model": "read gin",
    },
  ),
  "launch": (
    "--on=gke --name=x --topology=v5e:4x4 --image=i --manifest={}/new.yaml"
    " -- train --gin.MODEL_DIR=gs://b/run",
    {"--manifest": "written file"},
  ),
  "demo": (
    "--output_dir={}/new",
    {
      "--output_dir": "written directory",
      "--pretrain_gin_file": "read gin",
      "--specialize_gin_file": "read gin",
      "--compare": "read gin",
    },
  ),
  "train": (
    "--gin_file=runs/train.gin --gin_file=models/flan_t5_small.gin"
    " --gin_file=losses/distribution_matching.gin"
    " --data_dir={} --tfds_data_dir={} --gin.MODEL_DIR={}/new"
    " --gin.INITIAL_CHECKPOINT_PATH={}/folder"
    " --gin.MIXTURE_OR_TASK_NAME=mini_pretrain_v1 --gin.TRAIN_STEPS=1"
    " --gin.BATCH_SIZE=8" + _LENGTHS,
    {
      "--data_dir": "read directory",
      "--tfds_data_dir": "read directory",
      "--gin.MODEL_DIR": "written directory",
      "--gin.INITIAL_CHECKPOINT_PATH": "read checkpoint",
    },
  ),
  "eval": (
    "--data_dir={} --tfds_data_dir={} --gin.CHECKPOINT_PATH={}/folder"
    " --gin.EVAL_OUTPUT_DIR={}/new"
    " --gin.MIXTURE_OR_TASK_NAME=mini_svamp_zero_shot_chain_of_thought_v1"
    + _LENGTHS,
    {
      "--data_dir": "read directory",
      "--tfds_data_dir": "read directory",
      "--gin.EVAL_OUTPUT_DIR": "written directory",
      "--gin.CHECKPOINT_PATH": "read checkpoint",
    },
  ),
}
for _name in (
  *("eval", "generate", "import", "inspect", "prepare", "report", "score"),
  *("select", "teach", "train"),
):
  _text, _kinds = _COMMANDS[_name]
  _COMMANDS[_name] = (
    _text + " --dataset={}/own/queues.yaml",
    {**_kinds, "--dataset": "read file"},
  )
for _name in ("demo", "eval", "plan", "select", "train"):
  _text, _kinds = _COMMANDS[_name]
  _gin = {"--gin_file": "read gin", "--gin_search_paths": "read directory"}
  _COMMANDS[_name] = (_text, {**_kinds, **_gin})
# Flags whose text is no path of this machine.
_NO_PATHS = frozenset(
  ("--api_key_env", "--base_url", "--benchmark", "--cluster")
  + ("--coordinator_address", "--extra_body", "--gin.NAME=value", "--image")
  + ("--import", "--in_distribution", "--mesh", "--metric", "--mode", "--name")
  + ("--namespace", "--out_of_distribution", "--package", "--project")
  + ("--runner", "--runner_options", "--runtime_version", "--service_account")
  + ("--split", "--stop", "--task", "--topology", "--zone")
)
# `launch --copy` is of TPU VMs, the manifest of GKE: see launch_test.py.
_NO_PATHS_OF = {"teach": {"--model"}, "launch": {"--copy", "--env"}}
_LONG = "n" * 256


def _bad_paths(kind: str) -> dict[str, str]:
  """What cannot be given for a path, {} being a directory of good files."""
  how, _, what = kind.partition(" ")
  bad = {
    "another object store": "s3://bucket/x",
    "a bucket that is none": "gs://no-such-bucket-x/run",
    "a bucket without a name": "gs://",
    "half a scheme": "gs:/bucket/x",
    "a file's URL": "file:///tmp/x",
    "a website": "https://host/x",
    "nothing": "",
    "blanks": "  ",
    "below a file": "{}/rows.jsonl/x",
    "a name too long": "{}/" + _LONG,
  }
  if how == "read":
    bad["missing"] = "{}/absent"
    bad["in a missing directory"] = "{}/absent/x"
  if what in ("file", "gin"):
    bad["a directory"] = "{}/folder"
    bad["a directory with a slash"] = "{}/folder/"
    bad["a file with a slash"] = "{}/rows.jsonl/"
    bad["no permission"] = "{forbidden}/closed/x"
  elif what == "directory":
    bad["a file"] = "{}/rows.jsonl"
    bad["no permission"] = (
      "{forbidden}/closed" if how == "read" else "{forbidden}/open/x"
    )
  if kind == "written file":
    bad["no permission to write"] = "{forbidden}/open/x"
  return bad


@pytest.fixture(scope="module")
def good():
  """A directory of files that the commands take."""
  with (
    tempfile.TemporaryDirectory(prefix="good files ") as folder,
    own_domain.unregistered_after(),
  ):
    yield _filled(pathlib.Path(folder))


def _filled(place):
  place.chmod(0o777)
  (place / "spiece.model").write_bytes(tiny_vocabulary.model())
  (place / "prompt.txt").write_text("{question}")
  for name, row in (
    ("rows", _ROW),
    ("responses", _RESPONSE),
    ("questions", {"question_id": 0, "question": "3 + 4?", "answer": "7"}),
  ):
    (place / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
  assert (
    main.main(
      ["import", f"--input={place}/responses.jsonl", f"--output={place}/store"]
    )
    == 0
  )
  for name in ("folder", "run", "results", "own"):
    (place / name).mkdir()
  own_domain.write(place / "own")
  return place


def _snapshot(*places):
  return sorted(
    (os.fspath(path), path.stat().st_size)
    for place in places
    for path in pathlib.Path(place).rglob("*")
  )


def _cases():
  for command, (_, kinds) in _COMMANDS.items():
    for flag, kind in kinds.items():
      for name in _bad_paths(kind):
        if (flag, name) == ("--gin_search_paths", "nothing"):
          continue  # as without the flag
        yield pytest.param(
          command, flag, name, id=f"{command} {flag}: {name}".replace(" ", "_")
        )


def _takes_text(action: argparse.Action) -> bool:
  """Whether a flag takes any text: no number, and none of a few words."""
  if action.nargs == 0 or action.choices or not action.option_strings:
    return False
  if action.type is None:
    return True
  try:
    action.type("folder/file")
  except (ValueError, argparse.ArgumentTypeError):
    return False
  return True


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_flag_that_may_be_a_path_is_tried(command):
  module = importlib.import_module(f"specialize_jax.cli.{command}")
  names = {
    action.option_strings[-1]
    for action in module.build_parser()._actions
    if _takes_text(action)
  }
  _, kinds = _COMMANDS[command]
  tried = {name for name in kinds if not name.startswith("--gin.")}
  assert names - _NO_PATHS - _NO_PATHS_OF.get(command, set()) == tried


def test_every_gin_parameter_that_is_a_path_is_tried():
  """By its name: what is called so is checked, and stands in the table."""
  named = {
    f"{owner.__name__}.{name}"
    for owner in (experiment.Experiment, experiment.evaluate_checkpoint)
    for name in inspect.signature(owner).parameters
    if re.search(r"(?:_dir|_path)\Z", name)
  }
  assert named == gin_files._PATH_PARAMETERS.keys()
  tried = {name for _, kinds in _COMMANDS.values() for name in kinds}
  assert {
    "--gin.MODEL_DIR",
    "--gin.INITIAL_CHECKPOINT_PATH",
    "--gin.CHECKPOINT_PATH",
    "--gin.EVAL_OUTPUT_DIR",
  } == {name for name in tried if name.startswith("--gin.")}


@pytest.mark.parametrize(("command", "flag", "bad"), [*_cases()])
def test_a_bad_path_is_one_sentence_and_nothing_is_written(
  command, flag, bad, good, bucket, forbidden, as_nobody, monkeypatch, capsys
):
  monkeypatch.chdir(good)
  text, kinds = _COMMANDS[command]
  given = _bad_paths(kinds[flag])[bad]

  def run(path):
    words = [word.replace("{}", os.fspath(good)) for word in text.split()]
    argv = [f"{flag}={path}" if w.startswith(f"{flag}=") else w for w in words]
    if argv == words:
      argv.append(f"{flag}={path}")
    if command == "select" and flag.startswith("--gin_"):
      argv.append("--evaluate")  # which alone reads them
    status = main.main([command, *argv])
    return status, capsys.readouterr().err.strip().splitlines()[-1]

  before = _snapshot(good)
  if "{forbidden}" in given:
    run("s3://bucket/x")  # imports what nobody may not
    given = given.replace("{forbidden}", os.fspath(forbidden))
    with as_nobody():
      status, error = run(given)
  else:
    given = given.replace("{}", os.fspath(good))
    status, error = run(given)

  assert status == 2, error
  assert error.startswith(f"specialize {command}: error: ")
  if given.strip():
    assert given.rstrip("/") in error  # as it was given
  assert _snapshot(good) == before
