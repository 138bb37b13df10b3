"""`python -m specialize_jax COMMAND`: the console script, as a module."""

from specialize_jax.cli import main

main.console()
