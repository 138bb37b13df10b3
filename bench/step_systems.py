"""The two systems of bench/train_step.py, each answering lines of a pipe."""

import argparse
import itertools
import json
import pathlib
import random
import sys
from collections.abc import Iterator, Mapping

import geometries
import measured
import numpy as np

CANDIDATES = 5
TEACHER_PROBS = np.array([0.6, 0.2, 0.1, 0.05, 0.02], np.float32)
# The paper's numbers of examples, in thousands: a right sample, a question.
RATES = {True: 207.6, False: 7.1}
LEARNING_RATE = 5e-4
# As gin_configs/topologies/cpu.gin has them.
ATTENTION_BLOCK_SIZES = {"cpu": (384, 256), "gpu": None}

Example = Mapping[str, np.ndarray]


def serve(args: argparse.Namespace) -> int:
  """Answers each line of standard input with a line of JSON."""
  system = (Ours if args.system == "ours" else PyTorch)(args)
  fixed = fixed_examples(args)
  batches = system.batches(mixture_examples(args))

  def reply(question: str) -> Mapping[str, float]:
    match question:
      case "memory":
        return {"gained_bytes": system.peak_bytes() - system.imported_bytes}
      case "product":
        return {"flops_per_second": measured.best_product(args.dtype)}
      case "mixture":
        batch, tokens, slots = next(batches)
        loss = system.MIXTURE_LOSS
        return {
          "seconds": measured.timed(lambda: system.step(batch, loss)),
          "tokens": tokens,
          "slots": slots,
        }
    batch = system.padded(fixed)
    return {
      "seconds": measured.timed(lambda: system.step(batch, question)),
      "flops": step_flops(args),
    }

  return measured.answer(reply)


class Ours:
  """The project's train step, jitted over all cores."""

  MIXTURE_LOSS = "sparse"

  def __init__(self, args: argparse.Namespace) -> None:
    """Imports, then builds the step and its state."""
    import jax

    from specialize_jax.data import packing
    from specialize_jax.losses import distillation
    from specialize_jax.parallel import mesh, placement
    from specialize_jax.t5 import network
    from specialize_jax.training import optimizer, state, step

    jax.devices()
    self.imported_bytes = measured.resident_bytes(args.platform)
    self._jax, self._packing, self._args = jax, packing, args
    self._compile_ahead, self._compiled = step.compile_ahead, False
    sizes = geometry(args)
    model = network.EncoderDecoder(
      geometries.ours(
        sizes,
        args.vocab_size,
        dtype=args.dtype,
        remat_policy=args.remat,
        scan_layers=args.scan_layers,
        attention_block_sizes=ATTENTION_BLOCK_SIZES[args.platform],
      )
    )
    adamw = optimizer.build(
      optimizer.OptimizerConfig(
        learning_rate=LEARNING_RATE, weight_decay=0.01, max_gradient_norm=1.0
      )
    )
    self._placement = placement.Placement(mesh=mesh.make_mesh())
    self._step = step.make_train_step(
      model,
      adamw,
      distillation.LossConfig(
        chunk_axis=args.chunk_axis, num_chunks=args.num_chunks
      ),
      dropout_rng=jax.random.key(1),
      num_microbatches=args.num_microbatches,
    )
    self._state = state.create(
      model, adamw, self._placement, init_rng=jax.random.key(0)
    )

  def peak_bytes(self) -> int:
    """Peak memory of the process."""
    return measured.peak_bytes(self._args.platform)

  def padded(self, examples: list[Example]) -> Mapping[str, np.ndarray]:
    """A row an example; all are as long as the longest."""
    lengths = {
      name: max(len(e[name]) for e in examples)
      for name in ("inputs", "targets")
    }
    return self._packing.to_batch([[e] for e in examples], lengths)

  def batches(self, examples: Iterator[Example]) -> Iterator[tuple]:
    """Packed batches, with their real tokens and all slots."""
    args = self._args
    lengths = {
      "inputs": args.packed_input_length,
      "targets": args.packed_target_length,
    }
    packer = self._packing.Packer(lengths)
    rows: list = []
    for example in examples:
      rows += packer.add(example)
      if len(rows) >= args.packed_rows:
        batch, rows = rows[: args.packed_rows], rows[args.packed_rows :]
        arrays = self._packing.to_batch(batch, lengths)
        tokens = sum(num_tokens(e) for row in batch for e in row)
        yield arrays, tokens, args.packed_rows * sum(lengths.values())

  def step(self, batch: Mapping[str, np.ndarray], loss: str) -> None:
    """One step; its metrics are read, as the loop does."""
    assert loss == "sparse", loss
    batch = self._placement.put_batch(batch)
    with self._placement.entered():
      if not self._compiled:
        self._compile_ahead(self._step, self._state, batch)
        self._compiled = True
      self._state, metrics = self._step(self._state, batch)
    assert np.isfinite(self._jax.device_get(metrics)["loss"])


