"""A process that compiles starts again with an allocator set for it."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="the C library is not glibc"
)

_SCRIPT = """
import os, sys
from specialize_jax.cli import allocator
print("start", flush=True)
allocator.restart_for_compiling()
print(os.environ["GLIBC_TUNABLES"], *sys.argv[1:])
"""
_SET = "glibc.malloc.tcache_count=65535"


def printed(given):
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
  done = subprocess.run(
    [sys.executable, "-c", _SCRIPT, "--name=a b", "*"],
    env={**environment, **given},
    capture_output=True,
    text=True,
    check=True,
  )
  return done.stdout.splitlines()


@pytest.mark.parametrize(
  ("given", "set_"),
  [
    ({}, _SET),
    ({"GLIBC_TUNABLES": ""}, _SET),
    (
      {"GLIBC_TUNABLES": "glibc.rtld.nns=4"},
      f"glibc.rtld.nns=4:{_SET}",
    ),
  ],
)
def test_it_starts_once_more_with_the_same_arguments(given, set_):
  assert printed(given) == ["start", "start", f"{set_} --name=a b *"]


def test_what_the_user_set_is_left_alone():
  given = "glibc.malloc.tcache_count=0"
  assert printed({"GLIBC_TUNABLES": given}) == [
    "start",
    f"{given} --name=a b *",
  ]
