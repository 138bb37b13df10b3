"""What is asked of a model, and what comes of it."""

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from specialize_jax import errors
from specialize_jax.decoding import self_consistency, strategies

Kind = Literal["greedy", "sample", "beam"]

MAX_SAMPLES = 1024
"""Of one request: its draws are numbered `1024 * number + sample`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How requests are decoded.

  Attributes:
    strategy: greedy, sample or beam.
    max_new_tokens: the most tokens of an output, EOS included.
    temperature: of samples; see `strategies.Sampling`.
    top_k: of samples; None keeps all tokens.
    top_p: of samples.
    num_samples: how many of each request.
    seed: of all draws.
    num_beams: hypotheses of a beam.
    num_return_sequences: how many hypotheses are given.
    length_penalty: exponent of the length by which a hypothesis's
      log-probability is divided.
    self_consistency: whether samples vote on the answer.
    calculator: whether the results of sums are forced.
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
    """Raises UserError for settings that cannot be, or contradict."""
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
    drawn = self.strategy == "sample"
    for name, given, fits, need in (
      ("num_samples", self.num_samples > 1, drawn, "sample"),
      ("self_consistency", self.self_consistency, drawn, "sample"),
      ("calculator", self.calculator, self.strategy != "beam", "greedy"),
    ):
      if given and not fits:
        raise errors.UserError(
          f"{name} does not go with strategy={self.strategy}: it needs "
          f"strategy={need}."
        )
    self.rule()

  def rule(self) -> strategies.Strategy:
    """Gives the rule for the next token; raises UserError for its values."""
    if self.strategy != "sample":
      return strategies.Greedy()
    return strategies.Sampling(
      temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """One thing to decode or to score.

  Attributes:
    number: by which its draws are made; unique in a run.
    input_ids: int32, without padding.
    target_ids: int32, what is scored; None to decode.
  """

  number: int
  input_ids: np.ndarray
  target_ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
  """One output.

  Attributes:
    ids: int32, without the start token, up to and with EOS if there is one.
    log_probs: float32, one a token, of the model before temperature and cut.
    score: by which outputs are ranked: a beam's score, else their sum.
    text: None where no vocabulary is known.
  """

  ids: np.ndarray
  log_probs: np.ndarray
  score: float
  text: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
  """What came of a request.

  Attributes:
    sequences: outputs, a beam's best first, samples in their order; none of
      a request that was scored.
    best: which of them is the answer.
    vote: how samples voted, if they did.
    target_log_probs: float32, one a target token, of a scored request.
  """

  sequences: Sequence[Output] = ()
  best: int = 0
  vote: self_consistency.Vote | None = None
  target_log_probs: np.ndarray | None = None

  @property
  def output(self) -> Output:
    """The one output that stands for the request."""
    return self.sequences[self.best]

  @property
  def num_tokens(self) -> int:
    """How many tokens were decoded or scored."""
    if self.target_log_probs is not None:
      return len(self.target_log_probs)
    return sum(len(sequence.ids) for sequence in self.sequences)
