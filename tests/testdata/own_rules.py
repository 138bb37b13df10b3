"""Functions of a user's own, as `python:module.function` names them."""


def last_word(text):
  """Finds an answer."""
  return text.split()[-1] if text.split() else None


def begin_alike(said, gold):
  """Compares two answers."""
  return said[:3] == gold[:3]
