"""What a model said so far, on disk: an evaluation that is killed goes on.

Beside the predictions `STEP/TASK.jsonl` lies `STEP/TASK.outputs.jsonl`, the
token ids of every output, a row an example, each on disk before the next
batch is decoded (see `decoding.resumable`). It knows nothing of grading, so a
grade can change without the model being asked again.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Self

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from specialize_jax import errors
from specialize_jax.decoding import resumable


class KeptOutputs:
  """One task's outputs; only the first of several processes has the file.

  Use it as a context manager.

  Attributes:
    tokens_NT: int32, an output a row, 0 behind its end; 0 where none is yet.
    done: the examples that have an output.
  """

  def __init__(
    self,
    path: str | os.PathLike[str] | None,
    *,
    made_of: Mapping[str, object],
    shape: tuple[int, int],
  ) -> None:
    """Reads what an earlier evaluation of the same left behind.

    What another one left is overwritten, and that is logged: outputs are made
    again at will.

    Args:
      path: of the file; None keeps nothing.
      made_of: all that outputs depend on, JSON-able.
      shape: how many examples there are, and the longest output in tokens.
    """
    self.tokens_NT = np.zeros(shape, np.int32)
    self.done: set[int] = set()
    self._rows = None
    if path is None:
      return
    is_done_N = np.zeros(shape[0], bool)
    if jax.process_index() == 0:
      self._rows = _opened(pathlib.Path(path), made_of, shape[0])
      for number, row in self._rows.read().items():
        ids = row["output_ids"]
        self.tokens_NT[number, : len(ids)] = ids
        is_done_N[number] = True
    if jax.process_count() > 1:
      # The others may not see the file, and all must skip the same batches.
      is_done_N, self.tokens_NT = multihost_utils.broadcast_one_to_all(
        (is_done_N, self.tokens_NT)
      )
      self.tokens_NT = np.array(self.tokens_NT)
    self.done = {int(number) for number in np.flatnonzero(is_done_N)}

  def __enter__(self) -> Self:
    if self._rows is not None:
      self._rows.__enter__()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._rows is not None:
      self._rows.__exit__(*exception)

  def add(self, outputs: Mapping[int, Sequence[int]]) -> None:
    """Takes the token ids of some examples; they are on disk on return."""
    for number, ids in outputs.items():
      self.tokens_NT[number, : len(ids)] = ids
      self.done.add(number)
    if self._rows is not None:
      self._rows.add(
        {
          number: {"output_ids": [int(i) for i in ids]}
          for number, ids in outputs.items()
        }
      )


def fingerprint(examples: Sequence[np.ndarray]) -> str:
  """Tells one list of encoded inputs from another."""
  digest = hashlib.sha256()
  for tokens in examples:
    digest.update(np.asarray([len(tokens), *tokens], np.int64).tobytes())
  return digest.hexdigest()


def _opened(
  path: pathlib.Path, made_of: Mapping[str, object], num_rows: int
) -> resumable.ResumableRows:
  try:
    return resumable.ResumableRows(path, made_of=made_of, num_rows=num_rows)
  except errors.UserError as error:
    logging.warning("Evaluation begins anew: %s", error)
    return resumable.ResumableRows(
      path, made_of=made_of, num_rows=num_rows, overwrite=True
    )
