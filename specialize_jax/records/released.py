r"""Reads the paper's samples as its authors released them.

A step is a list of `[token, probability]`, the sampled token first, then the
API's top 5. The prompt ends with "... step by step\n" and a sample with a blank
line; the released samples include both (FranxYao/
FlanT5-CoT-Specialization: notebooks/dev_align_codex_to_flan_t5_dtw.ipynb,
`transform_step_probs`).
"""

import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading
from specialize_jax.records import escaped_bytes, schema

_PROMPT_TAIL = (" step", "\n")
_STOPS = (("\n", "\n"), ("\n\n", "\n"))

Steps = Sequence[Sequence[tuple[str, float]]]


def read(file: pathlib.Path) -> Iterator[schema.TeacherRecord]:
  """Reads a JSON list of `{"question_id", "sample", "steps"}`.

  Raises:
    UserError: the file is not JSON, or an entry is not such a sample.
  """
  entries = reading.read_json(file)
  for index, entry in enumerate(entries):
    where = f"{file}, entry {index}"
    try:
      record = _record(entry)
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise errors.UserError(
        f"{where} is not one of the paper's released samples"
        f" ({type(error).__name__}: {error}); expected an object with"
        " question_id, sample and steps of [token, probability] pairs"
      ) from error
    yield record


def _record(entry: Mapping) -> schema.TeacherRecord:
  """Converts an entry to a record without question and answer."""
  if type(entry["question_id"]) not in (str, int):
    raise TypeError(f"question_id is {entry['question_id']!r}")
  if type(entry["sample"]) is not int:
    raise TypeError(f"sample is {entry['sample']!r}")
  return to_record(
    entry["steps"], question_id=entry["question_id"], sample=entry["sample"]
  )


def to_record(
  steps: Steps,
  *,
  question_id: str | int,
  sample: int,
  question: str = "",
  gold_answer: str = "",
) -> schema.TeacherRecord:
  """Converts a sample's steps to a record without verdicts.

  The end of the prompt and the stop are removed if present, and recorded in
  `request`. The source does not say why a sample without a stop ended.

  Args:
    steps: the tokens of the sample, each with its alternatives.
    question_id: the id of the question.
    sample: the number of the sample of the question, from 0.
    question: the text of the question.
    gold_answer: the answer to grade against.

  Raises:
    TypeError, ValueError, IndexError: the steps are invalid.
  """
  tokens = [step[0][0] for step in steps]
  tail = _PROMPT_TAIL if tuple(tokens[:2]) == _PROMPT_TAIL else ()
  stop = tuple(tokens[-2:]) if tuple(tokens[-2:]) in _STOPS else ()
  text, kept = _whole_characters(
    tuple(
      escaped_bytes.decoded(to_step(step))
      for step in steps[len(tail) : len(steps) - len(stop)]
    )
  )
  return schema.TeacherRecord(
    question_id=question_id,
    sample=sample,
    question=question,
    gold_answer=gold_answer,
    text=text,
    steps=kept,
    finish_reason="stop" if stop else schema.UNKNOWN_FINISH,
    request={"prompt_tail": list(tail), "stop": list(stop)},
    verdicts={},
  )


def _whole_characters(
  steps: tuple[schema.TeacherStep, ...],
) -> tuple[str, tuple[schema.TeacherStep, ...]]:
  """Returns the text of steps without a last character that was cut, and them.

  Raises:
    UnicodeDecodeError: the bytes are not UTF-8.
  """
  while True:
    spelled = b"".join(step.spelling for step in steps)
    try:
      return spelled.decode("utf-8", errors="surrogatepass"), steps
    except UnicodeDecodeError as error:
      if error.reason != "unexpected end of data":
        raise
      steps = steps[:-1]


def to_step(step: Sequence[tuple[str, float]]) -> schema.TeacherStep:
  """Converts a step; its probabilities are rounded in the source.

  Raises:
    TypeError, ValueError: it is not a list of tokens and probabilities.
  """
  (token, prob), *top = step
  names = [token, *(candidate for candidate, _ in top)]
  if not all(isinstance(name, str) for name in names):
    raise TypeError(f"a token is not a string in {names!r}")
  return schema.TeacherStep(
    token=token,
    log_prob=_log(prob),
    top=tuple((candidate, _log(value)) for candidate, value in top),
  )


def _log(prob: float) -> float:
  if not 0 <= prob <= 1:
    raise ValueError(f"probability {prob!r} is not between 0 and 1")
  return math.log(prob) if prob > 0 else -math.inf
