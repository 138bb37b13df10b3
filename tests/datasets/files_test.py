"""A dataset file: what it says, and everything that can be wrong with it."""

import codecs
import dataclasses
import json
import time

import pytest
from testdata import own_domain, tiny_vocabulary

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.datasets import files, overview, rows


@pytest.fixture
def mistakes(tmp_path, monkeypatch):
  """Loads a file that is wrong; returns its lines, without the folder."""
  monkeypatch.chdir(tmp_path)

  def found(yaml=own_domain.YAML, **sets):
    own_domain.write(tmp_path, yaml, **sets)
    with pytest.raises(errors.ReportError) as caught:
      files.load("queues.yaml")
    return list(caught.value.lines)

  return found


def test_a_file_describes_a_domain(tmp_path):
  own = files.load(str(own_domain.write(tmp_path)))
  dataset = own.dataset
  assert own.sizes == {
    "train": 24,
    "validation": 4,
    "test": 4,
    "out_of_distribution.phone.validation": 4,
    "out_of_distribution.phone.test": 4,
    "general.sums.test": 1,
  }
  assert [one.name for one in dataset.benchmarks] == [
    "queues",
    "queues_phone",
    "queues_sums",
  ]
  assert dataset.benchmarks[2].answer.kind == "number"
  inside = "queues_zero_shot_chain_of_thought_v1"
  outside = "queues_phone_zero_shot_chain_of_thought_v1"
  assert dataset.selection_tasks() == ([outside], inside)
  alone = dataclasses.replace(dataset, out_of_distribution=())
  assert alone.selection_tasks() == ([inside], inside)
  assert dataset.tfds_dir == str(tmp_path / "tfds")
  prompt = formats.render_question("x", dataset.formats[3])
  assert prompt == "ticket: x\nthink."
  training = dataset.read_training(None)
  assert len(training.asked) == 24
  assert len(training.held_out) == 4 + 4 + 4 + 4 + 1 + 4
  assert own.train[1].given_id == 1
  assert training.asked[1].question_id == "queues/train/1"
  text = overview.text(own)
  assert "  Ticket: train parcel 0 is late." in text
  assert "queues_out_of_distribution_validation" in text


def test_without_validation_some_training_questions_are_held_out(tmp_path):
  yaml = own_domain.YAML.replace("validation: validation.jsonl, ", "")
  own = files.load(str(own_domain.write(tmp_path, yaml)))
  assert own.sizes["train"], own.sizes["validation"] == (18, 6)
  training = own.dataset.read_training(None)
  held_out = {one.question for one in training.validation}
  assert len(held_out) == 6
  assert not held_out & {row.question.question for row in own.train}


def test_one_file_out_of_distribution_is_parted_by_its_questions(tmp_path):
  yaml = own_domain.YAML.replace(
    "{validation: phone.jsonl, test: phone_test.jsonl}", "phone.jsonl"
  )
  phone = own_domain.rows("phone", 20)
  own = files.load(str(own_domain.write(tmp_path, yaml, phone=phone)))
  (member,) = own.dataset.out_of_distribution
  parts = [{q.question for q in member.read(s)} for s in member.splits]
  assert [len(part) for part in parts] == [5, 15]
  assert not parts[0] & parts[1]


def test_no_benchmark_validates_with_what_another_one_tests(tmp_path):
  yaml = own_domain.YAML.replace(
    "{validation: phone.jsonl, test: phone_test.jsonl}",
    "phone.jsonl\n  shop: shop.jsonl\n  desk: {validation: desk.jsonl, test:"
    " desk_test.jsonl}",
  )
  asked = own_domain.rows("asked", 40)
  sets = {
    "phone": asked,
    "shop": asked[:12],
    "desk": own_domain.rows("desk", 4),
    "desk_test": asked[20:24],
  }
  for name in ("shop", "desk", "desk_test"):
    own_domain.write_rows(tmp_path / f"{name}.jsonl", sets[name])
  own = files.load(str(own_domain.write(tmp_path, yaml, phone=asked)))
  outside = own.dataset.out_of_distribution
  validated = [{q.question for q in o.read("validation")} for o in outside]
  tested = [{q.question for q in o.read("test")} for o in outside]
  assert all(validated) and not set.union(*validated) & set.union(*tested)
  for place, name in enumerate(("phone", "shop")):
    assert len(validated[place]) + len(tested[place]) == len(sets[name])


