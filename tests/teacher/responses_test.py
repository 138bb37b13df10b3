"""An answer is believed only where it is what was asked for."""

import contextlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specialize_jax.records import schema
from specialize_jax.teacher import importing, responses


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


def test_a_blank_before_escaped_bytes_is_the_token_s_own():
  """b" \\xf0\\x9f" and b"\\xf0\\x9f" are two of code-davinci's tokens."""
  first, bare = "bytes: \\xf0\\x9f", "bytes:\\xf0\\x9f"
  choice = legacy(
    tokens=["am", first, "bytes:\\x98\\x80"],
    token_logprobs=[-1, -1, -1],
    top_logprobs=[{"am": -1}, {first: -1, bare: -2}, {}],
  )
  choice["text"] = "am \U0001f600"
  steps = parse(choice).choices[0].steps
  assert b"".join(step.spelling for step in steps).decode() == "am \U0001f600"
  assert steps[1].top_bytes == (b" \xf0\x9f", b"\xf0\x9f")


def test_a_legacy_endpoint_may_answer_in_the_chat_shape():
  """As llama.cpp's own server does."""
  choice = {"text": "3", "logprobs": {"content": [entry("3", [51])]}}
  (read,) = parse(choice).choices
  assert read.steps[0].token == "3"
  assert read.finish_reason == "unknown"


@pytest.mark.parametrize(
  ("reason", "stored"),
  [
    ({"type": "stop", "matched": 151645}, "stop"),
    ({"type": "length", "length": 256}, "length"),
    ({"type": "abort", "message": "aborted"}, "abort"),
    (" stop\n", "stop"),
    ("", "unknown"),
    (None, "null"),
  ],
)
def test_a_finish_reason_is_the_servers_word(reason, stored):
  (read,) = parse(legacy() | {"finish_reason": reason}).choices
  assert read.finish_reason == stored


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
    chat(entry("3", [51], top_logprobs=[5])),
    chat(entry("3", [51], top_logprobs="x")),
    legacy(top_logprobs=[{"": -1}, {"4": None}]),
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
    legacy(top_logprobs={"3": -1}),
    {"text": "3", "logprobs": [1]},
    {"text": "3", "logprobs": {"content": {"a": 1}}},
    legacy() | {"finish_reason": 5},
    chat(entry("3", [300])),
    chat(entry("3", "3")),
    chat(entry("3", ["x"])),
    chat(entry(3, [51])),
    chat(entry("3", [51], None)),
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


def candidate(token, value=-0.5, **fields):
  return {"token": token, "logprob": value} | fields


def tops_of(choice):
  """Returns each token's alternatives as a record's reader spells them."""
  result = []
  for step in choice.steps:
    given_ = step.top_bytes or (None,) * len(step.top)
    result.append(
      {
        (name.encode() if spelt is None else spelt): value
        for (name, value), spelt in zip(step.top, given_, strict=True)
      }
    )
  return result


def read(*choices):
  """Returns the one choice, its tokens' spellings and what was left out."""
  answer = parse(*choices)
  (choice,) = answer.choices
  return choice, [step.spelling for step in choice.steps], answer.left_out


IT_IS = {
  "text_offset": [0, 2, 5],
  "tokens": ["It", " is", " 7"],
  "token_logprobs": [-0.2, -0.01, -0.1],
  "top_logprobs": [{"It": -0.2, "The": -1.9}, {" is": -0.01}, {" 7": -0.1}],
}


@pytest.mark.parametrize("beside", [None, [], {}])
@pytest.mark.parametrize("place", ["content", "refusal"])
def test_the_shape_that_is_filled_is_read_whichever_keys_are_there(
  beside, place
):
  choice, spelt, _ = read(
    {
      "message": {"content": "It is 7"},
      "logprobs": IT_IS | {place: beside, "content": beside},
    }
  )
  assert choice.text == "It is 7"
  assert spelt == [b"It", b" is", b" 7"]
  assert choice.steps[0].top == (("It", -0.2), ("The", -1.9))


