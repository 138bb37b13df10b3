"""A small run in a process of its own, for a test to kill and to resume.

cd tests && python -m training.crash_run MODEL_DIR SECONDS_PER_BATCH
"""

import os
import pathlib
import sys

import jax

from specialize_jax.checkpoints import manager
from specialize_jax.training import loop, run_log, state
from training import tiny_run

NUM_STEPS = 12


def main(model_dir, seconds_per_batch=0.0, **config):
  """Runs, or goes on, to the last step; gives state, run and iterator."""
  model = tiny_run.model(dropout_rate=0.2)
  optimizer = tiny_run.adamw()
  where = tiny_run.one_device()
  config = {"log_every": 1, "checkpoint_every": 3, **config}
  iterator = tiny_run.Batches(seconds_per_batch)
  with manager.CheckpointManager(
    os.path.join(model_dir, "checkpoints"), keep=2
  ) as saver:
    run = loop.Run(
      train_step=tiny_run.dropout_step(),
      placement=where,
      manager=saver,
      log=run_log.RunLog(model_dir),
      config=loop.LoopConfig(num_steps=NUM_STEPS, **config),
      metadata={"model": "tiny"},
    )
    train_state = loop.resume_or_start(
      run,
      iterator,
      abstract_state=state.abstract(model, optimizer, where),
      initial_state_fn=tiny_run.new_state,
    )
    train_state = loop.train(run, train_state, iterator)
    run.log.close()
  return train_state, run, iterator


if __name__ == "__main__":
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  main(pathlib.Path(sys.argv[1]), float(sys.argv[2]))
