r"""Alphabets in which servers spell tokens instead of writing their text.

A tokenizer's own vocabulary does not hold text. Byte-level vocabularies (GPT-2
and what follows it) write each byte as one character, so that `Ġ` is a space,
`Ċ` a line break and `Ã©` is "é"; SentencePiece writes `▁` for a space and
`<0x0A>` for a byte. Servers that look tokens up there, instead of decoding
them, return these spellings: of all tokens, of the alternatives alone, or of
some tokens. What a token is then told by the text, or by the sampled token,
whose own entry stands among the alternatives.
"""

import re
from collections.abc import Callable, Mapping

Decode = Callable[[str], bytes | None]
"""Returns a token's bytes; None where it is not of the alphabet."""


def _byte_level_characters() -> Mapping[int, int]:
  """Returns the byte of each character of GPT-2's alphabet.

  A byte that is a visible Latin-1 character is that character; the other 68
  are the characters from U+0100 on, in order.
  """
  visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in set(visible)]
  table = {byte: byte for byte in visible}
  return table | {0x100 + n: byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_level_characters()
# A space and a line break. Others, as the `č` of a carriage return, are letters
# of living languages that a decoded token may well hold.
_WHITE_SPACE = re.compile("[\u0120\u010a]")
_SENTENCEPIECE_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"
_MARKS = re.compile(f"[\u0120\u010a{_WORD_START}]|<0x")


def byte_level(token: str) -> bytes | None:
  """Reads a token of a byte-level vocabulary; `Ġis` is " is"."""
  try:
    return bytes(_BYTE_OF[ord(character)] for character in token)
  except KeyError:
    return None


def byte_level_marked(token: str) -> bytes | None:
  """Reads a token as `byte_level` if it holds white space so written.

  For servers that spell only some tokens so: "é" beside `Ġé` is itself.
  """
  return byte_level(token) if _WHITE_SPACE.search(token) else None


def sentencepiece(token: str) -> bytes | None:
  """Reads a piece; `▁is` is " is" and `<0x0A>` is a line break."""
  match = _SENTENCEPIECE_BYTE.fullmatch(token)
  if match is not None:
    return bytes.fromhex(match[1])
  if _WORD_START not in token:
    return None
  return token.replace(_WORD_START, " ").encode("utf-8", "surrogatepass")


ALPHABETS: Mapping[str, Decode] = {
  "byte-level": byte_level,
  "byte-level, white space alone": byte_level_marked,
  "SentencePiece": sentencepiece,
}


def may_be_spelt(text: str) -> bool:
  """Whether a token, or several joined, may be of one of the alphabets.

  An ASCII token is the same in the byte-level alphabet and in text.
  """
  return not text.isascii() or "<0x" in text


def marks(text: str) -> frozenset[str]:
  """Returns what in a text speaks for such an alphabet: hardly ever text."""
  return frozenset(_MARKS.findall(text))
