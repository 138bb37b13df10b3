"""Adafactor's second moments, between optax's state and T5X's.

Both keep, of a kernel `[A, B]`, an average of the squared gradient g², or two
factors of it: its means over B and over A. They differ in when they factor,
and in which of the two is called `v_row`: optax (and T5X where a parameter has
two axes) factors if both axes have 128 entries, and `v_row` is the longer
axis's mean; by T5X's rules for logical axes, which hold for scanned layers and
for kernels with heads apart, every kernel is factored and `v_row` belongs to
`embed`. Here a moment is either, and becomes what the other side wants: means
are exact, and a moment that was factored is the product that Adafactor takes
it for.
"""

import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from specialize_jax import errors
from specialize_jax.checkpoints import sources

KINDS = ("v_row", "v_col", "v")

_MIN_FACTORED = 128
_LAYER = re.compile(r"^(encoder|decoder)/layers_(\d+)/(.+)$")
_ROW_AXES = {"embed"}
_COLUMN_AXES = {"vocab", "mlp", "heads", "kv", "joined_kv"}

# The axes that `v_col` and `v_row` are means over.
Rule = tuple[tuple[int, ...], tuple[int, ...]]


class NoMomentsError(errors.UserError):
  """A checkpoint has no state of Adafactor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondMoment:
  """The average of a parameter's squared gradient, whole or in two factors.

  Attributes:
    whole: `[A, B]`, or `[A]`; None where it is factored.
    over_b: `[A]`, the mean over B; None where it is whole.
    over_a: `[B]`, the mean over A; None where it is whole.
  """

  whole: np.ndarray | None = None
  over_b: np.ndarray | None = None
  over_a: np.ndarray | None = None

  def factors(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the means over B and over A."""
    if self.whole is None:
      return self.over_b, self.over_a
    return self.whole.mean(axis=1), self.whole.mean(axis=0)

  def product(self) -> np.ndarray:
    """Returns it whole, as Adafactor estimates it from the factors."""
    if self.whole is not None:
      return self.whole
    mean = max(float(self.over_b.mean()), np.finfo(np.float32).tiny)
    return np.outer(self.over_b, self.over_a / np.float32(mean))


class Moments(Protocol):
  """The second moments of a model, by our names with listed layers."""

  @property
  def count(self) -> int:
    """How many updates they are averages of."""

  def second_moment(self, name: str) -> SecondMoment:
    """Returns that of one tensor."""


def heuristic_rule(shape: Sequence[int]) -> Rule | None:
  """Returns what optax averages over: its two longest axes; None for none."""
  if len(shape) < 2:
    return None
  order = np.argsort(shape)
  if shape[order[-2]] < _MIN_FACTORED:
    return None
  return (int(order[-2]),), (int(order[-1]),)


def t5x_rule(shape: Sequence[int], axes: Sequence[str]) -> Rule | None:
  """Returns what T5X averages over, by its standard logical factor rules."""
  if len(shape) <= 2 and "layers" not in axes:
    return heuristic_rule(shape)
  rows = tuple(i for i, axis in enumerate(axes) if axis in _ROW_AXES)
  columns = tuple(i for i, axis in enumerate(axes) if axis in _COLUMN_AXES)
  return (rows, columns) if rows and columns else None


def stored(
  shape: Sequence[int],
  axes: Sequence[str],
  rule: Rule | None,
  parts: Sequence[SecondMoment] | None,
) -> dict[str, np.ndarray]:
  """Returns the arrays that an optimizer keeps of one parameter.

  Args:
    shape: of the parameter.
    axes: logical names of its axes; "layers" where layers are stacked.
    rule: which of them are averaged over.
    parts: the moments of the layers, or of the one parameter; None for zeros.

  Returns:
    `v_row`, `v_col` and `v`, one zero where it is not used.
  """
  unused = np.zeros((1,), np.float32)
  layers = list(axes).index("layers") if "layers" in axes else None
  if rule is None:
    if parts is None:
      whole = np.zeros(shape, np.float32)
    else:
      part_shape = _without(shape, () if layers is None else (layers,))
      whole = _stacked(
        [one.product().reshape(part_shape) for one in parts], layers
      )
    return {"v_row": unused, "v_col": unused, "v": whole}
  arrays = {"v": unused}
  for kind, averaged in zip(("v_col", "v_row"), rule, strict=True):
    kept_shape = _without(shape, averaged)
    if parts is None:
      arrays[kind] = np.zeros(kept_shape, np.float32)
      continue
    side = 0 if _is_first(shape, layers, averaged) else 1
    at = None if layers is None else layers - sum(i < layers for i in averaged)
    part_shape = _without(kept_shape, () if at is None else (at,))
    arrays[kind] = _stacked(
      [one.factors()[side].reshape(part_shape) for one in parts], at
    )
  return arrays