def test_the_text_is_taken_from_where_it_is_filled():
  for text in (
    {"message": {"content": None}, "text": "It is 7"},
    {"message": None, "text": "It is 7"},
    {"message": {"content": ""}, "text": "It is 7"},
    {
      "message": {
        "content": [{"type": "text", "text": "It is"}, {"text": " 7"}]
      }
    },
  ):
    assert read(text | {"logprobs": IT_IS})[0].text == "It is 7"
  in_message = {"message": {"content": "It is 7", "logprobs": IT_IS}}
  assert len(read(in_message)[0].steps) == 3


def test_of_two_filled_shapes_the_one_with_alternatives_is_read():
  content = [candidate(token) for token in IT_IS["tokens"]]
  choice, _, _ = read(
    {"text": "It is 7", "logprobs": IT_IS | {"content": content}}
  )
  assert choice.steps[0].top[1] == ("The", -1.9)
  broken = [{"token": 5}]
  choice, _, _ = read(
    {"text": "It is 7", "logprobs": IT_IS | {"content": broken}}
  )
  assert len(choice.steps) == 3


def test_an_alternative_that_cannot_be_used_costs_itself_alone_and_is_counted():
  bad = {
    "a": None,
    "b": float("nan"),
    "c": 3.5,
    "d": "low",
    "e": True,
    "": -1.0,
    "token_id:17": -1.0,
    "f": [1],
    "g": -(10**400),
  }
  choice, _, left_out = read(
    legacy(top_logprobs=[{"3": -0.5, "4": -1.5} | bad, None])
  )
  assert tops_of(choice) == [{b"3": -0.5, b"4": -1.5}, {}]
  assert left_out == {
    responses.NO_NUMBER: 7,
    responses.NO_SPELLING: 1,
    responses.OTHER_ALPHABET: 1,
  }
  spoiled = [
    candidate("3"),
    candidate("4", None),
    candidate("", -1),
    candidate("5", bytes=["x"]),
    candidate(None),
    7,
    None,
  ]
  choice, _, left_out = read(chat(entry("3", [51], top_logprobs=spoiled)))
  assert tops_of(choice) == [{b"3": -0.5}]
  assert left_out == {
    responses.NO_NUMBER: 1,
    responses.NO_SPELLING: 1,
    responses.NO_ALTERNATIVE: 4,
  }


def test_alternatives_are_read_in_whatever_shape_they_are_listed():
  listed = [[candidate("3"), candidate("4", -1.5)], [candidate(" €")]]
  choice, _, left_out = read(legacy(top_logprobs=listed))
  assert tops_of(choice)[0] == {b"3": -0.5, b"4": -1.5}
  by_id = [
    {"18": {"logprob": -0.5, "rank": 1, "decoded_token": "3"}},
    {"19": {"logprob": -0.5, "decoded_token": " €"}},
  ]
  choice, _, left_out = read(legacy(top_logprobs=by_id))
  assert tops_of(choice)[0] == {b"3": -0.5}
  assert not left_out


def test_minus_infinity_is_read_however_json_writes_it():
  for value in (float("-inf"), "-Infinity", "-inf"):
    choice, _, _ = read(legacy(token_logprobs=[-1, value]))
    assert choice.steps[1].log_prob == float("-inf")
  assert (
    read(legacy(token_logprobs=[-9999.0, -1]))[0].steps[0].log_prob == -9999
  )


BYTE_LEVEL = {
  "It": "It",
  " is": "\u0120is",
  " was": "\u0120was",
  " 18": "\u012018",
  "\n": "\u010a",
  ".": ".",
  " caf\u00e9": "\u0120caf\u00c3\u00a9",
  "\u00e9": "\u00c3\u00a9",
}
PIECES = {
  "It": "It",
  " is": "\u2581is",
  " was": "\u2581was",
  " 18": "\u258118",
  "\n": "<0x0A>",
  ".": ".",
  " caf\u00e9": "\u2581caf\u00e9",
  "\u00e9": "\u00e9",
}
TOKENS = ["It", " is", " 18", ".", "\n", "It", " caf\u00e9", "\u00e9", " was"]


def spelled(names, *, sampled, others, own=True, with_bytes=False):
  """A chat answer whose tokens are spelled by two tables."""

  def one(token, table, value):
    name = table.get(token, token)
    given_ = list(name.encode()) if with_bytes else None
    return candidate(name, value, bytes=given_)

  entries = []
  for number, token in enumerate(names):
    other = names[number - 1]
    tops = [one(token, others, -0.25)] if own else []
    if other != token:
      tops.append(one(other, others, -2.0))
    entries.append(one(token, sampled, -0.25) | {"top_logprobs": tops})
  return chat(*entries, text="".join(names).strip())


