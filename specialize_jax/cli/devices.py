"""Starts the devices that a command computes on, quietly."""

import argparse
import os
import traceback
import types

from specialize_jax import errors
from specialize_jax.cli import flag_types, registered_tasks

# `parallel.processes`, once this process has joined others: a command that
# never does need not import it.
_several: list[types.ModuleType] = []


def add_flags(
  parser: argparse.ArgumentParser, *, cpu_devices: int | None = None
) -> None:
  """Adds `--cpu_devices`; None leaves the CPU one device of many threads."""
  parser.add_argument(
    "--cpu_devices",
    type=flag_types.whole(1),
    default=cpu_devices,
    metavar="N",
    help="where there is no accelerator, run over N devices of one core each "
    "(default: "
    + (f"{cpu_devices})" if cpu_devices else "one device of all cores)"),
  )


def add_process_flags(parser: argparse.ArgumentParser) -> None:
  """Adds what makes this process one of several that run the command."""
  group = parser.add_argument_group(
    "several processes", "each runs the same command on its own machine"
  )
  group.add_argument(
    "--multi_host",
    action="store_true",
    help="join the other hosts of a TPU slice (or of Slurm)",
  )
  group.add_argument(
    "--coordinator_address",
    metavar="HOST:PORT",
    help="address of the first process, the same for all",
  )
  group.add_argument("--num_processes", type=flag_types.whole(1), metavar="N")
  group.add_argument(
    "--process_id",
    type=flag_types.whole(0),
    metavar="I",
    help="number of this process, from 0",
  )
  group.add_argument(
    "--heartbeat_seconds",
    type=flag_types.whole(1),
    default=60,
    metavar="S",
    help="timeout after which a silent process is considered dead, and the "
    "others end (default: 60)",
  )


def start(flags: argparse.Namespace) -> None:
  """Starts them; to be called before anything is computed.

  Raises:
    UserError: the flags are not possible, or `--multi_host` is missing.
  """
  if flags.cpu_devices is not None:
    from specialize_jax.parallel import host_cpu

    host_cpu.use_cores_as_devices(flags.cpu_devices)
  joins = _joins(flags)
  if joins:
    from specialize_jax.parallel import processes

    processes.join(
      coordinator_address=flags.coordinator_address,
      num_processes=flags.num_processes,
      process_id=flags.process_id,
      heartbeat_seconds=flags.heartbeat_seconds,
    )
    _several.append(processes)
  # If libtpu is installed without a TPU, JAX prints long warnings.
  with registered_tasks.quiet_import():
    import jax

    try:
      num_processes = len({device.process_index for device in jax.devices()})
    except RuntimeError as error:
      raise _without_devices(error) from error
  if num_processes > 1 and not joins:
    way_out = (
      "give --multi_host, and start the same command on all of them."
      if hasattr(flags, "multi_host")
      else "this command runs on one host, so use a slice of one (v5e:2x4)."
    )
    raise errors.UserError(
      f"this machine is one of the {num_processes} hosts of a slice: {way_out}"
    )


def _without_devices(error: RuntimeError) -> Exception:
  """Returns what to say where JAX finds no devices."""
  said = " ".join(str(error).split())
  if "initialize backend" not in said:
    return error
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if "already in use" in said or "lockfile" in said:
    return errors.PassingError(
      "another process holds this host's TPU: wait for it, or set"
      f" JAX_PLATFORMS=cpu to compute on the CPU ({said[:200]})"
    )
  where = f"JAX_PLATFORMS={platforms}" if platforms else "this host's devices"
  return errors.UserError(
    f"JAX cannot use {where}: set JAX_PLATFORMS=cpu to compute on the CPU, or"
    f" fix the cause: {said[:200]}"
  )


def leave_accelerators() -> None:
  """Computes on this host's CPUs; to be called before anything is computed.

  A TPU belongs to one process at a time: a command that only reads, ranks or
  converts a run's checkpoints would fail while the run holds the chips, or keep
  the run from getting them.
  """
  os.environ["JAX_PLATFORMS"] = "cpu"

  import jax

  jax.config.update("jax_platforms", "cpu")


def leave_others(status: int, error: BaseException) -> None:
  """Ends a process that failed, if it is one of several; else returns."""
  for processes in _several:
    if not isinstance(error, errors.UserError):
      traceback.print_exception(error)
    processes.leave_alone(status, error)


def _joins(flags: argparse.Namespace) -> bool:
  """Whether this is one of several processes; not every command can be."""
  names = ("multi_host", "coordinator_address", "num_processes", "process_id")
  given = [getattr(flags, name, None) for name in names]
  return any(value not in (None, False) for value in given)