def test_twelve_mistakes_are_told_at_once_with_their_lines(mistakes):
  lines = mistakes("""\
name: My Queues
vocabulary: {file: nothing.model, extra_ids: many}
name: again
sets:
  trian: train.jsonl
  validation: gone.jsonl
  test: [a, b]
answer: {regex: '(oops', compare: fuzzy}
out_of_distribution: {Phone 1: phone.jsonl}
studnet: {}
student: {chain_of_thought: "no place", demonstrations: 0}
teacher: {prompt: "Ticket: {question} {question}"}
""")
  wanted = [
    ":2: vocabulary is 'nothing.model', and nothing.model is not a file",
    ":2: vocabulary.extra_ids is 'many': expected a whole number",
    ":3: 'name' occurs twice in the file",
    ":5: 'trian' is not a key of sets; did you mean train?",
    ":5: sets lacks 'train'",
    ":6: sets.validation is 'gone.jsonl', and gone.jsonl is not a file",
    ":7: sets.test is a list: expected the name of a file",
    ":8: answer: regex: '(oops' is not a regular expression",
    ":9: out_of_distribution.Phone 1: expected a name that begins with a small",
    ":10: 'studnet' is not a key of the file; did you mean student?",
    ":11: student.chain_of_thought has {question} 0 times",
    ":11: student.demonstrations is '0': expected a whole number",
    ":12: teacher.prompt has {question} 2 times",
  ]
  assert len(lines) == len(wanted)
  for words in wanted:
    assert any(f"queues.yaml{words}" in line for line in lines), words
  numbers = [int(line.split(":")[1]) for line in lines]
  assert numbers == sorted(numbers)


def test_rows_that_are_wrong_are_named_by_their_lines(mistakes):
  train = own_domain.rows("train", 20)
  train += [{"question": "no answer"}, {"question": ["a"], "answer": "late"}]
  train += [{"question": " ", "answer": "late"}]
  train += own_domain.rows("repeated", 2, id="a")
  train += [{"question": "a?", "answer": "late", "rationale": "queue: lost"}]
  lines = mistakes(train=train)
  places = [line.split(":")[1] for line in lines]
  assert places == ["21", "22", "23", "25", "26"]
  assert "lacks 'answer' (it has 'question')" in lines[0]
  assert "question_id 'a' is that of line 24, too" in lines[3]


def test_mistakes_of_the_file_and_of_its_rows_are_told_together(mistakes):
  yaml = own_domain.YAML.replace("name: queues", "name: Queues")
  yaml = yaml.replace("spiece.model", "gone.model")
  lines = mistakes(yaml, test=[{"question": "train parcel 0 is late."}])
  assert [line.split(" ")[0] for line in lines] == [
    "queues.yaml:1:",
    "queues.yaml:2:",
    "test.jsonl:1:",
  ]


def test_many_rows_of_one_mistake_are_counted(mistakes):
  train = [*own_domain.rows("train", 2), *({"question": "x"} for _ in range(9))]
  lines = mistakes(train=train)
  assert len(lines) == 6
  assert lines[-1] == "train.jsonl: the same in 4 more rows"


def test_a_rule_that_finds_no_answer_is_told_once_for_each_set(mistakes):
  yaml = own_domain.YAML.replace("queue: (?P", "label: (?P")
  lines = mistakes(yaml)
  assert lines[0].startswith(
    "train.jsonl:1: the answer is found in none of 24 rows: the answer rule"
    " finds nothing in 'queue: late', which states 'late': make `answer`"
  )
  assert "student.answer" in lines[0]
  assert len(lines) == 5  # the general set has a rule of its own


@pytest.mark.parametrize("split", ["validation", "test", "phone", "phone_test"])
def test_a_question_in_two_sets_is_a_leak_whatever_its_spelling(
  mistakes, split
):
  leaked = own_domain.rows("other", 3)
  leaked += [{"question": "TRAIN  parcel 4 is late", "answer": "late"}]
  (line,) = mistakes(**{split: leaked})
  assert line.startswith(f"{split}.jsonl:4: ")
  assert "'TRAIN  parcel 4 is late', which train asks, too" in line
  assert "train.jsonl:5" in line


def test_pictures_make_two_questions_where_both_have_some(mistakes):
  shown = [{"question": "How is \U0001f600?", "answer": "late"}]
  other = [{"question": "How is \U0001f622?", "answer": "lost"}]
  train = [*own_domain.rows("train", 24), *shown]
  (line,) = mistakes(train=train, test=other, phone=shown)
  assert line.startswith("phone.jsonl:1: out_of_distribution.phone.validation")


