"""Settings that may change when a run is resumed, and the record of changes.

A checkpoint has the settings of the run that saved it. A run is not resumed
with settings that would change the meaning of the state: the error has both
values. All other changes are appended to MODEL_DIR/changes.jsonl, which the
report shows. The table of settings is in docs/decisions/resume.md.
"""

import dataclasses
import datetime
import hashlib
import json
import os
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import manager as managers
from specialize_jax.evaluation import history
from specialize_jax.files import writing
from specialize_jax.losses import distillation
from specialize_jax.t5 import config as t5_config
from specialize_jax.training import optimizer

# Settings that the state depends on: its arrays, its moments, and the position
# in the data. The values say what to do instead.
_NEW_RUN = "start in another MODEL_DIR"
_FROM_HERE = (
  "start in another MODEL_DIR, with INITIAL_CHECKPOINT_PATH at this one"
)
_REFUSED = {
  "model": _NEW_RUN,
  "mixture_or_task_name": _FROM_HERE,
  "task_feature_lengths": _FROM_HERE,
  "batch_size": _FROM_HERE,
  "pack": _FROM_HERE,
  "seed": _NEW_RUN,
  "data": _FROM_HERE,
  "optimizer.name": _FROM_HERE,
  "optimizer.first_moment_dtype": _FROM_HERE,
}
# Settings of the model that do not change the meaning of a parameter.
_ALLOWED = frozenset(
  f"model.{name}"
  for name in (
    "attention",
    "attention_block_sizes",
    "attention_kernel_block",
    "dropout_rate",
    "dtype",
    "gradient_dtype",
    "remat_policy",
  )
)
_WRITTEN = {  # the names that users write, in gin files
  "model_dir": "MODEL_DIR",
  "mixture_or_task_name": "MIXTURE_OR_TASK_NAME",
  "task_feature_lengths": "TASK_FEATURE_LENGTHS",
  "batch_size": "BATCH_SIZE",
  "seed": "SEED",
  "loop.num_steps": "TRAIN_STEPS",
  "loop.checkpoint_every": "CHECKPOINT_EVERY",
  "loop.eval_every": "EVAL_EVERY",
  "optimizer.learning_rate": "LEARNING_RATE",
  "optimizer.warmup_steps": "WARMUP_STEPS",
  "initial_checkpoint_path": "INITIAL_CHECKPOINT_PATH",
  "hosts": "the number of hosts",
  "devices": "the number of devices",
  "dataset_file": "the dataset file",
}
_SHOWN_CHARACTERS = 200
_CONFIGURATIONS = {
  "loss": distillation.LossConfig,
  "model": t5_config.T5Config,
  "optimizer": optimizer.OptimizerConfig,
}
_EVALUATED = "evaluated."
# Settings that releases after the first have added to checkpoints.
_SAVED_SINCE = (
  "hosts",
  "devices",
  "dataset_file",
  "data.files of ",
  "data.preprocessors of ",
  "data.prompts of ",
  "data.rate of ",
  _EVALUATED,
)


def settings(
  experiment: object,
  data: Mapping[str, str],
  dataset_file: bytes | None = None,
  evaluated: Mapping[str, str] | None = None,
) -> dict[str, object]:
  """Returns a run's settings by dotted names, JSON-serializable.

  Args:
    experiment: the frozen dataclass of a run.
    data: hashes of the data, from `data.identity.of_mixture`.
    dataset_file: the content of the dataset file; None for none.
    evaluated: likewise, of the splits that are evaluated.

  Example:
    {"batch_size": 128, "optimizer.learning_rate": 0.001, ...}
  """
  found = _flat("", dataclasses.asdict(experiment))
  found.pop("model_dir")  # a run may be moved
  found["hosts"] = jax.process_count()
  found["devices"] = jax.device_count()
  found["dataset_file"] = (
    dataset_file and hashlib.sha256(dataset_file).hexdigest()[:16]
  )
  for prefix, hashes in (("data.", data), (_EVALUATED, evaluated or {})):
    found |= {f"{prefix}{name}": value for name, value in hashes.items()}
  return found


def evaluated_data(settings: Mapping[str, object]) -> dict[str, object]:
  """Returns the hashes of the evaluated splits in the settings of a run.

  Args:
    settings: from `settings`; a release that saved no such hashes had none.
  """
  return {
    name.removeprefix(_EVALUATED): value
    for name, value in settings.items()
    if name.startswith(_EVALUATED)
  }


