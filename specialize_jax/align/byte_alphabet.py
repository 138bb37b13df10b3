"""The characters as which byte-level vocabularies write bytes (GPT-2's)."""

from collections.abc import Mapping


def _byte_of_character() -> dict[str, int]:
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in set(visible)]
  table = {chr(byte): byte for byte in visible}
  return table | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF: Mapping[str, int] = _byte_of_character()
"""The byte of each character of the alphabet.

A byte that is a visible Latin-1 character is that character; the other 68 are
the characters from U+0100 on, in order.
"""


def to_bytes(token: str) -> bytes | None:
  """Decodes a token; `Ġis` is b" is". None if it is not in the alphabet."""
  try:
    return bytes(BYTE_OF[character] for character in token)
  except KeyError:
    return None
