"""Compares memory and time of the sparse loss with a dense teacher's.

  python bench/loss.py --output=loss.json

All take hidden states and the head's kernel, and compute the loss and the
gradients of both, on the CPU, or on a GPU with `--platform=gpu`: 16 x 256
positions and V = 32,128, with hidden states in float32 and in bfloat16
(`--dtype` takes one). The dense version is the paper's
(FranxYao/FlanT5-CoT-Specialization: src/utils.py, `kl_divergence`): it scatters
the teacher's five candidates into `[B, T, V]` and compares that with the
student's softmax, both in float32. Ours takes them as they are, in chunks of
the target positions or of the vocabulary (`LossConfig.chunk_axis`).

Peak memory is measured in a process of its own, beyond its arguments and with
the gradients, on a GPU by its allocator; XLA's own count of
temporary memory is printed beside it.
Rounds are interleaved, and a ratio is the median of the rounds' ratios. What
bounds the time is measured too: three matmuls (logits, both gradients) at
the speed of this machine's fastest matmul in that dtype. With chunks of the
vocabulary ours needs a fourth, since it recomputes the logits.
"""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

import measured

SYSTEMS = ("targets", "vocabulary", "dense")
OURS = SYSTEMS[:2]
CANDIDATES = 5


def main(argv: Sequence[str] | None = None) -> int:
  """Measures all in each dtype, or one of them as a process of its own."""
  argv = sys.argv[1:] if argv is None else list(argv)
  args = parse(argv)
  if args.system:
    return serve(args)
  results = {}
  for dtype in args.dtype or measured.DTYPES:
    results[dtype] = measure(args, [*argv, f"--dtype={dtype}"])
    print(table(dtype, results[dtype]), flush=True)
  if args.output:
    args.output.write_text(json.dumps(results, indent=2) + "\n")
  return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses the flags; the defaults make the figures in docs/results.md."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  measured.add_platform(parser)
  parser.add_argument("--batch_size", type=int, default=16)
  parser.add_argument("--length", type=int, default=256)
  parser.add_argument("--vocab_size", type=int, default=32128)
  parser.add_argument("--embed_dim", type=int, default=512)
  parser.add_argument("--num_chunks", type=int, default=16)
  parser.add_argument(
    "--dtype", action="append", choices=measured.DTYPES, help="default: both"
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
  parser.add_argument("--system", choices=SYSTEMS, help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def measure(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, object]:
  """Measures one dtype, the last that `argv` names."""
  seconds: dict[str, list[float]] = {name: [] for name in SYSTEMS}
  with measured.started(__file__, argv, SYSTEMS, args.platform) as servers:
    memory = {name: server.ask("memory") for name, server in servers.items()}
    best_flops = servers["targets"].ask("product")["flops_per_second"]
    for _ in range(args.rounds):
      for name, server in servers.items():
        seconds[name].append(server.ask("step")["seconds"])
  return summarize(args, seconds, memory, best_flops)


def serve(args: argparse.Namespace) -> int:
  """Answers `memory`, `product` and `step`."""
  import jax

  arguments = arrays(args)
  function = dense() if args.system == "dense" else ours(args)
  jax.block_until_ready(arguments)
  gradient = jax.jit(jax.value_and_grad(function, argnums=(0, 1)))
  compiled = gradient.lower(*arguments).compile()
  before = measured.resident_bytes(args.platform)
  jax.block_until_ready(compiled(*arguments))
  gained = measured.peak_bytes(args.platform) - before

  def step() -> None:
    jax.block_until_ready(compiled(*arguments))

  def reply(question: str) -> Mapping[str, float]:
    match question:
      case "memory":
        temporary = compiled.memory_analysis().temp_size_in_bytes
        return {"peak_bytes": gained, "xla_temporary_bytes": temporary}
      case "product":
        return {"flops_per_second": measured.best_product(args.dtype[-1])}
    return {"seconds": measured.timed(step)}

  return measured.answer(reply)


def ours(args: argparse.Namespace) -> Callable:
  """The sparse loss, in pieces of what `args.system` names."""
  import jax.numpy as jnp

  from specialize_jax.losses import distillation, head

  config = distillation.LossConfig(
    chunk_axis=args.system, num_chunks=args.num_chunks
  )

  def loss(hidden, kernel, ids, probs):
    batch = {
      "decoder_target_tokens": ids[..., 0],
      "decoder_loss_weights": jnp.ones(ids.shape[:2]),
      "decoder_teacher_top_ids": ids,
      "decoder_teacher_top_probs": probs,
      "decoder_teacher_top_mask": jnp.ones(ids.shape[:2], jnp.int32),
    }
    return head.weighted_loss(hidden, kernel, batch, config=config)[0]

  return loss


def dense() -> Callable:
  """The paper's: a teacher over the whole vocabulary."""
  import jax
  import jax.numpy as jnp

  def loss(hidden, kernel, ids, probs):
    logits = hidden @ kernel.astype(hidden.dtype)
    student = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    teacher = jax.vmap(jax.vmap(lambda row, i, p: row.at[i].set(p)))(
      jnp.zeros_like(student), ids, probs
    )
    kl = teacher * jnp.log(teacher / (student + 1e-10) + 1e-10)
    return jnp.sum(kl)

  return loss


def arrays(args: argparse.Namespace) -> tuple:
  """Random hidden states, kernel, candidate ids and probabilities."""
  import jax.numpy as jnp
  import numpy as np

  rng = np.random.default_rng(0)
  rows = (args.batch_size, args.length)
  hidden = rng.standard_normal((*rows, args.embed_dim), np.float32)
  kernel = rng.standard_normal((args.embed_dim, args.vocab_size), np.float32)
  first = rng.integers(args.vocab_size, size=(*rows, 1))
  ids = (first + np.arange(CANDIDATES)) % args.vocab_size
  probs = np.broadcast_to(
    np.array([0.6, 0.2, 0.1, 0.05, 0.02], np.float32), ids.shape
  )
  return (
    jnp.asarray(hidden, args.dtype[-1]),
    jnp.asarray(kernel * args.embed_dim**-0.5),
    jnp.asarray(ids, jnp.int32),
    jnp.asarray(probs),
  )


def summarize(
  args: argparse.Namespace,
  seconds: Mapping[str, Sequence[float]],
  memory: Mapping[str, Mapping[str, float]],
  best_flops: float,
) -> dict[str, object]:
  """Summarizes all measurements, ratios first."""
  positions = args.batch_size * args.length
  product = 2 * positions * args.embed_dim * args.vocab_size
  medians = {name: statistics.median(seconds[name]) for name in SYSTEMS}
  bound = 3 * product / best_flops
  peaks = {name: memory[name]["peak_bytes"] for name in SYSTEMS}
  return {
    "peak_ratio": {name: peaks[name] / peaks["dense"] for name in OURS},
    "time_ratio": {
      name: statistics.median(
        mine / dense
        for mine, dense in zip(seconds[name], seconds["dense"], strict=True)
      )
      for name in OURS
    },
    "seconds": medians,
    "memory": dict(memory),
    "bound_seconds": bound,
    "of_bound": {name: bound / medians[name] for name in OURS},
    "best_flops_per_second": best_flops,
    "rounds": dict(seconds),
  }


def table(dtype: str, result: Mapping) -> str:
  """Formats the results of one dtype as lines of text."""
  lines = [
    f"{dtype:12}{'peak MiB':>10}{'XLA temp':>10}{'ms':>9}"
    f"{'of peak':>9}{'of time':>9}{'of bound':>10}"
  ]
  for name in SYSTEMS:
    memory = result["memory"][name]
    line = (
      f"{name:12}{memory['peak_bytes'] / 2**20:10.0f}"
      f"{memory['xla_temporary_bytes'] / 2**20:10.0f}"
      f"{result['seconds'][name] * 1e3:9.1f}"
    )
    if name in OURS:
      line += (
        f"{result['peak_ratio'][name]:9.3f}{result['time_ratio'][name]:9.2f}"
        f"{result['of_bound'][name]:10.0%}"
      )
    lines.append(line)
  lines.append(
    f"bound: {result['bound_seconds'] * 1e3:.1f} ms of three products at "
    f"{result['best_flops_per_second'] / 1e9:.0f} GFLOP/s"
  )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  sys.exit(main())
