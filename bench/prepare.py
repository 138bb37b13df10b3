"""Measures the time to prepare a dataset from a record store, and its size.

Makes up a store of the paper's size (see `synthetic_store.py`), unless it is
there, and runs `specialize prepare` on it as a process of its own. Prints
JSON: seconds, samples a second, bytes on disk a target token (all of the
dataset's files, questions included), and the process's peak memory. From the
repository's root:

  python bench/prepare.py --work_dir=/tmp/prepare --num_samples=207000
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import synthetic_store
from testdata import real_files

from specialize_jax.files import writing


def main(argv):
  """Writes the store, measures the command, prints one JSON object."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--work_dir", required=True)
  parser.add_argument("--num_samples", type=int, default=207_000)
  parser.add_argument("--target_tokens", type=int, default=100)
  parser.add_argument("--mode", default="whitespace")
  parser.add_argument("--only_write", action="store_true")
  parser.add_argument("--output")
  flags = parser.parse_args(argv)
  work_dir = pathlib.Path(flags.work_dir)
  records = synthetic_store.write(
    work_dir / "records",
    num_samples=flags.num_samples,
    target_tokens=flags.target_tokens,
  )
  if flags.only_write:
    return 0
  result = {
    **{name: getattr(flags, name) for name in ("num_samples", "mode")},
    "store_gib": round(_bytes_of(records) / 2**30, 3),
    **_prepare(flags.mode, records, work_dir),
    "load_average": os.getloadavg()[0],
  }
  print(json.dumps(result, indent=2))
  if flags.output:
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")
  return 0


def _prepare(mode, records, work_dir):
  command = [sys.executable, "-m", "specialize_jax.cli.main", "prepare"]
  report_path = work_dir / "report.json"
  flags = {
    "records": records,
    "vocabulary": real_files.find("tokenizers", "t5_spiece.model"),
    "questions": real_files.find("gsm8k", "train.jsonl"),
    "mode": mode,
    "data_dir": work_dir / "tfds",
    "report": report_path,
  }
  start = time.perf_counter()
  subprocess.run(
    [*command, *(f"--{name}={value}" for name, value in flags.items())],
    check=True,
    stdout=subprocess.DEVNULL,
  )
  seconds = time.perf_counter() - start
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  report = json.loads(report_path.read_text())
  dataset_bytes = _bytes_of(work_dir / "tfds" / "gsm8k_teacher")
  return {
    "seconds": round(seconds, 1),
    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
    "samples_per_second": round(report["kept"] / seconds),
    "kept": report["kept"],
    "target_tokens": report["positions"],
    "dataset_gib": round(dataset_bytes / 2**30, 3),
    "bytes_per_target_token": round(dataset_bytes / report["positions"], 2),
    "peak_rss_gib": round(used.ru_maxrss / 2**20, 3),
  }


def _bytes_of(folder):
  files = pathlib.Path(folder).rglob("*")
  return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
