"""Vocabularies whose files are opened on first use.

A task must be registered without reading files. Its vocabulary therefore has a
path relative to the data directory, and is opened with the first dataset.
"""

import functools
import os

import seqio

from specialize_jax.align import student
from specialize_jax.data import sources


class LocatedSentencePieceVocabulary(seqio.SentencePieceVocabulary):
  """A SentencePiece vocabulary in the data directory.

  Two vocabularies with the same relative path and number of extra ids are
  equal, so that the tasks of a mixture agree without opening the file.

  Attributes:
    relative_path: The model file, relative to `sources.data_dir()`.
  """

  def __init__(self, relative_path: str, *, extra_ids: int = 0) -> None:
    """Creates a vocabulary, without reading anything.

    Args:
      relative_path: The model file, such as `tokenizers/t5_spiece.model`.
      extra_ids: The number of sentinels to add at the end of the vocabulary;
        `<extra_id_0>` is the highest id, as in T5.
    """
    self.relative_path = relative_path
    super().__init__(relative_path, extra_ids=extra_ids)

  @property
  def sentencepiece_model_file(self) -> str:
    """The file's path in the current data directory.

    Raises:
      UserError: the file does not exist.
    """
    return sources.find(self.relative_path)

  @property
  def fingerprint(self) -> str:
    """A hash of the file, which identifies the vocabulary."""
    path = self.sentencepiece_model_file
    return _fingerprint(path, os.stat(path).st_mtime_ns)

  def _model_context(self) -> object:
    # seqio caches a vocabulary's model forever, but here the data directory can
    # change within a process (in tests and the demo).
    path = os.path.abspath(self.sentencepiece_model_file)
    if path != self._sentencepiece_model_file:
      self._sentencepiece_model_file = path
      self._model = None
    return super()._model_context()

  def __getstate__(self) -> dict[str, object]:
    """Excludes the loaded model and its path."""
    state = super().__getstate__()
    state["_sentencepiece_model_file"] = self.relative_path
    return state


@functools.lru_cache(maxsize=8)
def _fingerprint(path: str, written_ns: int) -> str:
  del written_ns  # part of the cache's key: it changes if the file is replaced
  return student.SentencePieceStudent.from_file(path).fingerprint


def t5() -> LocatedSentencePieceVocabulary:
  """Returns the vocabulary of T5 and FlanT5: 32,000 pieces, 100 sentinels."""
  return LocatedSentencePieceVocabulary(
    "tokenizers/t5_spiece.model", extra_ids=100
  )


def mini() -> LocatedSentencePieceVocabulary:
  """Returns the mini world's student vocabulary, with 16 sentinels."""
  return LocatedSentencePieceVocabulary("mini/student.model", extra_ids=16)
