"""`specialize_jax.align` as a user of the library meets it."""

import base64
import doctest
import importlib
import json
import math
import subprocess
import sys
import types

import numpy as np
import pytest
from testdata import tiny_tokenizers, trees

from specialize_jax import align, errors, losses

HALF, QUARTER = math.log(0.5), math.log(0.25)
TOKENS = ["Ann", " has", " 12"]
TOPS = [
  {"Ann": HALF, "Bob": QUARTER},
  [(" has", HALF), (" and", QUARTER)],
  {" 12": HALF},
]


@pytest.mark.parametrize(
  "module", ["", ".aligner", ".teachers", ".tables", ".alternatives"]
)
def test_the_docstrings_examples_run(module):
  found = doctest.testmod(
    importlib.import_module(f"specialize_jax.align{module}")
  )
  assert found.attempted > 0
  assert found.failed == 0


def test_importing_the_room_imports_what_it_needs_alone():
  """Which takes less than half a second (`bench/imports.py`)."""
  script = (
    "import sys; before = {*sys.modules}; import specialize_jax.align;"
    "print(*({m.split('.')[0] for m in {*sys.modules} - before}))"
  )
  done = subprocess.run(
    [sys.executable, "-c", script], capture_output=True, text=True, check=True
  )
  others = {*done.stdout.split()} - sys.stdlib_module_names
  # The older releases import Cython's modules, and `sysconfig` its data.
  own = ("cython", "_sysconfigdata")
  assert {name for name in others if not any(o in name for o in own)} == {
    *("numpy", "orjson", "rapidfuzz", "sentencepiece", "specialize_jax")
  }


def test_several_texts_are_the_rows_of_a_batch():
  student = trees.tiny_student()
  aligner = align.Aligner(student)
  one, mask, coverage = aligner(TOKENS, TOPS)
  assert one.token_ids.tolist() == list(student.encode_ids("Ann has 12"))
  many, masks, coverages = aligner(
    [TOKENS[:1], [], TOKENS], [TOPS[:1], [], TOPS]
  )
  length = len(one.token_ids)
  assert many.token_ids.shape == masks.shape == (3, length)
  assert many.top_ids.shape == many.top_probs.shape == (3, length, 2)
  np.testing.assert_array_equal(many.top_ids[2], one.top_ids)
  np.testing.assert_allclose(many.top_probs[2], one.top_probs)
  np.testing.assert_array_equal(masks[2], mask)
  assert not many.top_probs[1].any()
  assert not masks[1].any()
  first = coverages.positions - coverage.positions
  assert many.token_ids[0, first:].tolist() == [0] * (length - first)
  assert not many.top_probs[0, first:].any()
  assert coverages.rejected == {"the text has no student token": 1}


def test_bytes_and_teacher_tokens_are_taken_as_strings_are():
  aligner = align.Aligner(trees.tiny_student())
  expected = aligner(TOKENS, TOPS)
  as_bytes = aligner([token.encode() for token in TOKENS], TOPS)
  as_tokens = aligner(align.from_strings(TOKENS, TOPS))
  for found in (as_bytes, as_tokens):
    np.testing.assert_array_equal(
      found.targets.top_probs, expected.targets.top_probs
    )


def test_what_the_aligner_returns_is_what_the_loss_takes():
  student = trees.tiny_student()
  targets, mask, _ = align.Aligner(student)([TOKENS], [TOPS])
  logits = np.zeros((*mask.shape, student.vocab_size), np.float32)
  loss = losses.sparse_kl(logits, targets.top_ids, targets.top_probs)
  assert loss.shape == mask.shape
  assert (np.asarray(loss) > 0).all()
  with pytest.raises(errors.UserError, match="Log-probabilities must be"):
    losses.sparse_kl(logits, targets.top_ids, np.log(targets.top_probs + 1e-9))
  with pytest.raises(errors.UserError, match="the student.s vocabulary"):
    losses.sparse_kl(
      logits, targets.top_ids + student.vocab_size, targets.top_probs
    )


