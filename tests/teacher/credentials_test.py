"""No key of a request or an address is shown or stored."""

import pytest

from specialize_jax.teacher import credentials


@pytest.mark.parametrize(
  ("url", "shown"),
  [
    ("https://host/v1", "https://host/v1"),
    ("https://me:pw@host:8000/v1?key=SECRET", "https://host:8000/v1"),
    ("localhost:8000/v1?key=SECRET", "localhost:8000/v1"),
    ("/openai/chat?api-key=SECRET", "/openai/chat"),
    ("https://host/v1?key=SECRET&next=http://a@b", "https://host/v1"),
    ("https://host/v1#SECRET", "https://host/v1"),
    ("http://me:SEC/RET@host/v1", "http://host/v1"),
    ("http://me:SEC#RET@host/v1", "http://host/v1"),
    ("http://me:SEC?RET@host/v1", "http://host/v1"),
    (
      "https://host:8000/models/gemini@001",
      "https://host:8000/models/gemini@001",
    ),
    ("https://host/models/gemini@001", "https://host/models/gemini@001"),
  ],
)
def test_an_address_is_shown_without_what_may_be_secret(url, shown):
  assert credentials.address(url) == shown


@pytest.mark.parametrize(
  "field",
  [
    {"api_key": "k"},
    {"apiKey": ["k"]},
    {"OPENAI_API_KEY": "k"},
    {"Ocp-Apim-Subscription-Key": "k"},
    {"x-functions-key": "k"},
    {"aws_access_key_id": {"access_key": "k"}},
    {"authorization": {"bearer": "k"}},
    {"extra_headers": {"x": "k"}},
    {"access_token": "k"},
    {"password": {"value": "k"}},
    {"key": "k"},
    {"litellm_params": [{"private_key": "k"}]},
    {"cookie": "k"},
  ],
)
def test_a_field_that_holds_a_credential_is_left_out(field):
  assert credentials.first_name(field) is not None
  assert "k'" not in str(credentials.without(field))


@pytest.mark.parametrize(
  "field",
  [
    {"max_tokens": 3},
    {"prompt_cache_key": "gsm"},
    {"ban_eos_token": True},
    {"stop_token": "</s>"},
    {"properties": {"key": {"type": "string"}, "password": {"$ref": "#/a"}}},
    {"api_key": None},
    {"monkey": "k", "tokenizer": "k"},
  ],
)
def test_other_fields_stay(field):
  assert credentials.first_name(field) is None
  assert credentials.without(field) == field
