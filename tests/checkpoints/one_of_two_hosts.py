"""A host of two: `python one_of_two_hosts.py PORT INDEX DIRECTORY`.

Saves two steps together with the other host. Then the first host lists them
alone, and the second cannot read the newest. Prints what each did.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

port, index, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, index)

from specialize_jax.checkpoints import contents, damage  # noqa: E402
from specialize_jax.checkpoints import manager as managers  # noqa: E402
from specialize_jax.runs import choosing  # noqa: E402

sharding = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec("x"))
state = {
  "params": {"a": jax.jit(lambda: jnp.arange(8.0), out_shardings=sharding)()}
}
steps = pathlib.Path(directory) / "checkpoints"
with managers.CheckpointManager(steps, keep=None) as manager:
  for step in (1, 2):
    manager.save(step, state, b"rows", {"step": step})

listed = choosing.steps_of(directory) if index == 0 else None

restore = contents.restore


def unreadable(place, *args, **kwargs):
  if index == 1 and pathlib.Path(place).parent.name == "2":
    raise damage.DamagedError("its chunk is missing here")
  return restore(place, *args, **kwargs)


contents.restore = unreadable
abstract = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
)
with managers.CheckpointManager(steps, keep=None) as manager:
  restored = manager.restore_newest(abstract)
print("listed", listed, "restored", restored.step, flush=True)
