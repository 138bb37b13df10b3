"""Settings that every test runs under.

Strict dtype and rank promotion turn a silent broadcast or a silent upcast
into an error, and eight CPU devices make every sharding test a real one.
"""

import os
import pathlib
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# The suite compiles far more than it computes: with the optimizer off, a tiny
# train step compiles in a sixth of the time.
_FLAGS = {
  "--xla_force_host_platform_device_count": "8",
  "--xla_backend_optimization_level": "0",
  "--xla_cpu_use_fusion_emitters": "false",
}
_GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
  [_GIVEN, *(f"{k}={v}" for k, v in _FLAGS.items() if k not in _GIVEN)]
).strip()

import jax  # noqa: E402  (after the environment it reads)
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def nobodys_place():
  """A directory where the test is a user without any rights, even as root.

  Yields:
    A directory with `open/`, readable, with a file `file` in it; `closed/`,
    which may not be entered; and `secret`, a file that may not be read.
  """
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    (place / "open").mkdir()
    (place / "closed").mkdir()
    (place / "open" / "file").write_text("text")
    (place / "secret").write_text("text")
    for path, mode in (
      (place, 0o555),
      (place / "open", 0o555),
      (place / "closed", 0o000),
      (place / "secret", 0o000),
    ):
      path.chmod(mode)
    user = os.geteuid()
    if user == 0:
      os.seteuid(65534)
    try:
      yield place
    finally:
      os.seteuid(user)
      for path in (place, place / "open", place / "closed"):
        path.chmod(0o755)
