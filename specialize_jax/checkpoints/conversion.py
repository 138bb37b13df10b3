"""Converts a checkpoint of any kind to ours, Hugging Face or T5X.

Tensors are converted one at a time, so that host memory stays below twice the
largest tensor plus a GiB; an output looks complete only when it is.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Mapping

import flax.traverse_util
import jax
import numpy as np
import optax
from etils import epath
from flax import linen as nn

import specialize_jax
from specialize_jax import errors
from specialize_jax.checkpoints import (
  adafactor_moments,
  huggingface,
  manager,
  manifests,
  name_table,
  opening,
  sources,
  t5x_export,
  tokenizers,
)
from specialize_jax.files import paths, writing
from specialize_jax.t5 import config as t5_config

_T5_TOKENS, _T5_ROWS = 32_100, 32_128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """A conversion before anything is written.

  Attributes:
    checkpoint: the input.
    config: the output's model; tensors are written as its `param_dtype`.
    source: the tensors, without dropped rows of the vocabulary.
    tokenizer_files: contents of the tokenizer's files by name.
    num_rows_read: rows of the vocabulary in the input.
    dataset_files: the content of the dataset file that the model was trained
      with, which has its prompts, by name; empty without one.
  """

  checkpoint: opening.Checkpoint
  config: t5_config.T5Config
  source: sources.Source
  tokenizer_files: Mapping[str, bytes]
  num_rows_read: int
  dataset_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)

  @property
  def num_tensors(self) -> int:
    """The number of tensors, layers counted one by one."""
    return len(name_table.tensors(self.config))

  @property
  def num_bytes(self) -> int:
    """The uncompressed size of the output."""
    itemsize = np.dtype(self.config.param_dtype).itemsize
    return itemsize * sum(
      int(np.prod(tensor.shape)) for tensor in name_table.tensors(self.config)
    )


def plan(
  checkpoint: opening.Checkpoint,
  *,
  to: str,
  dtype: str | None = None,
  vocab_size: int | None = None,
  vocabulary: tokenizers.Vocabulary | None = None,
  on_tensor: Callable[[int], None] = lambda num_bytes: None,
) -> Plan:
  """Plans a conversion and checks that it is possible.

  Args:
    checkpoint: the input.
    to: "ours", "huggingface" or "t5x".
    dtype: dtype of the output; None for that of the input, or float32 if its
      tensors differ or are float64.
    vocab_size: rows of the vocabulary in the output. None for those of the
      input, except that 32,100 become T5's 32,128 in ours, and 32,100 again in
      a Hugging Face folder if ours was converted from such.
    vocabulary: the tokenizer; None for the one next to the checkpoint.
    on_tensor: called with the size in bytes of each tensor that was read.

  Returns:
    The plan.

  Raises:
    UserError: tensors are missing, unexpected or of another shape, or the
      vocabulary's size is not the model's.
  """
  if to == "huggingface" and checkpoint.config.relative_bias == "per_layer":
    raise errors.UserError(
      f"{checkpoint.path} has a relative position table of its own in each "
      "layer, as T5X's scalable_t5 trains it, and a Hugging Face T5 has one "
      "for all layers of a stack: convert it with --to=ours."
    )
  if to == "t5x":
    t5x_export.check_function(checkpoint.config, checkpoint.path)
  checkpoint.check_files()
  read = checkpoint.source.shapes.get(sources.EMBEDDING, (0,))[0]
  name_table.check(checkpoint.config, checkpoint.source)
  rows = vocab_size or _default_rows(checkpoint, read, to)
  config = dataclasses.replace(
    checkpoint.config,
    vocab_size=rows,
    param_dtype=dtype or _common_dtype(checkpoint.source),
  )
  own = vocabulary is None and checkpoint.is_ours
  if vocabulary is None:
    vocabulary = tokenizers.beside(checkpoint.tokenizer_files)
  if vocabulary is not None:
    tokenizers.check(vocabulary, rows, own=own)
  source: sources.Source = _Watched(checkpoint.source, on_tensor)
  if rows < read:
    source = sources.Trimmed(source, rows)
  kept = opening.dataset_file(checkpoint)
  return Plan(
    checkpoint=checkpoint,
    config=config,
    source=source,
    tokenizer_files=vocabulary.files if vocabulary else {},
    num_rows_read=read,
    dataset_files={opening.DATASET: kept.read_bytes()} if kept else {},
  )


def write_ours(planned: Plan, output: str | os.PathLike) -> epath.Path:
  """Writes a model_dir with one step and returns the step's path.

  Raises:
    UserError: `output` is not empty.
  """
  output = epath.Path(output)
  directory = output / "checkpoints"
  checkpoint = planned.checkpoint
  with manager.CheckpointManager(directory, keep=None) as steps:
    if steps.all_steps() or _foreign(output):
      raise errors.UserError(
        f"{output} holds something already: give a folder that does not exist."
      )
    _remove_leftovers(output)
    for name, content in planned.tokenizer_files.items():
      file = output / opening.VOCABULARY_DIR / name
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_bytes(content)
    for name, content in planned.dataset_files.items():
      output.mkdir(parents=True, exist_ok=True)
      (output / name).write_bytes(content)
    if planned.dataset_files:
      manifests.write(output, planned.dataset_files)
    step = checkpoint.step or 0
    steps.save(
      step,
      {"params": name_table.streamed(planned.config, planned.source)},
      b"",
      {
        "model": dataclasses.asdict(planned.config),
        "config": "",
        "version": specialize_jax.__version__,
        opening.VOCABULARY_DIR: manifests.entries_of(planned.tokenizer_files),
        opening.ORIGIN: {
          "kind": checkpoint.kind,
          "path": checkpoint.path,
          "vocab_size": planned.num_rows_read,
          "generation_config": dict(checkpoint.generation_config),
        },
      },
    )
  return directory / str(step)


def _remove_leftovers(output: epath.Path) -> None:
  """Removes what a conversion wrote that ended before its step was whole."""
  if (output / opening.VOCABULARY_DIR).exists():
    (output / opening.VOCABULARY_DIR).rmtree()
  for name in (opening.DATASET, manifests.NAME):
    (output / name).unlink(missing_ok=True)


def write_folder(
  planned: Plan,
  output: str | os.PathLike,
  *,
  max_shard_bytes: int = 2**30,
) -> epath.Path:
  """Writes a Hugging Face folder and returns its path.

  Args:
    planned: the conversion.
    output: the folder, which must not exist.
    max_shard_bytes: largest size of a safetensors file.

  Raises:
    UserError: `output` exists already.
  """
  huggingface.write(
    output,
    planned.config,
    planned.source,
    dtype=planned.config.param_dtype,
    other_files={**planned.tokenizer_files, **planned.dataset_files},
    generation_config=planned.checkpoint.generation_config,
    max_shard_bytes=max_shard_bytes,
  )
  return epath.Path(output)


def export_params(
  output: str | os.PathLike,
  config: t5_config.T5Config,
  params: optax.Params,
  *,
  vocabulary_path: str | os.PathLike | None = None,
) -> epath.Path:
  """Writes parameters in memory as a Hugging Face folder.

  Args:
    output: a folder that does not exist yet.
    config: the model.
    params: its parameters, with or without Flax's axis metadata.
    vocabulary_path: its SentencePiece model, which is written too.

  Returns:
    The folder.

  Raises:
    UserError: `output` exists already, the parameters are of another model,
      or the vocabulary has more tokens than the model.
  """
  tokenizer = (
    tokenizers.from_sentencepiece(vocabulary_path) if vocabulary_path else None
  )
  if tokenizer is not None:
    tokenizers.check(tokenizer, config.vocab_size)
  leaves = flax.traverse_util.flatten_dict(nn.meta.unbox(params), sep="/")
  huggingface.write(
    output,
    config,
    sources.Leaves("params", jax.tree.map(np.asarray, leaves)),
    dtype=config.param_dtype,
    other_files=tokenizer.files if tokenizer else None,
  )
  return epath.Path(output)


def write_t5x(
  planned: Plan,
  output: str | os.PathLike,
  *,
  layers: t5x_export.Layers = "listed",
) -> epath.Path:
  """Writes `checkpoint_<step>` as T5X does and returns its path.

  Adafactor's moments are written too, if the input has them.

  Args:
    planned: the conversion.
    output: T5X's model_dir.
    layers: "listed" or "scanned", see `t5x_export`.

  Raises:
    UserError: `output` is not empty.
  """
  output = epath.Path(output)
  if output.exists() and any(output.iterdir()):
    raise errors.UserError(
      f"{output} holds something already: give a folder that does not exist."
    )
  with contextlib.ExitStack() as stack:
    place = output
    if not paths.is_in_bucket(output):
      # A kill leaves no folder of that name, so that it can be run again.
      place = epath.Path(stack.enter_context(writing.new_directory(output)))
    written = t5x_export.write(
      place,
      planned.config,
      planned.source,
      step=planned.checkpoint.step or 0,
      layers=layers,
      moments=_moments(planned),
    )
    manifests.write(written)
  return output / written.name


def _moments(planned: Plan) -> adafactor_moments.Moments | None:
  """Returns Adafactor's moments; None if there are none for these rows."""
  try:
    moments = planned.checkpoint.moments()
  except adafactor_moments.NoMomentsError:
    return None
  if planned.config.vocab_size == planned.num_rows_read:
    return moments
  print(
    f"the optimizer's moments are left out: they are of"
    f" {planned.num_rows_read:,} rows of the vocabulary, and --vocab_size is"
    f" {planned.config.vocab_size:,}",
    file=sys.stderr,
  )
  return None


