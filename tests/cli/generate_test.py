"""`specialize generate` from a folder of transformers to a file of rows."""

import codecs
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import transformers
from testdata import own_domain, recorded, tiny_vocabulary

from specialize_jax.cli import main
from specialize_jax.cot import answer_rules, answers

NUM_ROWS = 40
VOCAB_SIZE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random T5 1.1 as transformers saves it, a vocabulary beside it."""

  def write(path):
    torch = recorded.torch()
    torch.manual_seed(0)
    theirs = transformers.T5ForConditionalGeneration(
      transformers.T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=16,
        d_kv=6,
        d_ff=24,
        num_heads=2,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
      )
    )
    theirs.lm_head.weight = torch.nn.Parameter(torch.randn(VOCAB_SIZE, 16))
    theirs.save_pretrained(path)

  path = tmp_path_factory.mktemp("model") / "folder"
  recorded.folder("generate/folder", write, path)
  (path / "spiece.model").write_bytes(tiny_vocabulary.model())
  return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  """Texts and ids of many lengths, some to be scored."""
  rng = np.random.default_rng(1)
  path = tmp_path_factory.mktemp("inputs") / "inputs.jsonl"
  with path.open("w") as stream:
    for number in range(NUM_ROWS):
      row = {"id": f"q{number}"}
      if number % 3 == 0:
        row["text"] = " ".join(rng.choice(["ab", "cd", "12", "3"], 1 + number))
      else:
        row["input_ids"] = rng.integers(3, 29, 1 + number).tolist()
      if number % 5 == 4:
        row["target_ids"] = [7, 8, 1]
      elif number % 7 == 6:
        row["target"] = "ab 12"
      stream.write(json.dumps(row) + "\n")
  return path


def run(folder, inputs, outputs, *flags):
  return main.main(
    [
      "generate",
      f"--checkpoint={folder}",
      f"--inputs={inputs}",
      f"--outputs={outputs}",
      "--max_new_tokens=6",
      *flags,
    ]
  )


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _theirs(folder, rows):
  """Greedy outputs by id, and the log-probabilities of row 4's target."""
  torch = recorded.torch()
  model = transformers.T5ForConditionalGeneration.from_pretrained(folder)
  found = {}
  for row in rows:
    if "input_ids" in row and not {"target", "target_ids"} & row.keys():
      output = model.generate(
        torch.tensor([row["input_ids"]]), max_new_tokens=6, do_sample=False
      )
      found[row["id"]] = output[0, 1:].numpy()
  with torch.no_grad():
    logits = model(
      input_ids=torch.tensor([rows[4]["input_ids"]]),
      labels=torch.tensor([rows[4]["target_ids"]]),
    ).logits
  log_probs = torch.log_softmax(logits[0], dim=-1)[range(3), [7, 8, 1]]
  return found | {"target": log_probs.numpy()}


def test_rows_come_out_in_order_as_transformers_says(folder, inputs, tmp_path):
  outputs = tmp_path / "outputs.jsonl"
  assert run(folder, inputs, outputs, "--batch_size=8", "--log_probs") == 0
  given, rows = read(inputs), read(outputs)
  assert [row["id"] for row in rows] == [row["id"] for row in given]
  vocabulary = tiny_vocabulary.load()
  theirs = recorded.arrays("generate/outputs", lambda: _theirs(folder, given))
  for row in rows:
    if "input_ids" not in row or "output_ids" not in row:
      continue
    assert row["output_ids"] == theirs[row["id"]].tolist()
    assert row["output"] == vocabulary.decode(row["output_ids"])
    assert len(row["output_log_probs"]) == len(row["output_ids"])
  np.testing.assert_allclose(
    rows[4]["target_log_probs"], theirs["target"], atol=1e-4
  )
  for row in rows:
    scored = "target_ids" in row or "target" in row
    assert ("target_log_probs" in row) == scored
    assert ("output_ids" in row) != scored
    assert scored or len(row["output_ids"]) <= 6
  assert len(rows[4]["target_log_probs"]) == 3
  num_target = len(vocabulary.encode("ab 12")) + 1
  assert len(rows[6]["target_log_probs"]) == num_target


