"""BIG-Bench-Hard: 27 tasks, each with a prompt of three demonstrations.

Source: Suzgun et al., "Challenging BIG-Bench Tasks and Whether
Chain-of-Thought Can Solve Them" (2022), whose files and prompts these are.
A prompt file opens with two lines that are no prompt: a canary against
training on it, and a rule.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import benchmarks, questions, sources, splits
from specialize_jax.files import reading

Rule = Literal["chain_of_thought", "answer_only", "answer_only_paper_code"]

PROMPT = "prompt_file"
"""The metadata of a task's TFDS dataset that holds its prompt file."""

_CANARY_LINES = 2
_QUESTION = "Q: "
_ANSWER = "\nA: "
_STEP_BY_STEP = "Let's think step by step."
_FINAL_ANSWER = re.compile(r".*the answer is (.*?)\.?\s*\Z", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A task's instruction and its solved examples.

  Attributes:
    instruction: what the task is.
    demonstrations: the examples; a rationale here opens with "Let's think
      step by step." and ends in "So the answer is X.", as the file has it.
  """

  instruction: str
  demonstrations: Sequence[formats.Demonstration]


def read_prompt(path: str) -> Prompt:
  """Reads a chain-of-thought prompt file, its canary left out.

  Raises:
    UserError: the file has no demonstration, or one without a final answer.
  """
  return parse_prompt(reading.read_text(path), path)


def parse_prompt(text: str, path: str) -> Prompt:
  """Takes a prompt file's text apart; errors name `path`."""
  text = "\n".join(text.split("\n")[_CANARY_LINES:])
  instruction, *blocks = text.strip().split(f"\n\n{_QUESTION}")
  demonstrations = []
  for block in blocks:
    question, answer_mark, rationale = block.partition(_ANSWER)
    final = _FINAL_ANSWER.match(rationale)
    if not answer_mark or final is None:
      raise errors.UserError(
        f"{path}: expected every demonstration to have an answer that ends in"
        f" 'the answer is X', got {block[-60:]!r}"
      )
    demonstrations.append(
      formats.Demonstration(
        question=question.strip(),
        rationale=rationale.strip(),
        answer=final[1].strip(),
      )
    )
  if not demonstrations:
    raise errors.UserError(
      f"{path}: expected demonstrations that open with {_QUESTION!r}, got none"
    )
  return Prompt(instruction=instruction, demonstrations=demonstrations)


def render(prompt: Prompt, question: str, *, chain_of_thought: bool) -> str:
  r"""Writes a question after the task's prompt.

  With answer only, each of the demonstrations shows its question and its
  final answer and nothing between.

  Example: with the instruction "Add." and one demonstration, of "1 + 1" with
  "Let's think step by step.\nIt is 2. So the answer is 2.", answer only:

    Add.\n\nQ: 1 + 1\nA: 2\n\nQ: 3 + 4\nA:

  Args:
    prompt: the task's prompt.
    question: the question.
    chain_of_thought: whether demonstrations show their rationales.
  """
  shown = [
    f"{_QUESTION}{one.question}{_ANSWER}"
    f"{one.rationale if chain_of_thought else one.answer}"
    for one in prompt.demonstrations
  ]
  asked = f"{_QUESTION}{question}{_ANSWER}"
  asked = asked + _STEP_BY_STEP if chain_of_thought else asked.rstrip()
  return "\n\n".join([prompt.instruction, *shown, asked])


def render_as_paper_code(file_text: str, question: str) -> str:
  """Writes an answer-only prompt as the paper's released code does.

  It cuts the file at its first "A:" and at "the answer is ", and so keeps
  the canary, the first question with its answer, and behind that the second
  demonstration's question and chain of thought up to its answer; the rest is
  lost. (FranxYao/FlanT5-CoT-Specialization: test_bbh.py, `modify_prompt`.)
  For comparison only; `render` is what a prompt should be.

  Args:
    file_text: the prompt file whole.
    question: the question.
  """
  before = file_text.split("A:", maxsplit=1)[0]
  between = file_text.split("the answer is ")[1]
  return (
    f"{before}A: the answer is {between}"
    f"\n\n{_QUESTION}{question}{_ANSWER}the answer is "
  )


def source(
  task: str, rule: Rule, *, in_context: bool = True
) -> sources.TableSource:
  """Gives the seqio source of a task: its questions, prompt included.

  Rows have `inputs` and `targets` as text beside a question's columns. The
  split `test` has every question, `validation` a fixed quarter of them.

  Args:
    task: one of the 27, such as `boolean_expressions`.
    rule: how its prompt is written.
    in_context: whether the prompt shows the task's demonstrations, or only
      its instruction. The paper's code always shows what it keeps of them.
  """

  def read_columns(split: str) -> Mapping[str, Sequence[str]]:
    rows, prompt_text, path = _read_task(task)
    rows = _of_split(rows, split)
    write = _writer(prompt_text, path, rule, in_context=in_context)
    return {
      **questions.to_columns(rows),
      "inputs": [write(row.question) for row in rows],
      "targets": [row.answer for row in rows],
    }

  return sources.TableSource(
    read_columns,
    splits=["validation", "test"],
    description=f"BIG-Bench-Hard {task}",
  )


def read(task: str, split: str) -> list[questions.Question]:
  """Reads a task's questions; for the splits see `source`."""
  return _of_split(_read_task(task)[0], split)


def _of_split(
  rows: list[questions.Question], split: str
) -> list[questions.Question]:
  if split != "validation":
    return rows
  # Whole texts: the words of a row of brackets are none.
  return splits.split_validation(rows, words_fn=str)[0]


def paths(task: str) -> tuple[str, str]:
  """Gives a task's two files below a data directory: questions and prompt."""
  return f"bbh/{task}.json", f"bbh/cot-prompts/{task}.txt"


def _read_task(task: str) -> tuple[list[questions.Question], str, str]:
  """Reads questions and the prompt file's text, and tells where it lies.

  The authors' own files in the data directory come first, then the TFDS
  dataset that `specialize prepare --dataset_name=bbh` built.
  """
  name = f"bbh/{task}"
  built = benchmarks.built(name, beside=paths(task))
  if built is not None:
    rows = benchmarks.built_questions(name, "test", beside=paths(task))
    return rows, built.info.metadata[PROMPT], str(built.data_dir)
  rows_path, prompt_path = map(sources.find, paths(task))
  text = reading.read_text(prompt_path)
  return read_questions(rows_path, task), text, prompt_path


def _writer(
  prompt_text: str, path: str, rule: Rule, *, in_context: bool
) -> Callable[[str], str]:
  """Gives the function that writes a question by a rule."""
  if rule == "answer_only_paper_code":
    return lambda question: render_as_paper_code(prompt_text, question)
  prompt = parse_prompt(prompt_text, path)
  if not in_context:
    prompt = dataclasses.replace(prompt, demonstrations=())
  chain_of_thought = rule == "chain_of_thought"
  return lambda question: render(
    prompt, question, chain_of_thought=chain_of_thought
  )


def read_questions(path: str, task: str) -> list[questions.Question]:
  """Reads a task file: `examples` of `input` and `target`.

  Raises:
    UserError: the file is not such JSON.
  """
  content = reading.read_json(path)
  try:
    return [
      questions.Question(
        question_id=f"bbh/{task}/{number}",
        question=row["input"].strip(),
        rationale="",
        answer=row["target"].strip(),
      )
      for number, row in enumerate(content["examples"])
    ]
  except (KeyError, TypeError, AttributeError) as error:
    raise errors.UserError(
      f"{path}: expected JSON with 'examples' of 'input' and 'target', got"
      f" {type(error).__name__}: {error}"
    ) from error
