"""A small run in a process of its own, for a test to kill and to resume.

cd tests && python -m training.crash_run MODEL_DIR SECONDS_PER_BATCH \\
  [NUM_STEPS CHECKPOINT_EVERY [INDEX COUNT PORT]]

The last three make it one of several processes with a device each.
"""

import os
import pathlib
import sys
import traceback

import jax

from specialize_jax.checkpoints import manager
from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement, processes
from specialize_jax.training import loop, run_log, state
from training import tiny_run

NUM_STEPS = 12


def main(model_dir, seconds_per_batch=0.0, where=None, **config):
  """Runs or resumes to the last step; returns state, run and iterator."""
  model = tiny_run.model(dropout_rate=0.2)
  optimizer = tiny_run.adamw()
  where = where or tiny_run.one_device()
  config = {
    "num_steps": NUM_STEPS,
    "log_every": 1,
    "checkpoint_every": 3,
    "log_example_ids": True,
    **config,
  }
  iterator = tiny_run.Batches(
    seconds_per_batch,
    where.local_rows(tiny_run.BATCH_SIZE),
    processes.gather if jax.process_count() > 1 else dict,
  )
  with manager.CheckpointManager(
    os.path.join(model_dir, "checkpoints"), keep=2
  ) as saver:
    run = loop.Run(
      train_step=tiny_run.dropout_step(),
      placement=where,
      manager=saver,
      # Without TensorBoard, for which a process imports TensorFlow.
      log=run_log.RunLog(model_dir, writers=()),
      config=loop.LoopConfig(**config),
      metadata={"model": "tiny"},
    )
    train_state = loop.resume_or_start(
      run,
      iterator,
      abstract_state=state.abstract(model, optimizer, where),
      initial_state_fn=lambda: state.create(
        tiny_run.model(), optimizer, where, init_rng=jax.random.key(0)
      ),
    )
    train_state = loop.train(run, train_state, iterator)
    run.log.close()
  return train_state, run, iterator


if __name__ == "__main__":
  jax.config.update("jax_numpy_dtype_promotion", "strict")
  model_dir, seconds, *numbers = sys.argv[1:]
  names = ("num_steps", "checkpoint_every")
  config = dict(zip(names, map(int, numbers[:2]), strict=bool(numbers)))
  where = None
  try:
    if numbers[2:]:
      index, count, port = numbers[2:]
      processes.join(
        coordinator_address=f"localhost:{port}",
        num_processes=int(count),
        process_id=int(index),
        heartbeat_seconds=10,
      )
      where = placement.Placement(mesh=meshes.make_mesh())
    main(pathlib.Path(model_dir), float(seconds), where, **config)
  except Exception as error:
    traceback.print_exc()
    processes.leave_alone(1, error)
    raise
