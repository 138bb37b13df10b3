"""TFDS builders of the benchmarks, from local or downloaded files.

`--manual_dir` is a directory with the authors' files, with the same layout as
the data directory (`gsm8k/train.jsonl`, ...). A file that is missing there is
downloaded from its authors' repository, at a fixed commit, and must have the
size and SHA-256 that `benchmark_files.tsv` lists.

    specialize prepare --dataset_name=svamp --data_dir=tfds

`tfds build --imports=specialize_jax.data.benchmark_builders` works as well.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds
from etils import epath

from specialize_jax import errors
from specialize_jax.data import benchmarks, big_bench_hard, questions
from specialize_jax.files import reading

ADDRESS = "https://raw.githubusercontent.com/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """A file that a benchmark's authors published.

  Attributes:
    address: Its address, relative to `ADDRESS`.
    num_bytes: Its size in bytes.
    sha256: Its checksum, in hexadecimal.
  """

  address: str
  num_bytes: int
  sha256: str


@functools.cache
def files() -> Mapping[str, File]:
  """Returns all files by their paths relative to a data directory."""
  table = pathlib.Path(__file__).with_name("benchmark_files.tsv")
  rows = [line.split("\t") for line in table.read_text().splitlines()]
  return {
    path: File(address=address, num_bytes=int(size), sha256=sha256)
    for path, address, size, sha256 in rows
  }


class _Benchmark(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The base class of the five builders."""

  def __init_subclass__(cls, *, skip_registration: bool = False) -> None:
    """Registers a builder, unless TFDS has registered its own of that name.

    TFDS has a gsm8k, which it registers as soon as anybody asks it for any
    dataset of a name.
    """
    name = cls.__name__.lower()
    taken = name in tfds.core.registered._DATASET_REGISTRY  # noqa: SLF001
    super().__init_subclass__(skip_registration=skip_registration or taken)

  VERSION = tfds.core.Version(benchmarks.BUILT_VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = None  # files can be downloaded

  @tfds.core.utils.classproperty
  @classmethod
  def url_infos(cls) -> Mapping[str, tfds.download.checksums.UrlInfo]:
    """Returns the checksums by which TFDS verifies downloads."""
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
  """Word problems whose answer is a single number."""

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
  """MultiArith: 600 problems of two or more steps, a quarter for validation."""


class Asdiv(_Maths):
  """ASDiv: the 2,093 problems whose answer is a single number."""


class Svamp(_Maths):
  """SVAMP: 1,000 variations of simple problems."""


class Bbh(_Benchmark):
  """BIG-Bench-Hard: a configuration per task, with its prompt as metadata."""

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
  """Finds files in the manual directory, and downloads those that are missing.

  Args:
    paths: Keys of `files()`.
    dl_manager: TFDS's download manager.

  Returns:
    The local path of each file.

  Raises:
    UserError: a file differs from the one that its authors published.
  """
  # TFDS has no manual directory if none was given and the default is missing.
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
  """Builds all configurations of a benchmark that do not exist yet.

  Args:
    name: A key of `BUILDERS`.
    data_dir: The directory of TFDS datasets.
    manual_dir: A directory that may have the authors' files; None to download
      them.

  Returns:
    The datasets' directories.

  Raises:
    UserError: a file cannot be downloaded, or differs from the one that its
      authors published.
  """
  made = BUILDERS[name]
  config_names = [config.name for config in made.BUILDER_CONFIGS] or [None]
  folders = []
  for config_name in config_names:
    builder = made(data_dir=data_dir, config=config_name)
    if epath.Path(builder.data_dir).exists():  # which TFDS leaves as it is
      benchmarks.check_ours(tfds.builder_from_directory(builder.data_dir))
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
