import concurrent.futures
import contextlib
import importlib.util
import socket
import time
import types

import pytest
from jax._src.lib import _jax

from specialize_jax.parallel import processes


def _process(address, number, count):
  """The module as a process of a run has it, for a thread of this one."""
  spec = importlib.util.spec_from_file_location("a_process", processes.__file__)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  client = _jax.get_distributed_runtime_client(address, number)
  state = types.SimpleNamespace(
    client=client, process_id=number, num_processes=count
  )
  module.distributed = types.SimpleNamespace(global_state=state)
  return module


@contextlib.contextmanager
def _joined(count):
  """Processes that have a coordination service, and a thread for each."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  service = _jax.get_distributed_runtime_service(f"[::]:{port}", count)
  joined = [_process(f"localhost:{port}", n, count) for n in range(count)]
  clients = [one.distributed.global_state.client for one in joined]
  with concurrent.futures.ThreadPoolExecutor(count) as threads:
    list(threads.map(lambda client: client.connect(), clients))
    try:
      yield joined, threads
    finally:  # a client whose service is gone would end this process
      list(threads.map(lambda client: client.shutdown(), clients))
      service.shutdown()


@pytest.mark.parametrize("last", [0, 1])
def test_a_value_that_two_processes_have_is_that_of_the_first(last):
  """Of other lengths, as the states of a group of rows that both read."""
  parts = processes._PART_BYTES
  here = [
    {"both": b"0" * (2 * parts + 5), "first": b""},
    {"both": b"1" * 7, "second": b"1" * parts},
  ]
  expected = here[1] | here[0]
  with _joined(2) as (joined, threads):
    for _ in range(3):

      def gather(number):
        time.sleep(0.2 * (number == last))
        return joined[number].gather(here[number])

      assert list(threads.map(gather, range(2))) == [expected] * 2
    # Of all calls only the last one's values are kept.
    client = joined[0].distributed.global_state.client
    for call in range(2):
      for kept in (f"gathered_{call}", f"gathered_{call}_names"):
        assert not client.key_value_dir_get_bytes(f"specialize/{kept}")
