"""Converts Adafactor's second moments between optax's state and T5X's.

Both store, of a kernel `[A, B]`, a moving average of the squared gradient g²,
or its two factors, the means over B and over A. They differ in when they factor
and in which factor is called `v_row`. optax (and T5X for parameters with two
axes) factors if both axes have at least 128 entries, and `v_row` is the mean
over the longer one. By T5X's rules for logical axes, which apply to scanned
layers and to kernels with separate axes for heads, every kernel is factored and
`v_row` is the mean over `embed`. Converting a whole moment to factors is exact;
a factored one is converted to the product by which Adafactor approximates it.
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

# The axes over which `v_col` and `v_row` are means.
Rule = tuple[tuple[int, ...], tuple[int, ...]]


class NoMomentsError(errors.UserError):
  """The checkpoint has no state of Adafactor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondMoment:
  """The average of a parameter's squared gradient, whole or factored.

  Attributes:
    whole: `[A, B]` or `[A]`; None if it is factored.
    over_b: `[A]`, the mean over B; None if it is whole.
    over_a: `[B]`, the mean over A; None if it is whole.
  """

  whole: np.ndarray | None = None
  over_b: np.ndarray | None = None
  over_a: np.ndarray | None = None

  def factors(self) -> tuple[np.ndarray, np.ndarray]:
    """Computes the means over B and over A."""
    if self.whole is None:
      return self.over_b, self.over_a
    return self.whole.mean(axis=1), self.whole.mean(axis=0)

  def product(self) -> np.ndarray:
    """Computes it whole, as Adafactor approximates it from the factors."""
    if self.whole is not None:
      return self.whole
    mean = max(float(self.over_b.mean()), np.finfo(np.float32).tiny)
    return np.outer(self.over_b, self.over_a / np.float32(mean))


class Moments(Protocol):
  """The second moments of a model, under our names with listed layers."""

  @property
  def count(self) -> int:
    """The number of updates that they average."""

  def second_moment(self, name: str) -> SecondMoment:
    """Reads the second moment of one tensor."""


def heuristic_rule(shape: Sequence[int]) -> Rule | None:
  """Returns optax's rule, its two longest axes; None if it does not factor."""
  if len(shape) < 2:
    return None
  order = np.argsort(shape)
  if shape[order[-2]] < _MIN_FACTORED:
    return None
  return (int(order[-2]),), (int(order[-1]),)


def t5x_rule(shape: Sequence[int], axes: Sequence[str]) -> Rule | None:
  """Returns T5X's rule, by its standard logical factor rules."""
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
  """Computes the arrays that an optimizer stores for one parameter.

  Args:
    shape: the parameter's shape.
    axes: its logical axis names; "layers" if layers are stacked.
    rule: the axes that are averaged over; None for no factors.
    parts: the moments of the layers, or of the one parameter; None for zeros.

  Returns:
    `v_row`, `v_col` and `v`; a single zero if it is not used.
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
  """Returns the moment of one layer; the inverse of `stored`.

  Args:
    arrays: `v_row`, `v_col` and `v`.
    shape: the stored parameter's shape.
    axes: its logical axis names.
    rule: the axes that are averaged over; None for no factors.
    layer: the layer, if layers are stacked; otherwise None.
    joined_shape: the shape of the layer's parameter, `[A, B]` or `[A]`.

  Raises:
    ValueError: the arrays do not have the shapes of the rule.
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
  """Returns whether the kernel's first axis, A, is left after averaging."""
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
  """Returns the leaf with a tensor, and its layer if layers are stacked.

  A relative position table is also found if one side has one per stack and the
  other one per layer: the stack's corresponds to the first layer's.

  Args:
    name: our name, layers listed.
    leaves: names of leaves, `encoder/layers/...` for stacked layers.

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
  """The second moments in one of our checkpoints of a run with Adafactor."""

  def __init__(
    self,
    where: str,
    count: int,
    arrays: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
  ) -> None:
    """Initializes without reading.

    Args:
      where: the checkpoint's name in errors.
      count: the number of updates.
      arrays: arrays by kind, then by the name of a leaf of our parameters.
      shapes: shapes of the leaves of our parameters.
    """
    self._where = where
    self.count = count
    self._arrays = arrays
    self._shapes = shapes

  def second_moment(self, name: str) -> SecondMoment:
    """Reads the second moment of one tensor of one layer.

    Raises:
      UserError: it is an average over layers.
    """
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
  """Computes optax's `v_row`, `v_col` and `v` of our parameters, by kind.

  Args:
    shapes: shapes of the leaves of our parameters.
    moments: the second moments.
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
