"""BIG-Bench-Hard: 27 tasks, each with a prompt of three demonstrations.

Source: Suzgun et al., "Challenging BIG-Bench Tasks and Whether
Chain-of-Thought Can Solve Them" (2022), whose files and prompts these are.
A prompt file begins with two lines that are not part of the prompt: a canary
string, to detect training on it, and a separator.
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
"""The key of the prompt file's text in the metadata of a TFDS dataset."""

_CANARY_LINES = 2
_QUESTION = "Q: "
_ANSWER = "\nA: "
_STEP_BY_STEP = "Let's think step by step."
_FINAL_ANSWER = re.compile(r".*the answer is (.*?)\.?\s*\Z", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A task's instruction and demonstrations.

  Attributes:
    instruction: The description of the task.
    demonstrations: The solved examples. As in the file, a rationale begins with
      "Let's think step by step." and ends with "So the answer is X.".
  """

  instruction: str
  demonstrations: Sequence[formats.Demonstration]


def parse_prompt(text: str, path: str) -> Prompt:
  """Parses the text of a chain-of-thought prompt file, without its canary.

  Args:
    text: The text.
    path: The file, for errors.

  Raises:
    UserError: it has no demonstration, or one without a final answer.
  """
  lines = text.split("\n")
  # A copy may have been cleared of it.
  if len(lines) > 1 and lines[1].strip() and not lines[1].strip(" -"):
    text = "\n".join(lines[_CANARY_LINES:])
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
  r"""Renders a task's prompt for a question.

  Example: with the instruction "Add.", one demonstration of "1 + 1" with
  "Let's think step by step.\nIt is 2. So the answer is 2.", and without chain
  of thought:

    Add.\n\nQ: 1 + 1\nA: 2\n\nQ: 3 + 4\nA:

  Args:
    prompt: The task's instruction and demonstrations.
    question: The question.
    chain_of_thought: Whether demonstrations include their rationales; if not,
      they consist of question and final answer.
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
  """Renders an answer-only prompt as the paper's released code does.

  The code splits the file at its first "A:" and at "the answer is ". The result
  therefore contains the canary, the first question with its answer, and the
  second demonstration's question and chain of thought up to its answer, but
  nothing after that. (FranxYao/FlanT5-CoT-Specialization: test_bbh.py,
  `modify_prompt`.) For comparison only; `render` returns a correct prompt.

  Args:
    file_text: The content of the prompt file.
    question: The question.
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
  """Builds the seqio source of a task's questions, with their prompts.

  Rows have the texts `inputs` and `targets`, and a question's columns. The
  split `test` has every question, `validation` a fixed quarter of them.

  Args:
    task: One of the 27 tasks, such as `boolean_expressions`.
    rule: The way in which the prompt is rendered.
    in_context: Whether the prompt includes the task's demonstrations, or only
      its instruction. Ignored for the prompts of the paper's code.
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
  """Reads a split of a task's questions; see `source` for the splits."""
  return _of_split(_read_task(task)[0], split)


def _of_split(
  rows: list[questions.Question], split: str
) -> list[questions.Question]:
  if split != "validation":
    return rows
  # Compare whole texts, since a sequence of brackets has no words.
  return splits.split_validation(rows, words_fn=str)[0]


def paths(task: str) -> tuple[str, str]:
  """Returns a task's files, relative to a data directory: questions, prompt."""
  return f"bbh/{task}.json", f"bbh/cot-prompts/{task}.txt"


def _read_task(task: str) -> tuple[list[questions.Question], str, str]:
  """Reads a task's questions and prompt.

  The authors' files in the data directory take precedence over the TFDS dataset
  that `specialize prepare --dataset_name=bbh` builds.

  Returns:
    The questions, the text of the prompt file, and its path.
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
  """Returns the function that renders a question's prompt by a rule."""
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

  Args:
    path: The file.
    task: The task's name, for the ids of the questions.

  Raises:
    UserError: the file is not JSON of this form.
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
