"""Sparse KL against the dense one, by worked numbers, laws and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from specialize_jax import errors
from specialize_jax.losses import divergence, student_scores

MODES = ["tail", "renormalize", "zero"]
_kl = jax.jit(divergence.sparse_kl, static_argnames="missing_mass")


def _random_case(seed, shape=(2, 3), vocab_size=11, candidates=4, total=0.9):
  rng = np.random.default_rng(seed)
  logits = 3.0 * rng.standard_normal((*shape, vocab_size))
  ids = np.argsort(rng.random((*shape, vocab_size)), -1)[..., :candidates]
  probs = rng.dirichlet(np.ones(candidates), shape) * total
  return logits, ids.astype(np.int32), probs


def _dense_kl(teacher, logits):
  """KL over the whole vocabulary by its definition, 0 log 0 = 0."""
  student = np.exp(logits - np.max(logits, -1, keepdims=True))
  student /= student.sum(-1, keepdims=True)
  with np.errstate(divide="ignore", invalid="ignore"):
    terms = teacher * (np.log(teacher) - np.log(student))
  return np.where(teacher > 0, terms, 0.0).sum(-1)


def _dense_teacher(ids, probs, vocab_size):
  dense = np.zeros((*ids.shape[:-1], vocab_size))
  np.put_along_axis(dense, ids, probs, -1)
  return dense


@pytest.mark.parametrize(
  ("mode", "expected"),
  [("tail", 0.1733), ("zero", 0.3466), ("renormalize", 0.7498)],
)
def test_hand_worked_numbers_of_the_docstring(mode, expected):
  kl = _kl(
    jnp.zeros((1, 1, 4)),
    jnp.array([[[2, 1]]]),
    jnp.array([[[0.5, 0.25]]]),
    missing_mass=mode,
  )
  np.testing.assert_allclose(kl, [[expected]], atol=5e-5)


@pytest.mark.parametrize("mode", ["renormalize", "zero"])
def test_sparse_equals_dense_in_float64(mode):
  logits, ids, probs = _random_case(0)
  with jax.enable_x64(True):
    sparse = _kl(
      jnp.asarray(logits), jnp.asarray(ids), probs, missing_mass=mode
    )
  assert sparse.dtype == np.float64
  if mode == "renormalize":
    probs = probs / probs.sum(-1, keepdims=True)
  dense = _dense_kl(_dense_teacher(ids, probs, 11), logits)
  np.testing.assert_allclose(sparse, dense, rtol=1e-12)


def test_tail_equals_dense_kl_of_the_coarser_distributions_in_float64():
  logits, ids, probs = _random_case(1)
  with jax.enable_x64(True):
    sparse = _kl(jnp.asarray(logits), jnp.asarray(ids), probs)
  student = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  top = np.take_along_axis(student, ids, -1)
  rest = 1 - top.sum(-1, keepdims=True)
  dense = _dense_kl(
    np.concatenate([probs, 1 - probs.sum(-1, keepdims=True)], -1),
    np.log(np.concatenate([top, rest], -1)),
  )
  np.testing.assert_allclose(sparse, dense, rtol=1e-10)


def test_tail_is_the_dense_kl_if_the_tails_are_proportional():
  """If the teacher's tail is proportional to the student's, tail is exact."""
  logits, ids, probs = _random_case(2)
  with jax.enable_x64(True):
    sparse = _kl(jnp.asarray(logits), jnp.asarray(ids), probs)
  rest = np.exp(logits)
  np.put_along_axis(rest, ids, 0.0, -1)
  rest *= (1 - probs.sum(-1, keepdims=True)) / rest.sum(-1, keepdims=True)
  teacher = _dense_teacher(ids, probs, 11) + rest
  np.testing.assert_allclose(sparse, _dense_kl(teacher, logits), rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_equals_finite_differences(mode):
  logits, ids, probs = _random_case(3)
  with jax.enable_x64(True):
    test_util.check_grads(
      lambda x: _kl(x, jnp.asarray(ids), jnp.asarray(probs), missing_mass=mode),
      (jnp.asarray(logits),),
      order=1,
      modes=["rev"],
      rtol=1e-6,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("total", [0.3, 0.99, 1.0])
def test_tail_and_renormalize_are_never_negative_and_zero_can_be(mode, total):
  logits, ids, probs = _random_case(4, shape=(64, 16), total=total)
  # A student that is sure of the candidates, and more so than the teacher.
  sure = logits.copy()
  np.put_along_axis(sure, ids, np.log(probs) + 5, -1)
  kl = np.concatenate(
    [_kl(jnp.float32(x), ids, probs, missing_mass=mode) for x in (logits, sure)]
  )
  if mode == "zero" and total < 1:
    assert kl.min() < -0.004
  else:
    assert kl.min() > -1e-6


def test_tail_is_zero_where_the_student_agrees_on_every_bucket():
  _, ids, probs = _random_case(5)
  logits = np.log(np.full((2, 3, 11), 0.1 / 7))
  np.put_along_axis(logits, ids, np.log(probs), -1)
  kl = _kl(jnp.float32(logits), ids, probs)
  np.testing.assert_allclose(kl, 0.0, atol=1e-6)


def test_zero_log_zero_is_zero_in_value_and_gradient():
  logits = jnp.array([[[0.0, 1.0, 2.0, -1.0]]])

  def loss(probs, mode):
    return _kl(logits, jnp.array([[[1, 3]]]), probs, missing_mass=mode).sum()

  for mode in MODES:
    with_empty = jnp.array([[[1.0, 0.0]]])
    np.testing.assert_allclose(
      loss(with_empty, mode), -jax.nn.log_softmax(logits)[0, 0, 1], rtol=1e-6
    )
    assert np.isfinite(jax.grad(loss)(with_empty, mode)).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_unused_slot_changes_nothing_whatever_its_id(mode):
  """Unused slots hold the padding id, 0; its mass remains in the tail."""
  logits, ids, probs = _random_case(6)
  logits[..., 0] = 4.0
  ids = np.where(ids == 0, 10 - ids, ids)
  plain = _kl(jnp.float32(logits), ids, probs, missing_mass=mode)
  for unused_id in (0, 5):
    padded = _kl(
      jnp.float32(logits),
      np.pad(ids, [(0, 0), (0, 0), (0, 2)], constant_values=unused_id),
      np.pad(probs, [(0, 0), (0, 0), (0, 2)]),
      missing_mass=mode,
    )
    np.testing.assert_allclose(padded, plain, rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_no_used_slot_gives_zero_loss_and_zero_gradient(mode):
  logits, ids, probs = _random_case(7)
  value, gradient = jax.value_and_grad(
    lambda x: _kl(x, ids, 0 * probs, missing_mass=mode).sum()
  )(jnp.float32(logits))
  np.testing.assert_allclose(value, 0.0, atol=1e-6)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


@pytest.mark.parametrize("total", [1.0, 0.9])
@pytest.mark.parametrize("gap", [20.0, 60.0, 300.0])
def test_tail_is_finite_if_the_student_has_no_mass_there(gap, total):
  """1 - sum(p) would be 0 in float32 from a gap of 17 on."""
  logits, ids, probs = _random_case(8, total=total)
  logits = np.full_like(logits, -gap)
  np.put_along_axis(logits, ids, np.log(probs), -1)
  value, gradient = jax.value_and_grad(lambda x: _kl(x, ids, probs).mean())(
    jnp.float32(logits)
  )
  # sum(q) log sum(q) + (1 - sum(q)) (log(1 - sum(q)) - log p_r)
  expected = total * np.log(total)
  if total < 1:
    log_rest = np.log(7) - gap - np.log(total)
    expected = 0.1 * (np.log(0.1) - log_rest) + 0.9 * np.log(0.9)
    expected += 0.9 * (np.log(total) - np.log(0.9))
  np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)


def test_a_sum_above_one_by_rounding_stays_a_divergence():
  logits, ids, probs = _random_case(9, total=1.003)
  logits[:] = -30.0
  np.put_along_axis(logits, ids, np.log(probs), -1)
  kl = _kl(jnp.float32(logits), ids, probs)
  np.testing.assert_allclose(kl, 0.0, atol=1e-6)


def test_narrow_logits_are_reduced_in_float32():
  logits, ids, probs = _random_case(10)
  narrow = jnp.bfloat16(logits)
  kl = _kl(narrow, ids, probs)
  assert kl.dtype == np.float32
  np.testing.assert_allclose(kl, _kl(narrow.astype(np.float32), ids, probs))


def test_a_vocabulary_of_candidates_only_has_no_tail():
  logits, ids, probs = _random_case(11, vocab_size=4, candidates=4, total=1.0)
  value, gradient = jax.value_and_grad(lambda x: _kl(x, ids, probs).sum())(
    jnp.float32(logits)
  )
  dense = _dense_kl(_dense_teacher(ids, probs, 4), logits).sum()
  np.testing.assert_allclose(value, dense, rtol=1e-5)
  assert np.isfinite(gradient).all()


def test_scores_gradient_equals_that_of_the_plain_reduction():
  logits, ids, _ = _random_case(12)
  targets = ids[..., 1]
  rng = np.random.default_rng(13)

  def total(measure, logits):
    scores = measure(logits, jnp.asarray(ids), jnp.asarray(targets))
    parts = (
      scores.candidate_logits_BTC,
      scores.target_logits_BT,
      scores.log_tail_BT,
      student_scores.log_normalizer(scores),
    )
    seeded = np.random.default_rng(14)
    return sum((x * seeded.standard_normal(x.shape)).sum() for x in parts)

  with jax.enable_x64(True):
    logits = jnp.asarray(logits + rng.standard_normal(logits.shape))
    ours = jax.grad(lambda x: total(student_scores.measure, x))(logits)
    plain = jax.grad(lambda x: total(student_scores.reduce, x))(logits)
  np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-12)


def test_unknown_missing_mass_is_refused_by_name():
  with pytest.raises(errors.UserError, match="missing_mass='tails' is unknown"):
    divergence.sparse_kl(
      jnp.zeros((1, 1, 4)),
      jnp.array([[[2]]]),
      jnp.array([[[0.5]]]),
      missing_mass="tails",
    )
