"""Each instruction counts for the part of the network that it comes from."""

import pytest

from specialize_jax.reports import plan_view
from specialize_jax.tpu import breakdown, hlo_cost, hlo_text

_STEP = "jit(train_step)"
_LAYER = "EncoderDecoder.encode/encoder/while/body/closed_call/layers"


def _instruction(op_name, opcode="fusion"):
  return hlo_text.Instruction(
    name="it",
    opcode=opcode,
    shape=(),
    operands=(),
    called=(),
    text="",
    attributes="",
    op_name=op_name,
    parts=(1,),
  )


@pytest.mark.parametrize(
  ("op_name", "expected"),
  [
    (
      f"{_STEP}/jvp(EncoderDecoder.hidden)/{_LAYER}/attention/forward_kernel",
      ("attention", "forward"),
    ),
    (
      f"{_STEP}/transpose(jvp(EncoderDecoder.hidden))/{_LAYER}/attention/out/"
      "dot_general",
      ("projections", "backward"),
    ),
    (
      f"{_STEP}/transpose(jvp(EncoderDecoder.hidden))/{_LAYER}/"
      "rematted_computation/mlp/mul",
      ("feed-forward", "recomputed"),
    ),
    (
      f"{_STEP}/jvp(EncoderDecoder.hidden)/{_LAYER}/pre_mlp_layer_norm/mul",
      ("norms, dropout, residual", "forward"),
    ),
    (
      f"{_STEP}/jvp(EncoderDecoder.hidden)/EncoderDecoder.encode/encoder/"
      "while/body/dynamic_slice",
      ("slices and copies", "forward"),
    ),
    (
      f"{_STEP}/jvp(EncoderDecoder.hidden)/token_embedder/gather",
      ("embedding", "forward"),
    ),
    (f"{_STEP}/transpose(jvp())/while/body/dot_general", ("loss", "backward")),
    (f"{_STEP}/sqrt", ("optimizer", "update")),
    ("", ("other", "update")),
  ],
)
def test_a_path_of_modules_tells_part_and_pass(op_name, expected):
  assert breakdown.part_and_pass(_instruction(op_name)) == expected


def test_copies_between_memories_are_moves_whatever_they_come_from():
  part, _ = breakdown.part_and_pass(_instruction("", "copy-start"))
  assert part == "slices and copies"


_PROGRAM = f"""HloModule step

%body (carry: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {{
  %carry = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[8,128] get-tuple-element(%carry), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %w = f32[128,128] custom-call(), custom_call_target="AllocateBuffer"
  %y = f32[8,128] dot(%x, %w), lhs_contracting_dims={{1}}, \
rhs_contracting_dims={{0}}, metadata={{op_name="{_STEP}/jvp()/mlp/wo/dot"}}
  ROOT %out = (s32[], f32[8,128]) tuple(%next, %y)
}}

%cond (carry: (s32[], f32[8,128])) -> pred[] {{
  %carry = (s32[], f32[8,128]) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {{
  %x = f32[8,128] parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]) tuple(%zero, %x)
  %loop = (s32[], f32[8,128]) while(%start), condition=%cond, body=%body
  %y = f32[8,128] get-tuple-element(%loop), index=1
  ROOT %z = f32[8,128] sqrt(%y), metadata={{op_name="{_STEP}/sqrt"}}
}}
"""


def test_the_parts_add_up_to_the_whole_and_are_shown():
  module = hlo_text.parse(_PROGRAM)
  rows = breakdown.rows(module, num_devices=1)
  whole = hlo_cost.cost(module, num_devices=1)
  assert whole.unknown_loops == 0
  assert sum(row["hbm_bytes"] for row in rows) == whole.hbm_bytes
  assert sum(row["flops"] for row in rows) == whole.flops
  (mlp,) = (row for row in rows if row["part"] == "feed-forward")
  assert mlp["flops"] == 3 * 2 * 8 * 128 * 128
  assert mlp["hbm_bytes"] == 3 * 4 * (2 * 8 * 128 + 128 * 128)
  text = plan_view.breakdown(
    [
      {
        "step": "train",
        "mesh": "fsdp=4",
        "hbm_bytes": whole.hbm_bytes,
        "breakdown": rows,
      }
    ]
  )
  assert "train fsdp=4: HBM GB a chip, by part" in text
  assert [line.split()[0] for line in text.splitlines()[2:]] == [
    "feed-forward", "optimizer", "other", "all",
  ]  # fmt: skip
