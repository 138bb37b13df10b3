"""The mini world's demo and its study of the paper's findings.

It is a user of the library: it imports only what an outside user could, and
only `cli/` imports it.
"""
