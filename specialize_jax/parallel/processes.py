"""The processes of one run: how they find one another, and miss one another.

None can go on alone, so all must end when one does. One that fails says why,
where the others look, and leaves without waiting for them. One that is killed,
or whose machine is, says nothing: the coordination service, which is process
0's, misses its heartbeats and ends the others within `HEARTBEAT_SECONDS`, with
an error that names its number; `join` has told which host that is.
"""

import itertools
import os
import socket
import sys

import jax
from absl import logging
from jax._src import distributed

from specialize_jax import errors

# How long a process may be silent before the others take it for dead. They
# then end too, with an error that names it, since none can go on alone.
HEARTBEAT_SECONDS = 60
# How long the first waits for the last to start: images are pulled meanwhile.
_START_SECONDS = 600
# How long one that is done waits for the others to be: a last evaluation or
# the end of an asynchronous save may take longer on one host than on another.
_END_SECONDS = 300
# How long one that failed waits for the others to fail of the same thing, such
# as a wrong flag, so that each says so itself.
_TOGETHER_SECONDS = 5
# How long one that cannot reach another waits to hear which has died. Longer
# than any heartbeat: the coordination service ends the wait.
_LONGEST_SILENCE_SECONDS = 300
_HOSTS, _FAILURES = "specialize/hosts", "specialize/failures"
_QUESTIONS = itertools.count()


def join(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
  """Joins the processes of a run; to be called before anything is computed.

  Without arguments, as the TPU's environment says (or Slurm's, or Open MPI's).

  Args:
    coordinator_address: host and port of process 0, the same everywhere.
    num_processes: of the run.
    process_id: this one, from 0.
    heartbeat_seconds: how long one may be silent.

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
  if heartbeat_seconds < 1:
    raise errors.UserError(
      f"--heartbeat_seconds={heartbeat_seconds} is not possible: expected 1 or "
      "more."
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
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=_END_SECONDS,
    )
  except ValueError as error:
    raise errors.UserError(
      "--multi_host: this machine's environment does not say which processes "
      "the run has, as that of a TPU slice does: give --coordinator_address, "
      "--num_processes and --process_id."
    ) from error
  _tell_hosts()


def _tell_hosts() -> None:
  """Writes into process 0's log which number is which host."""
  state = distributed.global_state
  me = f"{socket.gethostname()} (pid {os.getpid()})"
  state.client.key_value_set(f"{_HOSTS}/{state.process_id}", me)
  for number in range(state.num_processes):
    host = state.client.blocking_key_value_get(
      f"{_HOSTS}/{number}", _START_SECONDS * 1000
    )
    logging.log(
      logging.WARNING if state.process_id == 0 else logging.INFO,
      "Process (task) %d of this run is %s.",
      number,
      host,
    )


def meet(name: str) -> None:
  """Waits until every process has come here, as long as a start may take.

  Args:
    name: of the place; each is met at once.
  """
  state = distributed.global_state
  if state.num_processes > 1:
    state.client.wait_at_barrier(f"specialize/{name}", _START_SECONDS * 1000)


def anywhere(here: bool) -> bool:
  """Whether something is so on any process; all of them must ask.

  Through the coordination service, so that it does not matter how far apart
  they come, and no device is asked.
  """
  state = distributed.global_state
  if state.num_processes == 1:
    return here
  name = f"question_{next(_QUESTIONS)}"
  state.client.key_value_set(
    f"specialize/{name}/{state.process_id}", str(int(here))
  )
  meet(name)
  answers = state.client.key_value_dir_get(f"specialize/{name}")
  return any(answer == "1" for _, answer in answers)


def leave_alone(status: int, error: BaseException) -> None:
  """Ends this process, of several, which failed; returns if it is the only one.

  It must not wait for the others to be done, as the end of a process usually
  does: they wait for it in the middle of a step.

  Args:
    status: the exit status.
    error: why; told to the others, unless it tells of one of them.
  """
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return
  try:
    told = state.client.key_value_dir_get(_FAILURES)
    for _, reason in told:
      _say(f"before that, {reason}")
    seconds = 0 if told else _TOGETHER_SECONDS
    if not told and _is_of_others(error):
      seconds = _LONGEST_SILENCE_SECONDS
      _say("another process of the run has died; waiting to hear which.")
    elif not told:
      state.client.key_value_set(
        f"{_FAILURES}/{state.process_id}",
        f"process {state.process_id} on {socket.gethostname()} failed: "
        f"{type(error).__name__}: {str(error)[:500]}",
      )
    if seconds:
      state.client.wait_at_barrier("specialize/failed", seconds * 1000)
  except jax.errors.JaxRuntimeError as waited:
    if _is_of_others(error):
      _say(str(waited))
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _is_of_others(error: BaseException) -> bool:
  """Whether an error only says that some process cannot be heard."""
  return any(sign in str(error) for sign in ("Gloo", "CoordinationService"))


def _say(text: str) -> None:
  number = distributed.global_state.process_id
  print(f"specialize, process {number}: {text}", file=sys.stderr, flush=True)


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
