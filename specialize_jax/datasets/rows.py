"""Reads and checks the rows of a dataset file's sets.

A row is `{"question", "answer"}`, optionally with `question_id` (or `id`) and
`rationale`. Its answer may also be a text in which the answer rule finds the
answer: a JSON object with the rule's field, or a solution of GSM8K, which ends
in "#### 72".
"""

import dataclasses
import functools
import json
import math
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.cot import answer_rules, formats, spelling
from specialize_jax.data import questions
from specialize_jax.datasets import mistakes as mistakes_lib
from specialize_jax.files import reading, writing

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
# Of the characters that Unicode calls punctuation, those that mean something.
_SIGNS = "#%&*/@\\\u00b7\u2030\u2032\u2033"
# Quotation marks that Unicode counts among brackets, and dashes of sentences.
_MARKS = "`\u201a\u201e\u2014\u2015\u3008-\u300f"
_FACTORIAL = re.compile(r"(?<=[\d)])!(?=\s*\S)")
_BULLET = re.compile(
  r"\A\s*(?:[-*\u2022]\s+(?=[^\W\d])|\(?\d{1,4}[.)]\s+(?=\w)"
  r"|q(?:uestion)?:\s+)"
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-\u2010-\u2015](?=[^\W\d_])")
_AROUND = "*_~()[]<> "
_LINE_OF = re.compile(r"(?:, line (\d+))?:? ?(.*)", re.DOTALL)
_MAX_SHOWN = 40
_MAX_ID = 10**18  # what reads a record store has whole numbers of 64 bits
_FIELDS = ("question", "answer", "rationale", "question_id", "id")
_RULE_FINDS = "the answer rule finds"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A question and its line.

  Attributes:
    question: the question, with the answer alone.
    given_id: the row's `question_id`; if it has none, its index in the file,
      from 0.
    line: the line of the file, from 1.
    more_fields: the names of the row's fields that are not read.
  """

  question: questions.Question
  given_id: str | int
  line: int
  more_fields: tuple[str, ...] = ()


def same_words(question: str) -> str:
  """Returns what makes two questions of a user's data the same.

  Case (in Turkish, too), width, white space, punctuation, bullets and what is
  not printed do not; the signs of formulas and pictures do.

  Example:
    >>> same_words(" * What is **3 + 4**? ") == same_words("what is 3 + 4")
    True
    >>> same_words("What is 3 + 4?") == same_words("What is 3 - 4?")
    False
  """
  text = spelling.nfkc(question).casefold()
  text = text.replace("i\u0307", "i").replace("ı", "i")
  if not text.isascii():
    text = _unprinted().sub("", text)
  text = _HYPHEN.sub(" ", _BULLET.sub("", text, count=1)).replace("**", "")
  text = _without_punctuation(text)
  bare = text.strip(_AROUND)
  return bare if any(map(str.isalnum, bare)) else text


def _without_punctuation(text: str) -> str:
  """Returns a text with single blanks instead of punctuation and blanks."""
  text = _FACTORIAL.sub(" factorial ", text)
  return " ".join(_punctuation().sub(" ", text).split())


@functools.cache
def _punctuation() -> re.Pattern[str]:
  """Returns a pattern of the punctuation of every script."""
  return re.compile(f"[{_ranges('Po', 'Pi', 'Pf', but=_SIGNS)}{_MARKS}]")


@functools.cache
def _unprinted() -> re.Pattern[str]:
  """Returns a pattern of what is not seen, such as a zero-width space."""
  return re.compile(f"[{_ranges('Cf')}\ufe00-\ufe0f\U000e0000-\U000e0fff]")


@functools.cache
def _pictures() -> re.Pattern[str]:
  """Returns a pattern of pictures, such as check marks and emojis."""
  return re.compile(f"[{_ranges('So')}\U0001f3fb-\U0001f3ff]")


def _ranges(*categories: str, but: str = "") -> str:
  """Returns the characters of Unicode categories, as ranges of an expression.

  Beyond 65,535 characters `re` tries a class one range after another.
  """
  found: list[tuple[int, int]] = []
  for code in range(0x20000):
    char = chr(code)
    if unicodedata.category(char) not in categories or char in but:
      continue
    if found and found[-1][1] == code - 1:
      found[-1] = found[-1][0], code
    else:
      found.append((code, code))
  return "".join(
    f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in found
  )


def read(
  path: str,
  *,
  prefix: str,
  rule: answer_rules.AnswerRule,
  wording: formats.Wording,
  mistakes: mistakes_lib.Mistakes,
) -> list[Row]:
  """Reads a set, and collects the mistakes of its rows.

  Args:
    path: the JSONL file.
    prefix: the beginning of the ids of rows without one: "tickets/train".
    rule: the rule that finds an answer and compares it.
    wording: the statement of an answer, which is appended to rationales that
      do not end with theirs.
    mistakes: the mistakes are added to it.

  Returns:
    The rows without mistakes.
  """
  try:
    numbered = list(reading.numbered_texts(path))
  except errors.UserError as error:
    line, text = _LINE_OF.fullmatch(str(error).removeprefix(path)).groups()
    mistakes.add(path, int(line or 0), text)
    return []
  except OSError as error:
    mistakes.add(path, 0, f"cannot be read: {error.strerror}")
    return []
  found: list[Row] = []
  no_rows: list[tuple[int, str]] = []  # lines that are no JSON object
  unfound: list[tuple[int, str]] = []  # lines whose answer is not found
  if not numbered:
    mistakes.add(path, 0, "holds no row: expected at least one question")
  seen: dict[str, int] = {}
  answered: dict[str, tuple[str, int]] = {}  # by question
  for number, (line, text) in enumerate(numbered):
    try:
      row = reading.parsed_row(text, "this row", unique=True)
    except errors.UserError as error:
      no_rows.append((line, str(error)))
      continue
    try:
      parsed = _parsed(
        row,
        number=number,
        line=line,
        prefix=prefix,
        rule=rule,
        wording=wording,
      )
    except errors.UserError as error:  # of a function of the dataset's own
      mistakes.add(path, line, str(error), kind="no row")
      continue
    if isinstance(parsed, str) and parsed.startswith(_RULE_FINDS):
      unfound.append((line, parsed))
      continue
    if isinstance(parsed, str):
      mistakes.add(path, line, parsed, kind=_kind(parsed))
      continue
    name = str(parsed.given_id)
    if name in seen:
      mistakes.add(
        path,
        line,
        f"question_id {_short(name)} is that of line {seen[name]}, too",
        kind="repeated id",
      )
    seen[name] = line
    asked = _without_punctuation(parsed.question.question)
    answer, first = answered.setdefault(asked, (parsed.question.answer, line))
    stated = formats.render_answer(parsed.question.answer, wording)
    if not rule.finds(stated, answer):
      mistakes.add(
        path,
        line,
        f"asks what line {first} asks, and answers"
        f" {_short(parsed.question.answer)} where that answers"
        f" {_short(answer)}: correct or remove one",
        kind="contradiction",
      )
    found.append(parsed)
  is_one_object = len(numbered) == 1 and numbered[0][1].startswith("{")
  if no_rows and len(no_rows) == len(numbered) and not is_one_object:
    line, text = numbered[0]
    mistakes.add(
      path,
      line,
      f"holds no row: expected a JSON object on each line, such as"
      f' {{"question": ..., "answer": ...}}, and got {_short(text)}; `jq -c'
      " '.[]' FILE` writes a JSON list so",
    )
    no_rows = []
  for line, text in no_rows:
    mistakes.add(path, line, text, kind="no row")
  if unfound and len(unfound) == len(numbered):
    line, text = unfound[0]
    mistakes.add(
      path,
      line,
      f"the answer is found in none of {len(numbered):,} rows: {text}",
    )
  else:
    for line, text in unfound:
      mistakes.add(path, line, text, kind="rule")
  return found


def _kind(text: str) -> str:
  """Returns the text of a mistake without its quotations, as its kind."""
  return re.sub(r"'[^']*'|\"[^\"]*\"|\d+", "", text)


def _parsed(
  row: Mapping[str, object],
  *,
  number: int,
  line: int,
  prefix: str,
  rule: answer_rules.AnswerRule,
  wording: formats.Wording,
) -> Row | str:
  """Returns a row, or what is wrong with it."""
  needed = ("question", "answer")
  missing = [name for name in needed if name not in row]
  empty = [name for name in needed if name in row and row[name] is None]
  if empty:
    return f"{' and '.join(map(repr, empty))} is null: expected a string"
  if missing:
    has = ", ".join(map(repr, list(row)[:6])) or "nothing"
    return (
      f"lacks {' and '.join(map(repr, missing))} (it has {has}): expected"
      ' {"question": ..., "answer": ...}'
    )
  own_id = reading.id_of(row, "question_id", "id")
  given_id = number if own_id is None else own_id
  if isinstance(given_id, bool) or not isinstance(given_id, str | int):
    return (
      f"question_id is {_short(given_id)}: expected a string or a whole number"
    )
  if isinstance(given_id, str) and not given_id.strip():
    return "question_id is empty: leave it out, or give each row its own"
  if isinstance(given_id, int) and abs(given_id) >= _MAX_ID:
    return (
      f"question_id is {_short(given_id)}: expected at most 18 digits, or"
      " a string"
    )
  texts = {}
  for name in ("question", "answer", "rationale"):
    value = row.get(name)
    if name == "answer" and rule.kind not in ("json", "words", "python"):
      if isinstance(value, list) and len(value) == 1:
        (value,) = value
      if isinstance(value, list | dict) and value:
        return f"'answer' is {_short(value)}: give one answer, as a text"
    if name == "answer" and not isinstance(value, str | int | float):
      value = json.dumps(value, ensure_ascii=False) if value else ""
    if reading.is_missing(value) and name == "rationale":
      value = ""
    if isinstance(value, bool):
      value = json.dumps(value) if name == "answer" else None
    if isinstance(value, float) and not math.isfinite(value):
      return f"{name!r} is {value}, which is not a number"
    if not isinstance(value, str | int | float):
      return f"{name!r} is {_short(row[name])}: expected a string"
    if name == "answer" and isinstance(value, float):
      value = rule.written(value)
    text = str(value).strip()
    if writing.printable(text) != text:
      return f"{name!r} holds half of a surrogate pair, which is not text"
    texts[name] = text
  has_letter = any(map(str.isalnum, texts["question"]))
  if not has_letter and not same_words(texts["question"]):
    return "'question' is empty"
  if "\0" in texts["question"]:
    return "'question' holds a zero byte, which is not text"
  answer, rationale = texts["answer"], texts["rationale"]
  if "####" in answer:
    solution, _, answer = answer.rpartition("####")
    rationale = rationale or _CALCULATOR_MARK.sub("", solution).strip()
  written, answer = answer, rule.bare(answer)
  if not answer:
    return "'answer' is empty"
  if rule.kind == "regex" and _is_cut(written, answer):
    return (
      f"{_RULE_FINDS} {_short(answer)} in the answer {_short(written)}: widen"
      " the pattern"
    )
  if rule.kind == "json" and written[0] == "{" and rule.read(written) is None:
    fields = " or ".join(map(repr, rule.fields or (rule.field,)))
    return f"'answer' lacks the field {fields}: {_short(written)}"
  stated = formats.render_answer(answer, wording)
  if "\n" in written and rule.kind in ("regex", "json"):
    rationale = rationale or written  # a solution, which ends with its answer
  if not rule.finds(stated, answer):
    said = rule.read(stated)
    is_found = rule.kind in answer_rules.FOUND_KINDS and said == answer
    if is_found and rule.compare != "exact":
      return (
        f"{_RULE_FINDS} the answer {_short(answer)} in {_short(stated)}, but"
        f" `compare: {rule.compare}` calls it wrong"
      )
    return (
      f"{_RULE_FINDS} {_short(said)} in {_short(stated)}, which states"
      f" {_short(answer)}: make `answer` and student.answer agree"
    )
  if rationale:
    if rule.kind in answer_rules.FOUND_KINDS:
      is_stated = rule.read(rationale) is not None
    else:
      is_stated = stated.strip().casefold() in rationale.casefold()
    if not is_stated:
      rationale = f"{rationale}\n{stated}"
    if not rule.finds(rationale, answer):
      return (
        f"{_RULE_FINDS} {_short(rule.read(rationale))} in the rationale, and"
        f" the row's answer is {_short(answer)}: correct one"
      )
  return Row(
    question=questions.Question(
      question_id=f"{prefix}/{number}" if own_id is None else str(own_id),
      question=texts["question"],
      rationale=rationale,
      answer=answer,
    ),
    given_id=given_id,
    line=line,
    more_fields=tuple(name for name in row if name not in _FIELDS),
  )


def note_leaks(
  sets: Mapping[str, tuple[str, str, Sequence[Row]]],
  mistakes: mistakes_lib.Mistakes,
) -> None:
  """Reports questions that are in two sets of different roles.

  Args:
    sets: role ("train", "validation" or "test"), file and rows of each set, by
      its name, such as "validation" or "out_of_distribution.phone.test".
    mistakes: the mistakes are added to it.
  """
  # By the words, then by the pictures among them, which make two questions if
  # both have some: "What is this? A, B" with two emojis is not a leak.
  seen: dict[str, dict[str, tuple[str, str, str, int]]] = {}
  for name, (role, file, rows) in sets.items():
    for row in rows:
      words, pictures = _words_and_pictures(row.question.question)
      alike = seen.setdefault(words, {})
      known = alike.get(pictures) or alike.get("")
      if known is None and not pictures:
        known = next(iter(alike.values()), None)
      first = known or (role, name, file, row.line)
      alike.setdefault(pictures, first)
      if first[0] != role:
        mistakes.add(
          file,
          row.line,
          f"{name} asks {_short(row.question.question)}, which {first[1]} asks,"
          f" too ({os.path.basename(first[2])}:{first[3]}): take it out of one",
          kind=f"leak {name} {first[1]}",
        )


def _words_and_pictures(question: str) -> tuple[str, str]:
  """Returns what makes a question the same without pictures, and those."""
  if question.isascii():
    return same_words(question), ""
  text = spelling.nfkc(question)
  pictures = "".join(_pictures().findall(text))
  bare = _pictures().sub("", text) if pictures else text
  return same_words(bare), pictures


def _is_cut(whole: str, part: str) -> bool:
  """Returns whether a part of a line ends within a word or a number of it."""
  start = whole.rfind(part)
  if "\n" in whole or start < 0:
    return False
  return bool(
    re.search(r"(?:\w|\w[.,/:'-])\Z", whole[:start])
    or re.match(r"\w|[.,/:'-]\w", whole[start + len(part) :])
  )


def _short(value: object) -> str:
  if isinstance(value, str):
    shown = value if len(value) <= _MAX_SHOWN else f"{value[:_MAX_SHOWN]}..."
    return repr(shown)
  shown = repr(value) if value is not None else "nothing"
  return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
