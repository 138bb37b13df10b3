"""Real tokenizers and records; tests that need them are skipped without them.

They are found in the directory that the environment's `SPECIALIZE_DATA` names
(see `tests/conftest.py` for its default).
"""

import base64
import functools
import os
import pathlib

import pytest
import regex

from specialize_jax.align import student

# How GPT-2, and code-davinci-002 after it, splits a text before merging.
WORDS = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
  r"|\s+(?!\S)|\s+"
)


def find(*parts):
  """Returns a file of the real data, or skips the test that asks for it."""
  directory = os.environ.get("SPECIALIZE_DATA")
  name = pathlib.Path(*parts)
  if directory is None or not (pathlib.Path(directory) / name).exists():
    pytest.skip(
      f"there is no {name} in {directory or 'a directory of real data'}: set"
      " SPECIALIZE_DATA to one that has it"
    )
  return pathlib.Path(directory) / name


@functools.cache
def t5():
  """Returns T5's own tokenizer."""
  return student.SentencePieceStudent.from_file(
    find("tokenizers", "t5_spiece.model")
  )


@functools.cache
def _ranks():
  lines = find("tokenizers", "p50k_base.tiktoken").read_bytes().splitlines()
  pairs = (line.split() for line in lines)
  return {base64.b64decode(token): int(rank) for token, rank in pairs}


@functools.cache
def _merge(word):
  ranks = _ranks()
  parts = [word[i : i + 1] for i in range(len(word))]
  while len(parts) > 1:
    found = [
      (ranks.get(parts[i] + parts[i + 1], len(ranks)), i)
      for i in range(len(parts) - 1)
    ]
    rank, at = min(found)
    if rank == len(ranks):
      break
    parts[at : at + 2] = [parts[at] + parts[at + 1]]
  return tuple(parts)


def p50k(text):
  """Returns the byte tokens of code-davinci-002's tokenizer."""
  return [
    part for word in WORDS.findall(text) for part in _merge(word.encode())
  ]
