"""Graders and calculator answer any text of a megabyte within a second.

Every text below is one on which some pattern, parser or conversion could take
quadratic time or worse, or memory without end; every entry of the graders and
of the calculator reads every one. The slowest are printed at the end.
"""

import contextlib
import functools
import itertools
import random
import time
from typing import get_args

import pytest

from specialize_jax import errors
from specialize_jax.cot import (
  answer_rules,
  answers,
  calculator,
  spelling,
  turns,
)
from specialize_jax.decoding import self_consistency

SIZE = 10**6
LIMIT_SECONDS = 1.0

# By what each may be slow for; the text is the repetition.
_REPEATED = {
  "digits": "1",
  "groups of digits": "1,",
  "thousands": "111,1",
  "groups by blanks": "1 234 ",
  "commas": ",",
  "Turkish letters": "\u0130\u0131I",
  "decimals": "1.",
  "points": ".",
  "digits of another script": "\u0663",
  "vulgar fractions": "\u00bd",
  "superscripts": "2\u00b2",
  "thin spaces": "1\u2009",
  "fractions": "1/",
  "mixed numbers": "1 2/3 ",
  "spaced fractions": "1 / ",
  "exponents": "e+",
  "scientific": "1e99 ",
  "times ten": "1x10^",
  "powers": "2^",
  "stars": "**",
  "powers by stars": "1**",
  "equals": "=",
  "equations": "1 = ",
  "variables": "x = 1, ",
  "products": "* 2",
  "minus": "-",
  "minus signs": "\u2212",
  "minus blank": "- ",
  "brackets": "(",
  "square brackets": "[",
  "braces": "{",
  "angles": "<",
  "all brackets": "([{<",
  "closed brackets": ")]}>",
  "percent": "%",
  "dollars": "$",
  "degrees": "1\u00b0",
  "underscores": "_1",
  "fractions of latex": "\\frac12",
  "nested fractions": "\\frac{",
  "nested boxes": "\\boxed{",
  "boxes": "\\boxed{1}",
  "nested text": "\\text{",
  "roots": "\\sqrt{",
  "over": "{1 \\over ",
  "repeating decimals": "1.\\overline{",
  "left and right": "\\left",
  "backslashes": "\\",
  "tildes": "~",
  "hashes": "#",
  "four hashes": "####",
  "marked answers": "#### 18\n",
  "markers": "answer is ",
  "markers that miss": "answer ",
  "markers with a clause": "the answer to a b c d e ",
  "markers with a blank": "answer  **  ",
  "correct options": "correct option is ",
  "tags": "<answer>",
  "turns": "A: ",
  "questions": "\nQ: ",
  "questions in a line": ". Q:",
  "labels": "\n  ## Problem 1",
  "speakers": "\n\nStudent",
  "speakers who ask": "\nTom: a?",
  "names": "\nTom Smith: a",
  "tokens": "<|a|>",
  "open tokens": "<|a",
  "chat": "<|im_start|>assistant",
  "thoughts": "</think>",
  "instructions": "[INST]",
  "open quotes": '."',
  "quotes": "'",
  "ends of sentences": "yes. ",
  "options": "(B) ",
  "letters in brackets": "(a",
  "choices": "yes no ",
  "not but": "not a but ",
  "remarks": " (a = 1",
  "because": "because ",
  "therefore": "therefore ",
  "bullets": "- a\n",
  "numbered": "1. a\n",
  "number words": "one hundred ",
  "tens": "twenty-",
  "minus words": "minus ",
  "negatives": "negative ",
  "and a half": "one and a half ",
  "a dozen": "a dozen ",
  "or": "1 or ",
  "and": "1, 2 and ",
  "words": "a b ",
  "letters": "a",
  "upper case": "A",
  "blanks": " ",
  "tabs": "\t",
  "lines": "\n",
  "blank lines": "\n \t",
  "carriage returns": "\r",
  "separators": "\x1c\x85\u2028",
  "no-break spaces": "\u00a0",
  "marks": "\u0300\u0327",
  "joined marks": "\u0344\u0327",
  "no width": "\u200b\u2060",
  "directions": "\u202e",
  "ligatures": "\ufdfa",
  "full width": "\uff11\uff0c",
  "sharp s": "\u00df",
  "surrogates": "\ud800",
  "surrogates and digits": "\udc001",
  "zero": "\x00",
  "json": '{"a":',
  "json lists": "[",
  "json objects": '{"b": 1} ',
  "json answers": '{"answer": [',
  "json numbers": '{"answer": 1',
  "pattern": "Queue: ",
  "pattern that misses": "Queue Queue:a",
}
_PARTS = list(_REPEATED.values())


def _every_character():
  return itertools.islice(
    (chr(point) for point in range(0x110000 - 1, 0, -1)), SIZE
  )


def _mixed(seed):
  rng = random.Random(seed)
  text = []
  for part in rng.choices(_PARTS, k=2000):
    text.append(part * rng.choice((1, 3, 50, 500)))
  return "".join(text)


