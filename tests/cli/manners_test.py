"""`specialize` in a terminal: pipes, ASCII, misspellings, completion."""

import argparse
import functools
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from specialize_jax.cli import completion, main, parsers
from specialize_jax.files import writing

ROOT = pathlib.Path(__file__).parents[2]


def _refusal(argv, capsys):
  with pytest.raises(SystemExit) as end:
    main.main(argv)
  assert end.value.code == 2
  output = capsys.readouterr()
  assert output.out == ""
  assert output.err.count("\n") == 1
  return output.err


@pytest.mark.parametrize(
  ("argv", "hint"),
  [
    (["trian"], "'trian' is not a command; did you mean train?"),
    (["--verison"], "did you mean --version?"),
    (["train", "--gin-file=x"], "did you mean --gin_file?"),
    (["train", "--data-dir", "x"], "did you mean --data_dir?"),
    (["train", "-gin_file=x"], "did you mean --gin_file?"),
    (["plan", "--topolgy=v5e:4x4"], "did you mean --topology?"),
    (["report", "--xyzzy"], "`specialize report --help` lists"),
    (["score", "x"], "required: --inputs, --output"),
    (["launch", "--max_failures=0"], "expected a whole number of at least 1"),
    (["train", "--gin.TRAIN_STEPS", "9"], "write --gin.TRAIN_STEPS=VALUE"),
  ],
)
def test_what_is_misspelt_is_one_sentence_with_what_was_meant(
  argv, hint, capsys
):
  assert hint in _refusal(argv, capsys)


def test_a_flag_is_never_abbreviated():
  parser = parsers.Parser(prog="specialize x")
  parser.add_argument("--data_dir")
  with pytest.raises(SystemExit):
    parser.parse_args(["--data=x"])


def test_a_terminal_of_ascii_shows_our_signs_and_escapes_the_rest(monkeypatch):
  shown = io.BytesIO()
  stream = io.TextIOWrapper(shown, encoding="ascii")
  monkeypatch.setattr(sys, "stdout", stream)
  writing.survive_any_text()
  print("10 \N{RIGHTWARDS ARROW} 70, \N{MINUS SIGN}4.2 \u0430 \ud83d")
  stream.flush()
  assert shown.getvalue() == b"10 -> 70, -4.2 \\u0430 \\ud83d\n"


def test_a_terminal_of_utf8_shows_every_sign_as_it_is(monkeypatch):
  shown = io.BytesIO()
  stream = io.TextIOWrapper(shown, encoding="utf-8")
  monkeypatch.setattr(sys, "stdout", stream)
  writing.survive_any_text()
  print("\N{MINUS SIGN}4.2")
  stream.flush()
  assert shown.getvalue().decode() == "\N{MINUS SIGN}4.2\n"


def test_a_reader_that_has_left_ends_it_quietly():
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, "-m", "specialize_jax", "--version"],
    stdout=writer,
    stderr=subprocess.PIPE,
    check=False,
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (141, b"")


def test_a_failure_does_not_wait_for_the_compiler():
  """Which cannot be interrupted; of Orbax's threads it waits for some time."""
  done = subprocess.run(
    [sys.executable, "-c", _FAILS_WHILE_COMPILING],
    capture_output=True,
    check=False,
  )
  # After a timeout it would say for what it has waited.
  assert (done.returncode, done.stdout, done.stderr) == (3, b"said", b"")


