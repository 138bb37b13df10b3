"""Functions that the gin files of `gin_configs/t5x/` bind."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import opening
from specialize_jax.t5x_bridge import model as bridge_model


def vocabulary(mixture_or_task_name: str) -> seqio.Vocabulary:
  """Returns the vocabulary of a mixture, for T5X's `VOCABULARY`.

  Args:
    mixture_or_task_name: a name registered with seqio, by a module that the
      gin file imports.

  Raises:
    UserError: there is no such mixture or task.
  """
  return _provider(mixture_or_task_name).output_features["inputs"].vocabulary


def verify_vocabulary(dataset_config: Any, model: Any) -> None:
  """Checks that a dataset and a model have the same vocabulary.

  Args:
    dataset_config: a `t5x.utils.DatasetConfig`.
    model: a `t5x.models.EncoderDecoderModel`.

  Raises:
    UserError: they differ, or the model's embedding has too few rows.
  """
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


def initial_checkpoint(path: str | None) -> Any:
  """Returns the configuration by which T5X restores a checkpoint.

  Args:
    path: `INITIAL_CHECKPOINT_PATH`: T5X's `checkpoint_<step>` directory, or
      the directory of these, for the newest; None for random parameters.

  Returns:
    A `t5x.utils.RestoreCheckpointConfig`, or None.

  Raises:
    UserError: there is no checkpoint, or one of another kind.
  """
  if path is None:
    return None
  kind = opening.kind_of(path)
  if kind != "t5x":
    raise errors.UserError(
      f"INITIAL_CHECKPOINT_PATH={os.fspath(path)} is not a checkpoint of T5X "
      f"but of the kind {kind!r}: convert it with `specialize convert --to=t5x "
      f"--checkpoint={os.fspath(path)} --output=DIR`, and give "
      "DIR/checkpoint_<step>."
    )
  utils = bridge_model.t5x_module("utils")
  absolute = os.fspath(opening.t5x_directory(epath.Path(path)))
  if "://" not in absolute:
    absolute = os.path.abspath(absolute)  # Orbax rejects relative paths
  return utils.RestoreCheckpointConfig(
    path=absolute, mode="specific", dtype="float32"
  )


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
        "prediction": vocabulary.decode([int(token) for token in ids]),
      }
      file.write(json.dumps(row) + "\n")


def _named(vocabulary: seqio.Vocabulary) -> str:
  """Names a vocabulary without reading its file, as its own repr would."""
  return getattr(vocabulary, "relative_path", None) or str(vocabulary)


def _provider(name: str) -> seqio.Task | seqio.Mixture:
  try:
    return seqio.get_mixture_or_task(name)
  except ValueError as error:
    raise errors.UserError(
      f"MIXTURE_OR_TASK_NAME={name!r} is not registered with seqio: import the "
      "module that registers it in a gin file; tasks.mixtures is already."
    ) from error
