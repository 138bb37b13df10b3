"""From a record store to the dataset that training reads, in one pass.

Filters, aligns and writes; the dataset appears whole or not at all, and what
became of every record is counted. Right records of validation questions are a
dataset of their own beside it, for the held-out divergence.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from etils import epath

from specialize_jax import align, errors
from specialize_jax.align import coverage, student
from specialize_jax.cot import answer_rules
from specialize_jax.data import aligned_records, questions, record_filter
from specialize_jax.files import writing
from specialize_jax.records import (
  columnar,
  packed_rows,
  schema,
  store,
  tfds_builder,
)

_MAX_SHOWN = 500  # solved problems, many more than a prompt shows

Lines = Iterable[columnar.Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """What is prepared from what.

  Attributes:
    records: a record store, or what `records.store.read_records` takes.
    vocabulary: the student's SentencePiece model.
    mode: one of `align.MODES`.
    data_dir: the folder of TFDS datasets that is written to.
    dataset_name: the name of the dataset that is written, which tasks read.
    read_questions: reads the questions that the teacher was asked; a function
      of a module, or a `functools.partial` of one, which Beam can send to its
      workers.
    questions_from: how a user names them, for errors.
    answer: what an answer is.
    keep_truncated: whether to keep samples that are not finished answers; they
      are targets without an end-of-sequence token.
  """

  records: str
  vocabulary: str
  mode: str
  data_dir: str
  dataset_name: str
  read_questions: Callable[[], record_filter.TrainingQuestions]
  questions_from: str = "the training file"
  answer: answer_rules.AnswerRule = answer_rules.NUMBER
  keep_truncated: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """What came of it.

  Attributes:
    path: the dataset's folder.
    validation_path: that of the validation questions' records; None where
      there are none.
    report: JSON-able: counts of records kept and dropped, by reason, and the
      alignment's coverage.
  """

  path: str
  validation_path: str | None = None
  report: dict[str, object]


@dataclasses.dataclass(kw_only=True)
class Tally:
  """What became of records; those of two sets of records add.

  Attributes:
    num_records: records read.
    kept: records that gave a row.
    truncated: those of them that are not finished answers.
    dropped: the others by reason.
    covered: the alignment's coverage.
  """

  num_records: int = 0
  kept: int = 0
  truncated: int = 0
  dropped: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )
  covered: coverage.Coverage = dataclasses.field(
    default_factory=coverage.Coverage
  )

  def __add__(self, other: "Tally") -> "Tally":
    return Tally(
      num_records=self.num_records + other.num_records,
      kept=self.kept + other.kept,
      truncated=self.truncated + other.truncated,
      dropped=self.dropped + other.dropped,
      covered=self.covered + other.covered,
    )

  def report(self, *, questions: int, **settings: str) -> dict[str, object]:
    """Returns the JSON-able report that `specialize prepare` writes."""
    return {
      **settings,
      "records": self.num_records,
      "kept": self.kept,
      "kept_truncated": self.truncated,
      "questions": questions,
      "dropped": dict(sorted(self.dropped.items())),
      **self.covered.report(),
    }


class Stage:
  """Turns lines of a store into rows of the dataset, many at a time.

  Attributes:
    questions: the training file's questions.
    shown: the first right sample of the first few training questions, by the
      question's number: solved problems to show.
    fingerprint: of the student's vocabulary.
  """

  def __init__(self, preparation: Preparation) -> None:
    """Reads the vocabulary and the questions.

    Args:
      preparation: the records, the vocabulary and how they are aligned.

    Raises:
      UserError: either cannot be read, or there is no such mode.
    """
    self._aligner = aligned_records.RowAligner(
      student.SentencePieceStudent.from_file(preparation.vocabulary),
      mode=preparation.mode,
      keep_truncated=True,  # the filter has judged them
    )
    self._index = record_filter.QuestionIndex(preparation.read_questions())
    self._filter = record_filter.RightTrainingRows(
      self._index,
      rule=preparation.answer,
      keep_truncated=preparation.keep_truncated,
    )
    self.questions = self._index.file_order
    self.shown: dict[int, str] = {}
    self.fingerprint = self._aligner.aligner.student.fingerprint

  def process(
    self, lines: Sequence[columnar.Line]
  ) -> tuple[list[packed_rows.PackedRow], Tally]:
    """Filters, aligns and packs.

    Raises:
      UserError: a line is not a whole record.
    """
    picked: list[tuple[int, bool]] = []
    kept, aligned = self._aligner.align(self._picked(lines, picked))
    places = aligned.samples_A.tolist()
    truncated = [picked[place][1] for place in places]
    for place, is_cut in zip(places, truncated, strict=True):
      number = picked[place][0]
      is_new = number not in self.shown and len(self.shown) < _MAX_SHOWN
      if is_new and not is_cut and not self._index.is_validation(number):
        self.shown[number] = kept[place].text.strip()
    rows = packed_rows.pack(
      aligned_records.to_positions(aligned),
      questions=[picked[place][0] for place in places],
      samples=[kept[place].head.sample for place in places],
      truncated=truncated,
    )
    dropped, self._filter.dropped = self._filter.dropped, collections.Counter()
    for reason in aligned.rejected.values():
      dropped[f"not alignable: {reason}"] += 1
    return rows, Tally(
      num_records=len(lines),
      kept=len(rows),
      truncated=sum(truncated),
      dropped=dropped,
      covered=coverage.Coverage.of_batch(aligned),
    )

  def _picked(
    self, lines: Sequence[columnar.Line], picked: list[tuple[int, bool]]
  ) -> Iterator[columnar.Row]:
    """Yields the rows to learn from.

    Notes of each the number of its question, and whether it is truncated.
    """
    for line in lines:
      row = columnar.parse(line)
      number = self._filter.pick(row)
      if number is not None:
        unfinished = schema.why_unfinished(row.head, len(row.steps))
        picked.append((number, unfinished is not None))
        yield row

  @functools.cached_property
  def validation_questions(self) -> frozenset[int]:
    """The numbers of the validation questions."""
    numbers = range(len(self.questions))
    return frozenset(filter(self._index.is_validation, numbers))

  def question_row(self, number: int) -> tfds_builder.QuestionRow:
    """Returns a question as the dataset stores it."""
    question = self.questions[number]
    return tfds_builder.QuestionRow(
      question=number,
      question_id=question.question_id,
      text=question.question,
      answer=question.answer,
    )


def prepare(
  preparation: Preparation,
  *,
  progress: Callable[[Lines], Lines] = iter,
) -> Prepared:
  """Filters, aligns and writes.

  Args:
    preparation: what from what.
    progress: is given the records' lines, passes them on and may show how
      many.

  Returns:
    Where the dataset is, and what became of the records.

  Raises:
    UserError: a file cannot be read, or nothing is left to train on.
  """
  align.check_mode(preparation.mode)
  stage = Stage(preparation)
  tally = Tally()
  asked: dict[int, tfds_builder.QuestionRow] = {}
  # Few questions are held out: their rows wait until the others are written.
  validation: list[packed_rows.PackedRow] = []

  def rows() -> Iterator[packed_rows.PackedRow]:
    nonlocal tally
    lines = progress(store.read_lines(preparation.records))
    for batch in aligned_records.batches(lines):
      batch_rows, batch_tally = stage.process(batch)
      tally += batch_tally
      for row in batch_rows:
        if row.question not in asked:
          asked[row.question] = stage.question_row(row.question)
        if row.question in stage.validation_questions:
          validation.append(row)
        else:
          yield row

  try:
    path = tfds_builder.write(
      rows(),
      asked,
      data_dir=preparation.data_dir,
      name=preparation.dataset_name,
      metadata=tfds_builder.new_metadata(
        stage.fingerprint, mode=preparation.mode
      ),
    )
  except tfds_builder.EmptyDatasetError as error:
    raise nothing_kept(preparation, tally.num_records, tally.dropped) from error
  rows_shown = [
    vars(dataclasses.replace(stage.questions[number], rationale=text))
    for number, text in stage.shown.items()
  ]
  writing.write_rows(epath.Path(path) / questions.DEMONSTRATIONS, rows_shown)
  validation_path = write_validation(validation, stage, preparation)
  tally.kept -= len(validation)
  report = tally.report(
    questions=len(asked) - len({row.question for row in validation}),
    mode=preparation.mode,
    vocabulary=stage.fingerprint,
  )
  report["validation"] = len(validation)
  return Prepared(path=path, validation_path=validation_path, report=report)


def write_validation(
  rows: Sequence[packed_rows.PackedRow], stage: Stage, preparation: Preparation
) -> str | None:
  """Writes the dataset of the validation questions' rows.

  Args:
    rows: its rows; if there are none, one that was prepared earlier is removed.
    stage: the stage that made them.
    preparation: its preparation.

  Returns:
    The dataset's folder, or None if there are no rows.
  """
  name = tfds_builder.validation_name(preparation.dataset_name)
  if not rows:
    tfds_builder.remove(preparation.data_dir, name)
    return None
  return tfds_builder.write(
    rows,
    {row.question: stage.question_row(row.question) for row in rows},
    data_dir=preparation.data_dir,
    name=name,
    metadata=tfds_builder.new_metadata(
      stage.fingerprint, mode=preparation.mode
    ),
  )


def questions_of_files(path: str) -> record_filter.TrainingQuestions:
  """Reads training questions; `validation` and `test` lie beside them.

  Args:
    path: a file of question rows, such as `mini/mini_gsm/train.jsonl`.

  Raises:
    UserError: there is no such file, or a row is no question.
  """
  check_questions_file(path)
  held_out: dict[str, list[questions.Question]] = {}
  for split in ("validation", "test"):
    beside = epath.Path(path).with_name(f"{split}.jsonl")
    if beside.is_file():
      held_out[split] = questions.read_questions(str(beside))
  return record_filter.TrainingQuestions(
    asked=questions.read_questions(path),
    held_out=[one for of_split in held_out.values() for one in of_split],
    validation=held_out.get("validation", ()),
  )


def check_questions_file(path: str) -> None:
  """Raises UserError where there is no file of questions."""
  if not epath.Path(path).is_file():
    raise errors.UserError(
      f"--questions={path} does not exist: expected a file of questions, one"
      " JSON object a line"
    )


def nothing_kept(
  preparation: Preparation, num_records: int, dropped: Mapping[str, int]
) -> errors.UserError:
  """Returns the error that says why there is no row."""
  if not num_records:
    return errors.UserError(
      f"--records={preparation.records} holds no record; nothing to prepare"
    )
  reasons = sorted(dropped.items(), key=lambda item: -item[1])
  why = ", ".join(f"{count} {reason}" for reason, count in reasons)
  return errors.UserError(
    f"--records={preparation.records}: none of the {num_records} records can"
    f" be trained on ({why}); check that {preparation.questions_from} is what"
    " the teacher was asked from"
  )
