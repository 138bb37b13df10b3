"""The mini world's demo and its study of the paper's five findings.

A user of the library: it imports only what an outside user could, and no
other room but `cli/` imports it.
"""
