"""Gathers and scatters of a few logits along the vocabulary.

CPUs use a gather or scatter; other platforms compare every token with the id.
A TPU gathers and scatters single elements one after the other, through HBM,
while comparisons fuse into the passes that read the logits anyway. Compiled
for v5e, with 8 x 256 positions of FlanT5-base on a chip, the loss moves 19 MB
of HBM by comparing and 516 MB by index; on a CPU comparing is up to 7 % slower.

Ids outside the vocabulary, negative ones included, are skipped.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp


def read(logits_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """Returns the logit of each id, `[B, T, C]`, `-inf` for ids out of range."""
  return jax.lax.platform_dependent(
    logits_BTV, ids_BTC, cpu=read_by_index, default=read_by_comparing
  )


def without(logits_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """Returns the logits with `-inf` at each id."""
  return jax.lax.platform_dependent(
    logits_BTV, ids_BTC, cpu=without_by_index, default=without_by_comparing
  )


def add(
  array_BTV: jax.Array, ids_BTC: jax.Array, values_BTC: jax.Array
) -> jax.Array:
  """Returns the array with each value added at its id."""
  return jax.lax.platform_dependent(
    array_BTV,
    ids_BTC,
    values_BTC,
    cpu=add_by_index,
    default=add_by_comparing,
  )


def read_by_index(logits_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """See `read`."""
  return _per_position(
    lambda row, ids: row.at[ids].get(mode="fill", fill_value=-jnp.inf)
  )(logits_BTV, _not_negative(logits_BTV, ids_BTC))


def read_by_comparing(logits_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """See `read`."""
  found = [
    jnp.max(jnp.where(is_id_BTV, logits_BTV, -jnp.inf), axis=-1)
    for is_id_BTV in _masks(logits_BTV, ids_BTC)
  ]
  no_slots = jnp.zeros(ids_BTC.shape, logits_BTV.dtype)
  return jnp.stack(found, axis=-1) if found else no_slots


def without_by_index(logits_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """See `without`."""
  return _per_position(lambda row, ids: row.at[ids].set(-jnp.inf, mode="drop"))(
    logits_BTV, _not_negative(logits_BTV, ids_BTC)
  )


def without_by_comparing(
  logits_BTV: jax.Array, ids_BTC: jax.Array
) -> jax.Array:
  """See `without`."""
  for is_id_BTV in _masks(logits_BTV, ids_BTC):
    logits_BTV = jnp.where(is_id_BTV, -jnp.inf, logits_BTV)
  return logits_BTV


def add_by_index(
  array_BTV: jax.Array, ids_BTC: jax.Array, values_BTC: jax.Array
) -> jax.Array:
  """See `add`."""
  return _per_position(
    lambda row, ids, values: row.at[ids].add(values, mode="drop")
  )(array_BTV, _not_negative(array_BTV, ids_BTC), values_BTC)


def add_by_comparing(
  array_BTV: jax.Array, ids_BTC: jax.Array, values_BTC: jax.Array
) -> jax.Array:
  """See `add`."""
  for slot, is_id_BTV in enumerate(_masks(array_BTV, ids_BTC)):
    array_BTV += jnp.where(is_id_BTV, values_BTC[..., slot, None], 0.0)
  return array_BTV


def _masks(array_BTV: jax.Array, ids_BTC: jax.Array) -> Iterator[jax.Array]:
  """Yields one mask per slot, bool `[B, T, V]`, true at the slot's id."""
  tokens_BTV = jax.lax.broadcasted_iota(jnp.int32, array_BTV.shape, 2)
  for slot in range(ids_BTC.shape[-1]):
    yield tokens_BTV == ids_BTC[..., slot, None]


def _per_position(row_fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Maps a function of one position over batch and length."""
  return jax.vmap(jax.vmap(row_fn))


def _not_negative(array_BTV: jax.Array, ids_BTC: jax.Array) -> jax.Array:
  """Moves negative ids past the end, as indexing counts them from there."""
  return jnp.where(ids_BTC < 0, array_BTV.shape[-1], ids_BTC)
