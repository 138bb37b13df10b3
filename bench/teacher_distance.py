"""Measures the distance of targets and students from the exact teacher.

`mini.student_tokens` computes the distribution of a perfect student after any
prefix of its own tokens, so two measures are possible that no real teacher
allows:

- `target_error`: the distance of records' targets from the exact distribution
  at their positions, before any training;
- `divergence`: KL(teacher || student) on held-out problems, along solutions
  sampled from the teacher. At each position it is exact, over the whole
  vocabulary; its sum along a solution is an unbiased estimate of the divergence
  of the distributions of whole solutions.
"""

import dataclasses
import functools
import itertools
import os
import random
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax.align import student
from specialize_jax.cot import answer_rules, formats
from specialize_jax.data import aligned_records
from specialize_jax.decoding import bucketing
from specialize_jax.mini import problems, student_tokens
from specialize_jax.records import columnar, store
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

_FORMAT = formats.ZERO_SHOT_CHAIN_OF_THOUGHT
_BATCH_SIZE = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Solutions of held-out problems of a family.

  Attributes:
    inputs: the tokens of each solution's prompt.
    solutions: the solutions, with exact distributions.
  """

  inputs: Sequence[Sequence[int]]
  solutions: Sequence[student_tokens.ScoredSolution]


def draw_held_out(
  asked: Sequence[problems.Problem],
  tokenizer: student.SentencePieceStudent,
  teacher: student_tokens.StudentTeacher,
  *,
  solutions_per_problem: int,
  seed: int,
) -> HeldOut:
  """Samples solutions of problems from the teacher (temperature 1)."""
  inputs, solutions = [], []
  for problem in asked:
    rng = random.Random(f"{seed}/held_out/{problem.question_id}")
    prompt = formats.render_question(problem.question, _FORMAT)
    drawn = teacher.draw(problem, rng, solutions_per_problem)
    solutions += drawn
    inputs += [(*tokenizer.encode_ids(prompt), t5_config.EOS_ID)] * len(drawn)
  return HeldOut(inputs=inputs, solutions=solutions)


def target_error(
  records: str | os.PathLike[str],
  asked: Mapping[str, problems.Problem],
  tokenizer: student.SentencePieceStudent,
  teacher: student_tokens.StudentTeacher,
  *,
  mode: str,
  num_records: int,
) -> float:
  """Computes the distance of stored targets from the exact distributions.

  Args:
    records: the teacher's record store; only correct records are used.
    asked: their problems, by id.
    tokenizer: the student's tokenizer.
    teacher: the exact teacher.
    mode: the alignment mode.
    num_records: number of records to use.

  Returns:
    The total variation distance, in [0, 1], averaged over all positions:
    (sum |p - q| + 1 - sum q) / 2, with p exact and q the stored target, which
    is one-hot where there is no distribution.
  """
  rows = map(columnar.parse, store.read_lines(records))
  right = (
    row
    for row in rows
    if answer_rules.NUMBER.finds(row.text, row.head.gold_answer)
  )
  kept, aligned = aligned_records.RowAligner(tokenizer, mode=mode).align(
    itertools.islice(right, num_records)
  )
  stored = aligned_records.to_positions(aligned)
  probs_PC = np.exp(stored.top_log_probs.astype(np.float64)).tolist()
  ids_PC = stored.top_ids.tolist()
  distances = []
  for number, place in enumerate(aligned.samples_A.tolist()):
    mine = slice(aligned.offsets[number], aligned.offsets[number + 1])
    ids = (*aligned.ids_P[mine].tolist(), t5_config.EOS_ID)
    solution = teacher.along(asked[kept[place].head.question_id], ids)
    targets = zip(ids_PC[mine], probs_PC[mine], strict=True)
    for at, (ids_C, probs_C) in enumerate(targets):
      exact = zip(solution.candidates[at], solution.probs[at], strict=True)
      target = zip(ids_C, probs_C, strict=True)
      distances.append(_distance(dict(exact), target))
  return float(np.mean(distances))


def _distance(
  exact: Mapping[int, float], target: Iterable[tuple[int, float]]
) -> float:
  """Computes the total variation distance; missing mass counts as wrong."""
  given: dict[int, float] = {}
  for token, prob in target:
    given[token] = given.get(token, 0.0) + prob
  tokens = exact.keys() | given.keys()
  apart = sum(abs(exact.get(t, 0.0) - given.get(t, 0.0)) for t in tokens)
  return (apart + max(0.0, 1.0 - sum(given.values()))) / 2


def divergence(
  model: network.EncoderDecoder,
  params: network.Params,
  held_out: HeldOut,
  *,
  solutions_per_problem: int,
) -> list[float]:
  """Computes KL(teacher || student) of each problem, in nats per token.

  Args:
    model: the student.
    params: its parameters.
    held_out: solutions, grouped by problem.
    solutions_per_problem: number of solutions of each problem.

  Returns:
    One number per problem.
  """
  width = max(len(c) for one in held_out.solutions for c in one.candidates)
  sums = []
  for at in range(0, len(held_out.solutions), _BATCH_SIZE):
    solutions = held_out.solutions[at : at + _BATCH_SIZE]
    targets_BT = bucketing.padded([np.array(one.ids) for one in solutions])
    ids_BTK = np.zeros((*targets_BT.shape, width), np.int32)
    probs_BTK = np.zeros(ids_BTK.shape, np.float32)
    for row, one in enumerate(solutions):
      for place, (ids, probs) in enumerate(
        zip(one.candidates, one.probs, strict=True)
      ):
        ids_BTK[row, place, : len(ids)] = ids
        probs_BTK[row, place, : len(ids)] = probs
    inputs_BS = bucketing.padded(
      [np.array(ids) for ids in held_out.inputs[at : at + _BATCH_SIZE]]
    )
    kl_BT = _divergence(
      model,
      params,
      inputs_BS,
      targets_BT,
      ids_BTK=ids_BTK,
      probs_BTK=probs_BTK,
    )
    sums.append(np.asarray(kl_BT, np.float64).sum(axis=1))
  lengths = np.array([len(one.ids) for one in held_out.solutions], np.float64)
  shape = -1, solutions_per_problem
  total, tokens = (
    x.reshape(shape).sum(axis=1) for x in (np.concatenate(sums), lengths)
  )
  return (total / tokens).tolist()


@functools.partial(jax.jit, static_argnames="model")
def _divergence(
  model: network.EncoderDecoder,
  params: network.Params,
  inputs_BS: jax.Array,
  targets_BT: jax.Array,
  *,
  ids_BTK: jax.Array,
  probs_BTK: jax.Array,
) -> jax.Array:
  """Computes sum p (log p - log q) at each position; 0 at padding."""
  start_B1 = jnp.full(
    (len(targets_BT), 1), model.config.decoder_start_id, jnp.int32
  )
  logits_BTV = model.apply(
    {"params": params},
    inputs_BS,
    jnp.concatenate([start_B1, targets_BT[:, :-1]], axis=1),
    deterministic=True,
  )
  log_q_BTK = jnp.take_along_axis(
    jax.nn.log_softmax(logits_BTV), ids_BTK, axis=-1
  )
  entropy_BT = jax.scipy.special.xlogy(probs_BTK, probs_BTK).sum(axis=-1)
  return entropy_BT - (probs_BTK * log_q_BTK).sum(axis=-1)
