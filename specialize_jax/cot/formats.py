"""The four data formats: templates of prompts and targets.

A format is one of {in-context, zero-shot} x {answer-only, chain-of-thought},
with a wording. The default wording is exactly the paper's, including newlines
(FranxYao/FlanT5-CoT-Specialization: src/data_utils.py, `process_data_format`
and `sample_in_context_example`), since a checkpoint works best with the prompts
that it was trained on. A dataset file can define another wording.
"""

import dataclasses
import json
from collections.abc import Sequence

from specialize_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demonstration:
  """A solved problem, shown before the question of an in-context prompt.

  Attributes:
    question: The problem, without "Q: ".
    rationale: The whole chain of thought, including its last sentence "The
      answer is X".
    answer: The bare answer, such as "72".
  """

  question: str
  rationale: str
  answer: str


QUESTION, ANSWER = "{question}", "{answer}"
"""The placeholders of a question and an answer, at most once in a template."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wording:
  """Templates of prompts and of the sentence that states the answer.

  A demonstration is a prompt, a newline and a rationale, or a prompt, a space
  and an answer; either is followed by a blank line.

  Attributes:
    chain_of_thought: The prompt that asks for a chain of thought.
    answer_only: The zero-shot prompt that asks for the answer alone.
    in_context_answer_only: The answer-only prompt after demonstrations.
    answer: The sentence that is an answer-only target, and that ends a
      rationale.
    answer_is_json: Whether the answer is part of a JSON string there, in which
      quotation marks, backslashes and line breaks are escaped.
  """

  chain_of_thought: str = f"Q: {QUESTION}\nLet's think step by step"
  answer_only: str = f"Q: {QUESTION} A:"
  in_context_answer_only: str = f"Q: {QUESTION}\nA:"
  answer: str = f"The answer is {ANSWER}"
  answer_is_json: bool = False


PAPER = Wording()


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataFormat:
  """One of the four formats of an example.

  Attributes:
    name: The name in tasks and files, such as "zero_shot_chain_of_thought".
    in_context: Whether demonstrations precede the question.
    chain_of_thought: Whether the target is the rationale; if not, it is only
      the answer.
    wording: The templates of prompt and answer.
  """

  name: str
  in_context: bool
  chain_of_thought: bool
  wording: Wording = PAPER


IN_CONTEXT_ANSWER_ONLY = DataFormat(
  name="in_context_answer_only", in_context=True, chain_of_thought=False
)
IN_CONTEXT_CHAIN_OF_THOUGHT = DataFormat(
  name="in_context_chain_of_thought", in_context=True, chain_of_thought=True
)
ZERO_SHOT_ANSWER_ONLY = DataFormat(
  name="zero_shot_answer_only", in_context=False, chain_of_thought=False
)
ZERO_SHOT_CHAIN_OF_THOUGHT = DataFormat(
  name="zero_shot_chain_of_thought", in_context=False, chain_of_thought=True
)

FORMATS = (
  IN_CONTEXT_ANSWER_ONLY,
  IN_CONTEXT_CHAIN_OF_THOUGHT,
  ZERO_SHOT_ANSWER_ONLY,
  ZERO_SHOT_CHAIN_OF_THOUGHT,
)


def worded(wording: Wording) -> tuple[DataFormat, ...]:
  """Returns the four formats in a wording."""
  if wording == PAPER:
    return FORMATS
  return tuple(dataclasses.replace(one, wording=wording) for one in FORMATS)


def number_of(data_format: DataFormat) -> int:
  """Returns the index of a format among the four, whatever its wording."""
  return [one.name for one in FORMATS].index(data_format.name)


def by_name(name: str, wording: Wording = PAPER) -> DataFormat:
  """Returns the format with the given name.

  Raises:
    UserError: no format has that name.
  """
  for data_format in worded(wording):
    if data_format.name == name:
      return data_format
  known = ", ".join(data_format.name for data_format in FORMATS)
  raise errors.UserError(
    f"data format {name!r} is unknown; expected one of: {known}"
  )


def render_question(question: str, data_format: DataFormat) -> str:
  r"""Renders the question at the end of a prompt.

  Example:
    >>> render_question("1 + 1?", ZERO_SHOT_ANSWER_ONLY)
    'Q: 1 + 1? A:'
    >>> render_question("1 + 1?", IN_CONTEXT_ANSWER_ONLY)
    'Q: 1 + 1?\nA:'
    >>> render_question("1 + 1?", ZERO_SHOT_CHAIN_OF_THOUGHT)
    "Q: 1 + 1?\nLet's think step by step"
  """
  wording = data_format.wording
  if data_format.chain_of_thought:
    return _filled(wording.chain_of_thought, QUESTION, question)
  if data_format.in_context:
    return _filled(wording.in_context_answer_only, QUESTION, question)
  return _filled(wording.answer_only, QUESTION, question)


def render_answer(answer: str, wording: Wording = PAPER) -> str:
  """Renders the sentence that states an answer.

  Example:
    >>> render_answer("72")
    'The answer is 72'
  """
  if wording.answer_is_json:
    answer = json.dumps(answer, ensure_ascii=False)[1:-1]
  return _filled(wording.answer, ANSWER, answer)


def _filled(template: str, place: str, text: str) -> str:
  before, _, after = template.partition(place)
  return f"{before}{text}{after}"


def render_demonstration(
  demonstration: Demonstration, data_format: DataFormat
) -> str:
  r"""Renders a demonstration, including the blank line after it.

  Example:
    >>> one = Demonstration(
    ...   question="1 + 1?", rationale="1 + 1 = 2. The answer is 2", answer="2"
    ... )
    >>> render_demonstration(one, IN_CONTEXT_ANSWER_ONLY)
    'Q: 1 + 1?\nA: The answer is 2\n\n'
    >>> render_demonstration(one, IN_CONTEXT_CHAIN_OF_THOUGHT)
    "Q: 1 + 1?\nLet's think step by step\n1 + 1 = 2. The answer is 2\n\n"
  """
  shown = dataclasses.replace(data_format, in_context=True)
  prompt = render_question(demonstration.question, shown)
  if data_format.chain_of_thought:
    return f"{prompt}\n{demonstration.rationale}\n\n"
  answer = render_answer(demonstration.answer, data_format.wording)
  return f"{prompt} {answer}\n\n"


def render_prompt(
  question: str,
  data_format: DataFormat,
  demonstrations: Sequence[Demonstration] = (),
) -> str:
  """Renders the encoder's input: demonstrations, then the question.

  Args:
    question: The problem, without "Q: ".
    data_format: The format.
    demonstrations: Solved problems, for an in-context format only.

  Raises:
    UserError: an in-context format has no demonstrations, or a zero-shot
      format has some.
  """
  if data_format.in_context and not demonstrations:
    raise errors.UserError(
      f"data format {data_format.name!r} needs demonstrations and got none;"
      " give at least one or use a zero-shot format"
    )
  if demonstrations and not data_format.in_context:
    raise errors.UserError(
      f"data format {data_format.name!r} takes no demonstrations and got"
      f" {len(demonstrations)}; drop them or use an in-context format"
    )
  shown = "".join(
    render_demonstration(demonstration, data_format)
    for demonstration in demonstrations
  )
  return shown + render_question(question, data_format)


def render_target(data_format: DataFormat, rationale: str, answer: str) -> str:
  """Renders the decoder's target.

  Args:
    data_format: The format, which determines whether the rationale or the
      answer is the target.
    rationale: The whole chain of thought.
    answer: The bare answer.

  Example:
    >>> render_target(ZERO_SHOT_ANSWER_ONLY, "1 + 1 = 2", "2")
    'The answer is 2'
    >>> render_target(ZERO_SHOT_CHAIN_OF_THOUGHT, "1 + 1 = 2", "2")
    '1 + 1 = 2'
  """
  if data_format.chain_of_thought:
    return rationale
  return render_answer(answer, data_format.wording)
