"""Trip counts of the loops of a compiled program.

The TPU compiler usually does not write them. A counted loop is one whose
condition depends on a few scalars that are constant at first, and whose body
updates each from those scalars alone: its scalars are evaluated here until it
ends.
"""

import operator
from collections.abc import Callable, Mapping, Sequence

from specialize_jax.tpu import hlo_text

# More iterations than any loop of a T5: beyond them the count is unknown.
_MAX_TRIP_COUNT = 100_000
_COMPARE: Mapping[str, Callable[[int, int], bool]] = {
  "LT": operator.lt,
  "LE": operator.le,
  "GT": operator.gt,
  "GE": operator.ge,
  "EQ": operator.eq,
  "NE": operator.ne,
}
_BINARY: Mapping[str, Callable[[int, int], int]] = {
  "add": operator.add,
  "subtract": operator.sub,
  "multiply": operator.mul,
  "minimum": min,
  "maximum": max,
  "and": operator.and_,
  "or": operator.or_,
}
_SAME = (
  "bitcast", "broadcast", "convert", "copy", "copy-done", "copy-start",
  "opt-barrier", "reshape",
)  # fmt: skip
# Narrower integers wrap around, which is not computed here.
_INTEGERS = ("s32", "u32", "s64", "u64", "pred")

_Value = object
"""An int, a tuple of values, or None if it is unknown."""


def trip_count(
  module: hlo_text.Module,
  computation: hlo_text.Computation,
  loop: hlo_text.Instruction,
) -> int | None:
  """Returns the trip count of a `while`; None if it is unknown.

  Args:
    module: the program.
    computation: the computation that contains the loop.
    loop: the loop's instruction.
  """
  known = loop.backend_config.get("known_trip_count")
  if isinstance(known, Mapping):
    return int(known["n"])
  condition = module.computations[(loop.attribute("condition") or "")[1:]]
  body = module.computations[(loop.attribute("body") or "")[1:]]
  start = _Evaluator(module, computation, None).value(loop.operands[0])
  if not isinstance(start, tuple):
    return None
  read = _needed(module, condition, body)
  state = tuple(v if i in read else None for i, v in enumerate(start))
  for count in range(_MAX_TRIP_COUNT):
    goes_on = _Evaluator(module, condition, (state,)).root()
    if goes_on is None:
      return None
    if not goes_on:
      return count
    state = _next(module, body, state, read)
  return None


def _next(
  module: hlo_text.Module,
  body: hlo_text.Computation,
  state: tuple[_Value, ...],
  read: Sequence[int],
) -> tuple[_Value, ...]:
  """Returns the loop's scalars after one more iteration."""
  evaluator = _Evaluator(module, body, (state,))
  root = body.instructions[body.root]
  if root.opcode != "tuple":
    after = evaluator.root()
    return after if isinstance(after, tuple) else (None,) * len(state)
  return tuple(
    evaluator.value(name) if place in read else None
    for place, name in enumerate(root.operands)
  )


def _needed(
  module: hlo_text.Module,
  condition: hlo_text.Computation,
  body: hlo_text.Computation,
) -> set[int]:
  """Returns the indices of the loop's tuple that its condition depends on."""
  needed = _places_read(module, condition, condition.root)
  root = body.instructions[body.root]
  if root.opcode != "tuple":
    return needed
  todo = list(needed)
  while todo:
    place = todo.pop()
    new = _places_read(module, body, root.operands[place]) - needed
    needed |= new
    todo += new
  return needed


def _places_read(
  module: hlo_text.Module, computation: hlo_text.Computation, name: str
) -> set[int]:
  """Returns the indices of the parameter's tuple an instruction depends on."""
  places, seen, todo = set(), set(), [name]
  while todo:
    name = todo.pop()
    if name in seen or name not in computation.instructions:
      continue
    seen.add(name)
    instruction = computation.instructions[name]
    if instruction.opcode == "get-tuple-element":
      source = computation.instructions[instruction.operands[0]]
      if source.opcode == "parameter":
        places.update(instruction.numbers("index"))
        continue
    todo += instruction.operands
  return places


class _Evaluator:
  """Evaluates scalars of one computation, each once."""

  def __init__(
    self,
    module: hlo_text.Module,
    computation: hlo_text.Computation,
    arguments: Sequence[_Value] | None,
  ) -> None:
    self._module = module
    self._computation = computation
    self._arguments = arguments
    self._known: dict[str, _Value] = {}

  def root(self) -> _Value:
    return self.value(self._computation.root)

  def value(self, name: str) -> _Value:
    if name not in self._known:
      instruction = self._computation.instructions[name]
      self._known[name] = self._compute(instruction)
    return self._known[name]

  def _compute(self, instruction: hlo_text.Instruction) -> _Value:
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == "parameter":
      place = int(instruction.text)
      return self._arguments[place] if self._arguments else None
    if opcode == "tuple":
      return tuple(self.value(operand) for operand in operands)
    if opcode == "get-tuple-element":
      whole = self.value(operands[0])
      (index,) = instruction.numbers("index")
      return whole[index] if isinstance(whole, tuple) else None
    if opcode == "while" or any(a.num_elements != 1 for a in instruction.shape):
      return None
    if opcode in ("fusion", "call"):
      inner = self._module.computations[instruction.called[0]]
      arguments = [self.value(operand) for operand in operands]
      return _Evaluator(self._module, inner, arguments).root()
    return self._scalar(instruction)

  def _scalar(self, instruction: hlo_text.Instruction) -> _Value:
    opcode = instruction.opcode
    if opcode == "constant":
      return _constant(instruction)
    values = [self.value(operand) for operand in instruction.operands]
    if not values or any(not isinstance(v, int) for v in values):
      return None
    if opcode in _SAME:
      return values[0]
    if opcode == "compare":
      direction = instruction.attribute("direction")
      return int(_COMPARE[direction](values[0], values[1]))
    if opcode in _BINARY:
      return _BINARY[opcode](values[0], values[1])
    if opcode == "not":
      return int(not values[0])
    if opcode == "select":
      return values[1] if values[0] else values[2]
    return None


def _constant(instruction: hlo_text.Instruction) -> int | None:
  if instruction.shape[0].dtype not in _INTEGERS:
    return None
  text = instruction.text.strip(" {}")
  if text in ("true", "false"):
    return int(text == "true")
  try:
    return int(text)
  except ValueError:
    return None
