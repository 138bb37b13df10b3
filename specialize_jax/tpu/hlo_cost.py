"""Counts the flops and bytes of a compiled program, with its trip counts.

XLA's own cost analysis counts the body of a loop once, and the scanned layers
of a T5 are one loop: of 24 layers it would count one.

Counted for one device: floating point operations of matmuls and
convolutions; bytes read from and written to HBM, with the padding of tiles and
without what stays in on-chip memory; bytes sent to other devices. A fusion
reads its inputs and writes its outputs once; a slice reads its own bytes, and
an in-place update writes those of the update. A Pallas kernel has the cost of
its own estimate: the bytes of its block specs, and the matmuls of the blocks
that it may visit.
"""

import dataclasses
from collections.abc import Callable, Mapping

from specialize_jax.tpu import (
  collectives,
  hlo_flops,
  hlo_text,
  hlo_traffic,
  trip_counts,
)

_FREE = (
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota",
  "after-all", "partition-id", "replica-id", "opt-barrier",
  "copy-done", "slice-done", "async-done", "async-update",
)  # fmt: skip
_KERNEL = "tpu_custom_call"
# Allocations and views of the same bytes: nothing moves.
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """The cost of one run of a program on one device.

  Attributes:
    flops: floating point operations of matmuls and convolutions; a
      multiplication and an addition are one each.
    hbm_bytes: bytes read from and written to HBM.
    exchanges: the collectives.
    unknown_loops: number of loops of unknown trip count.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  exchanges: tuple[collectives.Collective, ...] = ()
  unknown_loops: int = 0

  def plus(self, other: "Cost", times: float = 1.0) -> "Cost":
    """Returns the sum of this cost and `times` the other."""
    return Cost(
      flops=self.flops + times * other.flops,
      hbm_bytes=self.hbm_bytes + times * other.hbm_bytes,
      exchanges=self.exchanges
      + tuple(
        dataclasses.replace(one, count=times * one.count)
        for one in other.exchanges
      ),
      unknown_loops=self.unknown_loops + other.unknown_loops,
    )

  def sent_bytes(self) -> Mapping[str, float]:
    """Bytes that the device sends, by the kind of collective."""
    sent = dict.fromkeys(collectives.KINDS, 0.0)
    for one in self.exchanges:
      sent[one.kind] += one.count * one.sent_bytes
    return sent


def cost(
  module: hlo_text.Module, *, num_devices: int, unknown_trip_count: int = 1
) -> Cost:
  """Returns the cost of a program.

  Args:
    module: from `hlo_text.parse`: the program of each device.
    num_devices: number of devices that run it, for collectives whose empty
      groups mean all of them.
    unknown_trip_count: assumed for loops whose end depends on what they
      compute, as in decoding.
  """
  found = cost_by(
    lambda _: "",
    module,
    num_devices=num_devices,
    unknown_trip_count=unknown_trip_count,
  )
  return found.get("", Cost())


def cost_by(
  label: Callable[[hlo_text.Instruction], str],
  module: hlo_text.Module,
  *,
  num_devices: int,
  unknown_trip_count: int = 1,
) -> dict[str, Cost]:
  """Returns the cost of a program by a label of its instructions.

  The bytes of a fusion are counted for the fusion's label, its matmuls and
  collectives for those of the fused instructions.

  Args:
    label: maps an instruction to its label.
    module: as in `cost`.
    num_devices: as in `cost`.
    unknown_trip_count: as in `cost`.

  Returns:
    The costs by label, whose sum is `cost`.
  """
  walker = _Walker(module, num_devices, unknown_trip_count, label)
  return walker.computation(module.entry)


# By label.
_Costs = dict[str, Cost]


def _add(total: _Costs, other: _Costs, times: float = 1.0) -> None:
  for label, one in other.items():
    total[label] = total.get(label, Cost()).plus(one, times)


class _Walker:
  """Sums the costs of computations, each of which is visited once."""

  def __init__(
    self,
    module: hlo_text.Module,
    num_devices: int,
    unknown_trip_count: int,
    label: Callable[[hlo_text.Instruction], str],
  ) -> None:
    self._module = module
    self._num_devices = num_devices
    self._unknown_trip_count = unknown_trip_count
    self._label = label
    self._done: dict[str, _Costs] = {}

  def computation(self, name: str) -> _Costs:
    if name not in self._done:
      computation = self._module.computations[name]
      total: _Costs = {}
      for instruction in computation.instructions.values():
        _add(total, self._instruction(computation, instruction))
      self._done[name] = total
    return self._done[name]

  def _instruction(
    self, computation: hlo_text.Computation, instruction: hlo_text.Instruction
  ) -> _Costs:
    opcode = instruction.opcode
    if opcode in _FREE or _calls(instruction) in _FREE_CALLS:
      return {}
    if opcode == "while":
      return self._loop(computation, instruction)
    if opcode == "conditional":
      branches = [self.computation(name) for name in instruction.called]
      return max(branches, key=_flops_and_bytes)
    if opcode in ("call", "async-start"):
      return self.computation(instruction.called[0])
    label = self._label(instruction)
    kind = opcode.removesuffix("-start")
    if kind in collectives.KINDS:
      exchange = collectives.read(
        computation, instruction, kind, self._num_devices
      )
      moved = hlo_traffic.collective_bytes(computation, instruction)
      return {label: Cost(hbm_bytes=moved, exchanges=(exchange,))}
    if opcode.endswith("-done"):
      return {}
    if opcode == "fusion":
      moved = hlo_traffic.fusion_bytes(self._module, computation, instruction)
      total = {label: Cost(hbm_bytes=moved)}
      inner = self._module.computations[instruction.called[0]]
      _add(total, self._fused(inner, label))
      return total
    if _calls(instruction) == _KERNEL:
      return {label: _of_kernel(computation, instruction)}
    return {
      label: Cost(
        flops=hlo_flops.flops(computation, instruction),
        hbm_bytes=hlo_traffic.plain_bytes(computation, instruction),
      )
    }

  def _loop(
    self, computation: hlo_text.Computation, loop: hlo_text.Instruction
  ) -> _Costs:
    trip_count = trip_counts.trip_count(self._module, computation, loop)
    total: _Costs = {}
    if trip_count is None:
      trip_count = self._unknown_trip_count
      total[self._label(loop)] = Cost(unknown_loops=1)
    body = self.computation((loop.attribute("body") or "")[1:])
    _add(total, body, trip_count)
    return total

  def _fused(self, computation: hlo_text.Computation, outer: str) -> _Costs:
    """Returns flops and collectives of a fusion, without its HBM bytes.

    An asynchronous collective is in a chain of fusions that it overlaps with:
    it is counted where it starts.

    Args:
      computation: the fusion's computation.
      outer: the fusion's label, for instructions without one of their own.
    """
    key = f"fused {outer} {computation.name}"
    if key not in self._done:
      total: _Costs = {}
      targets = {_calls(one) for one in computation.instructions.values()}
      for instruction in computation.instructions.values():
        label = self._label(instruction) if instruction.op_name else outer
        kind = instruction.opcode.removesuffix("-start")
        if instruction.opcode == "fusion":
          inner = self._module.computations[instruction.called[0]]
          _add(total, self._fused(inner, label))
        elif kind in collectives.KINDS:
          chained = 'chain_id="' in instruction.attributes
          if chained and "AsyncCollectiveStart" not in targets:
            continue
          exchange = collectives.read(
            computation, instruction, kind, self._num_devices
          )
          _add(total, {label: Cost(exchanges=(exchange,))})
        else:
          flops = hlo_flops.flops(computation, instruction)
          if flops:
            _add(total, {label: Cost(flops=flops)})
      self._done[key] = total
    return self._done[key]


def _flops_and_bytes(costs: _Costs) -> tuple[float, float]:
  return (
    sum(one.flops for one in costs.values()),
    sum(one.hbm_bytes for one in costs.values()),
  )


def _of_kernel(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> Cost:
  """Returns the cost of a Pallas kernel from its own estimate.

  The estimate includes operands and results that the compiler has placed in
  on-chip memory: its bytes are scaled by the share that is in HBM. Without an
  estimate every array is counted once, and no flops.
  """
  config = instruction.backend_config.get("custom_call_config", {})
  estimate = config.get("cost_estimate", {})
  arrays = [
    *(
      array
      for operand in instruction.operands
      for array in computation.instructions[operand].shape
    ),
    *instruction.shape,
  ]
  in_hbm = sum(array.hbm_bytes for array in arrays)
  everywhere = sum(array.padded_bytes for array in arrays)
  moved = float(estimate.get("bytes_accessed", everywhere))
  return Cost(
    flops=float(estimate.get("flops", 0)),
    hbm_bytes=moved * in_hbm / everywhere if everywhere else 0.0,
  )


def _calls(instruction: hlo_text.Instruction) -> str | None:
  """Returns the target of a custom call; None for other instructions."""
  if instruction.opcode != "custom-call":
    return None
  return (instruction.attribute("custom_call_target") or "").strip('"')
