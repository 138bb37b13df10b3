"""Vocabularies whose files are looked for only when they are read.

Registering a task must need no file, so a task names its vocabulary by a
path relative to the data directory, and seqio opens it with the first
dataset.
"""

import functools
import os

import seqio

from specialize_jax.align import student
from specialize_jax.data import sources


class LocatedSentencePieceVocabulary(seqio.SentencePieceVocabulary):
  """A SentencePiece vocabulary found under `sources.data_dir()`.

  Two of the same path and number of extra ids are equal, wherever the data
  directory lies, so tasks of a mixture agree without opening the file.

  Attributes:
    relative_path: the model file, relative to the data directory.
  """

  def __init__(self, relative_path: str, *, extra_ids: int = 0) -> None:
    """Stores the path; reads nothing.

    Args:
      relative_path: for example `tokenizers/t5_spiece.model`.
      extra_ids: sentinel ids to add at the top of the vocabulary; the
        sentinel `<extra_id_0>` is the highest id, as in T5.
    """
    self.relative_path = relative_path
    super().__init__(relative_path, extra_ids=extra_ids)

  @property
  def sentencepiece_model_file(self) -> str:
    """The file's path under the data directory as it is set now.

    Raises:
      UserError: no such file.
    """
    return sources.find(self.relative_path)

  @property
  def fingerprint(self) -> str:
    """A hash of the file, which identifies the student."""
    path = self.sentencepiece_model_file
    return _fingerprint(path, os.stat(path).st_mtime_ns)

  def _model_context(self) -> object:
    # seqio caches a vocabulary's model for good; here the data directory may
    # move between two datasets of one process (tests, the demo).
    path = os.path.abspath(self.sentencepiece_model_file)
    if path != self._sentencepiece_model_file:
      self._sentencepiece_model_file = path
      self._model = None
    return super()._model_context()

  def __getstate__(self) -> dict[str, object]:
    """Leaves out the loaded model and where it was found."""
    state = super().__getstate__()
    state["_sentencepiece_model_file"] = self.relative_path
    return state


@functools.lru_cache(maxsize=8)
def _fingerprint(path: str, written_ns: int) -> str:
  del written_ns  # differs for a file that was replaced
  return student.SentencePieceStudent.from_file(path).fingerprint


def t5() -> LocatedSentencePieceVocabulary:
  """Returns the vocabulary of T5 and FlanT5: 32,000 pieces, 100 sentinels."""
  return LocatedSentencePieceVocabulary(
    "tokenizers/t5_spiece.model", extra_ids=100
  )


def mini() -> LocatedSentencePieceVocabulary:
  """Returns the mini world's student vocabulary, with 16 sentinels."""
  return LocatedSentencePieceVocabulary("mini/student.model", extra_ids=16)
