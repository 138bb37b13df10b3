"""Every sample is stored once, whatever the server does and whoever dies."""

import random
import signal
import subprocess
import sys
import time

import pytest
from testdata import fault_server, local_teacher

from specialize_jax.cli import main
from specialize_jax.records import store

# A test must not wait as long as a server may.
QUICK = ("--timeout_seconds=2", "--max_attempts=12")


@pytest.fixture
def questions(tmp_path):
  return local_teacher.write_questions(tmp_path / "questions.jsonl", 30)


@pytest.fixture
def teach(tmp_path, questions, capsys):
  """Runs the command in this process; gives status, output and errors."""

  def run(base_url, *flags):
    argv = local_teacher.argv(base_url, questions, tmp_path / "store", *flags)
    status = main.main(["teach", *argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err

  run.store = tmp_path / "store"
  return run


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_sample_is_stored_once_and_graded(teach, endpoint):
  with local_teacher.started() as url:
    status, out, _ = teach(url, "--num_samples=4", f"--endpoint={endpoint}")
    assert status == 0
    records = local_teacher.check_whole(teach.store, 30, 4)
    right = sum(record.verdicts["fixed"] for record in records)
    assert f"120 of 120 samples; {right / 120:.1%} right" in out
    assert 0.5 < right / 120 < 0.9  # the server knows, and sometimes errs
    assert local_teacher.stats(url)["requests"] == 30
    (prompt,) = teach.store.glob("prompt-*.txt")
    assert "{question}" in prompt.read_text()
    request = records[0].request
    assert request["prompt"] in prompt.name
    assert request["temperature"] == 0.5
    body = local_teacher.stats(url)["first_body"]
    assert body["max_tokens"] == 256
    assert body.get("top_logprobs", body["logprobs"]) == 5


def test_what_is_there_is_not_asked_for_again(teach):
  with local_teacher.started() as url:
    assert teach(url, "--num_samples=2")[0] == 0
    before = local_teacher.stats(url)["asked"]
    assert teach(url, "--num_samples=2")[0] == 0
    assert local_teacher.stats(url)["asked"] == before
    assert teach(url, "--num_samples=5")[0] == 0
    local_teacher.check_whole(teach.store, 30, 5)
    assert set(local_teacher.stats(url)["delivered"].values()) == {5}


def test_every_fault_is_survived(teach):
  script = ",".join(name for name in fault_server.FAULTS for _ in range(2))
  with local_teacher.started(
    f"--script=ok,{script},wrong_types,wrong_types"
  ) as url:
    status, out, _ = teach(url, "--num_samples=4", *QUICK)
    assert status == 0
    local_teacher.check_whole(teach.store, 30, 4)
    assert set(local_teacher.stats(url)["faults"]) == set(fault_server.FAULTS)
    assert "asked again after:" in out
    for kind in ("HTTP 429 4", "timeout 2", "broken connection 4", "fewer"):
      assert kind in out


def test_no_sample_is_delivered_that_is_not_stored(teach):
  with local_teacher.started(
    "--fault_rate=0.3", "--stall_seconds=3", "--seed=3"
  ) as url:
    status, _, err = teach(
      url, "--num_samples=4", *QUICK, "--timeout_seconds=1"
    )
    assert status == 0, err
    local_teacher.check_whole(teach.store, 30, 4)
    assert set(local_teacher.stats(url)["delivered"].values()) == {4}


def _killed_again_and_again(base_url, questions, output, *, times, longest):
  """Runs the command, kills it at random moments, and lets it end."""
  rng = random.Random(1)
  flags = local_teacher.argv(
    base_url, questions, output, "--num_samples=4", "--concurrency=8", *QUICK
  )
  command = [sys.executable, "-m", "specialize_jax.cli.teach", *flags]
  kills = 0
  while kills < times:
    whole = _whole_questions(output)
    before = local_teacher.stats(base_url)["asked"]
    process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # The moment is counted from the first request: starting is no work.
    _wait_for_requests(base_url, process, sum(before.values()))
    time.sleep(rng.uniform(0, longest))
    process.send_signal(signal.SIGKILL)
    status = process.wait()
    _check_asked(base_url, before, whole)
    if status != -signal.SIGKILL:
      break
    kills += 1
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return kills


def _whole_questions(output):
  if not (output / store.FILE_NAME).exists():
    return set()
  lines = (output / store.FILE_NAME).read_bytes().splitlines(keepends=True)
  stored = [line for line in lines if line.endswith(b"\n")]
  ids = [
    int(line.split(b'"question_id": ')[1].split(b",")[0]) for line in stored
  ]
  return {i for i in ids if ids.count(i) == 4}


def _wait_for_requests(base_url, process, before):
  while process.poll() is None:
    if local_teacher.stats(base_url)["requests"] > before:
      return
    time.sleep(0.01)


def _check_asked(base_url, before, whole):
  """Checks that nobody asked for what was in the store."""
  asked = local_teacher.stats(base_url)["asked"]
  for i in whole:
    question = f"{i} + {i + 1}"
    assert asked[question] == before[question]


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path, questions):
  output = tmp_path / "store"
  with local_teacher.started(
    "--fault_rate=0.1", "--latency_seconds=0.2", "--faults=500,malformed,reset"
  ) as url:
    kills = _killed_again_and_again(
      url, questions, output, times=3, longest=0.3
    )
    assert kills >= 1
    local_teacher.check_whole(output, 30, 4)


@pytest.mark.slow
def test_two_thousand_questions_survive_every_fault_and_long_stalls(
  tmp_path, capsys
):
  questions = local_teacher.write_questions(tmp_path / "q.jsonl", 2000)
  output = tmp_path / "store"
  with local_teacher.started("--fault_rate=0.3", "--stall_seconds=60") as url:
    argv = local_teacher.argv(
      url, questions, output, "--num_samples=4", "--timeout_seconds=5"
    )
    status = main.main(["teach", *argv, "--max_attempts=15"])
    assert status == 0, capsys.readouterr().err
    local_teacher.check_whole(output, 2000, 4)
    stats = local_teacher.stats(url)
    assert set(stats["faults"]) == set(fault_server.FAULTS)
    assert set(stats["delivered"].values()) == {4}


@pytest.mark.slow
def test_two_thousand_questions_survive_twenty_kills(tmp_path):
  questions = local_teacher.write_questions(tmp_path / "q.jsonl", 2000)
  output = tmp_path / "store"
  with local_teacher.started(
    "--fault_rate=0.1", "--stall_seconds=3", "--latency_seconds=0.1"
  ) as url:
    kills = _killed_again_and_again(
      url, questions, output, times=20, longest=1.0
    )
    assert kills == 20
    local_teacher.check_whole(output, 2000, 4)