def test_the_batch_size_changes_no_output(folder, inputs, tmp_path):
  one, other = tmp_path / "8.jsonl", tmp_path / "16.jsonl"
  assert run(folder, inputs, one, "--batch_size=8") == 0
  assert run(folder, inputs, other, "--batch_size=16") == 0
  for row, twin in zip(read(one), read(other), strict=True):
    probs = [r.pop("target_log_probs", 0) for r in (row, twin)]
    assert row == twin
    np.testing.assert_allclose(*probs, atol=1e-5)


def test_samples_vote_with_the_calculator(folder, inputs, tmp_path):
  outputs = tmp_path / "outputs.jsonl"
  flags = ("--strategy=sample", "--num_samples=3", "--self_consistency")
  assert run(folder, inputs, outputs, *flags, "--calculator") == 0
  row = read(outputs)[0]
  assert len(row["outputs"]) == 3
  assert "voted_answer" in row
  assert sum(row["vote_shares"].values()) in (0, pytest.approx(1.0))


_VOTING = ("--strategy=sample", "--num_samples=6", "--self_consistency")


@pytest.mark.parametrize("given", ["checkpoint", "flag"])
def test_samples_vote_by_the_rule_of_the_dataset(
  folder, tmp_path, monkeypatch, given
):
  monkeypatch.chdir(tmp_path)
  yaml = own_domain.YAML.replace("queue: (?P", "(?P")
  flags = _VOTING
  if given == "flag":
    own_domain.write(tmp_path, yaml)
    flags = (*flags, "--dataset=queues.yaml")
  else:  # as `convert` leaves it; its sets are not there
    folder = shutil.copytree(folder, tmp_path / "folder")
    (folder / "dataset.yaml").write_text(yaml)
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"text": "ab 12"}\n{"question": "cd"}\n')
  assert run(folder, inputs, outputs, *flags) == 0
  rule = answer_rules.AnswerRule(kind="regex", pattern="(?P<answer>[a-z]+)")
  rows = read(outputs)
  assert any(row["vote_shares"] for row in rows)
  for row in rows:
    found = [rule.read(one["output"]) for one in row["outputs"]]
    voted = {one for one in found if one}
    assert row["vote_shares"].keys() == voted
    assert row["voted_answer"] in (voted or {None})


@pytest.mark.parametrize(
  ("answer", "words"),
  [
    ("python:os.system", "a Python function, which the file in a checkpoint"),
    ("contains", "answer: contains looks for the gold answer in a text"),
  ],
)
def test_a_rule_by_which_none_can_vote_is_one_sentence(
  folder, tmp_path, capsys, answer, words
):
  folder = shutil.copytree(folder, tmp_path / "folder")
  yaml = own_domain.YAML.replace("{regex: 'queue: (?P<answer>[a-z]+)'}", answer)
  (folder / "dataset.yaml").write_text(yaml)
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"question": "cd"}\n')
  assert run(folder, inputs, outputs, *_VOTING) == 2
  assert words in capsys.readouterr().err
  assert not outputs.exists()
  # A question is written in the file's words, whatever finds its answer.
  assert run(folder, inputs, outputs) == 0


@pytest.mark.parametrize(
  "flags",
  [(), ("--strategy=sample", "--num_samples=3", "--self_consistency")],
)
def test_score_grades_what_generate_wrote(folder, tmp_path, capsys, flags):
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"text": "ab 12", "answer": "7", "id": 3}\n' * 2)
  assert run(folder, inputs, outputs, *flags) == 0
  graded = tmp_path / "graded.jsonl"
  arguments = [f"--inputs={outputs}", f"--output={graded}"]
  assert main.main(["score", "--task=gsm8k", *arguments]) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["n"] == 2
  for row, made in zip(read(graded), read(outputs), strict=True):
    assert row["answer"] == "7"
    assert row.items() >= made.items()
    assert row["correct"] == answers.grade(made["output"], "7").correct


