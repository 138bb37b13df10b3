"""Files of JSON lines, one object a line, read with their line numbers."""

import json
import os
import pathlib

from specialize_jax import errors


def read(path: str | os.PathLike[str]) -> list[tuple[int, dict[str, object]]]:
  """Reads JSON lines; empty lines are passed over.

  Returns:
    Each row with the number of its line, from 1.

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
  # Only "\n" ends a row: a text may hold other line separators.
  lines = path.read_bytes().decode("utf-8", "replace").split("\n")
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise errors.UserError(
        f"{path}, line {number} is not JSON ({error}): got {line[:60]!r}, "
        "expected one object a line; mend or remove the line."
      ) from error
    if not isinstance(row, dict):
      raise errors.UserError(
        f"{path}, line {number} is not a JSON object: got {line[:60]!r}; "
        'expected a row such as {"text": ...}.'
      )
    rows.append((number, row))
  return rows
