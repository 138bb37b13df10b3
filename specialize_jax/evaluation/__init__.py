"""Accuracy with confidence intervals, and the selection of checkpoints by it.

Example:
  >>> from specialize_jax.evaluation import intervals
  >>> interval = intervals.wilson(8, 10)
  >>> round(interval.low, 3), interval.estimate, round(interval.high, 3)
  (0.49, 0.8, 0.943)
"""
