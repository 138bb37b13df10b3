"""The files of a checkpoint's tokenizer.

`transformers` builds T5's tokenizer from `spiece.model` and the number of extra
ids in `tokenizer_config.json`, or from a `tokenizer.json`, which has both.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping

import sentencepiece
from etils import epath
from google.protobuf import message
from sentencepiece import sentencepiece_model_pb2

from specialize_jax import errors
from specialize_jax.files import fast_tokenizers, reading

SENTENCEPIECE = "spiece.model"
WHOLE = fast_tokenizers.NAME
_CONFIG = "tokenizer_config.json"
FILES = (
  SENTENCEPIECE,
  WHOLE,
  _CONFIG,
  "special_tokens_map.json",
  "added_tokens.json",
)
"""The tokenizer's files that a Hugging Face folder may have."""

UNREAD_FILES = (
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tokenizer.model",
  "sentencepiece.bpe.model",
  "spm.model",
)
"""Files of other tokenizers, such as CodeT5's, which are not read."""

_T5_EXTRA_IDS = 100
_MAX_EXTRA_IDS = 100_000
# Vocabularies are padded to a multiple of this (T5X's gin files).
ROWS_MULTIPLE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
  """A tokenizer.

  Attributes:
    where: its path, for messages.
    num_tokens: its number of ids, extra ids included.
    files: contents by file name.
  """

  where: str
  num_tokens: int
  files: Mapping[str, bytes]


def from_sentencepiece(
  path: str | os.PathLike, *, extra_ids: int = _T5_EXTRA_IDS
) -> Vocabulary:
  """Returns the tokenizer of a SentencePiece model.

  Args:
    path: the model.
    extra_ids: number of sentinels `<extra_id_0>`, ... after its pieces; the
      first has the highest id.

  Raises:
    UserError: the file does not exist or is not a SentencePiece model.
  """
  file = epath.Path(path)
  if not file.is_file():
    raise errors.UserError(
      f"vocabulary {path} does not exist: give a SentencePiece model, such as "
      "T5's spiece.model."
    )
  content = reading.read_description(file)
  processor = _processor(os.fspath(path), content)
  ids = {
    "eos_token": (processor.eos_id(), "</s>"),
    "unk_token": (processor.unk_id(), "<unk>"),
    "pad_token": (processor.pad_id(), "<pad>"),
  }
  config = {
    "tokenizer_class": "T5Tokenizer",
    **{
      name: default if index < 0 else processor.id_to_piece(index)
      for name, (index, default) in ids.items()
    },
    "extra_ids": extra_ids,
  }
  return Vocabulary(
    where=os.fspath(path),
    num_tokens=processor.get_piece_size() + extra_ids,
    files={
      SENTENCEPIECE: content,
      _CONFIG: (json.dumps(config, indent=2) + "\n").encode(),
    },
  )


def are_same(one: bytes, other: bytes) -> bool:
  """Returns whether two SentencePiece models encode and decode alike.

  They may differ in the file names that were recorded in training.

  Args:
    one: the content of a model file.
    other: the content of another.
  """
  return one == other or _agree(one, other, _without_names)


def have_same_ids(one: bytes, other: bytes) -> bool:
  """Returns whether the ids of two SentencePiece models are the same pieces.

  Args:
    one: the content of a model file.
    other: the content of another.
  """
  return one == other or _agree(
    one, other, lambda model: [piece.piece for piece in model.pieces]
  )


def is_in_whole(model: bytes, whole: epath.Path) -> bool:
  """Returns whether the ids of a SentencePiece model are those of another file.

  Args:
    model: the content of the model file.
    whole: a `tokenizer.json`.

  Raises:
    UserError: it is no tokenizer.
  """
  ids = _ids_of(whole)
  try:
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  except message.DecodeError:
    return False
  return all(
    ids.get(piece.piece) == index for index, piece in enumerate(proto.pieces)
  )


def is_whole_of(whole: epath.Path, own: epath.Path) -> bool:
  """Returns whether a `tokenizer.json` has the ids of another vocabulary.

  Args:
    whole: the `tokenizer.json`.
    own: a SentencePiece model, or another `tokenizer.json`.

  Raises:
    UserError: one of them is no tokenizer.
  """
  if own.suffix == ".json":
    return _ids_of(whole) == _ids_of(own)
  return is_in_whole(own.read_bytes(), whole)


def _ids_of(whole: epath.Path) -> dict[str, int]:
  """Returns the ids of a `tokenizer.json` by piece."""
  where = os.fspath(whole)
  text = reading.decode(reading.read_description(whole), where)
  return fast_tokenizers.load(text, where).get_vocab(with_added_tokens=True)


