"""`train --help` lists the macros that the gin files have, unrun."""

from specialize_jax.cli import gin_macros

_FILES = {
  "run.gin": """
#   NEEDED   what cannot be guessed
from no.such import module  # never imported
include "base.gin"
NEEDED = %gin.REQUIRED
LIST = [@module.Thing(), %SIZE]
SIZE = 2
""",
  "base.gin": """
SIZE = 1  # how many
RATE = 1e-3
module.Thing:
  rate = %RATE
other.Thing.rate = %RATE
scope/module.Thing.rate = 2
""",
}


def test_macros_have_defaults_and_what_the_files_say_or_what_they_set():
  macros = gin_macros.read(["run.gin"], _FILES.get)
  assert [(m.name, m.default, m.what) for m in macros] == [
    ("NEEDED", None, "what cannot be guessed"),
    ("SIZE", "2", "how many"),
    ("RATE", "0.001", "Thing.rate, Thing.rate"),
    ("LIST", "[@module.Thing(), %SIZE]", ""),
  ]
  assert "  NEEDED = required  " in gin_macros.listing(macros)


def test_files_that_include_each_other_are_read_once():
  files = {"a": 'include "b"\nA = 1\n', "b": 'include "a"\nB = 2\n'}
  macros = gin_macros.read(["a"], files.get)
  assert [m.name for m in macros] == ["B", "A"]


def test_a_file_that_is_not_there_has_none():
  assert gin_macros.read(["no.gin"], _FILES.get) == []
