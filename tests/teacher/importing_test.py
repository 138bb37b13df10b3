"""Released files come back exactly; a hostile pickle runs nothing."""

import codecs
import collections
import functools
import json
import math
import os
import pathlib
import pickle
import sys

import pytest
from testdata import real_files

from specialize_jax import errors
from specialize_jax.cli import main
from specialize_jax.cot import answer_rules
from specialize_jax.records import released, schema, store
from specialize_jax.teacher import (
  importing,
  released_pickles,
  responses,
  safe_pickle,
  standing,
  streams,
)

QUESTION = "How many clips?"
SOLUTION = "She sold 48/2 = <<48/2=24>>24 clips.\n#### 72"
ODD = "<<48/2>> 0.5 'a' \"b\" \\n |||\ttab"


def step(token, prob=0.5):
  return [[token, prob], [" step", 0.25], [token, prob], ["'<<'>> 1.0", 0.125]]


def sample_steps(text, stop=("\n", "\n")):
  tokens = [" step", "\n", *text.split("@"), *stop]
  return [step(token) for token in tokens]


def dumped(number, samples, answer=SOLUTION):
  """Writes what the authors' script writes, and more after the answer."""
  lines = [f"Question {number}: {QUESTION}\n", f"Answer: {answer}\n"]
  for i, (text, steps) in enumerate(samples):
    lines.append(f"Model output {i}: \n{text}\n")
    after = [step("Question"), step(": Who?")]
    written = []
    for one in [*steps, *after]:
      pairs = "".join(f"<<{t!r}>> {p:.4f} " for t, p in one)
      written.append(f"{pairs}||| ")
    lines.append(f"Per-step decode: {''.join(written)}\n")
  return "".join([*lines, "\n\n\n\n"])


def read(path, problems=()):
  path = pathlib.Path(path)
  source = importing.Importer(path, importing.kind_of(path), problems)
  return list(source.records()), source.rejected


def write_pickles(folder, questions, answers, predictions, per_step_probs):
  folder.mkdir(exist_ok=True)
  for name, values in locals().copy().items():
    if name != "folder":
      (folder / f"codex_{name}.pkl").write_bytes(pickle.dumps(values))
  return folder


def real_entries():
  path = real_files.find("codex", "gsm8k_train_0.json")
  return path, json.loads(path.read_text())


def without_question(record):
  return {
    name: value
    for name, value in vars(record).items()
    if name not in ("question", "gold_answer", "verdicts")
  }


def test_a_dump_of_the_real_samples_gives_the_records_of_their_json(tmp_path):
  path, entries = real_entries()
  expected = list(store.read_records(path))
  samples = [
    (record.text, entry["steps"])
    for record, entry in zip(expected, entries, strict=True)
  ]
  dump = tmp_path / "dump.txt"
  dump.write_text(dumped(0, samples))
  records, rejected = read(dump)
  assert not rejected
  assert list(map(without_question, records)) == list(
    map(without_question, expected)
  )
  assert {record.gold_answer for record in records} == {"72"}
  assert {record.question for record in records} == {QUESTION}
  assert all(record.verdicts["fixed"] for record in records)


def test_pickles_of_the_real_samples_give_the_records_of_their_json(tmp_path):
  path, entries = real_entries()
  expected = list(store.read_records(path))
  folder = write_pickles(
    tmp_path / "pickles",
    [f"Question 0: {QUESTION}\n"] * 2,  # the authors' reader repeats some
    [f"Answer: {SOLUTION}\n"],
    [[f"Model output {r.sample}: \n{r.text}\n" for r in expected]],
    [[[[tuple(p) for p in s] for s in e["steps"]] for e in entries]],
  )
  records, rejected = read(folder)
  assert not rejected
  assert list(map(without_question, records)) == list(
    map(without_question, expected)
  )
  assert {record.gold_answer for record in records} == {"72"}


def test_a_dumps_odd_tokens_are_read_back_exactly(tmp_path):
  text = f"{ODD}\nThe answer is 72"
  steps = sample_steps(f"{ODD}@\nThe@ answer@ is@ 72")
  dump = tmp_path / "dump.txt"
  dump.write_text(dumped(5, [(text, steps), (text, steps)]) * 2)
  records, _ = read(dump)
  assert [r.sample for r in records] == [0, 1, 0, 1]
  assert {r.question_id for r in records} == {5}
  for record in records:
    assert record.text == text
    assert record.steps[0].token == ODD
    assert record.steps[0].top[2] == ("'<<'>> 1.0", math.log(0.125))
    assert record.finish_reason == "stop"


def test_a_dumped_sample_that_never_stopped_ends_with_its_text(tmp_path):
  steps = sample_steps("The@ answer@ is@ 72@\n@And@ on", stop=())
  dump = tmp_path / "dump.txt"
  dump.write_text(dumped(0, [("The answer is 72", steps), ("Else", steps)]))
  (record,), rejected = read(dump)
  assert record.text == "The answer is 72"
  assert record.finish_reason == schema.UNKNOWN_FINISH
  assert rejected.total() == 1


def test_tokens_that_the_api_spelled_by_bytes_spell_their_character(tmp_path):
  steps = sample_steps("5@ bytes@ is@ answer@ is".replace(" bytes", "x"))
  steps[3] = [["bytes:\\xe2\\x82", 0.5], ["bytes:\\xc2", 0.25]]
  steps[4] = [["bytes:\\xac", 0.5]]
  dump = tmp_path / "dump.txt"
  dump.write_text(dumped(0, [("5\u20ac answer is", steps)]))
  (record,), _ = read(dump)
  assert record.text == "5\u20ac answer is"
  assert record.steps[1].spelling == b"\xe2\x82"
  schema.check_spelling(record)


