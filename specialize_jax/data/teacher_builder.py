"""The teacher's dataset as a TFDS builder that aligns in Apache Beam.

For teachers too large for one machine: the same stage that `preparation`
runs in its own process, here on the workers of any Beam runner.

Beam is imported by nothing else, and is no extra of this package: its
releases up to 2.77 ask for protobuf below 7, sentencepiece's generated code
for 7.36 or above, so that pip cannot install both by their words. Beam runs
under protobuf 7 all the same (`tests/data/teacher_builder_test.py`), so it is
installed first and protobuf after it.
"""

import dataclasses
import importlib.util
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.data import preparation, record_filter
from specialize_jax.records import columnar, packed_rows, store, tfds_builder

_LINES_TOGETHER = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runner:
  """Where Beam runs.

  Attributes:
    name: Beam's name for a runner: `DirectRunner`, `DataflowRunner`, ...
    options: its options as on a command line, such as "--project=P".
  """

  name: str
  options: str = ""


@dataclasses.dataclass(kw_only=True)
class TeacherConfig(tfds.core.BuilderConfig):
  """What is prepared from what.

  Attributes:
    preparation: what from what.
    metadata: what is kept with the dataset.
    report_path: where the tally goes, as JSON.
  """

  preparation: preparation.Preparation
  metadata: Mapping[str, str]
  report_path: str


class TeacherBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Rows of right samples, aligned to a student's tokens."""

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
    """Gives a Beam collection of (key, example)."""
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
    tallies = outcomes | "Tallies" >> beam.Map(lambda outcome: outcome[1])
    _ = (
      (tallies, repeated)
      | "Both" >> beam.Flatten()
      | "Sum" >> beam.CombineGlobally(_total)
      | "Report" >> beam.Map(_write_report, config.report_path)
    )
    return kept | "One" >> beam.Map(
      lambda group: (group[0], min(group[1], key=lambda row: row["ids"]))
    )


class Gsm8kTeacher(TeacherBuilder):
  """The teacher's samples of GSM8K's training questions."""


class MiniGsmTeacher(TeacherBuilder):
  """The exact teacher's samples of the mini world's training questions."""


_BUILDERS = {one.name: one for one in (Gsm8kTeacher, MiniGsmTeacher)}


def prepare(
  wanted: preparation.Preparation, runner: Runner
) -> preparation.Prepared:
  """Filters, aligns and writes on a Beam runner.

  As `preparation.prepare`, except that rows come in any order, and that of
  samples which occur twice any one is kept, not the first, and that records
  of validation questions are left out.

  Raises:
    UserError: as `preparation.prepare`; or Beam is not installed.
  """
  check_installed(runner)
  from apache_beam.options import pipeline_options

  # Fails here, not on a worker.
  stage = preparation.Stage(wanted, validation=False)
  data_dir, name = epath.Path(wanted.data_dir), wanted.dataset_name
  metadata = tfds_builder.new_metadata(stage.fingerprint, mode=wanted.mode)
  with tfds_builder.replaced_when_done(data_dir, name) as folder:
    report_path = folder.parent / "report.json"
    builder = _BUILDERS[name](
      data_dir=folder.parent / "beam",
      config=TeacherConfig(
        name=tfds_builder.ROWS,
        preparation=wanted,
        metadata=metadata,
        report_path=os.fspath(report_path),
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
    report = json.loads(report_path.read_text())
    if not report["kept"]:
      raise preparation.nothing_kept(
        wanted, report["records"], report["dropped"]
      )
    columns = tfds_builder.parse(
      tfds_builder.read_serialized(builder), builder.info.features
    )
    epath.Path(builder.data_dir).parent.rename(folder / tfds_builder.ROWS)
    asked = np.unique(columns["question"].numpy()).tolist()
    tfds_builder.write_questions(
      map(stage.question_row, asked),
      folder=folder,
      name=name,
      metadata=metadata,
    )
  settings = {"mode": wanted.mode, "vocabulary": stage.fingerprint}
  return preparation.Prepared(
    path=os.fspath(data_dir / name),
    report={**settings, **report, "questions": len(asked)},
  )


def check_installed(runner: Runner) -> None:
  """Raises a `UserError` unless Beam can be imported."""
  if importlib.util.find_spec("apache_beam") is None:
    raise errors.UserError(
      f"--runner={runner.name} needs Apache Beam, which is not installed: run"
      " `pip install apache-beam` and then `pip install 'protobuf>=7.36'`, or"
      " leave --runner out to prepare in this process"
    )


def _lines(beam: object, pipeline: object, records: str) -> object:
  """Gives a collection of the lines of a store."""
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
    | "Lines" >> beam.Map(lambda text: columnar.Line(str(file), text))
  )


def _align_fn(beam: object, wanted: preparation.Preparation) -> object:
  """Gives a Beam function of batches of lines; its stage stays loaded."""

  class Align(beam.DoFn):
    def setup(self) -> None:
      self._stage = preparation.Stage(wanted, validation=False)

    def process(
      self, lines: list[columnar.Line]
    ) -> Iterator[tuple[list[packed_rows.PackedRow], preparation.Tally]]:
      yield self._stage.process(lines)

  return Align()


def _key(row: packed_rows.PackedRow) -> str:
  return f"{row.question}/{row.sample}"


def _repeats(count: int) -> preparation.Tally:
  """What a sample that several workers kept takes from the tally."""
  repeats = preparation.Tally(kept=1 - count)
  if count > 1:
    repeats.dropped[record_filter.REPEATED] = count - 1
  return repeats


def _total(tallies: Iterable[preparation.Tally]) -> preparation.Tally:
  return sum(tallies, preparation.Tally())


def _write_report(tally: preparation.Tally, path: str) -> None:
  epath.Path(path).write_text(json.dumps(tally.report(questions=0)))
