"""What is written down and read back: rows of JSON, whole or not at all.

A prediction is kept as one row, `{"question_id", "prompt", "reference",
"prediction", "target", "extracted", "correct", "verdicts"}`, so that a grade
can be looked into, and redone by another rule, without a model.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping

from specialize_jax.records import json_lines, whole_file

Path = str | pathlib.Path


def write_json(path: Path, value: object) -> None:
  """Writes one JSON value, indented for people, complete or not at all."""
  text = json.dumps(value, indent=2, ensure_ascii=False)
  whole_file.write_text(path, text + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
  """Writes JSON lines, complete or not at all."""
  with whole_file.opened(path) as stream:
    for row in rows:
      stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict[str, object]]:
  """Reads JSON lines, one object a line; empty lines are passed over.

  Raises:
    UserError: there is no such file, or a line is not a JSON object; the
      message names the line.
  """
  return [row for _, row in json_lines.read(path)]
