"""The base installation can do everything but SeqIO tasks and training.

TensorFlow and what comes with it are two thirds of an installation's size, so
alignment, losses, the network, checkpoints, decoding and planning go without.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ("clu", "seqio", "tensorboard", "tensorflow", "tensorflow_datasets")
ROOMS = (
  *("align", "checkpoints", "cot", "decoding", "files", "losses"),
  *("parallel", "t5", "teacher", "tpu", "training"),
)

_IMPORT_ALL = """
import importlib, json, pkgutil, sys

for name in json.loads(sys.argv[1]):
  sys.modules[name] = None  # as if it were not installed
failed = {}
for room in json.loads(sys.argv[2]):
  package = importlib.import_module(f"specialize_jax.{room}")
  for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
    try:
      importlib.import_module(module.name)
    except ImportError as error:
      failed[module.name] = str(error)
print(json.dumps(failed))
"""

_RUN = """
import json, sys

for name in json.loads(sys.argv[1]):
  sys.modules[name] = None
from specialize_jax.cli import main
sys.exit(main.main(sys.argv[2:]))
"""


# Forks for each room, so that what most rooms import is imported once.
_IMPORT_EACH = """
import importlib, json, os, sys

def imported_by(room):
  reader, writer = os.pipe()
  pid = os.fork()
  if not pid:
    importlib.import_module(f"specialize_jax.{room}")
    with os.fdopen(writer, "w") as stream:
      stream.write(" ".join(sys.modules))
    os._exit(0)
  os.close(writer)
  with os.fdopen(reader) as stream:
    names = stream.read().split()
  if os.waitpid(pid, 0)[1]:
    sys.exit(f"{room} cannot be imported")
  return names

without_jax, with_jax = json.loads(sys.argv[1])
found = {room: imported_by(room) for room in without_jax}
import flax.linen
found |= {room: imported_by(room) for room in with_jax}
print(json.dumps(found))
"""


def _python(program, *arguments):
  return subprocess.run(
    [sys.executable, "-c", program, *arguments],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )


def test_rooms_of_the_base_installation_import_without_tensorflow():
  done = _python(_IMPORT_ALL, json.dumps(TRAIN), json.dumps(ROOMS))
  assert done.returncode == 0, done.stderr[-2000:]
  assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_score_grades_without_tensorflow(tmp_path):
  (tmp_path / "in.jsonl").write_text('{"prediction": "7", "target": "7"}\n')
  done = _python(
    _RUN,
    json.dumps(TRAIN),
    *("score", "--task=gsm8k", f"--inputs={tmp_path}/in.jsonl"),
    f"--output={tmp_path}/out.jsonl",
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert json.loads(done.stdout.splitlines()[-1])["accuracy"] == 1.0


def test_train_without_tensorflow_says_what_to_install():
  done = _python(_RUN, json.dumps(TRAIN), "train", "--gin.MODEL_DIR=/tmp/x")
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  assert "pip install 'specialize-jax[train]'" in done.stderr


_WITHOUT_JAX = ("align",)
_WITH_JAX = ("losses", "t5", "checkpoints", "decoding")


@pytest.fixture(scope="module")
def imported():
  """The modules that importing each room loads."""
  done = _python(_IMPORT_EACH, json.dumps([_WITHOUT_JAX, _WITH_JAX]))
  assert done.returncode == 0, done.stderr[-2000:]
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("room", [*_WITHOUT_JAX, *_WITH_JAX])
def test_importing_a_room_imports_nothing_heavy(imported, room):
  heavy = {"tensorflow", "seqio", "matplotlib"}
  if room in _WITHOUT_JAX:
    heavy.add("jax")
  assert f"specialize_jax.{room}" in imported[room]
  assert not set(imported[room]) & heavy
