"""A run's checkpoints: train state, data iterator and metadata, as one step.

MODEL_DIR/checkpoints/<step>/ has three items, written and restored together:
`state` (any pytree of arrays), `iterator` (where the data stands) and
`metadata` (model config, package version, gin text: what a later reader needs
to know). Saves are asynchronous. Orbax writes a step under a temporary name
and renames it when it is whole, so that what a kill leaves half-written is
never taken for a checkpoint.
"""

import base64
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import sources, streaming

_MAX_NAMES = 5  # of each kind that an error lists


class CheckpointManager:
  """Saves and restores the steps of one directory.

  Use it as a context manager, or call `close`: only then is the last
  asynchronous save sure to be whole.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int | None = 3,
    keep_period: int | None = None,
  ) -> None:
    """Names a directory; only the first save creates it.

    Args:
      directory: where the steps lie; a local path or a `gs://` one.
      keep: how many of the newest steps stay; all of them if None.
      keep_period: steps that are a multiple of it stay forever.
    """
    self._directory = epath.Path(directory)
    if "://" not in os.fspath(directory):
      self._directory = self._directory.resolve()
    self._keep = keep
    self._keep_period = keep_period
    self._opened: ocp.CheckpointManager | None = None
    self._writes = False

  def _manager(self, *, to_write: bool = False) -> ocp.CheckpointManager:
    """Opens Orbax's own manager when it is first needed.

    Only a writer may clear away what a kill has left half-written: to a
    reader it may be another process's save under way.
    """
    if self._opened is None or (to_write and not self._writes):
      self.close()
      self._writes = to_write
      self._opened = ocp.CheckpointManager(
        self._directory,
        item_handlers={
          "state": ocp.PyTreeCheckpointHandler(
            type_handler_registry=streaming.registry()
          ),
          "iterator": ocp.JsonCheckpointHandler(),
          "metadata": ocp.JsonCheckpointHandler(),
        },
        options=ocp.CheckpointManagerOptions(
          max_to_keep=self._keep,
          keep_period=self._keep_period,
          cleanup_tmp_directories=to_write,
        ),
      )
    return self._opened

  def __enter__(self) -> "CheckpointManager":
    """Gives itself."""
    return self

  def __exit__(self, *exception: object) -> None:
    """Waits for the saves under way."""
    self.close()

  def save(
    self,
    step: int,
    state: Any,
    iterator_state: bytes,
    metadata: Mapping[str, Any],
    *,
    force: bool = False,
  ) -> None:
    """Starts to save a step; the arrays may be donated as soon as it returns.

    Args:
      step: number of completed steps.
      state: pytree of arrays, sharded or not, or of
        `streaming.StreamedArray`s, which are read as they are written.
      iterator_state: the data iterator's own account of where it stands.
      metadata: JSON-able.
      force: saves even where the step exists, which otherwise stays.

    Raises:
      OSError or another error of the *last* asynchronous save.
    """
    manager = self._manager(to_write=True)
    if step in self.all_steps():
      if not force:
        return
      manager.delete(step)
    manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(state),
        iterator=ocp.args.JsonSave(
          {"base64": base64.b64encode(iterator_state).decode("ascii")}
        ),
        metadata=ocp.args.JsonSave(dict(metadata)),
      ),
      force=True,
    )

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> tuple[Any, bytes, dict[str, Any]]:
    """Gives the state, the iterator's state and the metadata of a step.

    Args:
      abstract_state: pytree of `jax.ShapeDtypeStruct` with shardings, on which
        the arrays arrive, whatever mesh they were saved from.
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or it holds another model's arrays.
    """
    step = self._existing(step)
    self._check_names(step, abstract_state)
    items = self._manager().restore(
      step,
      args=ocp.args.Composite(
        state=_restore_arguments(abstract_state),
        iterator=ocp.args.JsonRestore(),
        metadata=ocp.args.JsonRestore(),
      ),
    )
    logging.info("Restored step %d from %s", step, self._directory)
    return (
      items.state,
      base64.b64decode(items.iterator["base64"]),
      items.metadata,
    )

  def restore_params(
    self, abstract_params: Any, step: int | None = None
  ) -> Any:
    """Gives the state's `params` alone, without its optimizer.

    Args:
      abstract_params: as in `restore`, of the parameters.
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or it holds another model's arrays.
    """
    step = self._existing(step)
    wanted = {"params": abstract_params}
    self._check_names(step, wanted, only="params")
    items = self._manager().restore(
      step,
      args=ocp.args.Composite(
        state=_restore_arguments(wanted, partial_restore=True)
      ),
    )
    return items.state["params"]

  def stored_params(self, step: int | None = None) -> sources.Source:
    """Gives the state's `params` where they lie, to be read one by one.

    Args:
      step: the newest one by default.

    Raises:
      UserError: there is no such step, or it holds no params.
    """
    step = self._existing(step)
    state = self._directory / str(step) / "state"
    names = _shapes(self._manager().item_metadata(step)["state"].tree)
    leaves = {
      name.removeprefix("params/"): sources.open_zarr(
        state, key=name.replace("/", ".")
      )
      for name in names
      if name.startswith("params/")
    }
    if not leaves:
      raise errors.UserError(
        f"{self._directory} holds a checkpoint (step {step}) without params: "
        "give that of a training run."
      )
    return sources.Leaves(os.fspath(self._directory / str(step)), leaves)

  def metadata(self, step: int | None = None) -> dict[str, Any]:
    """Gives what `save` was given as metadata."""
    items = self._manager().restore(
      self._existing(step),
      args=ocp.args.Composite(metadata=ocp.args.JsonRestore()),
    )
    return items.metadata

  def latest_step(self) -> int | None:
    """The newest whole step, None where there is none."""
    return max(self.all_steps(), default=None)

  def all_steps(self) -> list[int]:
    """All whole steps, oldest first."""
    if not self._directory.exists():
      return []
    return sorted(self._manager().all_steps())

  def wait(self) -> None:
    """Waits until the save under way is whole; raises what it raised."""
    if self._opened is not None:
      self._opened.wait_until_finished()

  def close(self) -> None:
    """Waits, and frees the threads."""
    self.wait()
    if self._opened is not None:
      self._opened.close()
      self._opened = None

  def _existing(self, step: int | None) -> int:
    steps = self.all_steps()
    if not steps or (step is not None and step not in steps):
      wanted = (
        "a checkpoint" if step is None else f"a checkpoint of step {step}"
      )
      there = ", ".join(map(str, steps)) or "none"
      raise errors.UserError(
        f"{self._directory} does not hold {wanted} (steps there: {there}): "
        "give the checkpoints directory of a run that has saved one."
      )
    return max(steps) if step is None else step

  def _check_names(
    self, step: int, abstract: Any, only: str | None = None
  ) -> None:
    """Raises UserError where the step's arrays are not the wanted ones."""
    saved = _shapes(self._manager().item_metadata(step)["state"].tree)
    if only is not None:
      saved = {
        name: shape
        for name, shape in saved.items()
        if name.split("/")[0] == only
      }
    wanted = _shapes(abstract)
    differences = [
      _listed("missing", sorted(wanted.keys() - saved.keys())),
      _listed("unexpected", sorted(saved.keys() - wanted.keys())),
      _listed(
        "of another shape",
        [
          f"{name} {saved[name]} instead of {wanted[name]}"
          for name in sorted(wanted.keys() & saved.keys())
          if saved[name] != wanted[name]
        ],
      ),
    ]
    if any(differences):
      raise errors.UserError(
        f"{self._directory} holds a checkpoint (step {step}) of another model: "
        f"{'; '.join(filter(None, differences))}: give the model and the "
        "optimizer it was saved with, or another directory."
      )


def _restore_arguments(
  abstract: Any, *, partial_restore: bool = False
) -> ocp.args.PyTreeRestore:
  return ocp.args.PyTreeRestore(
    item=abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=partial_restore,
  )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """The shape of every array by its name, such as `params/encoder/scale`.

  Orbax saves tuples and dataclasses as dictionaries, so names are compared
  and not structures. A leaf without a shape counts as a scalar.
  """
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(
      getattr(leaf, "shape", ())
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _listed(kind: str, names: list[str]) -> str:
  if not names:
    return ""
  more = len(names) - _MAX_NAMES
  shown = ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" * (more > 0))
  return f"{kind} {shown}"
