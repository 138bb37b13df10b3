"""Responses of servers' own endpoints are read like those of a chat."""

import contextlib
import json
import math
import re

import pytest

from specialize_jax.records import schema
from specialize_jax.teacher import importing, responses

LOW = math.log(0.5)


def llama_cpp(**changes):
  entry = {"id": 7, "token": "It", "logprob": LOW, "bytes": [73, 116]}
  other = {"id": 9, "token": " is", "logprob": -0.1, "bytes": None}
  letter = {**entry, "token": "A", "bytes": [65]}
  return {
    "index": 0,
    "content": "It is",
    "stop": True,
    "stop_type": "eos",
    "tokens_predicted": 2,
    "tokens_evaluated": 5,
    "completion_probabilities": [
      {**entry, "top_logprobs": [entry, letter]},
      {**other, "top_logprobs": [other]},
    ],
  } | changes


def early_llama_cpp(**changes):
  return {
    "content": "It is",
    "stop": True,
    "stopped_eos": False,
    "stopped_limit": True,
    "tokens_predicted": 2,
    "completion_probabilities": [
      {
        "content": "It",
        "probs": [
          {"tok_str": "It", "prob": 0.5},
          {"tok_str": "A", "prob": 0.5},
          {"tok_str": "B", "prob": 0.0},
        ],
      },
      {"content": " is", "probs": [{"tok_str": " is", "prob": 1}]},
    ],
  } | changes


def sampled_llama_cpp():
  """With post_sampling_probs."""
  entry = {"id": 7, "token": "It", "prob": 0.5, "bytes": [73, 116]}
  other = {"token": " is", "prob": 1.0, "bytes": [32, 105, 115]}
  return llama_cpp(
    completion_probabilities=[
      {**entry, "top_probs": [entry, {**entry, "token": "A", "bytes": [65]}]},
      {**other, "top_probs": [other]},
    ]
  )


def ollama(**changes):
  return {
    "model": "m",
    "response": "It is",
    "done": True,
    "done_reason": "stop",
    "prompt_eval_count": 5,
    "eval_count": 2,
    "logprobs": llama_cpp()["completion_probabilities"],
  } | changes


def ollama_chat():
  body = ollama(message={"role": "assistant", "content": "It is"})
  del body["response"]
  return body


def text_generation_inference():
  def one(text, value):
    return {"id": 3, "text": text, "logprob": value, "special": False}

  return {
    "generated_text": "It is",
    "details": {
      "finish_reason": "eos_token",
      "generated_tokens": 3,
      "prefill": [],
      "tokens": [one("It", LOW), one(" is", -0.1), one("</s>", -0.2)],
      "top_tokens": [
        [one("It", LOW), one("A", LOW)],
        [one(" is", -0.1)],
        [one("</s>", -0.2)],
      ],
    },
  }


def sglang(**changes):
  return {
    "text": "It is",
    "meta_info": {
      "finish_reason": {"type": "stop", "matched": 2},
      "prompt_tokens": 5,
      "completion_tokens": 2,
      "output_token_logprobs": [[LOW, 7, "It"], [-0.1, 9, " is"]],
      "output_top_logprobs": [
        [[LOW, 7, "It"], [LOW, 8, "A"]],
        [[-0.1, 9, " is"]],
      ],
    }
    | changes,
  }


def gemini():
  def one(token, value):
    return {"token": token, "tokenId": 3, "logProbability": value}

  return {
    "candidates": [
      {
        "content": {
          "parts": [{"text": "It"}, {"text": " is"}],
          "role": "model",
        },
        "finishReason": "STOP",
        "logprobsResult": {
          "topCandidates": [
            {"candidates": [one("It", LOW), one("A", LOW)]},
            {"candidates": [one(" is", -0.1)]},
          ],
          "chosenCandidates": [one("It", LOW), one(" is", -0.1)],
        },
      }
    ],
    "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2},
  }


def gemini_of_python(value=None):
  """As google-genai writes it, with the number of the finish reason."""
  value = gemini() if value is None else value
  if isinstance(value, list):
    return [gemini_of_python(one) for one in value]
  if not isinstance(value, dict):
    return 1 if value == "STOP" else value
  return {
    re.sub("([A-Z])", lambda m: f"_{m[1].lower()}", name): gemini_of_python(one)
    for name, one in value.items()
  }


SERVERS = {
  "llama.cpp": (llama_cpp(), "stop"),
  "llama.cpp, sampled": (sampled_llama_cpp(), "stop"),
  "llama.cpp, early": (early_llama_cpp(), "length"),
  "Ollama": (ollama(), "stop"),
  "Ollama's chat": (ollama_chat(), "stop"),
  "text-generation-inference": (text_generation_inference(), "eos_token"),
  "SGLang": (sglang(), "stop"),
  "Gemini": (gemini(), "STOP"),
  "Gemini, by Python": (gemini_of_python(), "STOP"),
}


