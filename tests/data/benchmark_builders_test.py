"""The benchmarks as TFDS datasets: from files, and over a real server."""

import functools
import http.server
import pathlib
import shutil
import threading

import pytest
from testdata import real_files

from specialize_jax import errors
from specialize_jax.data import (
  benchmark_builders,
  benchmarks,
  big_bench_hard,
  sources,
)

MATHS = ("gsm8k", "multiarith", "asdiv", "svamp")


@pytest.fixture
def real():
  """The folder of the authors' files."""
  return real_files.find("gsm8k", "train.jsonl").parents[1]


@pytest.fixture
def empty_data_dir(tmp_path):
  """A data directory that holds TFDS datasets and nothing else."""
  folder = tmp_path / "data"
  folder.mkdir()
  sources.set_data_dir(folder)
  yield folder
  sources.set_data_dir(None)


@pytest.fixture
def server(tmp_path, monkeypatch, real):
  """Serves the files as their authors' repositories do."""
  root = tmp_path / "server"
  for path in ("svamp/SVAMP.json", "multiarith/MultiArith.json"):
    target = root / benchmark_builders.files()[path].address
    target.parent.mkdir(parents=True)
    shutil.copy(real / path, target)
  handler = functools.partial(
    http.server.SimpleHTTPRequestHandler, directory=str(root)
  )
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_:
    threading.Thread(target=http_.serve_forever, daemon=True).start()
    monkeypatch.setattr(
      benchmark_builders, "ADDRESS", f"http://127.0.0.1:{http_.server_port}/"
    )
    yield root
    http_.shutdown()


def build(name, data_dir, manual_dir=None):
  return benchmark_builders.prepare(
    name,
    data_dir=str(data_dir / "tfds"),
    manual_dir=None if manual_dir is None else str(manual_dir),
  )


@pytest.mark.parametrize("name", MATHS)
def test_local_files_become_a_dataset_that_reads_as_they_do(
  name, real, empty_data_dir
):
  build(name, empty_data_dir, real)
  for split in benchmarks.SPLITS[name]:
    from_files = benchmarks.rows_of(name, split, lambda path: str(real / path))
    assert benchmarks.read(name, split) == from_files, split


def test_27_tasks_of_bbh_read_the_same_in_every_prompt(
  real, empty_data_dir, monkeypatch
):
  folders = build("bbh", empty_data_dir, real)
  assert len(folders) == 27
  for task in ("boolean_expressions", "word_sorting"):
    for rule in ("chain_of_thought", "answer_only", "answer_only_paper_code"):
      source = big_bench_hard.source(task, rule)
      built = source.columns("test")
      with monkeypatch.context() as patched:
        patched.setitem(sources._chosen, "path", str(real))
        assert source.columns("test") == built
      canary = any("canary" in text.lower() for text in built["inputs"])
      assert canary == (rule == "answer_only_paper_code")


def test_a_file_that_is_not_there_is_downloaded(server, empty_data_dir, real):
  build("svamp", empty_data_dir)
  assert len(benchmarks.read("svamp", "test")) == 500
  assert build("multiarith", empty_data_dir, real / "svamp")


def test_a_download_with_another_checksum_is_refused(server, empty_data_dir):
  address = benchmark_builders.files()["svamp/SVAMP.json"].address
  with (server / address).open("ab") as file:
    file.write(b" ")
  with pytest.raises(errors.UserError, match="--manual_dir"):
    build("svamp", empty_data_dir)
  assert not list(pathlib.Path(empty_data_dir).rglob("dataset_info.json"))


def test_a_local_file_of_another_content_is_refused(tmp_path, empty_data_dir):
  (tmp_path / "manual" / "svamp").mkdir(parents=True)
  (tmp_path / "manual" / "svamp" / "SVAMP.json").write_text("[]")
  with pytest.raises(errors.UserError, match="not the svamp/SVAMP.json"):
    build("svamp", empty_data_dir, tmp_path / "manual")


def test_every_address_has_its_commit():
  for file in benchmark_builders.files().values():
    owner, repository, commit, *path = file.address.split("/")
    assert owner and repository and path
    assert len(commit) == 40 and len(file.sha256) == 64
  assert len(benchmark_builders.files()) == 5 + 2 * 27
