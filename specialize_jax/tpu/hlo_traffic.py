"""Bytes that instructions read from HBM and write to it.

An instruction reads each operand and writes its value once, with the padding of
tiles; values within a fusion stay on the chip. A slice reads its own bytes, not
those of its operand, and an in-place update writes those of the update.
"""

from collections.abc import Sequence

from specialize_jax.tpu import hlo_text

_VIEWS = ("bitcast", "reshape", "copy", "convert")
_SLICES = ("dynamic-slice", "slice", "gather")
# Index of the operand that is written, by opcode.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
# Copies between memories, and the index of the new array in their value.
_COPIES = {"copy-start": 0, "slice-start": 1}


def operand_bytes(
  computation: hlo_text.Computation, operands: Sequence[str]
) -> list[float]:
  """Returns the bytes in HBM of each operand."""
  return [
    _bytes(computation.instructions[operand].shape) for operand in operands
  ]


def collective_bytes(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """Returns the bytes that a collective reads and writes.

  An all-gather writes as many times what it reads as its group has devices.
  """
  arrays, num_operands = instruction.shape, len(instruction.operands)
  if instruction.opcode.endswith("-start") and len(arrays) > num_operands:
    arrays = arrays[num_operands : 2 * num_operands]  # after the operands
  read = sum(operand_bytes(computation, instruction.operands))
  return read + _bytes(arrays)


def plain_bytes(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """Returns the bytes that an instruction outside fusions reads and writes."""
  opcode = instruction.opcode
  written = _bytes(instruction.shape)
  entering = operand_bytes(computation, instruction.operands)
  if opcode in _COPIES:
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
  module: hlo_text.Module,
  computation: hlo_text.Computation,
  fusion: hlo_text.Instruction,
) -> float:
  """Returns the bytes that a fusion reads and writes.

  Args:
    module: the program.
    computation: the computation that contains the fusion.
    fusion: the fusion's instruction.
  """
  inner = module.computations[fusion.called[0]]
  total = 0.0
  for place, operand in enumerate(fusion.operands):
    whole = _bytes(computation.instructions[operand].shape)
    if whole:
      total += min(whole, _read(module, inner, place, whole))
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
    total += min(written, _written(module, inner, result, written))
  return total


def _read(
  module: hlo_text.Module,
  inner: hlo_text.Computation,
  place: int,
  whole: float,
) -> float:
  """Returns the bytes read of a parameter: all, unless all users slice it."""
  taken, is_result = _taken(module, inner, place, whole)
  return whole if is_result else taken


def _taken(
  module: hlo_text.Module,
  inner: hlo_text.Computation,
  place: int,
  whole: float,
) -> tuple[float, bool]:
  """Returns the bytes that users of a parameter read, and if it is a result."""
  taken, is_result, todo = 0.0, False, [inner.parameters[place]]
  while todo:
    name = todo.pop()
    is_result |= name == inner.root
    for user in inner.users[name]:
      if user.opcode in _VIEWS or _is_view(user):
        todo.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        taken += _as_hbm(user.shape)
      elif user.opcode in _UPDATES and user.operands[0] == name:
        continue  # overwritten in place, not read
      elif user.opcode == "fusion":
        nested = module.computations[user.called[0]]
        for index, operand in enumerate(user.operands):
          if operand == name:
            more, passed_on = _taken(module, nested, index, whole)
            taken += more
            todo += [user.name] * passed_on
      else:
        return whole, is_result
  return taken, is_result


def _written(
  module: hlo_text.Module,
  inner: hlo_text.Computation,
  result: hlo_text.Instruction,
  whole: float,
) -> float:
  """Returns the bytes written of a result: all, unless updated in place."""
  changed = False
  while (result.opcode in _VIEWS or _is_view(result)) and result.operands:
    changed |= result.opcode in ("copy", "convert")
    result = inner.instructions[result.operands[0]]
  if result.opcode == "parameter" and not changed:
    return 0.0  # the same bytes that came in
  if result.opcode == "fusion":
    nested = module.computations[result.called[0]]
    root = nested.instructions[nested.root]
    return _written(module, nested, root, whole)
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
  """Returns the bytes of an asynchronous copy or slice.

  The value of a copy is (new, old, context), that of a slice (old, new,
  context).
  """
  moved = instruction.shape[_COPIES[instruction.opcode]]
  source = computation.instructions[instruction.operands[0]].shape[0]
  read = 0.0 if source.memory_space else _as_hbm((moved,))
  return read + moved.hbm_bytes


def _bytes(shape: Sequence[hlo_text.Array]) -> float:
  return sum(array.hbm_bytes for array in shape)


def _as_hbm(shape: Sequence[hlo_text.Array]) -> float:
  """Returns the size that arrays of this layout would have in HBM."""
  return sum(array.padded_bytes for array in shape)
