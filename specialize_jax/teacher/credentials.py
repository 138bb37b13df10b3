"""Keeps credentials out of records and messages.

Records are published, and messages end up in logs. A request that users saved
or gave may hold a key in any of its fields, or in an address.
"""

import re
from collections.abc import Mapping

_NAMES = re.compile(
  r"api.?key|authorization|headers?$|cookie|credential|password|passwd|secret"
  # Not those of a cache, nor the tokens of a vocabulary.
  r"|(?:^|access|private|subscription|function|functions|account|auth|master)"
  r"[ _.-]?key$"
  r"|(?:^|access|auth|bearer|refresh|session|id|hf)[ _.-]?token$",
  re.IGNORECASE,
)
# By which an object is the schema of what a model should write.
_OF_SCHEMAS = frozenset(("type", "$ref", "anyOf", "oneOf", "enum", "const"))
_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:/)?/\S*\s*", re.IGNORECASE)
_QUERY = re.compile("[?#]")
_PORT = re.compile(r"[^/@:]*:\d*(?:/|$)")


def is_credential(name: object, value: object) -> bool:
  """Returns whether a field holds a credential, by its name."""
  if not _NAMES.search(str(name)) or isinstance(value, bool | int | float):
    return False
  return bool(value) and not (
    isinstance(value, Mapping) and _OF_SCHEMAS & value.keys()
  )


def without(value: object) -> object:
  """Returns a JSON value without fields and parts of addresses that hold keys.

  Args:
    value: a parsed value, nested less deeply than Python's recursion limit.

  Example:
    >>> without({"top_k": 1, "extra": [{"api_key": "sk-1"}]})
    {'top_k': 1, 'extra': [{}]}
    >>> without("https://host/v1?key=AIza")
    'https://host/v1'
  """
  if isinstance(value, Mapping):
    return {
      name: without(one)
      for name, one in value.items()
      if not is_credential(name, one)
    }
  if isinstance(value, list):
    return [without(one) for one in value]
  if isinstance(value, str) and _ADDRESS.fullmatch(value):
    return address(value)
  return value


def address(url: str) -> str:
  """Returns an address without user, password, query and fragment.

  Example:
    >>> address("https://me:pw@host:8000/v1?subscription-key=1")
    'https://host:8000/v1'
    >>> address("localhost:8000/v1?key=1")
    'localhost:8000/v1'
  """
  scheme, separator, rest = url.partition("://")
  if not separator or re.search("[/?#]", scheme):
    scheme, separator, rest = "", "", url
  shown = _QUERY.split(rest, maxsplit=1)[0]
  # A password may hold any character, and a path an "@".
  if "/" not in shown and "@" in rest[len(shown) :]:
    rest = rest.rpartition("@")[2]
    shown = _QUERY.split(rest, maxsplit=1)[0]
  before, at, after = shown.rpartition("@")
  if at and not _PORT.match(shown) and (":" in before or "/" not in before):
    shown = after
  return f"{scheme}{separator}{shown}"


def first_name(value: object) -> str | None:
  """Returns the name of a field of a JSON value that holds a credential."""
  if isinstance(value, Mapping):
    for name, one in value.items():
      if is_credential(name, one):
        return str(name)
      found = first_name(one)
      if found is not None:
        return found
  if isinstance(value, list):
    return next(filter(None, map(first_name, value)), None)
  return None