@pytest.mark.parametrize("table", [BYTE_LEVEL, PIECES])
@pytest.mark.parametrize("with_bytes", [False, True])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("which", ["all", "alternatives", "sampled"])
def test_tokens_of_a_vocabularys_alphabet_are_decoded(
  table, with_bytes, own, which
):
  """As vLLM, LMDeploy and others have sent them."""
  answer = spelled(
    TOKENS,
    sampled={} if which == "alternatives" else table,
    others={} if which == "sampled" else table,
    own=own,
    with_bytes=with_bytes,
  )
  choice, spelt, left_out = read(answer)
  assert choice.text.split() == "".join(TOKENS).split()
  assert spelt == [token.encode() for token in TOKENS]
  for number, top in enumerate(tops_of(choice)[1:], start=1):
    previous = TOKENS[number - 1].encode()
    assert previous in top
    assert (spelt[number] in top) == own
  assert not left_out


def test_the_first_pieces_space_goes_where_the_text_has_none():
  pieces = ["\u2581It", "\u2581is", "\u258118"]
  choice, spelt, _ = read(spelled(pieces, sampled={}, others={}))
  assert choice.text == "\u2581It\u2581is\u258118"  # as the text says so
  tokens = ["It", " is", " 18"]
  stripped = spelled(
    tokens, sampled={}, others=dict(zip(tokens, pieces, strict=True))
  )
  choice, spelt, left_out = read(stripped)
  assert tops_of(choice)[0] == {b"It": -0.25, b"18": -2.0}
  assert tops_of(choice)[1] == {b" is": -0.25, b" It": -2.0}
  assert not left_out
  whole = spelled(
    tokens, sampled=dict(zip(tokens, pieces, strict=True)), others={}
  )
  choice, spelt, _ = read(whole)
  assert spelt == [b" It", b" is", b" 18"]


def test_alternatives_alone_tell_their_alphabet():
  """LMDeploy lists the others only, and never the sampled token."""
  choice, _, _ = read(
    chat(
      entry(
        "Hello",
        top_logprobs=[candidate("Hi", -9), candidate("\u0120Hello", -12)],
      ),
      entry(
        " all", top_logprobs=[candidate("\u0120there", -1), candidate("!", -2)]
      ),
      text="Hello all",
    )
  )
  assert tops_of(choice) == [
    {b"Hi": -9.0, b" Hello": -12.0},
    {b" there": -1.0, b"!": -2.0},
  ]


def test_a_text_that_holds_such_characters_is_left_as_it_is():
  """Maltese has the letter that byte-level vocabularies write for a space."""
  names = ["\u0120or\u0121", " \u0120ew", " is", "\u2581"]
  choice, spelt, _ = read(spelled(names, sampled={}, others={}))
  assert spelt == [name.encode() for name in names]
  assert tops_of(choice)[1] == {
    names[1].encode(): -0.25,
    names[0].encode(): -2.0,
  }


def test_alternatives_in_an_unknown_alphabet_are_left_out():
  table = {token: token.strip() + "</w>" for token in TOKENS if token.strip()}
  with pytest.raises(responses.SettledError, match="another alphabet"):
    parse(spelled(TOKENS[:4], sampled={}, others=table))
  one = spelled(
    TOKENS[:4], sampled={}, others={"\u0120is": "x"} | {" is": "is</w>"}
  )
  choice, _, left_out = read(one)
  assert [len(top) for top in tops_of(choice)] == [2, 0, 2, 2]
  assert left_out == {responses.OTHER_ALPHABET: 2}


def test_alternatives_whose_spaces_a_server_strips_are_of_no_use():
  """llama.cpp's did; what begins with none then is unknown as well."""
  table = {token: token.strip() for token in TOKENS}
  with pytest.raises(responses.SettledError, match="another alphabet"):
    parse(spelled(TOKENS[:4], sampled={}, others=table))
  # One that has its space tells that it is the server's entry for that token.
  table.pop(" 18")
  choice, _, _ = read(spelled(TOKENS[:4], sampled={}, others=table))
  assert [len(top) for top in tops_of(choice)] == [2, 0, 2, 2]