@pytest.mark.parametrize(
  ("tokens", "tops", "message"),
  [
    ("Ann has", TOPS, "one string"),
    (TOKENS, None, "top_logprobs is missing"),
    (TOKENS, TOPS[:1], "1 entries for 3 tokens"),
    ([TOKENS], [TOPS, TOPS], "2 texts and tokens of 1"),
    (TOKENS, [{"x": -1.0}] * 3, "token_logprobs"),
    (TOKENS, [{"Ann": 0.5}, *TOPS[1:]], "at most 0"),
    (TOKENS, [{"Ann": math.nan}, *TOPS[1:]], "at most 0"),
    ([3, 4], [{}, {}], "expected a sequence"),
  ],
)
def test_what_is_no_tokens_with_log_probabilities_is_named(
  tokens, tops, message
):
  with pytest.raises(errors.UserError, match=message):
    align.Aligner(trees.tiny_student())(tokens, tops)


def test_a_tiktoken_file_and_a_fast_tokenizer_are_the_same_teacher(tmp_path):
  student = tiny_tokenizers.student("byte_level_bpe")
  lines = [
    base64.b64encode(student.token_bytes(index)).decode() + f" {index}"
    for index in range(1, student.vocab_size)
  ]
  path = tmp_path / "own.tiktoken"
  path.write_text("\n".join(lines) + "\n")
  ids = student.encode_ids("Ann has \u20ac12")
  tops = [{index: HALF, 70: QUARTER, 0: -3.0} for index in ids]
  from_file = align.from_ids(align.Tiktoken(path), ids, tops)
  assert b"".join(t.spelling for t in from_file) == "Ann has \u20ac12".encode()
  adapted = align.from_ids(student, ids, tops)
  assert [t.spelling for t in adapted] == [t.spelling for t in from_file]
  path.write_text("\n" + "\n\n".join(lines))
  spaced = align.from_ids(align.Tiktoken(path), ids, tops)
  assert spaced == from_file
  path.write_text("no token\n")
  with pytest.raises(errors.UserError, match="line 1"):
    align.Tiktoken(path)


def test_a_tiktoken_file_that_is_not_there_is_named(tmp_path):
  path = tmp_path / "absent.tiktoken"
  with pytest.raises(errors.UserError) as caught:
    align.Tiktoken(path)
  assert str(caught.value) == (
    f"{path} does not exist; give the teacher's .tiktoken file"
  )


@pytest.mark.parametrize(
  ("tokens", "tops", "message"),
  [
    (
      [TOKENS, TOKENS],
      TOPS[:2],
      "top_logprobs of a text is a mapping; expected",
    ),
    (
      TOKENS,
      [["Ann"], *TOPS[1:]],
      "top_logprobs[0] is ['Ann']; expected a map",
    ),
  ],
)
def test_alternatives_that_are_not_nested_as_the_tokens_are_refused(
  tokens, tops, message
):
  with pytest.raises(errors.UserError) as caught:
    align.Aligner(trees.tiny_student())(tokens, tops)
  assert str(caught.value).startswith(message)


def test_a_log_probability_is_of_one_token():
  with pytest.raises(errors.UserError) as caught:
    align.from_strings(TOKENS, TOPS, token_logprobs=[HALF])
  assert str(caught.value) == (
    "token_logprobs has 1 entries for 3 tokens; expected one per token"
  )


def test_ids_are_not_taken_for_strings():
  with pytest.raises(errors.UserError) as caught:
    align.from_strings([318], [{318: HALF}])
  assert str(caught.value) == (
    "token 318 is of type int; expected str or bytes (for ids: align.from_ids)"
  )


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda ids, tops: (ids, tops[:-1], "Ann"),
      "top_logprobs has 0 entries for 1 ids; expected one per token",
    ),
    (
      lambda ids, tops: (ids, [{70: HALF}], "Ann"),
      "ids[0]={} is not among its top_logprobs",
    ),
    (
      lambda ids, tops: (ids, tops, "Bob"),
      "ids=[{}] are not the vocabulary's tokens of text='Bob'",
    ),
  ],
)
def test_ids_that_are_not_a_teacher_s_are_named(change, message):
  student = tiny_tokenizers.student("byte_level_bpe")
  ids = student.encode_ids("Ann")
  assert len(ids) == 1
  ids, tops, text = change(ids, [{ids[0]: HALF}])
  with pytest.raises(errors.UserError) as caught:
    align.from_ids(student, ids, tops, text=text)
  assert str(caught.value) == message.format(ids[0])


