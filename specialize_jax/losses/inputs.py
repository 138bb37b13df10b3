"""Checks and masks the inputs of a loss; the convention is the package's.

The `check_*` functions read values, so they check concrete arrays only and
return at once for traced ones, whose invalid entries are masked instead.
"""

import jax
import jax.numpy as jnp
import numpy as np

from specialize_jax import errors

_MAX_SUM = 1.01
"""Largest accepted sum of a position's probabilities: one, but for rounding."""


def check_teacher(
  ids: jax.Array,
  probs: jax.Array,
  vocab_size: int,
  *,
  ids_name: str = "teacher_ids",
  probs_name: str = "teacher_probs",
) -> None:
  """Raises unless ids and probabilities form teacher distributions.

  Args:
    ids: integers, `[..., C]`.
    probs: probabilities, `[..., C]`; zero marks an unused slot.
    vocab_size: number of the student's tokens.
    ids_name: the name of `ids` in the caller's signature, for messages.
    probs_name: likewise for `probs`.

  Raises:
    UserError: the shapes differ, `ids` are not integers or, where values are
      concrete, a probability is outside [0, 1], a used id is outside the
      vocabulary or occurs twice at a position, or a sum exceeds one.
  """
  if jnp.shape(ids) != jnp.shape(probs):
    raise errors.UserError(
      f"{ids_name} has shape {jnp.shape(ids)} and {probs_name} "
      f"{jnp.shape(probs)}: expected the same [..., C]."
    )
  _check_integers(ids, ids_name)
  if not (_is_concrete(ids) and _is_concrete(probs)):
    return
  ids, probs = np.asarray(ids), np.asarray(probs, np.float64)
  invalid = ~((probs >= 0) & (probs <= _MAX_SUM))
  if invalid.any():
    where = _first(invalid)
    raise errors.UserError(
      f"{probs_name}{list(where)} is {probs[where]:.4g}: expected a "
      "probability in [0, 1]. Log-probabilities must be exponentiated first: "
      f"{probs_name}=jnp.exp(log_probs)."
    )
  totals = probs.sum(axis=-1)
  if (totals > _MAX_SUM).any():
    where = _first(totals > _MAX_SUM)
    raise errors.UserError(
      f"{probs_name}{list(where)} sums to {totals[where]:.4g}: expected the "
      "probabilities of a position to sum to at most 1."
    )
  used = probs > 0
  outside = used & ((ids < 0) | (ids >= vocab_size))
  if outside.any():
    where = _first(outside)
    raise errors.UserError(
      f"{ids_name}{list(where)} is {ids[where]}: expected an id in "
      f"[0, {vocab_size}), the student's vocabulary. Was the teacher aligned "
      "to another student's tokenizer?"
    )
  # Unused slots get ids of their own, so that only used ones can be equal.
  slots = np.arange(ids.shape[-1])
  ordered = np.sort(np.where(used, ids.astype(np.int64), -1 - slots), axis=-1)
  repeated = (ordered[..., 1:] == ordered[..., :-1]).any(axis=-1)
  if repeated.any():
    where = _first(repeated)
    raise errors.UserError(
      f"{ids_name}{list(where)} is {ids[where].tolist()}: expected distinct "
      "ids where the probability is positive; add the probabilities of equal "
      "ids."
    )


def check_targets(
  targets: jax.Array,
  vocab_size: int,
  *,
  weights: jax.Array | None = None,
  name: str = "targets",
) -> None:
  """Raises unless targets are ids of the vocabulary.

  Args:
    targets: integers, `[...]`.
    vocab_size: number of the student's tokens.
    weights: loss weights, `[...]`; targets of weight zero are not checked.
    name: the name of `targets` in the caller's signature, for messages.

  Raises:
    UserError: `targets` are not integers or, where concrete, one lies outside
      the vocabulary.
  """
  _check_integers(targets, name)
  if not (_is_concrete(targets) and _is_concrete(weights)):
    return
  targets = np.asarray(targets)
  outside = (targets < 0) | (targets >= vocab_size)
  if weights is not None:
    outside &= np.asarray(weights) != 0
  if outside.any():
    where = _first(outside)
    raise errors.UserError(
      f"{name}{list(where)} is {targets[where]}: expected an id in "
      f"[0, {vocab_size}), the student's vocabulary."
    )