def test_the_own_entry_has_the_bytes_of_the_sampled_token():
  choice, spelt, left_out = read(
    chat(
      entry("3", [51]),
      candidate("is", bytes=[32, 105, 115])
      | {
        "top_logprobs": [
          candidate("is"),
          candidate("was", -1, bytes=list(b" was")),
        ]
      },
      text="3 is",
    )
  )
  assert spelt == [b"3", b" is"]
  assert tops_of(choice)[1] == {b" is": -0.5, b" was": -1.0}
  assert not left_out


def test_bytes_that_do_not_spell_the_text_give_way_to_tokens_that_do():
  choice, spelt, _ = read(
    chat(entry("3", [51]), entry(" is", [105]), text="3 is")
  )
  assert spelt == [b"3", b" is"]
  choice, spelt, _ = read(chat(entry("3", []), text="3"))
  assert spelt == [b"3"]


def test_alternatives_that_are_no_distribution_are_left_out():
  """SGLang listed the first token's alternatives for all tokens."""
  first = [candidate("3", -0.1), candidate("4", -3.0)]
  said = chat(
    entry("3", [51], -0.1, top_logprobs=first),
    entry("+", [43], -0.2, top_logprobs=first),
    text="3+",
  )
  choice, _, left_out = read(said)
  assert [len(top) for top in tops_of(choice)] == [2, 0]
  assert left_out == {responses.NO_DISTRIBUTION: 2}
  zeros = [candidate("3", 0.0), candidate("4", 0.0)]
  said = chat(entry("3", [51], 0.0, top_logprobs=zeros), text="3")
  with pytest.raises(responses.SettledError, match="add up to more than 1"):
    parse(said)
  # Of repeated alternatives one counts.
  repeated = [candidate("3"), candidate("3"), candidate("4", -1.0)]
  said = chat(entry("3", [51], top_logprobs=repeated), text="3")
  assert read(said)[2] == {}


def test_tokens_that_are_ids_are_refused_by_name():
  with pytest.raises(
    responses.SettledError, match="return_tokens_as_token_ids"
  ):
    parse(chat(entry("token_id:17"), entry("token_id:4"), text="3"))


def test_whole_numbers_for_tokens_are_ids():
  choice = legacy(tokens=[3, 4], token_logprobs=[-1, -1])
  with pytest.raises(responses.SettledError, match="by their ids"):
    parse(choice)


def test_alternatives_that_are_ids_are_named():
  top = [{"token": "token_id:7", "logprob": -0.5}]
  said = chat({"token": "3", "logprob": -0.1, "top_logprobs": top}, text="3")
  with pytest.raises(responses.SettledError, match="by their ids"):
    parse(said)


def test_a_part_of_a_character_without_its_bytes_is_left_out():
  top = [
    {"token": "3", "logprob": -0.1, "bytes": None},
    {"token": "\ufffd", "logprob": -2.0, "bytes": None},
    {"token": "\ufffd", "logprob": -3.0, "bytes": [0xE2]},
  ]
  said = chat({"token": "3", "logprob": -0.1, "top_logprobs": top}, text="3")
  response = responses.parse({"choices": [said]})
  (step,) = response.choices[0].steps
  assert [log_prob for _, log_prob in step.top] == [-0.1, -3.0]
  assert response.left_out == {responses.NO_BYTES: 1}


def test_an_empty_token_anchors_nothing_and_ends_nothing():
  silent = entry("", [], -9999.0, top_logprobs=[])
  choice, spelt, _ = read(chat(entry("3", [51]), silent, silent, text="3"))
  assert spelt == [b"3"]
  # vLLM gives a character to the last of its tokens.
  choice, spelt, _ = read(
    chat(entry("3"), entry(""), entry(""), entry("\u20ac"), text="3\u20ac")
  )
  assert spelt == [b"3", b"", b"", "\u20ac".encode()]
  # Between the parts of a character and what follows it.
  choice, spelt, _ = read(
    chat(
      entry("a"),
      entry("\ufffd"),
      entry(""),
      entry("\ufffd"),
      entry("b"),
      text="a\u00e9b",
    )
  )
  assert spelt == [b"a", b"\xc3", b"", b"\xa9", b"b"]


