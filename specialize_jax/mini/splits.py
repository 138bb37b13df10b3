"""Problems drawn into train, validation and test, disjoint by problem.

Two problems are the same when their `key` is: the story with its numbers,
whoever it happens to and whatever is counted and asked. A key belongs to one
split in the whole world, so that no family's training text holds another
family's test problem either.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.mini import (
  asdiv,
  general_tasks,
  multiarith,
  problems,
  stories,
  svamp,
  templates,
)

SPLITS = ("train", "validation", "test")

_MAX_FRUITLESS_DRAWS = 5_000

Item = problems.Problem | general_tasks.Exercise
Draw = Callable[[random.Random], Sequence[Item]]
"""Draws items of one key; perhaps none, when what was drawn does not fit."""

Sizes = Mapping[str, int]


class Registry:
  """Which split each key of the world belongs to."""

  def __init__(self) -> None:
    self._split_of: dict[str, str] = {}

  def claim(self, key: str, split: str) -> bool:
    """Says whether `key` is, or now becomes, of that split."""
    return self._split_of.setdefault(key, split) == split


def families(step_weights: Sequence[float]) -> dict[str, Draw]:
  """Gives what draws each family of word problems, the in-distribution first.

  Args:
    step_weights: The odds of 1, 2, 3 and 4 steps in `mini_gsm`.
  """
  return {
    stories.FAMILY: lambda rng: (stories.draw(rng, step_weights),),
    multiarith.FAMILY: _one(multiarith.FAMILY, multiarith.TEMPLATES),
    asdiv.FAMILY: _one(asdiv.FAMILY, asdiv.TEMPLATES),
    svamp.FAMILY: lambda rng: templates.draw_siblings(
      rng, svamp.FAMILY, svamp.TEMPLATES
    ),
  }


def one_step_families() -> dict[str, Draw]:
  """Gives what draws one-step problems in each family's wordings."""
  return {
    stories.FAMILY: lambda rng: (stories.draw(rng, (1.0,)),),
    multiarith.FAMILY: _one(multiarith.FAMILY, multiarith.ONE_STEP_TEMPLATES),
    asdiv.FAMILY: _one(asdiv.FAMILY, asdiv.ONE_STEP_TEMPLATES),
    svamp.FAMILY: _one(svamp.FAMILY, svamp.TEMPLATES),
  }


def general() -> dict[str, Draw]:
  """Gives what draws each general task's exercises."""
  return {
    name: lambda rng, draw=draw: (draw(rng),)
    for name, draw in general_tasks.TASKS.items()
  }


def _one(family: str, wordings: Sequence[templates.Template]) -> Draw:
  def draw(rng: random.Random) -> Sequence[Item]:
    problem = templates.draw(rng, family, wordings)
    return () if problem is None else (problem,)

  return draw


def fill(
  name: str, split: str, size: int, *, draw: Draw, seed: int, taken: Registry
) -> list[Item]:
  """Draws so many items with questions that differ and keys of this split.

  Args:
    name: The family's or task's name; ids are `name/split/number`.
    split: One of `SPLITS`.
    size: How many items.
    draw: Draws candidates.
    seed: The world's seed.
    taken: Which keys belong to which split; grows.

  Raises:
    UserError: The family has too few different problems for `size`.
  """
  rng = random.Random(f"{seed}/{name}/{split}")
  filled: dict[str, Item] = {}
  fruitless = 0
  while len(filled) < size:
    before = len(filled)
    for item in draw(rng):
      is_new = item.question not in filled and len(filled) < size
      if is_new and taken.claim(item.key, split):
        question_id = f"{name}/{split}/{len(filled)}"
        filled[item.question] = dataclasses.replace(
          item, question_id=question_id
        )
    fruitless = fruitless + 1 if len(filled) == before else 0
    if fruitless > _MAX_FRUITLESS_DRAWS:
      raise errors.UserError(
        f"the mini world's config asks for {size} {split} problems of {name},"
        f" which has only {len(filled)} left that differ; ask for fewer"
      )
  return list(filled.values())


def fill_all(
  draws: Mapping[str, Draw],
  sizes: Mapping[str, Sizes],
  *,
  seed: int,
  taken: Registry,
) -> dict[str, dict[str, list[Item]]]:
  """Fills all splits of all families, test first in all of them.

  Test and validation come first because a key may only be theirs alone,
  while training may tell one story of many people.

  Returns:
    Items by family and split.
  """
  filled: dict[str, dict[str, list[Item]]] = {name: {} for name in draws}
  for split in reversed(SPLITS):
    for name, draw in draws.items():
      filled[name][split] = fill(
        name, split, sizes[name][split], draw=draw, seed=seed, taken=taken
      )
  return filled
