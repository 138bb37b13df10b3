"""Arrays that are written to Orbax in parts and are never whole in memory.

A `StreamedArray` is a leaf of a state like any array, but holds only a function
that reads its parts. They are read, written and released one at a time, so that
host memory is bounded by the largest part, whatever the size of the model.
"""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from specialize_jax.checkpoints import damage

_MAX_PIECE_BYTES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamedArray:
  """An array as its parts along one axis.

  Attributes:
    shape: shape of the array.
    dtype: dtype of the array.
    read: yields the start of each part along the axis, and the part; together
      they cover the array in order.
    rows_of_piece: number of rows of every part except the last, or a divisor of
      it: 1 if layers are stacked.
    axis: the axis along which the parts are read.
    digest: the digest of the array (`damage.fingerprint`), once it is written;
      None if `axis` is not 0.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], Iterator[tuple[int, np.ndarray]]]
  rows_of_piece: int
  axis: int = 0
  digest: concurrent.futures.Future[str | None] = dataclasses.field(
    default_factory=concurrent.futures.Future, compare=False, repr=False
  )

  @property
  def size(self) -> int:
    """The number of entries."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """The size of the whole array in bytes."""
    return self.size * self.dtype.itemsize

  def whole(self) -> np.ndarray:
    """Reads the whole array."""
    whole = None
    for begin, piece in self.read():
      if piece.shape == self.shape:
        return piece
      if whole is None:
        whole = np.empty(self.shape, self.dtype)
      whole[self.at(begin, piece.shape[self.axis])] = piece
    return whole

  @property
  def rows_of_chunk(self) -> int:
    """The rows of a stored chunk, few enough to be compressed in memory."""
    row_bytes = max(1, self.nbytes // self.shape[self.axis])
    return min(self.rows_of_piece, max(1, _MAX_PIECE_BYTES // row_bytes))

  def at(self, begin: int, size: int) -> tuple[slice, ...]:
    """Returns the index of `size` rows along the axis."""
    return (slice(None),) * self.axis + (slice(begin, begin + size),)


class StreamedArrayHandler(ocp.type_handlers.NumpyHandler):
  """Writes `StreamedArray`s, which can be read like any other array."""

  async def serialize(
    self,
    values: Sequence[StreamedArray],
    infos: Sequence[ocp.type_handlers.ParamInfo],
    args: Sequence[ocp.SaveArgs] | None = None,
  ) -> Sequence[ocp.future.Future]:
    """Starts to write the arrays, one after the other."""
    del args
    return [
      ocp.future.CommitFutureAwaitingContractedSignals(
        _write_all(values, infos), name="streamed_arrays"
      )
    ]


def registry() -> ocp.type_handlers.TypeHandlerRegistry:
  """Returns Orbax's own type handlers and ours for `StreamedArray`."""
  usual = (int, float, bytes, np.number, str, np.ndarray, jax.Array)
  return ocp.type_handlers.create_type_handler_registry(
    (StreamedArray, StreamedArrayHandler()),
    *((kind, ocp.type_handlers.get_type_handler(kind)) for kind in usual),
  )


async def _write_all(
  values: Sequence[StreamedArray],
  infos: Sequence[ocp.type_handlers.ParamInfo],
) -> None:
  if jax.process_index() != 0:
    return
  try:
    for value, info in zip(values, infos, strict=True):
      value.digest.set_result(await _write(value, info))
  except BaseException as error:
    # A caller that waits for a digest fails like the save itself.
    for value in values:
      if not value.digest.done():
        value.digest.set_exception(error)
    raise


async def _write(
  value: StreamedArray, info: ocp.type_handlers.ParamInfo
) -> str | None:
  """Writes one array; returns its digest if it is read along axis 0."""
  digest = damage.Digest(value.dtype)
  row_size = value.size // max(1, value.shape[0]) if value.shape else 1
  await info.await_path_creation()
  stored = await tensorstore.open(
    tensorstore.Spec(_spec(value, info)),
    create=True,
    open=True,
    context=info.ts_context,
  )
  for begin, piece in value.read():
    size, step = piece.shape[value.axis], value.rows_of_chunk
    for row in range(0, size, step):
      part = piece[value.at(row, step)]
      at = begin + row
      if value.axis == 0:
        digest.add(at * row_size, part)
      await stored[value.at(at, part.shape[value.axis])].write(part)
  return str(digest) if value.axis == 0 else None


def _spec(
  value: StreamedArray, info: ocp.type_handlers.ParamInfo
) -> dict[str, Any]:
  """Returns Orbax's tensorstore spec of an array, with our chunks."""
  chunk = list(value.shape)
  chunk[value.axis] = value.rows_of_chunk
  return ocp.type_handlers.get_json_tspec_write(
    info,
    use_ocdbt=info.is_ocdbt_checkpoint,
    global_shape=value.shape,
    local_shape=tuple(chunk),
    dtype=value.dtype,
    process_index=jax.process_index(),
  )
