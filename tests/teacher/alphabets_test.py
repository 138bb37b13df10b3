"""Tokens that are spelled as vocabularies have them are read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from specialize_jax.align import byte_alphabet
from specialize_jax.teacher import alphabets


@given(st.binary(max_size=12))
def test_byte_level_tokens_are_read_as_gpt2s_tokenizer_writes_them(content):
  written = "".join(bytes_to_unicode()[byte] for byte in content)
  assert byte_alphabet.to_bytes(written) == content


@pytest.mark.parametrize(
  ("token", "expected"),
  [
    ("\u0120is", b" is"),
    ("\u010a\u010a", b"\n\n"),
    ("\u00c3\u00a9", "\u00e9".encode()),
    ("is", b"is"),
    (" is", None),
    ("\u4e00", None),
  ],
)
def test_a_byte_level_token_is_read(token, expected):
  assert byte_alphabet.to_bytes(token) == expected


@pytest.mark.parametrize(
  ("token", "expected"),
  [
    ("\u2581is", b" is"),
    ("\u2581\u2581", b"  "),
    ("<0x0A>", b"\n"),
    ("<0xe2>", b"\xe2"),
    ("is", None),
    ("<0x0A", None),
  ],
)
def test_a_piece_is_read(token, expected):
  assert alphabets.sentencepiece(token) == expected


def test_letters_of_a_language_are_not_taken_for_white_space():
  assert alphabets.byte_level_marked("\u010desk\u00fd") is None
  assert alphabets.byte_level_marked("\u0120is") == b" is"
