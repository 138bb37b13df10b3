"""Keeps a selected step of a run in MODEL_DIR/best.

`MODEL_DIR/best/checkpoints/STEP` is the selected step as the run saved it, with
the run's vocabulary and dataset file, if any. It has the layout of a run, so
that it can be used wherever a run's directory can, and it stays when the run
deletes its older steps. Its files are hard links if they are on the same file
system, which need no space, and copies otherwise.
"""

import os
from collections.abc import Iterator

from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import manager, manifests, opening
from specialize_jax.files import paths

NAME = "best"
_STEPS = "checkpoints"


def place(
  model_dir: str | os.PathLike,
  step: int,
  *,
  name: str = NAME,
  source_dir: str | os.PathLike | None = None,
) -> epath.Path:
  """Replaces the step in `MODEL_DIR/NAME`.

  Args:
    model_dir: the run's directory.
    step: the selected step.
    name: the directory's name.
    source_dir: a directory with the layout of a run that has the step; the run
      itself by default.

  Returns:
    The directory, which `opening.open_checkpoint` opens.

  Raises:
    UserError: the step's checkpoint no longer exists.
  """
  model_dir = epath.Path(model_dir)
  source_dir = epath.Path(source_dir or model_dir)
  place_dir = model_dir / name
  # Written under a temporary name and renamed: a kill leaves the old or the new
  # one; between two renames it leaves none, which the next call repairs.
  beside = place_dir.parent / f".{place_dir.name}.new"
  old = place_dir.parent / f".{place_dir.name}.old"
  if not paths.is_in_bucket(model_dir):
    if old.exists() and not place_dir.exists():
      old.rename(place_dir)
    for left in (beside, old):
      if left.exists():
        left.rmtree()
  source = source_dir / _STEPS / str(step)
  if not source.exists():
    if step_in(model_dir, name) == step:
      return place_dir
    raise errors.UserError(
      f"there is no checkpoint of step {step} in {source_dir / _STEPS} any "
      "more: keep more of them (KEEP=None keeps all), or follow the run while "
      "it trains (specialize select --follow)."
    )
  if step_in(model_dir, name) == step and _same(place_dir, source_dir, step):
    return place_dir
  chosen = opening.open_checkpoint(source)
  if chosen.has_digests:
    chosen.verify(only_params=True)
  if paths.is_in_bucket(model_dir):
    _copy(source_dir, model_dir, step, place_dir)
    return place_dir
  _link(source, beside / _STEPS / str(step))
  _link_kept(source_dir, model_dir, beside)
  if place_dir.exists():
    place_dir.rename(old)
  beside.rename(place_dir)
  if old.exists():
    old.rmtree()
  return place_dir


def step_in(model_dir: str | os.PathLike, name: str = NAME) -> int | None:
  """Returns the step in `MODEL_DIR/NAME`; None if there is none."""
  steps = epath.Path(model_dir) / name / _STEPS
  return max(manager.listed_steps(steps), default=None)


def _same(place_dir: epath.Path, source_dir: epath.Path, step: int) -> bool:
  """Returns whether it is the same checkpoint, not only the same number."""
  try:
    placed = opening.open_checkpoint(place_dir).fingerprint()
  except (errors.UserError, FileNotFoundError):
    return False  # a copy that was cut short, or was damaged since
  source = opening.open_checkpoint(source_dir / _STEPS / str(step))
  return placed == source.fingerprint()


def _copy(
  source_dir: epath.Path,
  model_dir: epath.Path,
  step: int,
  place_dir: epath.Path,
) -> None:
  """Copies a step within a bucket, where directories cannot be renamed.

  The file that identifies a checkpoint is copied last: after a kill the next
  call finds another one and copies again.
  """
  if place_dir.exists():
    place_dir.rmtree()
  _link_kept(source_dir, model_dir, place_dir)
  _link(source_dir / _STEPS / str(step), place_dir / _STEPS / str(step))


def _link_kept(
  source_dir: epath.Path, model_dir: epath.Path, target: epath.Path
) -> None:
  """Links or copies what is read with a checkpoint: vocabulary and prompts."""
  vocabulary = source_dir / opening.VOCABULARY_DIR
  if vocabulary.is_dir():
    _link(vocabulary, target / opening.VOCABULARY_DIR)
  # Beside it is the manifest of the files that a run keeps.
  if (model_dir / opening.DATASET).is_file():
    for name in (opening.DATASET, manifests.NAME):
      if (model_dir / name).is_file():
        _link_file(model_dir / name, target / name)


def _link(source: epath.Path, target: epath.Path) -> None:
  """Links or copies a directory tree."""
  for file in _files(source):
    _link_file(file, target / file.relative_to(source))


def _link_file(file: epath.Path, linked: epath.Path) -> None:
  linked.parent.mkdir(parents=True, exist_ok=True)
  try:
    os.link(file, linked)
  except OSError:  # another file system, or one without links
    file.copy(linked)


def _files(directory: epath.Path) -> Iterator[epath.Path]:
  last = "_CHECKPOINT_METADATA"
  for child in sorted(directory.iterdir(), key=lambda p: (p.name == last, p)):
    if child.is_dir():
      yield from _files(child)
    else:
      yield child
