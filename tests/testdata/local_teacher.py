"""Starts the fault-injecting teacher, and checks what a store holds of it."""

import contextlib
import json
import pathlib
import subprocess
import sys
import urllib.request

from specialize_jax.records import store

_PROGRAM = pathlib.Path(__file__).with_name("fault_server.py")


@contextlib.contextmanager
def started(*flags):
  """Runs a server; gives its address, as `--base_url` takes it."""
  process = subprocess.Popen(
    [sys.executable, _PROGRAM, *flags], stdout=subprocess.PIPE, text=True
  )
  try:
    yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
  finally:
    process.kill()
    process.wait()


def stats(base_url):
  """The requests and responses of the server."""
  with urllib.request.urlopen(base_url.replace("/v1", "/stats")) as answer:
    return json.load(answer)


def write_questions(path, num_questions):
  """Writes sums as questions and gives the file."""
  rows = [
    {"question": f"What is {i} + {i + 1}?", "answer": str(2 * i + 1)}
    for i in range(num_questions)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def argv(base_url, questions, output, *flags):
  """Returns the command's arguments."""
  return [
    f"--base_url={base_url}",
    f"--questions={questions}",
    f"--output={output}",
    "--model=local",
    *flags,
  ]


def check_whole(output, num_questions, num_samples):
  """Checks that every sample is there once, whole, unlike any other."""
  records = list(store.read_records(output))
  places = [(record.question_id, record.sample) for record in records]
  assert len(places) == len(set(places))
  assert set(places) == {
    (question, sample)
    for question in range(num_questions)
    for sample in range(num_samples)
  }
  # The server numbers its samples: none was stored twice.
  assert len({record.text for record in records}) == len(records)
  for record in records:
    i = record.question_id
    assert f"\n{i} + {i + 1} = " in record.text
    right = record.text.endswith(f" {2 * i + 1}")
    assert record.verdicts == {"fixed": right, "paper_code": right}
    assert len(record.steps) > 5
    assert all(len(step.top) == 5 for step in record.steps)
  return records
