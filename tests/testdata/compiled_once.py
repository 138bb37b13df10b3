"""What tests compile again and again, compiled once in a process.

A run makes its step anew, and `jax.jit` knows it again by its identity alone:
each test of a whole run would trace and compile the step of the one before. In
here equal arguments return the very function of the first call.
"""

import contextlib
import functools

import jax
import numpy as np
import pytest

from specialize_jax.training import optimizer, state, step


@contextlib.contextmanager
def patched():
  """A context in which steps, first states and optimizers are made once."""
  with pytest.MonkeyPatch.context() as patch:
    for module, name in _MADE:
      patch.setattr(module, name, _once(getattr(module, name)))
    yield


_MADE = (
  (optimizer, "build"),
  (state, "abstract"),
  (state, "creation_fn"),
  (step, "make_train_step"),
)


def _once(fn):
  """Wraps a function to return what it has returned for equal arguments."""
  made = {}

  @functools.wraps(fn)
  def wrapped(*args, **kwargs):
    named = tuple((name, _same(kwargs[name])) for name in sorted(kwargs))
    key = (*map(_same, args), named)
    if key not in made:
      # The arguments are kept, so that no other object gets their identity.
      made[key] = fn(*args, **kwargs), args
    return made[key][0]

  return wrapped


def _same(argument):
  """Returns what is equal for equal arguments: itself where it is hashable."""
  if isinstance(argument, optimizer.OptimizerConfig):
    return repr(argument)
  if isinstance(argument, optimizer.Optimizer):
    return id(argument)
  if isinstance(argument, jax.Array):
    key = np.asarray(jax.random.key_data(argument)).tobytes()
    return key, argument.sharding  # of the mesh that was entered
  if isinstance(argument, dict):
    return tuple(sorted(argument.items()))
  if isinstance(argument, state.TrainState):
    leaves, structure = jax.tree.flatten(argument)
    return structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves)
  return argument
