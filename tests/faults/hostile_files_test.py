"""Files that a stranger made to hurt: each is one sentence, soon and in bounds.

Every case is a real process, whose time and memory are measured. A case ends
with status 2 and one sentence, or with 0 where the file does no harm; never
with a traceback, never in another's words, never late.
"""

import json
import pathlib
import pickle
import re
import struct

import pytest
from testdata import own_domain

from faults import reliability

pytestmark = [pytest.mark.faults, pytest.mark.slow]

MAX_CPU_SECONDS = 20
MAX_MIB = 1500  # more than an idle command has


class Folder:
  """A case's own folder, and what every case may read."""

  def __init__(self, path, bench):
    self.path, self.inputs = path, bench.inputs

  def write(self, name, content):
    """Writes a file; returns its path."""
    place = self.path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      content = content.encode("utf-8", "surrogatepass")
    place.write_bytes(content)
    return place

  def record(self):
    """A record that is right, without its checksum."""
    file = pathlib.Path(self.inputs.records) / "records.jsonl"
    row = json.loads(file.read_text().splitlines()[0])
    row.pop("specialize_crc32", None)
    return row

  def score(self, content):
    """Grades a file."""
    return [
      "score",
      "--task=gsm8k",
      f"--inputs={self.write('rows.jsonl', content)}",
      f"--output={self.path}/graded.jsonl",
    ]

  def align(self, records):
    """Aligns a file of records."""
    return [
      "align",
      f"--records={records}",
      f"--vocabulary={self.inputs.spiece}",
      "--mode=marginal",
      f"--output={self.path}/aligned.jsonl",
      f"--report={self.path}/report.json",
    ]

  def bring_in(self, pickled):
    """Imports the authors' four pickles, all with one content."""
    for name in ("questions", "answers", "predictions", "per_step_probs"):
      place = self.write(f"pickles/codex_{name}.pkl", pickled)
    return [
      "import",
      f"--input={place.parent}",
      f"--output={self.path}/store",
    ]


CASES = {}


def case(function):
  """Adds a case: it fills a folder and returns the command's words."""
  CASES[function.__name__.replace("_", " ")] = function
  return function


@case
def a_row_of_a_hundred_megabytes(here):
  return here.score('{"target": "1", "prediction": "' + "1" * 10**8 + '"}\n')


@case
def a_row_of_a_hundred_megabytes_without_an_end(here):
  return here.score("[" * 10**8)


@case
def a_row_nested_a_hundred_thousand_deep(here):
  return here.score('{"a":' * 10**5 + "1" + "}" * 10**5 + "\n")


@case
def a_number_of_a_million_digits(here):
  return here.score('{"prediction": ' + "9" * 10**6 + ', "target": "1"}\n')


@case
def rows_that_are_a_device_without_end(here):
  (here.path / "endless").symlink_to("/dev/zero")
  flags = ["--task=gsm8k", f"--inputs={here.path}/endless"]
  return ["score", *flags, f"--output={here.path}/graded.jsonl"]


@case
def a_record_whose_probabilities_are_nonsense(here):
  row = here.record()
  row["steps"][0]["p"] = 1e308
  return here.align(here.write("records.jsonl", json.dumps(row) + "\n"))


@case
def a_record_of_one_step_with_a_whole_vocabulary(here):
  row = here.record()
  row["steps"][0]["top"] += [[f"x{n}", -20.0] for n in range(100_000)]
  return here.align(here.write("records.jsonl", json.dumps(row) + "\n"))


@case
def a_pickle_that_claims_an_exabyte(here):
  claims = b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc"
  return here.bring_in(claims)


@case
def a_pickle_that_doubles_itself(here):
  value = ["a"]
  for _ in range(60):
    value = [value, value]
  return here.bring_in(pickle.dumps(value))


