import pytest
from testdata import made_up_study


@pytest.fixture(scope="session")
def study(tmp_path_factory):
  """The made-up study in which all findings appear."""
  return made_up_study.collect(tmp_path_factory.mktemp("study"))
