"""`specialize convert`: converts checkpoints between formats."""

from __future__ import annotations

import argparse
import sys
import typing
from collections.abc import Callable, Sequence

from specialize_jax import errors
from specialize_jax.cli import devices, flag_types, logs, parsers

if typing.TYPE_CHECKING:
  from specialize_jax.checkpoints import conversion, opening

from specialize_jax.files import paths
from specialize_jax.terminal import progress

_EXAMPLE = """examples (the first after `specialize demo`):
  specialize convert --checkpoint=demo_output/specialize \\
    --to=huggingface --output=demo_output/folder
  specialize convert --checkpoint=google/flan-t5-xl --output=flan_t5_xl
  specialize convert --checkpoint=run/best --to=t5x --output=t5x_run
  specialize convert --output=t5_small \\
    --checkpoint=gs://t5-data/pretrained_models/t5x/t5_small/checkpoint_1000000
"""

_FOLDER = paths.OUTPUT_DIRECTORY.local(
  "a Hugging Face folder of several files cannot appear in one at once; write"
  " it to a disk and copy it with `gcloud storage cp -r`"
)


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize convert",
    description="Converts a checkpoint of any kind (ours, a Hugging Face folder"
    " or hub name, T5X's) to ours, to T5X's or to a Hugging Face folder that"
    " AutoModelForSeq2SeqLM.from_pretrained loads. Tensors are converted one at"
    " a time, so models can be larger than memory.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="ours (a model_dir, its checkpoints directory or one of its steps), a"
    " Hugging Face folder or hub name, or T5X's checkpoint_STEP directory",
  )
  parser.add_argument(
    "--output",
    metavar="DIR",
    help="a folder that does not exist yet; ours is a model_dir with one step,"
    " for --checkpoint and INITIAL_CHECKPOINT_PATH",
  )
  parser.add_argument(
    "--to",
    choices=("ours", "huggingface", "t5x"),
    help="the output format (default: huggingface from ours, ours from others)",
  )
  parser.add_argument(
    "--verify",
    action="store_true",
    help="write nothing: read all of --checkpoint, ours or a folder that this"
    " command wrote, and compare it with the digests saved with it; what cannot"
    " be compared is named",
  )
  parser.add_argument(
    "--no_verify",
    action="store_true",
    help="read --checkpoint without comparing it with its digests",
  )
  parser.add_argument(
    "--t5x_layers",
    choices=("listed", "scanned"),
    default="listed",
    help="T5X's layers: listed, as in t5x/examples/t5, or scanned along axis 1,"
    " as in t5x/examples/scalable_t5 (default: listed)",
  )
  _add_options(parser)
  logs.add_flags(parser)
  return parser


