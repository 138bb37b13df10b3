"""`specialize inspect`: shows the alignment of a sample, or a task's example.

Shows the alignment of a record (both token sequences, their groups, the
teacher's alternatives) and examples of a registered task as the model sees
them, in the terminal and as a self-contained HTML page.
"""

from __future__ import annotations

import argparse
import codecs
import itertools
import math
import sys
import typing
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cli import (
  flag_types,
  parsers,
  registered_tasks,
  teacher_records,
)
from specialize_jax.files import paths

if typing.TYPE_CHECKING:
  from specialize_jax.align import student
  from specialize_jax.records import schema

_EXAMPLE = """example (records and vocabulary as `specialize demo` leaves them):
  specialize inspect --records=demo_output/world/mini/records \\
    --vocabulary=demo_output/world/mini/student.model --sample=3 \\
    --html=sample.html
  specialize inspect --data_dir=demo_output/world \\
    --task=mini_gsm_teacher_in_context_chain_of_thought_v1
the sets, prompts and names of your own domain:
  specialize inspect --dataset=tickets.yaml
"""


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize inspect",
    description="Shows the alignment of a teacher's sample with the student's"
    " tokens, and examples of a task as the model sees them.",
    epilog=_EXAMPLE,
  )
  teacher_records.add_flags(parser, required=False)
  parser.add_argument(
    "--sample",
    type=flag_types.whole(0),
    default=0,
    metavar="N",
    help="number of the record in the store, or of the task's example, from 0",
  )
  parser.add_argument(
    "--task",
    metavar="NAME",
    help="a registered seqio task whose example is shown",
  )
  parser.add_argument(
    "--split",
    help="the split of the task (default: train, or else its first)",
  )
  parser.add_argument(
    "--html", metavar="FILE.html", help="also write a self-contained page"
  )
  registered_tasks.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Shows what was asked for."""
  flags = build_parser().parse_args(argv)
  if not flags.records and not flags.task and not flags.dataset:
    raise errors.UserError(
      "nothing to show: give --records and --vocabulary, --task, or --dataset"
    )
  if flags.records and not flags.vocabulary and not flags.dataset:
    raise errors.UserError("--records needs --vocabulary, the student's own")
  parsers.check_only_with(
    flags,
    ("vocabulary", "mode", "keep_truncated"),
    bool(flags.records),
    "--records",
  )
  parsers.check_only_with(flags, ["split"], bool(flags.task), "--task")
  paths.check_flags(
    flags,
    {
      "records": paths.INPUT_PATH,
      "vocabulary": paths.INPUT_FILE,
      "html": paths.OUTPUT_FILE,
      **registered_tasks.PATHS,
    },
  )

  if not flags.html:
    return _inspect(flags)
  from specialize_jax.files import locks

  with locks.file(flags.html, "--html"):
    return _inspect(flags)


def _inspect(flags: argparse.Namespace) -> int:
  from specialize_jax.datasets import overview
  from specialize_jax.files import writing
  from specialize_jax.reports import sample_view

  sections = []
  own = None
  if flags.task:
    own = registered_tasks.register_for(flags)
  elif flags.dataset:
    own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  if own is not None and flags.vocabulary is None:
    flags.vocabulary = own.dataset.vocabulary.path
  if own is not None and not flags.records and not flags.task:
    title, text = f"Dataset {own.dataset.name}", overview.text(own)
    print(writing.visible(f"{title}\n\n{text}"))
    sections.append(sample_view.text_section(title, text))
  if flags.records:
    title, example = _aligned(flags)
    print(sample_view.alignment_text(title, example, _width()))
    sections.append(sample_view.alignment_section(title, example))
  if flags.task:
    title, parts = _task_example(flags)
    print(sample_view.parts_text(title, parts))
    sections.append(sample_view.parts_section(title, parts))
  if flags.html:
    writing.write_text(flags.html, sample_view.page(sections))
    print(flags.html)
  return 0


def _width() -> int:
  from rich import console

  return console.Console().width


def _aligned(flags: argparse.Namespace) -> tuple[str, dict[str, typing.Any]]:
  """Aligns the record that was asked for."""
  from specialize_jax.align import student, targets
  from specialize_jax.data import aligned_records
  from specialize_jax.records import store

  tokenizer = student.SentencePieceStudent.from_file(flags.vocabulary)
  records = store.read_records(flags.records)
  record = next(itertools.islice(records, flags.sample, None), None)
  if record is None:
    raise errors.UserError(
      f"--sample={flags.sample}: {flags.records} has fewer records"
    )
  aligned = aligned_records.align_record(
    record, tokenizer, mode=flags.mode, keep_truncated=flags.keep_truncated
  )
  title = f"{record.question_id}, sample {record.sample}, {flags.mode}"
  if isinstance(aligned, targets.Rejected):
    raise errors.UserError(f"{title} is rejected: {aligned.reason}")
  return title, _example(record, aligned, tokenizer)


def _example(
  record: schema.TeacherRecord,
  aligned: typing.Any,
  tokenizer: student.SentencePieceStudent,
) -> dict[str, typing.Any]:
  """Returns a sample in the form that `reports.alignment_view` reads."""
  return {
    "teacher_tokens": _legible([step.spelling for step in record.steps]),
    "student_pieces": list(aligned.pieces),
    "groups": [
      [list(group.teacher), list(group.student)] for group in aligned.groups
    ],
    "targets": [
      [
        [tokenizer.id_to_piece(index), math.exp(log_prob)]
        for index, log_prob in zip(ids, log_probs, strict=True)
        if log_prob > -math.inf
      ]
      for ids, log_probs in zip(
        aligned.top_ids_TC.tolist(),
        aligned.top_log_probs_TC.tolist(),
        strict=True,
      )
    ],
    "mask": aligned.mask_T.tolist(),
  }


def _legible(spellings: Sequence[bytes]) -> list[str]:
  """Decodes tokens, which may end within a character.

  A character is shown at the token that completes it; an ellipsis stands for
  bytes that a later token completes.

  Example: "이것" in tokens of two bytes is "…", "이…", "것".
  """
  decoder = codecs.getincrementaldecoder("utf-8")("replace")
  texts = []
  for number, spelling in enumerate(spellings, start=1):
    text = decoder.decode(spelling, final=number == len(spellings))
    begun, _ = decoder.getstate()
    texts.append(f"{text}…" if begun else text)
  return texts


def _task_example(
  flags: argparse.Namespace,
) -> tuple[str, list[tuple[str, list[str], list[int] | None]]]:
  """Reads an example of a task: its parts as pieces, and their masks."""
  from specialize_jax.data import example_stream

  task = example_stream.find_provider(flags.task, "--task")
  splits = sorted(task.splits)
  if flags.split is None:
    flags.split = "train" if "train" in splits else next(iter(splits), "train")
  if flags.split not in task.splits:
    raise errors.UserError(
      f"--split={flags.split}: {flags.task} has {', '.join(task.splits)}"
    )
  dataset = task.get_dataset(
    sequence_length=None, split=flags.split, shuffle=False, seed=0
  )
  row: Mapping | None = next(
    dataset.skip(flags.sample).take(1).as_numpy_iterator(), None
  )
  if row is None:
    raise errors.UserError(
      f"--sample={flags.sample}: {flags.task} has fewer examples"
    )
  parts = []
  for name in ("inputs", "targets"):
    if name not in task.output_features:
      continue
    vocabulary = task.output_features[name].vocabulary
    pieces = [_piece(vocabulary, int(i)) for i in row[name]]
    mask = row.get("teacher_top_mask") if name == "targets" else None
    parts.append((name, pieces, None if mask is None else mask.tolist()))
  return f"{flags.task}, {flags.split} {flags.sample}", parts


def _piece(vocabulary: object, index: int) -> str:
  """Returns a token's spelling, or what it decodes to by itself."""
  tokenizer = getattr(vocabulary, "tokenizer", None)
  if hasattr(tokenizer, "id_to_piece") and index < tokenizer.get_piece_size():
    return tokenizer.id_to_piece(index)
  return vocabulary.decode([index])


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("inspect", sys.argv[1:]))