def test_a_chat_s_tokens_that_do_not_spell_its_message_are_refused():
  content = [{"token": one, "logprob": -0.5} for one in ("It", "\u0120is")]
  choice = {
    "message": {"content": "It is"},
    "logprobs": {"content": content},
  }
  with pytest.raises(errors.UserError) as caught:
    align.from_response({"choices": [choice]})
  assert str(caught.value) == (
    "the response's tokens spell 'It\u0120is', and its text is 'It is':"
    " `specialize import` reads the spellings of many servers"
  )
  content[1]["token"] = " is"
  found = align.from_response({"choices": [choice]})
  assert [one.spelling for one in found] == [b"It", b" is"]


def test_align_texts_returns_the_same_groups_as_align():
  aligner = align.Aligner(trees.tiny_student())
  texts = ["Ann has 12", "12 clips"]
  spellings = [[b"Ann", b" has", b" 1", b"2"], [b"12 cl", b"ips"]]
  samples = [
    (align.from_strings(tokens, [{one: HALF} for one in tokens]), text)
    for tokens, text in zip(spellings, texts, strict=True)
  ]
  teacher, student = aligner.align_texts(texts, spellings)
  whole = aligner.align(samples)
  assert teacher.tolist() == whole.teacher_group_L.tolist()
  assert student.tolist() == whole.student_group_P.tolist()
  assert teacher.tolist()[0] == teacher.tolist()[4] == 0


@pytest.mark.parametrize("wrapped", [True, False])
def test_server_answers_are_teachers(wrapped):
  completion = {
    "logprobs": {
      "tokens": TOKENS,
      "token_logprobs": [HALF] * 3,
      "top_logprobs": [dict(top) for top in TOPS],
    }
  }
  chat = {
    "logprobs": {
      "content": [
        {
          "token": "?",
          "bytes": list(token.encode()),
          "logprob": HALF,
          "top_logprobs": [
            {"token": one, "logprob": log_prob}
            for one, log_prob in dict(top).items()
          ],
        }
        for token, top in zip(TOKENS, TOPS, strict=True)
      ]
    }
  }
  for answer in (completion, chat):
    given = {"choices": [answer]} if wrapped else answer
    found = align.from_response(json.loads(json.dumps(given)))
    assert found == align.from_strings(TOKENS, TOPS)
  end = {"token": "<|im_end|>", "logprob": HALF, "bytes": []}
  chat["logprobs"]["content"].append(end)
  completion["logprobs"]["tokens"] = [*TOKENS, "</s>"]
  for name in ("token_logprobs", "top_logprobs"):
    values = completion["logprobs"][name]
    completion["logprobs"][name] = [*values, values[-1]]
  for answer in (completion, chat):
    assert align.from_response(answer) == align.from_strings(TOKENS, TOPS)
  for entry in chat["logprobs"]["content"]:
    entry["token"] = bytes(entry["bytes"]).decode() or entry["token"]
    entry["bytes"] = []
  client_s = types.SimpleNamespace(model_dump=lambda: chat)
  assert align.from_response(client_s) == align.from_strings(TOKENS, TOPS)
  assert align.from_response(chat) == align.from_strings(TOKENS, TOPS)
  with pytest.raises(errors.UserError, match="holds no log-prob"):
    align.from_response({"choices": [{"logprobs": None}]})
  for entry in ({"token": "a"}, {"token": "a", "logprob": -1, "bytes": [300]}):
    with pytest.raises(errors.UserError, match="are not as /v1/completions"):
      align.from_response({"content": [entry]})


@pytest.mark.parametrize(
  "token", ["\u0120is", "bytes:\\xe2\\x82", "token_id:318", "<0x20>"]
)
def test_tokens_that_do_not_spell_their_text_are_refused(token):
  log_probs = {"tokens": ["It", token], "token_logprobs": [-0.5, -0.5]}
  choice = {"text": "It is", "logprobs": log_probs}
  with pytest.raises(errors.UserError, match="and its text is 'It is'"):
    align.from_response({"choices": [choice]})
  log_probs["tokens"][1] = " is"
  found = align.from_response({"choices": [choice]})
  assert [one.spelling for one in found] == [b"It", b" is"]
