"""Compares the decoding speed of three systems on the same FlanT5.

  python bench/decode.py --geometry=small --geometry=base --output=decode.json

needs the `bench` extra: `pip install -e '.[bench]'`. The weights are random,
one Hugging Face folder a geometry, and all systems read it: ours, PyTorch's
`transformers` and, on a CPU, CTranslate2, in float32, and CTranslate2 in int8
as well. `--platform=gpu --dtype=bfloat16` measures what a GPU does.
Each decodes `--batch_size` rows of `--input_length` tokens into exactly
`--new_tokens` new ones: end of sequence is forbidden to them and ends nothing
in ours. Rounds are interleaved, since a machine's speed drifts; a system's
figure is its median, and a ratio the median of the rounds' ratios.

What bounds the arithmetic is measured too: `bound` is the time of the least
work (the FLOPs of the matmuls at the speed of this machine's fastest
matmul, and the bytes that every step must read at the speed of its
memory, one after the other), `of_bound` the share of our time that it is.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

import geometries
import jax
import jax.numpy as jnp
import measured
import numpy as np
from geometries import HEAD_DIM, VOCAB_SIZE

MEASURED = ("small", "base")
OURS = "ours"
INT8 = "ctranslate2_int8"

Decoder = Callable[[np.ndarray, int], np.ndarray]
"""From int32 ids [B, S] and a number of tokens to int32 ids [B, T]."""


def main(argv: Sequence[str] | None = None) -> int:
  """Measures every geometry asked for, and writes and prints the figures."""
  args = parse(argv)
  os.environ.update(measured.environment(args.platform))
  results = {}
  for geometry in args.geometry or MEASURED:
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary) / geometry
      write_model(folder, geometry)
      systems = started(folder, args)
    seconds, agreement = measure(systems, args)
    results[geometry] = summarize(seconds, agreement, geometry, args)
    print(table(geometry, results[geometry]), flush=True)
    del systems
    gc.collect()
  if args.output:
    args.output.write_text(json.dumps(results, indent=2) + "\n")
  return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags; the defaults make the figures in docs/results.md."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
  parser.add_argument(
    "--geometry",
    action="append",
    choices=geometries.GEOMETRIES,
    help="default: small, base",
  )
  measured.add_platform(parser)
  parser.add_argument("--dtype", choices=measured.DTYPES, default="float32")
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--input_length", type=int, default=256)
  parser.add_argument("--new_tokens", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2, help="of the others")
  parser.add_argument("--output", type=pathlib.Path, help="a JSON file")
  return parser.parse_args(argv)


def started(
  folder: pathlib.Path, args: argparse.Namespace
) -> dict[str, Decoder]:
  """Loads the systems of a platform, ours first."""
  systems = {OURS: ours(folder, args), "transformers": pytorch(folder, args)}
  if args.platform == "cpu":
    for name in ("ctranslate2", INT8):
      compute_type = "int8" if name == INT8 else args.dtype
      systems[name] = ctranslate2(folder, compute_type, args.threads)
  return systems


def write_model(folder: pathlib.Path, geometry: str) -> None:
  """Writes a random T5 1.1 with a head of its own, and a tokenizer.

  CTranslate2's converter names tokens by the tokenizer, so it gets one whose
  token i is called `token_i`.
  """
  import tokenizers
  import torch
  import transformers

  torch.manual_seed(0)
  sizes = geometries.GEOMETRIES[geometry]
  model = transformers.T5ForConditionalGeneration(geometries.huggingface(sizes))
  head = torch.randn_like(model.shared.weight) * sizes.embed_dim**-0.5
  model.lm_head.weight = torch.nn.Parameter(head)
  model.save_pretrained(folder)
  names = token_names()
  words = tokenizers.models.WordLevel(
    {name: index for index, name in enumerate(names)}, unk_token=names[2]
  )
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words),
    pad_token=names[0],
    eos_token=names[1],
    unk_token=names[2],
  ).save_pretrained(folder)


def token_names() -> list[str]:
  """Returns CTranslate2's name of each id."""
  return ["<pad>", "</s>", "<unk>"] + [
    f"token_{index}" for index in range(3, VOCAB_SIZE)
  ]


