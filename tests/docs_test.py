"""The guides are true: their commands run, their links lead somewhere."""

import importlib
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from specialize_jax.cli import gin_files, main
from specialize_jax.cot import answers
from specialize_jax.files import reading

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
_BLOCK = re.compile(
  r"(?:<!-- needs: (?P<needs>.+?) -->\n)?```sh\n(?P<text>.*?)```", re.DOTALL
)
# What the demo of the guides is made of here: minutes become seconds.
_SMALLER = {
  "demo": [
    "--pretrain_gin_file=pretrain.gin",
    "--specialize_gin_file=specialize.gin",
    "--gin.WorldConfig.train_size=60",
    "--gin.WorldConfig.out_of_distribution_train_size=20",
    "--gin.WorldConfig.validation_size=20",
    "--gin.WorldConfig.test_size=20",
    "--gin.WorldConfig.general_train_size=20",
    "--gin.WorldConfig.general_validation_size=10",
    "--gin.WorldConfig.general_test_size=10",
    "--gin.WorldConfig.weak_maths_size=20",
    "--gin.experiment.Evaluation.max_new_tokens=8",
  ]
}
_SMALL_RUN = """
from __gin__ import dynamic_registration
from specialize_jax.runs import experiment
include "experiments/mini/{name}.gin"
TRAIN_STEPS = 20
WARMUP_STEPS = 5
CHECKPOINT_EVERY = 10
experiment.Evaluation.max_new_tokens = 8
"""


def blocks(page):
  """The page's shell blocks, each with what it needs, if anything."""
  found = _BLOCK.finditer(page.read_text())
  return [(match["needs"], match["text"]) for match in found]


def commands(text):
  """The `specialize` commands of a block, as words."""
  joined = text.replace("\\\n", " ").splitlines()
  return [
    shlex.split(line)[1:] for line in joined if line.startswith("specialize ")
  ]


def name_of(page):
  return str(page.relative_to(DOCS))


def test_each_command_has_a_guide_that_shows_it():
  for command in main.COMMANDS:
    page = DOCS / "commands" / f"{command}.md"
    assert page.exists(), f"docs/commands/{command}.md is not written"
    shown = [words[0] for _, text in blocks(page) for words in commands(text)]
    assert command in shown
    assert f"commands/{command}.md" in (DOCS / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
    assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_the_flags_that_are_shown(page):
  for needs, text in blocks(page):
    assert needs in (
      *(None, "TPU", "network", "minutes", "docker"),
      *("T5X", "T5X and Beam"),
    )
    for command, *argv in commands(text):
      module = importlib.import_module(f"specialize_jax.cli.{command}")
      own = argv[: argv.index("--")] if command == "launch" else argv
      gin_files.parse(module.build_parser(), own)


def test_the_graders_judge_as_their_page_says():
  text = (DOCS / "decisions" / "graders.md").read_text()
  rows = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in text.splitlines()
    if line.startswith("| ") and line.endswith((" right |", " wrong |"))
  ]
  assert len(rows) == 5
  for output, target, kind, *told in rows:
    for grader, verdict in zip(("fixed", "paper_code"), told, strict=True):
      graded = answers.grade(
        output, target, kind=kind.split()[-1], grader=grader
      )
      assert graded.correct == (verdict == "right"), (output, grader)


@pytest.mark.slow
def test_every_command_shown_runs(tmp_path):
  for name in ("pretrain", "specialize"):
    text = _SMALL_RUN.format(name=name)
    (tmp_path / f"{name}.gin").write_text(text)
  # The demo first: the other guides use what it leaves.
  first = DOCS / "commands" / "demo.md"
  num_run = 0
  for page in [first, *(p for p in PAGES if p != first)]:
    for needs, text in blocks(page):
      if needs is None and page.name != "study.md":  # tested on its own
        _run(page, text, tmp_path)
        num_run += len(commands(text))
  assert num_run > 15
  # What the guides say that they print and write.
  graded = {
    rule: reading.read_rows(tmp_path / f"{rule}.jsonl")[0]["correct"]
    for rule in ("fixed", "paper_code")
  }
  assert graded == {"fixed": False, "paper_code": True}
  steps = (tmp_path / "runs/pretrain/checkpoints").iterdir()
  assert "30" in {step.name for step in steps}


def _run(page, text, directory):
  """Runs a block in a shell, `specialize` being this checkout's."""
  added = "".join(
    f"if [ $1 = {command} ]; then set -- $@ {shlex.join(flags)}; fi\n"
    for command, flags in _SMALLER.items()
  )
  specialize = f"{shlex.quote(sys.executable)} -m specialize_jax.cli.main"
  script = f'set -eu\nspecialize() {{\n{added}{specialize} "$@"\n}}\n{text}'
  root = str(DOCS.parent)
  paths = [root, os.environ.get("PYTHONPATH", "")]
  done = subprocess.run(
    ["bash", "-c", script],
    cwd=directory,
    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    capture_output=True,
    text=True,
    check=False,
    timeout=1800,
  )
  assert done.returncode == 0, f"{name_of(page)}:\n{text}\n{done.stderr}"