def test_a_prompt_with_a_field_that_nothing_fills_in_is_told(mistakes):
  yaml = own_domain.YAML.replace("Ticket: {question}", "{context} {question}")
  yaml = yaml.replace("think.", "think, as in \\\\frac{a}{b}.")
  train = own_domain.rows("train", 24, context="a shop")
  (line,) = mistakes(yaml, train=train)
  assert line.startswith(
    "queues.yaml:9: teacher.prompt has {context}, a field of the rows, and only"
    " {question} is filled in"
  )


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("question,answer\na,late\n", "got 'question,answer'"),
    (json.dumps(own_domain.rows("train", 24), indent=1), "got '['"),
    (json.dumps(own_domain.rows("train", 24)), "got '[{"),
  ],
)
def test_a_file_that_is_no_json_lines_is_one_mistake(
  mistakes, tmp_path, monkeypatch, text, words
):
  write_rows = own_domain.write_rows

  def with_text(path, rows_):
    write_rows(path, rows_)
    if path.name == "train.jsonl":
      path.write_text(text)

  monkeypatch.setattr(own_domain, "write_rows", with_text)
  (line,) = mistakes()
  assert line.startswith("train.jsonl:1: holds no row: expected a JSON object")
  assert words in line


def test_an_answer_of_several_fields_is_an_object(tmp_path):
  yaml = own_domain.YAML.replace(_RULE, "{json: [name, day]}")
  yaml = yaml.replace('  answer: "queue: {answer}"\n', "")

  def questions(name, size):
    return [
      {
        "question": f"{name} {i}?",
        "answer": {"more": 1, "day": None if i else 3, "name": f"Ü{i}"},
      }
      for i in range(size)
    ]

  sets = {name: questions(name, n) for name, n in own_domain.SIZES.items()}
  (tmp_path / "spiece.model").write_bytes(
    tiny_vocabulary.train(["name day"] * 9, vocab_size=300, byte_fallback=True)
  )
  own = files.load(str(own_domain.write(tmp_path, yaml, **sets)))
  answer = own.train[0].question.answer
  assert answer == '{"name": "Ü0", "day": 3}'
  target = formats.render_target(own.dataset.formats[0], "", answer)
  assert target == answer
  assert own.dataset.in_distribution.answer.finds(target, answer)
  assert "the fields 'name', 'day' of a JSON object" in overview.text(own)


def test_signs_make_two_questions_and_punctuation_does_not():
  assert rows.same_words("What is 3!?") != rows.same_words("What is 3?")
  assert rows.same_words("3 + 4?") != rows.same_words("3 - 4?")
  assert rows.same_words("Ｗｈｏ?") == rows.same_words("who")
  assert rows.same_words("(]") != rows.same_words("[)")


def test_a_vocabulary_with_sentencepiece_s_own_special_tokens_is_told(
  mistakes, tmp_path
):
  texts = [row["question"] + " queue: late lost" for row in
           own_domain.rows("train", 24)] * 9  # fmt: skip
  (tmp_path / "spiece.model").write_bytes(
    tiny_vocabulary.train(texts, vocab_size=90, pad_id=-1, eos_id=-1, unk_id=0)
  )
  (line,) = mistakes()
  assert line.startswith(
    "queues.yaml:2: vocabulary spiece.model has no padding and no"
    " end-of-sequence token: train it with --pad_id=0 --eos_id=1"
  )


def test_a_vocabulary_that_cannot_write_the_answers_is_told(mistakes, tmp_path):
  (tmp_path / "spiece.model").write_bytes(tiny_vocabulary.model())
  (line,) = mistakes()
  assert line.startswith(
    "queues.yaml:2: the vocabulary cannot write the answers"
  )


_RULE = "{regex: 'queue: (?P<answer>[a-z]+)'}"


