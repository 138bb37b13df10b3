"""`specialize generate`: decodes a file of inputs with a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import sys
import time
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  devices,
  flag_types,
  logs,
  parsers,
  registered_tasks,
)
from specialize_jax.cot import formats
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.checkpoints import opening
  from specialize_jax.cot import answer_rules
  from specialize_jax.datasets import files
  from specialize_jax.decoding import (
    generator,
    requests,
    resumable,
    vocabulary,
  )

_EXAMPLE = """example (after `specialize demo --output_dir=demo_output`):
  echo '{"question": "Tom has 3 pens. He buys 4 pens. How many pens does Tom \\
have?"}' > inputs.jsonl
  specialize generate --checkpoint=demo_output/specialize \\
    --vocabulary=demo_output/world/mini/student.model \\
    --inputs=inputs.jsonl --outputs=outputs.jsonl --max_new_tokens=64
A question is rendered as in the student's training data, with the wording of
--dataset or of the dataset file next to the checkpoint, or else the paper's. So
samples vote by that file's answer rule; without one, on numbers. An interrupted
command is resumed when it is started again.
"""

# Batches whose inputs are sorted by length together: more of them mean less
# padding, and a longer wait until a row can be written in its place.
_WINDOW_BATCHES = 16


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize generate",
    description='Decodes JSONL rows with "question", or with a whole prompt '
    'as "text" or "input_ids". Output rows '
    'keep the other fields and add "output_ids" and, if there is a vocabulary, '
    '"output". A row that also has "target" or "target_ids" is scored instead: '
    '"target_log_probs", one per target token.',
    epilog=_EXAMPLE,
  )
  _add_files(parser)
  _add_strategy(parser.add_argument_group("decoding"))
  _add_machine(parser.add_argument_group("execution"))
  devices.add_flags(parser)
  logs.add_flags(parser)
  return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--checkpoint",
    required=True,
    metavar="PATH",
    help="a run's model_dir or one of its checkpoints, a Hugging Face folder, "
    "or a T5X checkpoint",
  )
  parser.add_argument(
    "--no_verify",
    action="store_true",
    help="read --checkpoint without comparing it with its digests",
  )
  parser.add_argument(
    "--inputs",
    required=True,
    metavar="FILE.jsonl",
    help="rows to decode; all are validated before the first is decoded",
  )
  parser.add_argument(
    "--format",
    choices=[one.name for one in formats.FORMATS],
    help='the format of a "question" (default: zero_shot_chain_of_thought);'
    " in-context formats have demonstrations from --dataset",
  )
  registered_tasks.add_dataset_flag(parser)
  parser.add_argument(
    "--outputs",
    required=True,
    metavar="FILE.jsonl",
    help="rows in the inputs' order; FILE.jsonl.progress next to it has the "
    "settings, to resume an interrupted run",
  )
  parser.add_argument(
    "--overwrite",
    action="store_true",
    help="overwrite --outputs",
  )
  parser.add_argument(
    "--vocabulary",
    metavar="SPIECE",
    help="the model's SentencePiece file (default: the checkpoint's, if there "
    "is one)",
  )


def _add_strategy(group: argparse._ArgumentGroup) -> None:
  group.add_argument(
    "--strategy",
    default="greedy",
    choices=("greedy", "sample", "beam"),
    help="(default: greedy)",
  )
  whole = {"type": flag_types.whole(1), "metavar": "N"}
  seed = {"type": flag_types.whole(0, errors.MAX_SEED), "metavar": "N"}
  real = {"type": flag_types.real(), "metavar": "X"}
  for name, default, kind, what in (
    ("max_new_tokens", 128, whole, "maximum number of output tokens and EOS "),
    ("num_beams", None, whole, "number of beams, with --strategy=beam "),
    ("num_return_sequences", 1, whole, 'sequences per row, as "outputs" '),
    ("length_penalty", 1.0, real, "of beam search: a score is divided by the "
     "length to this power "),
    ("temperature", 1.0, real, "of samples "),
    ("top_k", None, whole, "sample from the k most likely tokens "),
    ("top_p", 1.0, real, "sample from the fewest tokens with this mass "),
    ("num_samples", 1, whole, 'samples per row, as "outputs" '),
    ("seed", 0, seed, "a sample is a function of seed, row and number "),
  ):  # fmt: skip
    shown = {"num_beams": 4, "top_k": "all"}.get(name, default)
    group.add_argument(
      f"--{name}", default=default, help=f"{what}(default: {shown})", **kind
    )
  for name, what in (
    ("self_consistency", 'vote over samples: adds "voted_answer" and '
     '"vote_shares"; the output is the likeliest sample with that answer'),
    ("calculator", "force the result of arithmetic such as `48/2 =`"),
    ("log_probs", 'add "output_log_probs", one per token'),
  ):  # fmt: skip
    group.add_argument(f"--{name}", action="store_true", help=what)


def _add_machine(group: argparse._ArgumentGroup) -> None:
  group.add_argument(
    "--max_input_length",
    type=flag_types.whole(1),
    default=1024,
    metavar="N",
    help="a longer input is an error (default: 1024)",
  )
  group.add_argument(
    "--truncate",
    action="store_true",
    help="truncate longer inputs instead, and report their number",
  )
  group.add_argument(
    "--batch_size",
    type=flag_types.whole(1),
    default=32,
    metavar="N",
    help="rows decoded together; changes no output (default: 32)",
  )
  group.add_argument(
    "--dtype",
    default="float32",
    choices=("float32", "bfloat16"),
    help="dtype of activations; bfloat16 is faster on TPUs (default: float32)",
  )
  group.add_argument(
    "--mesh",
    default="",
    metavar="AXIS=N,...",
    help="devices along data, fsdp and model, such as fsdp=4,model=2; the "
    "remaining ones are along data (default: all)",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Decodes a file, or the rest of it."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "checkpoint": paths.CHECKPOINT,
      "inputs": paths.INPUT_FILE,
      "dataset": registered_tasks.DATASET_FILE,
      "vocabulary": paths.INPUT_FILE,
      "outputs": paths.RESUMED_FILE,
    },
  )

  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  devices.start(flags)

  from specialize_jax.files import locks

  with locks.file(flags.outputs, "--outputs"):
    return _generate(flags, own)


def _generate(flags: argparse.Namespace, own: files.DatasetFile | None) -> int:
  from specialize_jax.checkpoints import opening
  from specialize_jax.cot import answer_rules
  from specialize_jax.decoding import bucketing, generator, requests, resumable
  from specialize_jax.decoding import rows as file_rows
  from specialize_jax.files import reading
  from specialize_jax.t5 import network

  # All that can be wrong is found before the first device computation.
  given = {
    field.name: getattr(flags, field.name)
    for field in dataclasses.fields(requests.Settings)
  }
  if given["num_beams"] is None:
    del given["num_beams"]
  for strategy, names in (
    ("beam", ("num_beams", "length_penalty")),
    ("sample", ("temperature", "top_k", "top_p", "seed")),
  ):
    parsers.check_only_with(
      flags, names, flags.strategy == strategy, f"--strategy={strategy}"
    )
  settings = requests.Settings(**given)
  if settings.self_consistency and own is not None:
    own.dataset.in_distribution.answer.check_votes()
  rows = reading.read_numbered_rows(flags.inputs)
  if not rows:
    raise errors.UserError(
      f'--inputs={flags.inputs} has no rows: expected at least one {{"text"}}.'
    )
  checkpoint = opening.open_checkpoint(
    flags.checkpoint, verify=not flags.no_verify
  )
  vocabulary_ = _vocabulary(flags.vocabulary, checkpoint)
  reader = file_rows.Reader(
    where=f"--inputs={flags.inputs}",
    model=checkpoint.config,
    vocabulary=vocabulary_,
    input_limit=flags.max_input_length,
    truncate=flags.truncate,
  )
  kept = _kept(checkpoint) if own is None else None
  written = _written(rows, flags, kept, own)
  rule = answer_rules.NUMBER
  if settings.self_consistency:
    rule = _rule(kept, own)
  asked, num_cut = reader.read(written)
  config = dataclasses.replace(
    checkpoint.config, dtype=flags.dtype, scan_layers=False
  )  # decoding wants each layer's parameters apart
  placed = _placement(flags.mesh, flags.batch_size)
  batch_size = bucketing.fitting_batch_size(
    len(rows),
    batch_size=flags.batch_size,
    num_shards=placed.rules.batch_shards(placed.mesh),
  )
  decoder = generator.Generator(
    network.EncoderDecoder(config),
    settings,
    vocabulary=vocabulary_,
    batch_size=batch_size,
    input_limit=flags.max_input_length,
    rule=rule,
  )
  outputs = resumable.ResumableRows(
    flags.outputs,
    made_of=_made_of(rows, flags, settings, checkpoint, vocabulary_)
    | ({} if written == rows else {"the prompts": _fingerprint(written)})
    | ({} if rule == answer_rules.NUMBER else {"the answer rule": repr(rule)}),
    num_rows=len(rows),
    belongs=lambda number, row: file_rows.is_output_of(row, rows[number][1]),
    overwrite=flags.overwrite,
  )
  if num_cut:
    _say(f"cut {num_cut:,} of {len(rows):,} inputs to their first "
         f"{flags.max_input_length:,} tokens")  # fmt: skip
  done = outputs.done()
  if done:
    _say(f"{len(done):,} of {len(rows):,} rows are there already")

  params = checkpoint.params(placed, config) if len(done) < len(rows) else {}
  with outputs, placed.entered():
    results = _decoded(decoder, params, asked, done, batch_size)
    _write(results, outputs, rows, flags.log_probs)
  print(f"{len(rows):,} rows: {flags.outputs}")
  return 0


def _written(
  rows: Sequence[tuple[int, Mapping[str, object]]],
  flags: argparse.Namespace,
  kept: files.Kept | None,
  own: files.DatasetFile | None,
) -> Sequence[tuple[int, Mapping[str, object]]]:
  """Returns rows whose "question" is written as a prompt, as "text".

  Raises:
    UserError: a question is not text, or there is nothing to show before it.
  """
  from specialize_jax.files import writing

  asked = [
    (line, row)
    for line, row in rows
    if row.get("question") is not None
    and row.get("text") is None
    and row.get("input_ids") is None
  ]
  if not asked:
    if flags.format:
      raise errors.UserError(
        f"--format={flags.format} says how a question is written, and no row of"
        f' --inputs={flags.inputs} has "question" without "text"'
      )
    return rows
  for line, row in asked:
    if not isinstance(row["question"], str):
      raise errors.UserError(
        f'--inputs={flags.inputs}, line {line}: "question" is'
        f" {str(row['question'])[:40]!r}, and must be a string."
      )
    if writing.printable(row["question"]) != row["question"]:
      raise errors.UserError(
        f'--inputs={flags.inputs}, line {line}: "question" holds half of a'
        " surrogate pair, which is not text."
      )
  wording = formats.PAPER
  if own is not None:
    wording = own.dataset.wording
  elif kept is not None:
    wording = kept.wording
  data_format = formats.by_name(
    flags.format or formats.ZERO_SHOT_CHAIN_OF_THOUGHT.name, wording
  )
  shown: Sequence[formats.Demonstration] = ()
  if data_format.in_context:
    if own is None:
      raise errors.UserError(
        f"--format={flags.format} shows solved questions: give the"
        " --dataset=FILE.yaml that has them, or rows with the whole prompt as"
        ' "text"'
      )
    shown = own.dataset.in_distribution.read_demonstrations()
  prompts = {
    line: formats.render_prompt(
      row["question"].strip(),
      data_format,
      _drawn(shown, row["question"], own.dataset.num_demonstrations)
      if shown
      else (),
    )
    for line, row in asked
  }
  return [
    (line, {**row, "text": prompts[line]} if line in prompts else row)
    for line, row in rows
  ]


def _kept(checkpoint: opening.Checkpoint) -> files.Kept | None:
  """Reads the dataset file next to a checkpoint, if there is one."""
  from specialize_jax.checkpoints import opening
  from specialize_jax.datasets import files
  from specialize_jax.files import reading

  path = opening.dataset_file(checkpoint)
  if path is None:
    return None
  return files.kept(reading.read_bytes(path), os.fspath(path))


def _rule(
  kept: files.Kept | None, own: files.DatasetFile | None
) -> answer_rules.AnswerRule:
  """Returns what an answer is, by which samples vote."""
  from specialize_jax.cot import answer_rules

  if own is not None:
    return own.dataset.in_distribution.answer
  return kept.rule_to_run() if kept is not None else answer_rules.NUMBER


def _drawn(
  shown: Sequence[formats.Demonstration], question: str, number: int
) -> list[formats.Demonstration]:
  """Draws what a prompt shows: the same for a question every time."""
  others = [one for one in shown if one.question.strip() != question.strip()]
  draw = random.Random(question)  # noqa: S311  (not for secrets)
  return draw.sample(others, min(number, len(others)))


def _write(
  results: Iterator[Mapping[int, requests.Result]],
  outputs: resumable.ResumableRows,
  given: Sequence[tuple[int, Mapping[str, object]]],
  log_probs: bool,
) -> None:
  """Writes each batch as it comes, and shows the progress."""
  from specialize_jax.decoding import rows
  from specialize_jax.terminal import progress

  num_tokens, began = 0, time.monotonic()
  done = len(outputs.done())
  with progress.Progress(len(given), "rows", done=done) as bar:
    for batch in results:
      outputs.add(
        {
          number: rows.output_row(given[number][1], result, log_probs=log_probs)
          for number, result in batch.items()
        }
      )
      num_tokens += sum(result.num_tokens for result in batch.values())
      rate = num_tokens / (time.monotonic() - began)
      bar.advance(len(batch), f"{rate:,.0f} tokens/s")


def _decoded(
  decoder: generator.Generator,
  params: Mapping[str, object],
  asked: Sequence[requests.Request],
  done: Collection[int],
  batch_size: int,
) -> Iterator[Mapping[int, requests.Result]]:
  """Yields results by row number, one window of the file after another."""
  size = _WINDOW_BATCHES * batch_size
  for start in range(0, len(asked), size):
    window = asked[start : start + size]
    there = {number - start for number in done}
    for batch in decoder.run(params, window, done=there):
      yield {start + place: result for place, result in batch.items()}


def _vocabulary(
  path: str | None, checkpoint: opening.Checkpoint
) -> vocabulary.Vocabulary | None:
  """Opens the vocabulary that is named, or else the checkpoint's own."""
  from specialize_jax.decoding import vocabulary

  found = path or vocabulary.beside(checkpoint.tokenizer_files)
  if found is None:
    return None
  opened = vocabulary.from_file(found)
  if path is not None:
    checkpoint.check_vocabulary(
      path, "--vocabulary", "leave --vocabulary out, or give --no_verify"
    )
  vocabulary.check_size(
    opened,
    checkpoint.config.vocab_size,
    found,
    own=path is None and checkpoint.is_ours,
  )
  return opened


