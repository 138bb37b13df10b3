"""The protocol of a student's tokenizer, and its SentencePiece adapter.

`hugging_face` has the adapter for Hugging Face's fast tokenizers.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import sentencepiece

from specialize_jax import errors
from specialize_jax.files import paths, reading

WORD_START = "\u2581"  # how SentencePiece writes a space
_PROBES = ("a b", "a  b", " a b", "a b ", "a\nb", "a\n\nb", "a\tb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """A text in the student's tokens.

  Attributes:
    ids: One id per token, without an end-of-sequence token.
    pieces: The tokens as the vocabulary writes them ("<unk>" if unknown).
    spans: The (start, end) bytes of the UTF-8 text that each token covers. The
      spans tile the text in order, except for text that the student drops at
      its end (such as white space). A token that covers no bytes has an empty
      span: a leading word start, or all but the last token of a character that
      normalization expands.
    characters_lost: The number of characters, not counting white space, that
      the pieces do not spell: unknown, or removed or rewritten by
      normalization.
  """

  ids: tuple[int, ...]
  pieces: tuple[str, ...]
  spans: tuple[tuple[int, int], ...]
  characters_lost: int


class Student(Protocol):
  """The methods of a student's tokenizer that alignment calls.

  Attributes:
    vocab_size: One more than the largest id.
    unknown_id: The id of the unknown token, which is never a target; -1 if
      there is none.
    fingerprint: A digest that identifies the vocabulary.
    keeps_white_space: Whether the tokens of a text always spell it byte for
      byte. If not, texts that differ in white space may have the same tokens.
  """

  vocab_size: int
  unknown_id: int
  fingerprint: str
  keeps_white_space: bool

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""

  def encode_with_spans(self, text: str) -> Encoding:
    """Encodes a text, and returns the bytes that each token covers."""

  def id_to_piece(self, index: int) -> str:
    """Returns the token of an id as the vocabulary writes it."""

  def token_bytes(self, index: int) -> bytes | None:
    """Returns the bytes that a token adds to a text.

    For example b" sold" for "\u2581sold"; None for the unknown token and for
    tokens that are not text.
    """


class SentencePieceStudent:
  """A SentencePiece model, as T5 uses it: a `Student`."""

  def __init__(self, model: bytes) -> None:
    """Loads a serialized model; `from_file` has clearer errors.

    Raises:
      RuntimeError: `model` is not a SentencePiece model.
    """
    if not model:
      raise RuntimeError("an empty file is no SentencePiece model")
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.fingerprint = hashlib.sha256(model).hexdigest()
    self.unknown_id = self._processor.unk_id()
    self.vocab_size = self._processor.get_piece_size()
    self.keeps_white_space = keeps_white_space(self)

  @classmethod
  def from_file(cls, path: str | os.PathLike[str]) -> "SentencePieceStudent":
    """Loads a `.model` file.

    Raises:
      UserError: `path` does not exist or is not a SentencePiece model.
    """
    file = paths.to_epath(path)
    if not file.is_file():
      raise errors.UserError(
        f"vocabulary {path} does not exist; give the student's SentencePiece"
        " model, such as T5's spiece.model"
      )
    try:
      return cls(reading.read_description(file))
    except RuntimeError as error:
      raise errors.UserError(
        f"vocabulary {path} is no SentencePiece model; give the student's"
        " own, such as T5's spiece.model"
      ) from error

  def encode(self, text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns the ids and pieces of a text, without end of sequence."""
    ids = self.encode_ids(text)
    return ids, tuple(map(self.id_to_piece, ids))

  def encode_ids(self, text: str) -> tuple[int, ...]:
    """Returns the ids of a text, without end of sequence."""
    return tuple(self._processor.encode(text))

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without end of sequence."""
    return self._processor.encode(list(texts))

  def normalize(self, text: str) -> str:
    """Returns the normalized text, with spaces written as word starts."""
    return self._processor.normalize(text)

  def encode_with_spans(self, text: str) -> Encoding:
    """Encodes a text, and returns the bytes that each token covers."""
    tokens = self._processor.encode(text, return_type="proto").pieces
    ids = tuple(token.id for token in tokens)
    surfaces = [token.surface for token in tokens]
    ends = [token.end for token in tokens]
    return Encoding(
      ids=ids,
      pieces=tuple(self.id_to_piece(index) for index in ids),
      spans=tuple(zip([0, *ends[:-1]], ends, strict=True)) if ends else (),
      characters_lost=characters_lost(
        text,
        surfaces,
        [self._spelled(t.id, t.piece, t.surface) for t in tokens],
      ),
    )

  def piece_id(self, piece: str) -> int | None:
    """Returns a piece's id; None if it is unknown, unused or a control."""
    index = self._processor.piece_to_id(piece)
    if index == self.unknown_id or self._processor.is_control(index):
      return None
    return None if self._processor.is_unused(index) else index

  def id_to_piece(self, index: int) -> str:
    """Returns the piece of an id."""
    return self._processor.id_to_piece(index)

  def token_bytes(self, index: int) -> bytes | None:
    """Returns the bytes that a token adds to a text.

    For example b" sold" for "\u2581sold"; None for the unknown piece, controls
    and unused pieces.
    """
    processor = self._processor
    if not 0 <= index < self.vocab_size:
      return None  # such as T5's sentinels, which are above the pieces
    if processor.is_byte(index):
      return bytes([int(processor.id_to_piece(index)[3:5], 16)])
    if processor.is_unknown(index) or processor.is_control(index):
      return None
    if processor.is_unused(index):
      return None
    return processor.id_to_piece(index).replace(WORD_START, " ").encode("utf-8")

  def _spelled(self, index: int, piece: str, surface: str) -> str:
    """Returns the text of a token: its piece, its byte's text, or nothing."""
    if index == self.unknown_id:
      return ""
    return surface if self._processor.is_byte(index) else piece


