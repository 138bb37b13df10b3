"""Counts a compiled program's arithmetic and traffic, loops by their rounds.

XLA's own analysis counts the body of a loop once, and a T5's layers are one
loop: of 24 layers it would count one.

Counted for one device: floating point operations of matrix products and
convolutions; bytes read from and written to HBM, tiles padded as they lie,
what stays in on-chip memory left out; bytes that the device sends to others.
What is fused is read and written once; a slice reads what it takes, and an
update in place writes what it puts. A kernel counts as its own cost estimate
says: what its block specs move, and the matmuls of the blocks it may visit.
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
# Names of room in memory, or of the same bytes: nothing moves.
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What one run of a program costs one device.

  Attributes:
    flops: of matrix products and convolutions, a multiplication and an
      addition each one operation.
    hbm_bytes: read and written.
    exchanges: between devices.
    unknown_loops: loops whose rounds could not be told.
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
    """Bytes that the device sends, by kind of collective."""
    sent = dict.fromkeys(collectives.KINDS, 0.0)
    for one in self.exchanges:
      sent[one.kind] += one.count * one.sent_bytes
    return sent


def cost(
  module: hlo_text.Module, *, num_devices: int, unknown_rounds: int = 1
) -> Cost:
  """Counts a whole program.

  Args:
    module: from `hlo_text.parse`, compiled for one device of many.
    num_devices: how many run it, for groups that mean all.
    unknown_rounds: trip count of a loop that ends by what it computes, as
      decoding does.
  """
  found = cost_by(
    lambda _: "",
    module,
    num_devices=num_devices,
    unknown_rounds=unknown_rounds,
  )
  return found.get("", Cost())


def cost_by(
  label: Callable[[hlo_text.Instruction], str],
  module: hlo_text.Module,
  *,
  num_devices: int,
  unknown_rounds: int = 1,
) -> dict[str, Cost]:
  """Counts a whole program, apart by a label of its instructions.

  The bytes of a fusion are the fusion's own, its matmuls and collectives those
  of the instructions in it.

  Args:
    label: of an instruction.
    module: from `hlo_text.parse`, compiled for one device of many.
    num_devices: how many run it, for groups that mean all.
    unknown_rounds: trip count of a loop that ends by what it computes.

  Returns:
    The cost by label; their sum is `cost`.
  """
  walker = _Walker(module, num_devices, unknown_rounds, label)
  return walker.computation(module.entry)


# By label.
_Costs = dict[str, Cost]


def _add(total: _Costs, other: _Costs, times: float = 1.0) -> None:
  for label, one in other.items():
    total[label] = total.get(label, Cost()).plus(one, times)


class _Walker:
  """Adds up computations, each walked once."""

  def __init__(
    self,
    module: hlo_text.Module,
    num_devices: int,
    unknown_rounds: int,
    label: Callable[[hlo_text.Instruction], str],
  ) -> None:
    self._module = module
    self._num_devices = num_devices
    self._unknown_rounds = unknown_rounds
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
      moved = sum(hlo_traffic.operand_bytes(computation, instruction.operands))
      return {label: Cost(hbm_bytes=2 * moved, exchanges=(exchange,))}
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
    rounds = trip_counts.trip_count(self._module, computation, loop)
    total: _Costs = {}
    if rounds is None:
      rounds = self._unknown_rounds
      total[self._label(loop)] = Cost(unknown_loops=1)
    body = self.computation((loop.attribute("body") or "")[1:])
    _add(total, body, rounds)
    return total

  def _fused(self, computation: hlo_text.Computation, outer: str) -> _Costs:
    """The arithmetic and the collectives within a fusion, without traffic.

    An asynchronous collective stands in a chain of fusions that it runs
    beside: it counts where it starts.

    Args:
      computation: of the fusion.
      outer: the fusion's label, for instructions that say nothing of theirs.
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
  """The cost of a Pallas kernel, by its own estimate.

  The compiler lays some of its operands and results on the chip: the estimate
  is of all of them, and the share that lies in HBM counts. Without an estimate
  all of them move once, and no operation is counted.
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
  """The target of a custom call; None for anything else."""
  if instruction.opcode != "custom-call":
    return None
  return (instruction.attribute("custom_call_target") or "").strip('"')