_WHOLE = {
  "every character": lambda: "".join(_every_character()),
  "one box within another": lambda: "\\boxed{" * 60_000 + "7" + "}" * 60_000,
  "closed fractions": lambda: "\\frac{" * 60_000 + "1}{2}" * 60_000,
  "a long exponent": lambda: "1e" + "9" * SIZE,
  "a long fraction": lambda: "1/" + "9" * SIZE,
  "a long decimal": lambda: "0." + "3" * SIZE,
  "a long json number": lambda: '{"answer": ' + "9" * SIZE + "}",
  "deep json": lambda: '{"answer": ' + "[" * SIZE,
  "a letter of many marks": lambda: "The answer is a" + "\u0327\u0300" * SIZE,
  **{f"mixed {seed}": functools.partial(_mixed, seed) for seed in range(4)},
}
TEXTS = {
  **{
    name: lambda part=part: part * (SIZE // len(part))
    for name, part in _REPEATED.items()
  },
  **_WHOLE,
}


def _rules():
  for compare in answer_rules.COMPARISONS:
    yield answer_rules.AnswerRule(
      kind="regex", pattern=r"Queue:\s*(?P<answer>\w*)", compare=compare
    )
    yield answer_rules.AnswerRule(kind="json", field="answer", compare=compare)
  yield answer_rules.AnswerRule(kind="json", fields=("answer", "why"))
  yield answer_rules.AnswerRule(kind="decimal_comma")
  yield answer_rules.AnswerRule(kind="contains")


def _graded(kind, grader, chain_of_thought=None):
  grade = functools.partial(
    answers.grade, kind=kind, grader=grader, chain_of_thought=chain_of_thought
  )
  name = f"{kind}, {grader}"
  yield name, lambda text: grade(text, "7")
  yield f"{name}, as the target", lambda text: grade("7 oranges", text)
  yield f"{name}, of itself", lambda text: grade(text, text)
  yield f"{name}, before it", lambda text: grade(f"{text}\nSo 8 1/3", "7")
  yield (
    f"{name}, after a marker",
    lambda text: grade(f"The answer is 8 {text} 1/3", "7"),
  )


def _entries():
  """Yields everything that reads a text of a model's, by name."""
  for kind in get_args(answers.Kind):
    yield from _graded(kind, "fixed")
  for kind in ("number", "exact"):
    yield from _graded(kind, "paper_code")
  yield from _graded("exact", "paper_code", chain_of_thought=True)
  for rule in _rules():
    name = f"{rule.kind}, compared as {rule.compare}"
    yield name, lambda text, rule=rule: rule.grade(text, "7")
    yield (
      f"{name}, as the target",
      lambda text, rule=rule: rule.grade("Queue: seven", text),
    )
    yield f"{name}, of itself", lambda text, rule=rule: rule.grade(text, text)
    yield f"{name}, read", lambda text, rule=rule: rule.read(text)
  yield "numbers_equal", lambda text: answers.numbers_equal(text, "7")
  yield "a vote", lambda text: self_consistency.vote([text, "7"], [0.0, -1.0])
  yield "result_of", lambda text: calculator.result_of(f"{text}=")
  yield "result_of a mark", lambda text: calculator.result_of(f"<<{text}=")
  yield "result_of a sum", lambda text: calculator.result_of(f"{text} 48 / 2 =")
  yield "result_of blanks", lambda text: calculator.result_of(f"48/2={text}")
  yield "evaluate", calculator.evaluate
  yield "plain_characters", spelling.plain_characters
  yield "plain_latex", spelling.plain_latex
  yield "box_content", lambda text: turns.box_content(f"{{{text}")


ENTRIES = dict(_entries())


@pytest.fixture(scope="module")
def slowest(request):
  """Takes the seconds of every entry and text, and prints the slowest."""
  found = []
  yield found
  reporter = request.config.pluginmanager.getplugin("terminalreporter")
  for seconds, name, entry in sorted(found, reverse=True)[:15]:
    reporter.write_line(f"\n{seconds:.3f} s: {entry} on {name}", yellow=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_a_megabyte_is_answered_in_a_second(name, slowest):
  text = TEXTS[name]()
  too_slow = {}
  for entry, read in ENTRIES.items():
    start = time.process_time()
    read(text)
    seconds = time.process_time() - start
    slowest.append((seconds, name, entry))
    if seconds > LIMIT_SECONDS:
      too_slow[entry] = round(seconds, 2)
  assert not too_slow


@pytest.mark.parametrize(
  "pattern",
  [
    r"(?P<answer>(a+)+)\Z",
    r"(?P<answer>(a|aa)+)!",
    r"(?P<answer>(.*)*)x\Z",
    r"(?P<answer>(\w+\s?)+)\.",
    r"a*a*a*a*(?P<answer>b)",
  ],
)
def test_a_pattern_that_backtracks_without_end_is_refused(pattern):
  rule = answer_rules.AnswerRule(kind="regex", pattern=pattern)
  assert "takes more than 0.3 s on a text" in answer_rules.why_not(rule)
  start = time.process_time()
  with contextlib.suppress(errors.UserError):
    rule.grade("a" * SIZE + "?", "7")
  assert time.process_time() - start < LIMIT_SECONDS


def test_a_text_on_which_a_pattern_backtracks_is_told():
  rule = answer_rules.AnswerRule(kind="regex", pattern=r"(?P<answer>(a+)+)\Z")
  with pytest.raises(errors.UserError, match=r"takes more than 0\.3 s on a"):
    rule.grade("a" * SIZE + "?", "7")
