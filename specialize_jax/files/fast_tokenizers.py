"""Loads Hugging Face's fast tokenizers from untrusted `tokenizer.json` files.

The library is written in Rust: a damaged file may make it panic, which Python
sees as a `BaseException` that no `except Exception` catches.
"""

import contextlib
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence

from specialize_jax import errors
from specialize_jax.files import reading

if typing.TYPE_CHECKING:
  import tokenizers
  from etils import epath

NAME = "tokenizer.json"

_T5_TOKEN = re.compile(r"<extra_id_\d+>|<pad>|</?s>|<unk>")
_MAX_TOKENS = 10_000_000
# Largest factor by which a normalizer or decoder may lengthen a text.
_MAX_GROWTH = 1000
# A text to encode, since the library reports some errors only when it is used:
# an unknown token that is not in the vocabulary, a damaged character map.
_PROBE = "a \u0378"
_NUM_PROBED_IDS = 8


def added_tokens(file: "epath.Path") -> list[str]:
  """Returns the tokens that a file adds to T5's own.

  Args:
    file: a `tokenizer.json`, or an `added_tokens.json`.
  """
  content = reading.read_json(file)
  if isinstance(content, dict) and file.name == NAME:
    rows = content.get("added_tokens")
    rows = rows if isinstance(rows, list) else []
    content = [row.get("content") for row in rows if isinstance(row, dict)]
  names = map(str, content if isinstance(content, dict | list) else ())
  return [name for name in names if not _T5_TOKEN.fullmatch(name)]


def load(content: str, where: str | os.PathLike[str]) -> "tokenizers.Tokenizer":
  """Loads a tokenizer, without truncation and padding.

  `tokenizer.json` contains the truncation and padding of the last call before
  it was saved.

  Args:
    content: the text of the file.
    where: the path of the file, for error messages.

  Raises:
    UserError: it is not a tokenizer, cannot encode and decode a short text, has
      ids beyond ten million, or makes any text a thousand times longer.
  """
  import tokenizers

  with named(where):
    tokenizer = tokenizers.Tokenizer.from_str(content)
    whole = json.loads(content)
    for part in ("normalizer", "decoder"):
      growth = _growth(whole.get(part))
      if growth > _MAX_GROWTH:
        raise errors.UserError(
          f"{where}: its {part} makes a text {growth:,} times longer: expected"
          f" at most {_MAX_GROWTH:,} times"
        )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= _MAX_TOKENS:
      raise errors.UserError(
        f"{where} has the id {largest:,}: expected ids below {_MAX_TOKENS:,}"
      )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode(_PROBE, add_special_tokens=False)
    tokenizer.decode(range(min(_NUM_PROBED_IDS, largest + 1)))
  return tokenizer


@contextlib.contextmanager
def named(where: str | os.PathLike[str]) -> Iterator[None]:
  """Converts any error of the library into a UserError.

  Args:
    where: the path of the tokenizer, for error messages.
  """
  try:
    yield
  except errors.UserError:
    raise
  except BaseException as error:
    if not isinstance(error, Exception) and not _is_panic(error):
      raise
    reason = " ".join(str(error).split())[:200]
    raise errors.UserError(
      f"{where} is not a tokenizer that can be used ({reason}): copy or"
      " download the file again, or give another"
    ) from error


def _is_panic(error: BaseException) -> bool:
  return type(error).__name__ == "PanicException"


def _growth(step: object) -> int:
  """Returns an upper bound of the factor by which a step lengthens a text."""
  if not isinstance(step, Mapping):
    return 1
  content = step.get("content")
  growth = 1
  if step.get("type") == "Replace" and isinstance(content, str):
    growth = max(1, len(content))
  elif isinstance(step.get("prepend"), str):
    growth = max(1, len(step["prepend"]))
  for name in ("normalizers", "decoders"):
    steps = step.get(name)
    if isinstance(steps, Sequence) and not isinstance(steps, str):
      for one in steps:
        growth *= _growth(one)
  return growth
