"""A TFDS builder of the teacher's dataset that aligns in Apache Beam.

For datasets too large for one machine: the stage that `preparation` runs in
its own process runs here on the workers of any Beam runner.

No other module imports Beam, and it is not an extra of this package: its
releases up to 2.77 require protobuf below 7, and sentencepiece's generated code
requires 7.36 or above, so that pip cannot resolve both. Beam works with
protobuf 7 nevertheless (`tests/data/teacher_builder_test.py`), so it is
installed first, and protobuf is upgraded afterwards.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.data import preparation, record_filter
from specialize_jax.records import columnar, packed_rows, store, tfds_builder

_LINES_TOGETHER = 1024

_Outcome = tuple[list[packed_rows.PackedRow], preparation.Tally, dict[int, str]]
"""The rows of a batch of lines, their tally and new demonstrations."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runner:
  """A Beam runner and its options.

  Attributes:
    name: Beam's name of the runner: `DirectRunner`, `DataflowRunner`, ...
    options: Its command-line options, such as "--project=P".
  """

  name: str
  options: str = ""


@dataclasses.dataclass(kw_only=True)
class TeacherConfig(tfds.core.BuilderConfig):
  """The configuration of one preparation.

  Attributes:
    preparation: The inputs, options and output.
    metadata: The metadata of the dataset.
    report_path: The file to which the tally is written, as JSON.
    shown_path: The file to which the demonstrations are written, as JSON.
    validation: The numbers of the validation questions.
    validation_path: The prefix of the TFRecord files to which rows of these
      questions are written.
  """

  preparation: preparation.Preparation
  metadata: Mapping[str, str]
  report_path: str
  shown_path: str
  validation: frozenset[int]
  validation_path: str


class TeacherBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Rows of correct samples, aligned with a student's tokens."""

  VERSION = tfds.core.Version(tfds_builder.VERSION)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="A teacher's rationales in a student's tokens.",
      features=tfds_builder.row_features(),
      metadata=tfds.core.MetadataDict(self.builder_config.metadata),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager, pipeline: object
  ) -> dict[str, object]:
    del dl_manager  # the store is not downloaded
    return {tfds_builder.SPLIT: self._generate_examples(pipeline)}

  def _generate_examples(self, pipeline: object) -> object:
    """Returns a Beam collection of the (key, example) pairs to train on.

    The tally and the rows of validation questions are written to other files.
    """
    import apache_beam as beam

    config = self.builder_config
    outcomes = (
      _lines(beam, pipeline, config.preparation.records)
      | "Batch" >> beam.BatchElements(_LINES_TOGETHER, _LINES_TOGETHER)
      | "Align" >> beam.ParDo(_align_fn(beam, config.preparation))
    )
    kept = (
      outcomes
      | "Rows" >> beam.FlatMap(lambda outcome: outcome[0])
      | "ByKey" >> beam.Map(lambda row: (_key(row), vars(row)))
      | "Together" >> beam.GroupByKey()
    )
    repeated = kept | "Repeats" >> beam.Map(
      lambda group: _repeats(len(list(group[1])))
    )
    _ = (
      outcomes
      | "Shown" >> beam.FlatMap(lambda outcome: outcome[2].items())
      | "OneOfEach" >> beam.CombinePerKey(min)
      | "FirstQuestions" >> beam.combiners.Top.Smallest(preparation.MAX_SHOWN)
      | "Demonstrations" >> beam.Map(_write_shown, config.shown_path)
    )
    tallies = outcomes | "Tallies" >> beam.Map(lambda outcome: outcome[1])
    _ = (
      (tallies, repeated)
      | "Both" >> beam.Flatten()
      | "Sum" >> beam.CombineGlobally(_total)
      | "Report" >> beam.Map(_write_report, config.report_path)
    )
    held_out = config.validation
    trained, validation = (
      kept
      | "One"
      >> beam.Map(
        lambda group: (group[0], min(group[1], key=lambda row: row["ids"]))
      )
      | "Parts"
      >> beam.Partition(lambda one, _: int(one[1]["question"] in held_out), 2)
    )
    serializer = tfds.core.example_serializer.ExampleSerializer(
      tfds_builder.row_features().get_serialized_info()
    )
    _ = (
      validation
      | "Serialize"
      >> beam.Map(lambda one: serializer.serialize_example(one[1]))
      | "Validation" >> beam.io.WriteToTFRecord(config.validation_path)
    )
    return trained