@case
def a_pickle_of_a_set_of_equal_hashes(here):
  modulus = 2**61 - 1
  numbers = {n * modulus for n in range(4_000)}
  return here.bring_in(pickle.dumps(numbers))


def _dataset(here, change):
  own_domain.write(here.path, own_domain.YAML)
  place = here.path / "queues.yaml"
  place.write_text(change(place.read_text()))
  return ["inspect", f"--dataset={place}"]


@case
def yaml_aliases_that_double(here):
  bomb = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)
  )
  return _dataset(here, lambda text: bomb + text)


@case
def yaml_that_holds_itself(here):
  return _dataset(here, lambda text: text + "general: &a [*a]\n")


@case
def yaml_nested_deeply(here):
  return _dataset(here, lambda text: text + "general: " + "[" * 50_000)


@case
def yaml_that_calls_python(here):
  attack = f"general: !!python/object/apply:os.system ['touch {here.path}/ran']"
  return _dataset(here, lambda text: f"{text}{attack}\n")


@case
def a_dataset_that_reads_a_device_without_end(here):
  return _dataset(
    here, lambda text: text.replace("train.jsonl", "/dev/zero", 1)
  )


def _results(here, log="", **changes):
  """A report on the results of a demo, with some fields changed."""
  scores = {"mini_svamp": {"accuracy": 0.25, "n": 4}}
  whole = {"before": scores, "after": scores, "general": []} | changes
  place = here.write("results/results.json", json.dumps(whole)).parent
  here.write("results/specialize/metrics.jsonl", log)
  return ["report", f"--results_dir={place}"]


@case
def results_of_a_hundred_thousand_tasks(here):
  scores = {f"task{n}": {"accuracy": 0.5, "n": 4} for n in range(100_000)}
  return _results(here, before=scores, after=scores)


@case
def results_beyond_all_numbers(here):
  scores = {"mini_svamp": {"accuracy": 1e308, "n": 10**400}}
  return _results(here, before=scores, after=scores)


@case
def results_of_other_types(here):
  scores = {"mini_svamp": {"accuracy": [[]], "n": {"a": "b"}}}
  return _results(here, before=scores, after={"mini_svamp": None})


@case
def a_log_of_steps_beyond_all(here):
  row = {"step": 10**18, "group": "train", "values": {"loss": 1e308}}
  rows = [row, row | {"step": -1}, row | {"values": {"loss": "x" * 10**6}}]
  return _results(here, "".join(json.dumps(one) + "\n" for one in rows))


@case
def a_log_of_two_hundred_thousand_names(here):
  row = {"step": 1, "group": "train"}
  row["values"] = {f"name{n}": 1.0 for n in range(200_000)}
  return _results(here, json.dumps(row) + "\n")


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_one_sentence_soon_and_in_bounds(
  name, bench, tmp_path, record
):
  here = Folder(tmp_path, bench)
  words = CASES[name](here)
  before = {place for place in tmp_path.rglob("*") if place.is_file()}
  ended = bench.server.run(words, seconds=120, memory_gib=9)
  assert ended.status in (0, 2), (ended.status, ended.stderr[-3000:])
  assert "Traceback" not in ended.stderr, ended.stderr[-3000:]
  assert "panicked" not in ended.stderr, ended.stderr[-3000:]
  assert ended.cpu_seconds < MAX_CPU_SECONDS
  idle = bench.server.idle_mib()
  assert ended.peak_mib < idle + MAX_MIB
  assert not (tmp_path / "ran").exists()
  if ended.status == 2:
    assert len(ended.last_line) < 2000
    assert ": error: " in ended.stderr
    made = {place for place in tmp_path.rglob("*") if place.is_file()}
    assert made == before
  said = ended.stderr.partition(": error: ")[2].partition(": error: ")[0]
  said = " ".join(said.split())
  said = re.sub(r"/\S*/", "", said)
  said = said if len(said) < 110 else f"{said[:107]}..."
  record(reliability.FILES, name, f"status {ended.status}", said)
