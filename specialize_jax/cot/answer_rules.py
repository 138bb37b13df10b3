"""Answer rules: how a dataset's answers are found in texts and compared.

The kinds of `answers` (a number, the letter of an option, a list of words, ...)
find and compare answers in English prose. For other domains and languages a
dataset defines where the answer is: by a regular expression with a named group,
one or several fields of a JSON object, or a function.
"""

import dataclasses
import functools
import importlib
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence

import regex

from specialize_jax import errors
from specialize_jax.cot import answers, spelling, turns

KINDS: tuple[str, ...] = typing.get_args(answers.Kind)
"""The kinds that `answers` finds and compares."""

FOUND_KINDS = ("regex", "json", "python")
"""The kinds that find a text, to be compared by `compare`."""

COMMA = "decimal_comma"
"""The kind of numbers that are written as in German, "1.234,5"."""

ALL_KINDS = (*KINDS, COMMA, "contains", *FOUND_KINDS)

COMPARISONS = ("exact", "number", COMMA, "option", "choice", "words")

PYTHON = "python:"
"""The prefix of a function's name in a field that may have other values."""

_BRACKETED = re.compile(r"[(\[<]\s*([^()\[\]<>]+?)\s*[)\]>]")
_REACH = 20_000  # number of last characters of a text that are searched
# Largest number of characters that are folded before they are compared.
_MAX_FOLDED = 100_000
_MAX_OBJECTS = 100  # of JSON, tried from the end
# Time limit for a text, against endless backtracking.
_MAX_PATTERN_SECONDS = 0.3
_TRIAL_SIZE = 2_000  # characters of a text that an expression is tried on
# The boundaries of ASCII words.
_WORD_EDGE = re.compile(r"(?<![0-9a-z])(?=[0-9a-z])|(?<=[0-9a-z])(?![0-9a-z])")
_MAX_SHOWN = 60
_NOTHING = object()  # no field, which differs from a field that is null
_DECODER = json.JSONDecoder(strict=False)  # models break lines in strings
_SEPARATOR = re.compile(r"(?<=\d)[.,](?=\d)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerRule:
  """A rule that finds answers in texts and compares them.

  Attributes:
    kind: One of `KINDS`; "decimal_comma", a number whose decimals follow a
      comma; "contains", right where the gold answer occurs in the text (its
      last 100,000 characters) as a word or words; or one of `FOUND_KINDS`.
    pattern: Of "regex": an expression whose last match answers, by its group
      `answer` or its only named group.
    field: Of "json": the name of the field, in the last object of the text that
      has it; "result.label" for one within another.
    fields: Of "json", instead of `field`: the names of several fields, in the
      last object of the text that has them all. The answer is the JSON object
      of these fields, and is right if each of them is.
    function: Of "python": "module.function", called with a text, which returns
      the answer as a string or None.
    compare: Of `FOUND_KINDS`: one of `COMPARISONS`, or
      "python:module.function", called with what was found and the gold answer,
      which returns whether they are the same.

  Example:
    >>> rule = AnswerRule(kind="json", field="queue")
    >>> rule.grade('It is late, so {"queue": "Late Parcel"}', "late parcel")
    Verdict(extracted='Late Parcel', correct=True)
    >>> rule = AnswerRule(kind="json", fields=("city", "day"))
    >>> rule.read('{"day": 3, "mood": "glad", "city": "Ulm"}')
    '{"city": "Ulm", "day": 3}'
  """

  kind: str = "number"
  pattern: str = ""
  field: str = ""
  fields: tuple[str, ...] = ()
  function: str = ""
  compare: str = "exact"

  @property
  def graders(self) -> tuple[answers.Grader, ...]:
    """The graders that know the kind."""
    return typing.get_args(answers.Grader) if self.kind in KINDS else ("fixed",)

  def grade(
    self,
    prediction: str,
    target: str,
    *,
    grader: answers.Grader = "fixed",
    chain_of_thought: bool | None = None,
  ) -> answers.Verdict:
    """Judges a prediction; see `answers.grade` for the arguments.

    Raises:
      UserError: a function of the dataset's own failed, or its pattern took
        too long.
    """
    if self.kind in KINDS:
      return answers.grade(
        prediction,
        target,
        kind=self.kind,
        grader=grader,
        chain_of_thought=chain_of_thought,
      )
    if self.kind == COMMA:
      return _comma_verdict(prediction, target)
    if self.kind == "contains":
      found = _contains(prediction, target)
      return answers.Verdict(
        extracted=target.strip() if found else None, correct=found
      )
    said, gold = self.read(prediction), self.bare(target)
    if said is None:
      return answers.Verdict(extracted=None, correct=False)
    return answers.Verdict(extracted=said, correct=self._same(said, gold))

  def read(self, text: str) -> str | None:
    """Returns the answer in a text; None if there is none.

    For "contains", which cannot find an answer without the gold answer, it is
    the whole text.
    """
    if self.kind in KINDS:
      return answers.grade(text, "", kind=self.kind).extracted
    if self.kind == COMMA:
      return _comma_verdict(text, "").extracted
    if self.kind == "contains":
      return text.strip() or None
    text = text[-_REACH:]
    if self.kind == "regex":
      found = (_matched(self.pattern, one) for one in turns.readings(text))
      return next((one for one in found if one is not None), None)
    if self.kind == "json" and self.fields:
      found = (_object(one, self.fields) for one in turns.readings(text))
      return next((one for one in found if one is not None), None)
    if self.kind == "json":
      values = (_field(one, self.field) for one in turns.readings(text))
      return self.written(
        next((one for one in values if one is not _NOTHING), _NOTHING)
      )
    said = _called(self.function, text)
    if said is not None and not isinstance(said, str):
      raise errors.UserError(
        f"{PYTHON}{self.function} returned {_short(said)} for"
        f" {_short(text)}: expected a string, or None for no answer"
      )
    return said

  def bare(self, target: str) -> str:
    """Returns the gold answer in a target that the rule can read.

    Example:
      >>> AnswerRule(kind="json", field="answer").bare('{"answer": "B"}')
      'B'
    """
    target = target.strip()
    if self.kind in ("regex", "json"):
      found = self.read(target)
      if found is None and self.field and target.startswith("["):
        listed = _loaded(target)  # as the field has it
        found = self.written(listed) if isinstance(listed, list) else None
      return found or target
    return target

  def written(self, value: object) -> str | None:
    """Returns a value of JSON as the text that is compared; None for no text.

    Example:
      >>> AnswerRule(kind="decimal_comma").written(1.5)
      '1,5'
    """
    if value is _NOTHING:
      return None
    text = _as_text(value)
    if COMMA in (self.kind, self.compare) and _is_number(value):
      return text.replace(".", ",")
    return text

  def finds(self, text: str, target: str) -> bool:
    """Returns whether the answer in a text is `target` by this rule."""
    return self.grade(text, target).correct

  def check_votes(self) -> None:
    """Raises UserError if the rule cannot find answers for a vote."""
    if self.kind == "contains":
      raise errors.UserError(
        "answer: contains looks for the gold answer in a text, and samples that"
        " vote have none: say how an answer is found (exact, a regex, a json"
        " field)"
      )

  def same(self, one: str, other: str) -> bool:
    """Returns whether two answers from `read` are equal.

    Example:
      >>> NUMBER.same("72", "72.0")
      True
    """
    if one == other:
      return True
    if self.kind in ("number", "numeral"):
      return answers.numbers_equal(one, other)
    if self.kind == COMMA:
      return _comma_verdict(one, other).correct
    return self.kind in FOUND_KINDS and self._same(one, other)

  def _same(self, said: str, gold: str) -> bool:
    if self.compare.startswith(PYTHON):
      return bool(_called(self.compare.removeprefix(PYTHON), said, gold))
    if max(len(said), len(gold)) > _MAX_FOLDED:
      return said == gold
    if self.kind == "json" and all(
      one.startswith(("{", "[")) for one in (said, gold)
    ):
      return self._same_value(_loaded(said), _loaded(gold))
    return self._same_text(said, gold)

  def _same_text(self, said: str, gold: str) -> bool:
    if self.compare == "exact":
      return any(
        _bare(said, fold) == _bare(gold, fold) != ""
        for fold in _folds(said, gold)
      )
    if self.compare == COMMA:
      return _comma_verdict(said, gold).correct
    return answers.grade(said, gold, kind=self.compare).correct

  def _same_value(self, said: object, gold: object) -> bool:
    """Returns whether two values of JSON are the same.

    The fields of an object have no order, and 3 is 3.0.
    """
    if isinstance(gold, Mapping) and isinstance(said, Mapping):
      return said.keys() == gold.keys() and all(
        self._same_value(said[name], gold[name]) for name in gold
      )
    if isinstance(gold, list) and isinstance(said, list):
      return len(said) == len(gold) and all(map(self._same_value, said, gold))
    one, other = self.written(said), self.written(gold)
    if one is None or other is None:  # of ""
      return one == other
    if _is_number(said) and _is_number(gold):
      return answers.numbers_equal(_as_text(said), _as_text(gold))
    return self._same_text(one, other)


NUMBER = AnswerRule()


def why_not(rule: AnswerRule, *, imports: bool = True) -> str | None:
  """Returns why a rule is invalid, as half a sentence; None if it is valid.

  Args:
    rule: the rule.
    imports: whether to import the functions that it names, as a check.
  """
  if rule.kind not in ALL_KINDS:
    hint = errors.did_you_mean(rule.kind.lower(), ALL_KINDS)
    hint = hint or f"expected one of {', '.join(ALL_KINDS)}"
    return f"{rule.kind[:_MAX_SHOWN]!r} is unknown: {hint}"
  if rule.kind == "regex":
    why = _why_no_pattern(rule.pattern)
    if why:
      return why
  for field in (rule.fields or (rule.field,)) if rule.kind == "json" else ():
    if not all(field.split(".")):
      return (
        f"json: {field!r} names no field: expected one such as label, or"
        " result.label for one within another"
      )
  if len(set(rule.fields)) < len(rule.fields):
    return f"json: a field is named twice in {', '.join(rule.fields)}"
  names = [rule.function] if rule.kind == "python" else []
  if rule.compare.startswith(PYTHON):
    names.append(rule.compare.removeprefix(PYTHON))
  elif rule.compare not in COMPARISONS:
    return (
      f"compare: {rule.compare!r} is unknown: expected one of"
      f" {', '.join(COMPARISONS)} or {PYTHON}module.function"
    )
  for name in names if imports else ():
    try:
      _function(name)
    except errors.UserError as error:
      return str(error)
  return None


def _why_no_pattern(pattern: str) -> str | None:
  try:
    groups = regex.compile(pattern).groupindex
  except (regex.error, RecursionError, OverflowError) as error:
    return f"regex: {pattern!r} is not a regular expression ({error})"
  if "answer" not in groups and len(groups) != 1:
    return (
      f"regex: {pattern!r} has {len(groups)} named groups: name the one that"
      " holds the answer, as in (?P<answer>...)"
    )
  if _is_slow(pattern):
    return (
      f"regex: {pattern!r} takes more than {_MAX_PATTERN_SECONDS:g} s on a text"
      f" of {_TRIAL_SIZE:,} characters: write it without a repetition within a"
      " repetition, such as (a+)+"
    )
  return None


@functools.lru_cache(maxsize=64)
def _is_slow(pattern: str) -> bool:
  """Returns whether an expression takes too long on texts that nearly match.

  A repetition within a repetition, such as `(.*)*$`, tries all partitions of a
  text. It is tried on runs of letters, including those in the pattern.
  """
  literal = "".join(dict.fromkeys(re.sub(r"\\.|\W", "", pattern)))[:20]
  start = re.match(r"[\w ,:;<>=#\"']*", pattern)[0]
  for unit in dict.fromkeys(("a", "0", " ", "a ", ".", *literal)):
    run = (unit * _TRIAL_SIZE)[:_TRIAL_SIZE]
    # The regex module skips a text that lacks the expression's last literal.
    for text in (f"{start}{run}\0", f"{start}{run}\0{literal}.,:;!?)]}}"):
      try:
        _last_match(pattern, text)
      except TimeoutError:
        return True
  return False


@functools.lru_cache(maxsize=64)
def _pattern(pattern: str) -> tuple[regex.Pattern[str], str]:
  compiled = regex.compile(pattern)
  names = list(compiled.groupindex)
  return compiled, "answer" if "answer" in names else names[0]


def _matched(pattern: str, text: str) -> str | None:
  try:
    return _last_match(pattern, text)
  except TimeoutError as error:
    raise errors.UserError(
      f"regex: {pattern!r} takes more than {_MAX_PATTERN_SECONDS:g} s on a text"
      f" of {len(text):,} characters, {_short(text)}: write it without a"
      " repetition within a repetition, such as (a+)+, and without two of the"
      " same characters in a row, such as .*.*"
    ) from error


def _last_match(pattern: str, text: str) -> str | None:
  """Returns the group of the last match.

  Raises:
    TimeoutError: it takes longer than `_MAX_PATTERN_SECONDS`.
  """
  compiled, group = _pattern(pattern)
  said = None
  for match in compiled.finditer(text, timeout=_MAX_PATTERN_SECONDS):
    if match[group] is not None:
      said = match[group].strip()
  return said or None


def _objects(text: str) -> Iterator[Mapping[str, object]]:
  """Yields the JSON objects in a text: the last first, and outer ones first."""
  found: list[tuple[int, int, Mapping[str, object]]] = []
  begin = len(text)
  for _ in range(_MAX_OBJECTS):
    begin = text.rfind("{", 0, begin)
    if begin < 0:
      break
    try:
      value, end = _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
      continue
    found.append((begin, end, value))
  outer, inner, last = [], [], 0
  for begin, end, value in reversed(found):
    (outer if begin >= last else inner).append(value)
    last = max(last, end)
  yield from (*outer[::-1], *inner[::-1])


def _value(found: object, name: str) -> object:
  """Returns a field of an object, or of one within it; else `_NOTHING`."""
  if isinstance(found, Mapping) and name in found:
    return found[name]  # a name may hold a period
  for part in name.split("."):
    found = (
      found.get(part, _NOTHING) if isinstance(found, Mapping) else _NOTHING
    )
  return found


def _field(text: str, name: str) -> object:
  """Reads a field of the last JSON object that has it."""
  for found in _objects(text):
    value = _value(found, name)
    if value is not _NOTHING and value is not None:
      return value
  return _NOTHING


def _object(text: str, names: Sequence[str]) -> str | None:
  """Reads several fields of the last JSON object that has them, as JSON."""
  for found in _objects(text) if names else ():
    values = {name: _value(found, name) for name in names}
    if _NOTHING not in values.values():
      return json.dumps(values, ensure_ascii=False)
  return None


def _as_text(value: object) -> str | None:
  if isinstance(value, str):
    return value.strip() or None
  if isinstance(value, float) and value.is_integer():
    value = int(value)  # as tables write whole numbers beside gaps
  if isinstance(value, list) and all(isinstance(one, str) for one in value):
    return ", ".join(value) or None
  return json.dumps(value, ensure_ascii=False)


def _loaded(text: str) -> object:
  """Parses a text as JSON; returns the text itself if it is none."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return text


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _comma_verdict(prediction: str, target: str) -> answers.Verdict:
  """Grades numbers in which a comma precedes the decimals.

  Example:
    >>> _comma_verdict("Das sind 1.234,50 Euro.", "1234,5")
    Verdict(extracted='1234,50', correct=True)
  """
  said, gold = prediction[-_REACH:], target[-_REACH:]
  verdict = answers.grade(_swapped(said), _swapped(gold))
  found = verdict.extracted
  return dataclasses.replace(verdict, extracted=found and _swapped(found))


def _swapped(text: str) -> str:
  """Exchanges the points and commas between digits."""
  return _SEPARATOR.sub(lambda found: "," if found[0] == "." else ".", text)


def _contains(text: str, target: str) -> bool:
  """Returns whether a text contains a target as whole words.

  "not" does not contain "no"; in scripts without spaces any substring counts.
  With every word boundary marked, in both, by a character that folded texts do
  not have, this is a single string search, which takes linear time.
  """
  if len(target) > _MAX_FOLDED:
    return False
  text = text[-_MAX_FOLDED:]
  for fold in _folds(text, target):
    sought = _WORD_EDGE.sub("\n", _folded(target, fold))
    if sought and sought in _WORD_EDGE.sub("\n", _folded(text, fold)):
      return True
  return False


def _folds(*texts: str) -> Sequence[Callable[[str], str]]:
  """Returns the functions that remove the case of texts."""
  if spelling.is_turkish(*texts):
    return (
      str.casefold,
      lambda text: spelling.small_turkish_i(text).casefold(),
    )
  return (str.casefold,)


def _folded(text: str, fold: Callable[[str], str]) -> str:
  """Returns a text without case, quotes and blanks, for comparison."""
  text = fold(spelling.nfkc(text))
  return " ".join(text.split()).strip("\"'`*$ ").rstrip(".\u3002 ")


def _bare(text: str, fold: Callable[[str], str]) -> str:
  """Returns a folded answer without brackets around the whole: "(B)" is "b"."""
  folded = _folded(text, fold)
  bracketed = _BRACKETED.fullmatch(folded)
  return bracketed[1] if bracketed else folded


@functools.lru_cache(maxsize=64)
def _function(name: str) -> Callable[..., object]:
  """Returns a function by its name, "module.function".

  Raises:
    UserError: there is none.
  """
  module_name, _, attribute = name.rpartition(".")
  if not module_name or not all(
    part.isidentifier() for part in name.split(".")
  ):
    raise errors.UserError(
      f"{PYTHON}{name} names no function: expected {PYTHON}module.function"
    )
  if module_name.partition(".")[0] in sys.stdlib_module_names:
    # An untrusted file could otherwise pass a model's text to os.system.
    raise errors.UserError(
      f"{PYTHON}{name} is of Python's own library: expected a function of your"
      " own, in a module of the working directory or an installed one"
    )
  try:
    function = getattr(importlib.import_module(module_name), attribute)
  except (Exception, SystemExit) as error:  # whatever a stranger's raises
    raise errors.UserError(
      f"{PYTHON}{name} cannot be imported ({type(error).__name__}: {error}):"
      " the module has to lie in the working directory or be installed"
    ) from error
  if not callable(function):
    raise errors.UserError(f"{PYTHON}{name} is not a function")
  return function


def _called(name: str, *arguments: str) -> object:
  try:
    return _function(name)(*arguments)
  except errors.UserError:
    raise
  except (Exception, SystemExit) as error:  # whatever a stranger's raises
    shown = ", ".join(map(_short, arguments))
    raise errors.UserError(
      f"{PYTHON}{name} failed on {shown} ({type(error).__name__}: {error})"
    ) from error


def _short(value: object) -> str:
  shown = repr(value)
  return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
