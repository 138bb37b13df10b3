r"""Parses the text dump of the paper's teacher samples.

The format (FranxYao/FlanT5-CoT-Specialization: scripts/codex_decode_gsm8k.py,
`write_output`):

  Question 0: Natalia sold clips to 48 of her friends ...
  Answer: Natalia sold 48/2 = <<48/2=24>>24 clips in May.
  #### 72
  Model output 0:
  If Natalia sold 48 clips in April, ...
  The answer is 72
  Per-step decode: <<' step'>> 1.0000 <<'!'>> 0.0000 ... ||| <<'\n'>> ...

A token is a Python string literal, so any content is parsed exactly, including
`<<`, `>>`, `|||`, quotes and newlines. There was no stop sequence: the steps
continue after the answer with further questions, and are truncated where the
authors truncate them (src/utils.py, `parse_codex_outputs`).
"""

import ast
import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator

from specialize_jax import errors
from specialize_jax.files import reading

_QUESTION = re.compile(r"Question (\d+): (.*)", re.DOTALL)
_ANSWER = "Answer: "
_STEPS = "Per-step decode: "
_CANDIDATE = re.compile(
  r"""\ *<<(?P<token>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")>>\ """
  r"""(?P<prob>\d+\.\d+)(?=\ |$)""",
  re.VERBOSE,
)
_END_OF_STEP = re.compile(r" *\|\|\|(?= |$)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """A sample of the dump.

  Attributes:
    question_id: The question's number.
    sample: The sample's number.
    question: The question.
    answer: The gold solution, in GSM8K's format.
    text: The model's text, up to and including the line of its answer.
    steps: Each step's tokens and probabilities, beginning with the sampled one.
  """

  question_id: int
  sample: int
  question: str
  answer: str
  text: str
  steps: list[list[tuple[str, float]]]


def read(path: pathlib.Path) -> Iterator[Sample]:
  """Yields the samples of a dump.

  Raises:
    UserError: a line is malformed or out of place.
  """
  lines = _Lines(path, reading.lines(path))
  while lines.skip_blank():
    match = _QUESTION.fullmatch(lines.take())
    if match is None:
      raise lines.error("'Question N: ...'")
    question_id = int(match[1])
    question = match[2] + lines.take_until(_ANSWER)
    answer = lines.take()[len(_ANSWER) :] + lines.take_until("Model output 0:")
    sample = 0
    while lines.next.startswith(f"Model output {sample}:"):
      opening = lines.take().partition(":")[2].removeprefix(" ")
      text = opening + lines.take_until(_STEPS)
      steps = lines.take().removeprefix(_STEPS).rstrip("\n")
      yield Sample(
        question_id=question_id,
        sample=sample,
        question=question.strip(),
        answer=answer.strip(),
        text=text.strip("\n"),
        steps=list(_cut(_steps(steps, lines))),
      )
      sample += 1


class _Lines:
  """An iterator over lines with lookahead, and line numbers for errors."""

  def __init__(self, path: pathlib.Path, stream: Iterator[str]) -> None:
    self._path = path
    self._stream = stream
    self._number = 0
    self.next = ""  # the end of the file; lines have at least a newline
    self.take()

  def take(self) -> str:
    taken, self.next = self.next, next(self._stream, "")
    self._number += 1
    return taken

  def skip_blank(self) -> bool:
    """Skips blank lines; returns whether another line follows."""
    while self.next.isspace():
      self.take()
    return self.next != ""

  def take_until(self, start: str) -> str:
    """Consumes and returns the lines before one that begins with `start`."""
    taken = []
    while not self.next.startswith(start):
      if not self.next:
        raise self.error(f"a line that starts with {start!r}")
      taken.append(self.take())
    return "".join(taken)

  def error(self, expected: str) -> errors.UserError:
    return errors.UserError(
      f"{self._path}, line {self._number}: expected {expected}, got"
      f" {(self.next or 'the end of the file')[:60]!r}; the dump is cut short"
      " or is none"
    )


def _steps(text: str, lines: _Lines) -> Iterator[list[tuple[str, float]]]:
  """Yields the steps of a line."""
  position, step = 0, []
  while position < len(text):
    match = _CANDIDATE.match(text, position)
    if match is not None:
      try:
        token = _token(match["token"])
      except (SyntaxError, ValueError) as error:
        raise lines.error(
          f"a token as Python writes it, not {match['token'][:30]}, before the"
          " line"
        ) from error
      step.append((token, float(match["prob"])))
    else:
      match = _END_OF_STEP.match(text, position)
      if match is None or not step:
        if not text[position:].strip():
          break
        found = text[position : position + 30]
        raise lines.error(f"<<'token'>> 0.1234 before the line at {found!r}")
      yield step
      step = []
    position = match.end()
  if step:
    raise lines.error("'|||' at the end of the steps before the line")


@functools.lru_cache(maxsize=100_000)
def _token(written: str) -> str:
  """Parses a token, a Python string literal."""
  if "\\" not in written:
    return written[1:-1]
  return ast.literal_eval(written)  # a string literal, by the pattern


def _cut(
  steps: Iterator[list[tuple[str, float]]],
) -> Iterator[list[tuple[str, float]]]:
  """Truncates steps, as the authors do, at "Question" after "answer", "is"."""
  state = 0
  for step in steps:
    token = step[0][0]
    if "answer" in token:
      state = 1
    if "is" in token and state == 1:
      state = 2
    if "Question" in token and state == 2:
      return
    yield step
