"""The exact teacher in a student's tokens: what a perfect student would say.

For a problem and the student's tokens so far,

  P(token | prefix) = mass of the solutions whose student tokens begin with
                      prefix + token / mass of those that begin with prefix,

over all solutions that the grammar can tell. Nothing is bounded or estimated.
An arc's text begins with a space, save at the start of a solution, and ends
without one (`grammar`), and the student's pieces never cross a space; so a
solution's student tokens are its arcs' student tokens one after another, and
the automaton that serves the teacher's own tokens serves the student's. Texts
that the student cannot tell apart add up.
"""

import dataclasses
import functools
import random
from collections.abc import Sequence

from specialize_jax.align import student
from specialize_jax.mini import grammar, problems, teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
  """A solution, and what might have stood in each place of it.

  Attributes:
    ids: The student's tokens, the end of sequence the last.
    candidates: For each of them, every token that may follow those before.
    probs: Their probabilities, which sum to one.
  """

  ids: tuple[int, ...]
  candidates: tuple[tuple[int, ...], ...]
  probs: tuple[tuple[float, ...], ...]


class _Arcs:
  """A student's tokenizer as the automaton asks it."""

  def __init__(self, tokenizer: student.StudentTokenizer, end_id: int) -> None:
    self.end_id = end_id
    self.encode = functools.lru_cache(maxsize=1 << 16)(tokenizer.encode_ids)


class StudentTeacher:
  """The teacher of `teacher.MiniTeacher`, heard in a student's tokens."""

  def __init__(
    self,
    tokenizer: student.StudentTokenizer,
    *,
    end_id: int,
    mistake_rate: float,
  ) -> None:
    """Prepares for a student.

    Args:
      tokenizer: The student's.
      end_id: Its end of sequence.
      mistake_rate: The teacher's.
    """
    self._arcs = _Arcs(tokenizer, end_id)
    self._mistake_rate = mistake_rate

  def draw(
    self, problem: problems.Problem, rng: random.Random, num_solutions: int
  ) -> list[Told]:
    """Draws solutions as likely as the teacher tells them (temperature 1)."""
    automaton = self._automaton(problem)
    return [self._draw(automaton, rng) for _ in range(num_solutions)]

  def _draw(
    self, automaton: teacher.TokenAutomaton, rng: random.Random
  ) -> Told:
    state, ids, states = automaton.start, [], []
    while not ids or ids[-1] != self._arcs.end_id:
      (chosen,) = rng.choices(range(len(state.tokens)), state.probs)
      ids.append(state.tokens[chosen])
      states.append(state)
      state = automaton.after(state, chosen)
    return _told(ids, states)

  def along(self, problem: problems.Problem, ids: Sequence[int]) -> Told:
    """Gives what might have stood in each place of a solution.

    Args:
      problem: The problem.
      ids: The student's tokens, the end of sequence the last.

    Raises:
      ValueError: No solution has these tokens.
    """
    automaton = self._automaton(problem)
    state, states = automaton.start, []
    for place, token in enumerate(ids):
      if token not in state.tokens:
        raise ValueError(
          f"ids={list(ids)}: no solution goes on with {token} at place {place}"
        )
      states.append(state)
      state = automaton.after(state, state.tokens.index(token))
    return _told(ids, states)

  def _automaton(self, problem: problems.Problem) -> teacher.TokenAutomaton:
    solutions = grammar.Grammar(problem, mistake_rate=self._mistake_rate)
    return teacher.TokenAutomaton(solutions, self._arcs)


def _told(ids: Sequence[int], states: Sequence[teacher.State]) -> Told:
  return Told(
    ids=tuple(ids),
    candidates=tuple(state.tokens for state in states),
    probs=tuple(state.probs for state in states),
  )
