"""Progress of a command on standard error.

Example:
  >>> from specialize_jax.terminal import progress
  >>> with progress.Progress(3, "rows", speaks=False) as bar:
  ...   for _ in range(3):
  ...     bar.advance()
  >>> bar.done
  3
"""