@pytest.mark.parametrize(
  ("old", "new", "place", "words"),
  [
    ("name: queues", "name: gsm8k", 1, "name is 'gsm8k', as datasets and mix"),
    ("name: queues", "name: mini_gsm", 1, "as datasets and mixtures of ours"),
    ("name: queues", f"name: {'a' * 99}", 1, "underscores only, at most 60 in"),
    ("name: queues", "name: yes", 1, "name is 'yes': expected text, in quotes"),
    ("ids: 0", "ids: 99999999", 2, "expected a whole number from 0 to 10,000"),
    ("test: test.jsonl", "test: ", 3, "sets.test is empty: expected the n"),
    ("test: test.jsonl", "test: .", 3, "sets.test is '.', and . is not a file"),
    ("test: test.jsonl", "test: 'https://h/t'", 3, "a file on this machine"),
    ("sets: {", "sets: {train: a, ", 3, "'train' occurs twice in sets"),
    (_RULE, "[number]", 4, "answer is a list: expected text"),
    (_RULE, "{json: a..b}", 4, "json: 'a..b' names no field"),
    (_RULE, "{json: [a, a]}", 4, "json: a field is named twice in a, a"),
    (_RULE, "{json: []}", 4, "answer.json is an empty list"),
    (_RULE, "{json: [a, [b]]}", 4, "answer.json is a list: expected text"),
    (_RULE, "{regexp: a}", 4, "'regexp' is not a key of answer; did you mean"),
    (_RULE, "{regex: [abc]}", 4, "a list: expected text, in quotes if it be"),
    (_RULE, "Numbers", 4, "'Numbers' is unknown: did you mean number"),
    (_RULE, "yes", 4, "answer is 'yes': expected text, in quotes where it"),
    ("name: queues", "name: 1e3", 1, "name is '1e3': expected a name that"),
    ("name: queues", "name: störung", 1, "name is 'störung': expected a name"),
    ("test: test.jsonl", "test: ~/a", 3, "~/a is not a file; ~ and $ are read"),
    ("sets: {", "sets: {<<: {train: a}, ", 3, "<<, which is not read"),
    ("train: train.jsonl", "train: [a, b]", 3, "expected the name of a file"),
    ("validation: validation.jsonl", "validation: test.jsonl", 3,
     "sets.test is the file of sets.validation, too: test.jsonl"),
    ("test: test.jsonl", "test: ./train.jsonl", 3,
     "sets.test is the file of sets.train, too"),
    ("test: test.jsonl}", "test: test.jsonl, demonstrations: test.jsonl}", 3,
     "sets.demonstrations is the file of sets.test, too"),
    ("sets: {train: train.jsonl, validation: validation.jsonl, test: test.jso"
     "nl}", "sets:", 3, "sets is empty: expected keys with values, such as"),
    ("test: phone_test.jsonl", "test: test.jsonl", 6,
     "out_of_distribution.phone.test is the file of sets.test, too"),
    ("  phone:", "  train:", 6, "the name 'train' has a meaning of its own"),
    ("  phone:", "  2024:", 6, "2024: expected a name that begins with"),
    ("  phone: {", "  - {", 6, "out_of_distribution is a list: expected keys"),
    ("{test: sums.jsonl", "{validation: sums.jsonl", 8, "sums lacks 'test'"),
    ("number}", "nummer}", 8, "'nummer' is unknown: did you mean number"),
    ("{question}\\n\"}", "{ Question }\"}", 9,
     "has {question} 0 times (it has { Question })"),
    ("{prompt: \"Ticket: {question}\\n\"}", "{prompt: {question}}", 9,
     "teacher.prompt is a mapping: expected text, in quotes if it begins"),
    ("teacher: {prompt: \"Ticket: {question}\\n\"}", "teacher:", 9,
     "expected keys with values, such as prompt: ...; or leave it out"),
    ("demonstrations: 2", "demonstrations: '2'", 14, "64, without quotes"),
    (_RULE, "python:os.system", 4, "is of Python's own library"),
    (_RULE, "python:no_such.f", 4, "No module named 'no_such'"),
    (_RULE, "python:mine_ends.f", 4, "cannot be imported (SystemExit: 0)"),
    (_RULE, r"{regex: '(?P<answer>(\w+\s?)*)$'}", 4, "takes more than 0.3 s"),
    (_RULE, "{regex: '(?P<a>(x+x+)+y|late)'}", 4, "takes more than 0.3 s o"),
    ("  phone:", "  teacher:", 6, "the name 'teacher' has a meaning of its o"),
    ("  phone:", "  queues:", 6, "the name 'queues' has a meaning of its own"),
    ("  sums:", "  phone:", 8, "out_of_distribution has a set of this name"),
    ("Ticket: {question}\\n", "{{question}}", 9, "in single braces"),
    ("demonstrations: 2", "demonstrations: 24", 11,
     "expected fewer than the 24 solved questions of sets"),
    ("demonstrations: 2", "demonstrations: 1000", 14, "number from 1 to 64"),
    ("student:", "tfds_dir: train.jsonl\nstudent:", 10, "a folder or gs://"),
    (_RULE, "regex", 4, "answer: regex needs a value, as in `regex: ...`"),
    ("name: queues", "name: ' '", 1, "name is empty"),
    ("Ticket: {question}", r"\ud83d {question}", 9,
     "teacher.prompt holds half of a surrogate pair, which is not text: write"
     " the character itself"),
    ("{validation: phone.jsonl, test: phone_test.jsonl}", "{answer: number}",
     6, "out_of_distribution.phone lacks 'validation' and 'test'"),
    ("prompt: \"Ticket: {question}\\n\"", "prompt_file: phone.jsonl", 9,
     "teacher.prompt_file has {question} 0 times: expected it exactly once"),
    ("prompt: \"Ticket: {question}\\n\"", "prompt_file: gone.txt", 9,
     "teacher.prompt_file is 'gone.txt', and gone.txt is not a file"),
  ],
)  # fmt: skip
def test_one_mistake_of_any_kind_is_one_line_of_its_place(
  mistakes, tmp_path, monkeypatch, old, new, place, words
):
  (tmp_path / "mine_ends.py").write_text("raise SystemExit(0)")
  monkeypatch.syspath_prepend(tmp_path)
  assert own_domain.YAML.count(old) == 1
  (line,) = mistakes(own_domain.YAML.replace(old, new))
  assert line.startswith(f"queues.yaml:{place}: ")
  assert words in line


