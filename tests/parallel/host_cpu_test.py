"""The CPU as several devices, tested in processes of their own."""

import os
import subprocess
import sys

import pytest

from specialize_jax import errors
from specialize_jax.parallel import host_cpu

_SCRIPT = """
from specialize_jax.parallel import host_cpu, mesh
host_cpu.use_cores_as_devices(3)
import jax, jax.numpy as jnp
made = mesh.make_mesh()
placed = jax.device_put(
  jnp.arange(6.0),
  jax.sharding.NamedSharding(made, jax.sharding.PartitionSpec("data")),
)
print(len(jax.devices()), made.shape["data"], jax.jit(jnp.sum)(placed))
"""


def test_the_cores_become_the_data_axis_of_a_mesh():
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment.pop("XLA_FLAGS", None)
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.split() == ["3", "3", "15.0"]


def test_zero_devices_are_refused():
  with pytest.raises(errors.UserError, match="cpu_devices is 0"):
    host_cpu.use_cores_as_devices(0)


def test_a_cpu_backend_that_is_in_use_is_not_split(monkeypatch):
  import jax

  monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
  jax.devices()
  with pytest.raises(errors.UserError, match="split into devices any more"):
    host_cpu.use_cores_as_devices(2)
