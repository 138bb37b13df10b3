"""XLA's flags for tests and for the processes that they start.

Both compile far more than they compute: with the optimizer off, a tiny train
step compiles in a sixth of the time, without the new emitters in half of what
remains, and as one LLVM module instead of up to 32 in two thirds of that.
Nothing here imports JAX, which reads the flags.
"""

import importlib.metadata as metadata

QUICK = {
  "--xla_backend_optimization_level": "0",
  "--xla_cpu_parallel_codegen_split_count": "1",
}
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
  QUICK["--xla_cpu_use_fusion_emitters"] = "false"  # no longer a flag there


def joined(flags=None, *, num_devices=None):
  """Returns flags as the value of XLA_FLAGS.

  Args:
    flags: those that are set already, which stay as they are; or None.
    num_devices: the number of CPU devices; None for XLA's own choice, as where
      `--cpu_devices` sets it.
  """
  ours = dict(QUICK)
  if num_devices is not None:
    ours["--xla_force_host_platform_device_count"] = str(num_devices)
  given = flags or ""
  return " ".join(
    [given, *(f"{name}={v}" for name, v in ours.items() if name not in given)]
  ).strip()