def test_a_file_of_windows_is_read_as_any_other(tmp_path):
  path = own_domain.write(tmp_path)
  for file in (path, tmp_path / "train.jsonl"):
    text = file.read_text().replace("\n", "\r\n")
    file.write_bytes(codecs.BOM_UTF8 + text.encode())
  own = files.load(str(path))
  assert own.sizes["train"] == 24
  assert own.dataset.wording.chain_of_thought == "ticket: {question}\nthink."


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ('{"question": "x", ', "this row is not JSON"),
    ("[1]", "this row is not a JSON object: got '[1]'; expected one object"),
    ('{"question": "x", "answer": NaN}', "'answer' is nan, which is not a "),
    ('{"question": "x", "answer": "late", "answer": "lost"}',
     "the field 'answer' occurs twice"),
    ('{"question": "\\u200b?", "answer": "late"}', "'question' is empty"),
    ('{"question": "x", "answer": "late", "rationale": true}',
     "'rationale' is True: expected a string"),
    ('{"question": "x", "answer": "late", "id": " "}', "question_id is empty"),
    ('{"question": "x", "answer": "late", "id": 12345678901234567890}',
     "question_id is 12345678901234567890: expected at most 18 digits"),
    ('{"question": "x", "answer": 1e999}', "'answer' is inf, which is not a "),
    ('{"question": null, "answer": "late"}', "'question' is null"),
    ('{"question": "x", "answer": "\\ud800"}', "half of a surrogate pair"),
    ('{"question": "train parcel 9  is lost", "answer": "late"}',
     "asks what line 10 asks, and answers 'late' where that answers 'lost'"),
  ],
)  # fmt: skip
def test_a_bad_row_of_many_is_named_by_its_line_and_so_is_the_next(
  mistakes, tmp_path, monkeypatch, row, words
):
  train = own_domain.rows("train", 800)
  texts = [json.dumps(one) for one in train]
  texts[699:701] = [row, "{}"]
  write_rows = own_domain.write_rows

  def with_texts(path, rows_):
    write_rows(path, rows_)
    if path.name == "train.jsonl":
      path.write_text("\n".join(texts))

  monkeypatch.setattr(own_domain, "write_rows", with_texts)
  first, second = mistakes()
  assert first.startswith("train.jsonl:700: ")
  assert words in first
  assert second.startswith("train.jsonl:701: lacks 'question' and 'answer'")


@pytest.mark.parametrize(
  "changes",
  [
    {"phone": own_domain.rows("phone", 3)},
    {"train": own_domain.rows("train", 3)},
  ],
)
def test_a_file_too_small_to_hold_some_out_is_told(mistakes, changes):
  (name,) = changes
  yaml = own_domain.YAML.replace("validation: validation.jsonl, ", "")
  yaml = yaml.replace("demonstrations: 2", "demonstrations: 1")
  yaml = yaml.replace(
    "{validation: phone.jsonl, test: phone_test.jsonl}", "phone.jsonl"
  )
  (line,) = mistakes(yaml, **changes)
  assert f"{name}.jsonl has 3 questions, too few to hold some out" in line


def test_demonstrations_have_rationales_and_are_in_no_test(mistakes, tmp_path):
  yaml = own_domain.YAML.replace(
    "test: test.jsonl}", "test: test.jsonl, demonstrations: shown.jsonl}"
  ).replace("demonstrations: 2", "demonstrations: 1")
  shown = own_domain.rows("test", 2, rationale="it is so.")
  own_domain.write_rows(
    tmp_path / "shown.jsonl", [*shown, *own_domain.rows("s", 1)]
  )
  lines = mistakes(yaml)
  assert "demonstrations asks 'test parcel 0 is late.', which test" in lines[0]
  assert "shown.jsonl:2: demonstrations asks" in lines[1]
  assert lines[2].startswith("shown.jsonl:3: lacks 'rationale'")