REASONING = ["<think>", "3", "+", "4", "</think>", "\n\n"]
ANSWER = ["The", " answer", " is", " 7"]


def reasoned(tokens, message, text="The answer is 7"):
  return {
    "message": {"content": text} | message,
    "logprobs": {"content": [entry(token) for token in tokens]},
    "finish_reason": "stop",
  }


@pytest.mark.parametrize(
  ("tokens", "message"),
  [
    ([*REASONING, *ANSWER, "<|im_end|>"], {"reasoning_content": "3+4"}),
    ([*REASONING, *ANSWER], {"reasoning": "3+4"}),
    ([*REASONING, *ANSWER], {}),
    (["3", "+", "4", "\n\n", *ANSWER], {"reasoning_content": "3+4"}),
    (["3", "+", "4", "</", "think", ">\n\n", *ANSWER], {}),
    (
      ["The", " answer", " is", " 7", "?", "</think>", *ANSWER],
      {"reasoning_content": "The answer is 7?"},
    ),
    (
      ["<|channel|>", "analysis", "<|message|>", "3+4", "<|end|>"]
      + ["<|start|>", "assistant", "<|channel|>", "final", "<|message|>"]
      + ANSWER,
      {},
    ),
  ],
)
def test_tokens_of_a_reasoning_are_cut_off_before_the_text(tokens, message):
  choice, spelt, _ = read(reasoned(tokens, message))
  assert choice.text == "The answer is 7"
  assert spelt == [token.encode() for token in ANSWER]
  assert choice.reasoning_tokens == tokens.index(ANSWER[0], len(tokens) - 6)


def test_a_reasoning_that_is_not_among_the_tokens_costs_nothing():
  choice, _, _ = read(reasoned(ANSWER, {"reasoning_content": "3+4"}))
  assert choice.reasoning_tokens == 0
  assert len(choice.steps) == 4


@pytest.mark.parametrize(
  ("tokens", "message", "text"),
  [
    # Where the reasoning ends, nothing says; or the text is not there.
    (["3", " is", " odd", *ANSWER], {"reasoning_content": "3+4"}, "3"),
    (["3+4", "</think>", "Sure", *ANSWER], {}, "The answer is 7"),
    (["3+4"], {"reasoning_content": "3+4"}, None),
    (["3+4"], {"reasoning": "3+4"}, ""),
  ],
)
def test_what_cannot_be_told_from_a_reasoning_is_refused_by_name(
  tokens, message, text
):
  with pytest.raises(responses.SettledError, match="reasoning"):
    parse(reasoned(tokens, message, text))


def test_a_reasoning_within_the_text_is_the_text():
  text = "".join([*REASONING, *ANSWER])
  choice, _, _ = read(reasoned([*REASONING, *ANSWER], {}, text))
  assert choice.text == text
  assert choice.reasoning_tokens == 0


def test_an_end_token_that_the_server_wrote_into_the_text_is_cut_off():
  tokens = [entry("3"), entry("<|im_end|>"), entry("\n"), entry("</s>")]
  choice, spelt, _ = read(chat(*tokens, text="3<|im_end|>\n</s>"))
  assert (choice.text, spelt) == ("3", [b"3"])
  choice, spelt, _ = read(chat(entry("</s>"), text="</s>"))
  assert (choice.text, spelt) == ("", [])


@pytest.mark.parametrize("unknown", [None, math.nan, "", "NaN"])
@pytest.mark.parametrize("text", ["3", "3</s>"])
def test_an_end_token_needs_no_log_probability(unknown, text):
  end = {"token": "</s>", "logprob": unknown, "top_logprobs": []}
  choice, spelt, _ = read(chat(entry("3"), end, text=text))
  assert (choice.text, spelt) == ("3", [b"3"])
  choice, spelt, _ = read(chat(entry("3"), end | {"token": ""}, text="3"))
  assert (choice.text, spelt) == ("3", [b"3"])
  choice, spelt, _ = read(
    {"text": text, "finish_reason": "stop"}
    | {
      "logprobs": {
        "tokens": ["3", "</s>"],
        "token_logprobs": [-0.1, unknown],
        "top_logprobs": [{"3": -0.1}, None],
      }
    }
  )
  assert (choice.text, spelt) == ("3", [b"3"])
  with pytest.raises(responses.ResponseError, match="log-probability"):
    parse(chat(entry("3"), end | {"token": " a"}, text="3 a"))