def test_a_released_sample_that_was_cut_within_a_character_loses_it():
  steps = [[["5", 0.5]], [["bytes:\\xe2\\x82", 0.5]]]
  record = released.to_record(steps, question_id=1, sample=0)
  assert (record.text, len(record.steps)) == ("5", 1)
  with pytest.raises(UnicodeDecodeError):
    released.to_record([*steps, [["5", 0.5]]], question_id=1, sample=0)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t[: len(t) // 2], r"line \d+: expected"),
    (lambda t: t.replace("||| \n", "\n"), r"'\|\|\|' at the end"),
    (lambda t: t.replace(">> 0.5", "> 0.5", 1), r"expected <<'token'>>"),
    (lambda t: t.replace("<<'7'>>", r"<<'\x4'>>"), "a token as Python writes"),
    (lambda t: t.replace("Answer: ", "A: "), r"starts with 'Answer: '"),
    (lambda t: t + "Bye\n", r"expected 'Question N"),
  ],
)
def test_a_broken_dump_names_the_line(tmp_path, change, message):
  dump = tmp_path / "dump.txt"
  dump.write_text(change(dumped(0, [("7", sample_steps("7"))])))
  with pytest.raises(errors.UserError, match=message):
    read(dump)


def test_tokens_whose_escapes_the_authors_left_are_read_whole(tmp_path):
  left = "5\\xa0\\u20ac"
  steps = [step(t) for t in (" step", "\n", left, " is", "\n", "\n")]
  folder = write_pickles(
    tmp_path / "p",
    ["Question 3: Q?\n"],
    ["Answer: #### 5\n"],
    [["Model output 0: \n5\u00a0\u20ac is\n"]],
    [[steps]],
  )
  (record,), _ = read(folder)
  assert record.text == "5\u00a0\u20ac is"
  assert record.question_id == 3


def format_row(pieces, answer="I see 3.\nThe answer is 3", **changes):
  steps = [
    collections.OrderedDict([(piece, 0.5), ("\u2581so", 0.25)])
    for piece in pieces
  ]
  return {
    "question": "Q: Old?\nLet's think step by step\nNo\n\nQ: How many?\n"
    "Let's think step by step",
    "answer": answer,
    "answer_gold": "Answer: #### 3\n",
    "per_step_probs": steps,
    "answer_label": 1,
    "type": "in_context_chain_of_thought",
  } | changes


PIECES = [f"\u2581{w}" for w in ("I", "see", "3")] + ["."]
PIECES += [f"\u2581{w}" for w in ("The", "answer", "is", "3")]


def test_a_formats_pieces_take_the_texts_own_white_space(tmp_path):
  path = tmp_path / "in_context_chain_of_thought.pkl"
  unknown = format_row(
    [*PIECES[:2], "\u2581", "<unk>", *PIECES[3:]],
    "I see {3~}.\nThe answer is 3",
  )
  no_probs = format_row(PIECES)
  del no_probs["per_step_probs"]
  rows = [
    format_row(PIECES),
    unknown,
    format_row(PIECES[:-1]),
    format_row(PIECES, "I saw 3."),
    no_probs,
  ]
  path.write_bytes(pickle.dumps(rows))
  records, rejected = read(path)
  assert [r.text for r in records] == [rows[0]["answer"], rows[1]["answer"]]
  assert [r.sample for r in records] == [0, 1]
  assert {r.question for r in records} == {"How many?"}
  assert records[0].steps[4].spelling == b"\nThe"
  assert records[0].steps[4].top == (
    (" The", math.log(0.5)),
    (" so", math.log(0.25)),
  )
  assert records[1].steps[3].spelling == b"{3~}"
  assert rejected["holds no teacher probabilities"] == 1
  assert rejected.total() == 3


