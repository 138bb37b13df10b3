"""`specialize import`: imports samples of others into a record store.

An import statement cannot refer to a module of this name, but `importlib`,
`python -m` and the console script can.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import pathlib
import sys
import typing
from collections.abc import Iterable, Iterator, Sequence

from specialize_jax import errors
from specialize_jax.cli import logs, parsers, registered_tasks
from specialize_jax.files import locks, paths, writing

if typing.TYPE_CHECKING:
  from specialize_jax.records import schema
  from specialize_jax.teacher import importing

_EXAMPLE = r"""example (one response of the chat endpoint):
  echo '{"question_id": 0, "question": "What is 3 + 4?", "answer": "7",
   "choices": [{"message": {"content": "7"}, "logprobs": {"content": [{"token":
   "7", "logprob": -0.1, "top_logprobs": [{"token": "7", "logprob": -0.1}]}]}}]
   }' | tr -d '\n' > responses.jsonl
  specialize import --input=responses.jsonl --output=imported
"""

_MAX_REASONS = 8  # that are named
_INPUT = paths.INPUT_PATH.local("what others released is read from a disk")
_KINDS = (
  "auto",
  "text_dump",
  "pickles",
  "released_json",
  "responses",
  "stream",
)


def build_parser() -> argparse.ArgumentParser:
  """Builds the parser of the command's flags."""
  parser = parsers.Parser(
    prog="specialize import",
    description="Imports the files that the paper's authors released, or"
    " responses of an OpenAI-compatible endpoint, into a record store, and"
    " grades them. The store is written atomically.",
    epilog=_EXAMPLE,
  )
  parser.add_argument(
    "--input",
    required=True,
    metavar="PATH",
    help="the authors' text dump; the folder of their codex_*.pkl; the .pkl of"
    " a format; their JSON; a .jsonl of responses, each with question_id,"
    " question and answer, or in the form of batch files; or the saved events"
    " of a stream",
  )
  parser.add_argument(
    "--format",
    default="auto",
    choices=_KINDS,
    help="the input's format (default: auto, by its first character)",
  )
  parser.add_argument(
    "--questions",
    metavar="FILE.jsonl",
    help='rows of {"question", "answer"} for inputs that refer to questions by'
    " id or by number from 0",
  )
  registered_tasks.add_dataset_flag(parser)
  parser.add_argument(
    "--output",
    required=True,
    metavar="DIR",
    help="the new record store; must not exist",
  )
  logs.add_flags(parser)
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Imports a source whole, or leaves nothing."""
  flags = build_parser().parse_args(argv)
  logs.start(flags)
  paths.check_flags(
    flags,
    {
      "input": _INPUT,
      "questions": paths.INPUT_FILE,
      "dataset": registered_tasks.DATASET_FILE,
      "output": paths.LOCAL_STORE,
    },
  )

  from specialize_jax.cli import asked_questions
  from specialize_jax.records import schema, store
  from specialize_jax.teacher import importing

  path = pathlib.Path(flags.input)
  kind = importing.kind_of(path)
  if flags.format not in ("auto", kind):
    kind = flags.format
  own = registered_tasks.load_dataset(flags.dataset, flags.imports)
  problems, rule = [], None
  if own is not None:
    rule = own.dataset.in_distribution.answer
    problems = asked_questions.of_dataset(own)
  if flags.questions and own is not None:
    raise errors.UserError(
      f"--questions={flags.questions} and --dataset={flags.dataset} both name"
      " the questions: give one"
    )
  if flags.questions:
    problems = asked_questions.read_file(flags.questions)
  source = importing.Importer(path, kind, problems, rule)
  count = right = graded = unfinished = 0
  with (
    _new_store(flags.output) as directory,
    store.RecordWriter(directory) as writer,
  ):
    for record in _with_progress(source.records()):
      writer.append(record)
      count += 1
      graded += bool(record.verdicts)
      right += record.verdicts.get("fixed", False)
      why = schema.why_unfinished(record, len(record.steps))
      unfinished += why is not None
    if not count:
      raise errors.UserError(f"--input={path} gave no record{_reasons(source)}")
  words = [f"{flags.output}: {count:,} samples"]
  words.append(f"{right:,} of {graded:,} graded are right")
  if graded < count:
    words.append(
      f"{count - graded:,} not graded, as their gold answer is not a number"
      " (give --dataset=FILE.yaml, which has the answer rule) or is unknown"
    )
  if unfinished:
    words.append(f"{unfinished:,} not finished, which prepare drops")
  print(f"{', '.join(words)}{_reasons(source)}")
  return 0


def _reasons(source: importing.Importer) -> str:
  """Returns what was left out, and why, in words."""
  words = ""
  if source.rejected:
    words += f"; left out: {_counted(source.rejected)}"
  if source.reasoning_tokens:
    words += f"; reasoning of {source.reasoning_tokens:,} tokens cut off"
  if source.left_out:
    words += f"; alternatives left out: {_counted(source.left_out)}"
  return words


def _counted(reasons: collections.Counter[str]) -> str:
  """Returns reasons with their counts, the commonest first."""
  common = reasons.most_common(_MAX_REASONS)
  words = [f"{number:,} {reason}" for reason, number in common]
  others = len(reasons) - len(common)
  if others:
    number = reasons.total() - sum(number for _, number in common)
    words.append(f"{number:,} for {others:,} other reasons")
  return ", ".join(words)


@contextlib.contextmanager
def _new_store(path: str) -> Iterator[pathlib.Path]:
  """Makes a folder to write in, which takes its name when all is written."""
  place = pathlib.Path(path)
  with locks.file(place, "--output"):
    if place.exists() and any(place.iterdir()):
      raise errors.UserError(
        f"--output={path} exists; records are kept for ever, so give another"
        " directory or remove that one yourself"
      )
    with writing.new_directory(place) as unfinished:
      yield unfinished


def _with_progress(
  records: Iterable[schema.TeacherRecord],
) -> Iterator[schema.TeacherRecord]:
  """Shows on standard error how many records have passed, and how fast."""
  from specialize_jax.terminal import progress

  with progress.Progress(None, "samples", title="importing") as bar:
    for record in records:
      yield record
      bar.advance()


if __name__ == "__main__":
  from specialize_jax.cli import main as command_line

  sys.exit(command_line.run("import", sys.argv[1:]))
