"""The benchmarks are scripts: their own directory comes first on the path."""

import pathlib

import pytest

BENCH = pathlib.Path(__file__).parents[2] / "bench"


@pytest.fixture(autouse=True, scope="module")
def _scripts_import_one_another():
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(BENCH)
    yield