_FAILS_WHILE_COMPILING = """
import threading, time
from specialize_jax.cli import main
from specialize_jax.training import step
threading.Thread(target=time.sleep, args=[60], name=step.COMPILER).start()
print("said", end="")
main.main = lambda argv: 3
main.console()
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(closed, tmp_path):
  """Else what a library prints to the stream would end in the file."""
  module = tmp_path / "prints.py"
  module.write_text(
    "import os\n"
    "written = open('written', 'w')\n"
    "for descriptor in (1, 2):\n"
    "  try:\n"
    "    os.write(descriptor, b'from C')\n"
    "  except OSError:\n"
    "    pass\n"
    "written.write('mine')\n"
    "written.close()\n"
  )
  (tmp_path / "in.jsonl").write_text('{"prediction": "3", "target": "3"}\n')
  command = (
    f"exec {sys.executable} -m specialize_jax.cli.main score --task=gsm8k"
    f" --import=prints --inputs=in.jsonl --output=$0 {closed}"
  )
  run = functools.partial(
    subprocess.run,
    cwd=tmp_path,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    check=False,
    capture_output=True,
  )
  assert run(["sh", "-c", command, "out.jsonl"]).returncode == 0
  assert (tmp_path / "written").read_text() == "mine"
  row = json.loads((tmp_path / "out.jsonl").read_text())
  assert row["correct"] is True
  if closed != "2>&-":
    assert run(["sh", "-c", command, "/dev/stdout"]).returncode == 2


def test_the_shell_completes_flags(tmp_path):
  """By the shell's protocol: the line in the environment, the answer on 8."""
  line = "specialize train --gin_f"
  told = {
    "_ARGCOMPLETE": "1",
    "_ARGCOMPLETE_IFS": "\n",
    "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "answer"),
    "COMP_LINE": line,
    "COMP_POINT": str(len(line)),
  }
  done = subprocess.run(
    [sys.executable, "-m", "specialize_jax"],
    env=os.environ | told,
    capture_output=True,
    check=False,
  )
  assert (done.stdout, done.stderr) == (b"", b"")
  assert (tmp_path / "answer").read_text().split() == ["--gin_file"]


def test_every_command_can_be_completed():
  for command in main.COMMANDS:
    parser = completion.parser_for(f"specialize {command} ", main.COMMANDS)
    (choices,) = (
      action
      for action in parser._actions
      if isinstance(action, argparse._SubParsersAction)
    )
    assert "--help" in choices.choices[command].flags(), command


@pytest.mark.parametrize(
  "command",
  [
    "select --model_dir={model_dir} --out_of_distribution={task}",
    "convert --checkpoint={model_dir}/checkpoints/6 --output={folder}/hf",
    "report --run={model_dir} --output={folder}/report.html",
  ],
)
def test_what_only_reads_a_run_leaves_the_accelerator_to_it(
  command, trained_run, tmp_path
):
  run, _ = trained_run
  model_dir = tmp_path / "model"
  shutil.copytree(run.model_dir, model_dir)
  task = "mini_gsm_zero_shot_chain_of_thought_v1"
  row = {
    "step": 6,
    "group": "evaluation",
    "values": {f"{task}/accuracy": 0.5},
  }
  with (model_dir / "metrics.jsonl").open("a") as metrics:
    print(json.dumps(row), file=metrics)
  filled = command.format(model_dir=model_dir, task=task, folder=tmp_path)
  ended = subprocess.run(
    [sys.executable, "-m", "specialize_jax", *filled.split()],
    # No process can have it here, as none can beside a run on the chips.
    env={**os.environ, "JAX_PLATFORMS": "tpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    ("report --results_dir=. --dataset=x.yaml", "--dataset goes with --run"),
    ("select --model_dir=. --gin_file=runs/select.gin", "--gin_file goes with"),
    ("select --model_dir=. --gin.NONSENSE=1", "--gin.NONSENSE goes with"),
    ("select --model_dir=. --evaluate --poll_seconds=1", "goes with --follow"),
    ("inspect --task=t --mode=paper", "--mode goes with --records"),
    ("inspect --dataset=x.yaml --split=test", "--split goes with --task"),
    ("teach --base_url=u --model=m --output=o --questions=q --split=test",
     "--split goes with --benchmark"),
    ("prepare --runner_options=x", "--runner_options goes with --runner"),
    ("train --print_config --dry_run", "give either --print_config or --dry_"),
    ("train --dry_run --profile_steps=1,2", "--profile_steps goes with a run"),
    ("demo --output_dir=d --num_seeds=2", "--num_seeds goes with --study"),
    ("demo --output_dir=d --study --cpu_devices=2",
     "--cpu_devices goes with a demo without --study"),
    ("launch --name=n --topology=v5e-16 --on=gke --zone=z --image=i",
     "--zone goes with --on=tpu_vm or --on=xpk"),
  ],
)  # fmt: skip
def test_a_flag_that_would_be_ignored_is_refused(
  argv, said, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  for name in ("x.yaml", "q"):
    pathlib.Path(name).write_text("")
  command, *flags = argv.split()
  assert main.run(command, flags) == 2
  assert said in capsys.readouterr().err
  assert sorted(os.listdir()) == ["q", "x.yaml"]
