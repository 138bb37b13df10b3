"""One train step of FlanT5, ours beside PyTorch's, in one run.

  python bench/train_step.py --data_dir=data --output=step.json

needs the `bench` extra: `pip install -e '.[bench]'`. Both train a random T5
1.1 of small's geometry (`--geometry`; 77.0 M parameters: the head is a matrix
of its own, which a fresh `transformers` model of version 5 does not have by
itself) in float32 with AdamW and dropout, each in a process of its own.
`--platform=gpu --dtype=bfloat16` computes on a GPU, parameters in float32.
PyTorch's loss is the paper's (FranxYao/FlanT5-CoT-Specialization:
src/utils.py, `kl_divergence`), over a teacher laid out as `[B, T, V]`; its
plain cross-entropy is measured too. Ours is the sparse KL.

Two comparisons, rounds interleaved, medians of rounds:

  same batch   `--batch_size` rows of 256 and 128 tokens, no padding.
  mixture      the four formats of GSM8K at their real lengths, in the paper's
               proportions, with GSM8K's own solutions for rationales: ours in
               packed rows, PyTorch in the paper's batches: one format each,
               padded to the longest. Speed is in tokens that are not padding.

Memory is the peak of each process less what it held after its imports. What
bounds the arithmetic is measured too: the step's matmuls at the speed of
this machine's fastest one.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence

import geometries
import measured
import step_systems

PYTORCH, OURS = "pytorch", "ours"


def main(argv: Sequence[str] | None = None) -> int:
  """Measures both, or is one of them, as a process of its own."""
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse(argv)
  if args.system:
    return step_systems.serve(args)
  result = {"threads": args.threads}
  names = (PYTORCH, OURS)
  with measured.started(__file__, argv, names, args.platform) as servers:
    result["same_batch"] = same_batch(servers, args.rounds)
    result["memory"] = {n: s.ask("memory") for n, s in servers.items()}
    result["product"] = servers[OURS].ask("product")
    summarize(result)
    report(args, result, same_batch_table(result))
    if args.mixture_batches:
      result["mixture"] = mixture(servers, args.mixture_batches)
      speeds = {n: r["tokens_per_second"] for n, r in result["mixture"].items()}
      result["mixture_times_faster"] = speeds[OURS] / speeds[PYTORCH]
      report(args, result, mixture_table(result))
  return 0


def report(args: argparse.Namespace, result: Mapping, text: str) -> None:
  """Prints and writes what is known: a later part may run out of memory."""
  print(text, flush=True)
  if args.output:
    args.output.write_text(json.dumps(result, indent=2) + "\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the flags; the defaults make the figures in docs/results.md."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument(
    "--data_dir",
    default=os.environ.get("SPECIALIZE_DATA"),
    help="default: $SPECIALIZE_DATA",
  )
  measured.add_platform(parser)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--input_length", type=int, default=256)
  parser.add_argument("--target_length", type=int, default=128)
  parser.add_argument("--packed_rows", type=int, default=2)
  parser.add_argument("--packed_input_length", type=int, default=2304)
  parser.add_argument("--packed_target_length", type=int, default=528)
  parser.add_argument(
    "--geometry", choices=geometries.GEOMETRIES, default="small"
  )
  parser.add_argument("--dtype", choices=measured.DTYPES, default="float32")
  parser.add_argument("--scan_layers", action="store_true")
  parser.add_argument(
    "--remat",
    choices=("none", "dots", "minimal", "lean", "full"),
    default="none",
  )
  parser.add_argument("--vocab_size", type=int, default=geometries.VOCAB_SIZE)
  parser.add_argument(
    "--chunk_axis", choices=("targets", "vocabulary"), default="targets"
  )
  parser.add_argument("--num_chunks", type=int, default=4)
  parser.add_argument("--num_microbatches", type=int, default=1)
  parser.add_argument("--threads", type=int, default=2)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--mixture_batches", type=int, default=10)
  parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
  parser.add_argument(
    "--system", choices=(PYTORCH, OURS), help=argparse.SUPPRESS
  )
  flags = parser.parse_args(argv)
  if flags.mixture_batches and not flags.data_dir:
    parser.error("--mixture_batches needs --data_dir, which has GSM8K")
  return flags


def same_batch(
  servers: Mapping[str, measured.Server], rounds: int
) -> dict[str, object]:
  """Seconds a step, a list a system; a first step of each is not counted."""
  questions = {
    "pytorch dense": (PYTORCH, "dense"),
    "ours": (OURS, "sparse"),
    "pytorch cross-entropy": (PYTORCH, "cross_entropy"),
  }
  seconds: dict[str, list[float]] = {name: [] for name in questions}
  for round_number in range(rounds + 1):
    for name, (system, question) in questions.items():
      answer = servers[system].ask(question)
      if round_number:
        seconds[name].append(answer["seconds"])
  return {"seconds": seconds, "flops": answer["flops"]}


def mixture(
  servers: Mapping[str, measured.Server], batches: int
) -> dict[str, dict[str, object]]:
  """Real tokens and seconds of so many batches of each, in turn."""
  for server in servers.values():
    server.ask("mixture")  # ours compiles for the row lengths
  answers: dict[str, list[dict]] = {name: [] for name in servers}
  for _ in range(batches):
    for name, server in servers.items():
      answers[name].append(server.ask("mixture"))
  result = {}
  for name, of_batches in answers.items():
    tokens = sum(answer["tokens"] for answer in of_batches)
    slots = sum(answer["slots"] for answer in of_batches)
    seconds = sum(answer["seconds"] for answer in of_batches)
    result[name] = {
      "tokens_per_second": tokens / seconds,
      "padding_share": 1 - tokens / slots,
      "batches": of_batches,
    }
  return result


def summarize(result: dict) -> None:
  """Adds the ratios that the figures are read for."""
  seconds = result["same_batch"]["seconds"]
  result["ours_times_faster"] = {
    name: statistics.median(
      other / ours for other, ours in zip(values, seconds["ours"], strict=True)
    )
    for name, values in seconds.items()
  }
  memory = result["memory"]
  result["memory_ratio"] = (
    memory[OURS]["gained_bytes"] / memory[PYTORCH]["gained_bytes"]
  )
  bound = result["same_batch"]["flops"] / result["product"]["flops_per_second"]
  result["bound_seconds"] = bound
  result["of_bound"] = bound / statistics.median(seconds["ours"])


def same_batch_table(result: Mapping) -> str:
  """Formats time, memory and bound of the same batch as lines of text."""
  lines = [f"{'same batch':24}{'ms/step':>8}{'ours x':>8}"]
  for name, values in result["same_batch"]["seconds"].items():
    lines.append(
      f"{name:24}{statistics.median(values) * 1e3:8.0f}"
      f"{result['ours_times_faster'][name]:8.2f}"
    )
  memory = ", ".join(
    f"{name} {values['gained_bytes'] / 2**30:.2f} GiB"
    for name, values in result["memory"].items()
  )
  lines += [
    f"memory: {memory}: {result['memory_ratio']:.2f}",
    f"bound: {result['bound_seconds'] * 1e3:.0f} ms of products at "
    f"{result['product']['flops_per_second'] / 1e9:.0f} GFLOP/s; ours is at "
    f"{result['of_bound']:.0%} of it",
  ]
  return "\n".join(lines)


def mixture_table(result: Mapping) -> str:
  """Formats the results of the mixture as lines of text."""
  lines = [f"\n{'mixture':24}{'tokens/s':>9}{'padding':>9}"]
  for name, values in result["mixture"].items():
    lines.append(
      f"{name:24}{values['tokens_per_second']:9.0f}"
      f"{values['padding_share']:9.1%}"
    )
  lines.append(f"ours / pytorch: {result['mixture_times_faster']:.2f}")
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main())
