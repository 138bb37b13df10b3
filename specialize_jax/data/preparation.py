"""Builds the training dataset from a record store, in one pass.

Filters and aligns the records, and writes the dataset atomically, with counts
of kept and dropped records. Correct records of validation questions are written
to a second dataset, for measuring the divergence on held-out questions.
"""

import collections
import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from etils import epath

from specialize_jax import align, errors
from specialize_jax.align import coverage, student
from specialize_jax.cot import answer_rules
from specialize_jax.data import (
  aligned_records,
  questions,
  record_filter,
  splits,
)
from specialize_jax.files import writing
from specialize_jax.records import (
  columnar,
  packed_rows,
  schema,
  store,
  tfds_builder,
)

MAX_SHOWN = 500  # solved problems stored as demonstrations

Lines = Iterable[columnar.Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
  """The inputs, options and output of a preparation.

  Attributes:
    records: A record store, or any path that `records.store.read_records`
      supports.
    vocabulary: The student's SentencePiece model.
    mode: One of `align.MODES`.
    data_dir: The directory of TFDS datasets to write to.
    dataset_name: The name of the dataset to write, which tasks refer to.
    read_questions: Reads the questions that the teacher was asked. It must be
      a module's function, or a `functools.partial` of one, so that Beam can
      pickle it.
    questions_from: The flag or file with the questions, for errors.
    answer: The rule by which answers are extracted and compared.
    keep_truncated: Whether to keep samples that are not finished answers, as
      targets without an end-of-sequence token.
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
  """The result of a preparation.

  Attributes:
    path: The dataset's directory.
    validation_path: The directory of the validation questions' dataset; None if
      it would be empty.
    report: Counts of records kept and dropped, by reason, and the alignment's
      coverage, as JSON values.
  """

  path: str
  validation_path: str | None = None
  report: dict[str, object]


@dataclasses.dataclass(kw_only=True)
class Tally:
  """Counts of records; the tallies of two sets of records can be added.

  Attributes:
    num_records: The number of records read.
    kept: The number of records that became a row.
    truncated: The number of these that are not finished answers.
    dropped: The number of other records, by reason.
    covered: The alignment's coverage.
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
    """Returns the report that `specialize prepare` writes, as JSON values."""
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
  """Converts lines of a record store to rows of the dataset, in batches.

  Attributes:
    questions: The training file's questions.
    shown: Demonstrations: the first correct sample of each of the first few
      training questions, by the question's number.
    fingerprint: The fingerprint of the student's vocabulary.
  """

  def __init__(self, preparation: Preparation) -> None:
    """Reads the vocabulary and the questions.

    Args:
      preparation: The inputs and options.

    Raises:
      UserError: either cannot be read, or the mode is unknown.
    """
    self._aligner = aligned_records.RowAligner(
      student.SentencePieceStudent.from_file(preparation.vocabulary),
      mode=preparation.mode,
      keep_truncated=True,  # the filter has already dropped them
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
    """Filters, aligns and packs a batch of lines.

    Raises:
      UserError: a line is not a complete record.
    """
    picked: list[tuple[record_filter.Picked, bool]] = []
    kept, aligned = self._aligner.align(self._picked(lines, picked))
    places = aligned.samples_A.tolist()
    truncated = [picked[place][1] for place in places]
    for place, is_cut in zip(places, truncated, strict=True):
      number = picked[place][0].number
      is_new = number not in self.shown and len(self.shown) < MAX_SHOWN
      if is_new and not is_cut and not self._index.is_validation(number):
        self.shown[number] = kept[place].text.strip()
    rows = packed_rows.pack(
      aligned_records.to_positions(aligned),
      questions=[picked[place][0].number for place in places],
      samples=[picked[place][0].sample for place in places],
      truncated=truncated,
    )
    dropped, self._filter.dropped = self._filter.dropped, collections.Counter()
    for reason in aligned.rejected.values():
      dropped[f"not alignable: {reason}"] += 1
    return rows, Tally(
      num_records=len(lines),
      kept=len(rows),
      # Of what is trained on, as the kept rows that are reported.
      truncated=sum(
        is_cut and not self._index.is_validation(picked[place][0].number)
        for place, is_cut in zip(places, truncated, strict=True)
      ),
      dropped=dropped,
      covered=coverage.Coverage.of_batch(aligned),
    )

  def _picked(
    self,
    lines: Sequence[columnar.Line],
    picked: list[tuple[record_filter.Picked, bool]],
  ) -> Iterator[columnar.Row]:
    """Yields the rows to train on.

    Args:
      lines: The lines.
      picked: Extended, for each row, by its question and sample and whether it
        is truncated.
    """
    for line in lines:
      row = columnar.parse(line)
      one = self._filter.pick(row)
      if one is not None:
        unfinished = schema.why_unfinished(row.head, len(row.steps))
        picked.append((one, unfinished is not None))
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
  """Filters and aligns records, and writes the dataset.

  Args:
    preparation: The inputs, options and output.
    progress: Wraps the iterator of records, for example to display progress.

  Returns:
    The dataset's directory, and counts of records.

  Raises:
    UserError: a file cannot be read, or no record can be trained on.
  """
  align.check_mode(preparation.mode)
  stage = Stage(preparation)
  tally = Tally()
  asked: dict[int, tfds_builder.QuestionRow] = {}
  # Rows of held-out questions are few, and written after the others.
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

  with contextlib.ExitStack() as staged:
    validation_path = None

    def finish(folder: epath.Path) -> None:
      nonlocal validation_path
      write_demonstrations(folder, stage, stage.shown)
      validation_path = staged.enter_context(
        validation_dataset(validation, stage, preparation)
      )

    try:
      path = tfds_builder.write(
        rows(),
        asked,
        data_dir=preparation.data_dir,
        name=preparation.dataset_name,
        metadata=tfds_builder.new_metadata(
          stage.fingerprint, mode=preparation.mode
        ),
        finish=finish,
      )
    except tfds_builder.EmptyDatasetError as error:
      raise nothing_kept(
        preparation, tally.num_records, tally.dropped
      ) from error
  tally.kept -= len(validation)
  report = tally.report(
    questions=len(asked) - len({row.question for row in validation}),
    mode=preparation.mode,
    vocabulary=stage.fingerprint,
  )
  report["validation"] = len(validation)
  return Prepared(path=path, validation_path=validation_path, report=report)


def write_demonstrations(
  path: str | os.PathLike[str], stage: Stage, shown: Mapping[int, str]
) -> None:
  """Writes the teacher's solutions that in-context prompts may show.

  Args:
    path: The dataset's directory.
    stage: A stage of the preparation.
    shown: Rationales, by the number of their question.
  """
  rows = [
    vars(dataclasses.replace(stage.questions[number], rationale=text))
    for number, text in shown.items()
  ]
  writing.write_rows(
    epath.Path(path) / questions.DEMONSTRATIONS, rows, sealed=True
  )


@contextlib.contextmanager
def validation_dataset(
  rows: Sequence[packed_rows.PackedRow], stage: Stage, preparation: Preparation
) -> Iterator[str | None]:
  """Writes the dataset of the validation questions' rows.

  It is complete within the context, and moved into place at its end, once the
  training dataset is: no full disk leaves the rows of two preparations.

  Args:
    rows: Its rows. If there are none, a dataset of an earlier preparation is
      removed.
    stage: The stage that created the rows.
    preparation: The inputs, options and output.

  Yields:
    The dataset's directory, or None if there are no rows.
  """
  data_dir = epath.Path(preparation.data_dir)
  name = tfds_builder.validation_name(preparation.dataset_name)
  if not rows:
    yield None
    tfds_builder.remove(data_dir, name)
    return
  with tfds_builder.replaced_when_done(data_dir, name) as folder:
    tfds_builder.fill(
      rows,
      {row.question: stage.question_row(row.question) for row in rows},
      folder=folder,
      name=name,
      metadata=tfds_builder.new_metadata(
        stage.fingerprint, mode=preparation.mode
      ),
    )
    yield os.fspath(data_dir / name)


def questions_of_files(path: str) -> record_filter.TrainingQuestions:
  """Reads training questions, and validation and test questions next to them.

  Args:
    path: A file of question rows, such as `mini/mini_gsm/train.jsonl`.

  Raises:
    UserError: the file does not exist, or a row is not a question.
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
    words_fn=splits.words_and_signs_of,
  )


def check_questions_file(path: str) -> None:
  """Raises UserError if a file of questions does not exist."""
  if not epath.Path(path).is_file():
    raise errors.UserError(
      f"--questions={path} does not exist: expected a file of questions, one"
      " JSON object a line"
    )


def nothing_kept(
  preparation: Preparation, num_records: int, dropped: Mapping[str, int]
) -> errors.UserError:
  """Returns the error for a preparation without rows.

  Args:
    preparation: The inputs.
    num_records: The number of records read.
    dropped: The number of records dropped, by reason.
  """
  if not num_records:
    return errors.UserError(
      f"--records={preparation.records} holds no record; nothing to prepare"
    )
  reasons = sorted(dropped.items(), key=lambda item: -item[1])
  num_validated = num_records - sum(dropped.values())
  if num_validated:
    reasons.append(("right answer to a validation question", num_validated))
  why = ", ".join(f"{count} {reason}" for reason, count in reasons)
  return errors.UserError(
    f"--records={preparation.records}: none of the {num_records} records can"
    f" be trained on ({why}); check that {preparation.questions_from} is what"
    " the teacher was asked from"
  )
