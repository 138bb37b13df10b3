"""General tasks in the spirit of BIG-Bench-Hard, each with a rationale.

They stand for the general abilities that specialization degrades.

  mini_boolean_expressions  ( True and not False ) or False is      -> True
  mini_word_sorting         Sort the words: pens apples cups         -> ...
  mini_object_counting      ... How many fruits do I have?           -> 7
  mini_navigate             Take 5 steps left. Take 5 steps right.   -> Yes
"""

import dataclasses
import random
from collections.abc import Callable, Mapping

from specialize_jax.mini import lexicon


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exercise:
  """A question with a chain of thought and an answer.

  Attributes:
    question: The question.
    rationale: The chain of thought, ending in the sentence `The answer is X.`
    answer: The bare answer.
    key: Two exercises with the same key are the same exercise.
    question_id: `task/split/number` once the exercise belongs to a split.
  """

  question: str
  rationale: str
  answer: str
  key: str
  question_id: str = ""


def _exercise(
  question: str, sentences: list[str], answer: str, key: str = ""
) -> Exercise:
  return Exercise(
    question=question,
    rationale=" ".join([*sentences, f"The answer is {answer}."]),
    answer=answer,
    key=key or question,
  )


def draw_boolean_expression(rng: random.Random) -> Exercise:
  """Draws an expression of 3 or 4 literals with one or two brackets."""
  sentences: list[str] = []

  def literal() -> tuple[str, bool]:
    value, negated = rng.random() < 0.5, rng.random() < 0.4
    return ("not " if negated else "") + str(value), value != negated

  def combine(
    left: tuple[str, bool], right: tuple[str, bool]
  ) -> tuple[str, bool]:
    operator = rng.choice(("and", "or"))
    either, both = left[1] or right[1], left[1] and right[1]
    text = f"{left[0]} {operator} {right[0]}"
    value = both if operator == "and" else either
    sentences.append(f"{text} = {value}.")
    return text, value

  def bracket() -> tuple[tuple[str, bool], str]:
    text, value = combine(literal(), literal())
    negated = rng.random() < 0.3
    shown = f"not ( {text} )" if negated else f"( {text} )"
    # The outer expression is shown with the bracket's value, not its text.
    return (str(value != negated), value != negated), shown

  shape = rng.choice(("left", "right", "both", "both"))
  first, first_text = bracket() if shape != "right" else (literal(), "")
  second, second_text = bracket() if shape != "left" else (literal(), "")
  combined, value = combine(first, second)
  operator = combined[len(first[0]) :].split()[0]
  question = (
    f"{first_text or first[0]} {operator} {second_text or second[0]} is"
  )
  return _exercise(question, sentences, str(value))


def draw_word_sorting(rng: random.Random) -> Exercise:
  """Draws 3 or 4 words to sort; their order does not change the key."""
  words = rng.sample(lexicon.SORTABLE, rng.choice((3, 4)))
  ordered = sorted(words)
  sentences = [f"First comes {ordered[0]}."]
  sentences += [f"Then comes {word}." for word in ordered[1:]]
  return _exercise(
    f"Sort the following words alphabetically: List: {' '.join(words)}",
    sentences,
    " ".join(ordered),
    key=" ".join(ordered),
  )


def draw_object_counting(rng: random.Random) -> Exercise:
  """Draws things of several kinds, only one of which is to be counted."""
  kind, members = rng.choice(
    (("fruits", lexicon.FRUITS), ("animals", lexicon.ANIMALS))
  )
  counted = rng.sample(members, rng.choice((2, 3)))
  rest = [w for w in lexicon.SORTABLE if w not in members]
  words = counted + rng.sample(rest, 4 - len(counted))
  rng.shuffle(words)
  amounts = {word: rng.randint(2, 7) for word in words}
  listed = [f"{amounts[word]} {word}" for word in words]
  kept = [word for word in words if word in counted]
  counts = " and ".join(f"{amounts[word]} {word}" for word in kept)
  sentences = [f"I have {counts}."]
  total = amounts[kept[0]]
  for word in kept[1:]:
    sentences.append(f"{total} + {amounts[word]} = {total + amounts[word]}.")
    total += amounts[word]
  return _exercise(
    f"I have {', '.join(listed[:-1])} and {listed[-1]}."
    f" How many {kind} do I have?",
    sentences,
    str(total),
  )


def draw_navigate(rng: random.Random) -> Exercise:
  """Draws 3 or 4 moves on a line, half of the time back to the start."""
  away, back = rng.choice((("left", "right"), ("forward", "back")))
  if rng.random() < 0.5:
    away, back = back, away
  leads_back = rng.random() < 0.5
  while True:
    moves = [_move(rng) for _ in range(rng.choice((3, 4)))]
    if leads_back == (sum(moves) == 0):
      break

  def side(position: int) -> str:
    return away if position > 0 else back

  instructions = [f"Take {abs(move)} steps {side(move)}." for move in moves]
  position = moves[0]
  sentences = [f"We are {abs(position)} {side(position)}."]
  for move in moves[1:]:
    before, position = position, position + move
    if before * move >= 0:
      done = f"{abs(before)} + {abs(move)}"
    else:
      high, low = sorted((abs(before), abs(move)), reverse=True)
      done = f"{high} - {low}"
    where = f" {side(position)}" if position else ""
    sentences.append(f"Then we are {done} = {abs(position)}{where}.")
  return _exercise(
    "If you follow these instructions, do you return to the starting point?"
    f" Always face forward. {' '.join(instructions)}",
    sentences,
    "No" if position else "Yes",
  )


def _move(rng: random.Random) -> int:
  return rng.randint(2, 9) * rng.choice((1, -1))


TASKS: Mapping[str, Callable[[random.Random], Exercise]] = {
  "mini_boolean_expressions": draw_boolean_expression,
  "mini_word_sorting": draw_word_sorting,
  "mini_object_counting": draw_object_counting,
  "mini_navigate": draw_navigate,
}
