"""Readers of the four mathematics benchmarks, from their authors' files.

Each reader corrects the irregularities of its file and returns question rows;
`read` splits them. GSM8K's validation questions are from its training file. The
other benchmarks are not used for training, so their questions are divided into
validation and test.
"""

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.cot import formats
from specialize_jax.data import questions, record_filter, sources, splits
from specialize_jax.files import reading

Question = questions.Question

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_SUBORDINATE = re.compile(r"(^|\s)(if|when|after|before|as)\s", re.IGNORECASE)
_ONE_NUMBER = re.compile(
  r"""
  (?P<sign>-?) \(? (?P<value> \d[\d,]* (?:\.\d+)? (?:/\d+)? ) \)?
  \s* (?: \( [^()]* \) )?   # the unit
  """,
  re.VERBOSE,
)

BUILT_VERSION = "1.0.0"
"""The names of the TFDS datasets that `benchmark_builders` builds."""

FILES: Mapping[str, tuple[str, ...]] = {
  "gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl"),
  "multiarith": ("multiarith/MultiArith.json",),
  "asdiv": ("asdiv/ASDiv.xml",),
  "svamp": ("svamp/SVAMP.json",),
}

SPLITS: Mapping[str, tuple[str, ...]] = {
  "gsm8k": ("train", "validation", "test"),
  "multiarith": ("validation", "test"),
  "asdiv": ("validation", "test"),
  "svamp": ("validation", "test"),
}


def read(dataset: str, split: str) -> list[Question]:
  """Reads a split of a benchmark.

  The authors' files in the data directory take precedence over the TFDS dataset
  that `specialize prepare --dataset_name=DATASET` builds.

  Args:
    dataset: A key of `SPLITS`.
    split: One of its splits.

  Raises:
    UserError: neither exists, or a file is not the benchmark's.
  """
  built = built_questions(dataset, split, beside=FILES[dataset])
  return rows_of(dataset, split, sources.find) if built is None else built


def rows_of(
  dataset: str, split: str, find: Callable[[str], str]
) -> list[Question]:
  """Reads a split of a benchmark from its authors' files.

  Args:
    dataset: A key of `SPLITS`.
    split: One of its splits.
    find: Returns the path of a file of `FILES`.
  """
  path = FILES[dataset][0]
  if dataset == "gsm8k" and split == "test":
    return read_gsm8k(find(FILES[dataset][1]), "test")
  if dataset == "gsm8k":
    rows = read_gsm8k(find(path), "train")
  else:
    file = find(path)
    try:
      rows = _READERS[dataset](file)
    except errors.UserError:
      raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
      raise errors.UserError(
        f"{file} is not as its authors released it"
        f" ({type(error).__name__}: {error}): download it again"
      ) from error
  validation, rest = splits.split_validation(rows)
  return validation if split == "validation" else rest


def built_questions(
  name: str, split: str, *, beside: Sequence[str]
) -> list[Question] | None:
  """Reads a built TFDS dataset if the authors' files are missing.

  Args:
    name: The dataset's name, with its configuration if it has any.
    split: The split.
    beside: The authors' files, which take precedence.

  Returns:
    The questions; None if one of the files exists, or the dataset does not.
  """
  builder = built(name, beside=beside)
  if builder is None:
    return None
  names = [field.name for field in dataclasses.fields(Question)]
  return [
    Question(**{name: row[name].decode() for name in names})
    for row in tfds.as_numpy(
      builder.as_dataset(
        split=split, read_config=tfds.ReadConfig(try_autocache=False)
      )
    )
  ]


def built(
  name: str, *, beside: Sequence[str]
) -> tfds.core.DatasetBuilder | None:
  """Opens a built TFDS dataset; returns None like `built_questions`."""
  if any(sources.exists(path) for path in beside):
    return None
  folder = epath.Path(sources.tfds_dir()) / name / BUILT_VERSION
  if not (folder / "dataset_info.json").is_file():
    return None
  builder = tfds.builder_from_directory(folder)
  check_ours(builder)
  return builder