@pytest.mark.parametrize(
  "spelling",
  [
    "TRAIN  parcel\t4 is late",
    "\u201ctrain parcel 4, is late\u201d",
    "- train parcel 4 is late.",
    "3) train parcel 4 is late",
    "**train parcel 4** is late",
    "(train parcel 4 is late)",
    "train-parcel 4 is late",
    "tr\u200bain parcel 4 is late",
    "\uff34rain parcel 4 is late\u3002",
    "train parcel 4 is late \u2713",
    "train parcel 4 is late \u2764\ufe0f",
    "\u00abtrain parcel 4 is late\u00bb",
    "\u201etrain parcel 4 is late\u201c",
    "\u300ctrain parcel 4 is late\u300d",
    "\u00bftrain parcel 4 is late?",
    "train parcel 4 is late\u061f",
    "train parcel 4 is late\u0964",
    "train \u2014 parcel 4 is late",
    "Q: train parcel 4 is late",
    "TRAİN PARCEL 4 IS LATE",
    "traın parcel 4 ıs late",
  ],
)
def test_a_leak_is_found_however_it_is_spelt(mistakes, spelling):
  rows_ = [
    *own_domain.rows("other", 3),
    {"question": spelling, "answer": "late"},
  ]
  (line,) = mistakes(test=rows_)
  assert "which train asks, too (train.jsonl:5)" in line


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", "is empty"),
    ("a: [1", "line 1 is not YAML"),
    ("a: b: c", "line 1 is not YAML: mapping values .*; write a text with a"),
    ('a: "\\w"', "line 1 is not YAML: .*character 'w'; write .* in single quo"),
    ("a: {b: c: d}", "line 1 is not YAML: .*; write a text with a colon"),
    ("a: {question} b", "line 1 is not YAML: .*; write a text that begins"),
    ("# nothing\n", "is empty"),
    ("a: 1\n---\na: 2\n", "line 2 is not YAML: but found another document"),
    ("a: b\n\tc: d", "line 2 is not YAML: .*t' that cannot start any token"),
    ("a: b\nc: \x07", r"line 2 is not YAML: the character U\+0007 is not text"),
    ("a: *b", "line 1 is not YAML: found undefined alias 'b'"),
  ],
)
def test_what_is_no_yaml_is_one_sentence(tmp_path, text, words):
  path = own_domain.write(tmp_path, text)
  with pytest.raises(errors.UserError, match=words):
    files.load(str(path))


@pytest.mark.parametrize(
  "text",
  [
    "- a",
    "name: &a [*a, *a]",
    "!!python/object/apply:os.system [ls]",
    "? {a: b}\n: c",
    "name: 2024-01-01",
    "name: !!binary aGk=",
    "answer: {}\nsets: 3\nteacher: x\nstudent: [a]\ngeneral: {a: {b: c}}",
  ],
)
def test_any_yaml_is_told_what_is_wrong_and_nothing_runs(mistakes, text):
  assert mistakes(text)


def test_gsm8k_s_own_rows_are_rows(tmp_path):
  yaml = own_domain.YAML.replace(
    "{regex: 'queue: (?P<answer>[a-z]+)'}", "number"
  )
  yaml = yaml.replace('  answer: "queue: {answer}"\n', "")
  train = [
    {
      "question": f"How much is {i} + 1?",
      "answer": f"{i}+1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}",
    }
    for i in range(8)
  ]
  sets = {
    name: [{"question": f"{name} {i}?", "answer": i} for i in range(3)]
    for name in ("validation", "test", "phone", "phone_test")
  }
  (tmp_path / "spiece.model").write_bytes(
    tiny_vocabulary.train(
      ["The answer is How much 0 1 2 3 4 5 6 7 8 9 + ?"] * 30
    )
  )
  own = files.load(str(own_domain.write(tmp_path, yaml, train=train, **sets)))
  assert own.train[2].question.answer == "3"
  assert own.train[2].question.rationale == "2+1 = 3\nThe answer is 3"


def test_a_vocabulary_that_cannot_read_the_questions_is_told(mistakes):
  texts = own_domain.rows("train", 24)
  korean = [{**row, "question": f"상자는 {i}번"} for i, row in enumerate(texts)]
  (line,) = mistakes(train=korean)
  assert line.startswith("queues.yaml:2: the vocabulary does not know ")
  assert "of the training questions" in line


