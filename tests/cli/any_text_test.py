"""Any string that Python can hold passes every command that shows texts."""

import contextlib
import functools
import io
import json
import os
import pathlib
import sys
import tempfile

import hypothesis
import pytest
from hypothesis import strategies
from testdata import tiny_vocabulary

from specialize_jax.cli import main
from specialize_jax.evaluation import evaluator
from specialize_jax.files import reading, writing
from specialize_jax.records import schema, store

ANY_TEXT = strategies.text(
  strategies.characters(codec=None, exclude_categories=()), max_size=20
)
AWKWARD = ("half \ud83d", "\ude00\ud83d", "\x00\x1b[2J\u2028\x85", "<b>&|`$\\")
_SETTINGS = hypothesis.settings(max_examples=10, deadline=None)


def with_awkward_ones(test):
  """Tries texts at random, and those that have broken a writer."""
  for text in AWKWARD:
    test = hypothesis.example(text)(test)
  return _SETTINGS(hypothesis.given(ANY_TEXT)(test))


@pytest.fixture(scope="module", autouse=True)
def place():
  """A working directory for all examples; and a terminal that is ASCII."""
  before = os.getcwd()
  stdout, stderr = sys.stdout, sys.stderr
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    pathlib.Path("spiece.model").write_bytes(tiny_vocabulary.model())
    try:
      yield
    finally:
      os.chdir(before)
      sys.stdout, sys.stderr = stdout, stderr


def _run(*argv):
  """Runs a command whose standard output takes ASCII alone."""
  held = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  with contextlib.redirect_stdout(held):
    status = main.main(list(argv))
  held.flush()
  return status


@with_awkward_ones
def test_score(text):
  row = {"prediction": text, "target": text, text: text}
  number = {"prediction": "7", "target": "7"}  # what GSM8K's targets are
  writing.write_rows("rows.jsonl", [row, number])
  assert (
    _run(
      "score", "--task=gsm8k", "--inputs=rows.jsonl", "--output=graded.jsonl"
    )
    == 0
  )
  graded, _ = reading.read_rows("graded.jsonl")
  given, _ = reading.read_rows("rows.jsonl")
  assert graded["prediction"] == given["prediction"]


@pytest.mark.slow
@with_awkward_ones
def test_report(text):
  values = {"accuracy": 0.5, "n": 2}
  task = "mini_svamp"
  pathlib.Path("results").mkdir(exist_ok=True)
  writing.write_json(
    "results/results.json",
    {
      "before": {task: values, text or "t": values},
      "after": {task: values, text or "t": values},
      "in_distribution": task,
      "out_of_distribution": [text or "t"],
      "general": [],
    },
  )
  rows = [
    {"prompt": text, "prediction": text, "target": text, "extracted": text}
    | {"question_id": str(n), "correct": correct, "reference": text}
    for n, correct in enumerate((True, False))
  ]
  for when in ("before", "after"):
    path = f"results/predictions/{when}/{task}.jsonl"
    writing.write_rows(path, rows if when == "after" else rows[::-1])
  status = _run("report", "--results_dir=results", "--markdown=results/r.md")
  assert status == 0
  for name in ("report.html", "r.md"):
    pathlib.Path("results", name).read_text(encoding="utf-8")


@pytest.mark.slow
@with_awkward_ones
def test_inspect_and_align(text):
  step = functools.partial(schema.TeacherStep, log_prob=-0.5)
  tokens = [text, " 3"] if text else [" 3"]
  record = schema.TeacherRecord(
    question_id=text,
    sample=0,
    question=text,
    gold_answer=text,
    text="".join(tokens),
    steps=tuple(
      step(token=token, top=((token, -0.5), (text, -2.0))) for token in tokens
    ),
    finish_reason="stop",
    request={},
    verdicts={},
  )
  pathlib.Path("records.jsonl").write_text(schema.to_json_line(record) + "\n")
  assert [r.text for r in store.read_records("records.jsonl")]
  common = ["--records=records.jsonl", "--vocabulary=spiece.model"]
  status = _run("inspect", *common, "--html=sample.html")
  assert status in (0, 2)  # rejected, in one sentence
  if status == 0:
    pathlib.Path("sample.html").read_text(encoding="utf-8")
  status = _run("align", *common, "--output=a.jsonl", "--report=c.json")
  assert status == 0
  assert len(reading.read_rows("a.jsonl")) == 1


@with_awkward_ones
def test_the_predictions_of_an_evaluation(text):
  import seqio

  from tasks import mixtures  # noqa: F401  (registers every task)

  task = seqio.get_mixture_or_task("mini_svamp_zero_shot_chain_of_thought_v1")
  example = {
    "inputs_pretokenized": text.encode("utf-8", "replace"),
    "targets_pretokenized": b"",
    "question_id": b"q",
  }
  rows = evaluator.prediction_rows(task, [example], [text], [text])
  writing.write_rows("predictions.jsonl", rows)
  (row,) = reading.read_rows("predictions.jsonl")
  assert row["prediction"] == json.loads(writing.to_json(text))
