"""The C library's allocator, set for a process that compiles for TPUs.

A sixth of a compilation by libtpu is spent in glibc's malloc and free, by a
profile: the lists of freed pieces that each thread keeps for itself are far
too short for it. Longer ones are no more than a setting, but one that glibc
reads when a process starts and never again, so the process starts once more.
"""

import os
import platform
import sys

_VARIABLE = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.tcache_count=65535"  # the most there can be; of 7


def restart_for_compiling() -> None:
  """Starts this process again with the setting, where it has none.

  To be called first of all: nothing but the command line and the environment
  is kept. Returns where the C library is not glibc, and where the user has
  set its allocator (`GLIBC_TUNABLES=glibc.malloc...`).
  """
  given = os.environ.get(_VARIABLE, "")
  if platform.libc_ver()[0] != "glibc" or "glibc.malloc." in given:
    return
  os.environ[_VARIABLE] = f"{given}:{_SETTING}" if given else _SETTING
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
