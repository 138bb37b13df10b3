"""The student's tokenizer: pieces, their ids and the bytes that they cover.

A student is anything with the methods of `Student`; here is the adapter for
SentencePiece models, and `hugging_face` has that for fast tokenizers.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import Protocol

import sentencepiece
from etils import epath

from specialize_jax import errors

WORD_START = "\u2581"  # SentencePiece writes a space so
_PROBES = ("a b", "a  b", " a b", "a b ", "a\nb", "a\n\nb", "a\tb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
  """A text in the student's tokens.

  Attributes:
    ids: One id a token; no end of sequence.
    pieces: The token's spellings in the vocabulary ("<unk>" for none).
    spans: The bytes of the UTF-8 text that each token covers, as (start,
      end). They tile the text in order, but for what the student drops at
      its end (white space, say); a token that covers nothing (a leading word
      start, the first parts of a character that normalisation spells with
      several) has an empty span.
    characters_lost: Characters that the pieces do not spell, white space
      not counted: unknown, removed or rewritten by normalisation.
  """

  ids: tuple[int, ...]
  pieces: tuple[str, ...]
  spans: tuple[tuple[int, int], ...]
  characters_lost: int


class Student(Protocol):
  """The methods of a student's tokenizer that alignment calls.

  Attributes:
    vocab_size: one more than the largest id.
    unknown_id: the id of the unknown token, which is never taught; -1 for
      none.
    fingerprint: tells one vocabulary from another.
    keeps_white_space: whether every text is, byte for byte, what its tokens
      spell; else differences in white space may be none to the student.
  """

  vocab_size: int
  unknown_id: int
  fingerprint: str
  keeps_white_space: bool

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""

  def encode_with_spans(self, text: str) -> Encoding:
    """Encodes a text, keeping which bytes each token covers."""

  def id_to_piece(self, index: int) -> str:
    """Returns an id's spelling in the vocabulary."""

  def token_bytes(self, index: int) -> bytes | None:
    """Returns what a token adds to a text, " sold" for "\u2581sold".

    None for the unknown token and for one that is no text.
    """


class SentencePieceStudent:
  """A SentencePiece model, as T5 uses it: a `Student`."""

  def __init__(self, model: bytes) -> None:
    """Loads a serialised model; `from_file` has clearer errors.

    Raises:
      RuntimeError: the bytes are no SentencePiece model.
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
      UserError: nothing lies at `path`, or it is no SentencePiece model.
    """
    file = epath.Path(path)
    if not file.is_file():
      raise errors.UserError(
        f"vocabulary {path} does not exist; give the student's SentencePiece"
        " model, such as T5's spiece.model"
      )
    try:
      return cls(file.read_bytes())
    except RuntimeError as error:
      raise errors.UserError(
        f"vocabulary {path} is no SentencePiece model; give the student's"
        " own, such as T5's spiece.model"
      ) from error

  def encode(self, text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns ids and pieces, without end of sequence."""
    ids = self.encode_ids(text)
    return ids, tuple(map(self.id_to_piece, ids))

  def encode_ids(self, text: str) -> tuple[int, ...]:
    """Returns ids alone, without end of sequence."""
    return tuple(self._processor.encode(text))

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without end of sequence."""
    return self._processor.encode(list(texts))

  def normalize(self, text: str) -> str:
    """Returns a text as the student reads it, word starts marked."""
    return self._processor.normalize(text)

  def encode_with_spans(self, text: str) -> Encoding:
    """Encodes `text`, keeping which bytes each token covers."""
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
    """Returns a piece's id; None for no piece, a control or the unknown one."""
    index = self._processor.piece_to_id(piece)
    if index == self.unknown_id or self._processor.is_control(index):
      return None
    return None if self._processor.is_unused(index) else index

  def id_to_piece(self, index: int) -> str:
    """Returns an id's spelling in the vocabulary."""
    return self._processor.id_to_piece(index)

  def token_bytes(self, index: int) -> bytes | None:
    """Returns what a token adds to a text, " sold" for "\u2581sold".

    None for the unknown piece, controls and unused pieces.
    """
    processor = self._processor
    if processor.is_byte(index):
      return bytes([int(processor.id_to_piece(index)[3:5], 16)])
    if processor.is_unknown(index) or processor.is_control(index):
      return None
    if processor.is_unused(index):
      return None
    return processor.id_to_piece(index).replace(WORD_START, " ").encode("utf-8")

  def _spelled(self, index: int, piece: str, surface: str) -> str:
    """Returns what a token spells: its piece, its byte's text, or nothing."""
    if index == self.unknown_id:
      return ""
    return surface if self._processor.is_byte(index) else piece


def characters_lost(text: str, surfaces: list[str], spelled: list[str]) -> int:
  """Counts non-space characters whose piece does not spell them.

  Args:
    text: The text whole.
    surfaces: The text that each token covers.
    spelled: What each token spells; "" for the unknown piece.
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
  """Returns whether a text is, byte for byte, what the student's tokens spell.

  Tried on texts that differ in white space; those that the student cannot spell
  are left out.
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
  """Returns each token's bytes where the tokens spell the text, else None.

  A space that the tokenizer puts before the text is no part of it.
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
