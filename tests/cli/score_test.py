"""`specialize score` as scripts rely on it."""

import codecs
import json
import re
import subprocess
import sys

import pytest

from specialize_jax import errors
from specialize_jax.cli import main
from specialize_jax.cot import answer_rules
from specialize_jax.evaluation import metrics
from specialize_jax.files import reading

ROWS = [
  {"prediction": "So the answer is 1,200.", "target": "1200", "id": 7},
  {"prediction": "The answer is -5", "target": 5},
  {"prediction": None, "target": "3"},
]


def _score(tmp_path, capsys, rows=ROWS, **flags):
  inputs = tmp_path / "inputs.jsonl"
  inputs.write_text("".join(json.dumps(row) + "\n" for row in rows))
  arguments = {
    "task": "gsm8k",
    "grader": "fixed",
    "inputs": inputs,
    "output": tmp_path / "graded.jsonl",
  } | flags
  status = main.run("score", [f"--{k}={v}" for k, v in arguments.items()])
  captured = capsys.readouterr()
  return status, captured.out, captured.err


def test_rows_are_graded_and_the_last_line_is_json(tmp_path, capsys):
  status, out, _ = _score(tmp_path, capsys)
  assert status == 0
  summary = json.loads(out.splitlines()[-1])
  assert summary["accuracy"] == pytest.approx(1 / 3)
  assert summary["n"] == 3
  assert 0 < summary["low"] < 1 / 3 < summary["high"] < 1
  lines = (tmp_path / "graded.jsonl").read_text().splitlines()
  graded = [json.loads(line) for line in lines]
  assert graded[0] == ROWS[0] | {
    "extracted": "1200",
    "correct": True,
    # The paper's rule takes the 200 of 1,200.
    "verdicts": {"fixed": True, "paper_code": False},
  }
  assert summary["accuracy_fixed"] == summary["accuracy"]
  assert [row["correct"] for row in graded] == [True, False, False]
  assert graded[2]["extracted"] is None


def test_standard_output_has_the_rows_alone_if_they_go_there(tmp_path):
  _score_flags = ["score", "--task=gsm8k", "--output=/dev/stdout"]
  predictions = tmp_path / "predictions.jsonl"
  predictions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  done = subprocess.run(
    [sys.executable, "-m", "specialize_jax.cli.main", *_score_flags]
    + [f"--inputs={predictions}"],
    capture_output=True,
    text=True,
    check=True,
  )
  rows = [json.loads(line) for line in done.stdout.splitlines()]
  assert len(rows) == len(ROWS)
  assert all("correct" in row for row in rows)
  assert json.loads(done.stderr.splitlines()[-1])["n"] == len(ROWS)


def test_the_papers_grader_takes_a_minus_for_nothing(tmp_path, capsys):
  _, out, _ = _score(tmp_path, capsys, grader="paper_code")
  assert json.loads(out)["accuracy"] == pytest.approx(1 / 3)
  graded = (tmp_path / "graded.jsonl").read_text().splitlines()
  assert [json.loads(line)["correct"] for line in graded] == [
    False,
    True,
    False,
  ]


def test_half_of_an_emoji_is_graded_as_any_text_is(tmp_path, capsys):
  rows = [
    {"prediction": "A smile \ud83d and so the answer is 5.", "target": "5"},
    {"prediction": "The answer is 7.", "target": "7"},
  ]
  status, out, _ = _score(tmp_path, capsys, rows)
  assert status == 0
  assert json.loads(out.splitlines()[-1])["accuracy"] == 1.0
  graded = reading.read_rows(tmp_path / "graded.jsonl")
  assert [row["prediction"] for row in graded] == [
    row["prediction"] for row in rows
  ]


def test_predictions_saved_on_windows_are_graded(tmp_path, capsys):
  path = tmp_path / "saved.jsonl"
  rows = "".join(json.dumps(row) + "\r\n" for row in ROWS)
  path.write_bytes(codecs.BOM_UTF8 + rows.encode())
  status, out, _ = _score(tmp_path, capsys, inputs=path)
  assert status == 0
  assert json.loads(out.splitlines()[-1])["n"] == len(ROWS)


def test_a_grader_that_does_not_know_the_rule_is_refused():
  rule = answer_rules.AnswerRule(kind="json", field="answer")
  with pytest.raises(
    errors.UserError, match="paper_code does not know answers"
  ):
    metrics.Accuracy(rule=rule, grader="paper_code")


