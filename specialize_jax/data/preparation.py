"""From a record store to the dataset that training reads, in one pass.

Filters, aligns and writes; the dataset appears whole or not at all, and what
became of every record is counted.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator

from specialize_jax import errors
from specialize_jax.align import coverage, sample, student
from specialize_jax.data import (
  aligned_records,
  benchmarks,
  questions,
  record_filter,
  sources,
)
from specialize_jax.records import schema, store, tfds_builder

DEFAULT_QUESTIONS = {
  "gsm8k_teacher": "gsm8k/train.jsonl",
  "mini_gsm_teacher": "mini/mini_gsm/train.jsonl",
}
"""Of each dataset that tasks read, where its questions lie."""

Records = Iterable[schema.TeacherRecord]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """What is prepared from what.

  Attributes:
    records: a record store, or what `records.store.read_records` takes.
    vocabulary: the student's SentencePiece model.
    mode: one of `align.sample.MODES`.
    data_dir: the folder of TFDS datasets that is written to.
    dataset_name: a key of `DEFAULT_QUESTIONS`.
    questions: the training questions that the teacher was asked; None for the
      data directory's own.
  """

  records: str
  vocabulary: str
  mode: str
  data_dir: str
  dataset_name: str
  questions: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """What came of it.

  Attributes:
    path: the dataset's folder.
    report: JSON-able: counts of records kept and dropped, by reason, and the
      alignment's coverage.
  """

  path: str
  report: dict[str, object]


def prepare(
  preparation: Preparation,
  *,
  progress: Callable[[Records], Records] = iter,
) -> Prepared:
  """Filters, aligns and writes.

  Args:
    preparation: what from what.
    progress: is given the records, passes them on and may show how many.

  Returns:
    Where the dataset is, and what became of the records.

  Raises:
    UserError: a file cannot be read, or nothing is left to train on.
  """
  sample.check_mode(preparation.mode)
  tokenizer = student.StudentTokenizer.from_file(preparation.vocabulary)
  questions_path = preparation.questions or _default_questions(
    preparation.dataset_name
  )
  index = _index(preparation.dataset_name, questions_path)
  tally = _Tally()
  records = tally.count(progress(store.read_records(preparation.records)))
  aligned = aligned_records.align_records(
    record_filter.right_training_records(records, index, tally.dropped),
    tokenizer,
    mode=preparation.mode,
    coverage_fn=tally.add_coverage,
  )
  try:
    path = tfds_builder.write(
      tally.rows(aligned),
      data_dir=preparation.data_dir,
      name=preparation.dataset_name,
      metadata={
        tfds_builder.FINGERPRINT: tokenizer.fingerprint,
        "mode": preparation.mode,
      },
    )
  except tfds_builder.EmptyDatasetError as error:
    raise _nothing_kept(preparation.records, questions_path, tally) from error
  report = tally.report(mode=preparation.mode, vocabulary=tokenizer.fingerprint)
  return Prepared(path=path, report=report)


class _Tally:
  """What became of the records, counted as they pass."""

  def __init__(self) -> None:
    self.covered = coverage.Coverage()
    self.dropped: collections.Counter[str] = collections.Counter()
    self.num_records = 0
    self.kept = 0
    self._questions: set[str] = set()

  def count(self, records: Records) -> Iterator[schema.TeacherRecord]:
    for record in records:
      self.num_records += 1
      yield record

  def add_coverage(self, one: coverage.Coverage) -> None:
    self.covered += one

  def rows(
    self,
    aligned: Iterable[schema.AlignedRow | aligned_records.Rejection],
  ) -> Iterator[schema.AlignedRow]:
    """Lets rows pass and counts rejections by their reason."""
    for one in aligned:
      if isinstance(one, schema.AlignedRow):
        self.kept += 1
        self._questions.add(str(one.question_id))
        yield one
      else:
        self.dropped[f"not alignable: {one.reason}"] += 1

  def report(self, **settings: str) -> dict[str, object]:
    return {
      **settings,
      "records": self.num_records,
      "kept": self.kept,
      "questions": len(self._questions),
      "dropped": dict(sorted(self.dropped.items())),
      **self.covered.report(),
    }


def _default_questions(dataset_name: str) -> str:
  relative = DEFAULT_QUESTIONS[dataset_name]
  try:
    return sources.find(relative)
  except errors.UserError as error:
    raise errors.UserError(
      f"no training questions for {dataset_name}: pass --questions=FILE.jsonl,"
      f" or set {sources.ENVIRONMENT_VARIABLE} to a folder with {relative}"
    ) from error


def _index(dataset_name: str, path: str) -> record_filter.QuestionIndex:
  """Reads what may be trained on and what may not."""
  if not os.path.isfile(path):
    raise errors.UserError(
      f"--questions={path} does not exist: expected a file of questions, one"
      " JSON object a line"
    )
  if dataset_name == "gsm8k_teacher":
    return record_filter.gsm8k_index(benchmarks.read_gsm8k(path, "train"))
  held_out = []
  for split in ("validation", "test"):
    beside = pathlib.Path(path).with_name(f"{split}.jsonl")
    if beside.is_file():
      held_out += questions.read_questions(str(beside))
  return record_filter.QuestionIndex(questions.read_questions(path), held_out)


def _nothing_kept(
  records_path: str, questions_path: str, tally: _Tally
) -> errors.UserError:
  if not tally.num_records:
    return errors.UserError(
      f"--records={records_path} holds no record; nothing to prepare"
    )
  why = ", ".join(f"{n} {reason}" for reason, n in tally.dropped.most_common())
  return errors.UserError(
    f"--records={records_path}: none of the {tally.num_records} records can be"
    f" trained on ({why}); check that --questions={questions_path} is the file"
    " that the teacher was asked from"
  )
