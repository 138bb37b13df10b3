"""A tokenizer.json of anybody's is used in bounds, or refused in a sentence."""

import json
import time

import pytest
import tokenizers

from specialize_jax import errors
from specialize_jax.files import fast_tokenizers

_REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}


def _content(**changes):
  """A tokenizer of three tokens, with some parts changed."""
  whole = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
  model = {"vocab": {"a": 0, "aa": 1, "b": 2}, "merges": [["a", "a"]]}
  whole["model"] |= model | changes.pop("model", {})
  return json.dumps(whole | changes)


def _split(pattern):
  return {
    "type": "Split",
    "pattern": {"Regex": pattern},
    "behavior": "Isolated",
    "invert": False,
  }


@pytest.mark.parametrize(
  ("content", "match"),
  [
    (_content(normalizer={"type": "Nothing"}), "is not a tokenizer"),
    ('{"normalizer":' * 100_000, "is not a tokenizer"),
    (_content(model={"unk_token": "c"}), "is not a tokenizer"),
    (_content(model={"merges": [["z", "a"]]}), "is not a tokenizer"),
    (  # which the library panics on
      _content(normalizer={"type": "Precompiled", "precompiled_charsmap": "A"}),
      "is not a tokenizer",
    ),
    (
      _content(
        normalizer={
          "type": "Precompiled",
          "precompiled_charsmap": "BAAAAP///w==",
        }
      ),
      "is not a tokenizer",
    ),
    (
      _content(
        decoder={"type": "Strip", "content": "a", "start": 2**40, "stop": 2**40}
      ),
      "is not a tokenizer",
    ),
    (
      _content(normalizer={"type": "Sequence", "normalizers": [_REPLACE] * 3}),
      "normalizer makes a text 125,000 times longer",
    ),
    (
      _content(normalizer={"type": "Prepend", "prepend": "a" * 10**6}),
      "normalizer makes a text 1,000,000 times longer",
    ),
    (
      _content(decoder={"type": "Sequence", "decoders": [_REPLACE] * 3}),
      "decoder makes a text 125,000 times longer",
    ),
    (
      _content(model={"vocab": {"a": 2**32 - 1}, "merges": []}),
      "has the id 4,294,967,295: expected ids below 10,000,000",
    ),
  ],
)
def test_what_cannot_be_used_is_refused_by_name(content, match):
  with pytest.raises(errors.UserError, match=f"the file.*{match}"):
    fast_tokenizers.load(content, "the file")


@pytest.mark.parametrize("pattern", ["((a+)+)+c", "(a|aa)+$"])
def test_a_pattern_that_backtracks_is_a_sentence_when_it_is_used(pattern):
  tokenizer = fast_tokenizers.load(_content(pre_tokenizer=_split(pattern)), "t")
  start = time.process_time()
  with (
    pytest.raises(errors.UserError, match="t is not a tokenizer that can be"),
    fast_tokenizers.named("t"),
  ):
    tokenizer.encode("a" * 50_000 + "b")
  assert time.process_time() - start < 5


def test_what_an_earlier_call_has_cut_or_filled_is_no_longer():
  """The library saves the lengths of its last call into the file."""
  saved = tokenizers.Tokenizer.from_str(_content())
  saved.enable_truncation(1)
  saved.enable_padding(length=5)
  assert saved.encode("abab").ids == [0, 0, 0, 0, 0]
  loaded = fast_tokenizers.load(saved.to_str(), "t")
  assert loaded.encode("abab").ids == [0, 2, 0, 2]


def test_what_is_no_failure_of_the_library_passes_through():
  with pytest.raises(KeyboardInterrupt), fast_tokenizers.named("t"):
    raise KeyboardInterrupt
