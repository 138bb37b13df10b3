"""Two processes evaluate as one process does."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from testdata import xla_flags

from specialize_jax.files import reading

_SCRIPT = """
import sys
import jax

index, count, port, output_dir = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
if int(count) > 1:
  jax.distributed.initialize(
    f"localhost:{port}", num_processes=int(count), process_id=int(index)
  )
import numpy as np
from flax import linen as nn
from tests.evaluation import evaluator_test as parts
from specialize_jax.t5 import network

parts._add_task("together", ["1"] * 7)
model = network.EncoderDecoder(parts.CONFIG)
tokens = np.ones([1, 4], np.int32)
init = lambda rng: model.init(rng, tokens, tokens, deterministic=True)["params"]
mesh = jax.make_mesh(
  (4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
)
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
params = nn.meta.unbox(
  jax.jit(init, out_shardings=everywhere)(jax.random.key(0))
)
evaluate = parts._make("together", model)
values = evaluate(params, 5, output_dir=output_dir)
assert values["together/n"] == 7, values
print(sorted(values.items()))
"""


def _run(count, output_dir):
  """Evaluates in so many processes of four devices in all."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  root = pathlib.Path(__file__).parents[2]
  environment = os.environ | {
    "PYTHONPATH": str(root),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags.joined(num_devices=4 // count),
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", _SCRIPT]
      + [str(i), str(count), str(port), str(output_dir)],
      env=environment,
      cwd=root,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  outputs = [process.communicate(timeout=300) for process in processes]
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors[-3000:]
  return [out.splitlines()[-1] for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_report_what_one_reports(tmp_path):
  alone = _run(1, tmp_path / "one")
  together = _run(2, tmp_path / "two")
  assert together == alone * 2
  first, second = (
    reading.read_rows(tmp_path / name / "5" / "together.jsonl")
    for name in ("one", "two")
  )
  assert first == second
