"""The exact teacher, whose next-token distributions are computed exactly.

For a problem and the tokens so far,

  P(token | prefix) = mass of the solutions that begin with prefix + token
                      / mass of the solutions that begin with prefix,

over all solutions of the grammar, each in its canonical tokenization. A
*frontier* is the posterior over the automaton's states given the prefix:
weights, summing to one, over positions within arcs, in tokens. Wordings that
share their first tokens remain in the frontier together until a token
distinguishes them.
"""

import bisect
import itertools
import math
import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from specialize_jax.cot import answers
from specialize_jax.mini import grammar, problems, styles, vocabulary
from specialize_jax.records import schema

# A position within an arc: its target node and its remaining tokens.
_Place = tuple[grammar.Node, tuple[int, ...]]
_Frontier = tuple[tuple[_Place, float], ...]


class Tokenizer(Protocol):
  """Encodes the text of an arc.

  The tokens of a solution must be the concatenated tokens of its arcs.

  Attributes:
    end_id: The id of the end of text.
  """

  end_id: int

  def encode(self, text: str) -> tuple[int, ...]:
    """Encodes a text to at least one token id."""


class State:
  """A frontier and, once expanded, its successors.

  Attributes:
    frontier: Positions and their weights, which sum to one.
    tokens: The possible next tokens, likeliest first.
    probs: Their probabilities, which sum to one.
    reached: The positions after each token, and their weights.
    states: The state after each token, once it is asked for: of two dozen
      tokens that may follow, a sample takes one.
  """

  __slots__ = ("frontier", "probs", "reached", "states", "tokens")

  def __init__(self, frontier: _Frontier) -> None:
    self.frontier = frontier
    self.tokens: tuple[int, ...] = ()
    self.probs: tuple[float, ...] = ()
    self.reached: tuple[dict[_Place, float], ...] = ()
    self.states: list[State | None] = []


class TokenAutomaton:
  """A problem's grammar over tokens, determinized lazily.

  Attributes:
    start: The state before the first token.
  """

  def __init__(self, solutions: grammar.Grammar, tokenizer: Tokenizer) -> None:
    self._solutions = solutions
    self._tokenizer = tokenizer
    # Equal frontiers share a state, so that samples share computation.
    self._states: dict[_Frontier, State] = {}
    # Many frontiers have a node in common.
    self._leaving: dict[grammar.Node, list[tuple[int, _Place, float]]] = {}
    self.start = self.expand(
      State(
        tuple(
          ((node, ()), probability) for node, probability in solutions.starts()
        )
      )
    )

  def after(self, state: State, choice: int) -> State:
    """Returns the state after token number `choice` of a state."""
    if state.states[choice] is None:
      reached = state.reached[choice]
      mass = math.fsum(reached.values())
      frontier = tuple((place, w / mass) for place, w in reached.items())
      state.states[choice] = self._states.setdefault(frontier, State(frontier))
    return self.expand(state.states[choice])

  def expand(self, state: State) -> State:
    """Computes the successors of a state, once."""
    if state.tokens:
      return state
    masses: dict[int, dict[_Place, float]] = {}
    for (node, rest), weight in state.frontier:
      for token, place, probability in self._transitions(node, rest):
        reached = masses.setdefault(token, {})
        reached[place] = reached.get(place, 0.0) + weight * probability
    total = math.fsum(w for to in masses.values() for w in to.values())
    moves = [
      (token, math.fsum(reached.values()) / total, reached)
      for token, reached in masses.items()
    ]
    moves.sort(key=lambda move: (-move[1], move[0]))
    state.tokens, state.probs, state.reached = zip(*moves, strict=True)
    state.states = [None] * len(moves)
    return state

  def _transitions(
    self, node: grammar.Node, rest: tuple[int, ...]
  ) -> list[tuple[int, _Place, float]]:
    """Returns the next tokens of a position, with targets and probabilities."""
    if rest:
      return [(rest[0], (node, rest[1:]), 1.0)]
    if node not in self._leaving:
      self._leaving[node] = self._arcs_leaving(node)
    return self._leaving[node]

  def _arcs_leaving(
    self, node: grammar.Node
  ) -> list[tuple[int, _Place, float]]:
    arcs = self._solutions.arcs(node)
    if not arcs:
      return [(self._tokenizer.end_id, (node, ()), 1.0)]
    ways = []
    for arc in arcs:
      first, *others = self._tokenizer.encode(arc.text)
      ways.append((first, (arc.target, tuple(others)), arc.probability))
    return ways


