"""Reads the body of a teacher's answer, and never more than it may hold.

A server that sends without end, or a megabyte of zeros in a kilobyte, must
not fill this machine's memory. So the body is read as it comes over the wire
and decompressed here, both no further than a bound.
"""

import zlib

import httpx

ENCODINGS = "gzip, deflate"
"""The value of `Accept-Encoding`: what `read` can decompress in bounds."""

# What zlib calls a stream with either header, gzip's or its own.
_EITHER_HEADER = 32 + zlib.MAX_WBITS


class UnreadableError(ValueError):
  """An answer's body is too long, or compressed as nobody asked for."""


async def read(answer: httpx.Response, longest: int) -> bytes:
  """Returns the body, decompressed.

  Args:
    answer: A response whose body was not read yet.
    longest: The most bytes that it may have, decompressed.

  Raises:
    UnreadableError: it has more, or is compressed otherwise than asked for,
      or is broken.
    httpx.TransportError: the connection broke.
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
        f"the answer goes on after {longest:,} bytes, more than the samples"
        " that were asked for can take; the rest was not read"
      )
    parts.append(part)
  if decompressor is not None and not decompressor.eof:
    raise UnreadableError(f"the answer's {encoding} is cut short")
  return b"".join(parts)
