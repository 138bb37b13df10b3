"""Decoding settings, requests and their results."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import self_consistency, strategies

Kind = Literal["greedy", "sample", "beam"]

MAX_SAMPLES = 1024
"""Largest number of samples; sample keys are `1024 * number + sample`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Settings of decoding.

  Attributes:
    strategy: greedy, sample or beam.
    max_new_tokens: maximum number of tokens of an output, including EOS.
    temperature: sampling temperature; see `strategies.Sampling`.
    top_k: number of tokens to sample from; None for all.
    top_p: probability mass to sample from.
    num_samples: number of samples of each request.
    seed: random seed of all samples.
    num_beams: number of beams.
    num_return_sequences: number of hypotheses to return.
    length_penalty: a hypothesis's log-probability is divided by its length to
      this power.
    self_consistency: whether the samples vote on the answer.
    calculator: whether the results of calculations are forced.
  """

  strategy: Kind = "greedy"
  max_new_tokens: int = 128
  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0
  num_samples: int = 1
  seed: int = 0
  num_beams: int = 4
  num_return_sequences: int = 1
  length_penalty: float = 1.0
  self_consistency: bool = False
  calculator: bool = False

  def __post_init__(self) -> None:
    """Validates the fields and their combination."""
    if self.strategy not in get_args(Kind):
      raise errors.UserError(
        f"strategy is {self.strategy!r}, and must be one of "
        f"{', '.join(get_args(Kind))}."
      )
    for name in ("max_new_tokens", "num_samples", "num_beams"):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f"{name} is {getattr(self, name)}, and must be at least 1."
        )
    if not 1 <= self.num_return_sequences <= self.num_beams:
      raise errors.UserError(
        f"num_return_sequences is {self.num_return_sequences}, and must be at "
        f"least 1 and at most num_beams={self.num_beams}."
      )
    if self.num_samples > MAX_SAMPLES:
      raise errors.UserError(
        f"num_samples is {self.num_samples}, and can be at most {MAX_SAMPLES}."
      )
    # Values that sampling rejects are errors with every strategy, except a
    # temperature of 0, which often stands for greedy decoding.
    strategies.Sampling(
      temperature=self.temperature or 1.0, top_k=self.top_k, top_p=self.top_p
    )
    drawn, beams = self.strategy == "sample", self.strategy == "beam"
    for name, given, fits, need in (
      ("temperature", self.temperature not in (0, 1), drawn, "sample"),
      ("top_k", self.top_k is not None, drawn, "sample"),
      ("top_p", self.top_p != 1, drawn, "sample"),
      ("num_samples", self.num_samples > 1, drawn, "sample"),
      ("self_consistency", self.self_consistency, drawn, "sample"),
      ("calculator", self.calculator, not beams, "greedy"),
      ("num_return_sequences", self.num_return_sequences > 1, beams, "beam"),
    ):
      if given and not fits:
        raise errors.UserError(
          f"{name} does not go with strategy={self.strategy}: it needs "
          f"strategy={need}."
        )
    self.rule()

  def rule(self) -> strategies.Strategy:
    """Returns the rule for the next token; raises UserError if invalid."""
    if self.strategy != "sample":
      return strategies.Greedy()
    return strategies.Sampling(
      temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """An input to decode, or an input and a target to score.

  Attributes:
    number: seeds the request's samples; unique within a run.
    input_ids: int32, without padding.
    target_ids: int32, the target to score; None to decode.
  """

  number: int
  input_ids: np.ndarray
  target_ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """A decoded sequence.

  Attributes:
    ids: int32, without the start token, up to and including EOS if any.
    log_probs: float32, one per token, by the model without temperature and
      truncation.
    score: ranks outputs: a beam's score, otherwise the sum of `log_probs`.
    text: the decoded text; None without a vocabulary.
  """

  ids: np.ndarray
  log_probs: np.ndarray
  score: float
  text: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """The result of a request.

  Attributes:
    sequences: the outputs, beams best first, samples in order; empty for a
      scored request.
    best: index of the output that represents the request.
    vote: the vote of the samples, with self-consistency.
    target_log_probs: float32, one per target token of a scored request.
  """

  sequences: Sequence[Output] = ()
  best: int = 0
  vote: self_consistency.Vote | None = None
  target_log_probs: np.ndarray | None = None

  @property
  def output(self) -> Output:
    """The output that represents the request."""
    return self.sequences[self.best]

  @property
  def num_tokens(self) -> int:
    """Number of tokens decoded or scored."""
    if self.target_log_probs is not None:
      return len(self.target_log_probs)
    return sum(len(sequence.ids) for sequence in self.sequences)
