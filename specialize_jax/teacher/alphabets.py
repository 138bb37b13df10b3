r"""Decodes tokens that a server returns as written in its vocabulary.

Vocabularies do not contain plain text. Byte-level vocabularies (GPT-2 and its
successors) write each byte as a character, so that `Ġ` is a space, `Ċ` a
newline and `Ã©` is "é"; SentencePiece writes `▁` for a space and `<0x0A>` for
a byte. Some servers return such strings instead of decoded tokens: for all
tokens, for the alternatives only, or for some tokens. The right decoding is
then determined by comparison with the text, or with the sampled token, which is
usually among its own alternatives.
"""

import re
from collections.abc import Callable, Mapping

from specialize_jax.align import byte_alphabet

Decode = Callable[[str], bytes | None]
"""Returns a token's bytes; None if it is not written in the alphabet."""


# A space and a newline. Others, such as the `č` of a carriage return, are
# letters that may also occur in decoded tokens.
_WHITE_SPACE = re.compile("[\u0120\u010a]")
_SENTENCEPIECE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"
_MARKS = re.compile(f"[\u0120\u010a{_WORD_START}]|<0x")


def byte_level_marked(token: str) -> bytes | None:
  """Decodes a byte-level token if it contains `Ġ` or `Ċ`.

  For servers that decode some tokens only: next to `Ġé`, "é" is decoded.
  """
  return byte_alphabet.to_bytes(token) if _WHITE_SPACE.search(token) else None


def sentencepiece(token: str) -> bytes | None:
  """Decodes a SentencePiece piece; `▁is` is " is", `<0x0A>` a newline."""
  match = _SENTENCEPIECE_BYTE.fullmatch(token)
  if match is not None:
    return bytes.fromhex(match[1])
  if _WORD_START not in token:
    return None
  return token.replace(_WORD_START, " ").encode("utf-8", "surrogatepass")


ALPHABETS: Mapping[str, Decode] = {
  "byte-level": byte_alphabet.to_bytes,
  "byte-level, white space alone": byte_level_marked,
  "SentencePiece": sentencepiece,
}


def may_be_spelt(text: str) -> bool:
  """Returns whether text may be in one of the alphabets.

  ASCII characters without white space are the same in the byte-level alphabet.

  Args:
    text: One token, or several joined.
  """
  return not text.isascii() or "<0x" in text


def marks(text: str) -> frozenset[str]:
  """Returns the characters of a text that rarely occur outside an alphabet."""
  return frozenset(_MARKS.findall(text))