class PyTorch:
  """`transformers`' T5 in PyTorch, with the paper's loss and batches."""

  MIXTURE_LOSS = "dense"

  def __init__(self, args: argparse.Namespace) -> None:
    """Imports, then builds model and optimizer."""
    import torch
    from transformers.models.t5 import modeling_t5

    self._device = measured.torch_device(args.platform)
    self.imported_bytes = (
      measured.resident_bytes() if args.platform == "cpu" else 0
    )
    self._torch, self._args = torch, args
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = geometries.huggingface(geometry(args), args.vocab_size)
    sizes.use_cache = False
    self._model = modeling_t5.T5ForConditionalGeneration(sizes)
    # Version 5 ties a fresh model's head; a released FlanT5's is its own.
    weight = torch.randn_like(self._model.shared.weight) * sizes.d_model**-0.5
    self._model.lm_head.weight = torch.nn.Parameter(weight)
    self._model.to(self._device)
    if args.remat != "none":
      self._model.gradient_checkpointing_enable()
    self._model.train()
    parameters = sum(p.numel() for p in self._model.parameters())
    print(f"pytorch: {parameters / 1e6:.1f} M parameters", file=sys.stderr)
    self._optimizer = torch.optim.AdamW(
      self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
    )

  def peak_bytes(self) -> int:
    """Peak memory of the process, or of its allocator on the GPU."""
    if self._args.platform == "gpu":
      return self._torch.cuda.max_memory_allocated()
    return measured.peak_bytes()

  def padded(self, examples: list[Example]) -> Mapping[str, object]:
    """Pads to the longest of the batch, as `tokenizer(padding=True)` does."""
    torch = self._torch

    def pad(name: str) -> object:
      length = max(len(e[name]) for e in examples)
      rows = np.zeros((len(examples), length, *examples[0][name].shape[1:]))
      for row, example in zip(rows, examples, strict=True):
        row[: len(example[name])] = example[name]
      return torch.from_numpy(rows)

    return {
      "inputs": pad("inputs").long(),
      "targets": pad("targets").long(),
      "ids": pad("teacher_top_ids").long(),
      "probs": pad("teacher_top_probs").float(),
    }

  def batches(self, examples: Iterator[Example]) -> Iterator[tuple]:
    """Batches of one format each, in the order in which they fill."""
    waiting: dict[str, list[Example]] = {}
    for example in examples:
      batch = waiting.setdefault(example["format"], [])
      batch.append(example)
      if len(batch) == self._args.batch_size:
        waiting[example["format"]] = []
        arrays = self.padded(batch)
        slots = arrays["inputs"].numel() + arrays["targets"].numel()
        yield arrays, sum(map(num_tokens, batch)), slots

  def step(self, batch: Mapping[str, object], loss: str) -> None:
    """One step with the paper's dense loss, or with cross-entropy."""
    torch = self._torch
    batch = {name: array.to(self._device) for name, array in batch.items()}
    targets = batch["targets"]
    shifted = torch.nn.functional.pad(targets, (1, 0))[:, :-1]
    with torch.autocast(
      self._device, torch.bfloat16, enabled=self._args.dtype == "bfloat16"
    ):
      logits = self._model(
        input_ids=batch["inputs"],
        attention_mask=(batch["inputs"] > 0).long(),
        decoder_input_ids=shifted,
      ).logits.float()
    real = (targets > 0).float()
    if loss == "dense":
      student = torch.softmax(logits, dim=-1)
      teacher = torch.zeros_like(student).scatter_(
        -1, batch["ids"], batch["probs"]
      )
      kl = teacher * torch.log(teacher / (student + 1e-10) + 1e-10)
      losses = kl.sum(dim=-1)
    else:
      losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
      ).view_as(real)
    total = (losses * real).sum() / real.sum()
    self._optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
    self._optimizer.step()
    assert np.isfinite(total.item())


