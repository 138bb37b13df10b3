"""Adapter for Hugging Face's fast tokenizers (`tokenizer.json`).

Byte-level BPE (GPT-2, Llama 3, Qwen), SentencePiece-like BPE and Unigram
(Llama 2, T5, XLM-R) and WordPiece (BERT) each have their own way of writing
tokens as strings. The adapter maps each token to the bytes that it adds to a
text.
"""

import functools
import hashlib
import json
import os
import re
import typing
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.align import byte_alphabet
from specialize_jax.align import student as student_lib
from specialize_jax.files import fast_tokenizers, paths, reading

if typing.TYPE_CHECKING:
  import tokenizers

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class HuggingFaceStudent:
  """A student with a fast tokenizer; see `Student` for its attributes."""

  def __init__(self, tokenizer: typing.Any) -> None:
    """Wraps a tokenizer. Special tokens are never added to a text.

    Args:
      tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of
        `transformers`, which wraps one as its `backend_tokenizer`.

    Raises:
      UserError: `tokenizer` is neither.
    """
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(tokenizer, "to_str"):
      raise errors.UserError(
        f"tokenizer={type(tokenizer).__name__}: expected a"
        " tokenizers.Tokenizer, or a fast tokenizer of transformers"
        " (use_fast=True); of a tiktoken file, which can be a teacher's alone,"
        " build an align.Tiktoken"
      )
    # A copy: what the caller's pads and truncates would be aligned, too.
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    self._tokenizer: tokenizers.Tokenizer = tokenizer
    self._where = "tokenizer"
    content = tokenizer.to_str()
    self.fingerprint = hashlib.sha256(content.encode()).hexdigest()
    self._alphabet = _alphabet(json.loads(content))
    names = tokenizer.get_vocab(with_added_tokens=True)
    self.vocab_size = 1 + max(names.values(), default=-1)
    self._pieces = [""] * self.vocab_size
    for piece, index in names.items():
      self._pieces[index] = piece
    added = tokenizer.get_added_tokens_decoder()
    self._special = {i for i, token in added.items() if token.special}
    # As they are written. SentencePiece's user-defined symbols, such as Gemma's
    # runs of spaces, are spelled like its other pieces.
    self._literal = (
      self._special if self._alphabet == "sentencepiece" else set(added)
    )
    self.unknown_id = _unknown_id(tokenizer, json.loads(content))
    self.keeps_white_space = student_lib.keeps_white_space(self)

  @classmethod
  def from_file(cls, path: str | os.PathLike[str]) -> "HuggingFaceStudent":
    """Loads a `tokenizer.json`.

    Args:
      path: The file, or the directory of a model that contains it.

    Raises:
      UserError: `path` does not exist or is not a tokenizer.
    """
    file = paths.to_epath(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
      raise errors.UserError(
        f"vocabulary {path} does not exist; give the student's tokenizer.json"
      )
    with fast_tokenizers.named(f"vocabulary {path}"):
      loaded = cls(fast_tokenizers.load(reading.read_text(file), file))
    loaded._where = f"vocabulary {path}"
    return loaded

  def is_special(self, index: int) -> bool:
    """Returns whether a token is a special one, which stands for no text."""
    return index in self._special

  def encode(self, text: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Returns ids and pieces, without special tokens."""
    ids = self.encode_ids(text)
    return ids, tuple(map(self.id_to_piece, ids))

  def encode_ids(self, text: str) -> tuple[int, ...]:
    """Returns ids alone, without special tokens."""
    return tuple(self._encoded(text).ids)

  def _encoded(self, text: str) -> "tokenizers.Encoding":
    with fast_tokenizers.named(self._where):
      return self._tokenizer.encode(text, add_special_tokens=False)

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of each text, without special tokens."""
    with fast_tokenizers.named(self._where):
      encoded = self._tokenizer.encode_batch(
        list(texts), add_special_tokens=False
      )
    return [found.ids for found in encoded]

  def encode_with_spans(self, text: str) -> student_lib.Encoding:
    """Encodes a text, and returns the bytes that each token covers."""
    found = self._encoded(text)
    spellings = [self.token_bytes(index) for index in found.ids]
    spans = student_lib.exact_spans(text.encode("utf-8"), spellings)
    lost = 0
    if spans is None:
      spans = _tiled_spans(text, found.offsets, spellings)
      encoded = text.encode("utf-8")
      lost = student_lib.characters_lost(
        text,
        [encoded[a:b].decode("utf-8", errors="ignore") for a, b in spans],
        [
          ""
          if index == self.unknown_id
          else (spelling or b"").decode("utf-8", errors="ignore")
          for index, spelling in zip(found.ids, spellings, strict=True)
        ],
      )
    return student_lib.Encoding(
      ids=tuple(found.ids),
      pieces=tuple(map(self.id_to_piece, found.ids)),
      spans=tuple(spans),
      characters_lost=lost,
    )

  def id_to_piece(self, index: int) -> str:
    """Returns the token of an id as the vocabulary writes it; "" if none."""
    return self._pieces[index] if 0 <= index < self.vocab_size else ""

  @functools.cache  # noqa: B019 (a student lives as long as its run)
  def token_bytes(self, index: int) -> bytes | None:
    """Returns the bytes that a token adds to a text; None if it is unknown."""
    piece = self.id_to_piece(index)
    if index == self.unknown_id or not piece:
      return None
    if index in self._literal:
      return piece.encode("utf-8")
    if self._alphabet == "bytes":
      spelt = byte_alphabet.to_bytes(piece)
      return piece.encode("utf-8") if spelt is None else spelt
    if self._alphabet == "word_piece":
      goes_on = piece.startswith("##") and len(piece) > 2
      return (piece[2:] if goes_on else f" {piece}").encode("utf-8")
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
      return bytes([int(byte[1], 16)])
    return piece.replace(student_lib.WORD_START, " ").encode("utf-8")


def _alphabet(content: dict) -> str:
  """Returns the way in which a tokenizer writes its tokens as strings."""
  if content["model"]["type"] == "WordPiece":
    return "word_piece"
  parts = json.dumps([content.get("pre_tokenizer"), content.get("decoder")])
  return "bytes" if '"ByteLevel"' in parts else "sentencepiece"


def _unknown_id(tokenizer: "tokenizers.Tokenizer", content: dict) -> int:
  """Returns the id of the unknown token; -1 for none."""
  model = content["model"]
  if model["type"] == "Unigram":
    return -1 if model.get("unk_id") is None else model["unk_id"]
  unknown = model.get("unk_token")
  index = tokenizer.token_to_id(unknown) if unknown else None
  return -1 if index is None else index


def _tiled_spans(
  text: str,
  offsets: Sequence[tuple[int, int]],
  spellings: Sequence[bytes | None],
) -> list[tuple[int, int]]:
  """Converts tokens' character offsets to byte spans that tile the text.

  Each token's span extends from its predecessor's end to its own end. A token
  that spells a single space, where the text has no space, covers no bytes.

  Args:
    text: The text.
    offsets: The (start, end) characters of each token.
    spellings: The bytes that each token adds; None if unknown.
  """
  bytes_before = [0]
  for character in text:
    bytes_before.append(bytes_before[-1] + len(character.encode("utf-8")))
  spans, end = [], 0
  for (first, last), spelling in zip(offsets, spellings, strict=True):
    start, covered = end, text[first:last]
    if spelling != b" " or not covered.strip():
      end = max(end, bytes_before[last])
    spans.append((start, end))
  return spans
