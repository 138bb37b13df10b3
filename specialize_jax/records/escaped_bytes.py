r"""Tokens that OpenAI's API writes as escaped bytes: `bytes:\xe2\x82`.

They are parts of characters, which are not text by themselves. A blank before
the first byte is the token's own, as of ` \xf0\x9f`, another token than
`\xf0\x9f`. The paper's released files have two backslashes.
"""

import dataclasses
import re

from specialize_jax.records import schema

ANY = re.compile(r"bytes:( ?)((?:\\{1,2}x[0-9a-fA-F]{2})+)")
"""An escaped token, or one in a text of tokens."""


def decoded(step: schema.TeacherStep) -> schema.TeacherStep:
  r"""Returns a step with the bytes of its escaped tokens.

  Bytes that the step already has are kept.

  Example: the token `bytes:\xe2\x82` has the bytes e2 82.
  """
  given = step.top_bytes or (None,) * len(step.top)
  top_bytes = tuple(
    _bytes_of(name) if known is None else known
    for (name, _), known in zip(step.top, given, strict=True)
  )
  own = step.token_bytes
  return dataclasses.replace(
    step,
    token_bytes=_bytes_of(step.token) if own is None else own,
    top_bytes=None if all(one is None for one in top_bytes) else top_bytes,
  )


def _bytes_of(token: str) -> bytes | None:
  match = ANY.fullmatch(token)
  if match is None:
    return None
  return match[1].encode() + bytes.fromhex(re.sub(r"\\+x", "", match[2]))