def test_a_bbh_task_is_graded_by_its_own_kind(tmp_path, capsys):
  rows = [{"prediction": "So the answer is (B).", "target": "(B)"}]
  status, out, _ = _score(tmp_path, capsys, rows, task="bbh/snarks")
  assert status == 0
  assert json.loads(out)["accuracy"] == 1.0


def _harness_row(doc_id, said, target, name):
  """As lm-evaluation-harness 0.4 logs samples of gsm8k."""
  return {
    "doc_id": doc_id,
    "doc": {"question": "How many?", "answer": f"So.\n#### {target}"},
    "target": f"So.\n#### {target}",
    "arguments": {"gen_args_0": {"arg_0": "Q: How many?\nA:"}},
    "resps": [[said]],
    "filtered_resps": ["[invalid]" if name == "strict-match" else target],
    "filter": name,
    "metrics": ["exact_match"],
    "exact_match": 0.0,
  }


def test_rows_of_the_harness_count_once_whatever_the_filter(tmp_path, capsys):
  said = ["It is 72.\n\nQ: And 5?", "It is 9.", "It is 72."]
  rows = [
    _harness_row(doc_id, text, "72", name)
    for name in ("strict-match", "flexible-extract")
    for doc_id, text in enumerate(said)
  ]
  status, out, err = _score(tmp_path, capsys, rows)
  assert status == 0
  assert json.loads(out)["n"] == 3
  assert json.loads(out)["accuracy"] == pytest.approx(2 / 3)
  assert "left out 3 rows" in err


def test_targets_that_are_no_numbers_are_told(tmp_path, capsys):
  rows = [
    {"prediction": "The answer is (A).", "target": "(A)"},
    {"prediction": "The answer is 5.", "target": ""},
  ]
  status, _, err = _score(tmp_path, capsys, rows)
  assert status == 2
  assert "no target is a number (row 1 has '(A)')" in err
  rows.append({"prediction": "The answer is 5.", "target": "5"})
  status, out, err = _score(tmp_path, capsys, rows)
  assert (status, json.loads(out)["n"]) == (0, 3)
  assert "2 of 3 targets are no numbers" in err


def test_rows_of_two_tasks_of_the_harness_count_each(tmp_path, capsys):
  rows = [
    _harness_row(0, "It is 72.", "72", name)
    | {"doc": {"question": name, "answer": "72"}, "target": "72"}
    for name in ("strict-match", "flexible-extract")
  ]
  status, out, _ = _score(tmp_path, capsys, rows)
  assert status == 0
  assert json.loads(out)["n"] == 2


@pytest.mark.parametrize(
  ("rows", "flags", "message"),
  [
    (ROWS, {"task": "gms8k"}, "task 'gms8k' is unknown.*did you mean gsm8k"),
    (ROWS, {"task": "bbh/snark"}, "did you mean bbh/snarks"),
    (ROWS, {"inputs": "absent.jsonl"}, "--inputs=absent.jsonl does not exist"),
    ([], {}, "has no rows"),
    ([{"prediction": "1"}], {}, "row 1 has no text under 'target'"),
    ([{"target": "1"}], {}, "row 1 has no text under 'prediction'"),
    (
      [{"prediction": "1", "output": "2", "target": "1"}],
      {},
      "row 1 has two predictions that differ, 'prediction'='1' and 'output'",
    ),
  ],
)
def test_what_a_user_can_mend_is_one_sentence(
  tmp_path, capsys, rows, flags, message
):
  status, out, err = _score(tmp_path, capsys, rows, **flags)
  assert status == 2
  assert out == ""
  assert err.count("\n") == 1
  assert re.search(message, err), err
  assert not (tmp_path / "graded.jsonl").exists()


def test_what_several_filters_make_of_several_responses_is_one_each(
  tmp_path, capsys
):
  row = {"doc_id": 0, "target": "18", "resps": [["a 17", "b 18", "c 18"]]}
  first = row | {"filter": "score-first", "filtered_resps": ["17"]}
  voted = row | {"filter": "maj@3", "filtered_resps": ["18"]}
  status, _, err = _score(tmp_path, capsys, [first, voted])
  assert status == 2
  assert "row 2 has another prediction" in err
  assert not (tmp_path / "graded.jsonl").exists()
  status, out, _ = _score(tmp_path, capsys, [voted])
  assert (status, json.loads(out)["accuracy"]) == (0, 1.0)
