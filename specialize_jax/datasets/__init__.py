"""A domain in one description, and the seqio tasks and mixtures made of it.

GSM8K with its companions, BIG-Bench-Hard and the mini world are described in
`tasks/`; a user's own domain is a YAML file (`docs/own_domain.md`), which
`files.load` reads and checks. All are registered by `registration.add`.

Example:
  >>> from specialize_jax.datasets import files, registration
  >>> tickets = files.load("tickets.yaml").dataset  # doctest: +SKIP
  >>> registration.add(tickets)  # doctest: +SKIP

The description and the file need no TensorFlow; the registration does.
"""