@pytest.mark.parametrize(
  ("answer", "field", "bare"),
  [
    (lambda mark: json.dumps({"정답": mark}, ensure_ascii=False), "정답", "나"),
    (lambda mark: json.dumps({"정답": mark}), "정답", "나"),
    (lambda mark: {"정답": mark}, "정답", "나"),
    (lambda mark: {"결과": {"정답": mark}}, "결과.정답", "나"),
    (lambda mark: f'그래서 둘째.\n{{"정답":"{mark}"}}', "정답", "나"),
    (lambda mark: {"정답": "가나".index(mark) + 1}, "정답", "2"),
    (lambda mark: {"정답": mark == "가"}, "정답", "false"),
    (lambda mark: {"정답": f'"{mark}"라고'}, "정답", '"나"라고'),
    (lambda mark: mark, "정답", "나"),
  ],
)
def test_an_answer_in_json_may_be_written_in_any_way(
  tmp_path, answer, field, bare
):
  yaml = own_domain.YAML.replace(
    "{regex: 'queue: (?P<answer>[a-z]+)'}", f"{{json: {field}}}"
  ).replace('  answer: "queue: {answer}"\n', "")
  sets = {
    name: [
      {"question": f"{name} {i}번?", "answer": answer("가나"[i % 2])}
      for i in range(n)
    ]
    for name, n in own_domain.SIZES.items()
  }
  (tmp_path / "spiece.model").write_bytes(
    tiny_vocabulary.train(
      ["정답 가 나"] * 9, vocab_size=300, byte_fallback=True
    )
  )
  own = files.load(str(own_domain.write(tmp_path, yaml, **sets)))
  question = own.train[1].question
  assert question.answer == bare
  target = formats.render_target(own.dataset.formats[0], "", bare)
  rule = own.dataset.in_distribution.answer
  assert rule.read(target) == bare
  if "둘째" in str(answer("나")):
    assert question.rationale == answer("나")


def test_multiple_choice_in_korean_with_json_answers(tmp_path):
  yaml = own_domain.YAML.replace(
    "{regex: 'queue: (?P<answer>[a-z]+)'}", "{json: 정답}"
  ).replace('  answer: "queue: {answer}"\n', "")
  yaml = yaml.replace("ticket: {question}\\nthink.", "문제: {question}\\n생각:")

  def questions(name, size):
    return [
      {
        "question": f"{name} {i}번 상자는? (가) 배송 (나) 환불",
        "answer": {"정답": "가나"[i % 2]},
        "rationale": '상자는 배송이다. {"정답": "X"}'.replace(
          "X", "가나"[i % 2]
        ),
      }
      for i in range(size)
    ]

  sets = {name: questions(name, n) for name, n in own_domain.SIZES.items()}
  texts = ["문제: 배송 환불 정답 {} () 가 나"] * 30
  (tmp_path / "spiece.model").write_bytes(
    tiny_vocabulary.train(
      texts,
      vocab_size=400,
      byte_fallback=True,
      normalization_rule_name="nfkc",
    )
  )
  own = files.load(str(own_domain.write(tmp_path, yaml, **sets)))
  question = own.train[1].question
  assert question.answer == "나"
  target = formats.render_target(own.dataset.formats[2], "", question.answer)
  assert target == '{"정답": "나"}'
  assert (
    formats.render_question("x", own.dataset.formats[3]) == "문제: x\n생각:"
  )


@pytest.mark.parametrize("opening", ["[", "{", "[a,", "- ", "? "])
def test_a_file_that_is_nested_without_end_is_refused_at_once(
  tmp_path, opening
):
  path = own_domain.write(tmp_path)
  path.write_text(path.read_text() + "more:\n  " + opening * 50_000)
  start = time.process_time()
  with pytest.raises(errors.UserError, match="nested too deeply|is not YAML"):
    files.load(str(path))
  assert time.process_time() - start < 2


def test_the_teacher_s_prompt_may_lie_in_a_file_of_its_own(tmp_path):
  yaml = own_domain.YAML.replace(
    '{prompt: "Ticket: {question}\\n"}', "{prompt_file: prompt.txt}"
  )
  prompt = "Which queue?\n\n  {question}\nThink.\n"
  (tmp_path / "prompt.txt").write_text(prompt)
  own = files.load(str(own_domain.write(tmp_path, yaml)))
  assert own.dataset.teacher_prompt == prompt


def test_half_of_a_pair_in_a_name_is_told_in_text(mistakes):
  lines = mistakes(own_domain.YAML.replace("sums:", r'"\ud83d":'))
  assert any("general.\ufffd" in line for line in lines)
  assert "\n".join(lines).encode()


def test_a_character_may_be_escaped_as_in_json(tmp_path):
  yaml = own_domain.YAML.replace(
    "Ticket: {question}", json.dumps("\U0001f600 {question}")[1:-1]
  )
  own = files.load(str(own_domain.write(tmp_path, yaml)))
  assert own.dataset.teacher_prompt == "\U0001f600 {question}\n"