def test_a_text_goes_on_after_an_end_token_without_what_follows():
  tokens = ["<s>", "3", "<|im_end|>", "\n", "<|im_start|>", "user", " 4?"]
  said = chat(*map(entry, tokens), text="".join(tokens))
  choice, spelt, _ = read(said)
  assert (choice.text, spelt) == ("3", [b"3"])


def responses_api(**changes):
  return {
    "object": "response",
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "usage": {"input_tokens": 5, "output_tokens": 2},
    "output": [
      {"type": "reasoning", "summary": []},
      {
        "type": "message",
        "content": [
          {
            "type": "output_text",
            "text": "It is",
            "logprobs": [entry("It"), entry(" is")],
          }
        ],
      },
    ],
  } | changes


def test_an_answer_of_the_responses_api_is_read():
  response = responses.parse(responses_api())
  (choice,) = response.choices
  assert (choice.text, choice.finish_reason) == ("It is", "stop")
  assert [step.token for step in choice.steps] == ["It", " is"]
  assert (response.prompt_tokens, response.completion_tokens) == (5, 2)
  cut = responses_api(
    status="incomplete", incomplete_details={"reason": "max_output_tokens"}
  )
  assert responses.parse(cut).choices[0].finish_reason == "length"
  bare = responses_api()
  bare["output"][1]["content"][0]["logprobs"] = []
  with pytest.raises(responses.NoLogProbsError):
    responses.parse(bare)
  (part,) = responses_api()["output"][1]["content"]
  alone = responses_api(output=[{"type": "message", "content": part}])
  assert responses.parse(alone).choices[0].text == "It is"
  other = responses_api(output=[{"type": "message", "content": {"x": None}}])
  with pytest.raises(responses.ResponseError, match="'text' is None"):
    responses.parse(other)
  failed = responses_api(error={"message": "overloaded"}, output=[])
  with pytest.raises(responses.ResponseError, match="overloaded"):
    responses.parse(failed)


def test_a_text_that_only_begins_as_its_tokens_is_refused():
  with pytest.raises(responses.ResponseError, match="40 more tokens follow"):
    parse(reasoned(["3", *[" and"] * 40], {}, "3"))


@pytest.mark.parametrize(
  ("choice", "words"),
  [
    ({"delta": {"content": "3"}}, "piece of a stream"),
    (legacy(token_logprobs=[None, -1]), "prompt is echoed"),
    (
      legacy(token_logprobs=[0, -1], top_logprobs=[None, {" €": -1}]),
      "prompt is echoed",
    ),
    (
      chat(entry("3", value=0.0, top_logprobs=[]), entry(" €"), text="3 €"),
      "prompt is echoed",
    ),
    ({"error": {"message": "overloaded", "code": 502}}, "overloaded"),
    ({"message": {"content": None}, "logprobs": IT_IS}, "no content"),
  ],
)
def test_other_answers_are_told_by_name(choice, words):
  with pytest.raises(responses.ResponseError, match=words):
    parse(choice)


@pytest.mark.parametrize("field", ["refusal", "tool_calls"])
def test_a_refusal_or_a_call_has_no_text(field):
  message = {"content": None, field: "I cannot"}
  choice, _, _ = read({"message": message, "logprobs": IT_IS})
  assert (choice.text, choice.steps) == ("", ())


@pytest.mark.parametrize(
  ("body", "words"),
  [
    (
      {"error": {"message": "no\n such model", "code": "x"}},
      r"no such model \(x\)",
    ),
    ({"object": "error", "message": "too long"}, "too long"),
    (
      {"detail": [{"loc": ["n"], "msg": "extra"}, {"msg": "more"}]},
      "extra; more",
    ),
    ({"choices": [], "error": "none left"}, "none left"),
    ({"type": "message", "content": [{"text": "3"}]}, "Anthropic"),
  ],
)
def test_what_a_server_says_instead_of_choices_is_shown(body, words):
  with pytest.raises(responses.ResponseError, match=words):
    responses.parse(body)


def test_one_choice_that_cannot_be_used_leaves_its_neighbours():
  answer = parse(legacy(), legacy(token_logprobs=[-1, "low"]), 7, legacy())
  assert len(answer.choices) == 2
  assert len(answer.rejected) == 2
  assert "'low' is not a log-probability" in str(answer.rejected[0])