class Hostile:
  """Makes a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_raises_and_runs_nothing(tmp_path, protocol):
  made = tmp_path / "made"
  bad = tmp_path / "bad.pkl"
  bad.write_bytes(pickle.dumps([1, Hostile(made)], protocol=protocol))
  with pytest.raises(errors.UserError, match=r"refused.*mkdir.*nothing"):
    safe_pickle.load(bad)
  assert not made.exists()
  pickle.loads(bad.read_bytes())  # it does harm where nobody refuses it
  assert made.exists()


@pytest.mark.parametrize(
  "program",
  [
    b"cos\nsystem\n(S'true'\ntR.",
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.",
    b"ccollections\nnamedtuple\n.",
    b"(icollections\ndeque\n.",
    b"Pid\n.",
  ],
)
def test_a_pickle_may_name_only_plain_containers(tmp_path, program):
  path = tmp_path / "bad.pkl"
  path.write_bytes(program)
  with pytest.raises(errors.UserError, match="refused"):
    safe_pickle.load(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_passes_whole(tmp_path, protocol):
  data = [
    {"a": (1, 2.5, None, True, -(10**30)), "b": [b"x", "\u20ac"]},
    collections.OrderedDict([("z", 1), ("a", 2)]),
    {1, 2},
    frozenset(["q"]),
  ]
  if protocol < 3:  # older protocols write bytes as a call of _codecs.encode
    data[0]["b"].pop(0)
  path = tmp_path / "good.pkl"
  path.write_bytes(pickle.dumps(data, protocol=protocol))
  assert safe_pickle.load(path) == data
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(errors.UserError, match="not a complete pickle"):
    safe_pickle.load(path)


def legacy_choice(text):
  log_probs = {"tokens": [text], "token_logprobs": [-0.5]}
  log_probs["top_logprobs"] = [{text: -0.5, " so": -1.5}]
  return {"text": text, "logprobs": log_probs, "finish_reason": "stop"}


def test_responses_are_numbered_by_question_and_graded(tmp_path, capsys):
  rows = [
    {"question_id": "a", "question": "3 + 4?", "answer": "#### 7"}
    | {"choices": [legacy_choice("7"), legacy_choice("8")]},
    {"custom_id": "b", "response": {"body": {"choices": [legacy_choice("7")]}}},
    {"question_id": "a", "question": "3 + 4?", "answer": "7"}
    | {"response": {"model": "m", "choices": [legacy_choice("7.0")]}},
    {"custom_id": "b", "response": {"body": {"error": "no"}}},
  ]
  path = tmp_path / "responses.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question_id": "b", "question": "Q", "answer": 8}\n')
  output = tmp_path / "records"
  argv = ["import", f"--input={path}", f"--output={output}"]
  assert main.main([*argv, f"--questions={questions}"]) == 0
  assert "4 samples, 2 of 4 graded are right" in capsys.readouterr().out
  found = [
    (r.question_id, r.sample, r.text, r.gold_answer, r.verdicts["fixed"])
    for r in store.read_records(output)
  ]
  assert found == [
    ("a", 0, "7", "7", True),
    ("a", 1, "8", "7", False),
    ("b", 0, "7", "8", False),
    ("a", 2, "7.0", "7", True),
  ]
  assert main.main(argv) == 2
  assert "records are kept for ever" in capsys.readouterr().err


def test_responses_and_questions_saved_on_windows_are_imported(
  tmp_path, capsys
):
  def saved(name, row):
    path = tmp_path / name
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(row).encode() + b"\r\n")
    return path

  asked = {"question_id": "a", "question": "3 + 4?", "answer": "7"}
  responses = saved(
    "responses.jsonl", {"question_id": "a", "choices": [legacy_choice("7")]}
  )
  questions = saved("questions.jsonl", asked)
  output = tmp_path / "records"
  argv = ["import", f"--input={responses}", f"--output={output}"]
  assert main.main([*argv, f"--questions={questions}"]) == 0
  (record,) = store.read_records(output)
  assert (record.question, record.gold_answer) == ("3 + 4?", "7")
  assert record.text == "7"


def imported(tmp_path, rows, capsys, *flags):
  """Imports rows by the command; returns status, output, errors, records."""
  path = tmp_path / "rows.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  output = tmp_path / "imported"
  status = main.main(
    ["import", f"--input={path}", f"--output={output}", *flags]
  )
  said = capsys.readouterr()
  records = list(store.read_records(output)) if output.exists() else []
  return status, said.out, said.err, records


def test_a_failed_line_of_a_batch_file_shows_the_servers_own_message(
  tmp_path, capsys
):
  """As OpenAI and those who copy its batches write them."""
  limited = {"error": {"message": "Rate limit reached", "code": "rate_limit"}}
  rows = [
    {"custom_id": "a", "response": {"status_code": 429, "body": limited}},
    {"custom_id": "b", "response": {"status_code": 429, "body": limited}},
    {
      "custom_id": "c",
      "response": None,
      "error": {"code": "batch_expired", "message": "it could not be run"},
    },
    {
      "custom_id": "d",
      "response": {"status_code": 500, "body": "Bad\ngateway"},
    },
    {"custom_id": "e", "error": None, "response": None},
    {
      "custom_id": "g",
      "response": {
        "status_code": 503,
        "body": {"choices": [legacy_choice("8")]},
      },
    },
    {
      "custom_id": "f",
      "error": None,
      "response": {
        "status_code": 200,
        "body": {"choices": [legacy_choice("7")]},
      },
    },
  ]
  status, out, _, (record,) = imported(tmp_path, rows, capsys)
  assert status == 0
  assert record.question_id == "f"
  for words in (
    "2 the server answered with HTTP 429: Rate limit reached (rate_limit)",
    "1 the server answered with an error: it could not be run (batch_expired)",
    "1 the server answered with HTTP 500: Bad gateway",
    "1 the server answered with HTTP 503",
    "1 expected an object with 'choices': None",
  ):
    assert words in out
  assert len(out.splitlines()) == 1


def test_a_choice_that_cannot_be_used_is_counted_and_its_neighbours_stored(
  tmp_path, capsys
):
  bad = legacy_choice("8")
  bad["logprobs"]["token_logprobs"] = [None]
  spoiled = legacy_choice("9") | {"finish_reason": "length"}
  spoiled["logprobs"]["top_logprobs"] = [{"9": -0.5, "": -1, "8": None}]
  row = {"question": "3 + 4?", "answer": 7}
  row["choices"] = [legacy_choice("7"), bad, spoiled]
  status, out, _, records = imported(tmp_path, [row], capsys)
  assert status == 0
  assert [(r.sample, r.text) for r in records] == [(0, "7"), (1, "9")]
  assert "1 not finished, which prepare drops" in out
  assert "left out: 1 None is not a log-probability" in out
  assert "1 without a log-probability" in out
  assert "1 that spell nothing" in out


def test_a_text_in_place_of_a_response_is_no_error_of_the_server(tmp_path):
  path = tmp_path / "responses.jsonl"
  path.write_text(
    '{"model": "x", "response": "It is 7."}\n'
    '{"model": "x", "response": "It is 7.", "done": true}\n'  # Ollama's
  )
  records, rejected = read(path)
  assert records == []
  text, without = rejected
  assert text.startswith("'response' is a text: expected the whole answer of")
  assert without == "the server answered without log-probabilities"


def test_a_batch_files_body_may_be_a_string_of_json(tmp_path):
  body = {"choices": [legacy_choice("7")]}
  rows = [
    {"custom_id": "a", "response": {"body": json.dumps(body)}},
    {"custom_id": "b", "response": json.dumps({"body": body})},
    {"custom_id": "c", "response": {"status_code": 500, "body": "{oops"}},
  ]
  path = tmp_path / "batch.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert [record.question_id for record in records] == ["a", "b"]
  assert [*rejected] == ["the server answered with HTTP 500: {oops"]


def chat_chunks(name, *, finish_reason="stop", texts=("It", " is 7")):
  """Returns the chunks of a streamed answer, as servers send them."""
  chunk = {"id": name, "object": "chat.completion.chunk"}

  def choice(delta, **fields):
    one = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    return chunk | {"choices": [one | fields]}

  yield choice({"role": "assistant", "content": ""})
  for text in texts:
    top = [{"token": text, "logprob": -0.5}]
    content = [{"token": text, "logprob": -0.5, "top_logprobs": top}]
    yield choice({"content": text}, logprobs={"content": content})
  if finish_reason is not None:
    yield choice({}, finish_reason=finish_reason)
  yield chunk | {"choices": [], "usage": {"completion_tokens": 2}}


def text_chunks(name):
  for text, reason in (("It", None), (" is 7", "stop")):
    log_probs = legacy_choice(text)["logprobs"] | {"text_offset": [0]}
    choice = {"text": text, "index": 0, "finish_reason": reason}
    yield {"id": name, "choices": [choice | {"logprobs": log_probs}]}


def events(chunks):
  lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
  return "".join([": ping\n\n", *lines, "data: [DONE]\n\n"])


def test_a_saved_stream_gives_the_answers_that_it_brought(tmp_path):
  path = tmp_path / "stream.txt"
  path.write_text(
    events(chat_chunks("a"))
    + events(text_chunks("b"))
    + events(chat_chunks("c", finish_reason=None))
  )
  records, rejected = read(
    path,
    [
      standing.Problem(question_id=n, question=f"q{n}", answer="7")
      for n in range(3)
    ],
  )
  assert not rejected
  assert [(r.question_id, r.text, r.finish_reason) for r in records] == [
    (0, "It is 7", "stop"),
    (1, "It is 7", "stop"),
    (2, "It is 7", "incomplete stream"),
  ]
  assert all(len(record.steps) == 2 for record in records)
  assert schema.why_unfinished(records[2], 2)


def test_a_request_is_stored_without_its_keys_and_prompts(tmp_path, capsys):
  request = {
    "n": 2,
    "api_key": "sk-1",
    "extra_headers": {"Authorization": "Bearer sk-1"},
    "body": {"top_p": 0.5, "messages": ["long"], "OPENAI_API_KEY": "sk-1"},
    "extra": [{"api_key": "sk-1", "top_k": 3}],
    "url": "https://host/v1:generateContent?key=AIza",
    "key": "sk-1",
    "contents": ["long"],
    "input": "long",
    "inputs": "long",
  }
  rows = [{"request": request, "choices": [legacy_choice("7")]}]
  _, _, _, (record,) = imported(tmp_path, rows, capsys)
  assert record.request == {
    "n": 2,
    "body": {"top_p": 0.5},
    "extra": [{"top_k": 3}],
    "url": "https://host/v1:generateContent",
  }


AZURE_PREAMBLE = {
  "id": "",
  "object": "",
  "choices": [],
  "prompt_filter_results": [{"prompt_index": 0}],
}


AZURE_ANNOTATION = {
  "id": "",
  "object": "",
  "model": "",
  "choices": [
    {
      "index": 0,
      "finish_reason": None,
      "content_filter_results": {},
      "content_filter_offsets": {"check_offset": 4},
    }
  ],
}


def annotated(chunks):
  """Chunks with verdicts on their text between them, as Azure sends them."""
  for chunk in chunks:
    yield chunk
    yield AZURE_ANNOTATION


def with_reason(chunks, reason):
  """Chunks that have a reason of their own where others have null."""
  for chunk in chunks:
    choices = [
      one | {"finish_reason": one["finish_reason"] or reason}
      for one in chunk["choices"]
    ]
    yield chunk | {"choices": choices}


def without_ids(chunks):
  return [{k: v for k, v in one.items() if k != "id"} for one in chunks]


@pytest.mark.parametrize(
  "streams",
  [
    [[AZURE_PREAMBLE, *chat_chunks(name)] for name in "abc"],
    [[*chat_chunks("same")], [*text_chunks("same")], [*chat_chunks("same")]],
    [without_ids(chunks("")) for chunks in (chat_chunks, text_chunks) * 2][:3],
    [[*chat_chunks("a")], [{"error": {"message": "no"}}], [*chat_chunks("c")]],
  ],
)
@pytest.mark.parametrize("done", [True, False])
def test_each_answer_of_a_stream_gets_its_own_question(tmp_path, streams, done):
  path = tmp_path / "stream.txt"
  text = "".join(map(events, streams))
  path.write_text(text if done else text.replace("data: [DONE]\n\n", ""))
  problems = [
    standing.Problem(question_id=n, question=f"q{n}", answer="7")
    for n in range(3)
  ]
  records, rejected = read(path, problems)
  if rejected:  # the error is the second answer, or ended the first
    second = 2 if done else 1
    assert [r.question_id for r in records] == [0, second]
  else:
    assert [(r.question_id, r.text) for r in records] == [
      (n, "It is 7") for n in range(3)
    ]


@pytest.mark.parametrize(
  "streams",
  [
    [[*chat_chunks("")], [*chat_chunks("")], [*chat_chunks("")]],
    [[*text_chunks(name)] for name in "abc"],
    [[*chat_chunks("a")], [*text_chunks("b")], [*chat_chunks("a")]],
    [[*with_reason(chat_chunks(name), "")] for name in "abc"],
    [[*with_reason(chat_chunks(""), "null")] for _ in range(3)],
    [[*with_reason(text_chunks(name), "")] for name in "abc"],
    [[AZURE_PREAMBLE, *annotated(chat_chunks(""))] for _ in range(3)],
    [
      [
        one | {"question_id": number}
        for one in chat_chunks("same", texts=texts)
      ]
      for number, texts in enumerate([("It", " is 7")] * 3)
    ],
  ],
)
def test_each_answer_of_json_lines_gets_its_own_question(tmp_path, streams):
  path = tmp_path / "chunks.jsonl"
  rows = [row for chunks in streams for row in chunks]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert not rejected
  assert [(r.question_id, r.text, r.finish_reason) for r in records] == [
    (n, "It is 7", "stop") for n in range(3)
  ]


def test_whole_answers_without_a_finish_reason_are_not_joined(tmp_path):
  path = tmp_path / "answers.jsonl"
  rows = [
    {"id": name, "choices": [legacy_choice("7") | {"finish_reason": None}]}
    for name in "abc"
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert not rejected
  assert [(r.question_id, r.text) for r in records] == [
    (n, "7") for n in range(3)
  ]


def test_a_whole_answer_that_was_filtered_keeps_its_place(tmp_path):
  path = tmp_path / "answers.jsonl"
  choice = {"index": 0, "finish_reason": "content_filter"}
  filtered = {
    "id": "chatcmpl-2",
    "object": "chat.completion",
    "choices": [choice | {"content_filter_results": {}}],
  }
  rows = [{"choices": [legacy_choice("7")]}, filtered]
  rows += [{"choices": [legacy_choice("7")]}]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert [record.question_id for record in records] == [0, 2]
  assert rejected.total() == 1


def test_a_text_that_a_filter_cut_late_is_no_finished_one(tmp_path):
  verdict = AZURE_ANNOTATION["choices"][0]
  cut = {"choices": [verdict | {"finish_reason": "content_filter"}]}
  chunks = [*chat_chunks("", finish_reason=None)][:-1]
  path = tmp_path / "chunks.jsonl"
  rows = [*chunks, AZURE_ANNOTATION | cut, *chat_chunks("")]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert not rejected
  assert [record.finish_reason for record in records] == [
    "content_filter",
    "stop",
  ]


@pytest.mark.parametrize("is_stream", [False, True])
def test_many_streamed_answers_are_not_held_until_the_last(
  monkeypatch, is_stream
):
  number, held = 3000, []

  def answers():
    for n in range(number):
      held.append(n)
      yield [*chat_chunks(f"{n}")]

  def lines(path):
    for chunks in answers():
      yield from events(chunks).splitlines()

  monkeypatch.setattr(streams.reading, "lines", lines)
  rows = streams.joined((0, row) for chunks in answers() for row in chunks)
  if is_stream:
    rows = streams.read("stream.txt")
  first = next(rows)
  assert first[0] == 1
  assert first[1]["usage"]
  assert len(held) < number / 2
  assert [number for number, _ in rows] == [*range(2, number + 1)]


@pytest.mark.parametrize("token", ["\ufffd", "\n"])
def test_a_sample_whose_last_token_was_trimmed_is_cut_at_its_limit(
  tmp_path, capsys, token
):
  """The limit is of the tokens that were sampled, not of those kept."""
  names = ["It", " is", token]
  content = [
    {
      "token": name,
      "logprob": -0.5,
      "bytes": [0xE6] if name == "\ufffd" else list(name.encode()),
      "top_logprobs": [{"token": name, "logprob": -0.5}],
    }
    for name in names
  ]
  choice = {"message": {"content": "It is"}, "logprobs": {"content": content}}
  rows = [{"request": {"max_tokens": n}, "choices": [choice]} for n in (3, 4)]
  _, _, _, (cut, ended) = imported(tmp_path, rows, capsys)
  assert len(cut.steps) == 2
  assert "cut at max_tokens" in schema.why_unfinished(cut, 2)
  assert schema.why_unfinished(ended, 2) is None


def test_ids_of_a_table_with_gaps_are_whole_numbers(tmp_path, capsys):
  rows = [
    {"question_id": 3.0, "choices": [legacy_choice("7")]},
    {
      "question_id": math.nan,
      "custom_id": "a",
      "choices": [legacy_choice("7")],
    },
    {"id": 3.0, "choices": [legacy_choice("7")]},
  ]
  questions = tmp_path / "questions.jsonl"
  questions.write_text(
    '{"question_id": 3.0, "question": "3?", "answer": 7}\n'
    '{"question_id": null, "id": "a", "question": "a?", "answer": 7}\n'
    '{"question_id": NaN, "question": "b?", "answer": 7}\n'
  )
  _, _, _, records = imported(
    tmp_path, rows, capsys, f"--questions={questions}"
  )
  assert [(one.question_id, one.question) for one in records] == [
    (3, "3?"),
    ("a", "a?"),
    (3, "3?"),
  ]


def test_values_that_are_nested_without_end_are_counted(tmp_path, capsys):
  deep = {}
  for _ in range(490):
    deep = {"x": deep}
  rows = [{"candidates": [deep]}, {"choices": [legacy_choice("7")]}]
  path = tmp_path / "questions.jsonl"
  asked = [
    '{"question": "a?", "answer": 6}\n',
    '{"question": "b?", "answer": 7}',
  ]
  path.write_text("".join(asked))
  _, out, _, records = imported(tmp_path, rows, capsys, f"--questions={path}")
  assert [record.question for record in records] == ["b?"]
  assert "left out: 1 " in out
  if sys.version_info < (3, 12):  # later releases go deeper
    assert "nested too deeply" in out


def test_questions_that_end_alike_are_found_as_fast():
  """A look-up of each would take hours for as many rows as questions."""
  end = " Answer with the letter of the option that is right."
  number = 20_000
  asked = importing._Asked(
    [
      standing.Problem(question_id=n, question=f"{n}?{end}", answer="1")
      for n in range(number)
    ]
  )
  assert asked.last_in(f"Q: 77?{end}\nA:").question_id == 77
  assert max(map(len, asked._by_end.values())) == len(str(number - 1))


def test_an_error_that_ends_a_stream_does_not_move_later_answers(tmp_path):
  path = tmp_path / "stream.txt"
  cut = [*chat_chunks("a", finish_reason=None)][:2]
  path.write_text(
    events([*cut, {"error": {"message": "overloaded"}}])
    + events(chat_chunks("b"))
  )
  records, rejected = read(path)
  assert [(r.question_id, r.finish_reason) for r in records] == [
    (0, "incomplete stream"),
    (1, "stop"),
  ]
  assert rejected.total() == 1


def test_json_lines_without_ids_are_numbered_by_answer(tmp_path):
  """Neither an answer's other chunks nor blank lines count."""
  path = tmp_path / "chunks.jsonl"
  rows = [
    *([AZURE_PREAMBLE, *chat_chunks("a")]),
    *chat_chunks("b"),
    {"choices": [legacy_choice("7")]},
  ]
  path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
  records, rejected = read(path)
  assert not rejected
  assert [r.question_id for r in records] == [0, 1, 2]


