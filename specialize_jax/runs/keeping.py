"""Files that a run keeps next to its checkpoints, to be self-contained.

MODEL_DIR/vocabulary/     the tokenizer, for `convert` and `generate`
MODEL_DIR/config.gin      the configuration of the newest start
MODEL_DIR/dataset.yaml    the dataset file, if one was given, with its prompts
MODEL_DIR/versions.json   the versions of Python and of the packages

Readers of a checkpoint read the first and the third, too, and compare them with
the manifests next to them (`checkpoints.manifests`).
"""

import importlib.metadata
import os
import platform
from collections.abc import Mapping

import seqio
from etils import epath

import specialize_jax
from specialize_jax import revision
from specialize_jax.checkpoints import manifests, opening, tokenizers
from specialize_jax.files import reading, writing

CONFIG = "config.gin"
DATASET = opening.DATASET
VERSIONS = "versions.json"

_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint",
             "numpy", "seqio", "tensorflow", "tensorflow-datasets",
             "sentencepiece", "transformers", "gin-config")  # fmt: skip


def keep(
  model_dir: str | os.PathLike[str],
  *,
  mixture_or_task_name: str,
  config_text: str,
  files: Mapping[str, bytes],
) -> None:
  """Writes the files that a run keeps, over those of an earlier start.

  Args:
    model_dir: the run's directory.
    mixture_or_task_name: the training data, whose vocabulary is kept.
    config_text: the configuration; "" to keep none.
    files: contents of further files by name.
  """
  model_dir = epath.Path(model_dir)
  vocabulary = vocabulary_files(mixture_or_task_name)
  for name, content in vocabulary.items():
    _write(model_dir / opening.VOCABULARY_DIR / name, content)
  if vocabulary:
    manifests.write(model_dir / opening.VOCABULARY_DIR, vocabulary)
  if config_text:
    _write(model_dir / CONFIG, config_text.encode())
  for name, content in files.items():
    _write(model_dir / name, content)
  if files:
    manifests.write(model_dir, files)
  writing.write_json(model_dir / VERSIONS, versions())


def versions() -> dict[str, str | None]:
  """Returns the versions of Python, of this package and its dependencies."""
  found: dict[str, str | None] = {
    "python": platform.python_version(),
    "specialize-jax": specialize_jax.__version__,
    "revision": revision.find(),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def vocabulary_files(mixture_or_task_name: str) -> Mapping[str, bytes]:
  """Returns the contents of the files of a mixture's tokenizer by name.

  It is empty if the tokenizer is not SentencePiece's.
  """
  features = seqio.get_mixture_or_task(mixture_or_task_name).output_features
  vocabulary = features["targets"].vocabulary
  if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return {}
  return tokenizers.from_sentencepiece(
    vocabulary.sentencepiece_model_file, extra_ids=vocabulary.extra_ids or 0
  ).files


def _write(path: epath.Path, content: bytes) -> None:
  """Writes a file, unless it has that content already."""
  if path.is_file() and reading.read_bytes(path) == content:
    return
  with writing.opened(path, binary=True) as stream:
    stream.write(content)
