"""An answer is believed only where it is what was asked for."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax.records import schema
from specialize_jax.teacher import responses


def legacy(**changes):
  log_probs = {
    "tokens": ["3", " €"],
    "token_logprobs": [-0.5, 0],
    "top_logprobs": [{"3": -0.5, "4": -1.5}, {" €": 0}],
  } | changes
  return {"text": "3 €", "logprobs": log_probs, "finish_reason": "stop"}


def entry(token, spelt=None, value=-0.5, **changes):
  one = {"token": token, "logprob": value, "bytes": spelt}
  return one | {"top_logprobs": [dict(one)]} | changes


def chat(*entries, text="3"):
  return {
    "message": {"content": text},
    "logprobs": {"content": list(entries)},
    "finish_reason": "length",
  }


def parse(*choices, **fields):
  body = {"choices": list(choices), **fields}
  return responses.parse(json.loads(json.dumps(body)))


def test_the_legacy_shape_gives_tokens_and_alternatives():
  answer = parse(legacy(), usage={"prompt_tokens": 9, "completion_tokens": 2})
  assert (answer.prompt_tokens, answer.completion_tokens) == (9, 2)
  (choice,) = answer.choices
  assert choice == responses.Choice(
    text="3 €",
    finish_reason="stop",
    steps=(
      schema.TeacherStep(
        token="3", log_prob=-0.5, top=(("3", -0.5), ("4", -1.5))
      ),
      schema.TeacherStep(token=" €", log_prob=0.0, top=((" €", 0.0),)),
    ),
  )


def test_the_chat_shape_gives_bytes_where_they_tell_something():
  answer = parse(
    chat(
      entry("3", [51]),
      entry(r"\xe2\x82", [0xE2, 0x82]),
      entry(r"\xac", [0xAC]),
      text="3€",
    )
  )
  (choice,) = answer.choices
  assert choice.text == "3€"
  assert choice.finish_reason == "length"
  assert choice.steps[0].token_bytes is None
  assert choice.steps[1].token_bytes == b"\xe2\x82"
  assert choice.steps[1].top_bytes == (b"\xe2\x82",)
  assert choice.steps[0].top == (("3", -0.5),)


def test_legacy_tokens_may_be_spelled_by_bytes():
  choice = legacy(
    tokens=["3 ", "bytes:\\xe2\\x82", "bytes:\\xac"],
    token_logprobs=[-1, -1, -1],
    top_logprobs=[{"3 ": -1}, {"bytes:\\xe2\\x82": -1, "€": -2}, {}],
  )
  steps = parse(choice).choices[0].steps
  assert [step.spelling for step in steps] == [b"3 ", b"\xe2\x82", b"\xac"]
  assert steps[1].top_bytes == (b"\xe2\x82", None)


def test_a_legacy_endpoint_may_answer_in_the_chat_shape():
  """As llama.cpp's own server does."""
  choice = {"text": "3", "logprobs": {"content": [entry("3", [51])]}}
  (read,) = parse(choice).choices
  assert read.steps[0].token == "3"
  assert read.finish_reason == "unknown"


def test_an_empty_text_needs_no_log_probabilities():
  (choice,) = parse({"text": "", "logprobs": None}).choices
  assert choice.steps == ()
  (choice,) = parse({"message": {"content": None}}).choices
  assert choice.text == ""


@pytest.mark.parametrize(
  "choice",
  [
    {"text": "3"},
    {"text": "3", "logprobs": None},
    {"text": "3", "logprobs": {}},
    {"message": {"content": "3"}, "logprobs": {"content": None}},
    {"message": {"content": "3"}, "logprobs": {"content": []}},
    legacy(top_logprobs=None),
    legacy(top_logprobs=[{}, {}]),
    chat(entry("3", [51], top_logprobs=[])),
  ],
)
def test_a_text_without_log_probabilities_is_told_apart(choice):
  with pytest.raises(responses.NoLogProbsError):
    parse(choice)


@pytest.mark.parametrize(
  "choice",
  [
    7,
    {"logprobs": {}},
    {"text": 5},
    {"message": {"content": 5}},
    {"message": 5},
    legacy(tokens=["3"]),
    legacy(tokens="3 €"),
    legacy(tokens=["3", 5]),
    legacy(tokens=["3", "x"]),
    legacy(token_logprobs=[-1, None]),
    legacy(token_logprobs=[-1, True]),
    legacy(token_logprobs=[-1, "low"]),
    legacy(token_logprobs=[-1, float("nan")]),
    legacy(token_logprobs=[float("nan"), -1]),
    legacy(token_logprobs=[-1, 3.5]),
    legacy(token_logprobs=[-1, float("inf")]),
    legacy(top_logprobs=[{"3": -1}, {"4": float("nan")}]),
    legacy(top_logprobs=[{"3": -1}, [-1]]),
    legacy(top_logprobs={"3": -1}),
    {"text": "3", "logprobs": [1]},
    {"text": "3", "logprobs": {"content": {"a": 1}}},
    legacy() | {"finish_reason": 5},
    chat(entry("3", [300])),
    chat(entry("3", "3")),
    chat(entry("3", ["x"])),
    chat(entry(3, [51])),
    chat(entry("3", [51], None)),
    chat(entry("3", [51], top_logprobs=[5])),
    chat(entry("3", [51], top_logprobs="x")),
    chat("3"),
  ],
)
def test_any_other_shape_is_an_error_of_its_own(choice):
  with pytest.raises(responses.ResponseError) as caught:
    parse(choice)
  assert not isinstance(caught.value, responses.NoLogProbsError)


@pytest.mark.parametrize("body", [[], None, 5, {}, {"choices": {}}])
def test_an_answer_without_choices_is_an_error(body):
  with pytest.raises(responses.ResponseError):
    responses.parse(body)


def test_a_log_probability_of_minus_infinity_passes():
  choice = legacy(token_logprobs=[-1, float("-inf")])
  assert parse(choice).choices[0].steps[1].log_prob == float("-inf")


_JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(
        ["choices", "text", "logprobs", "tokens", "token_logprobs", "bytes"]
        + ["top_logprobs", "content", "message", "token", "logprob", "usage"]
      ),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_no_answer_fails_in_any_other_way(body):
  for one in (
    body,
    {"choices": [body]},
    {"choices": [{"text": "3"} | {"logprobs": body}]},
  ):
    try:
      responses.parse(one)
    except (responses.ResponseError, OverflowError):
      continue
