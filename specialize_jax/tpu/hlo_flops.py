"""Flops of the instructions that a TPU's matrix unit runs.

The TPU compiler rewrites most matmuls as convolutions, with batches as dilated
windows: counted are the pairs of elements that are multiplied.
"""

import functools
import math
import re
from collections.abc import Mapping

import numpy as np

from specialize_jax.tpu import hlo_text


def flops(
  computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """Returns the flops of a matmul or convolution; 0 for the rest."""
  if instruction.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (
    computation.instructions[operand].shape[0]
    for operand in instruction.operands[:2]
  )
  out = instruction.shape[0]
  if instruction.opcode == "dot":
    contracted = instruction.numbers("lhs_contracting_dims")
    return 2.0 * out.num_elements * math.prod(left.dims[i] for i in contracted)
  return _convolution_flops(instruction, left, right, out)


def _convolution_flops(
  instruction: hlo_text.Instruction,
  left: hlo_text.Array,
  right: hlo_text.Array,
  out: hlo_text.Array,
) -> float:
  """Returns two flops for each pair of multiplied elements, without padding."""
  labels = re.match(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels"))
  lhs, rhs, result = labels.groups()
  window = instruction.attribute("window") or ""
  spatial = sorted(label for label in lhs if label.isdigit())
  pairs = 1
  for place, label in enumerate(spatial):
    pairs *= _meeting_pairs(
      num_inputs=left.dims[lhs.index(label)],
      num_taps=right.dims[rhs.index(label)],
      num_outputs=out.dims[result.index(label)],
      window=_window(window, place),
    )
  features = left.dims[lhs.index("f")] // _number(
    instruction, "feature_group_count"
  )
  batch = left.dims[lhs.index("b")] // _number(instruction, "batch_group_count")
  return 2.0 * batch * features * right.dims[rhs.index("o")] * pairs


def _number(instruction: hlo_text.Instruction, name: str) -> int:
  return (instruction.numbers(name) or (1,))[0]


@functools.cache
def _window(text: str, place: int) -> Mapping[str, int]:
  """Returns the fields of a window in one spatial dimension."""
  found = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
  for field, value in re.findall(r"(\w+)=([\w\-]+)", text):
    part = re.split(r"(?<=\d)x", value)[place]
    if field == "pad":
      part = part.split("_")[0]
    found[field] = int(part)
  return found


def _meeting_pairs(
  *,
  num_inputs: int,
  num_taps: int,
  num_outputs: int,
  window: Mapping[str, int],
) -> int:
  """Returns the number of (output, tap) pairs that read an input element."""
  taps = np.arange(num_taps)[None, :] * window["rhs_dilate"]
  outputs = np.arange(num_outputs)[:, None] * window["stride"]
  places = outputs + taps - window["pad"]
  dilation = window["lhs_dilate"]
  inside = (places >= 0) & (places < (num_inputs - 1) * dilation + 1)
  return int(np.count_nonzero(inside & (places % dilation == 0)))