def _placement(mesh: str, batch_size: int) -> object:
  """Arranges the devices, and checks that they cut a batch evenly."""
  from specialize_jax.parallel import mesh as meshes
  from specialize_jax.parallel import placement

  axes = {}
  for part in filter(None, mesh.split(",")):
    name, _, size = part.partition("=")
    if (
      name not in meshes.AXES
      or name in axes
      or not size.removeprefix("-").isdecimal()
    ):
      raise errors.UserError(
        f"--mesh={mesh}: {part!r} is not one of {', '.join(meshes.AXES)} with "
        "a number, each given once, such as fsdp=4."
      )
    axes[name] = int(size)
  placed = placement.Placement(mesh=meshes.make_mesh(**axes))
  num_shards = placed.rules.batch_shards(placed.mesh)
  if batch_size % num_shards:
    raise errors.UserError(
      f"--batch_size={batch_size} cannot be split over {num_shards} devices "
      "along the mesh axes data and fsdp: give a multiple of it."
    )
  return placed


def _made_of(
  rows: Sequence[tuple[int, Mapping[str, object]]],
  flags: argparse.Namespace,
  settings: requests.Settings,
  checkpoint: opening.Checkpoint,
  vocabulary_: vocabulary.Vocabulary | None,
) -> dict[str, object]:
  """Returns everything that outputs depend on, by the name of the flag.

  The batch size and the mesh do not change outputs, and are not included.
  """
  return {
    "--inputs": _fingerprint(rows),
    "--checkpoint": _absolute(flags.checkpoint),
    "the checkpoint's step": checkpoint.step,
    # Another may have been trained or copied to that place meanwhile.
    "the checkpoint's fingerprint": checkpoint.fingerprint(),
    "--vocabulary": vocabulary_.fingerprint if vocabulary_ else None,
    **{f"--{name}": v for name, v in dataclasses.asdict(settings).items()},
    "--log_probs": flags.log_probs,
    "--max_input_length": flags.max_input_length,
    "--truncate": flags.truncate,
    "--dtype": flags.dtype,
  }


def _fingerprint(rows: Sequence[tuple[int, Mapping[str, object]]]) -> str:
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _absolute(path: str) -> str:
  is_local = not paths.is_in_bucket(path) and os.path.exists(path)
  return os.path.realpath(path) if is_local else path  # a hub's name stays


def _say(text: str) -> None:
  print(f"specialize generate: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  from specialize_jax.cli import main as cli_main

  sys.exit(cli_main.run("generate", sys.argv[1:]))