def check_ours(builder: tfds.core.DatasetBuilder) -> None:
  """Checks that a built dataset is not another one of the same name.

  TFDS has a `gsm8k` of its own, at the same path as ours.

  Raises:
    UserError: its rows have no id of their question.
  """
  if "question_id" not in builder.info.features:
    raise errors.UserError(
      f"{builder.data_dir} is a dataset of TFDS's own, whose rows have"
      f" {', '.join(builder.info.features)}: give another --tfds_data_dir (of"
      " `specialize prepare` --data_dir), in which `specialize prepare"
      f" --dataset_name={builder.name}` writes ours"
    )


def demonstrations() -> list[formats.Demonstration]:
  """Returns GSM8K's training questions, as demonstrations.

  The other benchmarks have no rationales. Validation questions are excluded.
  """
  return questions.to_demonstrations(read("gsm8k", "train"))


def gsm8k_training(path: str | None = None) -> record_filter.TrainingQuestions:
  """Reads the questions that a GSM8K teacher is asked, its training file.

  The validation questions in that file are marked as held out.

  Args:
    path: The authors' file; None for the one in the data directory.
  """
  asked = read_gsm8k(path or sources.find(FILES["gsm8k"][0]), "train")
  held_out, _ = splits.split_validation(asked)
  return record_filter.TrainingQuestions(
    asked=asked, held_out=held_out, validation=held_out
  )


def read_gsm8k(path: str, split: str) -> list[Question]:
  r"""Reads a GSM8K file: `question` and `answer`, one problem per line.

  Calculator annotations are removed, and the last line is replaced by the
  sentence with which every rationale ends.

  Example: from "48/2 = <<48/2=24>>24 clips.\n#### 24", the rationale is "48/2 =
  24 clips.\nThe answer is 24" and the answer "24".

  Args:
    path: The file.
    split: The name of the file in the ids, `gsm8k/SPLIT/LINE`; lines are
      counted from 0.
  """
  rows = questions.read_json_lines(path, ["question", "answer"])
  read_rows = []
  for number, row in enumerate(rows):
    where = f"{path}, row {number + 1}"
    question = questions.text_of(row, "question", where)
    given = questions.text_of(row, "answer", where)
    solution, mark, answer = given.rpartition("####")
    if not mark or not answer.strip():
      raise errors.UserError(
        f"{where}: expected an answer that ends in '#### NUMBER', got"
        f" {given[-30:]!r}"
      )
    answer = answer.strip()
    steps = _CALCULATOR_MARK.sub("", solution).strip()
    read_rows.append(
      Question(
        question_id=f"gsm8k/{split}/{number}",
        question=question.strip(),
        rationale=f"{steps}\n{_last_sentence(answer)}",
        answer=answer,
      )
    )
  return read_rows


def read_multiarith(path: str) -> list[Question]:
  """Reads MultiArith: a JSON list with `sQuestion` and one `lSolutions`.

  20 of its 600 problems repeat another problem's text.
  """
  return [
    _without_rationale(
      f"multiarith/{row['iIndex']}",
      row["sQuestion"].strip(),
      plain_number(row["lSolutions"][0]),
    )
    for row in _read_json(path, ("iIndex", "sQuestion", "lSolutions"))
  ]


def read_svamp(path: str) -> list[Question]:
  """Reads SVAMP: a JSON list with `Body`, `Question` and `Answer`.

  358 bodies lack the punctuation that joins them to their question; see
  `join_svamp`.
  """
  return [
    _without_rationale(
      f"svamp/{row['ID']}",
      join_svamp(row["Body"], row["Question"]),
      plain_number(row["Answer"]),
    )
    for row in _read_json(path, ("ID", "Body", "Question", "Answer"))
  ]


