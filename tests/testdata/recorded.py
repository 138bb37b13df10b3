"""What PyTorch and its transformers write and compute, recorded in `recorded/`.

PyTorch is the parity oracle. Its small build is on the package index for Python
3.11 alone (setup.py says why), and the newest JAX requires a newer Python. So
what it gives is recorded: where PyTorch is installed the tests compute it and
compare it with the recording, elsewhere they take the recording.

`RECORD_TRANSFORMERS=1 pytest tests` records anew.
"""

import importlib.util
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent / "recorded"
HAS_TORCH = importlib.util.find_spec("torch") is not None
_RECORDS = os.environ.get("RECORD_TRANSFORMERS") == "1"
_TOLERANCE = 2e-5  # of float32, on another processor


def torch():
  """Returns PyTorch; skips a test that has to run it itself."""
  return pytest.importorskip("torch", reason="PyTorch has to run itself")


def arrays(
  name: str, compute: Callable[[], Mapping[str, object]]
) -> dict[str, np.ndarray]:
  """Returns named arrays that PyTorch computes.

  Args:
    name: of the recording, unique among all.
    compute: computes them; only called where PyTorch is installed.
  """
  path = FOLDER / f"{name}.npz"
  if not HAS_TORCH:
    return _read(path)
  computed = {key: np.asarray(value) for key, value in compute().items()}
  if _RECORDS:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **computed)
  recorded = _read(path)
  assert recorded.keys() == computed.keys()
  for key, value in computed.items():
    np.testing.assert_allclose(
      recorded[key], value, atol=_TOLERANCE, rtol=_TOLERANCE, err_msg=key
    )
  return computed


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  with np.load(path) as recording:
    return dict(recording)


def folder(
  name: str, write: Callable[[pathlib.Path], None], path: pathlib.Path
) -> pathlib.Path:
  """Writes a folder as transformers saves it; returns its path.

  Args:
    name: of the recording, unique among all.
    write: writes the folder; only called where PyTorch is installed.
    path: the folder, which does not exist yet.
  """
  recording = FOLDER / name
  if not HAS_TORCH:
    shutil.copytree(recording, path)
    return path
  write(path)
  if _RECORDS:
    shutil.rmtree(recording, ignore_errors=True)
    shutil.copytree(path, recording)
  assert _names(recording) == _names(path)
  return path


def _names(path: pathlib.Path) -> list[str]:
  return sorted(file.name for file in path.iterdir())
