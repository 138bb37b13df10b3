"""Distances from the exact teacher are those of the plain formulas."""

import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from testdata import tiny_demo

from specialize_jax import align
from specialize_jax.align import student
from specialize_jax.mini import student_tokens, world
from specialize_jax.t5 import network

SEED = 3


@pytest.fixture(scope="module")
def teacher_distance():
  import teacher_distance  # a script's module, in bench/

  return teacher_distance


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  directory = tmp_path_factory.mktemp("world")
  world.build(directory, seed=SEED, config=tiny_demo.WORLD)
  return directory / world.DIRECTORY


@pytest.fixture(scope="module")
def asked():
  return world.draw_world(SEED, tiny_demo.WORLD).maths["mini_gsm"]


@pytest.fixture(scope="module")
def tokenizer(built):
  return student.SentencePieceStudent.from_file(built / "student.model")


@pytest.fixture(scope="module")
def teacher(tokenizer):
  return student_tokens.StudentTeacher(
    tokenizer, end_id=1, mistake_rate=tiny_demo.WORLD.mistake_rate
  )


def test_a_batchs_divergence_is_the_dense_formula_one_by_one(
  teacher_distance, asked, tokenizer, teacher
):
  held_out = teacher_distance.draw_held_out(
    asked["test"][:2],
    tokenizer,
    teacher,
    solutions_per_problem=2,
    seed=0,
  )
  model = network.EncoderDecoder(tiny_demo.model())
  ids = jnp.ones((1, 4), jnp.int32)
  init = jax.jit(functools.partial(model.init, deterministic=True))
  params = init(jax.random.key(0), ids, ids)["params"]
  found = teacher_distance.divergence(
    model, params, held_out, solutions_per_problem=2
  )

  @jax.jit
  def forward(inputs_BS, decoder_inputs_BT):
    return model.apply(
      {"params": params}, inputs_BS, decoder_inputs_BT, deterministic=True
    )

  expected = []
  for inputs, told in zip(held_out.inputs, held_out.solutions, strict=True):
    logits_TV = forward(jnp.array([inputs]), jnp.array([[0, *told.ids[:-1]]]))[
      0
    ]
    log_q_TV = np.asarray(jax.nn.log_softmax(logits_TV), np.float64)
    for candidates, probs, log_q_V in zip(
      told.candidates, told.probs, log_q_TV, strict=True
    ):
      p_V = np.zeros(len(log_q_V))
      p_V[list(candidates)] = probs
      expected.append(
        sum(
          p * (np.log(p) - log_q)
          for p, log_q in zip(p_V, log_q_V, strict=True)
          if p > 0
        )
      )
  ends = np.cumsum([len(told.ids) for told in held_out.solutions])[1::2]
  parts = np.split(np.array(expected), ends[:-1])
  assert found == pytest.approx([part.mean() for part in parts], rel=1e-4)
  assert min(expected) > 0


def test_the_papers_targets_are_the_farthest_from_the_teacher(
  teacher_distance, built, asked, tokenizer, teacher
):
  by_id = {problem.question_id: problem for problem in asked["train"]}
  errors = {
    mode: teacher_distance.target_error(
      built / "records", by_id, tokenizer, teacher, mode=mode, num_records=60
    )
    for mode in align.MODES
  }
  # In the mini world a choice is nearly always made by one token of both.
  assert errors["marginal"] <= errors["whitespace"] + 1e-3
  assert errors["whitespace"] < 0.02 < errors["paper"] < 0.1


def test_drawn_solutions_follow_their_prompts(
  teacher_distance, asked, tokenizer, teacher
):
  held_out = teacher_distance.draw_held_out(
    asked["validation"][:2], tokenizer, teacher, solutions_per_problem=3, seed=0
  )
  assert len(held_out.inputs) == len(held_out.solutions) == 6
  assert held_out.inputs[0] == held_out.inputs[2] != held_out.inputs[3]
  again = teacher.draw(
    asked["validation"][0],
    random.Random(f"0/held_out/{asked['validation'][0].question_id}"),
    3,
  )
  assert held_out.solutions[:3] == again