def check(
  manager: managers.CheckpointManager,
  now: Mapping[str, object],
) -> None:
  """Checks that settings which may not change are those of the checkpoint.

  Args:
    manager: the run's checkpoints.
    now: the settings of this start, from `settings`.

  Raises:
    UserError: such a setting differs; the message has both values.
  """
  step, then = _saved(manager)
  changed = differences(then, now)
  refused = {name: _refusal(name) for name in changed if _refusal(name)}
  if refused:
    # A change of the mixture also changes the data, and one of the model
    # perhaps the lengths: the first in `_REFUSED` is reported.
    name = min(refused, key=lambda name: [*_REFUSED].index(refused[name]))
    before, here = changed[name]
    raise errors.UserError(
      f"{written(name)}={here} cannot continue this run, whose checkpoint"
      f" (step {step}) was saved with {before}: give the same value, or"
      f" {_REFUSED[refused[name]]}"
    )


def record(
  model_dir: str | os.PathLike[str],
  step: int,
  metadata: Mapping[str, object],
  now: Mapping[str, object],
) -> None:
  """Appends changes of settings to MODEL_DIR/changes.jsonl.

  Those of earlier starts from the same or a later step are removed, since
  nothing that they led to is left.

  Args:
    model_dir: the run's directory.
    step: the step that the run resumes from.
    metadata: the metadata of that step's checkpoint.
    now: the settings of this start, from `settings`.
  """
  changes = {
    written(name): list(pair)
    for name, pair in differences(metadata.get("settings"), now).items()
  }
  if jax.process_index() != 0:
    return
  for name, (then, here) in changes.items():
    logging.warning(
      "From step %d on, %s is %s; it was %s.", step, name, here, then
    )
  path = epath.Path(model_dir) / history.CHANGES
  before = history.read_changes(path)
  # A run that was killed before its next save resumes from the same step, with
  # other changes or none.
  rows = [row for row in before if row["step"] < step]
  if changes:
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    rows.append({"step": step, "date": date, "changes": changes})
  if rows != before:
    writing.write_rows(path, rows, sealed=True)


def differences(
  then: Mapping[str, object] | None, now: Mapping[str, object]
) -> dict[str, tuple[str, str]]:
  """Returns the old and new value of each setting that differs, as text.

  Args:
    then: the settings saved with a checkpoint; None if it has none, which is
      taken as no difference.
    now: the settings of this start.
  """
  if then is None:
    return {}
  now = json.loads(json.dumps(now))
  then = {**_of_earlier_releases(then, now), **then}
  return {
    name: (_shown(then, name), _shown(now, name))
    for name in sorted({*then, *now})
    if then.get(name) != now.get(name)
    # Added and removed tasks are reported by the list of tasks.
    and not (name.startswith(_EVALUATED) and not {name} <= {*then} & {*now})
  }


def _of_earlier_releases(
  then: Mapping[str, object], now: Mapping[str, object]
) -> dict[str, object]:
  """Returns values for settings that did not exist when a checkpoint was saved.

  A new field of a configuration has the value of its default, which by
  convention keeps earlier behavior; other new settings are unknown.
  """
  found = {}
  for prefix, kind in _CONFIGURATIONS.items():
    for field in dataclasses.fields(kind):
      name = f"{prefix}.{field.name}"
      if name in now and field.default is not dataclasses.MISSING:
        found[name] = json.loads(json.dumps(field.default))
  for added in _SAVED_SINCE:
    if not any(name.startswith(added) for name in then):
      found.update({n: v for n, v in now.items() if n.startswith(added)})
  return found


def written(name: str) -> str:
  """Returns the name that users write for a setting."""
  first, dot, rest = name.partition(".")
  return _WRITTEN.get(name) or f"{_WRITTEN.get(first, first)}{dot}{rest}"


def _saved(
  manager: managers.CheckpointManager,
) -> tuple[int | None, Mapping | None]:
  """Returns the newest step whose metadata can be read, and its settings.

  The metadata of a later one are damaged, and the run passes it over with a
  warning; its settings were the same, or were refused.
  """
  for step in reversed(manager.all_steps()):
    try:
      return step, manager.metadata(step).get("settings")
    except errors.UserError:
      continue
  return None, None


def _refusal(name: str) -> str | None:
  """Returns the entry of `_REFUSED` that a setting belongs to; None if none."""
  if name in _ALLOWED:
    return None
  parts = name.split(".")
  prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
  return next((prefix for prefix in prefixes if prefix in _REFUSED), None)


def _flat(prefix: str, value: object) -> dict[str, object]:
  if isinstance(value, dict) and value:
    found = {}
    for key, item in value.items():
      found.update(_flat(f"{prefix}.{key}" if prefix else str(key), item))
    return found
  if isinstance(value, list | tuple):
    if any(isinstance(item, dict) for item in value):
      return _flat(prefix, dict(enumerate(value)))
    return {prefix: list(value)}
  if value is None or isinstance(value, bool | int | float | str):
    return {prefix: value}
  return {prefix: repr(value)}


def _shown(settings_: Mapping[str, object], name: str) -> str:
  if name not in settings_:
    return "not set"
  text = json.dumps(settings_[name], ensure_ascii=False)
  return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:197]}..."
