"""Parses the text of a compiled program (HLO) into computations.

Only what `hlo_cost` needs is parsed: shapes with their layouts, operands,
called computations, and attributes as text.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping

_ITEM_BITS = {
  "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64,
  "u64": 64, "f64": 64, "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY\s+)?%?([\w.\-]+)\s*\(.*->.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT\s+)?%?([\w.\-]+) = (.*)$")
# A quoted string, a bracket, or the end of a value outside of brackets.
_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\], ]')
_COMMENT = re.compile(r"/\*.*?\*/")
# With an element of its tuple: %fusion.18#1, as jaxlib 0.12 writes what was a
# `get-tuple-element`.
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)*)")
_CALLED = re.compile(
  r"\b(?:calls|to_apply|condition|body|true_computation|false_computation"
  r"|branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Array:
  """The shape and layout of an array.

  Attributes:
    dtype: XLA's name of its type, such as "bf16".
    dims: the logical shape.
    minor_to_major: the dimensions, the contiguous one first.
    tile: shape of the tile over the minor dimensions; empty if none.
    memory_space: 0 for HBM; others are on the chip or on the host.
  """

  dtype: str
  dims: tuple[int, ...]
  minor_to_major: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  memory_space: int = 0

  @property
  def num_elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def num_bytes(self) -> float:
    """Size in bytes without padding."""
    return self.num_elements * _ITEM_BITS.get(self.dtype, 0) / 8

  @property
  def hbm_bytes(self) -> float:
    """Size in HBM in bytes, with the padding of tiles; 0 if not in HBM."""
    return 0.0 if self.memory_space else self.padded_bytes

  @functools.cached_property
  def padded_bytes(self) -> float:
    """Size in its memory in bytes, with the padding of tiles."""
    sizes = [self.dims[axis] for axis in self.minor_to_major]
    for place, tile in enumerate(reversed(self.tile)):
      if place < len(sizes):
        sizes[place] = -(-sizes[place] // tile) * tile
    elements = math.prod(sizes) if sizes else self.num_elements
    return elements * _ITEM_BITS.get(self.dtype, 0) / 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
  """One instruction of a computation.

  Attributes:
    name: unique in the module.
    opcode: such as "fusion" or "all-gather-start".
    shape: the arrays of its value; those of a tuple, flattened.
    operands: names of the instructions that are its operands.
    called: names of the computations it calls, in the order of the text.
    text: the text in the parentheses of the operands.
    attributes: the text after them, without metadata.
    op_name: the operation of the source program that it comes from; empty if
      unknown.
    parts: for a tuple of tuples, the number of arrays of each element.
  """

  name: str
  opcode: str
  shape: tuple[Array, ...]
  operands: tuple[str, ...]
  called: tuple[str, ...]
  text: str
  attributes: str
  op_name: str
  parts: tuple[int, ...]

  def attribute(self, name: str) -> str | None:
    """Returns the text of an attribute, with its braces; None without it."""
    start = re.search(rf"(?:^|[\s,]){name}=", self.attributes)
    return _value(self.attributes, start.end()) if start else None

  def numbers(self, name: str) -> tuple[int, ...]:
    """Returns the integers of `dimensions={0,2}`; empty without it."""
    return tuple(map(int, re.findall(r"-?\d+", self.attribute(name) or "")))

  @functools.cached_property
  def backend_config(self) -> Mapping[str, object]:
    """Returns `backend_config`; empty if there is none, or it is not JSON."""
    text = self.attribute("backend_config")
    try:
      found = json.loads(text) if text else {}
    except json.JSONDecodeError:
      return {}
    return found if isinstance(found, dict) else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
  """A computation: instructions in topological order.

  Attributes:
    name: unique in the module.
    instructions: the instructions by name, in order.
    root: name of the instruction whose value is the computation's.
    parameters: names of the parameters by number.
  """

  name: str
  instructions: Mapping[str, Instruction]
  root: str
  parameters: tuple[str, ...]

  @functools.cached_property
  def users(self) -> Mapping[str, tuple[Instruction, ...]]:
    """The users of each instruction, by its name."""
    found: dict[str, list[Instruction]] = {n: [] for n in self.instructions}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        if operand in found:
          found[operand].append(instruction)
    return {name: tuple(users) for name, users in found.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Module:
  """A compiled program.

  Attributes:
    computations: the computations by name.
    entry: name of the entry computation.
  """

  computations: Mapping[str, Computation]
  entry: str


def parse(text: str) -> Module:
  """Parses a module from the text of `jax.stages.Compiled.as_text`.

  Raises:
    ValueError: the text has no entry computation, or a line of a computation
      is not an instruction.
  """
  computations: dict[str, Computation] = {}
  entry, name, lines = "", "", []
  for line in text.splitlines():
    if not name:
      header = _HEADER.match(line)
      if header:
        name, lines = header.group(2), []
        entry = name if header.group(1) else entry
    elif line.startswith("}"):
      computations[name] = _computation(name, lines)
      name = ""
    elif line.strip():
      lines.append(line)
  if entry not in computations:
    raise ValueError("the program's text has no ENTRY computation")
  return Module(computations=computations, entry=entry)


def _computation(name: str, lines: list[str]) -> Computation:
  instructions: dict[str, Instruction] = {}
  parameters: dict[int, str] = {}
  root = ""
  for line in lines:
    match = _INSTRUCTION.match(line)
    if match is None:
      raise ValueError(f"{name}: cannot read the instruction {line.strip()!r}")
    instruction = _instruction(match.group(2), match.group(3))
    for operand in instruction.operands:
      _add_elements(instructions, operand)
    instructions[instruction.name] = instruction
    if match.group(1):
      root = instruction.name
    if instruction.opcode == "parameter":
      parameters[int(instruction.text)] = instruction.name
  return Computation(
    name=name,
    instructions=instructions,
    root=root or next(reversed(instructions)),
    parameters=tuple(parameters[i] for i in sorted(parameters)),
  )


def _add_elements(instructions: dict[str, Instruction], operand: str) -> None:
  """Adds the `get-tuple-element` that an operand such as "fusion.18#1" is."""
  whole, element, index = operand.rpartition("#")
  if not element or operand in instructions:
    return
  _add_elements(instructions, whole)
  of_whole, place = instructions[whole], int(index)
  begin = sum(of_whole.parts[:place])
  shape = of_whole.shape[begin : begin + of_whole.parts[place]]
  instructions[operand] = Instruction(
    name=operand,
    opcode="get-tuple-element",
    shape=shape,
    operands=(whole,),
    called=(),
    text=f"%{whole}",
    attributes=f"index={place}",
    op_name=of_whole.op_name,
    parts=(1,) * len(shape),
  )


def _instruction(name: str, text: str) -> Instruction:
  text = _COMMENT.sub("", text)
  shape_text = _value(text, 0) if text[0] == "(" else text.split(" ", 1)[0]
  rest = text[len(shape_text) :].lstrip()
  opcode, _, _ = rest.partition("(")
  operand_text = _value(rest, len(opcode))
  attributes = rest[len(opcode) + len(operand_text) :].lstrip(", ")
  metadata = re.search(r"(?:^|[\s,])metadata=", attributes)
  op_name = ""
  if metadata:
    found = _value(attributes, metadata.end())
    named = re.search(r'op_name="((?:[^"\\]|\\.)*)"', found)
    op_name = named.group(1) if named else ""
    attributes = (
      attributes[: metadata.start()] + attributes[metadata.end() + len(found) :]
    )
  # Strings within `backend_config` may look like attributes.
  before_config = attributes.split("backend_config=", 1)[0]
  shape, parts = _shape(shape_text)
  return Instruction(
    name=name,
    opcode=opcode.strip(),
    shape=shape,
    operands=tuple(_OPERAND.findall(operand_text)),
    called=tuple(
      called.lstrip("%")
      for group in _CALLED.findall(before_config)
      for called in re.findall(r"%?[\w.\-]+", group)
    ),
    text=operand_text[1:-1],
    attributes=attributes,
    op_name=op_name,
    parts=parts,
  )


def _shape(text: str) -> tuple[tuple[Array, ...], tuple[int, ...]]:
  """Returns the arrays of a shape, and the number in each tuple element."""
  if not text.startswith("("):
    return _arrays(text), (1,)
  parts, start, depth = [], 1, 0
  for place in range(1, len(text)):
    character = text[place]
    if character in "({[":
      depth += 1
    elif character in ")}]":
      depth -= 1
    if (character == "," and depth == 0) or depth < 0:
      parts.append(_arrays(text[start:place]))
      start = place + 1
  return (
    tuple(array for part in parts for array in part),
    tuple(len(part) for part in parts),
  )


def _arrays(text: str) -> tuple[Array, ...]:
  return tuple(_array(*match.groups()) for match in _ARRAY.finditer(text))


@functools.cache
def _array(dtype: str, dims: str, layout: str | None) -> Array:
  sizes = tuple(int(size) for size in re.findall(r"\d+", dims))
  order, _, rest = (layout or "").partition(":")
  minor_to_major = tuple(map(int, re.findall(r"\d+", order)))
  tile = re.search(r"T\(([\d,]+)\)", rest)
  space = re.search(r"S\((\d+)\)", rest)
  return Array(
    dtype=dtype,
    dims=sizes,
    minor_to_major=minor_to_major or tuple(reversed(range(len(sizes)))),
    tile=tuple(map(int, tile.group(1).split(","))) if tile else (),
    memory_space=int(space.group(1)) if space else 0,
  )


def _value(text: str, start: int) -> str:
  """Returns the value from `start` to the comma that ends it."""
  depth = 0
  for match in _MARK.finditer(text, start):
    mark = match.group()
    if mark[0] == '"':
      continue  # a quoted string
    if mark in "({[":
      depth += 1
    elif mark in ")}]":
      depth -= 1
      if depth <= 0:
        return text[start : match.start() + (depth == 0)]
    elif depth == 0:
      return text[start : match.start()]
  return text[start:]
