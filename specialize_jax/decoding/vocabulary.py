"""Encodes and decodes text with the vocabulary of a checkpoint.

The released T5 checkpoints include `spiece.model`, a SentencePiece model;
folders written by newer versions of `transformers` may only have
`tokenizer.json`. Ids without a spelling (padding, end of sequence, sentinels
and the padding rows of an embedding) are omitted from texts.
"""

import functools
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import sentencepiece
from etils import epath

from specialize_jax import errors
from specialize_jax.files import fast_tokenizers, reading

WORD_START = "\u2581"  # how both kinds spell a space

# T5's 32,000 pieces are followed by 100 sentinels, and an embedding is padded
# to a multiple of 128 rows.
_MAX_PADDING = 127

_PIECES, _ADDED = "spiece.model", "added_tokens.json"
_CONFIG = "tokenizer_config.json"
_T5_EXTRA_IDS = 100
_SENTINEL = re.compile(r"<extra_id_(\d{1,5})>")


class Vocabulary(Protocol):
  """A vocabulary for decoding.

  Attributes:
    num_pieces: number of ids of pieces, which any model has.
    num_tokens: number of ids with those of sentinels and added tokens.
    fingerprint: a hash that identifies the vocabulary.
  """

  num_pieces: int
  num_tokens: int
  fingerprint: str

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without EOS."""

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids to a text."""

  def piece(self, index: int) -> str:
    """Returns the spelling of an id, with U+2581 for a space, or ""."""


class SentencePiece:
  """The vocabulary of a SentencePiece `.model` file.

  T5's sentinels follow the pieces, from the last to `<extra_id_0>`.
  """

  def __init__(self, model: bytes, *, extra_ids: int = _T5_EXTRA_IDS) -> None:
    """Loads a serialized model.

    Args:
      model: the content of the file.
      extra_ids: the number of sentinels, whose ids follow those of the pieces.

    Raises:
      RuntimeError: the bytes are not a SentencePiece model.
    """
    if not model:
      raise RuntimeError("an empty file is not a SentencePiece model")
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.num_pieces = self._processor.get_piece_size()
    self._extra_ids = extra_ids
    self.num_tokens = self.num_pieces + extra_ids
    self.fingerprint = hashlib.sha256(model).hexdigest()
    self.piece = functools.cache(self._piece)

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without EOS; "<extra_id_0>" is the sentinel's id."""
    if "<extra_id_" not in text:
      return list(self._processor.encode(text))
    ids: list[int] = []
    for number, part in enumerate(_SENTINEL.split(text)):
      if number % 2 == 0:
        ids += self._processor.encode(part)
      elif int(part) < self._extra_ids:
        ids.append(self.num_pieces + self._extra_ids - 1 - int(part))
      else:
        ids += self._processor.encode(f"<extra_id_{part}>")
    return ids

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids to a text."""
    return self._processor.decode(
      [int(i) for i in ids if 0 <= i < self.num_pieces]
    )

  def _piece(self, index: int) -> str:
    silent = index >= self.num_pieces or self._processor.is_control(index)
    return "" if silent else self._processor.id_to_piece(index)


class TokenizerJson:
  """A `tokenizer.json` file, as `transformers` writes it."""

  def __init__(self, text: str, where: str | os.PathLike[str]) -> None:
    """Loads the file's text.

    Args:
      text: the content of the file.
      where: the path of the file, for error messages.

    Raises:
      UserError: the text is not a tokenizer.
    """
    self._where = where
    self._tokenizer = fast_tokenizers.load(text, where)
    self.num_pieces = self._tokenizer.get_vocab_size(with_added_tokens=False)
    self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
    added = self._tokenizer.get_added_tokens_decoder()
    ids = (*added, self.num_pieces + _T5_EXTRA_IDS - 1)
    self.num_tokens = max(ids) + 1
    self._silent = {index for index, one in added.items() if one.special}
    self._check_start()

  def _check_start(self) -> None:
    """Raises UserError if its model expects tokens before every text."""
    with fast_tokenizers.named(self._where):
      plain = self._tokenizer.encode("a", add_special_tokens=False).ids
      whole = self._tokenizer.encode("a").ids
    if whole[: len(plain)] != plain:
      before = self._tokenizer.id_to_token(whole[0])
      raise errors.UserError(
        f"{self._where} begins every text with {before}, as its model was"
        " trained, and T5's texts begin with their own tokens: encode the"
        ' texts with `transformers`, and give rows of "input_ids"'
      )

  def encode(self, text: str) -> list[int]:
    """Encodes a text, without EOS."""
    with fast_tokenizers.named(self._where):
      found = self._tokenizer.encode(text, add_special_tokens=False)
    return list(found.ids)

  def decode(self, ids: Sequence[int]) -> str:
    """Decodes ids to a text."""
    with fast_tokenizers.named(self._where):
      return self._tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=True
      )

  def piece(self, index: int) -> str:
    """Returns the spelling of an id, or ""."""
    if index in self._silent:
      return ""
    return self._tokenizer.id_to_token(index) or ""


def from_file(path: str | os.PathLike[str] | None) -> Vocabulary:
  """Loads a SentencePiece model, or a `*.json` file of `tokenizers`.

  Args:
    path: the file; None, as a checkpoint without one has it, is an error.

  Raises:
    UserError: `path` does not exist or is not a vocabulary.
  """
  if path is None:
    raise errors.UserError(
      "there is no vocabulary beside the checkpoint: give the path of the"
      " model's SentencePiece file, such as T5's spiece.model."
    )
  file = epath.Path(path)
  if not file.is_file():
    raise errors.UserError(
      f"vocabulary {path} does not exist: give the model's SentencePiece "
      "file, such as T5's spiece.model."
    )
  try:
    if file.suffix == ".json":
      return TokenizerJson(reading.read_text(file), file)
    return SentencePiece(reading.read_bytes(file), extra_ids=_extra_ids(file))
  except errors.UserError:
    raise
  except Exception as error:  # SentencePiece raises more than one type
    # Its messages name lines of its own sources.
    is_json = file.suffix == ".json"
    kind = f"a tokenizer ({error})" if is_json else "a SentencePiece model"
    raise errors.UserError(
      f"vocabulary {path} cannot be read as {kind}: give the model's"
      " SentencePiece file, such as T5's spiece.model."
    ) from error


def _extra_ids(file: epath.Path) -> int:
  """Returns the number of sentinels that a model file's config declares."""
  config = file.parent / _CONFIG
  declared = reading.read_json(config) if config.is_file() else {}
  found = declared.get("extra_ids") if isinstance(declared, dict) else None
  return found if type(found) is int and found >= 0 else _T5_EXTRA_IDS


