"""Starts the devices that a command computes on, and says no more than that."""

import argparse

from specialize_jax.cli import registered_tasks


def add_flags(
  parser: argparse.ArgumentParser, *, cpu_devices: int | None = None
) -> None:
  """Adds `--cpu_devices`; None leaves the CPU one device of many threads."""
  parser.add_argument(
    "--cpu_devices",
    type=int,
    default=cpu_devices,
    metavar="N",
    help="where there is no accelerator, run over N devices of one core each "
    "(default: "
    + (f"{cpu_devices})" if cpu_devices else "one device of all cores)"),
  )


def start(flags: argparse.Namespace) -> None:
  """Starts them; to be called before anything is computed.

  Raises:
    UserError: `--cpu_devices` is not possible.
  """
  if flags.cpu_devices is not None:
    from specialize_jax.parallel import host_cpu

    host_cpu.use_cores_as_devices(flags.cpu_devices)
  # Where the TPU's compiler is installed and no TPU is, it says so at length.
  with registered_tasks.quiet_import():
    import jax

    jax.devices()
