"""Decoded outputs on disk, so that an evaluation that was killed can resume.

Next to the predictions `STEP/TASK.jsonl`, the file `STEP/TASK.outputs.jsonl`
holds the token ids of every output and the hash of its input, one row per
example. Each batch is on disk before the next is decoded (see
`decoding.resumable`). Outputs are not graded, so graders can change without
decoding again.
"""

import hashlib
import json
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
  """The outputs of a task; only the first of several processes has the file.

  Use it as a context manager.

  Attributes:
    tokens_NT: int32, one output per row, padded with 0; all 0 without output.
    done: indices of the examples that have an output.
  """

  def __init__(
    self,
    path: str | os.PathLike[str] | None,
    *,
    made_of: Mapping[str, object],
    inputs: Sequence[np.ndarray],
    max_length: int,
  ) -> None:
    """Reads the outputs of an earlier evaluation of the same checkpoint.

    Outputs of another checkpoint or of other inputs are overwritten, with a
    warning.

    Args:
      path: the file; None to keep outputs in memory only.
      made_of: everything that outputs depend on besides their inputs,
        JSON-serializable.
      inputs: the examples' encoded inputs.
      max_length: maximum length of an output in tokens.
    """
    num_examples = len(inputs)
    self.tokens_NT = np.zeros((num_examples, max_length), np.int32)
    self.done: set[int] = set()
    self._rows = None
    if path is None:
      return
    is_done_N = np.zeros(num_examples, bool)
    if jax.process_index() == 0:
      self._digests = [fingerprint([tokens]) for tokens in inputs]
      self._rows = _opened(
        pathlib.Path(path),
        {**made_of, "inputs": fingerprint(inputs)},
        self._digests,
      )
      for number, row in self._rows.read().items():
        ids = row["output_ids"]
        self.tokens_NT[number, : len(ids)] = ids
        is_done_N[number] = True
    if jax.process_count() > 1:
      # Others may not see the file, and all must skip the same batches.
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
    """Adds the token ids of some examples; they are on disk on return."""
    for number, ids in outputs.items():
      self.tokens_NT[number, : len(ids)] = ids
      self.done.add(number)
    if self._rows is not None:
      self._rows.add(
        {
          number: {
            "input_sha256": self._digests[number],
            "output_ids": [int(i) for i in ids],
          }
          for number, ids in outputs.items()
        }
      )


def fingerprint(examples: Sequence[np.ndarray]) -> str:
  """Returns a hash of a list of encoded inputs."""
  digest = hashlib.sha256()
  for tokens in examples:
    digest.update(np.asarray([len(tokens), *tokens], np.int64).tobytes())
  return digest.hexdigest()


def _opened(
  path: pathlib.Path, made_of: Mapping[str, object], digests: Sequence[str]
) -> resumable.ResumableRows:
  def belongs(number: int, row: resumable.Row) -> bool:
    return row.get("input_sha256") == digests[number] and "output_ids" in row

  arguments = {
    "made_of": made_of,
    "num_rows": len(digests),
    "belongs": belongs,
  }
  try:
    return resumable.ResumableRows(path, **arguments)
  except errors.UserError as error:
    # Those of other settings are kept: they may have taken hours.
    text = json.dumps(made_of, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    beside = path.with_name(
      f"{path.name.removesuffix('.jsonl')}.{digest}.jsonl"
    )
    logging.warning("Outputs are kept in %s: %s", beside, error)
  try:
    return resumable.ResumableRows(beside, **arguments)
  except errors.UserError as error:
    logging.warning("Evaluation starts over: %s", error)
    return resumable.ResumableRows(beside, overwrite=True, **arguments)
