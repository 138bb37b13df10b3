"""The processes of one run: how they find one another, and miss one another."""

import jax

from specialize_jax import errors

# How long a process may be silent before the others take it for dead. They
# then end too, with an error that names it, since none can go on alone.
HEARTBEAT_SECONDS = 60
# How long the first waits for the last to start: images are pulled meanwhile.
_START_SECONDS = 600
# How long one that is done waits for the others to be: a last evaluation or
# the end of an asynchronous save may take longer on one host than on another.
_END_SECONDS = 300


def join(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the processes of a run; to be called before anything is computed.

  Without arguments, as the TPU's environment says (or Slurm's, or Open MPI's).

  Args:
    coordinator_address: host and port of process 0, the same everywhere.
    num_processes: of the run.
    process_id: this one, from 0.

  Raises:
    UserError: some arguments are given and others are not, they cannot be, or
      none are given and the environment does not say.
    RuntimeError: the other processes did not come.
  """
  given = (coordinator_address, num_processes, process_id)
  if None in given and given != (None, None, None):
    raise errors.UserError(
      "--coordinator_address, --num_processes and --process_id belong "
      "together: give all three, or --multi_host to take them from the TPU's "
      "environment."
    )
  if coordinator_address is not None:
    _check(coordinator_address, num_processes, process_id)
  # What the processes' CPUs speak with; TPUs have their own.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would take SIGTERM for itself, the second one too: see training/loop.py.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      cluster_detection_method="deactivate" if coordinator_address else None,
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=_END_SECONDS,
    )
  except ValueError as error:
    raise errors.UserError(
      "--multi_host: this machine's environment does not say which processes "
      "the run has, as that of a TPU slice does: give --coordinator_address, "
      "--num_processes and --process_id."
    ) from error


def _check(
  coordinator_address: str, num_processes: int, process_id: int
) -> None:
  host, _, port = coordinator_address.rpartition(":")
  if not host or not port.isdecimal():
    raise errors.UserError(
      f"--coordinator_address={coordinator_address} is not possible: expected "
      "the first process's host and a free port there, such as 10.0.0.2:8482."
    )
  if not 0 <= process_id < num_processes:
    raise errors.UserError(
      f"--process_id={process_id} of --num_processes={num_processes} is not "
      "possible: expected processes from 0 to one less than their number."
    )
