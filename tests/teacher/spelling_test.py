"""The text becomes what the tokens spell, whatever the server cut off."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax.records import schema
from specialize_jax.teacher import spelling


def steps_of(*tokens):
  return tuple(
    schema.TeacherStep(
      token=token.decode(errors="replace")
      if isinstance(token, bytes)
      else token,
      log_prob=-0.5,
      top=(),
      token_bytes=token if isinstance(token, bytes) else None,
    )
    for token in tokens
  )


def fit(text, *tokens):
  text, kept = spelling.fit(text, steps_of(*tokens))
  assert text.encode() == b"".join(step.spelling for step in kept)
  return text, [step.spelling.decode(errors="replace") for step in kept]


def test_a_text_that_its_tokens_spell_stays():
  assert fit("a b", "a", " b") == ("a b", ["a", " b"])
  assert fit("") == ("", [])


def test_the_docstrings_example():
  text, kept = fit("72.", "\n", "72", ".\n\n", "</s>")
  assert text == "\n72.\n\n"
  assert kept == ["\n", "72", ".\n\n"]


def test_a_stop_within_a_token_is_not_learned():
  assert fit("is 72 ", "is", " 72", " ###") == ("is 72", ["is", " 72"])
  with pytest.raises(spelling.MisspeltError, match="ends within the token"):
    fit("is 72", "is", " 72###")
  assert fit("72.", "72", ".\n\n")[1] == ["72", ".\n\n"]


def test_tokens_of_a_stop_go():
  assert fit("72", "72", "\n\n", "Q")[0] == "72"
  assert fit("", "\n\n") == ("", [])


@pytest.mark.parametrize(
  "end",
  [
    ["</s>"],
    ["<|im_end|>", "\n", "<|endoftext|>"],
    [" <|eot_id|>"],
    ["<\uff5cend\u2581of\u2581sentence\uff5c>", "\n"],
    ["<end_of_turn>"],
    ["<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>"],
    ["<|of_another_model|>", "\n"],
  ],
)
def test_the_teachers_end_tokens_are_no_part_of_a_text(end):
  tokens = steps_of("72", ".\n", *end)
  text = "".join(step.token for step in tokens)
  kept_text, kept = spelling.without_special_tokens(text, tokens)
  assert (kept_text, kept) == ("72.\n", tokens[:2])


@pytest.mark.parametrize(
  "opening",
  [
    ["<s>"],
    ["</s>"],
    ["<|begin_of_text|>", "\n"],
    ["<|im_start|>", "assistant", "\n"],
    ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"],
    ["<bos>", "<start_of_turn>", "model", "\n"],
    [" [/INST]"],
    [],
  ],
)
@pytest.mark.parametrize(
  "rest",
  [
    ["<|im_end|>", "\n", "<|im_start|>", "user", "\n", "5?"],
    ["<|eot_id|>", "5", "6"],
    [" </s>", "<s>", "[INST]", "5"],
    ["<end_of_turn>", "<unk>"],
    [],
  ],
)
def test_what_goes_on_after_an_end_token_or_opens_a_turn_goes(opening, rest):
  tokens = steps_of(*opening, " 72", ".\n", *rest)
  text = "".join(step.token for step in tokens)
  kept_text, kept = spelling.without_special_tokens(text, tokens)
  assert kept_text == " 72.\n"
  assert [step.token for step in kept] == [" 72", ".\n"]


@pytest.mark.parametrize(
  ("tokens", "words"),
  [
    (["72", ".<", "|im_end|>", "5"], "spelt by tokens that spell text too"),
    (["7", "<unk>", "2"], "special token '<unk>'"),
    (["<|channel|>", "analysis", "<|message|>", "3"], "<|channel|>"),
    (["is ", "<|begin_of_box|>", "72", "<|end_of_box|>"], "<|begin_of_box|>"),
    (["<s", ">72"], "spelt by tokens that spell text too"),
  ],
)
def test_a_special_token_that_cannot_be_cut_out_is_refused(tokens, words):
  with pytest.raises(spelling.MisspeltError, match=re.escape(words)):
    spelling.without_special_tokens("".join(tokens), steps_of(*tokens))


def test_an_end_spelt_by_several_tokens_is_cut_between_them():
  tokens = steps_of("72", "<", "|im", "_end|>", "5")
  assert spelling.without_special_tokens("72<|im_end|>5", tokens)[0] == "72"


def test_a_text_without_end_tokens_keeps_its_last_line_break():
  tokens = steps_of("1 <", " 2", "\n")
  assert spelling.without_special_tokens("1 < 2\n", tokens) == (
    "1 < 2\n",
    tokens,
  )


def test_a_stripped_text_keeps_its_first_space():
  assert fit("72 is", " 72", " is", "\n")[0] == " 72 is"


def test_a_character_that_was_not_finished_goes():
  assert fit("5\ufffd", b"5", b"\xe2\x82")[0] == "5"
  assert fit("5", b"5", b"\xe2\x82")[0] == "5"
  assert fit("5\u20ac", b"5", b"\xe2\x82", b"\xac")[0] == "5\u20ac"


def test_bytes_that_the_server_hides_are_taken_from_the_text():
  text = "a\U0001f600b"
  kept = spelling.fit(text, steps_of("a", "\ufffd", "\ufffd", "b"))[1]
  spelt = [step.spelling for step in kept]
  assert spelt == [b"a", "\U0001f600".encode()[:3], b"\x80", b"b"]
  assert kept[1].token == "\ufffd"


@pytest.mark.parametrize(
  ("text", "tokens"),
  [
    ("b", ["a"]),
    ("ab", ["a"]),
    ("a", [b"\xff", b"a"]),
    ("\u20ac", ["\ufffd"] * 5),
  ],
)
def test_a_text_that_is_not_in_the_tokens_is_refused(text, tokens):
  with pytest.raises(spelling.MisspeltError):
    spelling.fit(text, steps_of(*tokens))


@settings(deadline=None)
@given(
  st.text(st.characters(codec="utf-8"), max_size=8),
  st.sets(st.integers(1, 30)),
  st.sampled_from(["", "\n\n", "</s>"]),
)
def test_any_cut_of_any_text_is_put_together(text, cuts, stop):
  spelt = text.encode()
  bounds = [0, *sorted(c for c in cuts if c < len(spelt)), len(spelt)]
  tokens = [
    spelt[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True) if a < b
  ]
  found, kept = spelling.fit(text, steps_of(*tokens, *([stop] if stop else [])))
  assert found == text
  assert [step.spelling for step in kept] == tokens
