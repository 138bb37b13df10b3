"""Measures reading of a prepared dataset: cold start, and examples per second.

A process of its own imports everything, opens the dataset that
`bench/prepare.py` or `specialize prepare` wrote, and makes packed batches of
the four-format mixture, as `specialize train` does. Prints JSON: the seconds
from the start of the process to its first batch, source examples a second
after that (packed, prefetching and the thread that makes batches included),
and the process's peak memory. From the repository's root:

  python bench/read.py --data_dir=data --tfds_data_dir=tfds

`--hosts 1 2 4` measures as many processes at a time, each with its own rows of
the same global batches, as the hosts of a pod have: global examples a second of
the slowest, and the processor time that each spends for one of them. What does
not fall with their number is what all of them do: draw and pack by lengths.
With fewer cores than processes the processor time tells, not the seconds.

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
  parser.add_argument("--batches", type=int, default=200)
  parser.add_argument("--compare", action="store_true")
  parser.add_argument("--hosts", type=int, nargs="+", default=[1])
  parser.add_argument("--output")
  parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
  parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
  flags = parser.parse_args(argv)
  if flags.started is not None:
    print(json.dumps(_measure(flags)))
    return 0
  results = [_together(argv, num_hosts) for num_hosts in flags.hosts]
  text = json.dumps(results, indent=2)
  print(text)
  if flags.output:
    path = pathlib.Path(flags.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
  return 0


def _together(argv, num_hosts):
  """Runs the processes of so many hosts at a time; returns what they found."""
  processes = [
    subprocess.Popen(
      [
        *(sys.executable, __file__, *argv, f"--hosts={num_hosts}"),
        *(f"--host={host}", f"--started={time.time()}"),
      ],
      stdout=subprocess.PIPE,
      text=True,
    )
    for host in range(num_hosts)
  ]
  outputs = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    raise SystemExit(f"a process of {num_hosts} failed")
  found = [json.loads(output) for output in outputs]
  digests = {one.pop("digest") for one in found}
  if len(digests) > 1:
    raise SystemExit(f"processes read different batches: {digests}")
  name = "cpu_microseconds_per_example"
  return {
    "hosts": num_hosts,
    "examples_per_second": min(one["examples_per_second"] for one in found),
    name: [one.pop(name) for one in found],
    "first": found[0],
  }


def _measure(flags):
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from specialize_jax.cli import registered_tasks

  registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
  from specialize_jax.data import packing, pipeline

  imported = time.time() - flags.started
  mixture = _as_text() if flags.compare else flags.mixture
  iterator = pipeline.TrainIterator(
    mixture,
    task_feature_lengths=_LENGTHS,
    batch_size=flags.batch_size,
    seed=0,
    rows=range(flags.host, flags.batch_size, *flags.hosts),
    sums_up=True,
  )
  batch = next(iterator)
  first = time.time() - flags.started
  _settle(iterator)
  before, start, cpu = _now(iterator)
  for _ in range(flags.batches):
    batch = next(iterator)
  after, end, cpu_end = _now(iterator)
  examples = after - before
  result = {
    "digest": iterator.digest(),
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
  return result


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
