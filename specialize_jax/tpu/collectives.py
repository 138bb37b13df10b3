"""Collectives of a compiled program: their shapes, groups and bytes sent."""

import dataclasses
import math
import re

import numpy as np

from specialize_jax.tpu import hlo_text

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
  """A collective, and the number of times it runs.

  Attributes:
    kind: one of `KINDS`.
    num_bytes: bytes of its input on each device; for an all-gather, of its
      output.
    groups: the replica groups, as indices into the program's device
      assignment; for a permutation, pairs of sender and receiver.
    count: the product of the trip counts of the loops around it.
    shapes: its output arrays.
    op_name: the operation of the source program that it comes from.
  """

  kind: str
  num_bytes: float
  groups: tuple[tuple[int, ...], ...]
  count: float
  shapes: tuple[hlo_text.Array, ...]
  op_name: str

  @property
  def sent_bytes(self) -> float:
    """Bytes that one device sends each time, by the ring algorithm.

    In a group of g devices (g - 1) / g of `num_bytes`, for an all-reduce twice
    that, for a permutation all of them (Chan et al., "Collective
    communication", 2007).
    """
    if self.kind == "collective-permute":
      moves = any(source != target for source, target in self.groups)
      return self.num_bytes if moves else 0.0
    size = max(map(len, self.groups), default=1)
    share = (size - 1) / size
    return self.num_bytes * share * (2 if self.kind == "all-reduce" else 1)


def read(
  computation: hlo_text.Computation,
  instruction: hlo_text.Instruction,
  kind: str,
  num_devices: int,
) -> Collective:
  """Returns an instruction as a collective.

  Args:
    computation: the computation that contains the instruction.
    instruction: the collective's instruction.
    kind: one of `KINDS`, from its opcode.
    num_devices: number of devices that run the program, for instructions whose
      empty groups mean all of them.
  """
  groups = _groups(instruction, num_devices)
  entering = sum(
    array.num_bytes
    for operand in instruction.operands
    for array in computation.instructions[operand].shape
  )
  if kind == "all-gather":
    entering *= max(map(len, groups), default=1)
  # The TPU compiler writes a reduce-scatter as an all-reduce in such a fusion.
  if kind == "all-reduce" and "all-reduce-scatter" in computation.name:
    kind = "reduce-scatter"
  return Collective(
    kind=kind,
    num_bytes=entering,
    groups=groups,
    count=1.0,
    shapes=instruction.shape,
    op_name=instruction.op_name,
  )


def _groups(
  instruction: hlo_text.Instruction, num_devices: int
) -> tuple[tuple[int, ...], ...]:
  """Returns the replica groups, written in any of XLA's notations."""
  pairs = instruction.attribute("source_target_pairs")
  if pairs is not None:
    return tuple(
      (int(a), int(b)) for a, b in re.findall(r"\{(\d+),\s*(\d+)\}", pairs)
    )
  attributes = instruction.attributes
  by_mesh = re.search(
    r"replica_groups=mesh\[([^\]]*)\](?:,?\s*device_ids=\(?([^)]*?)\)?)?"
    r"\s*\{([^}]*)\}",
    attributes,
  )
  if by_mesh:
    return _mesh_groups(by_mesh.group(1), by_mesh.group(3))
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, dims, order = (_integers(part) for part in iota.groups())
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = ids.transpose(order) if order else ids
    return tuple(map(tuple, ids.reshape(shape).tolist()))
  listed = instruction.attribute("replica_groups") or ""
  groups = tuple(
    _integers(group) for group in re.findall(r"\{([\d,\s]+)\}", listed)
  )
  return groups or (tuple(range(num_devices)),)


def _mesh_groups(mesh: str, along: str) -> tuple[tuple[int, ...], ...]:
  """Returns the groups along axes of a mesh: `mesh['a'=4,'b'=2] {'b'}`."""
  axes = re.findall(r"'([^']+)'=(\d+)", mesh)
  names, sizes = [name for name, _ in axes], [int(size) for _, size in axes]
  grouped = [names.index(name) for name in re.findall(r"'([^']+)'", along)]
  rest = [axis for axis in range(len(names)) if axis not in grouped]
  ids = np.arange(math.prod(sizes)).reshape(sizes).transpose(rest + grouped)
  size = math.prod(sizes[axis] for axis in grouped)
  return tuple(map(tuple, ids.reshape(-1, size).tolist()))


def _integers(text: str | None) -> tuple[int, ...]:
  return tuple(map(int, re.findall(r"\d+", text or "")))