class MiniTeacher:
  """Samples solutions of mini problems, with exact token probabilities.

  Attributes:
    tokenizer: The teacher's tokenizer.
    mistake_rate: The probability that a step's result is a near miss.
    style: How the teacher writes.
  """

  def __init__(
    self,
    tokenizer: vocabulary.TeacherTokenizer,
    *,
    mistake_rate: float = 0.03,
    style: styles.Style = styles.CERTAIN,
  ) -> None:
    if not 0.0 <= mistake_rate < 1.0:
      raise ValueError(
        f"mistake_rate={mistake_rate} is not a probability below 1"
      )
    self.tokenizer = tokenizer
    self.mistake_rate = mistake_rate
    self.style = style

  def next_token_distribution(
    self, problem: problems.Problem, prefix_tokens: Sequence[int]
  ) -> np.ndarray:
    """Computes the distribution of the next token after a prefix.

    Args:
      problem: The problem.
      prefix_tokens: The solution's tokens so far, possibly none.

    Returns:
      float64[V] that sums to one, over all tokens including the end of text.

    Raises:
      ValueError: No solution starts with the prefix.
    """
    automaton = self._automaton(problem)
    state = automaton.start
    for place, token in enumerate(prefix_tokens):
      if token not in state.tokens or token == self.tokenizer.end_id:
        raise ValueError(
          f"prefix_tokens={list(prefix_tokens)}: no solution continues"
          f" with {self.tokenizer.spell(token)!r} at position {place}"
        )
      state = automaton.after(state, state.tokens.index(token))
    distribution = np.zeros(self.tokenizer.vocab_size)
    distribution[list(state.tokens)] = state.probs
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

    The temperature only affects sampling. The log-probabilities of the records
    are the model's own, at temperature 1, as OpenAI's completions endpoint
    returns them. A record is a function of the problem, the index of the sample
    and the seed.

    Args:
      problem: The problem; its `question_id` names the records.
      num_samples: Number of samples.
      temperature: Sampling temperature; 0 always takes the likeliest token.
      seed: The world's seed.

    Raises:
      ValueError: The temperature is negative.
    """
    if temperature < 0:
      raise ValueError(f"temperature={temperature} is negative")
    sampler = _Sampler(self._automaton(problem), self.tokenizer, temperature)
    request = {
      "model": self.style.model_name,
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
      verdict = answers.grade(text, problem.answer)
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
          verdicts={"fixed": verdict.correct},
        )
      )
    return tuple(records)

  def _automaton(self, problem: problems.Problem) -> TokenAutomaton:
    solutions = grammar.Grammar(
      problem, mistake_rate=self.mistake_rate, style=self.style
    )
    return TokenAutomaton(solutions, self.tokenizer)


class _Choice:
  """The tokens of a state to sample from.

  Attributes:
    cumulative: Cumulative tempered probabilities.
    steps: The step of each token, once it was taken.
  """

  __slots__ = ("cumulative", "steps")

  def __init__(self, odds: Sequence[float]) -> None:
    self.cumulative = list(itertools.accumulate(odds))
    self.steps: list[schema.TeacherStep | None] = [None] * len(odds)


class _Sampler:
  """Samples solutions of a problem, caching the distribution of each state."""

  def __init__(
    self,
    automaton: TokenAutomaton,
    tokenizer: vocabulary.TeacherTokenizer,
    temperature: float,
  ) -> None:
    self._automaton = automaton
    self._tokenizer = tokenizer
    self._temperature = temperature
    self._choices: dict[State, _Choice] = {}

  def draw(self, rng: random.Random) -> tuple[schema.TeacherStep, ...]:
    """Samples a solution; its steps do not include the end of text."""
    steps = []
    state = self._automaton.start
    while True:
      if state not in self._choices:
        self._choices[state] = _Choice(tempered(state.probs, self._temperature))
      choice = self._choices[state]
      last = len(choice.steps) - 1
      # Random numbers are only drawn where there is a choice.
      chosen = 0
      if last:
        chosen = bisect.bisect_right(choice.cumulative, rng.random(), hi=last)
      if state.tokens[chosen] == self._tokenizer.end_id:
        return tuple(steps)
      if choice.steps[chosen] is None:
        choice.steps[chosen] = self._step(state, chosen)
      steps.append(choice.steps[chosen])
      state = self._automaton.after(state, chosen)

  def _step(self, state: State, chosen: int) -> schema.TeacherStep:
    shown = list(range(min(schema.NUM_CANDIDATES, len(state.tokens))))
    if chosen not in shown:
      shown[-1] = chosen
    spell = self._tokenizer.spell
    return schema.TeacherStep(
      token=spell(state.tokens[chosen]),
      log_prob=math.log(state.probs[chosen]),
      top=tuple(
        (spell(state.tokens[i]), math.log(state.probs[i])) for i in shown
      ),
    )


def tempered(probs: Sequence[float], temperature: float) -> list[float]:
  """Applies a temperature to a distribution, likeliest first.

  Formula: p_i ** (1 / temperature), normalized; temperature 0 is the limit.

  Example:
    >>> tempered([0.5, 0.25, 0.25], 0.5)
    [0.6666666666666666, 0.16666666666666666, 0.16666666666666666]
  """
  if temperature == 0:
    return [1.0] + [0.0] * (len(probs) - 1)
  # Relative to the likeliest, so that low temperatures do not underflow.
  powers = [(p / probs[0]) ** (1.0 / temperature) for p in probs]
  total = math.fsum(powers)
  return [power / total for power in powers]
