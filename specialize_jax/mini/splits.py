"""Draws problems into disjoint train, validation and test splits.

Two problems are the same if they have the same `key`: the story with its
numbers, whatever the names, things and question. A key belongs to one split in
the whole world, so the training text of one family does not contain the test
problems of another either.
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
"""Draws items of one key; none if the drawn numbers do not fit."""

Sizes = Mapping[str, int]


class Registry:
  """Assigns each key of the world to a split."""

  def __init__(self) -> None:
    self._split_of: dict[str, str] = {}

  def claim(self, key: str, split: str) -> bool:
    """Assigns a new key to `split`; returns whether the key belongs to it."""
    return self._split_of.setdefault(key, split) == split


def families(step_weights: Sequence[float]) -> dict[str, Draw]:
  """Returns the sampler of each family, the in-distribution one first.

  Args:
    step_weights: Weights of 1, 2, 3 and 4 steps in `mini_gsm`.
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
  """Returns samplers of one-step problems in each family's wordings."""
  return {
    stories.FAMILY: lambda rng: (stories.draw(rng, (1.0,)),),
    multiarith.FAMILY: _one(multiarith.FAMILY, multiarith.ONE_STEP_TEMPLATES),
    asdiv.FAMILY: _one(asdiv.FAMILY, asdiv.ONE_STEP_TEMPLATES),
    svamp.FAMILY: _one(svamp.FAMILY, svamp.TEMPLATES),
  }


def general() -> dict[str, Draw]:
  """Returns the sampler of each general task."""
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
  """Draws items with distinct questions and keys of one split.

  Args:
    name: Name of the family or task; ids are `name/split/number`.
    split: One of `SPLITS`.
    size: Number of items.
    draw: Draws candidates.
    seed: The world's seed.
    taken: The split of each key; updated.

  Returns:
    The items.

  Raises:
    UserError: The family has fewer than `size` distinct problems.
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
        f" which has only {len(filled)} distinct ones left; ask for fewer"
      )
  return list(filled.values())


def fill_all(
  draws: Mapping[str, Draw],
  sizes: Mapping[str, Sizes],
  *,
  seed: int,
  taken: Registry,
) -> dict[str, dict[str, list[Item]]]:
  """Draws all splits of all families, the test splits of all families first.

  Test and validation come first because their keys must not occur elsewhere,
  while training may have several problems of one key.

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
