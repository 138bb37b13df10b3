"""The built-in datasets as seqio tasks and mixtures, one file per dataset.

Importing `tasks.mixtures` registers all of them, without reading any data.
"""
