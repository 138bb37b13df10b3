"""`specialize align` writes rows and a report whole, or nothing and why."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from testdata import real_files, trees

from specialize_jax.cli import align
from specialize_jax.cli import main as command_line
from specialize_jax.records import schema, store

ROW_KEYS = {"question_id", "sample", "pieces", "targets", "mask"}
REPORT_KEYS = {
  "positions",
  "one_to_one",
  "in_chunks",
  "one_hot",
  "teacher_mass_kept",
}


def make_record(sample, **changes):
  fields = {
    "question_id": "q",
    "sample": sample,
    "question": "Who?",
    "gold_answer": "Ann",
    "text": "Ann has",
    "steps": (
      schema.TeacherStep(
        token="Ann",
        log_prob=math.log(0.6018),
        top=(("Ann", math.log(0.6018)), ("Bob", math.log(0.25))),
      ),
      schema.TeacherStep(token=" has", log_prob=math.log(0.5), top=()),
    ),
    "finish_reason": "stop",
    "request": {},
    "verdicts": {},
  }
  return schema.TeacherRecord(**(fields | changes))


@pytest.fixture
def vocabulary(tmp_path):
  """The path of a tiny SentencePiece model."""
  path = tmp_path / "student.model"
  path.write_bytes(trees.tiny_model())
  return path


@pytest.fixture
def records(tmp_path):
  """The path of a store of two records."""
  directory = tmp_path / "store"
  with store.RecordWriter(directory) as writer:
    writer.append(make_record(0))
    writer.append(make_record(1, finish_reason="length"))
  return directory


def run(tmp_path, records, vocabulary, mode="whitespace", flags=()):
  return command_line.run(
    "align",
    [
      f"--records={records}",
      f"--vocabulary={vocabulary}",
      f"--mode={mode}",
      f"--output={tmp_path / 'out' / 'aligned.jsonl'}",
      f"--report={tmp_path / 'out' / 'report.json'}",
      *flags,
    ],
  )


def written(tmp_path):
  rows = (tmp_path / "out" / "aligned.jsonl").read_text().splitlines()
  report = (tmp_path / "out" / "report.json").read_text()
  return [json.loads(row) for row in rows], json.loads(report)


def fails(capsys, tmp_path, *arguments, message, **keywords):
  """Runs what must fail; checks status, the one sentence, and no leftovers."""
  assert run(tmp_path, *arguments, **keywords) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  (line,) = [x for x in captured.err.splitlines() if "error" in x]
  assert line.startswith("specialize align: error: ")
  assert message in line
  out = tmp_path / "out"
  assert not out.exists() or list(out.iterdir()) == []


@pytest.mark.parametrize("mode", ["whitespace", "chunk", "marginal"])
def test_rows_and_report_have_their_fixed_fields(
  tmp_path, records, vocabulary, mode, capsys
):
  keep = ("--keep_truncated",)
  assert run(tmp_path, records, vocabulary, mode, keep) == 0
  rows, report = written(tmp_path)
  assert [(row["question_id"], row["sample"]) for row in rows] == [
    ("q", 0),
    ("q", 1),
  ]
  for row in rows:
    assert set(row) == ROW_KEYS
    assert len(row["pieces"]) == len(row["targets"]) == len(row["mask"])
    assert row["pieces"] == list(trees.tiny_student().encode("Ann has")[1])
    for piece, target in zip(row["pieces"], row["targets"], strict=True):
      assert target[0][0] == piece
      assert sum(prob for _, prob in target) <= 1
  assert set(report) >= REPORT_KEYS
  assert report["positions"] == sum(len(row["mask"]) for row in rows)
  kinds = ("one_to_one", "in_chunks", "one_hot", "masked")
  assert sum(report[kind] for kind in kinds) == report["positions"]
  assert 0 <= report["teacher_mass_kept"] <= 1
  assert f"{mode}: 2 samples (0 rejected)" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["paper", "whitespace", "chunk", "marginal"])
def test_a_sample_that_was_cut_off_is_rejected_with_its_reason(
  tmp_path, records, vocabulary, mode
):
  assert run(tmp_path, records, vocabulary, mode) == 0
  rows, report = written(tmp_path)
  assert set(rows[1]) == {"question_id", "sample", "rejected"}
  assert "'length'" in rows[1]["rejected"]
  assert report["rejected"] == {rows[1]["rejected"]: 1}


def test_probabilities_are_written_as_the_source_had_them(
  tmp_path, records, vocabulary
):
  assert run(tmp_path, records, vocabulary) == 0
  (row, _), _ = written(tmp_path)
  assert row["pieces"] == ["\u2581", "Ann", "\u2581has"]
  assert row["targets"] == [
    [["\u2581", 0.8518]],
    [
      ["Ann", pytest.approx(0.6018 / 0.8518)],
      ["Bob", pytest.approx(0.25 / 0.8518)],
    ],
    [["\u2581has", 0.5]],
  ]
  assert row["mask"] == [1, 1, 1]


def test_the_papers_alignment_of_the_real_samples_is_written(tmp_path):
  source = real_files.find("codex", "gsm8k_train_0.json")
  vocabulary = real_files.find("tokenizers", "t5_spiece.model")
  assert run(tmp_path, source, vocabulary, "paper") == 0
  rows, report = written(tmp_path)
  entries = json.loads(source.read_bytes())
  assert len(rows) == len(entries) == 40
  for row, entry in zip(rows, entries, strict=True):
    assert row["question_id"] == entry["question_id"]
    assert row["sample"] == entry["sample"]
    assert row["targets"] == entry["paper_alignment"]
  assert report["positions"] == 1759
  assert report["one_to_one"] == sum(sum(row["mask"]) for row in rows)


def test_marginal_prints_the_likelihood_and_its_bounds(tmp_path, capsys):
  records = real_files.find("codex", "gsm8k_train_0.json")
  vocabulary = real_files.find("tokenizers", "t5_spiece.model")
  assert run(tmp_path, records, vocabulary, "marginal") == 0
  said = capsys.readouterr().out
  assert "the teacher's tokens -578.82, the targets -577.83, the" in said
  assert "without white space alone -566.28" in said
  _, report = written(tmp_path)
  low, found, high = report["log_likelihood"].values()
  assert low < found < high


def test_a_truncated_store_is_one_sentence(
  tmp_path, records, vocabulary, capsys
):
  file = records / store.FILE_NAME
  file.write_bytes(file.read_bytes()[:-10])
  fails(
    capsys, tmp_path, records, vocabulary, message="line 2, the last, is cut"
  )


def test_a_missing_or_foreign_vocabulary_is_one_sentence(
  tmp_path, records, capsys
):
  missing = tmp_path / "nowhere.model"
  fails(capsys, tmp_path, records, missing, message="does not exist")
  foreign = tmp_path / "foreign.model"
  foreign.write_text("hello")
  fails(capsys, tmp_path, records, foreign, message="no SentencePiece model")


def test_a_misspelled_record_is_one_sentence(tmp_path, vocabulary, capsys):
  path = tmp_path / "bad.jsonl"
  line = schema.to_json_line(make_record(0, text="Bob has"))
  path.write_text(schema.to_json_line(make_record(1)) + "\n" + line + "\n")
  fails(
    capsys, tmp_path, path, vocabulary, message="question 'q', sample 0: the"
  )


def test_an_empty_or_missing_store_is_one_sentence(
  tmp_path, vocabulary, capsys
):
  with store.RecordWriter(tmp_path / "empty"):
    pass
  fails(
    capsys,
    tmp_path,
    tmp_path / "empty",
    vocabulary,
    message="holds no record",
  )
  fails(capsys, tmp_path, tmp_path / "x", vocabulary, message="does not exist")


def test_an_unknown_mode_is_one_sentence(tmp_path, records, vocabulary, capsys):
  fails(
    capsys,
    tmp_path,
    records,
    vocabulary,
    mode="words",
    message="mode 'words' is unknown",
  )


def test_an_error_leaves_earlier_results_as_they_were(
  tmp_path, records, vocabulary
):
  assert run(tmp_path, records, vocabulary) == 0
  before = written(tmp_path)
  file = records / store.FILE_NAME
  file.write_bytes(file.read_bytes()[:-10])
  assert run(tmp_path, records, vocabulary) == 2
  assert written(tmp_path) == before
  assert sorted(os.listdir(tmp_path / "out")) == [
    "aligned.jsonl",
    "report.json",
  ]


def test_one_file_for_both_results_is_refused(tmp_path, records, vocabulary):
  same = str(tmp_path / "same.json")
  status = command_line.run(
    "align",
    [
      f"--records={records}",
      f"--vocabulary={vocabulary}",
      f"--output={same}",
      f"--report={same}",
    ],
  )
  assert status == 2


def test_the_module_runs_alone_and_the_help_is_light(
  tmp_path, records, vocabulary
):
  shutil.rmtree(tmp_path / "out", ignore_errors=True)
  command = [sys.executable, "-m", "specialize_jax.cli.align"]
  arguments = [
    f"--records={records}",
    f"--vocabulary={vocabulary}",
    f"--output={tmp_path / 'out' / 'aligned.jsonl'}",
    f"--report={tmp_path / 'out' / 'report.json'}",
  ]
  subprocess.run(command + arguments, check=True, capture_output=True)
  assert len(written(tmp_path)[0]) == 2
  shown = align.build_parser().format_help()
  assert "example" in shown
  light = "import sys, specialize_jax.cli.align as a; a.build_parser()"
  probe = f"{light}; print([m for m in ('numpy', 'jax') if m in sys.modules])"
  done = subprocess.run(
    [sys.executable, "-c", probe], check=True, capture_output=True, text=True
  )
  assert done.stdout.strip() == "[]"
