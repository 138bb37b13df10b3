"""Fixtures of all tests with T5X: T5X itself, and its dtype promotion."""

import importlib.util

import jax
import pytest


@pytest.fixture(autouse=True)
def t5x_arithmetic(request):
  """Lets T5X mix dtypes and ranks where our own code may not."""
  if request.node.get_closest_marker("t5x") is None:
    yield
    return
  if importlib.util.find_spec("t5x") is None:
    pytest.skip("T5X is not installed: `make test-t5x` installs it")
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    yield


@pytest.fixture(scope="session")
def t5x_models():
  """`testdata.t5x_models`, which imports T5X."""
  from testdata import t5x_models

  return t5x_models