def test_chunks_of_a_stream_saved_as_json_lines_are_joined_by_their_id(
  tmp_path,
):
  first, second = list(chat_chunks("a")), list(chat_chunks("b"))
  rows = [
    {"question_id": chunk["id"] * 2} | chunk
    for pair in zip(first, second, strict=True)
    for chunk in pair
  ]
  path = tmp_path / "chunks.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  records, rejected = read(path)
  assert not rejected
  assert [(r.question_id, r.text, r.sample) for r in records] == [
    ("aa", "It is 7", 0),
    ("bb", "It is 7", 0),
  ]


def test_a_stream_of_the_responses_api_has_its_answer_in_the_last_event(
  tmp_path,
):
  token = {"token": "7", "logprob": -0.5}
  part = {"type": "output_text", "text": "7"}
  part["logprobs"] = [token | {"top_logprobs": [token]}]
  answer = {"id": "r", "status": "completed"}
  answer["output"] = [{"type": "message", "content": [part]}]
  path = tmp_path / "stream.txt"
  path.write_text(
    "event: response.created\n"
    + events(
      [
        {"type": "response.created", "response": answer | {"output": []}},
        {"type": "response.output_text.delta", "delta": "7"},
        {"type": "response.completed", "response": answer},
      ]
    )
  )
  (record,), rejected = read(path)
  assert (record.text, record.finish_reason, rejected.total()) == (
    "7",
    "stop",
    0,
  )
  # One that was cut before is counted.
  path.write_text(
    events(
      [
        {"type": "response.created", "response": answer | {"output": []}},
        {"type": "response.output_text.delta", "delta": "7"},
      ]
    )
    + path.read_text()
  )
  records, rejected = read(path)
  assert len(records) == 1
  assert ["incomplete stream" in one for one in rejected] == [True]


