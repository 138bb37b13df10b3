"""Finds the prediction and the target in a row.

Rows written by our commands, by other systems and by lm-evaluation-harness can
be graded without renaming fields:

    written by                    | prediction       | target
    ------------------------------|------------------|-----------------------
    any system; `specialize eval` | "prediction"     | "target"
    `specialize generate`         | "output"         | "target", or what the
                                  |                  | input row had: "answer",
                                  |                  | "gold" or "reference"
    lm_eval --log_samples         | "resps", else    | "target", else the same
                                  | "filtered_resps" | names within "doc"
    T5X's infer                   | "prediction"     | "targets_pretokenized"
                                  |                  | within "inputs"

"resps" takes precedence over "filtered_resps": it is the model's whole output,
from which our graders extract the answer.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules
from specialize_jax.files import reading

_PREDICTIONS = ("prediction", "output")
_HARNESS_PREDICTIONS = ("resps", "filtered_resps")
_TARGETS = ("target", "answer", "gold", "reference", "targets_pretokenized")
_EXPECTED = 'expected {"prediction": "...", "target": "..."}'

Row = Mapping[str, object]
Written = Callable[[float], str]


def prediction_of(row: Row, where: str) -> str:
  """Returns the prediction of a row; "" if the field is null or NaN.

  Args:
    row: the row.
    where: the file and the row, for error messages.

  Raises:
    UserError: no field holds one text, or two hold different ones.

  Example:
    >>> prediction_of({"resps": [["So 72."]], "filtered_resps": ["72"]}, "")
    'So 72.'
  """
  found = {
    name: "" if reading.is_missing(row[name]) else _text(row[name], name, where)
    for name in _PREDICTIONS
    if name in row
  }
  if not found:
    harness = [name for name in _HARNESS_PREDICTIONS if name in row]
    texts = {name: _only_text(row[name]) for name in harness}
    found = {name: text for name, text in texts.items() if text is not None}
    if found:
      return next(iter(found.values()))
    if harness:
      raise errors.UserError(
        f"{where}: {_shown(row, harness[0])} holds not one text but several, "
        "or log-likelihoods: grade rows of a task that generates, with one "
        "response a row."
      )
  if not found:
    raise errors.UserError(f"{where} {_lack_of_prediction(row)}")
  (first, text), *others = found.items()
  for name, other in others:
    if other != text:
      raise errors.UserError(
        f"{where} has two predictions that differ, {_shown(row, first)} and "
        f"{_shown(row, name)}: remove the one that is not to be graded."
      )
  return text


def check_same_prediction(row: Row, other: Row, where: str) -> None:
  """Checks that two filters of lm-evaluation-harness have one prediction.

  They do if there is one response, which is graded whole. Of several, as for a
  vote, what a filter selects is graded.

  Args:
    row: a row with the responses and a filter.
    other: a row with the same responses and another filter.
    where: the other row, for error messages.

  Raises:
    UserError: the predictions differ.
  """
  if _only_text(row["resps"]) is not None:
    return
  if row.get("filtered_resps") != other.get("filtered_resps"):
    raise errors.UserError(
      f"{where} has another prediction of the same responses by its filter"
      f" {_short(other['filter'])} than by {_short(row['filter'])}: keep the"
      " rows of one filter."
    )


def target_of(
  row: Row, where: str, written: Written = answer_rules.NUMBER.written
) -> str:
  """Returns the target of a row.

  Args:
    row: the row.
    where: the file and the row, for error messages.
    written: writes a number that has decimals as the answers do.

  Raises:
    UserError: no field holds a text or a number, or two hold different ones
      and none of them is "target".

  Example:
    >>> target_of({"output": "So 72.", "answer": 72}, "")
    '72'
  """
  if not reading.is_missing(row.get("target")) and row["target"] != "":
    return _text(row["target"], "target", where, written)
  documents = (row, row.get("doc"), row.get("inputs"))
  for named in (one for one in documents if isinstance(one, Mapping)):
    known = [name for name in _TARGETS if named.get(name) not in (None, "")]
    # Not those of a table's gaps, unless there is nothing else.
    known = [n for n in known if not reading.is_missing(named[n])] or known
    texts = {name: _text(named[name], name, where, written) for name in known}
    if len(set(texts.values())) > 1 and "target" not in texts:
      shown = " and ".join(_shown(named, name) for name in texts)
      raise errors.UserError(
        f'{where} has no "target", and {shown} differ: call the one that is '
        'the gold answer "target".'
      )
    if texts:
      return next(iter(texts.values()))
  if row.get("target") == "":
    return ""
  raise errors.UserError(
    f"{where} has no text under 'target', nor under "
    f"{', '.join(map(repr, _TARGETS[1:]))} (its fields: {_fields(row)}): "
    f"{_EXPECTED}."
  )


def _text(
  value: object,
  name: str,
  where: str,
  written: Written = answer_rules.NUMBER.written,
) -> str:
  """Returns a field as text; an answer may be written as a bare number."""
  if isinstance(value, str):
    return value
  if isinstance(value, int) and not isinstance(value, bool):
    return str(value)
  if isinstance(value, float) and math.isfinite(value):
    return written(value)
  if isinstance(value, Sequence) and len(value) == 1:
    return _text(value[0], name, where, written)
  kinds = {"answer": bool | list | dict, "target": bool}  # of datasets' rows
  if isinstance(value, kinds.get(name, ())) and value != []:
    return json.dumps(value, ensure_ascii=False)
  raise errors.UserError(
    f"{where} has no text under {name!r} (got {_short(value)}): {_EXPECTED}."
  )


def _only_text(value: object) -> str | None:
  """Returns the only text of nested lists; None if there are several."""
  while isinstance(value, Sequence) and not isinstance(value, str):
    if len(value) != 1:
      return None
    value = value[0]
  return value if isinstance(value, str) else None


def _lack_of_prediction(row: Row) -> str:
  if "target_log_probs" in row:
    return (
      "was scored and not decoded, since it has a target: have `specialize "
      'generate` decode rows that call the gold answer "answer".'
    )
  if "output_ids" in row:
    return (
      'has "output_ids" and no "output": run `specialize generate` with '
      "--vocabulary, or, of an evaluation, grade TASK.jsonl."
    )
  return (
    "has no text under 'prediction', 'output', 'resps' or 'filtered_resps' "
    f"(its fields: {_fields(row)}): {_EXPECTED}."
  )


def _fields(row: Row) -> str:
  shown = ", ".join(map(repr, list(row)[:12]))
  return _short(shown, limit=120) if shown else "none"


def _shown(row: Row, name: str) -> str:
  return f"{name!r}={_short(row[name])}"


def _short(value: object, limit: int = 40) -> str:
  text = value if isinstance(value, str) and limit > 40 else repr(value)
  return text if len(text) <= limit else f"{text[: limit - 3]}..."
