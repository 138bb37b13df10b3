"""Restarts a run on TPU VMs after preemptions and failures until it is done."""

import dataclasses
import re
import sys
import time
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.tpu import launch, tpu_vm

# Exit status of `specialize train` after a preemption (EX_TEMPFAIL).
PREEMPTED = 75
# That of a mistake in the flags, the gin files or the data.
_MISTAKE = 2
# What gcloud says where a zone has no chips left, which may change.
_NO_CAPACITY = re.compile(
  r"capacity|stockout|resource_exhausted", re.IGNORECASE
)
# The states of a node (TPU API, Node.State) and of a queued resource
# (QueuedResourceState.State).
_READY = {"READY", "ACTIVE"}
_FAILED = "FAILED"
_STOPPED = "STOPPED"  # by a person, who may want its disk
_TAKEN_AWAY = {
  "PREEMPTED",
  "TERMINATED",
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
  """Limits on restarts, and the waits between them.

  Attributes:
    max_failures: number of attempts in a row that may fail, without
      preemptions.
    max_restarts: number of restarts in all, with preemptions.
    first_wait_seconds: wait before the first restart; doubled after each
      attempt shorter than `settled_seconds`.
    longest_wait_seconds: upper limit of that wait.
    settled_seconds: duration of an attempt that resets wait and failures.
    poll_seconds: interval between queries of a slice that is not ready.
    ready_seconds: time that a slice may take to become ready; a queued request
      can take days.
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
  copied: Sequence[str] = (),
) -> int:
  """Creates the slice and starts the run, repeatedly until it is done.

  A preempted slice is deleted and created anew; after a broken connection the
  run, which has continued, is followed again. The run resumes from its own
  checkpoints: its MODEL_DIR must outlive the hosts.

  Args:
    vm: the slice; it may exist already.
    package: see `TpuVm.install`.
    arguments: the arguments of `specialize`.
    patience: limits on restarts, and the waits between them.
    copied: what the run reads of this machine, see `TpuVm.copy`.

  Returns:
    0 when the run is done, otherwise the status of the last attempt.

  Raises:
    UserError: gcloud is not installed, the wheel does not exist, or a person
      has stopped the slice.
  """
  commands = [*vm.install(package), *vm.copy(copied), vm.start(arguments)]
  try:
    return _resumed(vm, commands, patience)
  finally:
    _say(
      f"what is rented as {vm.name} is given back by `specialize launch ..."
      " --execute delete`; a run that has not ended goes on."
    )


def _resumed(
  vm: tpu_vm.TpuVm, commands: Sequence[launch.Command], patience: Patience
) -> int:
  failures = quick_restarts = 0
  for restart in range(patience.max_restarts + 1):
    began = time.monotonic()
    not_made = _make_ready(vm, patience)
    status = not_made or launch.run_all(commands)
    if status == 0:
      _say("the run is done.")
      return 0
    if status == _MISTAKE:
      _say("a mistake that another start would repeat ended the run.")
      return status
    settled = time.monotonic() - began >= patience.settled_seconds
    preempted = status == PREEMPTED or (
      not not_made and _state(vm)[0] in _NOT_THERE
    )
    failures = 0 if preempted else (0 if settled else failures) + 1
    if failures >= patience.max_failures:
      _say(f"{failures} tries in a row failed; the last with status {status}.")
      return status
    if restart == patience.max_restarts:
      break
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
  """Waits for the slice, creating it if needed; returns an exit status."""
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
      if rented and state == _FAILED:  # of quota or permission, perhaps
        _say(
          f"the request for {vm.name} has failed: `gcloud compute tpus"
          " queued-resources describe` has the reason."
        )
        return 1
      if rented:
        return PREEMPTED  # before it was used: with back-off
      status = launch.run(vm.delete())
    elif state == _ABSENT:
      if rented:
        return PREEMPTED
      status, rented = _create(vm), True
    elif state == _STOPPED:
      raise errors.UserError(
        f"{vm.name} was stopped, and is not deleted with its disk: start it, or"
        " delete it (`specialize launch ... delete`), and run this again"
      )
    else:
      time.sleep(patience.poll_seconds)
    if status:
      return status
  _say(f"{vm.name} was not ready after {patience.ready_seconds:g} s.")
  return 1


def _create(vm: tpu_vm.TpuVm) -> int:
  """Creates the slice; returns `PREEMPTED` if there is no capacity for it."""
  command = vm.create()
  print(launch.as_text(command), file=sys.stderr, flush=True)
  status, said, complaint = launch.ask(command)
  for text in (said, complaint):
    if text:
      print(text, file=sys.stderr, flush=True)
  if not status:
    return 0
  may_change = _NO_CAPACITY.search(complaint) and "quota" not in (
    complaint.lower()
  )
  return PREEMPTED if may_change else status


def _state(vm: tpu_vm.TpuVm) -> tuple[str, int]:
  """Returns the slice's state and an exit status, not 0 if it is unknown."""
  status, state, complaint = launch.ask(vm.describe())
  if status and "not_found" in complaint.lower().replace(" ", "_"):
    return _ABSENT, 0
  if status:
    print(complaint, file=sys.stderr)
    return "UNKNOWN", status
  if state not in _READY | _TAKEN_AWAY | _CHANGING | {_STOPPED}:
    _say(f"{vm.name} is in a state this program does not know, {state!r}.")
    return "UNKNOWN", 1
  return state, 0


def _say(what: str) -> None:
  print(f"specialize launch: {what}", file=sys.stderr, flush=True)
