"""Where teacher records lie: an append-only file of lines, read and written.

A store is a directory that holds `records.jsonl`. One record is one line, and
a line counts once its newline is on disk: a writer that is killed leaves at
most one unfinished line, the last, which the next writer removes and a reader
refuses. Appending never rewrites a byte, so no crash can lose a record.
"""

import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Self

from specialize_jax import errors
from specialize_jax.records import schema

FILE_NAME = "records.jsonl"

# The prompt ends "... step by step\n" and a sample ends with a blank line: the
# released records keep both (FranxYao/FlanT5-CoT-Specialization:
# notebooks/dev_align_codex_to_flan_t5_dtw.ipynb, `transform_step_probs`).
_PROMPT_TAIL = (" step", "\n")
_STOPS = (("\n", "\n"), ("\n\n", "\n"))


def read_records(
  path: str | os.PathLike[str],
) -> Iterator[schema.TeacherRecord]:
  """Reads records one at a time, in the order they were written.

  Args:
    path: A store's directory, or a `.jsonl` file of such lines, or a JSON
      list of `{"question_id", "sample", "steps"}` as the paper's samples are
      released: a step is `[token, probability]` pairs, the sampled one
      first. That form holds neither question nor gold answer (both are "")
      and is graded by nobody (no verdicts).

  Yields:
    Whole records. An empty store yields none.

  Raises:
    UserError: nothing lies at `path`, or it is something else, or its last
      line is cut short, or a record is not whole.
  """
  file = _records_file(pathlib.Path(path))
  if _first_character(file) == "[":
    yield from _read_released(file)
  else:
    yield from _read_lines(file)


def _records_file(path: pathlib.Path) -> pathlib.Path:
  """Finds the file of a store."""
  if path.is_dir():
    file = path / FILE_NAME
    if not file.is_file():
      raise errors.UserError(
        f"{path} is no record store: it has no {FILE_NAME}; give the"
        " directory that `specialize teach` or `specialize import` wrote"
      )
    return file
  if not path.is_file():
    raise errors.UserError(
      f"record store {path} does not exist; give a store's directory, a"
      " .jsonl file of records or the paper's released JSON"
    )
  return path


def _first_character(file: pathlib.Path) -> str:
  with file.open("rb") as stream:
    for line in stream:
      if line.strip():
        return chr(line.strip()[0])
  return ""


def _read_lines(file: pathlib.Path) -> Iterator[schema.TeacherRecord]:
  with file.open("rb") as stream:
    for number, line in enumerate(stream, start=1):
      where = f"{file}, line {number}"
      if not line.endswith(b"\n") and not _is_json(line):
        raise errors.UserError(
          f"{where}, the last, is cut short after {len(line)} bytes; run the"
          " command that wrote the store again (it removes the line and goes"
          " on) or delete that line"
        )
      try:
        decoded = line.decode("utf-8")
      except UnicodeDecodeError as error:
        raise errors.UserError(f"{where} is not UTF-8: {error}") from error
      yield schema.from_json_line(decoded, where)


def _is_json(line: bytes) -> bool:
  """Whether a line is whole: no proper prefix of an object is one."""
  try:
    json.loads(line)
  except ValueError:
    return False
  return True


def _read_released(file: pathlib.Path) -> Iterator[schema.TeacherRecord]:
  try:
    entries = json.loads(file.read_bytes())
  except ValueError as error:
    raise errors.UserError(f"{file} is not whole JSON: {error}") from error
  for index, entry in enumerate(entries):
    where = f"{file}, entry {index}"
    try:
      record = _released_record(entry)
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise errors.UserError(
        f"{where} is not one of the paper's released samples"
        f" ({type(error).__name__}: {error}); expected an object with"
        " question_id, sample and steps of [token, probability] pairs"
      ) from error
    yield record


def _released_record(entry: Mapping) -> schema.TeacherRecord:
  """Turns one released sample into a record.

  The prompt's tail and the stop are dropped where they are found; what was
  dropped is noted in `request`, and a sample without a stop ended by length.
  """
  steps = entry["steps"]
  tokens = [step[0][0] for step in steps]
  tail = _PROMPT_TAIL if tuple(tokens[:2]) == _PROMPT_TAIL else ()
  stop = tuple(tokens[-2:]) if tuple(tokens[-2:]) in _STOPS else ()
  kept = steps[len(tail) : len(steps) - len(stop)]
  if not isinstance(entry["question_id"], (str, int)):
    raise TypeError(f"question_id is {entry['question_id']!r}")
  return schema.TeacherRecord(
    question_id=entry["question_id"],
    sample=int(entry["sample"]),
    question="",
    gold_answer="",
    text="".join(step[0][0] for step in kept),
    steps=tuple(_released_step(step) for step in kept),
    finish_reason="stop" if stop else "length",
    request={"prompt_tail": list(tail), "stop": list(stop)},
    verdicts={},
  )


def _released_step(step: Sequence) -> schema.TeacherStep:
  (token, prob), *top = step
  return schema.TeacherStep(
    token=token,
    log_prob=_log(prob),
    top=tuple((candidate, _log(value)) for candidate, value in top),
  )


def _log(prob: float) -> float:
  if not 0 <= prob <= 1:
    raise ValueError(f"probability {prob!r} is not between 0 and 1")
  return math.log(prob) if prob > 0 else -math.inf


class RecordWriter:
  """Appends records to a store, each durable once `flush` has returned.

  Use it as a context manager; leaving the block flushes. Opening a store
  that a killed writer left removes its unfinished last line, with a warning.
  """

  def __init__(self, directory: str | os.PathLike[str]) -> None:
    """Opens the store at `directory`, which is made where it is missing."""
    self._file = pathlib.Path(directory) / FILE_NAME
    self._file.parent.mkdir(parents=True, exist_ok=True)
    _mend_last_line(self._file)
    self._stream = self._file.open("ab")

  def append(self, record: schema.TeacherRecord) -> None:
    """Adds one record.

    Raises:
      UserError: the record's tokens do not spell its text.
    """
    schema.check_spelling(record)
    self._stream.write(schema.to_json_line(record).encode("utf-8") + b"\n")

  def flush(self) -> None:
    """Returns once every appended record is on disk."""
    self._stream.flush()
    os.fsync(self._stream.fileno())

  def close(self) -> None:
    """Flushes and closes the store."""
    self.flush()
    self._stream.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


def _mend_last_line(file: pathlib.Path) -> None:
  """Ends a whole last line with its newline; removes one that is cut short."""
  if not file.exists() or file.stat().st_size == 0:
    return
  with file.open("r+b") as stream:
    start = _last_line_start(stream)
    stream.seek(start)
    line = stream.read()
    if line.endswith(b"\n"):
      return
    if _is_json(line):
      stream.write(b"\n")
      return
    stream.truncate(start)
  warnings.warn(
    f"{file}: removed an unfinished last line of {len(line)} bytes, left by a"
    " writer that was stopped",
    stacklevel=3,
  )


def _last_line_start(stream: BinaryIO) -> int:
  """Gives the offset of the last line, read backwards in blocks."""
  block_bytes = 1 << 16
  end = stream.seek(0, os.SEEK_END)
  position = end - 1  # the last line's own newline does not end the one before
  while position > 0:
    start = max(0, position - block_bytes)
    stream.seek(start)
    found = stream.read(position - start).rfind(b"\n")
    if found >= 0:
      return start + found + 1
    position = start
  return 0
