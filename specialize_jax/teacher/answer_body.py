"""Reads the body of an HTTP response, up to a maximum size.

An endless response, or a decompression bomb, must not exhaust memory. The body
is therefore streamed and decompressed here, with a limit on both sizes.
"""

import zlib

import httpx

ENCODINGS = "gzip, deflate"
"""The value of `Accept-Encoding`: the encodings that `read` supports."""

# zlib's constant for a stream with either header, gzip's or its own.
_EITHER_HEADER = 32 + zlib.MAX_WBITS


class UnreadableError(ValueError):
  """A response's body is too long, or in an encoding that was not accepted."""


async def read(answer: httpx.Response, longest: int) -> bytes:
  """Returns the body, decompressed.

  Args:
    answer: A response whose body has not been read.
    longest: The maximum number of bytes, decompressed.

  Raises:
    UnreadableError: the body is longer, in another encoding, or corrupt.
    httpx.TransportError: the connection failed.
  """
  encoding = answer.headers.get("content-encoding", "identity").strip().lower()
  if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
    raise UnreadableError(
      f"the answer is compressed by {encoding[:40]!r}, and {ENCODINGS} was"
      " asked for"
    )
  decompressor = (
    None
    if encoding in ("identity", "")
    else zlib.decompressobj(wbits=_EITHER_HEADER)
  )
  parts, size = [], 0
  async for chunk in answer.aiter_raw():
    part = chunk
    if decompressor is not None:
      try:
        part = decompressor.decompress(chunk, longest + 1 - size)
      except zlib.error as error:
        raise UnreadableError(
          f"the answer's {encoding} is broken: {error}"
        ) from error
    size += len(part)
    if size > longest:
      raise UnreadableError(
        f"the answer goes on after {longest:,} bytes, more than the requested"
        " samples can take; the rest was not read"
      )
    parts.append(part)
  if decompressor is not None and not decompressor.eof:
    raise UnreadableError(f"the answer's {encoding} is cut short")
  return b"".join(parts)