def check_leading_dimensions(
  array: jax.Array, leading: tuple[int, ...], num_last: int, name: str, of: str
) -> None:
  """Raises unless an array has the leading dimensions of another.

  Args:
    array: the array.
    leading: the leading dimensions that are expected.
    num_last: how many dimensions the array has besides, 0 or 1.
    name: the array's name in the caller's signature, for messages.
    of: the name of the other array.

  Raises:
    UserError: the dimensions differ.
  """
  shape = jnp.shape(array)
  if len(shape) != len(leading) + num_last or shape[: len(leading)] != leading:
    last = ", C" if num_last else ""
    raise errors.UserError(
      f"{name} has shape {shape}: expected [...{last}] with the leading "
      f"dimensions {leading} of {of}."
    )


def check_output_kernel(hidden: jax.Array, output_kernel: jax.Array) -> None:
  """Raises UserError unless an output kernel takes the hidden states."""
  size, shape = jnp.shape(hidden)[-1], jnp.shape(output_kernel)
  if len(shape) != 2 or shape[0] != size:
    is_turned = len(shape) == 2 and shape[1] == size
    raise errors.UserError(
      f"output_kernel has shape {shape}: expected [D, V] with D={size}, as"
      " hidden has"
      + (": transpose the embedding, output_kernel.T" if is_turned else "")
    )


def check_num_chunks(num_chunks: int) -> None:
  """Raises UserError unless the number of chunks is positive."""
  if not 1 <= num_chunks <= errors.MAX_COUNT:
    raise errors.UserError(
      f"num_chunks={num_chunks} is not possible: expected 1 or more, and at"
      f" most {errors.MAX_COUNT}."
    )


def mask_teacher(
  ids: jax.Array, probs: jax.Array, vocab_size: int
) -> tuple[jax.Array, jax.Array]:
  """Moves the ids of unused slots out of the vocabulary.

  An unused slot usually holds the padding id, 0, whose student mass belongs to
  the tail: out of range it is neither read nor excluded from the tail. A used
  id outside the vocabulary is masked to an unused slot.

  Args:
    ids: integers, `[..., C]`.
    probs: probabilities, `[..., C]`.
    vocab_size: number of the student's tokens.

  Returns:
    Int32 ids, `vocab_size` in unused slots, and probabilities, 0 there;
    negative and nan probabilities are passed on.
  """
  ids = ids.astype(jnp.int32)
  inside = (ids >= 0) & (ids < vocab_size)
  used = inside & (probs > 0)
  return (
    jnp.where(used, ids, vocab_size),
    jnp.where(inside | ~(probs > 0), probs, 0),
  )


def nan_outside(
  values: jax.Array, targets: jax.Array, vocab_size: int
) -> jax.Array:
  """Replaces values of targets outside the vocabulary by nan."""
  inside = (targets >= 0) & (targets < vocab_size)
  return jnp.where(inside, values, jnp.nan)


def with_two_leading_dimensions(array: jax.Array, num_last: int) -> jax.Array:
  """Reshapes `[..., last]` to `[B, T, last]`.

  The first leading dimension, over which a batch is sharded, is kept, and the
  others are merged; missing ones have size one.

  Args:
    array: any array of at least `num_last` dimensions.
    num_last: number of last dimensions to keep, 0 or 1.

  Returns:
    The array, of `2 + num_last` dimensions.
  """
  split = array.ndim - num_last
  leading, last = array.shape[:split], array.shape[split:]
  first = leading[0] if leading else 1
  rest = int(np.prod(leading[1:], dtype=np.int64))
  return array.reshape(first, rest, *last)


def _check_integers(array: jax.Array, name: str) -> None:
  dtype = jnp.result_type(array)
  if not jnp.issubdtype(dtype, jnp.integer):
    raise errors.UserError(f"{name} is {dtype}: expected integer token ids.")


def _is_concrete(array: jax.Array | None) -> bool:
  """Returns whether values can be read: not traced, nor on other hosts."""
  if isinstance(array, jax.core.Tracer):
    return False
  return not isinstance(array, jax.Array) or array.is_fully_addressable


def _first(condition: np.ndarray) -> tuple[int, ...]:
  return tuple(int(i) for i in np.argwhere(condition)[0])
