"""The teacher in the student's tokens is exact: enumeration agrees with it."""

import collections
import math
import random

import numpy as np
import pytest

from specialize_jax.align import student
from specialize_jax.mini import (
  grammar,
  stories,
  student_tokens,
  vocabulary,
)

MISTAKE_RATE = 0.1
END_ID = 1


@pytest.fixture(scope="module")
def drawn():
  rng = random.Random(5)
  return [stories.draw(rng, (0.4, 0.4, 0.2)) for _ in range(150)]


@pytest.fixture(scope="module")
def tokenizer(drawn):
  rng = random.Random(0)
  texts = [
    grammar.random_solution(grammar.Grammar(p, mistake_rate=0.1), rng)
    for p in drawn
  ]
  # So few pieces that words of one beginning share their first.
  return student.SentencePieceStudent(
    vocabulary.train_student(texts, vocab_size=230)
  )


@pytest.fixture(scope="module")
def heard(tokenizer):
  return student_tokens.StudentTeacher(
    tokenizer, end_id=END_ID, mistake_rate=MISTAKE_RATE
  )


def masses_of(problem, tokenizer):
  """The mass of each token sequence, by walking all paths of the grammar."""
  told = grammar.Grammar(problem, mistake_rate=MISTAKE_RATE)
  mass = collections.defaultdict(float)
  open_paths = [("", node, odds) for node, odds in told.starts()]
  while open_paths:
    text, node, odds = open_paths.pop()
    arcs = told.arcs(node)
    if not arcs:
      mass[*tokenizer.encode_ids(text), END_ID] += odds
    for arc in arcs:
      open_paths.append((text + arc.text, arc.target, odds * arc.probability))
  return mass


def test_each_position_has_the_mass_of_the_texts_with_its_prefix(
  drawn, tokenizer, heard
):
  rng = random.Random(1)
  short = [p for p in drawn if len(p.steps) <= 2][:6]
  assert {len(p.steps) for p in short} == {1, 2}
  choices = 0
  for problem in short:
    masses = masses_of(problem, tokenizer)
    prefixes = collections.defaultdict(float)
    for ids, mass in masses.items():
      for end in range(len(ids) + 1):
        prefixes[ids[:end]] += mass
    for ids in rng.sample(sorted(masses), 20):
      told = heard.along(problem, ids)
      assert told.ids == ids
      for place, (candidates, probs) in enumerate(
        zip(told.candidates, told.probs, strict=True)
      ):
        choices += len(candidates) > 1
        expected = {
          token: prefixes[*ids[:place], token] / prefixes[ids[:place]]
          for token in range(tokenizer.vocab_size)
          if (*ids[:place], token) in prefixes
        }
        found = dict(zip(candidates, probs, strict=True))
        assert found == pytest.approx(expected, rel=1e-9)
  assert choices > 300


def test_solutions_are_sampled_by_their_probability(drawn, tokenizer, heard):
  problem = next(p for p in drawn if len(p.steps) == 1)
  masses = masses_of(problem, tokenizer)
  told = heard.draw(problem, random.Random(0), 4000)
  counts = collections.Counter(one.ids for one in told)
  assert set(counts) <= set(masses)
  for ids, mass in masses.items():
    spread = math.sqrt(4000 * mass * (1 - mass))
    assert abs(counts[ids] - 4000 * mass) <= 5 * spread + 1


def test_any_solutions_tokens_are_its_arcs_tokens(drawn, tokenizer, heard):
  rng = random.Random(2)
  for problem in drawn:
    told = grammar.Grammar(problem, mistake_rate=MISTAKE_RATE)
    text = grammar.random_solution(told, rng)
    ids = (*tokenizer.encode_ids(text), END_ID)
    probs = [
      one[candidates.index(token)]
      for token, candidates, one in zip(
        ids,
        heard.along(problem, ids).candidates,
        heard.along(problem, ids).probs,
        strict=True,
      )
    ]
    assert np.prod(probs) > 0


def test_tokens_of_no_solution_are_refused(drawn, heard):
  with pytest.raises(
    ValueError, match=r"no solution continues with 0 at position 0"
  ):
    heard.along(drawn[0], (0,))
