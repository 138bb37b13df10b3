"""Whole runs: one experiment from its configuration, and the demo of two.

`experiment.py` wires the lower rooms into a training run, `demo.py` goes the
whole way on the mini world. Both write results that `reports/` reads.
"""
