"""A server of others: llama.cpp's, with a tiny random model.

pip install 'llama-cpp-python[server]' gguf
python -m pytest -m third_party tests/teacher/llama_cpp_test.py
"""

import contextlib
import json
import math
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from testdata import local_teacher, tiny_gguf

from specialize_jax.cli import main
from specialize_jax.records import store

pytestmark = pytest.mark.third_party
NUM_QUESTIONS = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  pytest.importorskip("llama_cpp.server", reason="llama-cpp-python[server]")
  pytest.importorskip("gguf")
  return tiny_gguf.write(tmp_path_factory.mktemp("model") / "tiny.gguf")


@contextlib.contextmanager
def served(model, log_path, *flags):
  """Runs llama.cpp's own server on a free port; gives its base URL."""
  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
  url = f"http://127.0.0.1:{port}/v1"
  with log_path.open("w") as log:
    process = subprocess.Popen(
      [
        *(sys.executable, "-m", "llama_cpp.server", f"--model={model}"),
        *(f"--port={port}", "--host=127.0.0.1", f"--n_ctx={tiny_gguf.CONTEXT}"),
        *("--n_threads=1", "--chat_format=chatml", *flags),
      ],
      stdout=log,
      stderr=log,
    )
  try:
    deadline = time.monotonic() + 60
    while not _answers(f"{url}/models"):
      assert process.poll() is None, log_path.read_text()
      assert time.monotonic() < deadline, log_path.read_text()
      time.sleep(0.1)
    yield url
  finally:
    process.kill()
    process.wait()


def _answers(url):
  try:
    with urllib.request.urlopen(url, timeout=5):
      return True
  except (urllib.error.URLError, ConnectionError, TimeoutError):
    return False


@pytest.fixture
def questions(tmp_path):
  return local_teacher.write_questions(tmp_path / "q.jsonl", NUM_QUESTIONS)


def ask(url, questions, output, *flags):
  argv = local_teacher.argv(url, questions, output, *flags)
  return main.main(["teach", *argv, "--max_tokens=30"])


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_its_samples_are_stored_whole(model, tmp_path, questions, endpoint):
  output = tmp_path / "store"
  with served(model, tmp_path / "log", "--logits_all=true") as url:
    flags = (f"--endpoint={endpoint}", "--num_samples=3", "--temperature=1")
    assert ask(url, questions, output, *flags) == 0
  records = list(store.read_records(output))
  assert len(records) == NUM_QUESTIONS * 3
  assert len({(r.question_id, r.sample) for r in records}) == len(records)
  assert len({r.text for r in records}) > NUM_QUESTIONS  # they are samples
  for record in records:
    assert b"".join(s.spelling for s in record.steps) == record.text.encode()
    assert record.request["endpoint"] == endpoint
    assert record.verdicts.keys() == {"fixed", "paper_code"}
    for step in record.steps:
      # Five alternatives, and the sampled token where it is none of them.
      assert 5 <= len(step.top) <= 6
      assert dict(step.top)[step.token] == pytest.approx(step.log_prob)
      assert math.fsum(math.exp(p) for _, p in step.top) <= 1 + 1e-6


def test_greedy_samples_are_the_likeliest_tokens(model, tmp_path, questions):
  output = tmp_path / "store"
  flags = ["--num_samples=1", "--temperature=0"]
  # By itself the server makes tokens that were said before less likely; its
  # log-probabilities are from before that.
  flags.append('--extra_body={"repeat_penalty": 1.0}')
  with served(model, tmp_path / "log", "--logits_all=true") as url:
    assert ask(url, questions, output, *flags) == 0
  records = list(store.read_records(output))
  assert len(records) == NUM_QUESTIONS
  for record in records:
    for step in record.steps:
      likeliest, log_prob = max(step.top, key=lambda one: one[1])
      assert step.log_prob == pytest.approx(log_prob)
      assert step.token == likeliest


def test_without_logits_it_says_how_to_turn_them_on(
  model, tmp_path, questions, capsys
):
  start = time.monotonic()
  with served(model, tmp_path / "log", "--logits_all=false") as url:
    for endpoint in ("completions", "chat"):
      output = tmp_path / endpoint
      assert ask(url, questions, output, f"--endpoint={endpoint}") == 2
      said = capsys.readouterr().err
      assert "logprobs is not supported" in said
      assert "--logits_all true" in said
      assert not output.exists()
  assert time.monotonic() - start < 60


def test_a_prompt_that_does_not_fit_stops_in_its_own_words(
  model, tmp_path, capsys
):
  questions = tmp_path / "q.jsonl"
  question = {"question": "word " * tiny_gguf.CONTEXT, "answer": "1"}
  questions.write_text(json.dumps(question) + "\n")
  with served(model, tmp_path / "log", "--logits_all=true") as url:
    assert ask(url, questions, tmp_path / "store") == 2
  assert "maximum context length" in capsys.readouterr().err
