"""Rows become requests, or an error that names the line."""

import dataclasses

import numpy as np
import pytest
from testdata import tiny_t5, tiny_vocabulary

from specialize_jax import errors
from specialize_jax.decoding import requests, rows, self_consistency


def read(*given, **changes):
  arguments = {
    "where": "--inputs=in.jsonl",
    "model": dataclasses.replace(tiny_t5.T5_1_1, vocab_size=64),
    "vocabulary": tiny_vocabulary.load(),
    "input_limit": 6,
    **changes,
  }
  return rows.Reader(**arguments).read(list(enumerate(given, start=1)))


def test_a_text_ends_with_eos_and_ids_are_as_they_are():
  (text, ids, both), num_truncated = read(
    {"text": "ab"},
    {"input_ids": [5, 0, 7, 0, 0]},
    {"input_ids": [9], "text": "ab"},
  )
  assert tiny_vocabulary.load().decode(text.input_ids) == "ab"
  assert text.input_ids[-1] == 1
  assert text.input_ids.dtype == np.int32
  assert ids.input_ids.tolist() == [5, 0, 7]
  assert both.input_ids.tolist() == [9]
  assert [one.number for one in (text, ids, both)] == [0, 1, 2]
  assert ids.target_ids is None
  assert num_truncated == 0


def test_a_scored_text_ends_with_eos_and_scored_ids_are_as_they_are():
  (text, ids), _ = read(
    {"text": "ab", "target": "cd"}, {"input_ids": [5], "target_ids": [7, 8]}
  )
  assert text.target_ids[-1] == 1
  assert tiny_vocabulary.load().decode(text.target_ids) == "cd"
  assert ids.target_ids.tolist() == [7, 8]


def test_long_inputs_are_truncated_only_on_request_and_keep_their_eos():
  long = {"input_ids": [5, 6, 7, 8, 9, 10, 1]}
  open_ended = {"input_ids": [5, 6, 7, 8, 9, 10, 11]}
  (one, two, three), num_truncated = read(
    long, open_ended, {"input_ids": [4] * 6}, truncate=True
  )
  assert one.input_ids.tolist() == [5, 6, 7, 8, 9, 1]
  assert two.input_ids.tolist() == [5, 6, 7, 8, 9, 10]
  assert len(three.input_ids) == 6
  assert num_truncated == 2
  with pytest.raises(
    errors.UserError, match="line 2: the input has 7 tokens, and at most 6 .*"
  ):
    read({"input_ids": [5]}, long)


@pytest.mark.parametrize(
  ("row", "sentence"),
  [
    ({"prompt": "?"}, 'line 1 has no "question", "text" or "input_ids"'),
    ({"text": 5}, "\"text\" is '5', and must be a string"),
    ({"text": "\ud800"}, "half of a surrogate pair"),
    ({"input_ids": "5"}, "must be a list of whole numbers"),
    ({"input_ids": [True]}, "must be a list of whole numbers"),
    ({"input_ids": [1.0]}, "must be a list of whole numbers"),
    ({"input_ids": [5, 64]}, "holds 64, and the model's ids are 0 to 63"),
    ({"input_ids": [-1]}, "holds -1, and the model's ids are 0 to 63"),
    ({"input_ids": []}, '"input_ids" is empty'),
    ({"input_ids": [0, 0]}, '"input_ids" is empty'),
    ({"text": "ab", "target_ids": [70]}, '"target_ids" holds 70'),
    ({"text": "ab", "target_ids": [5, 0, 6]}, "holds 0, which is padding"),
    ({"text": "ab", "target": ["cd"]}, '"target" is .* must be a string'),
  ],
)
def test_a_bad_row_is_named(row, sentence):
  with pytest.raises(errors.UserError, match=sentence) as error:
    read(row)
  assert str(error.value).startswith("--inputs=in.jsonl, line 1")


def test_a_sentinel_without_a_row_of_the_model_is_named():
  """Which would be read as NaN, and every output would be empty."""
  with pytest.raises(errors.UserError) as error:
    read({"text": "ab <extra_id_0>"})
  assert 'line 1: "text" holds ' in str(error.value)
  assert "and the model has 64: take it out of the text" in str(error.value)


def test_a_text_needs_a_vocabulary_and_ids_do_not():
  (one,), _ = read({"input_ids": [5]}, vocabulary=None)
  assert one.input_ids.tolist() == [5]
  with pytest.raises(errors.UserError, match="give --vocabulary=spiece.model"):
    read({"text": "ab"}, vocabulary=None)