def test_what_was_scored_and_not_decoded_has_nothing_to_grade(
  folder, tmp_path, capsys
):
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"text": "ab 12", "target": "7"}\n')
  assert run(folder, inputs, outputs) == 0
  graded = tmp_path / "graded.jsonl"
  arguments = [f"--inputs={outputs}", f"--output={graded}"]
  assert main.main(["score", "--task=gsm8k", *arguments]) == 2
  assert 'call the gold answer "answer"' in capsys.readouterr().err
  assert not graded.exists()


def test_a_beams_hypotheses_are_listed(folder, inputs, tmp_path):
  outputs = tmp_path / "outputs.jsonl"
  flags = ("--strategy=beam", "--num_beams=3", "--num_return_sequences=2")
  assert run(folder, inputs, outputs, *flags) == 0
  row = read(outputs)[1]
  assert row["outputs"][0]["output_ids"] == row["output_ids"]
  assert row["outputs"][0]["score"] >= row["outputs"][1]["score"]


def test_a_second_start_has_nothing_to_do_and_another_is_refused(
  folder, inputs, tmp_path, capsys
):
  outputs = tmp_path / "outputs.jsonl"
  assert run(folder, inputs, outputs) == 0
  before = outputs.read_bytes()
  assert run(folder, inputs, outputs, "--batch_size=16") == 0
  assert "40 of 40 rows are there already" in capsys.readouterr().err
  assert run(folder, inputs, outputs, "--strategy=sample") == 2
  error = capsys.readouterr().err
  assert "was begun with --strategy=greedy, and now it is sample" in error
  assert outputs.read_bytes() == before
  # What a kill may leave: the last row in halves.
  outputs.write_bytes(before[:-20])
  assert run(folder, inputs, outputs) == 0
  assert outputs.read_bytes() == before
  changed = ("--strategy=sample", "--seed=1", "--overwrite")
  assert run(folder, inputs, outputs, *changed) == 0


def test_rows_of_another_model_in_the_same_place_are_not_gone_on_from(
  folder, inputs, tmp_path, capsys
):
  """As of one that is trained or converted anew between a kill and a rerun."""
  place, outputs = tmp_path / "model", tmp_path / "outputs.jsonl"
  shutil.copytree(folder, place)
  assert run(place, inputs, outputs) == 0
  before = outputs.read_bytes()
  tensors = safetensors.numpy.load_file(place / "model.safetensors")
  tensors = {name: -value for name, value in tensors.items()}
  file = place / "model.safetensors"
  written = file.stat()
  safetensors.numpy.save_file(tensors, file, {"format": "pt"})
  os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
  outputs.write_bytes(before[:-20])
  assert run(place, inputs, outputs) == 2
  assert "was begun with the checkpoint's fingerprint=" in (
    capsys.readouterr().err
  )
  assert run(place, inputs, outputs, "--overwrite") == 0
  assert outputs.read_bytes() != before


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_an_unbroken_one(
  folder, inputs, tmp_path
):
  many = tmp_path / "many.jsonl"
  many.write_text(inputs.read_text() * 20)
  whole, outputs = tmp_path / "whole.jsonl", tmp_path / "outputs.jsonl"

  def start(path):
    return subprocess.Popen(
      [sys.executable, "-m", "specialize_jax.cli.generate"]
      + [f"--checkpoint={folder}", f"--inputs={many}", f"--outputs={path}"]
      + ["--max_new_tokens=6", "--batch_size=8", "--strategy=sample"],
      cwd=pathlib.Path(__file__).parents[2],
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )

  assert start(whole).wait(timeout=300) == 0
  kills = 0
  for _ in range(20):
    process = start(outputs)
    size = outputs.stat().st_size if outputs.exists() else 0
    limit = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit:
      time.sleep(0.02)
      if outputs.exists() and outputs.stat().st_size > size + 50_000:
        process.send_signal(signal.SIGKILL)
    if process.wait() == 0:
      break
    kills += 1
  assert kills >= 2
  assert outputs.read_bytes() == whole.read_bytes()
  assert len(read(outputs)) == 20 * NUM_ROWS


