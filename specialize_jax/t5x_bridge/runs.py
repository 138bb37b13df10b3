"""Functions that the gin files of `gin_configs/t5x/` bind."""

import copy
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from specialize_jax import errors
from specialize_jax.checkpoints import opening
from specialize_jax.data import sources
from specialize_jax.t5x_bridge import model as bridge_model


def vocabulary(
  mixture_or_task_name: str, module: str | None = None
) -> seqio.Vocabulary:
  """Returns the vocabulary of a mixture, for T5X's `VOCABULARY`.

  Args:
    mixture_or_task_name: a name registered with seqio.
    module: `MIXTURE_OR_TASK_MODULE`, a module that registers it; None if a gin
      file imports that.

  Raises:
    UserError: there is no such mixture, task or module.
  """
  _import(module)
  return _provider(mixture_or_task_name).output_features["inputs"].vocabulary


def get_dataset(
  cfg: Any,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., seqio.FeatureConverter],
  *,
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
  """Returns the batches of a training run, as its `get_dataset_fn`.

  Without an end, every epoch has an order of its own, as in `specialize
  train`; with a number of epochs, or by T5X's own `get_dataset`, seqio repeats
  the order in which our sources yield the first one.

  Args:
    cfg: a `t5x.utils.DatasetConfig`.
    shard_id: the shard of the examples to read.
    num_shards: the number of shards.
    feature_converter_cls: builds the converter.
    num_epochs: the number of epochs; None for no end.
    continue_from_last_checkpoint: must be False.

  Raises:
    UserError: BATCH_SIZE is not a multiple of the number of shards.
  """
  del continue_from_last_checkpoint
  if cfg.batch_size % num_shards:
    raise errors.UserError(
      f"BATCH_SIZE={cfg.batch_size} cannot be divided among {num_shards} "
      f"shards of the data: give a multiple of {num_shards}."
    )
  seed = cfg.seed
  if seed is None:  # a new one at each start, the same on all hosts
    now = np.int32(time.time())
    seed = int(multihost_utils.broadcast_one_to_all(now))
  _import(cfg.module)
  provider = _provider(cfg.mixture_or_task_name)
  # Our sources order the epochs themselves; seqio repeats those of others.
  with sources.passes(None if num_epochs is None else 1):
    examples = provider.get_dataset(
      sequence_length=cfg.task_feature_lengths,
      split=cfg.split,
      use_cached=cfg.use_cached,
      shuffle=cfg.shuffle,
      seed=seed,
      shard_info=seqio.ShardInfo(index=shard_id, num_shards=num_shards),
      num_epochs=num_epochs,
      trim_output_features=cfg.trim_output_features,
      try_in_mem_cache=False,
    )
  converter = feature_converter_cls(
    pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
  )
  rows = converter(examples, cfg.task_feature_lengths)
  batches = rows.batch(cfg.batch_size // num_shards, drop_remainder=True)
  return batches.prefetch(tf.data.AUTOTUNE)


def verify_dataset(dataset_config: Any, model: Any) -> None:
  """Checks that a dataset can be read, and has the vocabulary of the model.

  Args:
    dataset_config: a `t5x.utils.DatasetConfig`.
    model: a `t5x.models.EncoderDecoderModel`.

  Raises:
    UserError: the vocabularies differ, the model's embedding has too few rows,
      or a task that shall be read from the offline cache is not in it.
  """
  _verify_vocabulary(dataset_config, model)
  if dataset_config.use_cached:
    _verify_cache(dataset_config.mixture_or_task_name)


def _verify_cache(mixture_or_task_name: str) -> None:
  tasks = seqio.get_subtasks(_provider(mixture_or_task_name))
  missing = [t.name for t in tasks if t.supports_caching and not t.cache_dir]
  if missing:
    directories = ", ".join(map(str, seqio.get_global_cache_dirs()))
    raise errors.UserError(
      f"USE_CACHED_TASKS=True: {', '.join(missing)} not found in the cache "
      f"directories {directories or '(none)'}: run "
      "`seqio_cache_tasks --module_import=specialize_jax.tasks.mixtures "
      f"--tasks={','.join(missing)} --output_cache_dir=DIR` and give "
      "--seqio_additional_cache_dirs=DIR, or leave USE_CACHED_TASKS out."
    )
  for task in tasks:
    if not task.supports_caching:
      logging.warning(
        "USE_CACHED_TASKS=True: %s is read without a cache, as tasks are whose "
        "examples change from epoch to epoch, such as those of in-context "
        "formats, which draw new demonstrations.",
        task.name,
      )


def _verify_vocabulary(dataset_config: Any, model: Any) -> None:
  name = dataset_config.mixture_or_task_name
  theirs = vocabulary(name)
  if theirs != model.input_vocabulary or theirs != model.output_vocabulary:
    raise errors.UserError(
      f"VOCABULARY is {_named(model.input_vocabulary)}, and the tokens of "
      f"MIXTURE_OR_TASK_NAME={name!r} are of {_named(theirs)}: leave "
      "VOCABULARY out, as t5x/train.gin takes the mixture's own."
    )
  rows = getattr(getattr(model.module, "config", None), "vocab_size", None)
  if rows is not None and rows < theirs.vocab_size:
    raise errors.UserError(
      f"network.T5Config.vocab_size is {rows}, and the vocabulary of "
      f"MIXTURE_OR_TASK_NAME={name!r} has {theirs.vocab_size} tokens: give a "
      "model with at least as many."
    )


def initial_checkpoint(restore: Any) -> Any:
  """Returns the configuration by which T5X restores the initial checkpoint.

  Args:
    restore: a `t5x.utils.RestoreCheckpointConfig`, whose path is
      `INITIAL_CHECKPOINT_PATH`: T5X's `checkpoint_<step>` directory, or the
      directory of these, for the newest; None for random parameters.

  Returns:
    The same with the absolute path of one checkpoint; None for random
    parameters.

  Raises:
    UserError: there is no checkpoint, one of another kind, or several.
  """
  path = restore.path
  if not path:
    return None
  if not isinstance(path, str | os.PathLike) or restore.mode == "all":
    raise errors.UserError(
      f"INITIAL_CHECKPOINT_PATH={path}, RestoreCheckpointConfig.mode="
      f"{restore.mode!r}: a run starts from one checkpoint; give one path and "
      "leave the mode out."
    )
  return _resolved(restore, "INITIAL_CHECKPOINT_PATH")


def checkpoint(restore: Any) -> Any:
  """Returns the configuration by which T5X restores what it evaluates.

  Args:
    restore: a `t5x.utils.RestoreCheckpointConfig`, whose path is
      `CHECKPOINT_PATH`. If its mode is "specific", the path may be the
      directory of a run, for its newest checkpoint.

  Returns:
    The same with absolute paths.

  Raises:
    UserError: there is no checkpoint, or one of another kind.
  """
  if restore.mode == "specific" and isinstance(restore.path, str):
    return _resolved(restore, "CHECKPOINT_PATH")
  resolved = copy.copy(restore)
  if isinstance(restore.path, str):
    resolved.path = _absolute(restore.path)
  else:
    resolved.path = [_absolute(path) for path in restore.path]
  return resolved


def _resolved(restore: Any, macro: str) -> Any:
  """Returns a configuration with the absolute path of one checkpoint."""
  path = os.fspath(restore.path)
  kind = opening.kind_of(path)
  if kind != "t5x":
    raise errors.UserError(
      f"{macro}={path} is not a checkpoint of T5X but of the kind {kind!r}: "
      f"convert it with `specialize convert --to=t5x --checkpoint={path} "
      "--output=DIR`, and give DIR/checkpoint_<step>."
    )
  resolved = copy.copy(restore)  # `replace` would apply assignment_map twice
  resolved.path = _absolute(opening.t5x_directory(epath.Path(path)))
  resolved.mode = "specific"
  return resolved


def _absolute(path: str | os.PathLike) -> str:
  """Returns an absolute path, since Orbax rejects relative ones."""
  path = os.fspath(path)
  return path if "://" in path else os.path.abspath(path)


def write_predictions(
  path: str,
  inferences: tuple[Sequence[Any], Mapping[str, Any]],
  task_ds: tf.data.Dataset,
  mode: str,
  vocabulary: seqio.Vocabulary | None = None,
) -> None:
  """Writes the predictions of `t5x.infer`, as its `write_fn`.

  A row is T5X's own with the fields that `specialize score` reads added:

    {"inputs": {"inputs_pretokenized": "Q: ...", "targets_pretokenized": "..."},
     "question_id": "gsm8k/test/0", "target": "18", "prediction": "She has ..."}

  Args:
    path: path of the JSONL file.
    inferences: the predicted token ids, and auxiliary outputs.
    task_ds: the examples, in the same order.
    mode: the mode of `t5x.infer`; rows of any mode but "predict" are written by
      T5X's own writer.
    vocabulary: the vocabulary of the predictions.
  """
  if mode != "predict":
    infer = bridge_model.t5x_module("infer")
    infer.write_inferences_to_file(path, inferences, task_ds, mode, vocabulary)
    return
  predictions, _ = inferences
  with epath.Path(path).open("w") as file:
    for ids, example in zip(
      predictions, task_ds.as_numpy_iterator(), strict=True
    ):
      texts = {
        name: value.decode()
        for name, value in example.items()
        if isinstance(value, bytes)
      }
      row = {
        "inputs": {
          name: text
          for name, text in texts.items()
          if name.endswith("_pretokenized")
        },
        "question_id": texts.get("question_id", ""),
        "target": texts.get("answer", texts.get("targets_pretokenized", "")),
      }
      outputs = [
        vocabulary.decode(list(map(int, one)))
        for one in np.atleast_2d(np.asarray(ids))
      ]
      row["prediction"] = outputs[-1]  # T5X sorts several by their score
      if np.ndim(ids) > 1:
        row["predictions"] = outputs
      file.write(json.dumps(row) + "\n")


def _named(vocabulary: seqio.Vocabulary) -> str:
  """Names a vocabulary without reading its file, as its own repr would."""
  return getattr(vocabulary, "relative_path", None) or str(vocabulary)


def _import(module: str | None) -> None:
  """Imports a module that registers tasks.

  Raises:
    UserError: there is no such module.
  """
  if module is None:
    return
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{module}.".startswith(f"{error.name}."):
      raise  # it exists, and imports another that does not
    raise errors.UserError(
      f"MIXTURE_OR_TASK_MODULE={module!r} cannot be imported ({error}): give a "
      "module that registers the mixture with seqio, on PYTHONPATH."
    ) from error


def _provider(name: Any) -> seqio.Task | seqio.Mixture:
  """Returns a registered mixture or task; one that is no name as it is."""
  if isinstance(name, seqio.Task | seqio.Mixture):
    return name
  try:
    return seqio.get_mixture_or_task(name)
  except ValueError as error:
    raise errors.UserError(
      f"MIXTURE_OR_TASK_NAME={name!r} is not registered with seqio: give the "
      "module that registers it as MIXTURE_OR_TASK_MODULE; "
      "specialize_jax.tasks.mixtures is imported already."
    ) from error
