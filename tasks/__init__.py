"""Datasets, formats and mixtures, as seqio tasks: one file a dataset.

`import tasks.mixtures` registers everything and reads no file.
"""
