"""The student's tokenizer: pieces, their ids and the bytes that they cover."""

import dataclasses
import functools
import hashlib
import os
import pathlib

import sentencepiece

from specialize_jax import errors

WORD_START = "\u2581"  # SentencePiece writes a space so


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


class StudentTokenizer:
  """A SentencePiece model, as T5 uses it."""

  def __init__(self, model: bytes) -> None:
    """Loads a serialised model; `from_file` says more when it is none.

    Raises:
      RuntimeError: the bytes are no SentencePiece model.
    """
    if not model:
      raise RuntimeError("an empty file is no SentencePiece model")
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.fingerprint = hashlib.sha256(model).hexdigest()
    self.unknown_id = self._processor.unk_id()
    self.vocab_size = self._processor.get_piece_size()
    self.word_ids = functools.lru_cache(maxsize=1 << 18)(self._word_ids)
    self._spaces = self._find_spaces()

  @classmethod
  def from_file(cls, path: str | os.PathLike[str]) -> "StudentTokenizer":
    """Loads a `.model` file.

    Raises:
      UserError: nothing lies at `path`, or it is no SentencePiece model.
    """
    file = pathlib.Path(path)
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
    """Gives ids and pieces, without end of sequence."""
    encoding = self.encode_with_spans(text)
    return encoding.ids, encoding.pieces

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
      characters_lost=_characters_lost(
        text,
        surfaces,
        [self._spelled(t.id, t.piece, t.surface) for t in tokens],
      ),
    )

  def piece_id(self, piece: str) -> int | None:
    """Gives a piece's id; None for no piece, a control or the unknown one."""
    index = self._processor.piece_to_id(piece)
    if index == self.unknown_id or self._processor.is_control(index):
      return None
    return None if self._processor.is_unused(index) else index

  def id_to_piece(self, index: int) -> str:
    """Gives an id's spelling in the vocabulary."""
    return self._processor.id_to_piece(index)

  def split_last_word(self, prefix: bytes) -> tuple[int, bytes]:
    """Splits off the last word, which alone decides the tokens that follow.

    Pieces never cross a space in T5's vocabulary, so the tokens of a text are
    those of its words. Where a vocabulary's pieces do, the last word is the
    whole prefix.

    Returns:
      How many bytes come before the last word and the white space that it
      follows, and the last word; b"" where white space ends the prefix.
    """
    word_start = len(prefix)
    while word_start > 0 and prefix[word_start - 1] not in self._spaces:
      word_start -= 1
    end = word_start
    while end > 0 and prefix[end - 1] in self._spaces:
      end -= 1
    return end, prefix[word_start:]

  def _word_ids(self, text: str) -> tuple[int, ...]:
    return tuple(self._processor.encode(text))

  def _find_spaces(self) -> frozenset[int]:
    """Finds the ASCII characters at which a text's tokens fall apart."""
    inner = any(
      WORD_START in self.id_to_piece(index)[1:].strip(WORD_START)
      for index in range(self.vocab_size)
    )
    apart = self._word_ids("a") + self._word_ids("b")
    return frozenset(
      ord(space)
      for space in " \t\n\r"
      if not inner
      and self._word_ids(f"a{space}b") == apart
      and self._word_ids(f"a{space} b") == apart
    )

  def _spelled(self, index: int, piece: str, surface: str) -> str:
    """Gives what a token spells: its piece, its byte's text, or nothing."""
    if index == self.unknown_id:
      return ""
    return surface if self._processor.is_byte(index) else piece


def _characters_lost(text: str, surfaces: list[str], spelled: list[str]) -> int:
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