def test_a_prompt_file_that_is_not_utf_8_is_named_with_its_line(
  mistakes, tmp_path
):
  yaml = own_domain.YAML.replace(
    '{prompt: "Ticket: {question}\\n"}', "{prompt_file: prompt.txt}"
  )
  (tmp_path / "prompt.txt").write_bytes(b"{question}\nWo f\xe4hrt es?\n")
  assert mistakes(yaml) == [
    "queues.yaml:9: prompt.txt, line 2 is not UTF-8: byte 0xe4 at byte 5 of the"
    " line; save the file as UTF-8"
  ]


def test_a_prompt_and_a_file_of_one_are_one_too_many(mistakes, tmp_path):
  yaml = own_domain.YAML.replace(
    "teacher: {", "teacher: {prompt_file: prompt.txt, "
  )
  (tmp_path / "prompt.txt").write_text("{question}")
  assert mistakes(yaml) == [
    "queues.yaml:9: teacher has both 'prompt' and 'prompt_file': give one"
  ]


def test_a_dataset_file_that_holds_its_rows_is_too_large(tmp_path):
  path = own_domain.write(tmp_path)
  size = path.stat().st_size
  path.write_text(path.read_text() + "#" * ((1 << 20) + 1 - size))
  with pytest.raises(errors.UserError) as caught:
    files.load(str(path))
  assert str(caught.value) == (
    f"--dataset={path} has 1,048,577 bytes: expected at most 1,048,576; put the"
    " rows into files of their own"
  )


def test_data_may_be_prepared_in_a_bucket(tmp_path):
  yaml = own_domain.YAML + "tfds_dir: gs://mine/tfds\n"
  own = files.load(str(own_domain.write(tmp_path, yaml)))
  assert own.dataset.tfds_dir == "gs://mine/tfds"


def test_a_benchmark_s_own_rule_of_json_judges_its_rows(tmp_path):
  yaml = own_domain.YAML.replace(
    "test: phone_test.jsonl}", "test: phone_test.jsonl, answer: {json: label}}"
  )
  phone = own_domain.rows("phone", 4, rationale="We look it up.")
  for row in phone:
    row["answer"] = {"label": row["answer"]}
  own = files.load(str(own_domain.write(tmp_path, yaml, phone=phone)))
  (member,) = own.dataset.out_of_distribution
  question = member.read("validation")[1]
  assert question.answer == "lost"
  assert question.rationale == 'We look it up.\n{"label": "lost"}'
  assert member.answer.finds('So {"label": "lost"}', "lost")


def test_one_general_file_is_tested_as_a_whole(tmp_path):
  yaml = own_domain.YAML.replace(
    "{test: sums.jsonl, answer: number}", "post.jsonl"
  )
  own_domain.write_rows(tmp_path / "post.jsonl", own_domain.rows("post", 20))
  own = files.load(str(own_domain.write(tmp_path, yaml)))
  (member,) = own.dataset.general
  tested = [one.question for one in member.read("test")]
  held_out = [one.question for one in member.read("validation")]
  assert len(tested) == own.sizes["general.sums.test"] == 20
  assert len(held_out) == own.sizes["general.sums.validation"] == 5
  assert set(held_out) < set(tested)


def test_questions_of_another_file_are_not_asked_beside_the_dataset_s(tmp_path):
  own = files.load(str(own_domain.write(tmp_path)))
  with pytest.raises(errors.UserError) as caught:
    own.dataset.read_training("more.jsonl")
  assert str(caught.value) == (
    f"--questions=more.jsonl and --dataset={own.path} both name the training"
    " questions: leave --questions out"
  )


def test_training_rows_with_rationales_are_the_demonstrations(tmp_path):
  train = own_domain.rows("train", 24)
  for row in train[:3]:
    row["rationale"] = "We look it up."
  own = files.load(str(own_domain.write(tmp_path, train=train)))
  shown = own.dataset.in_distribution.read_demonstrations()
  assert [one.question for one in shown] == [
    f"train parcel {i} is {own_domain.QUEUES[i % 2]}." for i in range(3)
  ]
  assert shown[1].rationale == "We look it up.\nqueue: lost"


def test_what_is_no_vocabulary_is_told(mistakes, tmp_path):
  (tmp_path / "spiece.model").write_text('{"model": "t5"}')
  assert mistakes() == [
    "queues.yaml:2: vocabulary spiece.model is no SentencePiece model: give the"
    " student's own, such as T5's spiece.model"
  ]


def test_training_rows_of_one_answer_have_nothing_to_learn(mistakes):
  train = [{**row, "answer": "late"} for row in own_domain.rows("train", 24)]
  assert mistakes(train=train) == [
    "queues.yaml:4: every training row has the answer 'late': there is nothing"
    " to learn"
  ]