def beside(files: Iterable[epath.Path]) -> epath.Path | None:
  """Chooses the vocabulary among the files of a checkpoint's tokenizer.

  That is the SentencePiece model, unless tokens were added to it, which only
  `tokenizer.json` has.

  Returns:
    The file; None if there is none.

  Raises:
    UserError: tokens were added, and there is no `tokenizer.json`.
  """
  found = {file.name: file for file in files}
  pieces, whole = found.get(_PIECES), found.get(fast_tokenizers.NAME)
  if (
    pieces is None or whole is not None and fast_tokenizers.added_tokens(whole)
  ):
    return whole
  if whole is None and _ADDED in found:
    words = fast_tokenizers.added_tokens(found[_ADDED])
    if words:
      raise errors.UserError(
        f"{os.fspath(found[_ADDED])} adds {', '.join(map(repr, words[:3]))} to"
        f" the pieces of {_PIECES}: expected a {fast_tokenizers.NAME}, which"
        " has both, as AutoTokenizer.from_pretrained(FOLDER)"
        ".save_pretrained(FOLDER) writes it"
      )
  return pieces


def check_size(
  vocabulary: Vocabulary, vocab_size: int, path: object, *, own: bool = False
) -> None:
  """Raises UserError if a vocabulary cannot belong to a model.

  The embedding must have a row for every piece. Beyond them, it has sentinels
  and added tokens, and padding to a multiple of 128.

  Args:
    vocabulary: the vocabulary.
    vocab_size: number of rows of the model's embedding.
    path: the name of the vocabulary in the error message.
    own: whether the run that trained the model kept it: the model then may
      have any number of further rows.
  """
  # T5's rows stay where a vocabulary declares fewer sentinels.
  num_tokens = max(vocabulary.num_tokens, vocabulary.num_pieces + _T5_EXTRA_IDS)
  padding = vocab_size - num_tokens
  if vocab_size < vocabulary.num_pieces or not (own or padding <= _MAX_PADDING):
    raise errors.UserError(
      f"vocabulary {path} has {vocabulary.num_pieces:,} pieces, and the model "
      f"has {vocab_size:,}, which must be as many or at most "
      f"{num_tokens - vocabulary.num_pieces + _MAX_PADDING} more:"
      " give the vocabulary that the model was trained with."
    )
