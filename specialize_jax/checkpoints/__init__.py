"""Checkpoints: Orbax for our own runs, Hugging Face and T5X in and out.

`export_params` writes a Hugging Face folder from parameters in memory.
`open_checkpoint` opens one of our runs, a Hugging Face folder or hub name, or a
T5X checkpoint, and detects which it is; `Checkpoint.params` restores the
parameters onto a mesh. `CheckpointManager` saves and restores whole runs.
"""

from specialize_jax.checkpoints.conversion import export_params as export_params
from specialize_jax.checkpoints.conversion import plan as plan_conversion
from specialize_jax.checkpoints.conversion import write_folder as write_folder
from specialize_jax.checkpoints.conversion import write_ours as write_ours
from specialize_jax.checkpoints.manager import (
  CheckpointManager as CheckpointManager,
)
from specialize_jax.checkpoints.opening import Checkpoint as Checkpoint
from specialize_jax.checkpoints.opening import (
  open_checkpoint as open_checkpoint,
)

__all__ = [
  "Checkpoint",
  "CheckpointManager",
  "export_params",
  "open_checkpoint",
  "plan_conversion",
  "write_folder",
  "write_ours",
]