@pytest.mark.parametrize(
  ("line", "flags", "sentence"),
  [
    ('{"text": "ab"', (), "line 2 is not JSON"),
    ('{"prompt": "ab"}', (), 'line 2 has no "question", "text" or "input_ids"'),
    ('{"question": 3}', (), "line 2: \"question\" is '3', and must be"),
    ('{"text": "ab"}', ("--format=zero_shot_answer_only",), "no row of"),
    ('{"input_ids": [64]}', (), 'line 2: "input_ids" holds 64'),
    ('{"input_ids": [5, 5, 5]}', ("--max_input_length=2",), "has 3 tokens"),
    ('{"text": "ab"}', ("--num_samples=2",), "it needs strategy=sample"),
    ('{"text": "ab"}', ("--top_k=3",), "goes with --strategy=sample"),
    ('{"text": "ab"}', ("--length_penalty=2",), "goes with --strategy=beam"),
    ('{"text": "ab"}', ("--mesh=fsdp",), "--mesh=fsdp: 'fsdp' is not one of"),
    ('{"text": "ab"}', ("--batch_size=6",), "--batch_size=6 cannot be split"),
    ('{"text": "ab"}', ("--vocabulary=none.model",), "none.model does not ex"),
    ('{"text": "ab"}', ("--checkpoint=nowhere",), "nowhere"),
  ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
  folder, tmp_path, capsys, line, flags, sentence
):
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"input_ids": [5]}\n' + line + "\n")
  assert run(folder, inputs, outputs, *flags) == 2
  error = capsys.readouterr().err
  assert sentence in error
  assert error.startswith("specialize generate: error: ")
  assert not list(tmp_path.glob("out*"))


def test_cut_inputs_are_counted(folder, tmp_path, capsys):
  inputs, outputs = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  inputs.write_text('{"input_ids": [5, 6, 7]}\n{"input_ids": [5]}\n')
  flags = ("--max_input_length=2", "--truncate")
  assert run(folder, inputs, outputs, *flags) == 0
  assert "cut 1 of 2 inputs to their first 2 tok" in capsys.readouterr().err
  assert read(outputs)[0]["input_ids"] == [5, 6, 7]


def test_a_vocabulary_of_another_size_is_an_error(folder, tmp_path, capsys):
  # The embedding alone gets more rows than the vocabulary has pieces.
  other = tmp_path / "other"
  other.mkdir()
  for file in folder.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  tensors = safetensors.numpy.load_file(other / "model.safetensors")
  for name in ("shared.weight", "lm_head.weight"):
    tensors[name] = np.tile(tensors[name], (8, 1))
  safetensors.numpy.save_file(tensors, other / "model.safetensors")
  config = json.loads((other / "config.json").read_text())
  (other / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
  inputs = tmp_path / "in.jsonl"
  inputs.write_text('{"text": "ab"}\n')
  assert run(other, inputs, tmp_path / "out.jsonl") == 2
  assert "has 29 pieces, and the model has 512" in capsys.readouterr().err


def test_inputs_saved_on_windows_are_decoded_as_any(folder, tmp_path):
  rows = '{"text": "ab 12"}\n{"text": "cd"}\n'
  plain, saved = tmp_path / "plain.jsonl", tmp_path / "saved.jsonl"
  plain.write_text(rows)
  saved.write_bytes(codecs.BOM_UTF8 + rows.replace("\n", "\r\n").encode())
  for inputs in (plain, saved):
    assert run(folder, inputs, inputs.with_suffix(".out")) == 0
  assert read(saved.with_suffix(".out")) == read(plain.with_suffix(".out"))


def test_an_empty_or_equal_file_is_an_error(folder, tmp_path, capsys):
  inputs = tmp_path / "in.jsonl"
  inputs.write_text("\n")
  assert run(folder, inputs, tmp_path / "out.jsonl") == 2
  assert "has no rows" in capsys.readouterr().err
  assert run(folder, inputs, inputs) == 2
  assert "--inputs and --outputs are both" in capsys.readouterr().err
