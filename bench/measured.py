"""Systems that are measured in processes of their own, asked over a pipe.

A script starts itself once a system (`started`, which adds `--system=NAME`),
and asks each process in turn, so that rounds are interleaved; the process
answers every line with one of JSON (`answer`). So no system's memory or
threads are another's.
"""

import contextlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence


class Server:
  """A process that answers questions, a line each."""

  def __init__(self, script: str, argv: Sequence[str], name: str) -> None:
    """Starts `script` as the system `name`."""
    self._process = subprocess.Popen(
      [sys.executable, script, *argv, f"--system={name}"],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
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
  script: str, argv: Sequence[str], names: Sequence[str]
) -> Iterator[Mapping[str, Server]]:
  """Gives a process a name, for as long as the block lasts."""
  servers = {name: Server(script, argv, name) for name in names}
  try:
    yield servers
  finally:
    for server in servers.values():
      server.end()


def answer(reply: Callable[[str], Mapping[str, float]]) -> int:
  """Replies to each line that is asked, until the pipe is closed."""
  for line in sys.stdin:
    print(json.dumps(reply(line.strip())), flush=True)
  return 0


def timed(run: Callable[[], object]) -> float:
  """Gives the seconds that a call takes."""
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def best_product(dtype: str = "float32") -> float:
  """Gives floating-point operations a second of a square product, in JAX.

  Args:
    dtype: of what is multiplied; sums are float32.
  """
  import jax
  import jax.numpy as jnp

  size = 2048
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


def resident_bytes() -> int:
  """What the process holds in memory now."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


def peak_bytes() -> int:
  """The most that the process has held in memory."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
