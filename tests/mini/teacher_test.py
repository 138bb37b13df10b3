"""The teacher is exact: enumeration, prefixes and samples agree with it."""

import collections
import dataclasses
import math
import random

import numpy as np
import pytest

from specialize_jax.mini import grammar, problems, stories, teacher, vocabulary
from specialize_jax.records import schema

MISTAKE_RATE = 0.1


@pytest.fixture(scope="module")
def stories_drawn():
  rng = random.Random(3)
  return [
    dataclasses.replace(
      stories.draw(rng, (0.2, 0.4, 0.3, 0.1)), question_id=f"train/{index}"
    )
    for index in range(200)
  ]


@pytest.fixture(scope="module")
def tokenizer(stories_drawn):
  rng = random.Random(0)
  texts = [
    grammar.random_solution(grammar.Grammar(p, mistake_rate=0.1), rng)
    for p in stories_drawn
  ]
  # Few merges: names, things and numbers share first tokens.
  return vocabulary.TeacherTokenizer.from_json(
    vocabulary.train_teacher(texts, vocab_size=300)
  )


@pytest.fixture(scope="module")
def mini_teacher(tokenizer):
  return teacher.MiniTeacher(tokenizer, mistake_rate=MISTAKE_RATE)


def step(operation, left, right, role):
  return problems.Step(
    operation=operation,
    left=left,
    right=right,
    role=role,
    name="Leo",
    things="coins",
  )


@pytest.fixture(scope="module")
def one_step():
  return problems.Problem(
    family="mini_gsm",
    body="Leo has 9 coins. He finds 3 coins.",
    ask="How many coins does Leo have now?",
    steps=(step("+", 9, 3, "own"),),
    orders=(((0,), 1.0),),
    question_id="mini_gsm/train/0",
  )


@pytest.fixture(scope="module")
def two_orders():
  return problems.Problem(
    family="mini_gsm",
    body="Leo has 5 bags with 2 coins each. He finds 2 bags with 3 coins.",
    ask="How many?",
    steps=(
      step("*", 5, 2, "own"),
      step("*", 2, 3, "part"),
    ),
    orders=(((0, 1), 0.75), ((1, 0), 0.25)),
    question_id="mini_gsm/train/1",
  )


def enumerate_solutions(problem):
  """Every text and its probability, by walking all paths of the grammar."""
  told = grammar.Grammar(problem, mistake_rate=MISTAKE_RATE)
  mass = collections.defaultdict(float)
  open_paths = [("", node, odds) for node, odds in told.starts()]
  while open_paths:
    text, node, odds = open_paths.pop()
    arcs = told.arcs(node)
    if not arcs:
      mass[text] += odds
    for arc in arcs:
      open_paths.append((text + arc.text, arc.target, odds * arc.probability))
  return mass


@pytest.mark.parametrize("name", ["one_step", "two_orders"])
def test_the_product_of_next_token_probabilities_is_the_solutions_mass(
  name, request, mini_teacher, tokenizer
):
  problem = request.getfixturevalue(name)
  masses = enumerate_solutions(problem)
  assert math.fsum(masses.values()) == pytest.approx(1.0, abs=1e-12)
  assert len(masses) >= 45
  rng = random.Random(0)
  for text, mass in rng.sample(sorted(masses.items()), 45):
    tokens = [*tokenizer.encode(text), tokenizer.end_id]
    product = 1.0
    for place, token in enumerate(tokens):
      distribution = mini_teacher.next_token_distribution(
        problem, tokens[:place]
      )
      assert distribution.sum() == pytest.approx(1.0, abs=1e-12)
      product *= distribution[token]
    assert product == pytest.approx(mass, rel=1e-9)


@pytest.mark.parametrize("name", ["one_step", "two_orders"])
def test_a_distribution_is_the_mass_of_solutions_with_the_prefix(
  name, request, mini_teacher, tokenizer
):
  """The definition, by brute force, at every prefix of some solutions."""
  problem = request.getfixturevalue(name)
  encoded = [
    ((*tokenizer.encode(text), tokenizer.end_id), mass)
    for text, mass in enumerate_solutions(problem).items()
  ]
  rng = random.Random(1)
  for solution, _ in rng.sample(encoded, 10):
    for length in range(len(solution)):
      prefix = solution[:length]
      expected = np.zeros(tokenizer.vocab_size)
      for tokens, mass in encoded:
        if tokens[:length] == prefix:
          expected[tokens[length]] += mass
      expected /= expected.sum()
      actual = mini_teacher.next_token_distribution(problem, prefix)
      np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-15)


def test_some_prefix_is_shared_by_wordings_that_diverge_within_a_word(
  one_step, mini_teacher
):
  """Else the tests above would not see that frontiers hold many places."""
  spell = mini_teacher.tokenizer.spell
  letters = [mini_teacher.tokenizer.encode(letter)[0] for letter in "Le"]
  parting = mini_teacher.next_token_distribution(one_step, letters)
  assert {spell(token) for token in np.flatnonzero(parting)} == {"o", "t"}