def test_max_input_length_must_be_positive():
  with pytest.raises(errors.UserError, match="max_input_length is 0"):
    read({"text": "ab"}, input_limit=0)


def output(ids, text="x", score=-1.0):
  log_probs = np.linspace(-0.1, -0.2, len(ids), dtype=np.float32)
  return requests.Output(
    ids=np.array(ids, np.int32), log_probs=log_probs, score=score, text=text
  )


def test_an_output_row_keeps_the_inputs_fields():
  result = requests.Result(sequences=[output([5, 1], "ab")])
  row = rows.output_row({"id": "q1", "text": "?"}, result, log_probs=False)
  assert row == {"id": "q1", "text": "?", "output_ids": [5, 1], "output": "ab"}
  row = rows.output_row({}, result, log_probs=True)
  assert row["output_log_probs"] == [-0.1, -0.2]


def test_results_of_an_earlier_run_are_not_this_one_s():
  """An output file is fed to another checkpoint."""
  before = {
    "text": "?",
    "x": float("nan"),
    "output": "old",
    "outputs": [],
    "voted_answer": "7",
    "output_log_probs": [-0.5],
  }
  result = requests.Result(sequences=[output([5, 1], None)])
  row = rows.output_row(before, result, log_probs=False)
  assert row.keys() == {"text", "x", "output_ids"}
  # As it is read back to be resumed.
  assert rows.is_output_of({**row, "x": None}, before)
  assert not rows.is_output_of({**row, "x": None}, {**before, "text": "!"})
  assert not rows.is_output_of({**row, "x": None}, {**before, "y": 1})


def test_without_a_vocabulary_there_is_no_text():
  result = requests.Result(sequences=[output([5, 1], None)])
  assert rows.output_row({}, result, log_probs=False) == {"output_ids": [5, 1]}


def test_several_outputs_and_votes_are_listed():
  result = requests.Result(
    sequences=[output([5, 1], "a 1"), output([6, 1], "b 2", -0.5)],
    best=1,
    vote=self_consistency.Vote(answer="2", shares={"2": 1.0}, index=1),
  )
  row = rows.output_row({}, result, log_probs=False)
  assert row["output"] == "b 2"
  assert row["voted_answer"] == "2"
  assert row["vote_shares"] == {"2": 1.0}
  assert row["outputs"] == [
    {"output_ids": [5, 1], "output": "a 1", "score": -1.0},
    {"output_ids": [6, 1], "output": "b 2", "score": -0.5},
  ]


def test_a_scored_row_has_float32s_in_their_shortest_spelling():
  log_probs = np.array([-0.1, -1 / 3], np.float32)
  result = requests.Result(target_log_probs=log_probs)
  row = rows.output_row({"target": "t"}, result, log_probs=True)
  assert row == {"target": "t", "target_log_probs": [-0.1, -0.33333334]}
  assert np.float32(row["target_log_probs"][1]) == log_probs[1]


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"strategy": "best"}, "strategy is 'best'"),
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"temperature": 2.0}, "temperature does not go with strategy=greedy: it"),
    (
      {"strategy": "beam", "top_p": 0.9},
      "top_p does not go with strategy=beam",
    ),
    ({"top_k": 5}, "top_k does not go with strategy=greedy: it needs"),
    (
      {"strategy": "sample", "temperature": -1},
      "temperature is -1, and must be",
    ),
    (
      {"strategy": "sample", "num_return_sequences": 3},
      "num_return_sequences does not go with strategy=sample: it needs",
    ),
    ({"strategy": "sample", "num_samples": 0}, "num_samples is 0"),
    ({"strategy": "sample", "num_samples": 2000}, "at most 1024"),
    ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0"),
    ({"strategy": "sample", "top_p": 1.5}, "top_p is 1.5"),
    ({"strategy": "beam", "num_beams": 0}, "num_beams is 0"),
    (
      {"strategy": "beam", "num_beams": 2, "num_return_sequences": 3},
      "num_return_sequences is 3",
    ),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"strategy": "beam", "top_p": 1.5}, "top_p is 1.5"),
    ({"num_samples": 4}, "num_samples does not go with strategy=greedy"),
    ({"self_consistency": True}, "self_consistency does not go with"),
    (
      {"strategy": "beam", "calculator": True},
      "calculator does not go with strategy=beam",
    ),
  ],
)
def test_invalid_settings_are_errors(changes, sentence):
  with pytest.raises(errors.UserError, match=sentence):
    requests.Settings(**changes)
