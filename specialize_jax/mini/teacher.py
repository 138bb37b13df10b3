"""The exact teacher: next-token distributions computed, not estimated.

For a problem and the tokens so far,

  P(token | prefix) = mass of the solutions that begin with prefix + token
                      / mass of the solutions that begin with prefix,

over all solutions that the grammar can tell, each in its one canonical
tokenization. A *frontier* holds every way the prefix may have come about:
weights, summing to one, over the places of the automaton spelled out in
tokens. Several wordings that share their first tokens stay together in it
until a token tells them apart.
"""

import bisect
import dataclasses
import itertools
import math
import random
from collections.abc import Sequence

import numpy as np

from specialize_jax.mini import grammar, problems, vocabulary
from specialize_jax.records import schema

MODEL_NAME = "mini-teacher"

# A place within an arc: the node it leads to and the tokens still to come.
_Place = tuple[grammar.Node, tuple[int, ...]]
_Frontier = tuple[tuple[_Place, float], ...]


@dataclasses.dataclass(frozen=True)
class _Moves:
  """What may come after a frontier.

  Attributes:
    tokens: The possible next tokens, likeliest first.
    probs: Their probabilities, summing to one.
    frontiers: Where each leads.
  """

  tokens: tuple[int, ...]
  probs: tuple[float, ...]
  frontiers: tuple[_Frontier, ...]


class _TokenAutomaton:
  """A problem's grammar over tokens, made deterministic as it is walked."""

  def __init__(
    self,
    solutions: grammar.Grammar,
    tokenizer: vocabulary.TeacherTokenizer,
  ) -> None:
    self._solutions = solutions
    self._tokenizer = tokenizer
    self._moves: dict[_Frontier, _Moves] = {}
    self.start: _Frontier = tuple(
      ((node, ()), probability) for node, probability in solutions.starts()
    )

  def moves(self, frontier: _Frontier) -> _Moves:
    """Gives the next tokens after a frontier."""
    if frontier not in self._moves:
      self._moves[frontier] = self._expand(frontier)
    return self._moves[frontier]

  def _expand(self, frontier: _Frontier) -> _Moves:
    masses: dict[int, dict[_Place, float]] = {}
    for (node, rest), weight in frontier:
      for token, place, probability in self._ways(node, rest):
        reached = masses.setdefault(token, {})
        reached[place] = reached.get(place, 0.0) + weight * probability
    total = math.fsum(w for to in masses.values() for w in to.values())
    moves = []
    for token, reached in masses.items():
      mass = math.fsum(reached.values())
      after = tuple((place, w / mass) for place, w in reached.items())
      moves.append((token, mass / total, after))
    moves.sort(key=lambda move: (-move[1], move[0]))
    return _Moves(*(tuple(column) for column in zip(*moves, strict=True)))

  def _ways(
    self, node: grammar.Node, rest: tuple[int, ...]
  ) -> list[tuple[int, _Place, float]]:
    """Gives each next token from one place, where it leads and how likely."""
    if rest:
      return [(rest[0], (node, rest[1:]), 1.0)]
    arcs = self._solutions.arcs(node)
    if not arcs:
      return [(self._tokenizer.end_id, (node, ()), 1.0)]
    ways = []
    for arc in arcs:
      first, *others = self._tokenizer.encode(arc.text)
      ways.append((first, (arc.target, tuple(others)), arc.probability))
    return ways


