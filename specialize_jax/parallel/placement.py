"""A mesh and the rules over it: where every array of a run lies."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from flax import linen as nn

from specialize_jax import errors
from specialize_jax.parallel import axis_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
  """Places parameters and batches.

  Attributes:
    mesh: from `mesh.make_mesh`.
    rules: logical axes onto the mesh's.
  """

  mesh: jax.sharding.Mesh
  rules: axis_rules.AxisRules = dataclasses.field(
    default_factory=axis_rules.AxisRules
  )

  @contextlib.contextmanager
  def entered(self) -> Iterator[None]:
    """Within it, the model's logical constraints hold for what is traced."""
    with (
      jax.set_mesh(self.mesh),
      nn.logical_axis_rules(self.rules.logical_rules()),
    ):
      yield

  def tree_shardings(self, boxed: object) -> object:
    """Places a tree of parameters, see `AxisRules.tree_shardings`."""
    return self.rules.tree_shardings(self.mesh, boxed)

  def put_batch(
    self, local_batch: Mapping[str, np.ndarray]
  ) -> dict[str, jax.Array]:
    """Makes global arrays of this process's rows of a batch.

    Raises:
      UserError: the rows cannot be cut evenly over the devices.
    """
    shards = self.rules.batch_shards(self.mesh)
    sharding = self.rules.batch_sharding(self.mesh)
    for name, rows in local_batch.items():
      num_rows = rows.shape[0] * jax.process_count()
      if num_rows % shards:
        raise errors.UserError(
          f"A batch of {num_rows} rows ({name}) cannot be cut evenly over "
          f"{shards} devices along the mesh axes {self.rules.batch}: set "
          f"BATCH_SIZE to a multiple of {shards}, or cut the batch less."
        )
    return {
      name: jax.make_array_from_process_local_data(sharding, rows)
      for name, rows in local_batch.items()
    }
