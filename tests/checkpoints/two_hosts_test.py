"""What one host does alone, or cannot do, does not make the other wait."""

import os
import pathlib
import socket
import subprocess
import sys

_HOST = pathlib.Path(__file__).with_name("one_of_two_hosts.py")


def test_a_host_lists_steps_alone_and_one_that_cannot_read_stops_none(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  environment = {**os.environ, "XLA_FLAGS": ""}
  hosts = [
    subprocess.Popen(
      [sys.executable, _HOST, str(port), str(index), str(tmp_path)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for index in range(2)
  ]
  try:
    said = [host.communicate(timeout=240) for host in hosts]
  finally:
    for host in hosts:
      host.kill()
  assert [host.returncode for host in hosts] == [0, 0], said
  last = [out.splitlines()[-1] for out, _ in said]
  assert last == ["listed [1, 2] restored 1", "listed None restored 1"]