def ours(folder: pathlib.Path, args: argparse.Namespace) -> Decoder:
  """Decodes by `decoding/loop.py`, compiled for the shape at first use."""
  from specialize_jax.checkpoints import huggingface, name_table
  from specialize_jax.decoding import loop, strategies
  from specialize_jax.t5 import network

  source = huggingface.Folder(folder)
  config = dataclasses.replace(
    source.config, dtype=args.dtype, param_dtype=args.dtype
  )
  params = jax.tree.map(
    lambda array: jnp.asarray(array, args.dtype),
    name_table.assemble(config, source),
  )
  model = network.EncoderDecoder(config)

  def decode(inputs_BS: np.ndarray, new_tokens: int) -> np.ndarray:
    output = loop.decode(
      model,
      params,
      jnp.asarray(inputs_BS),
      max_new_tokens=new_tokens,
      strategy=strategies.Greedy(),
      eos_ids=(),
    )
    return np.asarray(output.tokens)

  return decode


def pytorch(folder: pathlib.Path, args: argparse.Namespace) -> Decoder:
  """Decodes by `transformers`' `generate` in eager PyTorch."""
  import torch
  import transformers

  torch.set_num_threads(args.threads)
  device = measured.torch_device(args.platform)
  model = transformers.T5ForConditionalGeneration.from_pretrained(
    folder, dtype=getattr(torch, args.dtype)
  )
  model = model.to(device).eval()

  def decode(inputs_BS: np.ndarray, new_tokens: int) -> np.ndarray:
    inputs = torch.from_numpy(inputs_BS.astype(np.int64)).to(device)
    with torch.inference_mode():
      tokens = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        do_sample=False,
        num_beams=1,
      )
    return tokens.cpu().numpy()[:, 1:].astype(np.int32)

  return decode


def ctranslate2(
  folder: pathlib.Path, compute_type: str, threads: int
) -> Decoder:
  """Decodes by CTranslate2, its weights converted from the same folder."""
  import ctranslate2 as library
  from ctranslate2.converters import TransformersConverter

  converted = folder.with_name(f"{folder.name}_{compute_type}")
  TransformersConverter(str(folder)).convert(
    str(converted), quantization=compute_type
  )
  translator = library.Translator(
    str(converted),
    device="cpu",
    compute_type=compute_type,
    inter_threads=1,
    intra_threads=threads,
  )
  names = token_names()
  ids = {name: index for index, name in enumerate(names)}

  def decode(inputs_BS: np.ndarray, new_tokens: int) -> np.ndarray:
    results = translator.translate_batch(
      [[names[token] for token in row] for row in inputs_BS.tolist()],
      beam_size=1,
      min_decoding_length=new_tokens,
      max_decoding_length=new_tokens,
      max_batch_size=0,
    )
    tokens = [[ids[name] for name in r.hypotheses[0]] for r in results]
    return np.asarray(tokens, np.int32)

  return decode


def measure(
  systems: Mapping[str, Decoder], args: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, float]]:
  """Measures each system's seconds a round, and how many of its tokens agree.

  The first round compiles and warms up and is not kept. Agreement is the
  share of rows whose every token is ours: random weights leave near ties.
  """
  rng = np.random.default_rng(0)
  shape = (args.batch_size, args.input_length)
  inputs_BS = rng.integers(3, VOCAB_SIZE, shape, dtype=np.int32)
  seconds = {name: [] for name in systems}
  tokens = {}
  for number in range(args.rounds + 1):
    for name, decode in systems.items():
      start = time.perf_counter()
      tokens[name] = decode(inputs_BS, args.new_tokens)
      elapsed = time.perf_counter() - start
      if number:
        seconds[name].append(elapsed)
      if tokens[name].shape != (args.batch_size, args.new_tokens):
        raise ValueError(f"{name} gave tokens of shape {tokens[name].shape}")
  agreement = {
    name: float(np.all(tokens[name] == tokens[OURS], axis=1).mean())
    for name in systems
  }
  return seconds, agreement


def summarize(
  seconds: Mapping[str, Sequence[float]],
  agreement: Mapping[str, float],
  geometry: str,
  args: argparse.Namespace,
) -> dict[str, object]:
  """Returns the results of one geometry."""
  num_tokens = args.batch_size * args.new_tokens
  ratios = {
    name: statistics.median(
      theirs / mine
      for theirs, mine in zip(seconds[name], seconds[OURS], strict=True)
    )
    for name in seconds
  }
  medians = {name: statistics.median(times) for name, times in seconds.items()}
  bound = bound_seconds(geometry, args)
  return {
    "tokens_per_second": {
      name: num_tokens / median for name, median in medians.items()
    },
    "ours_times_faster_than": ratios,
    "rows_equal_to_ours": dict(agreement),
    "seconds": {name: list(times) for name, times in seconds.items()},
    "bound": bound,
    "of_bound": bound["seconds"] / medians[OURS],
    "arguments": {k: v for k, v in vars(args).items() if k != "output"},
  }


