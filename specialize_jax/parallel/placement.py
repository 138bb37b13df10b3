"""A mesh and its axis rules, which determine how arrays are sharded."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import linen as nn

from specialize_jax import errors
from specialize_jax.parallel import axis_rules, row_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Shards parameters and batches over a mesh.

  Attributes:
    mesh: from `mesh.make_mesh`.
    rules: the mapping of logical axes to mesh axes.
  """

  mesh: jax.sharding.Mesh
  rules: axis_rules.AxisRules = dataclasses.field(
    default_factory=axis_rules.AxisRules
  )

  @contextlib.contextmanager
  def entered(self) -> Iterator[None]:
    """Enters mesh and rules, so that traced logical constraints apply."""
    with (
      jax.set_mesh(self.mesh),
      nn.logical_axis_rules(self.rules.logical_rules()),
      row_sums.over_links_of(self.mesh),
    ):
      yield

  @property
  def compiler_options(self) -> dict[str, bool]:
    """Returns the compiler options of a train step on the mesh's devices.

    They keep the TPU compiler from replacing the all-gather of a small kernel
    by an all-reduce with zeros, which sends twice the bytes, and that of a
    kernel before its matmul by permutations around a ring, which use the links
    of one axis only.
    """
    if self.mesh.devices.flat[0].platform != "tpu":
      return {}
    return {
      "xla_tpu_prefer_async_allgather_to_allreduce": True,
      "xla_tpu_enable_windowed_einsum_for_all_gather": False,
    }

  def tree_shardings(self, boxed: object) -> object:
    """Returns the shardings of a tree, see `AxisRules.tree_shardings`."""
    return self.rules.tree_shardings(self.mesh, boxed)

  def local_rows(self, num_rows: int) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices hold.

    The rows need not be contiguous nor held by one process only: on a 4 x 4
    slice a host has a block of 2 x 2 chips, and hosts along `model` hold the
    same rows.

    Args:
      num_rows: number of rows of the global batch.

    Returns:
      Row indices, ascending.

    Raises:
      UserError: the number of batch shards does not divide `num_rows`.
    """
    self._check_rows(num_rows)
    sharding = self.rules.batch_sharding(self.mesh)
    held = sharding.addressable_devices_indices_map((num_rows,)).values()
    rows = [np.arange(num_rows)[index] for index in held]
    return np.unique(np.concatenate(rows))

  def put_batch(
    self, local_batch: Mapping[str, np.ndarray]
  ) -> dict[str, jax.Array]:
    """Assembles global arrays from this process's rows of a batch.

    Args:
      local_batch: the rows of `local_rows`, in that order.

    Returns:
      Global arrays, sharded along the rows.

    Raises:
      UserError: the number of batch shards does not divide the number of rows.
    """
    shards = self.rules.batch_shards(self.mesh)
    # All shards have equally many rows, so the local rows imply the total.
    held = len(self.local_rows(shards))
    return {
      name: self._put(rows, len(rows) * shards // held)
      for name, rows in local_batch.items()
    }

  def abstract_batch(
    self, row: Mapping[str, np.ndarray], num_rows: int
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a global batch, as `put_batch` shards its arrays.

    Args:
      row: a batch of one row.
      num_rows: number of rows of the global batch.
    """
    sharding = self.rules.batch_sharding(self.mesh)
    return {
      name: jax.ShapeDtypeStruct(
        (num_rows, *value.shape[1:]), value.dtype, sharding=sharding
      )
      for name, value in row.items()
    }

  def _put(self, rows: np.ndarray, num_rows: int) -> jax.Array:
    local_rows = self.local_rows(num_rows)

    def shard(index: tuple[slice, ...]) -> np.ndarray:
      begin, end, _ = index[0].indices(num_rows)
      at = int(np.searchsorted(local_rows, begin))
      return rows[at : at + end - begin]

    return jax.make_array_from_callback(
      (num_rows, *rows.shape[1:]),
      self.rules.batch_sharding(self.mesh),
      shard,
    )

  def check_batch(
    self, batch_size: int, num_microbatches: int = 1, *, name: str
  ) -> None:
    """Raises UserError if a batch is not divisible over the mesh.

    Args:
      batch_size: the number of rows.
      num_microbatches: the number of microbatches, whose rows are divided too.
      name: the name of the batch size, as its user wrote it.
    """
    shards = self.rules.batch_shards(self.mesh)
    multiple = shards * num_microbatches
    if batch_size % multiple:
      raise errors.UserError(
        f"{name}={batch_size} cannot be cut evenly over {shards} chips along"
        f" the mesh axes data and fsdp in {num_microbatches} microbatches: give"
        f" a multiple of {multiple}."
      )

  def _check_rows(self, num_rows: int) -> None:
    shards = self.rules.batch_shards(self.mesh)
    if num_rows % shards:
      raise errors.UserError(
        f"A batch of {num_rows} rows cannot be sharded evenly over {shards} "
        f"devices along the mesh axes {self.rules.batch}: set BATCH_SIZE to a "
        f"multiple of {shards}, or shard the batch over fewer devices."
      )