def geometry(args: argparse.Namespace) -> geometries.Geometry:
  """Returns the sizes of the model, the same for both systems."""
  return geometries.GEOMETRIES[args.geometry]


def fixed_examples(args: argparse.Namespace) -> list[Example]:
  """Random examples of the flags' lengths, without padding."""
  rng = np.random.default_rng(0)
  return [
    example(
      rng.integers(2, args.vocab_size, args.input_length),
      rng.integers(2, args.vocab_size, args.target_length),
      args.vocab_size,
    )
    for _ in range(args.batch_size)
  ]


def mixture_examples(args: argparse.Namespace) -> Iterator[Example]:
  """The four formats of GSM8K without end, the same for both systems."""
  import sentencepiece

  from specialize_jax.cot import formats

  folder = pathlib.Path(args.data_dir)
  tokenizer = sentencepiece.SentencePieceProcessor(
    model_file=str(folder / "tokenizers" / "t5_spiece.model")
  )
  lines = (folder / "gsm8k" / "train.jsonl").read_text().splitlines()[:2000]
  problems = [solved(json.loads(line)) for line in lines]
  rng = random.Random(0)
  rates = [RATES[f.chain_of_thought] for f in formats.FORMATS]
  for _ in itertools.count():
    data_format = rng.choices(formats.FORMATS, rates)[0]
    shown = rng.sample(problems, 4) if data_format.in_context else ()
    problem = rng.choice(problems)
    prompt = formats.render_prompt(problem.question, data_format, shown)
    target = formats.render_target(
      data_format, problem.rationale, problem.answer
    )
    inputs, targets = (
      np.array([*tokenizer.encode(text), 1]) % args.vocab_size
      for text in (prompt, target)
    )
    if (
      len(inputs) <= args.packed_input_length
      and len(targets) <= args.packed_target_length
    ):
      yield {
        **example(inputs, targets, args.vocab_size),
        "format": data_format.name,
      }


def solved(row: Mapping[str, str]) -> object:
  """Returns a line of GSM8K as a demonstration, without calculator marks."""
  import re

  from specialize_jax.cot import formats

  text, answer = row["answer"].split("\n#### ")
  rationale = re.sub(r"<<.*?>>", "", text)
  return formats.Demonstration(
    question=row["question"],
    rationale=f"{rationale}\nThe answer is {answer}",
    answer=answer,
  )


def example(
  inputs: np.ndarray, targets: np.ndarray, vocab_size: int
) -> Example:
  """Adds a teacher: the target's token and four neighbors."""
  ids = (targets[:, None] + np.arange(CANDIDATES)) % vocab_size
  return {
    "inputs": inputs.astype(np.int32),
    "targets": targets.astype(np.int32),
    "teacher_top_ids": ids.astype(np.int32),
    "teacher_top_probs": np.broadcast_to(TEACHER_PROBS, ids.shape),
    "teacher_top_mask": np.ones(len(targets), np.int32),
  }


def num_tokens(one: Example) -> int:
  """Returns the number of input and target tokens of an example."""
  return len(one["inputs"]) + len(one["targets"])


def step_flops(args: argparse.Namespace) -> float:
  """Returns the matmul FLOPs of a step: forward, and twice that backward."""
  sizes = geometry(args)
  embed_dim, joined = sizes.embed_dim, sizes.num_heads * geometries.HEAD_DIM
  sources = args.batch_size * args.input_length
  targets = args.batch_size * args.target_length
  kernel, mlp = 2 * embed_dim * joined, 6 * embed_dim * sizes.mlp_dim
  encoder = sources * (4 * kernel + mlp + 4 * args.input_length * joined)
  attended = args.input_length + args.target_length
  decoder = targets * (6 * kernel + mlp + 4 * attended * joined)
  cross = sources * 2 * kernel
  head = targets * 2 * embed_dim * args.vocab_size
  return 3.0 * (sizes.num_layers * (encoder + decoder + cross) + head)
