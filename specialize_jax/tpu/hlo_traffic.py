"""Bytes that instructions read from HBM and write to it.

An instruction reads its operands and writes its value once each, as they lie
in HBM; what is fused stays on the chip. A slice reads what it takes, not what
it takes it from, and an update in place writes what it puts.
"""

from collections.abc import Sequence

from specialize_jax.tpu import hlo_text

_VIEWS = ("bitcast", "reshape", "copy", "convert")
_SLICES = ("dynamic-slice", "slice", "gather")
# The place of what is put among the operands of an update.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
_IN_PLACE = ("copy-start", "slice-start")


def operand_bytes(
  computation: hlo_text.Computation, operands: Sequence[str]
) -> list[float]:
  """Bytes in HBM of each operand."""
  return [
    _bytes(computation.instructions[operand].shape) for operand in operands
  ]


def plain_bytes(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """What an instruction outside of any fusion reads and writes."""
  opcode = instruction.opcode
  written = _bytes(instruction.shape)
  entering = operand_bytes(computation, instruction.operands)
  if opcode in _IN_PLACE:
    return _copied(computation, instruction)
  if opcode in _SLICES:
    taken = min(entering[0], _as_hbm(instruction.shape))
    return taken + sum(entering[1:]) + written
  if opcode in _UPDATES:
    put = entering[_UPDATES[opcode]]
    rest = sum(entering[1:])
    return rest + (put if written else 0.0)
  return sum(entering) + written


def fusion_bytes(
  computation: hlo_text.Computation,
  fusion: hlo_text.Instruction,
  inner: hlo_text.Computation,
) -> float:
  """What a fusion reads and writes.

  Args:
    computation: where it stands.
    fusion: itself.
    inner: the computation that it runs.
  """
  total = 0.0
  for place, operand in enumerate(fusion.operands):
    whole = _bytes(computation.instructions[operand].shape)
    if whole:
      total += min(whole, _read(inner, inner.parameters[place], whole))
  root = inner.instructions[inner.root]
  results = (
    [inner.instructions[name] for name in root.operands]
    if root.opcode == "tuple"
    else [root]
  )
  if len(results) != len(fusion.parts):
    return total + _bytes(fusion.shape)
  start = 0
  for result, num_arrays in zip(results, fusion.parts, strict=True):
    written = _bytes(fusion.shape[start : start + num_arrays])
    start += num_arrays
    total += min(written, _written(inner, result, written))
  return total


def _read(inner: hlo_text.Computation, name: str, whole: float) -> float:
  """What of a parameter is read: all of it, unless all its users slice it."""
  taken, todo = 0.0, [name]
  while todo:
    name = todo.pop()
    for user in inner.users[name]:
      if user.opcode in _VIEWS or _is_view(user):
        todo.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        taken += _as_hbm(user.shape)
      elif user.opcode in _UPDATES and user.operands[0] == name:
        continue  # overwritten in place, not read
      else:
        return whole
  return taken


def _written(
  inner: hlo_text.Computation, result: hlo_text.Instruction, whole: float
) -> float:
  """What of a result is new: all of it, unless it is an update in place."""
  while (result.opcode in _VIEWS or _is_view(result)) and result.operands:
    result = inner.instructions[result.operands[0]]
  if result.opcode == "parameter":
    return 0.0  # aliased to what came in
  if result.opcode in _UPDATES:
    put = inner.instructions[result.operands[_UPDATES[result.opcode]]]
    return _as_hbm(put.shape)
  return whole


def _is_view(instruction: hlo_text.Instruction) -> bool:
  return (
    instruction.opcode == "custom-call" and "Bitcast" in instruction.attributes
  )


def _copied(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """A copy between memories: its start's value is (new, old, context)."""
  moved = instruction.shape[0]
  source = computation.instructions[instruction.operands[0]].shape[0]
  read = 0.0 if source.memory_space else _as_hbm((moved,))
  return read + moved.hbm_bytes


def _bytes(shape: Sequence[hlo_text.Array]) -> float:
  return sum(array.hbm_bytes for array in shape)


def _as_hbm(shape: Sequence[hlo_text.Array]) -> float:
  """Bytes that arrays of this shape and layout would take in HBM."""
  return sum(array.padded_bytes for array in shape)