def test_a_line_that_is_no_event_is_named(tmp_path):
  path = tmp_path / "stream.txt"
  path.write_text('data: {"choices": []}\nHello\n')
  with pytest.raises(errors.UserError, match="line 2 is 'Hello'"):
    read(path)


def test_a_number_in_a_batch_files_id_finds_its_question(tmp_path, capsys):
  questions = tmp_path / "questions.jsonl"
  questions.write_text('{"question": "3 + 4?", "answer": 7}\n')
  row = {
    "custom_id": "0",
    "response": {"body": {"choices": [legacy_choice("7")]}},
  }
  _, _, _, (record,) = imported(
    tmp_path, [row], capsys, f"--questions={questions}"
  )
  assert (record.question, record.gold_answer) == ("3 + 4?", "7")
  assert record.verdicts["fixed"]


def test_responses_without_ids_are_as_many_as_their_questions(tmp_path, capsys):
  """Of fewer nobody knows which question each answers."""
  questions, path = tmp_path / "questions.jsonl", tmp_path / "responses.jsonl"
  questions.write_text(
    '{"question": "3 + 4?", "answer": 7}\n{"question": "4 + 4?", "answer": 8}\n'
  )
  answers = [json.dumps({"choices": [legacy_choice(a)]}) + "\n" for a in "789"]
  argv = ["import", f"--input={path}", f"--questions={questions}"]
  for count in (1, 3):
    path.write_text("".join(answers[:count]))
    assert main.main([*argv, f"--output={tmp_path / 'records'}"]) == 2
    assert f"has {count} responses, {count} of" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()
  # Those that failed are paired with none, if the others have ids.
  failed = json.dumps({"error": {"message": "no"}}) + "\n"
  named = {"custom_id": "0", "response": {"body": json.loads(answers[0])}}
  path.write_text(failed * 2 + json.dumps(named))
  assert main.main([*argv, f"--output={tmp_path / 'named'}"]) == 0
  path.write_text("".join(answers[:2]))
  assert main.main([*argv, f"--output={tmp_path / 'records'}"]) == 0
  assert "2 of 2 graded are right" in capsys.readouterr().out.splitlines()[-1]


