"""Runs each measured system in a process of its own, driven over a pipe.

A script starts itself once for each system (`started`, which adds
`--system=NAME`) and sends a line to each process in turn, so that rounds are
interleaved; the process answers every line with one of JSON (`answer`). So
systems share neither memory nor threads.
"""

import argparse
import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

DTYPES = ("float32", "bfloat16")
PLATFORMS = ("cpu", "gpu")


def add_platform(parser: argparse.ArgumentParser) -> None:
  """Adds `--platform`: all systems run on the CPU, or on one GPU."""
  parser.add_argument("--platform", choices=PLATFORMS, default="cpu")


def environment(platform: str) -> dict[str, str]:
  """Returns JAX's environment variables; processes share a GPU's memory."""
  return {
    "JAX_PLATFORMS": {"cpu": "cpu", "gpu": "cuda"}[platform],
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
  }


def torch_device(platform: str) -> str:
  """Returns PyTorch's name of the platform."""
  return {"cpu": "cpu", "gpu": "cuda"}[platform]


class Server:
  """A process that answers each line with a line."""

  def __init__(
    self, script: str, argv: Sequence[str], name: str, platform: str
  ) -> None:
    """Starts `script` as the system `name`."""
    self._process = subprocess.Popen(
      [sys.executable, script, *argv, f"--system={name}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, **environment(platform)},
    )

  def ask(self, question: str) -> dict[str, float]:
    """Sends a line, and reads its answer.

    Raises:
      RuntimeError: the process has ended.
    """
    self._process.stdin.write(question + "\n")
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"a measured process ended with {self._process.wait()}"
      )
    return json.loads(line)

  def end(self) -> None:
    """Closes the pipe, at which the process ends."""
    self._process.communicate()


@contextlib.contextmanager
def started(
  script: str, argv: Sequence[str], names: Sequence[str], platform: str = "cpu"
) -> Iterator[Mapping[str, Server]]:
  """Starts a process for each name, and ends them after the block."""
  servers = {name: Server(script, argv, name, platform) for name in names}
  try:
    yield servers
  finally:
    for server in servers.values():
      server.end()


def answer(reply: Callable[[str], Mapping[str, float]]) -> int:
  """Answers each line of standard input, until the pipe is closed."""
  for line in sys.stdin:
    print(json.dumps(reply(line.strip())), flush=True)
  return 0


def timed(run: Callable[[], object]) -> float:
  """Returns the seconds that a call takes."""
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def best_product(dtype: str = "float32") -> float:
  """Measures the FLOPs per second of a square matmul in JAX.

  Args:
    dtype: the dtype of the operands; sums are float32.
  """
  import jax
  import jax.numpy as jnp

  size = 2048 if jax.default_backend() == "cpu" else 8192
  square = jnp.ones((size, size), dtype)
  product = jax.jit(
    lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32)
  )
  product(square, square).block_until_ready()
  fastest = min(
    timed(lambda: product(square, square).block_until_ready())
    for _ in range(10)
  )
  return 2 * size**3 / fastest


def resident_bytes(platform: str = "cpu") -> int:
  """Returns the memory of the process, or of JAX's arrays on the GPU."""
  if platform == "gpu":
    return _gpu_statistics()["bytes_in_use"]
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


def peak_bytes(platform: str = "cpu") -> int:
  """Returns the peak of `resident_bytes`."""
  if platform == "gpu":
    return _gpu_statistics()["peak_bytes_in_use"]
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _gpu_statistics() -> Mapping[str, int]:
  import jax

  return jax.devices()[0].memory_stats()