def loaded(
  arrays: Mapping[str, np.ndarray],
  shape: Sequence[int],
  axes: Sequence[str],
  rule: Rule | None,
  *,
  layer: int | None,
  joined_shape: Sequence[int],
) -> SecondMoment:
  """Returns the moment of one layer, from what `stored` gives.

  Args:
    arrays: `v_row`, `v_col` and `v`.
    shape: of the stored parameter.
    axes: logical names of its axes.
    rule: which of them are averaged over.
    layer: which layer, where layers are stacked; else None.
    joined_shape: of the layer's parameter, `[A, B]` or `[A]`.

  Raises:
    ValueError: the arrays are not what the rule gives.
  """
  layers = list(axes).index("layers") if "layers" in axes else None

  def taken(array: np.ndarray, averaged: Sequence[int]) -> np.ndarray:
    expected = _without(shape, averaged)
    if array.shape != expected:
      raise ValueError(f"a shape {array.shape} where {expected} was expected")
    if layer is None:
      return np.asarray(array)
    at = layers - sum(i < layers for i in averaged)
    return np.take(array, layer, axis=at)

  if rule is None:
    return SecondMoment(whole=taken(arrays["v"], ()).reshape(joined_shape))
  sides: dict[str, np.ndarray] = {}
  for kind, averaged in zip(("v_col", "v_row"), rule, strict=True):
    first = _is_first(shape, layers, averaged)
    value = taken(arrays[kind], averaged)
    sides["over_b" if first else "over_a"] = value.reshape(-1)
  return SecondMoment(**sides)


def _is_first(
  shape: Sequence[int], layers: int | None, averaged: Sequence[int]
) -> bool:
  """Whether what is left after averaging is the kernel's first axis, A."""
  own = [axis for axis in range(len(shape)) if axis != layers]
  return own[0] not in averaged


def _without(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
  return tuple(size for i, size in enumerate(shape) if i not in axes)


def _stacked(parts: Sequence[np.ndarray], axis: int | None) -> np.ndarray:
  if axis is None:
    (one,) = parts
    return np.asarray(one, np.float32)
  return np.stack(parts, axis=axis).astype(np.float32)


def place_of(name: str, leaves: Container[str]) -> tuple[str, int | None]:
  """Returns the leaf that holds a tensor, and its layer where it is stacked.

  A relative position table that is a stack's here and a layer's there, or the
  other way, is found all the same: as a stack's, it is its first layer's.

  Args:
    name: ours, layers listed.
    leaves: names of leaves, `encoder/layers/...` where layers are stacked.

  Raises:
    KeyError: no leaf holds it.
  """
  names = [name]
  if name.endswith("/relpos_bias/rel_embedding"):
    stack = name.split("/", maxsplit=1)[0]
    names += [sources.table_name(stack), sources.table_name(stack, layer=0)]
  for one in names:
    if one in leaves:
      return one, None
    if match := _LAYER.match(one):
      stack, layer, rest = match.groups()
      leaf = f"{stack}{sources.STACKED}{rest}"
      if leaf in leaves:
        return leaf, int(layer)
  raise KeyError(name)


class OptaxMoments:
  """Those of a checkpoint of ours, whose optimizer was Adafactor."""

  def __init__(
    self,
    where: str,
    count: int,
    arrays: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
  ) -> None:
    """Reads nothing yet.

    Args:
      where: for errors.
      count: updates made.
      arrays: by kind, then by the name of a leaf of our parameters.
      shapes: of the leaves of our parameters.
    """
    self._where = where
    self.count = count
    self._arrays = arrays
    self._shapes = shapes

  def second_moment(self, name: str) -> SecondMoment:
    """Returns that of one tensor, layers listed."""
    leaf, layer = place_of(name, self._shapes)
    shape = self._shapes[leaf]
    axes = ("layers",) * (layer is not None) + ("",) * len(
      shape[layer is not None :]
    )
    rule = heuristic_rule(shape)
    if rule is not None and layer is not None and 0 in (*rule[0], *rule[1]):
      raise errors.UserError(
        f"{self._where}: Adafactor's moments of {leaf} are averages over its "
        f"{shape[0]} layers, as in no other checkpoint: take its parameters "
        "alone."
      )
    return loaded(
      {kind: sources.read_leaf(self._arrays[kind][leaf]) for kind in KINDS},
      shape,
      axes,
      rule,
      layer=layer,
      joined_shape=shape[layer is not None :],
    )


def optax_state(
  shapes: Mapping[str, tuple[int, ...]],
  moments: Moments,
) -> dict[str, dict[str, np.ndarray]]:
  """Returns optax's `v_row`, `v_col` and `v` of our parameters, by kind.

  Args:
    shapes: of the leaves of our parameters.
    moments: what they are filled with.
  """
  state: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in KINDS}
  for leaf, shape in shapes.items():
    stacked = sources.STACKED in leaf
    names = [leaf]
    if stacked:
      names = [
        leaf.replace(sources.STACKED, f"/layers_{layer}/", 1)
        for layer in range(shape[0])
      ]
    axes = ("layers",) * stacked + ("",) * len(shape[stacked:])
    arrays = stored(
      shape,
      axes,
      heuristic_rule(shape),
      [moments.second_moment(name) for name in names],
    )
    for kind in KINDS:
      state[kind][leaf] = arrays[kind]
  return state