def test_what_a_row_says_beside_its_response_is_taken_or_counted(
  tmp_path, capsys
):
  choices = {"choices": [legacy_choice("7")]}
  deep = functools.reduce(lambda inner, _: [inner], range(100), 1)
  rows = [
    {"question": None, "answer": None, "request": {"n": 2, "x": deep}}
    | choices,
    {"question": ["a"]} | choices,
    {"question": "Is it?", "answer": True} | choices,
    {"question": math.nan, "answer": math.nan} | choices,
    {"question_id": 1.5} | choices,
  ]
  status, out, _, (record, asked, table) = imported(tmp_path, rows, capsys)
  assert status == 0
  assert (record.question, record.gold_answer) == ("", "")
  assert record.request == {"n": 2}
  assert (asked.question, asked.gold_answer) == ("Is it?", "true")
  assert (table.question, table.gold_answer) == ("", "")
  assert "'question' is of type array" in out
  assert "question_id is 1.5" in out


def _asking(text, **row):
  return {"request": {"contents": [{"parts": [{"text": text}]}]}} | row


def test_a_response_answers_the_question_that_its_own_row_asks(
  tmp_path, capsys
):
  """Where a row's place in the file is not that of its question."""
  questions = tmp_path / "questions.jsonl"
  questions.write_text(
    '{"question": "What is 3 + 4?", "answer": 7}\n'
    '{"question": "What is 3 + 5?", "answer": 8}\n'
    '{"question": "What is 3 + 6?", "answer": 9, "id": "nine"}\n'
  )

  def choices(text):
    return {"choices": [legacy_choice(text)]}

  rows = [
    # Vertex: in any order, after demonstrations that may be questions too.
    _asking("Q: What is 3 + 4?\nA: 7\nQ: What is 3 + 5?\nA:", **choices("8")),
    _asking("Q: What is 3 + 5?\nA: 8\nQ: What is 3 + 4?\nA:", **choices("7")),
    {"id": "nine"} | choices("9"),
    {"id": 0} | choices("7"),
    # A gold answer that is not the question's.
    {"id": 1, "answer": "7"} | choices("7"),
    {"id": 1, "answer": "8.0"} | choices("8"),
  ]
  _, out, _, records = imported(
    tmp_path, rows, capsys, f"--questions={questions}"
  )
  assert [(one.question_id, one.question[-2], one.text) for one in records] == [
    (1, "5", "8"),
    (0, "4", "7"),
    ("nine", "6", "9"),
    (0, "4", "7"),
    (1, "5", "8"),
  ]
  assert all(one.verdicts["fixed"] for one in records)
  assert "its answer is not that of the question with its id" in out


