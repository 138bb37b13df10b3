"""Settings that every test runs under.

Strict dtype and rank promotion turn a silent broadcast or a silent upcast
into an error, and eight CPU devices make every sharding test a real one.
"""

import os

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

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
