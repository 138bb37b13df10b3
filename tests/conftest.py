"""Settings that every test runs under.

Strict dtype and rank promotion turn a silent broadcast or a silent upcast
into an error, and eight CPU devices make every sharding test a real one.
"""

import contextlib
import gc
import os
import pathlib
import sys
import tempfile

from testdata import xla_flags

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# Real data for the tests that need it; without it they are skipped.
_REAL_DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
if _REAL_DATA.is_dir():
  os.environ.setdefault("SPECIALIZE_DATA", str(_REAL_DATA))
os.environ["XLA_FLAGS"] = xla_flags.joined(
  os.environ.get("XLA_FLAGS"), num_devices=8
)

# The tests, both workers and the processes that they start compile many of the
# same programs. The first process makes the directory of what is compiled, and
# the others inherit its name.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _COMPILED = tempfile.TemporaryDirectory(prefix="compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Nor are the project's own sources compiled again by each process.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import hypothesis  # noqa: E402
import jax  # noqa: E402  (after the environment it reads)
import pytest  # noqa: E402
from jax._src import compilation_cache  # noqa: E402

# Programs for TPUs that are not there can be written to it, but not read back.
compilation_cache._UNSUPPORTED_RUNTIMES.add("compile_only_runtime")

# How long an example takes is the machine's doing, and no law of the code.
hypothesis.settings.register_profile("any_machine", deadline=None)
hypothesis.settings.load_profile("any_machine")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# The files that take longest. They are the first to be handed out, so that the
# workers end at one time and none is left alone with one of them.
_LONGEST = (
  "study/demo_test.py",
  "checkpoints/t5x_bucket_test.py",
  "cli/bad_input_test.py",
  "tasks/teacher_tasks_test.py",
  "runs/selecting_test.py",
  "cli/own_domain_test.py",
  "training/joined_test.py",
  "training/loop_test.py",
  "training/step_test.py",
  "cli/train_test.py",
  "runs/experiment_test.py",
  "training/faults_test.py",
  "tpu/train_step_test.py",
  "t5/network_test.py",
  "decoding/beam_test.py",
  "decoding/generator_test.py",
  "checkpoints/t5x_export_test.py",
  "losses/inputs_test.py",
)


def pytest_collection_modifyitems(items):
  """Moves the longest files to the front."""
  rank = {f"tests/{name}": place for place, name in enumerate(_LONGEST)}

  def place(item):
    return rank.get(item.nodeid.partition("::")[0], len(rank))

  items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
  """Leaves what the tests import out of every garbage collection.

  It is most of what there is to look through, and none of it is garbage. To
  look while it is imported takes a third of that time. Afterwards collections
  are far rarer than Python's own: tracing makes many objects and little
  garbage, and to look for it takes one twentieth of the time of tests that
  trace.
  """
  gc.disable()
  try:
    return (yield)
  finally:
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    gc.enable()


@pytest.fixture
def forbidden():
  """A directory with what may not be read or written.

  Yields:
    A directory with `open/`, read-only, with a file `file` in it; `closed/`,
    which may not be entered; and `secret`, a file that may not be read. They
    bind root only within `as_nobody`.
  """
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    (place / "open").mkdir()
    (place / "closed").mkdir()
    (place / "open" / "file").write_text("text")
    (place / "secret").write_text("text")
    modes = {".": 0o555, "open": 0o555, "closed": 0o000, "secret": 0o000}
    for name, mode in modes.items():
      (place / name).chmod(mode)
    try:
      yield place
    finally:
      for name in modes:
        (place / name).chmod(0o755)


@pytest.fixture
def as_nobody():
  """A context in which the test is a user without root's rights."""

  @contextlib.contextmanager
  def entered():
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    try:
      yield
    finally:
      os.seteuid(user)

  return entered


@pytest.fixture(scope="module")
def tiny_world_dir(tmp_path_factory):
  """A tiny world of the module's own, as a data directory."""
  from testdata import tiny_world

  return tiny_world.build(tmp_path_factory.mktemp("tiny_world"))


@pytest.fixture(scope="module")
def teacher_dir(tiny_world_dir):
  """The module's tiny world with its prepared teacher data, in use."""
  from testdata import tiny_world

  from specialize_jax.data import sources

  tiny_world.prepare_teacher(tiny_world_dir)
  sources.set_data_dir(tiny_world_dir)
  yield tiny_world_dir
  sources.set_data_dir(None)


@pytest.fixture
def world(tiny_world_dir):
  """The module's tiny world, set as the data directory during a test."""
  from specialize_jax.data import sources

  sources.set_data_dir(tiny_world_dir)
  yield tiny_world_dir
  sources.set_data_dir(None)


@pytest.fixture(autouse=True, scope="session")
def _compiled_once():
  """Equal steps of all tests of a process are one."""
  from testdata import compiled_once

  with compiled_once.patched():
    yield


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
  """A finished run of six steps, with checkpoints 2, 4 and 6.

  It is trained once a session: a test that writes to its directory copies it.

  Returns:
    The `Experiment`, whose directory is called `model`, and its last state.
  """
  from testdata import tiny_demo, tiny_world

  from specialize_jax.data import sources
  from specialize_jax.runs import experiment
  from specialize_jax.training import loop
  from tasks import mixtures  # noqa: F401  (registers every task)

  directory = tmp_path_factory.mktemp("trained_run")
  world = tiny_world.build(directory / "world")
  run = tiny_demo.run(
    directory / "model",
    loop=loop.LoopConfig(
      num_steps=6, log_every=1, eval_every=2, checkpoint_every=2
    ),
  )
  # A module may have set a data directory of its own, which returns here.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sources, "_chosen", {"path": str(world)})
    state = experiment.train(run, config_text="A = 1")
  return run, state


@pytest.fixture(scope="session")
def bucket_environment():
  """The environment of the clients of an empty bucket on this machine."""
  pytest.importorskip("gcp_storage_emulator")
  from testdata import bucket_server

  with bucket_server.running() as environment:
    yield environment


@pytest.fixture(scope="module")
def bucket(bucket_environment, tmp_path_factory):
  """A bucket as a path, which this process's clients reach."""
  with pytest.MonkeyPatch.context() as patch:
    for name, value in bucket_environment.items():
      patch.setenv(name, value)
    patch.setenv("HOME", os.fspath(tmp_path_factory.mktemp("home")))
    yield "gs://bucket"


@pytest.fixture(autouse=True, scope="module")
def _data_directories_end_with_their_module():
  """Forgets the directories that a command was given, as its process would.

  Else the tests of real data that follow would find none, and be skipped.
  """
  yield
  sources = sys.modules.get("specialize_jax.data.sources")
  if sources is not None:
    sources.set_data_dir(None)
  seqio = sys.modules.get("seqio")
  if seqio is not None:
    seqio.set_tfds_data_dir_override(None)
