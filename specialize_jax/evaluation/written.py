"""What is written down and read back: rows of JSON, whole or not at all.

A prediction is kept as one row, `{"question_id", "prompt", "prediction",
"target", "extracted", "correct", "verdicts"}`, so that a grade can be looked
into, and redone by another rule, without a model.
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping

from specialize_jax import errors

Path = str | pathlib.Path


def write_text(path: Path, text: str) -> None:
  """Writes a file that appears complete or not at all.

  The text goes to a neighbour first, which then takes the name: a reader
  never sees half a file, and a killed writer leaves the old one.

  Args:
    path: where to; missing directories are made.
    text: what to write, as UTF-8.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
  try:
    with os.fdopen(handle, "w", encoding="utf-8") as file:
      file.write(text)
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def write_json(path: Path, value: object) -> None:
  """Writes one JSON value, indented for people, complete or not at all."""
  write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
  """Writes JSON lines, complete or not at all."""
  write_text(
    path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
  )


def read_rows(path: Path) -> list[dict[str, object]]:
  """Reads JSON lines, one object a line; empty lines are passed over.

  Raises:
    UserError: there is no such file, or a line is not a JSON object; the
      message names the line.
  """
  path = pathlib.Path(path)
  if not path.exists() or path.is_dir():  # a pipe is no plain file, and fine
    raise errors.UserError(
      f"there is no {path}: expected a file of JSON lines."
    )
  rows = []
  # Only "\n" ends a row: a prediction may hold other line separators.
  lines = path.read_bytes().decode("utf-8", "replace").split("\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise errors.UserError(
        f"{path}, line {number} is not JSON ({error}): got {line[:60]!r}, "
        "expected one object a line; mend or remove the line."
      ) from error
    if not isinstance(row, dict):
      raise errors.UserError(
        f"{path}, line {number} is not a JSON object: got {line[:60]!r}; "
        'expected a row such as {"prediction": ..., "target": ...}.'
      )
    rows.append(row)
  return rows


def _umask() -> int:
  """The process's file mode mask, which can only be read by setting it."""
  mask = os.umask(0)
  os.umask(mask)
  return mask
