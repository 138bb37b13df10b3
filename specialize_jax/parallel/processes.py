"""Starts the processes of a multi-host run, and ends them together.

No process can continue alone, so all must end when one does. A process that
fails publishes the reason and exits without waiting for the others. A process
that is killed, or whose machine is, publishes nothing: the coordination service
on process 0 misses its heartbeats and ends the others within
`HEARTBEAT_SECONDS`, with an error that names the number of the process; `join`
has logged the host of each number.
"""

import hashlib
import itertools
import json
import os
import socket
import sys
from collections.abc import Mapping

import jax
from absl import logging
from jax._src import distributed

from specialize_jax import errors

# How long a process may miss heartbeats before it is considered dead and the
# others end with an error that names it.
HEARTBEAT_SECONDS = 60
# How long the first process waits for the last to start, which may first have
# to pull an image.
_START_SECONDS = 600
# How long a finished process waits for the others: a last evaluation or an
# asynchronous save may take longer on one host than on another.
_END_SECONDS = 300
# How long a process that failed waits for the others to fail for the same
# reason, such as a wrong flag, so that each reports it.
_TOGETHER_SECONDS = 5
# How long a process that cannot reach another waits to learn which one died.
# Longer than any heartbeat: the coordination service ends the wait.
_LONGEST_SILENCE_SECONDS = 300
# Of a value that differs, in an error.
_SHOWN_CHARACTERS = 120
_HOSTS, _FAILURES = "specialize/hosts", "specialize/failures"
_QUESTIONS, _GATHERINGS = itertools.count(), itertools.count()
# Of a value, in one message of the coordination service.
_PART_BYTES = 2**20


