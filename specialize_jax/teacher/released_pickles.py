r"""The pickles that the paper's authors released.

Two kinds. The decoded samples are in one directory, as four lists by question:
`codex_questions.pkl` ("Question 0: ...\n"), `codex_answers.pkl` ("Answer:
...\n#### 72\n"), `codex_predictions.pkl` (of each question the texts "Model
output 0: \n..."), `codex_per_step_probs.pkl` (of each text the steps, each a
list of (token, probability), the sampled one first).

The data of a format, such as `in_context_chain_of_thought.pkl`, is a list of
`{"question", "answer", "answer_gold", "per_step_probs", "answer_label",
"type"}`, aligned already: a step is an (ordered) dictionary from T5's pieces
to probabilities, the target's own first.
"""

import ast
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.records import released, schema
from specialize_jax.teacher import released_text, safe_pickle

_LISTS = ("questions", "answers", "predictions", "per_step_probs")
_QUESTION = re.compile(r"Question (\d+): (.*)", re.DOTALL)
_FORMAT_KEYS = ("question", "answer", "answer_gold", "per_step_probs")
_BOUNDARY = "\u2581"
_UNKNOWN = "<unk>"


def read_samples(folder: pathlib.Path) -> Iterator[released_text.Sample]:
  """Reads the four lists of decoded samples.

  Raises:
    UserError: a file is missing or refused, or the lists do not match.
  """
  lists = {}
  for name in _LISTS:
    path = folder / f"codex_{name}.pkl"
    if not path.is_file():
      raise errors.UserError(
        f"{folder} has no {path.name}; expected"
        f" {', '.join(f'codex_{one}.pkl' for one in _LISTS)}"
      )
    lists[name] = safe_pickle.load(path)
    if not isinstance(lists[name], list):
      raise errors.UserError(f"{path} holds no list")
  lists["questions"] = _without_repeats(lists["questions"])
  sizes = {name: len(values) for name, values in lists.items()}
  if len(set(sizes.values())) != 1:
    raise errors.UserError(f"the lists in {folder} differ in length: {sizes}")
  for number, (question, answer, texts, probs) in enumerate(
    zip(*lists.values(), strict=True)
  ):
    where = f"{folder}, question {number}"
    try:
      yield from _samples(number, question, answer, texts, probs)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
      raise errors.UserError(
        f"{where} is not as released ({type(error).__name__}: {error})"
      ) from error


def _without_repeats(questions: Sequence[str]) -> list[str]:
  """Removes consecutive repetitions of a question.

  The authors' parser appends a question again for each line of a model's text
  that begins with "Answer: " (src/utils.py, `parse_codex_outputs`).
  """
  return [
    question
    for number, question in enumerate(questions)
    if number == 0 or question != questions[number - 1]
  ]


def _samples(
  number: int,
  question: str,
  answer: str,
  texts: Sequence[str],
  probs: Sequence[Sequence[Sequence[tuple[str, float]]]],
) -> Iterator[released_text.Sample]:
  match = _QUESTION.fullmatch(question)
  for sample, (text, steps) in enumerate(zip(texts, probs, strict=True)):
    bare = text.partition(":")[2].strip()
    read = [[(token, float(prob)) for token, prob in one] for one in steps]
    yield released_text.Sample(
      question_id=int(match[1]) if match else number,
      sample=sample,
      question=(match[2] if match else question).strip(),
      answer=answer.removeprefix("Answer: ").strip(),
      text=bare,
      steps=_unescaped(bare, read),
    )


def _unescaped(
  text: str, steps: list[list[tuple[str, float]]]
) -> list[list[tuple[str, float]]]:
  r"""Decodes tokens that the authors' parser left as Python literals.

  The parser removes a token's quotes and replaces "\\n" by a newline, but no
  other escapes ("\\xa0" for a no-break space). If the tokens do not spell the
  text, they are parsed as complete literals.
  """
  spelt = "".join(step[0][0] for step in steps)
  if "\\" not in spelt or text in spelt:
    return steps
  return [[(_literal(token), prob) for token, prob in one] for one in steps]


