"""Restores the arrays of a step, and compares them with the expected ones."""

from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from specialize_jax import errors
from specialize_jax.checkpoints import streaming

_MAX_NAMES = 5  # of each kind that an error lists


def restore(
  directory: epath.Path, abstract: Any, *, partial_restore: bool = False
) -> Any:
  """Restores the arrays of a step without waiting for other processes.

  Args:
    directory: the item's directory, such as checkpoints/30/state.
    abstract: pytree of `jax.ShapeDtypeStruct` with shardings.
    partial_restore: whether the checkpoint may have more arrays.

  Returns:
    A pytree of arrays with the structure of `abstract`.
  """
  handler = ocp.PyTreeCheckpointHandler(
    type_handler_registry=streaming.registry()
  )
  arguments = ocp.args.PyTreeRestore(
    item=abstract,
    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
    partial_restore=partial_restore,
  )
  return handler.restore(directory, args=arguments)


def saved_tree(directory: epath.Path) -> Any:
  """Returns Orbax's metadata of a step's arrays, as a tree.

  Raises:
    FileNotFoundError: the metadata is missing.
  """
  handler = ocp.PyTreeCheckpointHandler(
    type_handler_registry=streaming.registry()
  )
  return handler.metadata(directory).tree


def check_names(
  saved_tree: Any, abstract: Any, *, where: str, only: str | None = None
) -> None:
  """Compares names and shapes.

  Args:
    saved_tree: Orbax's metadata of the saved arrays.
    abstract: the expected ones.
    where: the beginning of the error message.
    only: the first part of the saved names that are compared; None for all.

  Raises:
    UserError: they differ.
  """
  saved = shapes(saved_tree)
  if only is not None:
    saved = {
      name: shape for name, shape in saved.items() if name.split("/")[0] == only
    }
  wanted = shapes(abstract)
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
      f"{where} of another model: {'; '.join(filter(None, differences))}: give "
      "the model and the optimizer it was saved with, or another directory."
    )


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every array by name, such as `params/encoder/scale`.

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
