"""TFDS builders of the benchmarks, from local files or from their authors.

`--manual_dir` names a folder with the authors' files as the data directory
has them (`gsm8k/train.jsonl`, ...). A file that is not there is downloaded
from its authors' repository, at a commit, and must have the checksum that
`benchmark_files.tsv` has for it: file, address, bytes, SHA-256.

    specialize prepare --dataset_name=svamp --data_dir=tfds

TFDS's own `tfds build` takes them too, with
`--imports=specialize_jax.data.benchmark_builders`.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from specialize_jax import errors
from specialize_jax.data import benchmarks, big_bench_hard, questions
from specialize_jax.files import reading

ADDRESS = "https://raw.githubusercontent.com/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """One file of a benchmark's authors.

  Attributes:
    address: below `ADDRESS`.
    num_bytes: its size.
    sha256: its checksum.
  """

  address: str
  num_bytes: int
  sha256: str


@functools.cache
def files() -> Mapping[str, File]:
  """Returns every file by its path below a data directory."""
  table = pathlib.Path(__file__).with_name("benchmark_files.tsv")
  rows = [line.split("\t") for line in table.read_text().splitlines()]
  return {
    path: File(address=address, num_bytes=int(size), sha256=sha256)
    for path, address, size, sha256 in rows
  }


class _Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the five builders share."""

  VERSION = tfds.core.Version(benchmarks.BUILT_VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = None  # a network does as well

  @tfds.core.utils.classproperty
  @classmethod
  def url_infos(cls) -> Mapping[str, tfds.download.checksums.UrlInfo]:
    """Returns the checksums that downloads must have, for TFDS."""
    return {
      ADDRESS + file.address: tfds.download.checksums.UrlInfo(
        size=tfds.core.utils.Size(file.num_bytes),
        checksum=file.sha256,
        filename=os.path.basename(file.address),
      )
      for file in files().values()
    }

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {field.name: text for field in dataclasses.fields(questions.Question)}
      ),
      metadata=tfds.core.MetadataDict({}),
      disable_shuffling=True,  # keeps the authors' order
    )

  def _generate_examples(
    self, rows: Sequence[questions.Question]
  ) -> Iterator[tuple[int, Mapping[str, str]]]:
    for number, row in enumerate(rows):
      yield number, vars(row)


class _Maths(_Benchmark, skip_registration=True):
  """Word problems with one number as their answer."""

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, object]:
    paths = locate(benchmarks.FILES[self.name], dl_manager)
    return {
      split: self._generate_examples(
        benchmarks.rows_of(self.name, split, paths.__getitem__)
      )
      for split in benchmarks.SPLITS[self.name]
    }


class Gsm8k(_Maths):
  """GSM8K: 6,973 training, 500 validation and 1,319 test problems."""


class Multiarith(_Maths):
  """MultiArith: 600 problems of two or more steps, a quarter held out."""


class Asdiv(_Maths):
  """ASDiv's 2,093 problems that have one number as their answer."""


class Svamp(_Maths):
  """SVAMP: 1,000 problems that vary one another."""


class Bbh(_Benchmark):
  """BIG-Bench-Hard: a configuration a task, its prompt in the metadata."""

  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name=pathlib.PurePath(path).stem)
    for path in files()
    if path.startswith("bbh/") and path.endswith(".json")
  ]

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> Mapping[str, object]:
    task = self.builder_config.name
    rows_path, prompt_path = big_bench_hard.paths(task)
    paths = locate([rows_path, prompt_path], dl_manager)
    prompt = reading.read_text(paths[prompt_path])
    big_bench_hard.parse_prompt(prompt, paths[prompt_path])
    self.info.metadata[big_bench_hard.PROMPT] = prompt
    rows = big_bench_hard.read_questions(paths[rows_path], task)
    return {"test": self._generate_examples(rows)}


BUILDERS = {one.name: one for one in (Gsm8k, Multiarith, Asdiv, Svamp, Bbh)}


def locate(
  paths: Sequence[str], dl_manager: tfds.download.DownloadManager
) -> dict[str, str]:
  """Finds files in the manual folder, and downloads those that are not there.

  Raises:
    UserError: a file is not the one that its authors published.
  """
  # TFDS has no manual folder where none was named and none exists.
  folder = pathlib.Path(dl_manager._manual_dir or "")  # noqa: SLF001
  found = {
    path: str(folder / path)
    for path in paths
    if dl_manager._manual_dir and (folder / path).is_file()  # noqa: SLF001
  }
  for path, local in found.items():
    _check(path, local)
  missing = {
    path: ADDRESS + files()[path].address for path in paths if path not in found
  }
  downloaded = dl_manager.download(missing)
  return found | {path: str(local) for path, local in downloaded.items()}


def _check(path: str, local: str) -> None:
  digest = hashlib.sha256(pathlib.Path(local).read_bytes()).hexdigest()
  if digest != files()[path].sha256:
    raise errors.UserError(
      f"{local} is not the {path} that its authors published (SHA-256"
      f" {digest[:12]}, expected {files()[path].sha256[:12]}): remove it to"
      " have it downloaded, or put the authors' own in its place"
    )


def prepare(name: str, *, data_dir: str, manual_dir: str | None) -> list[str]:
  """Builds a benchmark, every configuration of it; what is there stays.

  Args:
    name: a key of `BUILDERS`.
    data_dir: the folder of TFDS datasets.
    manual_dir: where the authors' files may lie.

  Returns:
    The datasets' folders.

  Raises:
    UserError: a file is neither there nor to be had, or is another one.
  """
  made = BUILDERS[name]
  config_names = [config.name for config in made.BUILDER_CONFIGS] or [None]
  folders = []
  for config_name in config_names:
    builder = made(data_dir=data_dir, config=config_name)
    try:
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
          manual_dir=manual_dir,
          compute_stats=tfds.download.ComputeStatsMode.SKIP,
        )
      )
    except (
      tfds.download.download_manager.NonMatchingChecksumError,
      tfds.download.DownloadError,
      OSError,
    ) as error:
      raise errors.UserError(
        f"{name} could not be had from {ADDRESS}"
        f" ({' '.join(str(error).split())[:200]}): put its files into a folder"
        " and name it with --manual_dir"
      ) from error
    folders.append(str(builder.data_dir))
  return folders
