"""A chosen step of a run, in a place of its own: MODEL_DIR/best.

`MODEL_DIR/best/checkpoints/STEP` is the chosen step as the run saved it, with
the run's vocabulary beside it where there is one. It is laid out as a run, so
whatever takes a run's directory takes it, and it stays when the run clears
its older steps away. On one file system its files are hard links, which take
no space; elsewhere they are copies.
"""

import os
from collections.abc import Iterator

from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import opening
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
  """Makes a step of a run what `MODEL_DIR/NAME` holds, instead of another.

  Args:
    model_dir: the run's.
    step: whose checkpoint.
    name: of the place.
    source_dir: laid out as a run, where the step lies; the run by default.

  Returns:
    The place, which `opening.open_checkpoint` takes.

  Raises:
    UserError: the step's checkpoint is not there any more.
  """
  model_dir = epath.Path(model_dir)
  source_dir = epath.Path(source_dir or model_dir)
  place_dir = model_dir / name
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
    chosen.verify()
  if paths.is_in_bucket(model_dir):
    _copy(source_dir, step, place_dir)
    return place_dir
  # Made beside, and put in place at once: a kill leaves the old or the new
  # one, or for a moment none, which the next call mends.
  beside = place_dir.parent / f".{place_dir.name}.new"
  old = place_dir.parent / f".{place_dir.name}.old"
  for left in (beside, old):
    if left.exists():
      left.rmtree()
  _link(source, beside / _STEPS / str(step))
  vocabulary = source_dir / opening.VOCABULARY_DIR
  if vocabulary.is_dir():
    _link(vocabulary, beside / opening.VOCABULARY_DIR)
  if place_dir.exists():
    place_dir.rename(old)
  beside.rename(place_dir)
  if old.exists():
    old.rmtree()
  return place_dir


def step_in(model_dir: str | os.PathLike, name: str = NAME) -> int | None:
  """Gives the step that `MODEL_DIR/NAME` holds; None where there is none."""
  steps = epath.Path(model_dir) / name / _STEPS
  if not steps.is_dir():
    return None
  found = [int(p.name) for p in steps.iterdir() if p.name.isdecimal()]
  return max(found, default=None)


def _same(place_dir: epath.Path, source_dir: epath.Path, step: int) -> bool:
  """Whether the place holds this very checkpoint, not one of that number."""
  return (
    opening.open_checkpoint(place_dir).fingerprint()
    == opening.open_checkpoint(source_dir / _STEPS / str(step)).fingerprint()
  )


def _copy(source_dir: epath.Path, step: int, place_dir: epath.Path) -> None:
  """Copies a step within a bucket, which renames no directory at once.

  The file that identifies a checkpoint comes last: after a kill
  the next call finds another one there, and copies again.
  """
  if place_dir.exists():
    place_dir.rmtree()
  vocabulary = source_dir / opening.VOCABULARY_DIR
  if vocabulary.is_dir():
    _link(vocabulary, place_dir / opening.VOCABULARY_DIR)
  _link(source_dir / _STEPS / str(step), place_dir / _STEPS / str(step))


def _link(source: epath.Path, target: epath.Path) -> None:
  """Makes a tree of the same files."""
  for file in _files(source):
    linked = target / file.relative_to(source)
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