def characters_lost(text: str, surfaces: list[str], spelled: list[str]) -> int:
  """Counts non-space characters that the text's tokens do not spell.

  Args:
    text: The whole text.
    surfaces: The part of the text that each token covers.
    spelled: The text of each token; "" for the unknown piece.
  """
  lost = 0
  for surface, piece in zip(surfaces, spelled, strict=True):
    remaining = list(piece.replace(WORD_START, ""))
    for character in surface:
      if character in remaining:
        remaining.remove(character)
      elif not character.isspace():
        lost += 1
  covered = sum(_num_visible(surface) for surface in surfaces)
  return lost + _num_visible(text) - covered


def _num_visible(text: str) -> int:
  return sum(not character.isspace() for character in text)


def keeps_white_space(student: Student) -> bool:
  """Returns whether the tokens of a text spell it byte for byte.

  The answer is found by encoding a few texts that differ in white space,
  leaving out those that contain the unknown token.
  """
  kept = []
  for text, ids in zip(_PROBES, student.encode_many(_PROBES), strict=True):
    if student.unknown_id not in ids:
      spellings = [student.token_bytes(index) for index in ids]
      kept.append(exact_spans(text.encode("utf-8"), spellings) is not None)
  return bool(kept) and all(kept)


def exact_spans(
  encoded: bytes, spellings: Sequence[bytes | None]
) -> list[tuple[int, int]] | None:
  """Returns each token's (start, end) bytes, if the tokens spell the text.

  A space that the tokenizer adds before the text is part of no span.

  Args:
    encoded: The text in UTF-8.
    spellings: The bytes that each token adds; None if unknown.

  Returns:
    The spans, or None if the tokens do not spell the text.
  """
  if any(spelling is None for spelling in spellings):
    return None
  spelled = b"".join(spellings)
  added = int(spelled == b" " + encoded)
  if not added and spelled != encoded:
    return None
  spans, start = [], -added
  for spelling in spellings:
    spans.append((max(0, start), start + len(spelling)))
    start += len(spelling)
  return spans