def prepare(
  wanted: preparation.Preparation, runner: Runner
) -> preparation.Prepared:
  """Filters and aligns records, and writes the dataset, on a Beam runner.

  The result is that of `preparation.prepare`, except that rows are in any
  order, and that of repeated samples any one is kept instead of the first.

  Args:
    wanted: The inputs, options and output.
    runner: The Beam runner.

  Raises:
    UserError: as for `preparation.prepare`, or Beam is not installed.
  """
  check_installed(runner)
  from apache_beam.options import pipeline_options

  # Raises errors here instead of on a worker.
  stage = preparation.Stage(wanted)
  data_dir, name = epath.Path(wanted.data_dir), wanted.dataset_name
  metadata = tfds_builder.new_metadata(stage.fingerprint, mode=wanted.mode)
  with (
    contextlib.ExitStack() as staged,
    tfds_builder.replaced_when_done(data_dir, name, beside=True) as folder,
  ):
    report_path = folder.parent / "report.json"
    shown_path = folder.parent / "shown.json"
    validation_path = folder.parent / "validation"
    builder = _named(name)(
      data_dir=folder.parent / "beam",
      config=TeacherConfig(
        name=tfds_builder.ROWS,
        preparation=wanted,
        metadata=metadata,
        report_path=os.fspath(report_path),
        shown_path=os.fspath(shown_path),
        validation=stage.validation_questions,
        validation_path=os.fspath(validation_path),
      ),
    )
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        beam_runner=runner.name,
        beam_options=pipeline_options.PipelineOptions(
          shlex.split(runner.options)
        ),
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
      )
    )
    validation = _read_rows(validation_path)
    report = json.loads(report_path.read_text())
    shown = dict(json.loads(shown_path.read_text()))
    report |= {
      "kept": report["kept"] - len(validation),
      "validation": len(validation),
    }
    if not report["kept"]:
      raise preparation.nothing_kept(
        wanted, report["records"], report["dropped"]
      )
    columns = tfds_builder.parse(
      tfds_builder.read_serialized(builder), builder.info.features
    )
    tfds_builder.move(
      epath.Path(builder.data_dir).parent, folder / tfds_builder.ROWS
    )
    asked = np.unique(columns["question"].numpy()).tolist()
    tfds_builder.write_questions(
      map(stage.question_row, asked),
      folder=folder,
      name=name,
      metadata=metadata,
    )
    preparation.write_demonstrations(folder, stage, shown)
    validation_dir = staged.enter_context(
      preparation.validation_dataset(validation, stage, wanted)
    )
  settings = {"mode": wanted.mode, "vocabulary": stage.fingerprint}
  return preparation.Prepared(
    path=os.fspath(data_dir / name),
    validation_path=validation_dir,
    report={**settings, **report, "questions": len(asked)},
  )


def _read_rows(prefix: epath.Path) -> list[packed_rows.PackedRow]:
  """Reads rows from the TFRecord files that the workers wrote."""
  files = [os.fspath(file) for file in prefix.parent.glob(f"{prefix.name}-*")]
  serialized = list(tf.data.TFRecordDataset(files))
  if not serialized:
    return []
  columns = tfds_builder.parse(
    tf.stack(serialized), tfds_builder.row_features()
  )
  names = list(columns)
  values = zip(*(columns[name].numpy().tolist() for name in names), strict=True)
  return [
    packed_rows.PackedRow(**dict(zip(names, row, strict=True)))
    for row in values
  ]


def _named(name: str) -> type[TeacherBuilder]:
  """Returns a builder class, from whose name TFDS derives the dataset's."""
  return type(name, (TeacherBuilder,), {"name": name}, skip_registration=True)


def check_installed(runner: Runner) -> None:
  """Raises UserError if Beam cannot be imported."""
  if importlib.util.find_spec("apache_beam") is None:
    raise errors.UserError(
      f"--runner={runner.name} needs Apache Beam, which is not installed: run"
      " `pip install apache-beam` and then `pip install 'protobuf>=7.36'`, or"
      " leave --runner out to prepare in this process"
    )


def _lines(beam: object, pipeline: object, records: str) -> object:
  """Returns a Beam collection of the lines of a record store."""
  file = store.records_file(epath.Path(records))
  if store.is_released(file):
    return (
      pipeline
      | "Store" >> beam.Create([records])
      | "Lines" >> beam.FlatMap(store.read_lines)
    )
  return (
    pipeline
    | "Store" >> beam.io.ReadFromText(str(file))
    | "Lines" >> beam.Map(_line, str(file))
  )


def _line(text: str, file: str) -> columnar.Line:
  store.check_line(text, file)
  return columnar.Line(file, text)


def _align_fn(beam: object, wanted: preparation.Preparation) -> object:
  """Returns a Beam DoFn that processes batches of lines."""

  class Align(beam.DoFn):
    def setup(self) -> None:
      self._stage = preparation.Stage(wanted)

    def process(self, lines: list[columnar.Line]) -> Iterator[_Outcome]:
      known = set(self._stage.shown)
      rows, tally = self._stage.process(lines)
      shown = {
        number: text
        for number, text in self._stage.shown.items()
        if number not in known
      }
      yield rows, tally, shown

  return Align()


def _key(row: packed_rows.PackedRow) -> str:
  return f"{row.question}/{row.sample}"


def _repeats(count: int) -> preparation.Tally:
  """Returns the correction of the tally for a repeated sample."""
  repeats = preparation.Tally(kept=1 - count)
  if count > 1:
    repeats.dropped[record_filter.REPEATED] = count - 1
  return repeats


def _total(tallies: Iterable[preparation.Tally]) -> preparation.Tally:
  return sum(tallies, preparation.Tally())


def _write_shown(shown: list[tuple[int, str]], path: str) -> None:
  epath.Path(path).write_text(json.dumps(shown))


def _write_report(tally: preparation.Tally, path: str) -> None:
  epath.Path(path).write_text(json.dumps(tally.report(questions=0)))