def join(
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
  """Joins the processes of a run; must be called before any computation.

  Without arguments, the processes are those of the environment of a TPU slice,
  Slurm or Open MPI.

  Args:
    coordinator_address: host and port of process 0, the same on all processes.
    num_processes: number of processes of the run.
    process_id: number of this process, from 0.
    heartbeat_seconds: how long a process may miss heartbeats.

  Raises:
    UserError: only some of the arguments are given, they are invalid, or none
      is given and the environment does not define the processes.
    RuntimeError: the other processes did not join in time.
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
    # What may be wrong, if it waits in vain or the service refuses it.
    print(
      f"specialize, process {process_id}: joining --num_processes="
      f"{num_processes} at {coordinator_address}, for up to"
      f" {_START_SECONDS} s",
      file=sys.stderr,
      flush=True,
    )
  # For collectives between CPUs; TPUs have their own.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # It would handle SIGTERM itself, which training/loop.py does.
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
      "--multi_host: this machine's environment does not define the processes "
      "of the run, as that of a TPU slice does: give --coordinator_address, "
      "--num_processes and --process_id."
    ) from error
  _log_hosts()


def _log_hosts() -> None:
  """Logs the host of each process number, on process 0 as warnings."""
  state = distributed.global_state
  me = f"{socket.gethostname()} (pid {os.getpid()})"
  state.client.key_value_set(
    f"{_HOSTS}/{state.process_id}", json.dumps([state.num_processes, me])
  )
  for number in range(state.num_processes):
    answer = state.client.blocking_key_value_get(
      f"{_HOSTS}/{number}", _START_SECONDS * 1000
    )
    count, host = json.loads(answer)
    if count != state.num_processes:
      raise errors.UserError(
        f"--num_processes={state.num_processes} on process {state.process_id},"
        f" and {count} on process {number}, {host}: give all the same number."
      )
    logging.log(
      logging.WARNING if state.process_id == 0 else logging.INFO,
      "Process (task) %d of this run is %s.",
      number,
      host,
    )


def meet(name: str) -> None:
  """Waits at a barrier for all processes, for as long as a start may take.

  Args:
    name: name of the barrier; each name can be used once.
  """
  state = distributed.global_state
  if state.num_processes > 1:
    state.client.wait_at_barrier(f"specialize/{name}", _START_SECONDS * 1000)


def agree(
  here: Mapping[str, object], way_out: str, *, only_shared: bool = False
) -> None:
  """Checks that all processes have the same values; all must call it.

  Processes that differ would train one model on the others' terms, or wait for
  one another for ever.

  Args:
    here: the values of this process by name, compared by their `repr`.
    way_out: what to do where they differ, as half a sentence.
    only_shared: whether a name that a process lacks is compared among those
      that have it; otherwise all must have the same names.

  Raises:
    UserError: on every process, if they differ; it has the first name that
      differs, with the values of two processes.
  """
  state = distributed.global_state
  if state.num_processes == 1:
    return
  values = {}
  for name, value in here.items():
    text = repr(value)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    values[name] = [digest, text[:_SHOWN_CHARACTERS]]
  question = f"question_{next(_QUESTIONS)}"
  state.client.key_value_set(
    f"specialize/{question}/{state.process_id:06}",
    json.dumps([socket.gethostname(), values]),
  )
  meet(question)
  answers = [
    (int(key.rpartition("/")[2]), *json.loads(answer))
    for key, answer in sorted(
      state.client.key_value_dir_get(f"specialize/{question}")
    )
  ]
  for name in sorted({name for *_, values in answers for name in values}):
    found = [
      (number, host, *values.get(name, [None, ""]))
      for number, host, values in answers
      if name in values or not only_shared
    ]
    first, _, expected, shown = found[0]
    for number, host, digest, other in found[1:]:
      if digest != expected:
        raise errors.UserError(
          f"the processes of this run differ: {name} is {shown} on process"
          f" {first} and {other} on process {number} ({host}): {way_out}"
        )


def anywhere(here: bool) -> bool:
  """Returns whether a flag is set on any process; all must call it.

  It uses the coordination service rather than a device, so processes may arrive
  at very different times.

  Args:
    here: the flag of this process.

  Returns:
    Whether the flag is set on any process.
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


def gather(here: Mapping[str, bytes]) -> dict[str, bytes]:
  """Returns the named values of all processes; all must call it.

  Of a name that several processes have, all get the value of the first of
  them. The values go through the coordination service, which keeps them until
  the next call.

  Args:
    here: the values of this process, by name; names have no slash.
  """
  state = distributed.global_state
  if state.num_processes == 1:
    return dict(here)
  client, call = state.client, next(_GATHERINGS)
  place = f"specialize/gathered_{call}"
  client.key_value_set(
    f"{place}_names/{state.process_id:06}",
    json.dumps({name: len(value) for name, value in here.items()}),
  )
  meet(f"gathered_{call}")
  if call and state.process_id == 0:  # everyone has read the last call's
    client.key_value_delete(f"specialize/gathered_{call - 1}")
    client.key_value_delete(f"specialize/gathered_{call - 1}_names")
  # Only one process sends a value: the parts of two of them, which may differ
  # in content and length, would be joined.
  senders: dict[str, tuple[int, int]] = {}
  for key, names in sorted(client.key_value_dir_get(f"{place}_names")):
    for name, size in json.loads(names).items():
      senders.setdefault(name, (int(key.rpartition("/")[2]), size))
  for name, (sender, size) in senders.items():
    if sender == state.process_id:
      for number in range(_num_parts(size)):
        begin = number * _PART_BYTES
        part = here[name][begin : begin + _PART_BYTES]
        client.key_value_set_bytes(f"{place}/{name}/{number:06}", part)
  # Part by part, since a single answer with all could be too long.
  return {
    name: b"".join(
      client.blocking_key_value_get_bytes(
        f"{place}/{name}/{number:06}", _START_SECONDS * 1000
      )
      for number in range(_num_parts(size))
    )
    for name, (_, size) in sorted(senders.items())
  }


def _num_parts(size: int) -> int:
  """Returns the number of messages of a value, at least one."""
  return max(1, -(-size // _PART_BYTES))


def leave_alone(status: int, error: BaseException) -> None:
  """Exits this process after an error, unless it is the only one of the run.

  The normal exit would wait for the other processes to finish, while they wait
  for this one in the middle of a step.

  Args:
    status: the exit status.
    error: the error; published to the others unless it was caused by one.
  """
  state = distributed.global_state
  if state.client is None or state.num_processes == 1:
    return
  try:
    reported = state.client.key_value_dir_get(_FAILURES)
    for _, reason in reported:
      _say(f"before that, {reason}")
    seconds = 0 if reported else _TOGETHER_SECONDS
    if not reported and _is_caused_by_others(error):
      seconds = _LONGEST_SILENCE_SECONDS
      _say("another process of the run has died; waiting to learn which.")
    elif not reported:
      state.client.key_value_set(
        f"{_FAILURES}/{state.process_id}",
        f"process {state.process_id} on {socket.gethostname()} failed: "
        f"{type(error).__name__}: {str(error)[:500]}",
      )
    if seconds:
      state.client.wait_at_barrier("specialize/failed", seconds * 1000)
  except jax.errors.JaxRuntimeError as waited:
    if _is_caused_by_others(error):
      _say(str(waited))
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def _is_caused_by_others(error: BaseException) -> bool:
  """Returns whether an error only reports that a process is unreachable."""
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
