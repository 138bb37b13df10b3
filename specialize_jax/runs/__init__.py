"""Whole runs: training, evaluation and selection, from a configuration.

`experiment.py` connects data, network, loss, optimizer and checkpoints to a
training run. `selecting.py` evaluates the checkpoints of a run, and
`choosing.py` selects one. `reports/` reads the results.
"""