def _agree(
  one: bytes,
  other: bytes,
  part_of: Callable[[sentencepiece_model_pb2.ModelProto], object],
) -> bool:
  """Returns whether a part of two models is equal; false if one is no model."""
  parse = sentencepiece_model_pb2.ModelProto.FromString
  try:
    return part_of(parse(one)) == part_of(parse(other))
  except message.DecodeError:
    return False


def _without_names(model: sentencepiece_model_pb2.ModelProto) -> bytes:
  model.trainer_spec.ClearField("input")
  model.trainer_spec.ClearField("model_prefix")
  return model.SerializeToString(deterministic=True)


def unlike_t5(content: bytes) -> list[str]:
  """Returns what a SentencePiece model has that T5's models have not.

  transformers' T5 tokenizer is built for a unigram model that normalizes, and
  has no bytes for unknown characters: with others it may find other ids.
  """
  model = sentencepiece_model_pb2.ModelProto.FromString(content)
  trainer, normalizer = model.trainer_spec, model.normalizer_spec
  kinds = {piece.type for piece in model.pieces}
  found = {
    "byte_fallback": trainer.byte_fallback,
    "another model_type than unigram": trainer.model_type != trainer.UNIGRAM,
    "add_dummy_prefix=false": not normalizer.add_dummy_prefix,
    "remove_extra_whitespaces=false": not normalizer.remove_extra_whitespaces,
    "another normalization than nmt_nfkc": not normalizer.name.startswith(
      "nmt_nfkc"
    ),
    "user-defined symbols": model.SentencePiece.USER_DEFINED in kinds,
  }
  return [what for what, is_so in found.items() if is_so]


def beside(files: Iterable[epath.Path]) -> Vocabulary | None:
  """Returns the tokenizer of the files next to a checkpoint, if any.

  Raises:
    UserError: they cannot be read.
  """
  found = {file.name: file for file in files}
  contents = {n: reading.read_description(file) for n, file in found.items()}
  if WHOLE in contents:
    where = os.fspath(found[WHOLE])
    num_tokens = _num_tokens(where, contents[WHOLE])
  elif SENTENCEPIECE in contents:
    where = os.fspath(found[SENTENCEPIECE])
    config = _read_config(found.get(_CONFIG), contents.get(_CONFIG, b"{}"))
    extra_ids = config.get("extra_ids", _T5_EXTRA_IDS)
    if type(extra_ids) is not int or not 0 <= extra_ids <= _MAX_EXTRA_IDS:
      raise errors.UserError(
        f"{found[_CONFIG]} has extra_ids={str(extra_ids)[:40]!r}: expected a"
        f" whole number from 0 to {_MAX_EXTRA_IDS:,}"
      )
    num_pieces = _processor(where, contents[SENTENCEPIECE]).get_piece_size()
    num_tokens = num_pieces + extra_ids
  else:
    return None
  return Vocabulary(where=where, num_tokens=num_tokens, files=contents)


def check(
  vocabulary: Vocabulary, vocab_size: int, *, own: bool = False
) -> None:
  """Raises UserError if a vocabulary does not fit a model.

  Args:
    vocabulary: the tokenizer.
    vocab_size: rows of the model's vocabulary.
    own: whether the run that trained the model kept the tokenizer with it: the
      model then may have any number of rows that no token uses. Another one may
      leave at most 127, so that another model's is noticed.
  """
  num_padding = vocab_size - vocabulary.num_tokens
  if num_padding < 0 or not (own or num_padding < ROWS_MULTIPLE):
    raise errors.UserError(
      f"{vocabulary.where} has {vocabulary.num_tokens:,} tokens, extra ids "
      f"included, and the model's vocabulary has {vocab_size:,} rows: they "
      f"may be fewer than {ROWS_MULTIPLE} more than the tokens, to pad them. "
      "Give the vocabulary that the model was trained with, and its number of "
      "extra ids."
    )


def _processor(
  where: str, content: bytes
) -> sentencepiece.SentencePieceProcessor:
  try:
    if not content:
      raise RuntimeError("the file is empty")
    return sentencepiece.SentencePieceProcessor(model_proto=content)
  except RuntimeError as error:
    raise errors.UserError(
      f"vocabulary {where} is no SentencePiece model: give one, such as T5's "
      "spiece.model."
    ) from error


def _num_tokens(where: str, content: bytes) -> int:
  text = reading.decode(content, where)
  whole = fast_tokenizers.load(text, where)
  return whole.get_vocab_size(with_added_tokens=True)


def _read_config(path: epath.Path | None, content: bytes) -> Mapping:
  try:
    config = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise errors.UserError(
      f"{path} is not JSON ({error}): copy the folder again."
    ) from error
  return config if isinstance(config, dict) else {}