_SCALARS = (
  st.none()
  | st.booleans()
  | st.floats()
  | st.integers()
  | st.sampled_from([10**400, -(10**400), "stop", "length", "-Infinity"])
  | st.text(max_size=3)
  | st.sampled_from(
    ["It", " is", "\u0120is", "\u2581is", "</think>", "", "\ud83d"]
  )
)
_JSON = st.recursive(
  _SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(
      st.sampled_from(
        ["choices", "text", "logprobs", "tokens", "token_logprobs", "bytes"]
        + ["top_logprobs", "content", "message", "token", "logprob", "usage"]
        + ["delta", "error", "reasoning", "type", "decoded_token"]
      ),
      inner,
      max_size=4,
    )
  ),
  max_leaves=12,
)


def _paths_in(value, path=()):
  """Yields where in a JSON value each value stands."""
  yield path
  if isinstance(value, dict | list):
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
      yield from _paths_in(one, (*path, key))


def _replaced(value, path, new):
  if not path:
    return new
  value = dict(value) if isinstance(value, dict) else list(value)
  value[path[0]] = _replaced(value[path[0]], path[1:], new)
  return value


_WHOLE = [
  {
    "id": "x",
    "model": "m",
    "usage": {"prompt_tokens": 3, "completion_tokens": 3},
    "choices": [
      {"text": "It is 7", "finish_reason": "stop", "logprobs": IT_IS},
      {"text": "It is 7", "finish_reason": "stop", "logprobs": IT_IS},
    ],
  },
  {
    "choices": [
      reasoned(
        [*REASONING, *ANSWER],
        {"reasoning_content": "3+4", "refusal": None, "role": "assistant"},
      )
    ],
  },
  {"choices": [spelled(TOKENS, sampled=BYTE_LEVEL, others=BYTE_LEVEL)]},
  responses_api(),
]
# A row of a batch file, and of one that a person kept.
_ROWS = [
  {
    "custom_id": "3",
    "error": None,
    "request": {"temperature": 0.5},
    "response": {"status_code": 200, "body": body},
  }
  for body in _WHOLE
] + [
  {"question_id": 3, "question": "q", "answer": "7"} | body for body in _WHOLE
]


@st.composite
def spoiled_rows(draw):
  """A row of responses in which one or two values are any JSON."""
  row = draw(st.sampled_from(_ROWS))
  for _ in range(draw(st.integers(1, 2))):
    paths = list(_paths_in(row))
    place = draw(st.integers(0, len(paths) - 1))
    row = _replaced(row, paths[place], draw(_JSON))
  return row


def check_gives_records_or_counted_reasons(row, path):
  """Checks that a row gives records or a reason for each choice that fails."""
  if not isinstance(row, dict):
    return
  line = json.dumps(row)
  try:
    json.loads(line)
  except ValueError:  # a number of more digits than Python reads
    return
  path.write_text(line + "\n")
  source = importing.Importer(path, "responses", [])
  records = list(source.records())
  assert len(records) + source.rejected.total() >= 1
  for record in records:
    schema.check_spelling(record)
    text = schema.to_json_line(record)
    assert schema.to_json_line(schema.from_json_line(text, "here")) == text
  for reason in source.rejected:
    assert reason
    assert len(reason) < 600


@settings(max_examples=300, deadline=None)
@given(row=spoiled_rows())
def test_any_json_in_any_field_gives_a_record_or_a_counted_reason(
  tmp_path_factory, row
):
  path = tmp_path_factory.getbasetemp() / "row.jsonl"
  check_gives_records_or_counted_reasons(row, path)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(row=spoiled_rows())
def test_ten_thousand_spoiled_rows_give_records_or_counted_reasons(
  tmp_path_factory, row
):
  path = tmp_path_factory.getbasetemp() / "row.jsonl"
  check_gives_records_or_counted_reasons(row, path)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_no_answer_fails_in_any_other_way(body):
  for one in (
    body,
    {"choices": [body]},
    {"choices": [{"text": "3"} | {"logprobs": body}]},
  ):
    with contextlib.suppress(responses.ResponseError):
      responses.parse(one)
