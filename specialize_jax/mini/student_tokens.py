"""The exact teacher's distributions over the student's tokens.

For a problem and the student's tokens so far,

  P(token | prefix) = mass of the solutions whose student tokens begin with
                      prefix + token / mass of those that begin with prefix,

over all solutions of the grammar. It is exact, neither bounded nor estimated.
The text of an arc starts with a space, except at the start of a solution, and
does not end with one (`grammar`), and the student's pieces never cross a space.
So the student tokens of a solution are the concatenated student tokens of its
arcs, and the automaton of the teacher's own tokens works for the student's.
Texts with equal student tokens are merged.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

from specialize_jax.align import student
from specialize_jax.mini import grammar, problems, styles, teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredSolution:
  """A solution, and the distribution at each of its positions.

  Attributes:
    ids: The student's tokens, ending with the end of sequence.
    candidates: At each position, all tokens that may follow the prefix.
    probs: Their probabilities, which sum to one.
  """

  ids: tuple[int, ...]
  candidates: tuple[tuple[int, ...], ...]
  probs: tuple[tuple[float, ...], ...]


class _Arcs:
  """Adapts a student's tokenizer to `teacher.Tokenizer`."""

  def __init__(
    self, tokenizer: student.SentencePieceStudent, end_id: int
  ) -> None:
    self.end_id = end_id
    self.encode = functools.lru_cache(maxsize=1 << 16)(tokenizer.encode_ids)


class StudentTeacher:
  """The distributions of `teacher.MiniTeacher` over a student's tokens."""

  def __init__(
    self,
    tokenizer: student.SentencePieceStudent,
    *,
    end_id: int,
    mistake_rate: float,
    style: styles.Style = styles.CERTAIN,
  ) -> None:
    """Creates the teacher for a student.

    Args:
      tokenizer: The student's tokenizer.
      end_id: The student's end of sequence.
      mistake_rate: The teacher's mistake rate.
      style: How the teacher writes.
    """
    self._arcs = _Arcs(tokenizer, end_id)
    self._mistake_rate = mistake_rate
    self._style = style

  def draw(
    self, problem: problems.Problem, rng: random.Random, num_solutions: int
  ) -> list[ScoredSolution]:
    """Samples solutions from the teacher at temperature 1."""
    automaton = self._automaton(problem)
    return [self._draw(automaton, rng) for _ in range(num_solutions)]

  def _draw(
    self, automaton: teacher.TokenAutomaton, rng: random.Random
  ) -> ScoredSolution:
    state, ids, states = automaton.start, [], []
    while not ids or ids[-1] != self._arcs.end_id:
      (chosen,) = rng.choices(range(len(state.tokens)), state.probs)
      ids.append(state.tokens[chosen])
      states.append(state)
      state = automaton.after(state, chosen)
    return _scored(ids, states)

  def along(
    self, problem: problems.Problem, ids: Sequence[int]
  ) -> ScoredSolution:
    """Computes the distribution at each position of a solution.

    Args:
      problem: The problem.
      ids: The student's tokens, ending with the end of sequence.

    Returns:
      The solution with its distributions.

    Raises:
      ValueError: No solution has these tokens.
    """
    automaton = self._automaton(problem)
    state, states = automaton.start, []
    for place, token in enumerate(ids):
      if token not in state.tokens:
        raise ValueError(
          f"ids={list(ids)}: no solution continues with {token} at position"
          f" {place}"
        )
      states.append(state)
      state = automaton.after(state, state.tokens.index(token))
    return _scored(ids, states)

  def _automaton(self, problem: problems.Problem) -> teacher.TokenAutomaton:
    solutions = grammar.Grammar(
      problem, mistake_rate=self._mistake_rate, style=self._style
    )
    return teacher.TokenAutomaton(solutions, self._arcs)


def _scored(
  ids: Sequence[int], states: Sequence[teacher.State]
) -> ScoredSolution:
  return ScoredSolution(
    ids=tuple(ids),
    candidates=tuple(state.tokens for state in states),
    probs=tuple(state.probs for state in states),
  )
