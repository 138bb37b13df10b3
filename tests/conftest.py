"""Settings that every test runs under.

Strict dtype and rank promotion turn a silent broadcast or a silent upcast
into an error, and eight CPU devices make every sharding test a real one.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
  os.environ["XLA_FLAGS"] = (
    f"{_FLAGS} --xla_force_host_platform_device_count=8".strip()
  )

import jax  # noqa: E402  (after the environment it reads)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