def join_svamp(body: str, question: str) -> str:
  """Joins a body and its question with the punctuation that is missing.

  After a body that ends in a subordinate clause, adds a comma and writes the
  question in lower case; otherwise adds a period. Adds a missing question mark
  (in one case replacing a stray "3").

  Example:
    >>> join_svamp("Dan has 3 cats. If he buys 2", "How many has he?")
    'Dan has 3 cats. If he buys 2, how many has he?'
    >>> join_svamp("Dan has 3 cats", "How many has he?")
    'Dan has 3 cats. How many has he?'
    >>> join_svamp("Dan has 3 cats.", "How many has he 3")
    'Dan has 3 cats. How many has he?'
  """
  body, question = body.strip(), question.strip()
  if not question.endswith("?"):
    question = question.rstrip("0123456789 ") + "?"
  if body.endswith((".", "?")):
    return f"{body} {question}"
  last_sentence = body.rpartition(". ")[2]
  if _SUBORDINATE.search(last_sentence):
    return f"{body}, {question[0].lower()}{question[1:]}"
  return f"{body}. {question}"


class _WithoutEntities(ET.TreeBuilder):
  """Builds a tree, rejecting any DOCTYPE, whose entities could be unbounded.

  ASDiv's file has none.
  """

  def doctype(self, *_: str) -> None:
    """Rejects a DOCTYPE before its declarations are read."""
    raise ValueError("a DOCTYPE, which ASDiv's file does not have")


def read_asdiv(path: str) -> list[Question]:
  """Reads ASDiv: an XML list of problems.

  Problems whose answer is one number (an integer, a decimal or a fraction) are
  kept, without its unit. Those with several answers ("5 (hr); 10 (hr)"), ratios
  ("5:6"), times ("3:30 p.m.") and words ("Mrs. Hilt") are left out, since the
  graders of numbers cannot judge them.

  Raises:
    UserError: the file is not ASDiv's XML.
  """
  try:
    parser = ET.XMLParser(target=_WithoutEntities())
    root = ET.parse(path, parser).getroot()
  except (ET.ParseError, LookupError, ValueError) as error:
    raise errors.UserError(
      f"{path}: expected ASDiv's XML, got {error}"
    ) from error
  rows = []
  for problem in root.iter("Problem"):
    answer = one_number(problem.findtext("Answer", ""))
    if answer is not None:
      body = problem.findtext("Body", "").strip()
      question = problem.findtext("Question", "").strip()
      rows.append(
        _without_rationale(
          f"asdiv/{problem.get('ID')}", f"{body} {question}".strip(), answer
        )
      )
  return rows


def one_number(answer: str) -> str | None:
  """Returns the number of an ASDiv answer; None if it is not a single number.

  Example:
    >>> one_number("9 (apples)"), one_number("0.46 (dollars)")
    ('9', '0.46')
    >>> one_number("-(1/3)")
    '-1/3'
    >>> one_number("5:6"), one_number("5 (hr); 10 (hr)"), one_number("Yes")
    (None, None, None)
  """
  match = _ONE_NUMBER.fullmatch(answer.strip())
  return f"{match['sign']}{match['value']}" if match else None


def plain_number(value: float) -> str:
  """Formats a number without needless decimals: 39.0 as "39", 2.5 as "2.5"."""
  if not math.isfinite(value):
    raise ValueError(f"an answer cannot be {value}")
  return str(int(value)) if value == int(value) else repr(float(value))


def _without_rationale(question_id: str, text: str, answer: str) -> Question:
  return Question(
    question_id=question_id,
    question=text,
    rationale=_last_sentence(answer),
    answer=answer,
  )


def _last_sentence(answer: str) -> str:
  return formats.render_target(formats.ZERO_SHOT_ANSWER_ONLY, "", answer)


def _read_json(path: str, keys: tuple[str, ...]) -> list[Mapping]:
  """Reads a JSON list of objects, each with all of `keys`."""
  rows = reading.read_json(path)
  if not isinstance(rows, list) or not all(
    isinstance(row, dict) and set(keys) <= set(row) for row in rows
  ):
    raise errors.UserError(
      f"{path}: expected a JSON list of objects with {', '.join(keys)}"
    )
  return rows


_READERS = {
  "multiarith": read_multiarith,
  "asdiv": read_asdiv,
  "svamp": read_svamp,
}