def _literal(token: str) -> str:
  if "\\" not in token:
    return token
  quoted = token.replace('"', '\\"').replace("\n", "\\n")
  try:
    return str(ast.literal_eval(f'"{quoted}"'))
  except (SyntaxError, ValueError):
    return token


def read_format(path: pathlib.Path) -> Iterator[schema.TeacherRecord | str]:
  """Reads a format's data.

  Yields:
    Records without verdicts, numbered by question in the order of the file; for
    a rejected row, the reason.

  Raises:
    UserError: the file is refused or is not such data.
  """
  rows = safe_pickle.load(path)
  if not isinstance(rows, list):
    raise errors.UserError(f"{path} holds no list of samples")
  numbers: dict[str, int] = {}
  samples: dict[str, int] = {}
  for index, row in enumerate(rows):
    if not isinstance(row, dict) or not set(_FORMAT_KEYS[:3]) <= set(row):
      raise errors.UserError(
        f"{path}, entry {index} is not as released: expected a dictionary"
        f" with {', '.join(_FORMAT_KEYS)}"
      )
    if not row.get("per_step_probs"):
      yield "holds no teacher probabilities"
      continue
    question = _asked(str(row["question"]))
    number = numbers.setdefault(question, len(numbers))
    try:
      steps = _piece_steps(str(row["answer"]), row["per_step_probs"])
    except (AttributeError, TypeError, ValueError) as error:
      yield f"its pieces do not spell its answer ({error})"
      continue
    sample = samples.get(question, 0)
    samples[question] = sample + 1
    yield schema.TeacherRecord(
      question_id=number,
      sample=sample,
      question=question,
      gold_answer=str(row["answer_gold"]).rpartition("####")[2].strip(),
      text=b"".join(step.spelling for step in steps).decode(),
      steps=steps,
      finish_reason="stop",
      request={"source": path.name, "tokens": "T5 pieces, aligned by `paper`"},
      verdicts={},
    )


def _asked(prompt: str) -> str:
  """Extracts the last question of a prompt that `cot.formats` rendered."""
  question = prompt.rpartition("Q: ")[2].rstrip()
  for ending in ("A:", "Let's think step by step"):
    question = question.removesuffix(ending).rstrip()
  return question.partition("\nLet's think step by step")[0].strip()


def _piece_steps(
  text: str, steps: Sequence[Mapping[str, float]]
) -> tuple[schema.TeacherStep, ...]:
  """Assigns the characters of a text to T5's pieces.

  A piece that begins a word includes the white space before it, which T5 does
  not distinguish; an unknown piece extends to the next piece.
  """
  text = text.strip()
  made, position = [], 0
  pieces = [next(iter(step), None) for step in steps]
  for number, (piece, step) in enumerate(zip(pieces, steps, strict=True)):
    body = piece.replace(_BOUNDARY, " ").lstrip()
    start = position
    while position < len(text) and text[position].isspace():
      position += 1
    if _UNKNOWN in body:
      known = pieces[number + 1 : number + 2]
      ahead = known[0].replace(_BOUNDARY, " ").strip() if known else ""
      found = text.find(ahead, position + 1) if ahead else len(text)
      position = len(text) if found < 0 else found
      # White space before the next piece belongs to that piece.
      position = start + len(text[start:position].rstrip())
    elif text.startswith(body, position):
      position += len(body)
    else:
      raise ValueError(f"{piece!r} where the text has {text[position:][:20]!r}")
    candidates = [(name.replace(_BOUNDARY, " "), p) for name, p in step.items()]
    bare = released.to_step([candidates[0], *candidates])
    made.append(
      schema.TeacherStep(
        token=bare.token,
        log_prob=bare.log_prob,
        top=bare.top,
        token_bytes=text[start:position].encode(),
      )
    )
  if text[position:].strip():
    raise ValueError(f"nothing spells {text[position:][:20]!r}")
  return tuple(made)
