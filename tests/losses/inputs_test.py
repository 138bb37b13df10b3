"""The public losses: any leading dimensions, and inputs that are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses import random_case
from specialize_jax import errors, losses

IDS = np.array([[2, 1], [3, 0]], np.int32)
PROBS = np.array([[0.5, 0.25], [1.0, 0.0]], np.float32)
LOGITS = np.zeros((2, 4), np.float32)
HIDDEN, KERNEL = np.zeros((2, 3), np.float32), np.zeros((3, 4), np.float32)


def _both(ids, probs):
  """The losses of the same teacher on logits and on hidden states."""
  yield lambda: losses.sparse_kl(LOGITS, ids, probs)
  yield lambda: losses.sparse_kl_from_hidden(HIDDEN, KERNEL, ids, probs)


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 3, 4)])
def test_any_leading_dimensions_give_the_loss_of_each_position(leading):
  rng = np.random.default_rng(0)
  hidden = rng.standard_normal((*leading, 6)).astype(np.float32)
  kernel = rng.standard_normal((6, 8)).astype(np.float32)
  ids = np.argsort(rng.random((*leading, 8)), -1)[..., :3]
  probs = (0.9 * rng.dirichlet(np.ones(3), leading)).astype(np.float32)
  targets = rng.integers(0, 8, leading)
  logits = hidden @ kernel
  kl = np.asarray(jax.jit(losses.sparse_kl)(logits, ids, probs))
  nll = np.asarray(jax.jit(losses.cross_entropy)(logits, targets))
  assert kl.shape == nll.shape == leading
  for index in np.ndindex(leading):
    p = np.exp(logits[index]) / np.exp(logits[index]).sum()
    q, top = probs[index], p[ids[index]]
    expected = (q * np.log(q / top)).sum()
    expected += (1 - q.sum()) * np.log((1 - q.sum()) / (1 - top.sum()))
    np.testing.assert_allclose(kl[index], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
      nll[index], -np.log(p[targets[index]]), rtol=1e-5
    )
  kl_fn = functools.partial(losses.sparse_kl_from_hidden, num_chunks=4)
  np.testing.assert_allclose(
    jax.jit(kl_fn)(hidden, kernel, ids, probs), kl, rtol=1e-4, atol=1e-6
  )
  nll_fn = functools.partial(losses.cross_entropy_from_hidden, num_chunks=2)
  np.testing.assert_allclose(
    jax.jit(nll_fn)(hidden, kernel, targets), nll, rtol=1e-5
  )


def test_both_gradients_from_hidden_states_are_those_of_the_logits():
  hidden, kernel, batch = random_case.draw(1)
  teacher = (batch["decoder_teacher_top_ids"],) + (
    batch["decoder_teacher_top_probs"],
  )
  chunked = jax.jit(
    jax.grad(
      lambda h, k: losses.sparse_kl_from_hidden(h, k, *teacher).sum(), (0, 1)
    )
  )(hidden, kernel)
  whole = jax.jit(
    jax.grad(lambda h, k: losses.sparse_kl(h @ k, *teacher).sum(), (0, 1))
  )(hidden, kernel)
  for ours, expected in zip(chunked, whole, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  ("ids", "probs", "message"),
  [
    (IDS, np.log(np.maximum(PROBS, 1e-9)), r"\[0, 0\] is -0.6931: .*jnp.exp"),
    (IDS, np.full((2, 2), np.nan), r"teacher_probs\[0, 0\] is nan"),
    (IDS, 5 * PROBS, "is 2.5: expected a probability in"),
    (IDS, [[0.9, 0.8], [1, 0]], r"teacher_probs\[0\] sums to 1.7"),
    (
      IDS + [[0], [1]],
      PROBS,
      r"teacher_ids\[1, 0\] is 4: .* \[0, 4\)",
    ),
    (IDS - 2, PROBS, r"teacher_ids\[0, 1\] is -1"),
    ([[2, 2], [3, 3]], PROBS, r"teacher_ids\[0\] is \[2, 2\]: .* distinct"),
    (1.0 * IDS, PROBS, "teacher_ids is float.*: expected integer"),
    (IDS[:1], PROBS[:1], r"teacher_ids has shape \(1, 2\)"),
    (IDS, PROBS[:, :1], r"teacher_probs \(2, 1\): expected the same"),
  ],
)
def test_what_is_no_teacher_distribution_is_refused(ids, probs, message):
  ids, probs = np.asarray(ids), np.asarray(probs)
  for loss_fn in _both(ids, probs):
    with pytest.raises(errors.UserError, match=message):
      loss_fn()


@pytest.mark.parametrize("targets", [[1, 4], [-1, 2]])
def test_a_target_beyond_the_vocabulary_is_refused_or_nan(targets):
  targets = np.array(targets)
  outside = (targets < 0) | (targets > 3)
  for fn, arguments in (
    (losses.cross_entropy, (LOGITS,)),
    (losses.cross_entropy_from_hidden, (HIDDEN, KERNEL)),
  ):
    with pytest.raises(errors.UserError, match=r"targets\[.\] is .* \[0, 4\)"):
      fn(*arguments, targets)
    traced = jax.jit(fn)(*arguments, targets)
    np.testing.assert_array_equal(np.isnan(traced), outside)


def test_traced_log_probabilities_make_a_nan_and_no_zero():
  log_probs = np.log(np.array([[0.5, 0.25], [0.6, 0.4]], np.float32))
  loss = jax.jit(losses.sparse_kl)(LOGITS, IDS, log_probs)
  assert np.isnan(loss).all()


def test_a_traced_id_beyond_the_vocabulary_counts_as_tail():
  """Its probability joins the mass outside the top k."""
  for unknown in (4, 9, -1):
    ids = np.array([[2, unknown], [3, 0]])
    actual = jax.jit(losses.sparse_kl)(LOGITS, ids, PROBS)
    alone = losses.sparse_kl(LOGITS, IDS, PROBS * [[1, 0], [1, 1]])
    np.testing.assert_allclose(actual, alone, rtol=1e-6)
    assert np.isfinite(alone).all()


@pytest.mark.parametrize("chunk_axis", ["vocabulary", "targets"])
def test_a_batch_is_checked_where_it_has_a_teacher_and_weight(chunk_axis):
  hidden, kernel, batch = random_case.draw(2)
  config = losses.LossConfig(chunk_axis=chunk_axis, num_chunks=2)

  def loss(batch):
    return losses.weighted_loss(hidden, kernel, batch, config=config)[0]

  mask = batch["decoder_teacher_top_mask"][..., None]
  probs = batch["decoder_teacher_top_probs"]
  unmasked = np.where(mask == 0, -1.0, probs)
  expected = loss(batch)
  np.testing.assert_allclose(
    loss(dict(batch, decoder_teacher_top_probs=unmasked)), expected
  )
  with pytest.raises(errors.UserError, match=r"decoder_teacher_top_probs\["):
    loss(dict(batch, decoder_teacher_top_probs=np.log(probs + 1e-6)))
  with pytest.raises(errors.UserError, match=r"decoder_teacher_top_ids\["):
    ids = batch["decoder_teacher_top_ids"] + random_case.VOCAB
    loss(dict(batch, decoder_teacher_top_ids=ids))
  weights = batch["decoder_loss_weights"]
  targets = batch["decoder_target_tokens"]
  ignored = np.where(weights == 0, -100, targets)
  np.testing.assert_allclose(
    loss(dict(batch, decoder_target_tokens=ignored)), expected
  )
  with pytest.raises(errors.UserError, match=r"decoder_target_tokens\["):
    loss(dict(batch, decoder_target_tokens=targets - 100))
  log_probs = dict(batch, decoder_teacher_top_probs=np.log(probs + 1e-6))
  assert np.isnan(jax.jit(loss)(log_probs))


def test_an_embedding_as_the_head_is_refused_with_the_way_out():
  hidden, embedding = jnp.zeros([2, 3, 4]), jnp.zeros([7, 4])
  ids, probs = jnp.zeros([2, 3, 1], jnp.int32), jnp.ones([2, 3, 1])
  for kernel, message in (
    (embedding, "transpose the embedding"),
    (jnp.zeros([5, 7]), "expected .D, V. with D=4"),
  ):
    with pytest.raises(errors.UserError, match=message):
      losses.sparse_kl_from_hidden(hidden, kernel, ids, probs)
  losses.sparse_kl_from_hidden(hidden, embedding.T, ids, probs)


def test_no_chunk_is_refused():
  with pytest.raises(errors.UserError, match="num_chunks=0 is not possible"):
    losses.sparse_kl_from_hidden(HIDDEN, KERNEL, IDS, PROBS, num_chunks=0)