class _Watched:
  """A source that reports every tensor that is read."""

  def __init__(
    self, source: sources.Source, on_tensor: Callable[[int], None]
  ) -> None:
    self.where, self.shapes = source.where, source.shapes
    self.dtypes = source.dtypes
    self._source, self._on_tensor = source, on_tensor

  def read(self, name: str) -> np.ndarray:
    value = self._source.read(name)
    self._on_tensor(value.nbytes)
    return value


def _default_rows(checkpoint: opening.Checkpoint, read: int, to: str) -> int:
  if to != "huggingface":
    return _T5_ROWS if read == _T5_TOKENS else checkpoint.config.vocab_size
  origin = checkpoint.metadata.get(opening.ORIGIN, {})
  rows = checkpoint.config.vocab_size
  was_padded = origin.get("vocab_size") == _T5_TOKENS and rows == _T5_ROWS
  return _T5_TOKENS if was_padded else rows


def _common_dtype(source: sources.Source) -> str:
  dtypes = {dtype.name for dtype in source.dtypes}
  # A device has no float64.
  return "float32" if len(dtypes) != 1 or "float64" in dtypes else dtypes.pop()


def _foreign(output: epath.Path) -> list[str]:
  """Returns the names in a folder that no interrupted conversion left."""
  if not output.exists():
    return []
  known = {
    "checkpoints",
    opening.VOCABULARY_DIR,
    opening.DATASET,
    manifests.NAME,
  }
  return [child.name for child in output.iterdir() if child.name not in known]
