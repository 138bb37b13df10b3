"""Each instruction counts for the part of the network that it comes from."""

import pytest
from matplotlib import figure as mpl_figure

from specialize_jax import errors
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


def _planned(mesh, step="train", **changes):
  """A row of a plan that fits, as `plan.plan` returns it."""
  return {
    "step": step,
    "mesh": mesh,
    "fits": True,
    "advice": "",
    "parameters_gib": 1.0,
    "optimizer_gib": 0.5,
    "activations_gib": 2.0,
    "hbm_gib": 3.5,
    "hbm_limit_gib": 15.75,
    "flops": 2e12,
    "hbm_bytes": 3e9,
    "interconnect_bytes": 0.0,
    "interconnect_bytes_by_kind": {},
    "compute_seconds": 0.25,
    "memory_seconds": 0.125,
    "interconnect_seconds": 0.0,
    "step_seconds": 0.25,
    "bound_by": "compute",
    "mfu": 0.5,
    "examples_per_second": 32.0,
    "hours": 1.0,
    "compile_seconds": 3.0,
    "breakdown": None,
  } | changes


# What does not fit has no time, and is not broken down.
_TOO_LARGE = dict.fromkeys(
  (
    "flops", "hbm_bytes", "interconnect_bytes", "interconnect_bytes_by_kind",
    "compute_seconds", "memory_seconds", "interconnect_seconds",
    "step_seconds", "bound_by", "mfu", "examples_per_second", "hours",
  )
) | {"fits": False, "hbm_gib": 20.0, "activations_gib": 18.5}  # fmt: skip


def _cost(part, hbm_bytes):
  costs = {"flops": 1e12, "interconnect_bytes": 0.0}
  return {"part": part, "pass": "forward", "hbm_bytes": hbm_bytes} | costs


def test_a_plan_of_two_steps_names_both():
  rows = [_planned("fsdp=4"), _planned("fsdp=2,model=2", "decode")]
  lines = plan_view.terminal(rows, "A plan").splitlines()
  assert lines[1].split()[:2] == ["step", "mesh"]
  assert [line.split()[:2] for line in lines[2:]] == [
    ["train", "fsdp=4"],
    ["decode", "fsdp=2,model=2"],
  ]
  (heading, row) = plan_view.terminal(rows[:1], "A plan").splitlines()[1:]
  assert heading.split()[0] == "mesh"
  assert row.split()[0] == "fsdp=4"


def test_a_mesh_that_does_not_fit_has_no_parts():
  parts = [_cost("attention", 1e9), _cost("loss", 2e9)]
  large = _planned("data=4", **_TOO_LARGE)
  text = plan_view.breakdown([large, _planned("fsdp=4", breakdown=parts)])
  assert "data=4" not in text
  assert "train fsdp=4: HBM GB a chip, by part" in text
  (row,) = (line for line in text.splitlines() if "attention" in line)
  assert row.split() == ["attention", "1.00", "1.00", "33%", "1.00", "0.00"]
  assert plan_view.breakdown([large]) == ""


def test_a_figure_shows_the_parts_of_what_fits_and_says_what_does_not():
  rows = [
    _planned("data=4", **_TOO_LARGE),
    _planned("fsdp=4", breakdown=[_cost("attention", 1e9), _cost("loss", 2e9)]),
    _planned("fsdp=4", "decode", breakdown=[_cost("attention", 4e9)]),
  ]
  figure = mpl_figure.Figure()
  plan_view._draw(figure, rows, "A plan")
  memory, time, traffic = figure.axes
  assert [label.get_text() for label in memory.get_yticklabels()] == [
    "train data=4",
    "train fsdp=4",
    "decode fsdp=4",
  ]
  assert [one.get_text() for one in memory.texts] == [
    " 20.0, too much",
    " 3.5",
    " 3.5",
  ]
  assert sorted(one.get_text() for one in time.texts) == [
    " 0.250 s, MFU 50%",
    " 0.250 s, MFU 50%",
    " does not fit",
  ]
  assert traffic.get_xlabel() == "GB of HBM traffic per chip"
  bars = {
    bar.get_label(): [(one.get_x(), one.get_width()) for one in bar]
    for bar in traffic.containers
  }
  assert bars == {
    "attention": [(0.0, 0.0), (0.0, 1.0), (0.0, 4.0)],
    "loss": [(0.0, 0.0), (1.0, 2.0), (4.0, 0.0)],
  }
  plan_view._draw(figure := mpl_figure.Figure(), rows[:2], "A plan of a step")
  assert [one.get_text() for one in figure.axes[0].get_yticklabels()] == [
    "data=4",
    "fsdp=4",
  ]


def test_a_figure_of_another_kind_is_refused(tmp_path):
  path = tmp_path / "plan.pdf"
  with pytest.raises(errors.UserError) as caught:
    plan_view.write_figure(path, [_planned("fsdp=4")], "A plan")
  assert str(caught.value) == (
    f"--figure={path}: expected a name that ends in .png or .svg."
  )
  assert not path.exists()
