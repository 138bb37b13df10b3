"""Checksums within JSON objects, to detect later changes.

A disk, a copy or an editor may change a digit of a result, and the file is
still JSON. So objects that later commands depend on (a teacher's records,
metrics, predictions, selections) end with a checksum of the text before it:

    {"step": 7, "accuracy": 0.5, "specialize_crc32": "1ca4a03a"}

An object without a checksum is accepted, since other programs write none. To
change a row by hand, remove its checksum, as the error message says.

  >>> line = sealed('{"step": 7, "accuracy": 0.5}')
  >>> line
  '{"step": 7, "accuracy": 0.5, "specialize_crc32": "1ca4a03a"}'
  >>> check(line, "row 1")
  >>> check(line.replace("0.5", "0.6"), "row 1")  # doctest: +ELLIPSIS
  Traceback (most recent call last):
  specialize_jax.errors.UserError: row 1 was altered after it was written ...
"""

import re
import zlib

from specialize_jax import errors

FIELD = "specialize_crc32"

_SEAL = re.compile(rf',\s*"{FIELD}"\s*:\s*"([0-9a-f]{{8}})"\s*\}}\s*\Z')


def sealed(text: str) -> str:
  """Returns the text of a JSON object with its checksum as the last field.

  Args:
    text: a non-empty object, on one line or indented.
  """
  body, end = text.rstrip()[:-1].rstrip(), text[len(text.rstrip()) :]
  indented = "\n" in body
  space, last = ("\n  ", "\n") if indented else (" ", "")
  return f'{body},{space}"{FIELD}": "{_crc32(body)}"{last}}}{end}'


def check(text: str, where: str) -> None:
  """Compares an object with its checksum, if it has one.

  Args:
    text: the text of the object.
    where: the file, and the line if it has several, for error messages.

  Raises:
    UserError: the checksum differs.
  """
  if FIELD not in text[-_LONGEST_SEAL:]:
    return
  found = _SEAL.search(text, max(0, len(text) - _LONGEST_SEAL))
  if found is None or _crc32(text[: found.start()]) != found[1]:
    raise errors.UserError(
      f"{where} was altered after it was written (its checksum differs): copy"
      f' it again from where it is whole, or remove "{FIELD}" from it if you'
      " have changed it"
    )


_LONGEST_SEAL = len(FIELD) + 40


def _crc32(text: str) -> str:
  return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
