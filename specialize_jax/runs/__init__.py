"""Whole runs: training, evaluating and selecting, from a configuration.

`experiment.py` wires the lower rooms into one training run; `selecting.py`
evaluates the checkpoints of a run and `choosing.py` picks one. A run writes
results that `reports/` reads.
"""