def bound_seconds(geometry: str, args: argparse.Namespace) -> dict[str, float]:
  """Computes the least time that one batch can take on this machine."""
  sizes = geometries.GEOMETRIES[geometry]
  embed_dim, mlp_dim = sizes.embed_dim, sizes.mlp_dim
  num_layers, joined = sizes.num_layers, sizes.num_heads * HEAD_DIM
  rows, length = args.batch_size, args.input_length
  positions = rows * length
  steps = args.new_tokens
  per_projection = embed_dim * joined
  feed_forward = 3 * embed_dim * mlp_dim
  encoder = num_layers * (4 * per_projection + feed_forward)
  cross = num_layers * 2 * per_projection  # keys and values, once
  decoder = num_layers * (6 * per_projection + feed_forward)
  head = embed_dim * VOCAB_SIZE
  # Scores and gathering: two products, two operations an entry each.
  attention = num_layers * 4 * rows * length * length * joined
  encode_flops = 2 * positions * (encoder + cross) + attention
  step_flops = 2 * rows * (decoder + head)
  width = jnp.dtype(args.dtype).itemsize
  step_weight_bytes = width * (decoder + head)
  # Keys and values of every input, and on average of half the new tokens.
  cached = length + steps / 2
  step_cache_bytes = 2 * width * num_layers * rows * joined * cached
  flops_per_second, bytes_per_second = speeds(
    embed_dim, mlp_dim, positions, args.dtype
  )
  encode = encode_flops / flops_per_second
  products = max(
    step_flops / flops_per_second, step_weight_bytes / bytes_per_second
  )
  caches = step_cache_bytes / bytes_per_second
  return {
    "seconds": encode + steps * (products + caches),
    "encode_seconds": encode,
    "step_products_seconds": products,
    "step_caches_seconds": caches,
    "flops_per_second": flops_per_second,
    "bytes_per_second": bytes_per_second,
  }


def speeds(
  embed_dim: int, mlp_dim: int, positions: int, dtype: str
) -> tuple[float, float]:
  """Measures the machine: operations and bytes a second, at their best."""
  left = jnp.ones((positions, embed_dim), dtype)
  right = jnp.ones((embed_dim, mlp_dim), dtype)
  product = jax.jit(jnp.dot)
  flops = 2 * left.size * mlp_dim / _best(lambda: product(left, right))
  many = jnp.ones((64, 1 << 20))  # 256 MiB, larger than most caches
  total = jax.jit(jnp.sum)
  return flops, many.nbytes / _best(lambda: total(many))


def _best(run: Callable[[], jax.Array], times: int = 20) -> float:
  run().block_until_ready()
  best = float("inf")
  for _ in range(times):
    start = time.perf_counter()
    run().block_until_ready()
    best = min(best, time.perf_counter() - start)
  return best


def table(geometry: str, result: Mapping[str, Mapping[str, float]]) -> str:
  """Formats the results of one geometry as lines of text."""
  bound = result["bound"]
  lines = [f"{geometry:20}{'tokens/s':>10}{'ours x':>8}{'equal rows':>12}"]
  lines += [
    f"{name:20}{speed:10.0f}{result['ours_times_faster_than'][name]:8.2f}"
    f"{result['rows_equal_to_ours'][name]:12.0%}"
    for name, speed in result["tokens_per_second"].items()
  ]
  lines.append(
    f"bound: encode {bound['encode_seconds']:.2f} s, a step "
    f"{bound['step_products_seconds'] * 1e3:.1f} ms of products and "
    f"{bound['step_caches_seconds'] * 1e3:.1f} ms of caches, at "
    f"{bound['flops_per_second'] / 1e9:.0f} GFLOP/s and "
    f"{bound['bytes_per_second'] / 1e9:.0f} GB/s; ours is at "
    f"{result['of_bound']:.0%} of it"
  )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  sys.exit(main())
