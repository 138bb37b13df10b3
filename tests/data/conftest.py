import pytest
from testdata import tiny_world

from specialize_jax.data import sources


@pytest.fixture(scope="session")
def tiny_world_dir(tmp_path_factory):
  return tiny_world.build(tmp_path_factory.mktemp("tiny_world"))


@pytest.fixture
def world(tiny_world_dir):
  sources.set_data_dir(tiny_world_dir)
  yield tiny_world_dir
  sources.set_data_dir(None)
