"""Keeps a run on TPU VMs going until it is done, whatever is taken away."""

import dataclasses
import sys
import time
from collections.abc import Sequence

from specialize_jax.tpu import launch, tpu_vm

# `specialize train` exits so after a preemption (sysexits' "try again").
PREEMPTED = 75
# The states of a node (TPU API, Node.State) and of a queued resource
# (QueuedResourceState.State).
_READY = {"READY", "ACTIVE"}
_TAKEN_AWAY = {
  "PREEMPTED",
  "TERMINATED",
  "STOPPED",
  "HIDDEN",
  "SUSPENDED",
  "FAILED",
}
_CHANGING = {
  "CREATING",
  "STARTING",
  "RESTARTING",
  "REIMAGING",
  "REPAIRING",
  "ACCEPTED",
  "PROVISIONING",
  "WAITING_FOR_RESOURCES",
  "STOPPING",
  "DELETING",
  "SUSPENDING",
  "HIDING",
  "UNHIDING",
}
_ABSENT = "ABSENT"
_NOT_THERE = {*_TAKEN_AWAY, *_CHANGING, _ABSENT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
  """How often and how long is tried.

  Attributes:
    max_failures: tries that may fail one after the other, preemptions aside.
    max_restarts: restarts in all, preemptions included.
    first_wait_seconds: before the first restart; doubles with each of those
      that did not last `settled_seconds`.
    longest_wait_seconds: where the doubling ends.
    settled_seconds: how long a try lasts that counts as a new beginning.
    poll_seconds: from one look at a slice that is not ready to the next.
    ready_seconds: how long a slice may take to become ready; a queue of
      requests can take days.
  """

  max_failures: int = 5
  max_restarts: int = 100
  first_wait_seconds: float = 15.0
  longest_wait_seconds: float = 600.0
  settled_seconds: float = 900.0
  poll_seconds: float = 30.0
  ready_seconds: float = 7 * 24 * 3600.0


def resume_until_done(
  vm: tpu_vm.TpuVm,
  *,
  package: str,
  arguments: Sequence[str],
  patience: Patience,
) -> int:
  """Rents, installs and starts, again and again, until the run is done.

  A slice that was taken away is given back and rented anew; a connection that
  broke joins the run that went on. Where the run goes on from is the run's
  own matter: its MODEL_DIR must outlive the machines.

  Args:
    vm: the slice; may be there already.
    package: see `TpuVm.install`.
    arguments: of `specialize`.
    patience: how often and how long.

  Returns:
    0 when the run is done, else the status of the last try.

  Raises:
    UserError: gcloud is not installed, or the wheel is not there.
  """
  commands = [*vm.install(package), vm.start(arguments)]
  failures = quick_restarts = 0
  for restart in range(patience.max_restarts + 1):
    began = time.monotonic()
    status = _make_ready(vm, patience) or launch.run_all(commands)
    if status == 0:
      _say("the run is done.")
      return 0
    preempted = status == PREEMPTED or _state(vm)[0] in _NOT_THERE
    failures = 0 if preempted else failures + 1
    if failures >= patience.max_failures:
      _say(f"{failures} tries in a row failed; the last with status {status}.")
      return status
    if restart == patience.max_restarts:
      break
    settled = time.monotonic() - began >= patience.settled_seconds
    quick_restarts = 0 if settled else quick_restarts + 1
    wait = min(
      patience.first_wait_seconds * 2 ** max(quick_restarts - 1, 0),
      patience.longest_wait_seconds,
    )
    why = "was preempted" if preempted else f"ended with status {status}"
    _say(f"the run {why}; starting again in {wait:g} s.")
    time.sleep(wait)
  _say(f"not done after {patience.max_restarts} restarts.")
  return status


def _make_ready(vm: tpu_vm.TpuVm, patience: Patience) -> int:
  """Waits for the slice, renting it where it is not there; gives a status."""
  deadline = time.monotonic() + patience.ready_seconds
  last_state, rented = None, False
  while time.monotonic() < deadline:
    state, status = _state(vm)
    if state != last_state:
      _say(f"{vm.name} is {state}.")
      last_state = state
    if state in _READY:
      return 0
    if status:
      return status
    if state in _TAKEN_AWAY:
      if rented:
        return PREEMPTED  # taken away before it was used: with back-off
      status = launch.run(vm.delete())
    elif state == _ABSENT:
      if rented:
        return PREEMPTED
      status, rented = launch.run(vm.create()), True
    else:
      time.sleep(patience.poll_seconds)
    if status:
      return status
  _say(f"{vm.name} was not ready after {patience.ready_seconds:g} s.")
  return 1


def _state(vm: tpu_vm.TpuVm) -> tuple[str, int]:
  """The slice's state, and a status that is not 0 where none could be had."""
  status, state, complaint = launch.ask(vm.describe())
  if status and "not_found" in complaint.lower().replace(" ", "_"):
    return _ABSENT, 0
  if status:
    print(complaint, file=sys.stderr)
    return "UNKNOWN", status
  if state not in _READY | _TAKEN_AWAY | _CHANGING:
    _say(f"{vm.name} is in a state this program does not know, {state!r}.")
    return "UNKNOWN", 1
  return state, 0


def _say(what: str) -> None:
  print(f"specialize launch: {what}", file=sys.stderr, flush=True)
