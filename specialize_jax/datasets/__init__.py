"""Descriptions of domains, and their seqio tasks and mixtures.

`tasks/` describes GSM8K with its out-of-distribution benchmarks,
BIG-Bench-Hard, and the mini world; a user's own domain is a YAML file
(`docs/own_domain.md`), which `files.load` reads and checks. `registration.add`
registers the tasks and mixtures of a description.

Example:
  >>> from specialize_jax.datasets import files, registration
  >>> tickets = files.load("tickets.yaml").dataset  # doctest: +SKIP
  >>> registration.add(tickets)  # doctest: +SKIP

Only the registration imports TensorFlow.
"""
