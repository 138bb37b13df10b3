"""The cost of a step by part of the network.

The compiler keeps for every instruction the path of modules and transformations
that it comes from (`op_name`), such as
`jit(train_step)/transpose(jvp(EncoderDecoder.hidden))/.../mlp/wo/dot_general`.
The bytes of a fusion are counted for the part of its last instruction.
"""

from collections.abc import Sequence

from specialize_jax.tpu import hlo_cost, hlo_text

PARTS = (
  "attention",
  "projections",
  "feed-forward",
  "norms, dropout, residual",
  "embedding",
  "loss",
  "optimizer",
  "slices and copies",
  "other",
)
PASSES = ("forward", "recomputed", "backward", "update")

_ATTENTIONS = {"attention", "self_attention", "encoder_decoder_attention"}
_PROJECTIONS = {"query", "key", "value", "out"}
# Slices and updates of the stacked arrays of scanned layers.
_MOVES = {
  "copy", "copy-start", "slice-start", "dynamic-slice", "dynamic-update-slice",
}  # fmt: skip
_MOVED = {"dynamic_slice", "dynamic_update_slice", "copy"}


def rows(
  module: hlo_text.Module, *, num_devices: int, unknown_trip_count: int = 1
) -> list[dict[str, object]]:
  """Returns the cost of a program by part and pass.

  Args:
    module: the program, from `hlo_text.parse`.
    num_devices: number of devices that run it.
    unknown_trip_count: see `hlo_cost.cost`.

  Returns:
    One row for each part and pass with a cost above 0, in the order of `PARTS`
    and `PASSES`: part, pass, flops, hbm_bytes and interconnect_bytes of one
    chip. Their sums are those of `hlo_cost.cost`.
  """
  costs = hlo_cost.cost_by(
    lambda instruction: "|".join(part_and_pass(instruction)),
    module,
    num_devices=num_devices,
    unknown_trip_count=unknown_trip_count,
  )
  found = []
  for part in PARTS:
    for one_pass in PASSES:
      cost = costs.get(f"{part}|{one_pass}")
      if cost is not None:
        found.append(
          {
            "part": part,
            "pass": one_pass,
            "flops": cost.flops,
            "hbm_bytes": cost.hbm_bytes,
            "interconnect_bytes": sum(cost.sent_bytes().values()),
          }
        )
  return found


def part_and_pass(instruction: hlo_text.Instruction) -> tuple[str, str]:
  """Returns the one of `PARTS` and of `PASSES` that an instruction is in."""
  path = instruction.op_name.split("/")
  return _part(instruction, path), _pass(path)


def _part(instruction: hlo_text.Instruction, path: Sequence[str]) -> str:
  names = set(path)
  if names & _ATTENTIONS:
    return "projections" if names & _PROJECTIONS else "attention"
  if "mlp" in names:
    return "feed-forward"
  if "token_embedder" in names:
    return "embedding"
  if instruction.opcode in _MOVES or path[-1] in _MOVED:
    return "slices and copies"
  if "layers" in names or any("norm" in name for name in names):
    return "norms, dropout, residual"
  if not instruction.op_name:
    return "other"
  if any("EncoderDecoder" in name for name in names):
    return "norms, dropout, residual"
  return "loss" if "jvp(" in instruction.op_name else "optimizer"


def _pass(path: Sequence[str]) -> str:
  if "rematted_computation" in path:
    return "recomputed"
  if any(name.startswith("transpose(") for name in path):
    return "backward"
  if any("jvp(" in name or "EncoderDecoder" in name for name in path):
    return "forward"
  return "update"