@pytest.mark.parametrize("server", SERVERS)
def test_a_servers_own_response_is_read_as_a_chats(server, tmp_path):
  body, finish_reason = SERVERS[server]
  path = tmp_path / "responses.jsonl"
  rows = [
    {"question_id": 3, "question": "q", "answer": "7", **body},
    {"question_id": 3, "response": body},
    {
      "question_id": 3,
      "response": {"status_code": 200, "body": json.dumps(body)},
    },
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  source = importing.Importer(path, importing.kind_of(path), [])
  records = list(source.records())
  assert not source.rejected
  assert len(records) == 3
  for record in records:
    assert (record.text, record.finish_reason) == ("It is", finish_reason)
    first, second = record.steps
    assert first.log_prob == pytest.approx(LOW)
    assert [name for name, _ in first.top[:2]] == ["It", "A"]
    assert [value for _, value in first.top[:2]] == pytest.approx([LOW, LOW])
    assert (second.token, second.top[0][0]) == (" is", " is")


def test_a_server_counts_its_tokens():
  for body in (
    *(llama_cpp(), ollama(), sglang()),
    *(gemini(), gemini_of_python()),
  ):
    response = responses.parse(body)
    assert (response.prompt_tokens, response.completion_tokens) == (5, 2)


def test_several_samples_of_a_prompt_are_a_list():
  assert len(responses.parse([sglang(), sglang()]).choices) == 2
  body = text_generation_inference()
  body["details"]["best_of_sequences"] = [
    {"generated_text": "It is", **body["details"]}
  ]
  assert len(responses.parse(body).choices) == 2


@pytest.mark.parametrize(
  ("body", "error", "words"),
  [
    (ollama(done=False, response="It"), responses.SettledError, "of a stream"),
    (llama_cpp(stop=False), responses.SettledError, "of a stream"),
    (ollama(response="", logprobs=None), responses.SettledError, "of a stream"),
    (llama_cpp(content=""), responses.SettledError, "of a stream"),
    (sglang(finish_reason=None), responses.SettledError, "of a stream"),
    (
      gemini() | {"usageMetadata": {"candidatesTokenCount": 9}},
      responses.SettledError,
      "of a stream",
    ),
    (
      {"candidates": [{"content": {"parts": [{"text": "It"}]}}]},
      responses.SettledError,
      "of a stream",
    ),
    (ollama(logprobs=None), responses.NoLogProbsError, "log-probabilities"),
    (
      sglang(output_token_logprobs=[[LOW, 7, None], [-0.1, 9, None]]),
      responses.SettledError,
      "return_text_in_logprobs",
    ),
    (
      sglang(output_top_logprobs=None),
      responses.NoLogProbsError,
      "most probable tokens",
    ),
    (sglang(output_token_logprobs=[7]), responses.ResponseError, "has 7"),
    ({"candidates": [{"finishReason": "SAFETY"}]}, None, ""),
    ({"candidates": [{"content": 5, "finishReason": "OTHER"}]}, None, ""),
    (
      llama_cpp(completion_probabilities=[{}]),
      responses.ResponseError,
      "token",
    ),
  ],
)
def test_what_such_a_response_lacks_is_said(body, error, words):
  if error is None:
    assert responses.parse(body).choices[0].steps == ()
    return
  with pytest.raises(error, match=words):
    responses.parse(body)


def test_a_list_of_responses_is_imported_as_lines_are(tmp_path):
  path = tmp_path / "responses.json"
  path.write_text(json.dumps([{"question_id": 3, **sglang()}] * 2, indent=1))
  assert importing.kind_of(path) == "responses"
  source = importing.Importer(path, "responses", [])
  assert [record.sample for record in source.records()] == [0, 1]


def test_parts_of_a_character_that_are_spelt_empty_take_the_texts_bytes():
  """As vLLM spells curly quotes of a byte-level vocabulary."""

  def entry(token):
    one = {"token": token, "logprob": -0.1, "bytes": list(token.encode())}
    return one | {"top_logprobs": [one] if token else []}

  tokens = ["say", " ", "", "", "", "", "hi", "", "", ""]
  said = {
    "message": {"content": "say \u201chi\u201d"},
    "logprobs": {"content": [entry(token) for token in tokens]},
    "finish_reason": "stop",
  }
  with pytest.raises(responses.ResponseError, match="4 tokens"):
    responses.parse({"choices": [said]})
  del said["logprobs"]["content"][2]
  (choice,) = responses.parse({"choices": [said]}).choices
  assert choice.text == "say \u201chi\u201d"
  quote = [b"\xe2", b"\x80", b"\x9c"]
  spelt = [step.spelling for step in choice.steps]
  assert spelt == [b"say", b" ", *quote, b"hi", *quote[:2], b"\x9d"]
  assert isinstance(choice.steps[0], schema.TeacherStep)


def places(value, path=()):
  """Yields where in a JSON value each value stands."""
  yield path
  if isinstance(value, dict | list):
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
      yield from places(one, (*path, key))


def replaced(value, path, new):
  if not path:
    return new
  value = dict(value) if isinstance(value, dict) else list(value)
  value[path[0]] = replaced(value[path[0]], path[1:], new)
  return value


@pytest.mark.parametrize("server", SERVERS)
def test_any_value_in_any_field_gives_choices_or_an_error_of_their_own(server):
  body, _ = SERVERS[server]
  for path in places(body):
    for new in (None, True, 5, -1.5, math.nan, "x", [], {}, [[]], [{}], [None]):
      with contextlib.suppress(responses.ResponseError):
        for choice in responses.parse(replaced(body, path, new)).choices:
          assert isinstance(choice.text, str)
