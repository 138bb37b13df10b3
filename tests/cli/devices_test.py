"""Where JAX has no devices, or those of several hosts, a command says why."""

import argparse
import types

import jax
import pytest

from specialize_jax import errors
from specialize_jax.cli import devices, eval


def start(*argv):
  """Starts the devices of a command that can be one of several processes."""
  devices.start(eval.build_parser().parse_args(list(argv)))


def fails(message):
  """Returns a `jax.devices` that raises what JAX raises."""

  def no_devices():
    raise RuntimeError(message)

  return no_devices


@pytest.mark.parametrize(
  ("platforms", "said", "kind", "expected"),
  [
    (
      "",
      "Unable to initialize backend 'tpu': ABORTED: The TPU is already in use"
      " by process with pid 4242.",
      errors.PassingError,
      "another process holds this host's TPU: wait for it, or set"
      " JAX_PLATFORMS=cpu",
    ),
    (
      "cuda",
      "Unable to initialize backend 'cuda':\nno supported devices found",
      errors.UserError,
      "JAX cannot use JAX_PLATFORMS=cuda: set JAX_PLATFORMS=cpu to compute on"
      " the CPU, or fix the cause: Unable to initialize backend 'cuda': no"
      " supported devices found",
    ),
    (
      "",
      "Unable to initialize backend 'tpu': UNAVAILABLE",
      errors.UserError,
      "JAX cannot use this host's devices",
    ),
    ("", "out of file descriptors", RuntimeError, "out of file descriptors"),
  ],
)
def test_a_machine_without_devices_is_one_sentence(
  monkeypatch, platforms, said, kind, expected
):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  monkeypatch.setattr(jax, "devices", fails(said))
  with pytest.raises(kind) as error:
    start()
  assert type(error.value) is kind
  assert str(error.value).startswith(expected)


def test_one_of_several_hosts_is_told_how_to_join_the_others(monkeypatch):
  two = [types.SimpleNamespace(process_index=index) for index in (0, 0, 1)]
  monkeypatch.setattr(jax, "devices", lambda: two)
  with pytest.raises(
    errors.UserError, match="one of the 2 hosts of a slice: give --multi_host"
  ):
    start()
  # A command of one host has no such flag.
  with pytest.raises(errors.UserError, match="use a slice of one"):
    devices.start(argparse.Namespace(cpu_devices=None))


def test_devices_of_one_host_are_used_as_they_are():
  start()
  assert jax.process_count() == 1