def test_records_hold_canonical_tokens_and_the_models_own_log_probs(
  stories_drawn, mini_teacher, tokenizer
):
  wrong = 0
  for problem in stories_drawn:
    records = mini_teacher.sample(problem, 3, temperature=0.7, seed=5)
    for record in records:
      schema.check_spelling(record)
      tokens = tokenizer.encode(record.text)
      assert [s.token for s in record.steps] == [
        tokenizer.spell(token) for token in tokens
      ]
      last = int(record.text.split()[-1].rstrip("."))
      assert record.verdicts["fixed"] == (str(last) == problem.answer)
      wrong += not record.verdicts["fixed"]
  for problem in stories_drawn[:30]:
    record = mini_teacher.sample(problem, 1, temperature=0.7, seed=5)[0]
    _check_log_probs(mini_teacher, problem, record)
  assert wrong > 5


def _check_log_probs(mini_teacher, problem, record):
  tokenizer = mini_teacher.tokenizer
  tokens = tokenizer.encode(record.text)
  for place, one in enumerate(record.steps):
    distribution = mini_teacher.next_token_distribution(problem, tokens[:place])
    assert math.exp(one.log_prob) == pytest.approx(distribution[tokens[place]])
    assert (one.token, one.log_prob) in one.top
    assert len(one.top) == min(5, (distribution > 0).sum())
    assert [p for _, p in one.top[:4]] == sorted(
      (p for _, p in one.top[:4]), reverse=True
    )
    assert math.exp(one.top[0][1]) == pytest.approx(distribution.max())


def test_samples_follow_the_solutions_mass(one_step, mini_teacher):
  masses = enumerate_solutions(one_step)
  num_samples = 20_000
  records = mini_teacher.sample(one_step, num_samples, temperature=1.0, seed=0)
  counts = collections.Counter(record.text for record in records)
  assert set(counts) <= set(masses)
  _check_chi_square(counts, masses, num_samples)


def test_a_temperature_reshapes_each_next_token(one_step, mini_teacher):
  num_samples = 20_000
  records = mini_teacher.sample(one_step, num_samples, temperature=0.5, seed=0)
  counts = collections.Counter(record.steps[0].token for record in records)
  first = mini_teacher.next_token_distribution(one_step, [])
  squared = first**2 / (first**2).sum()
  spell = mini_teacher.tokenizer.spell
  expected = {spell(t): squared[t] for t in np.flatnonzero(first)}
  _check_chi_square(counts, expected, num_samples)


def _check_chi_square(counts, masses, num_samples):
  """Pools what is expected less than 5 times; five deviations allowed."""
  common = {key for key, mass in masses.items() if mass * num_samples >= 5}
  pairs = [(counts[key], masses[key] * num_samples) for key in common]
  rest = sum(masses[key] for key in masses if key not in common) * num_samples
  if rest:
    pairs.append((num_samples - sum(seen for seen, _ in pairs), rest))
  statistic = sum((seen - mean) ** 2 / mean for seen, mean in pairs)
  freedom = len(pairs) - 1
  assert freedom > 0
  assert statistic < freedom + 5 * math.sqrt(2 * freedom)


def test_temperature_zero_takes_the_likeliest_token(one_step, mini_teacher):
  records = mini_teacher.sample(one_step, 5, temperature=0.0, seed=0)
  assert len({record.text for record in records}) == 1
  for one in records[0].steps:
    assert one.log_prob == max(p for _, p in one.top)


def test_samples_are_a_function_of_the_seed(one_step, mini_teacher):
  def draw(seed):
    return mini_teacher.sample(one_step, 8, temperature=1.0, seed=seed)

  assert draw(1) == draw(1)
  assert [r.text for r in draw(1)] != [r.text for r in draw(2)]
  assert len({r.text for r in draw(1)}) > 2


def test_tempering_is_the_documented_formula():
  assert teacher.tempered([0.5, 0.25, 0.25], 0.5) == pytest.approx(
    [2 / 3, 1 / 6, 1 / 6]
  )
  assert teacher.tempered([0.9, 0.1], 1e-3) == pytest.approx([1.0, 0.0])
  assert teacher.tempered([0.9, 0.1], 0) == [1.0, 0.0]


def test_invalid_arguments_are_refused(one_step, mini_teacher, tokenizer):
  with pytest.raises(ValueError, match="no solution continues with"):
    mini_teacher.next_token_distribution(one_step, [tokenizer.end_id])
  with pytest.raises(ValueError, match="temperature=-1"):
    mini_teacher.sample(one_step, 1, temperature=-1, seed=0)
  with pytest.raises(ValueError, match="mistake_rate=1.0"):
    teacher.MiniTeacher(tokenizer, mistake_rate=1.0)