class MiniTeacher:
  """Tells solutions of mini problems, and exactly how likely each token is.

  Attributes:
    tokenizer: The teacher's tokenizer.
    mistake_rate: The probability that a step's result is a near miss.
  """

  def __init__(
    self,
    tokenizer: vocabulary.TeacherTokenizer,
    *,
    mistake_rate: float = 0.03,
  ) -> None:
    if not 0.0 <= mistake_rate < 1.0:
      raise ValueError(
        f"mistake_rate={mistake_rate} is not a probability below 1"
      )
    self.tokenizer = tokenizer
    self.mistake_rate = mistake_rate

  def next_token_distribution(
    self, problem: problems.Problem, prefix_tokens: Sequence[int]
  ) -> np.ndarray:
    """Gives the distribution of the token after a prefix.

    Args:
      problem: The problem that is being solved.
      prefix_tokens: The solution's tokens so far, perhaps none.

    Returns:
      float64[V] that sums to one; the end of text is a token like others.

    Raises:
      ValueError: No solution begins with the prefix.
    """
    automaton = self._automaton(problem)
    frontier = automaton.start
    for place, token in enumerate(prefix_tokens):
      moves = automaton.moves(frontier)
      if token not in moves.tokens or token == self.tokenizer.end_id:
        raise ValueError(
          f"prefix_tokens={list(prefix_tokens)}: no solution goes on with"
          f" {self.tokenizer.spell(token)!r} at place {place}"
        )
      frontier = moves.frontiers[moves.tokens.index(token)]
    moves = automaton.moves(frontier)
    distribution = np.zeros(self.tokenizer.vocab_size)
    distribution[list(moves.tokens)] = moves.probs
    return distribution

  def sample(
    self,
    problem: problems.Problem,
    num_samples: int,
    *,
    temperature: float,
    seed: int,
  ) -> tuple[schema.TeacherRecord, ...]:
    """Samples solutions as an API would return them.

    The temperature reshapes what is sampled from; the log-probabilities in
    the records are the model's own, as if it were 1, which is also what
    OpenAI's completions endpoint returns. A record is a function of the
    problem, its place among the samples and the seed.

    Args:
      problem: The problem; its `question_id` names the records.
      num_samples: How many to draw.
      temperature: 0 always takes the likeliest token.
      seed: The world's seed.

    Raises:
      ValueError: The temperature is negative.
    """
    if temperature < 0:
      raise ValueError(f"temperature={temperature} is negative")
    sampler = _Sampler(self._automaton(problem), self.tokenizer, temperature)
    request = {
      "model": MODEL_NAME,
      "temperature": temperature,
      "logprobs": schema.NUM_CANDIDATES,
      "mistake_rate": self.mistake_rate,
      "seed": seed,
    }
    records = []
    for index in range(num_samples):
      rng = random.Random(f"{seed}/{problem.question_id}/{index}")
      steps = sampler.draw(rng)
      text = "".join(step.token for step in steps)
      # What the fixed grader finds: every solution ends in this sentence.
      correct = text.endswith(f"The answer is {problem.answer}.")
      records.append(
        schema.TeacherRecord(
          question_id=problem.question_id,
          sample=index,
          question=problem.question,
          gold_answer=problem.answer,
          text=text,
          steps=steps,
          finish_reason="stop",
          request=request,
          verdicts={"fixed": correct},
        )
      )
    return tuple(records)

  def _automaton(self, problem: problems.Problem) -> _TokenAutomaton:
    solutions = grammar.Grammar(problem, mistake_rate=self.mistake_rate)
    return _TokenAutomaton(solutions, self.tokenizer)


class _Sampler:
  """Draws one problem's solutions; what is computed once serves all."""

  def __init__(
    self,
    automaton: _TokenAutomaton,
    tokenizer: vocabulary.TeacherTokenizer,
    temperature: float,
  ) -> None:
    self._automaton = automaton
    self._tokenizer = tokenizer
    self._temperature = temperature
    self._choices: dict[_Frontier, tuple[list[float], tuple]] = {}

  def draw(self, rng: random.Random) -> tuple[schema.TeacherStep, ...]:
    """Draws one solution; the end of text is not among its steps."""
    steps = []
    frontier = self._automaton.start
    while True:
      moves = self._automaton.moves(frontier)
      cumulative, taken = self._choice(frontier, moves)
      # Only a real choice costs a random number.
      chosen = (
        bisect.bisect_right(cumulative, rng.random() * cumulative[-1])
        if len(cumulative) > 1
        else 0
      )
      chosen = min(chosen, len(cumulative) - 1)
      if moves.tokens[chosen] == self._tokenizer.end_id:
        return tuple(steps)
      steps.append(taken[chosen])
      frontier = moves.frontiers[chosen]

  def _choice(
    self, frontier: _Frontier, moves: _Moves
  ) -> tuple[list[float], tuple[schema.TeacherStep, ...]]:
    if frontier not in self._choices:
      odds = tempered(moves.probs, self._temperature)
      steps = tuple(self._step(moves, i) for i in range(len(moves.tokens)))
      self._choices[frontier] = (list(itertools.accumulate(odds)), steps)
    return self._choices[frontier]

  def _step(self, moves: _Moves, chosen: int) -> schema.TeacherStep:
    shown = list(range(min(schema.NUM_CANDIDATES, len(moves.tokens))))
    if chosen not in shown:
      shown[-1] = chosen
    spell = self._tokenizer.spell
    return schema.TeacherStep(
      token=spell(moves.tokens[chosen]),
      log_prob=math.log(moves.probs[chosen]),
      top=tuple(
        (spell(moves.tokens[i]), math.log(moves.probs[i])) for i in shown
      ),
    )


def tempered(probs: Sequence[float], temperature: float) -> list[float]:
  """Reshapes a distribution, likeliest first, as an API does when sampling.

  Formula: p_i ** (1 / temperature), normalised; temperature 0 is its limit.

  Example:
    >>> tempered([0.5, 0.25, 0.25], 0.5)
    [0.6666666666666666, 0.16666666666666666, 0.16666666666666666]
  """
  if temperature == 0:
    return [1.0] + [0.0] * (len(probs) - 1)
  # Relative to the likeliest, so that a small temperature underflows nothing.
  powers = [(p / probs[0]) ** (1.0 / temperature) for p in probs]
  total = math.fsum(powers)
  return [power / total for power in powers]
