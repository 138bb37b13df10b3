"""Measures reading of a prepared dataset: cold start, and examples per second.

A process of its own imports everything, opens the dataset that
`bench/prepare.py` or `specialize prepare` wrote, and makes packed batches of
the four-format mixture, as `specialize train` does. Prints JSON: the seconds
from the start of the process to its first batch, source examples a second
after that (packed, prefetching and the thread that makes batches included),
and the process's peak memory. From the repository's root:

  python bench/read.py --data_dir=data --tfds_data_dir=tfds

`--hosts 1 2 4` measures as many processes at a time, each with a block of rows
of the same global batches, as the hosts of a pod have: global examples a second
of the slowest, and the processor time that each spends for one of them. With
fewer cores than processes the processor time tells, not the seconds. That all
numbers of hosts read the same batches is checked by their checksums.

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
# Rows passed over, with what a start costs once.
_SETTLED_ROWS = 640


def main(argv):
  """Starts the process that is measured, and prints what it found."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--data_dir", required=True)
  parser.add_argument("--tfds_data_dir", required=True)
  parser.add_argument("--mixture", default="gsm8k_specialize_v1")
  parser.add_argument("--batch_size", type=int, default=128)
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
  found = [_together(argv, num_hosts) for num_hosts in flags.hosts]
  results = [result for result, _ in found]
  for result, digests in found:
    if digests != found[0][1]:
      raise SystemExit(f"{result['hosts']} hosts read different batches")
  text = json.dumps(results, indent=2)
  print(text)
  if flags.output:
    path = pathlib.Path(flags.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
  return 0


def _together(argv, num_hosts):
  """Runs the processes of so many hosts at a time.

  Returns what they found, and the checksums of all rows.
  """
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
  digests = {}
  for one in found:
    for name, value in one.pop("digests").items():
      if digests.setdefault(name, value) != value:
        raise SystemExit(f"processes read different batches: {name}")
  examples = sum(one["examples"] for one in found)
  seconds = max(one["seconds"] for one in found)
  result = {
    "hosts": num_hosts,
    "examples_per_second": round(examples / seconds),
    "cpu_microseconds_per_example": [
      round(1e6 * one["cpu_seconds"] / examples, 1) for one in found
    ],
    "first": found[0],
  }
  return result, digests


def _measure(flags):
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from specialize_jax.cli import registered_tasks

  registered_tasks.register(flags.data_dir, flags.tfds_data_dir)
  from specialize_jax.data import packing, pipeline

  imported = time.time() - flags.started
  mixture = _as_text() if flags.compare else flags.mixture
  # This process has no others to ask for the rest of a state.
  missing = {
    pipeline.group_name(number): b"" for number in range(pipeline.MAX_GROUPS)
  }
  iterator = pipeline.TrainIterator(
    mixture,
    task_feature_lengths=_LENGTHS,
    batch_size=flags.batch_size,
    seed=0,
    rows=range(
      flags.host * flags.batch_size // flags.hosts[0],
      (flags.host + 1) * flags.batch_size // flags.hosts[0],
    ),
    sums_up=True,
    gather=lambda parts: missing | parts,
  )
  next(iterator)
  first = time.time() - flags.started
  for _ in range(_SETTLED_ROWS // flags.batch_size + 1):
    next(iterator)
  examples, padding = 0, []
  start, cpu = time.perf_counter(), time.process_time()
  for _ in range(flags.batches):
    batch = next(iterator)
    examples += int(batch["encoder_segment_ids"].max(axis=1).sum())
    padding.append(packing.padding_shares(batch))
  seconds = time.perf_counter() - start
  cpu = time.process_time() - cpu
  result = {
    "digests": iterator.digests(),
    "mixture": mixture,
    "imported_seconds": round(imported, 2),
    "first_batch_seconds": round(first, 2),
    "examples": examples,
    "seconds": round(seconds, 3),
    "cpu_seconds": round(cpu, 3),
    "padding": {
      name: round(sum(one[name] for one in padding) / len(padding), 4)
      for name in padding[0]
    },
    "checkpoint_bytes": len(iterator.state()),
    "peak_rss_gib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3
    ),
    "load_average": os.getloadavg()[0],
  }
  iterator.close()
  return result


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