def test_white_space_is_no_difference_between_questions(tmp_path):
  path = tmp_path / "responses.jsonl"
  rows = [
    _asking("Q: What  is\n3 + 5?", choices=[legacy_choice("8")]),
    _asking("Why is 3 + 5 = 8?", choices=[legacy_choice("8")]),
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  problems = [
    standing.Problem(question_id=n, question=f"What is 3 + {n}?", answer="8")
    for n in (4, 5)
  ]
  (record,), rejected = read(path, problems)
  assert record.question_id == 5
  assert list(rejected) == ["its request asks none of the questions"]


def test_a_short_question_is_not_found_within_a_word():
  asked = importing._Asked(
    [
      standing.Problem(question_id=n, question=text, answer="1")
      for n, text in enumerate(["What is the capital of France?", "hi"])
    ]
  )
  text = "What is the capital of France? Think step by step."
  assert asked.last_in(text).question_id == 0
  assert asked.last_in("Say: hi").question_id == 1
  assert asked.last_in("Think") is None


def test_the_end_of_a_long_question_is_not_the_question():
  sold = "Natalia sold clips to 48 of her friends in April. In May she sold"
  long = f"{sold} half as many. How many clips did she sell altogether?"
  asked = importing._Asked(
    [standing.Problem(question_id=0, question=long, answer="72")]
  )
  assert asked.last_in(f"Q: {long}").question_id == 0
  assert asked.last_in(long[len(sold) :]) is None
  assert asked.last_in(long[-41:]) is None


def test_numbers_of_the_users_own_are_the_ids_of_rows_with_questions(tmp_path):
  path = tmp_path / "responses.jsonl"
  rows = [
    {"id": 7001 + i, "question": f"3 + {i}?", "answer": str(3 + i)}
    | {"choices": [legacy_choice(str(3 + i))]}
    for i in range(2)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  problem = standing.Problem(question_id=0, question="3 + 4?", answer="7")
  records, rejected = read(path, [problem])
  assert [one.question_id for one in records] == [7001, 7002]
  assert not rejected


@pytest.mark.parametrize("answer", ["7", "<<3+4=7>>\n#### 7", "a week"])
def test_an_answer_that_does_not_contradict_the_question_s_is_left(
  tmp_path, answer
):
  path = tmp_path / "responses.jsonl"
  row = {"question_id": 0, "answer": answer, "choices": [legacy_choice("7")]}
  path.write_text(json.dumps(row))
  problem = standing.Problem(question_id=0, question="3 + 4?", answer="7")
  (record,), rejected = read(path, [problem])
  assert (record.question, record.gold_answer) == ("3 + 4?", "7")
  assert not rejected


@pytest.mark.parametrize(
  ("answer", "gold"),
  [({"label": "late"}, "late"), ({"label": True}, "true")],
)
def test_a_gold_answer_may_be_an_object(tmp_path, answer, gold):
  path = tmp_path / "responses.jsonl"
  choice = legacy_choice(json.dumps({"label": answer["label"]}))
  row = {"question": "Where?", "answer": answer, "choices": [choice]}
  path.write_text(json.dumps(row))
  rule = answer_rules.AnswerRule(kind="json", field="label")
  source = importing.Importer(path, "responses", [], rule)
  (record,) = source.records()
  assert record.gold_answer == gold
  assert record.verdicts == {"fixed": True}


def test_a_response_that_is_nested_without_end_costs_no_other(tmp_path):
  """The response is a string of JSON, so that the row itself is not nested."""
  deep = '{"error": ' + "[" * 1_020 + "]" * 1_020 + "}"
  rows = [
    {"question_id": 0, "response": deep},
    {"question_id": 1, "response": {"choices": [legacy_choice("7")]}},
  ]
  path = tmp_path / "responses.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  (record,), rejected = read(path)
  assert record.question_id == 1
  (reason,) = rejected
  # How deep Python itself can go depends on its release.
  assert reason == responses.TOO_DEEP or reason.endswith("error: " + "[" * 300)


def test_a_pipe_is_not_imported_since_it_is_read_twice(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  with pytest.raises(errors.UserError) as caught:
    importing.kind_of(tmp_path / "pipe")
  assert str(caught.value) == (
    f"--input={tmp_path}/pipe is a pipe or device, and it is read twice: write"
    " it to a file first"
  )


def test_the_kind_of_a_missing_file_is_an_error(tmp_path):
  with pytest.raises(errors.UserError) as caught:
    importing.kind_of(tmp_path / "absent.jsonl")
  assert str(caught.value) == f"--input={tmp_path}/absent.jsonl does not exist"


def test_whole_rows_with_the_users_own_ids_are_not_joined(tmp_path, capsys):
  rows = []
  for text in ("7", "8"):
    choice = legacy_choice(text)
    del choice["finish_reason"]  # import.md allows it
    row = {"id": "gsm8k-0", "question": "3 + 4?", "answer": "7"}
    rows.append(row | {"choices": [choice]})
  _, _, _, records = imported(tmp_path, rows, capsys)
  assert [one.text for one in records] == ["7", "8"]
  # Nor chunks of two questions.
  for row, question in zip(rows, "ab", strict=True):
    row["choices"][0]["finish_reason"] = None
    row["question"] = question
  _, _, _, records = imported(tmp_path, rows, capsys)
  assert [one.text for one in records] == ["7", "8"]


def test_many_reasons_are_told_in_one_short_line(tmp_path, capsys):
  rows = [
    {"custom_id": f"{i}", "error": {"message": f"request {i} failed"}}
    for i in range(40)
  ]
  status, out, err, _ = imported(tmp_path, rows, capsys)
  assert status == 2
  assert not out
  assert "32 for 32 other reasons" in err
  assert len(err) < 1000


@pytest.mark.parametrize(
  "question",
  ["Shop A: $5 a box, shop B: $6. How much?", "Which? Q&A: 3 or 4?"],
)
@pytest.mark.parametrize(
  "ending", ["\nLet's think step by step", "\nA:", " A:", "\nA: \n"]
)
def test_a_question_is_read_whole_from_a_prompt(question, ending):
  before = "Q: Who?\nLet's think step by step\nShe. The answer is 1\n\n"
  for prompt in (f"Q: {question}{ending}", f"{before}Q: {question}{ending}"):
    assert released_pickles._asked(prompt) == question


def test_the_released_json_is_graded_where_its_question_is_given():
  path = real_files.find("codex", "gsm8k_train_0.json")
  problem = standing.Problem(question_id=0, question="Clips?", answer="72")
  records, _ = read(path, [problem])
  assert len(records) == 40
  assert all(r.verdicts == {"fixed": True, "paper_code": True} for r in records)


def test_an_import_that_fails_leaves_nothing(tmp_path, capsys):
  dump = tmp_path / "dump.txt"
  whole = dumped(0, [("7", sample_steps("7"))])
  dump.write_text(whole + whole[:-60])
  output = tmp_path / "out" / "records"
  assert main.main(["import", f"--input={dump}", f"--output={output}"]) == 2
  assert "line" in capsys.readouterr().err
  assert not output.parent.exists()
  dump.write_text("hello")
  assert main.main(["import", f"--input={dump}", f"--output={output}"]) == 2
  assert "nothing that can be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.txt", None, "a.txt does not exist"),
    ("a.txt", "", "nothing that can be imported"),
    ("a.pkl", b"\x80\x04", "not a complete pickle"),
    ("a.pkl", pickle.dumps({"a": 1}), "holds no list of samples"),
    ("a.pkl", pickle.dumps([{"a": 1}]), "entry 0 is not as released"),
    ("a.jsonl", '{"choices": []}\n{"choices"', "line 2"),
    ("a.jsonl", '{"choices": []}\n[]\n', "line 2"),
    ("a.jsonl", '{"choices": [{"text": "7"}]}\n', "without log-prob"),
    ("a.jsonl", '{"question_id": [1], "choices": []}\n', "question_id is [1]"),
    ("a.jsonl", f'{{"question_id": {1 << 64}}}\n', "whole number of 64 bits"),
    ("a.jsonl", '{"choices": []}\n'.encode("utf-16"), "is UTF-16"),
    ("a.json", "[", "a.json"),
    ("a.json", "[]", "gave no record"),
    ("a.json", '[{"question_id": 0}]', "a.json"),
    (
      "a.json",
      '[{"question_id": 0, "sample": 1.7, "steps": [[["a", 1]]]}]',
      "sample is 1.7",
    ),
    (
      "a.json",
      '[{"question_id": 0, "sample": 0, "steps": [[["a", 1], [8, 0.2]]]}]',
      "a token is not a string",
    ),
    ("a.jsonl", '{"output": ["The", " answer"]}\n', "choices"),
    ("a.jsonl", '{"output": []}\n', "choices"),
    (
      "a.jsonl",
      '{"message": {"text": "7", "entries": 1}, "done": true}\n',
      "a.jsonl",
    ),
    ("a.jsonl", '{"message": "x", "response": "7", "done": true}\n', "a.jsonl"),
    (
      "a.jsonl",
      '{"error": ' * 900 + "1" + "}" * 900,
      "an error within an error",
    ),
  ],
)
def test_a_bad_input_is_one_sentence_and_leaves_nothing(
  tmp_path, capsys, name, content, message
):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
  output = tmp_path / "out" / "records"
  assert main.main(["import", f"--input={path}", f"--output={output}"]) == 2
  said = capsys.readouterr()
  assert not said.out
  assert len(said.err.strip().splitlines()) == 1
  assert message in said.err
  assert not output.parent.exists() or not list(output.parent.iterdir())


def test_a_folder_without_the_four_lists_names_what_is_missing(
  tmp_path, capsys
):
  folder = tmp_path / "pickles"
  folder.mkdir()
  argv = ["import", f"--input={folder}", f"--output={tmp_path / 'out'}"]
  assert main.main(argv) == 2
  assert "has no codex_questions.pkl" in capsys.readouterr().err
  for name in ("questions", "answers", "predictions", "per_step_probs"):
    rows = [] if name == "answers" else ["Question 0: a"]
    (folder / f"codex_{name}.pkl").write_bytes(pickle.dumps(rows))
  assert main.main(argv) == 2
  assert "differ in length" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