def _add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of conversions of tensors and vocabulary."""
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16", "float16"),
    help="dtype of the output tensors (default: that of the input)",
  )
  parser.add_argument(
    "--vocab_size",
    type=flag_types.whole(1),
    metavar="ROWS",
    help="number of vocabulary rows of the output: additional rows are copies"
    " of the padding token's, and excess rows are dropped (default: that of the"
    " input, except that T5's 32,100 rows are 32,128 in ours)",
  )
  parser.add_argument(
    "--vocabulary",
    metavar="SPIECE",
    help="the SentencePiece model to include (default: the checkpoint's"
    " tokenizer)",
  )
  parser.add_argument(
    "--extra_ids",
    type=flag_types.whole(0),
    default=100,
    metavar="N",
    help="sentinels above the pieces of --vocabulary (default: 100)",
  )
  parser.add_argument(
    "--max_shard_mib",
    type=flag_types.whole(1),
    default=1024,
    metavar="MIB",
    help="size of a Hugging Face tensor file (default: 1024)",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Converts; prints what was written and where."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "checkpoint": paths.CHECKPOINT,
      "output": paths.OUTPUT_DIRECTORY,
      "vocabulary": paths.INPUT_FILE,
    },
  )
  devices.leave_accelerators()

  from specialize_jax.checkpoints import conversion, opening, tokenizers
  from specialize_jax.files import locks
  from specialize_jax.t5 import config as t5_config

  if flags.verify == (flags.output is not None) or (
    flags.verify and flags.no_verify
  ):
    raise errors.UserError(
      "give --output=DIR, where the converted checkpoint is written, or "
      "--verify alone, which writes nothing."
    )
  written = ("to", "dtype", "vocab_size", "vocabulary", "extra_ids",
             "t5x_layers", "max_shard_mib")  # fmt: skip
  parsers.check_only_with(flags, written, not flags.verify, "--output")
  parsers.check_only_with(
    flags, ["extra_ids"], flags.vocabulary is not None, "--vocabulary"
  )
  if flags.to == "t5x" and flags.vocabulary is not None:
    raise errors.UserError(
      "--vocabulary goes with --to=ours and --to=huggingface: a checkpoint of"
      " T5X holds no vocabulary, which its gin files name instead."
    )
  checkpoint = opening.open_checkpoint(
    flags.checkpoint, verify=not flags.no_verify
  )
  if flags.verify:
    with progress.Progress(None, "arrays", title="verifying") as bar:
      verified = checkpoint.verify(on_array=_counting(bar))
    print(
      f"{flags.checkpoint}: {verified.num_arrays:,} arrays and all files are as"
      " saved"
      + "".join(f"\nnot verified: {what}" for what in verified.unverified)
    )
    return 0
  to = flags.to or ("huggingface" if checkpoint.kind == "ours" else "ours")
  for name, format_of in (
    ("t5x_layers", "t5x"),
    ("max_shard_mib", "huggingface"),
  ):
    parsers.check_only_with(flags, [name], to == format_of, f"--to={format_of}")
  if to == "huggingface":
    paths.check("--output", flags.output, _FOLDER)
  vocabulary = None
  if flags.vocabulary is not None:
    checkpoint.check_vocabulary(
      flags.vocabulary, "--vocabulary", "leave it out, or give --no_verify"
    )
    vocabulary = tokenizers.from_sentencepiece(
      flags.vocabulary, extra_ids=flags.extra_ids
    )
  bar = progress.Progress(None, "tensors", title="converting")
  planned = conversion.plan(
    checkpoint,
    to=to,
    dtype=flags.dtype,
    vocab_size=flags.vocab_size,
    vocabulary=vocabulary,
    on_tensor=_counting(bar),
  )
  bar.total = planned.num_tensors
  with locks.file(flags.output, "--output"), bar:
    if to == "ours":
      path = conversion.write_ours(planned, flags.output)
    elif to == "t5x":
      path = conversion.write_t5x(
        planned, flags.output, layers=flags.t5x_layers
      )
    else:
      path = conversion.write_folder(
        planned, flags.output, max_shard_bytes=flags.max_shard_mib * 2**20
      )
  print(_summary(planned, path))
  _say_tokenizer(planned)
  if to == "huggingface":
    _say_unlike_t5(planned)
  eos_ids = planned.config.eos_ids
  if to == "t5x" and eos_ids != (t5_config.EOS_ID,):
    print(
      f"T5X ends sequences by its vocabulary's token: it has to be {eos_ids[0]}"
      " here, and whatever reads the checkpoint needs"
      f" --gin.T5Config.eos_ids='{eos_ids}'"
    )
  _say_decoding_settings(checkpoint)
  return 0


def _say_tokenizer(planned: conversion.Plan) -> None:
  """Prints that the checkpoint has a tokenizer which was not converted."""
  from specialize_jax.checkpoints import tokenizers

  there = [
    name
    for name in (*tokenizers.UNREAD_FILES, "tokenizer_config.json")
    if (planned.checkpoint.directory / name).is_file()
  ]
  if there and not planned.tokenizer_files:
    print(
      f"its tokenizer ({', '.join(there)}) is not read and was left out: copy"
      " the files yourself, save it as tokenizer.json, as"
      " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes"
      " it, or give --vocabulary"
    )


def _say_unlike_t5(planned: conversion.Plan) -> None:
  """Prints that transformers may encode otherwise than the model was taught."""
  from specialize_jax.checkpoints import tokenizers

  content = planned.tokenizer_files.get(tokenizers.SENTENCEPIECE)
  if content is None or tokenizers.WHOLE in planned.tokenizer_files:
    return
  unlike = tokenizers.unlike_t5(content)
  if unlike:
    print(
      f"{tokenizers.SENTENCEPIECE} has {', '.join(unlike)}: transformers'"
      " AutoTokenizer may encode otherwise than in training; encode with that"
      " file by the sentencepiece library, as specialize generate does"
    )


def _say_decoding_settings(checkpoint: opening.Checkpoint) -> None:
  from specialize_jax.checkpoints import huggingface

  settings = huggingface.decoding_settings(checkpoint.generation_config)
  if settings:
    print(
      f"generation_config.json also sets {', '.join(sorted(settings))}: kept "
      "for Hugging Face; specialize generate decodes as its own flags say"
    )


def _summary(planned: conversion.Plan, path: object) -> str:
  rows, read = planned.config.vocab_size, planned.num_rows_read
  changed = ""
  if rows > read:
    changed = f"; vocabulary filled up from {read:,} to {rows:,} rows"
  elif rows < read:
    changed = f"; vocabulary cut from {read:,} to {rows:,} rows"
  return (
    f"{path}: {planned.num_tensors:,} tensors, "
    f"{planned.num_bytes / 2**20:,.1f} MiB of {planned.config.param_dtype}"
    f"{changed}"
  )


def _counting(bar: progress.Progress) -> Callable[[int], None]:
  """Returns a callback that counts tensors by their sizes in bytes."""
  total = 0

  def count(num_bytes: int) -> None:
    nonlocal total
    total += num_bytes
    bar.advance(detail=f"{total / 2**20:,.1f} MiB")

  return count


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("convert", sys.argv[1:]))
