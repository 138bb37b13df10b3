"""Measures reading of a prepared dataset: cold start, and examples per second.

A process of its own imports everything, opens the dataset that
`bench/prepare.py` or `specialize prepare` wrote, and makes packed batches of
the four-format mixture, as `specialize train` does. Prints JSON: the seconds
from the start of the process to its first batch, source examples a second
after that (packed, prefetching and the thread that makes batches included),
and the process's peak memory. From the repository's root:

  python bench/read.py --data_dir=data --tfds_data_dir=tfds

`--compare` reads the same rows as text instead, example by example, with
seqio's own tokenization: what the batched formats replace.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

_LENGTHS = {"inputs": 2048, "targets": 512}


def main(argv):
  """Starts the process that is measured, and prints what it found."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--tfds_data_dir", required=True)
  parser.add_argument("--mixture", default="gsm8k_specialize_v1")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--seconds", type=float, default=20.0)
  parser.add_argument("--compare", action="store_true")
  parser.add_argument("--output")
  parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  if flags.started is not None:
    return _measure(flags)
  command = [sys.executable, __file__, *argv, f"--started={time.time()}"]
  return subprocess.run(command, check=False).returncode


def _measure(flags):
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from specialize_jax.cli import registered_tasks

  registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
  from specialize_jax.data import packing, pipeline
  from specialize_jax.files import writing

  imported = time.time() - flags.started
  mixture = _as_text() if flags.compare else flags.mixture
  iterator = pipeline.TrainIterator(
    mixture,
    task_feature_lengths=_LENGTHS,
    batch_size=flags.batch_size,
    seed=0,
  )
  batch = next(iterator)
  first = time.time() - flags.started
  _settle(iterator)
  before, start, cpu = _now(iterator)
  while time.perf_counter() - start < flags.seconds:
    batch = next(iterator)
  after, end, cpu_end = _now(iterator)
  examples = after - before
  result = {
    "mixture": mixture,
    "imported_seconds": round(imported, 2),
    "first_batch_seconds": round(first, 2),
    "examples": examples,
    "examples_per_second": round(examples / (end - start)),
    "cpu_microseconds_per_example": round(1e6 * (cpu_end - cpu) / examples),
    "padding": packing.padding_shares(batch),
    "checkpoint_bytes": len(iterator.state()),
    "peak_rss_gib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    ),
    "load_average": os.getloadavg()[0],
  }
  iterator.close()
  print(json.dumps(result, indent=2))
  if flags.output:
    pathlib.Path(flags.output).parent.mkdir(parents=True, exist_ok=True)
    writing.write_text(flags.output, json.dumps(result, indent=2) + "\n")
  return 0


def _settle(iterator, batches=20):
  """Passes over what a start costs once."""
  for _ in range(batches):
    next(iterator)


def _now(iterator):
  return iterator.counters.examples, time.perf_counter(), time.process_time()


def _as_text():
  """Registers the in-context prompts of GSM8K's own rows, read as text."""
  from specialize_jax.cot import formats
  from specialize_jax.data import (
    benchmarks,
    questions,
    sources,
    task_parts,
    vocabularies,
  )
  from specialize_jax.data.preprocessors import tokenize
  from tasks import mixtures

  rates = []
  for data_format in formats.FORMATS:
    name = f"bench_text_{data_format.name}"
    task_parts.add_once(
      name,
      **task_parts.pretraining(
        sources.TableSource(
          lambda split: questions.to_columns(benchmarks.read("gsm8k", split)),
          splits=["train"],
          description="GSM8K",
          salt=data_format.name,
        ),
        vocabularies.t5(),
        to_text=[
          task_parts.rendering(data_format, benchmarks.demonstrations),
          tokenize,
        ],
      ),
    )
    rates.append((name, 207.0 if data_format.chain_of_thought else 7.1))
  return mixtures.add_mixture("bench_text", rates)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
