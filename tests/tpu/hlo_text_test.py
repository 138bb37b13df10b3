"""The text of a program is read line by line, layouts and all."""

import re

import pytest

from specialize_jax.tpu import hlo_cost, hlo_text

_TEXT = """HloModule jit_f, is_scheduled=true

%body (param: (s32[], bf16[8,100])) -> (s32[], bf16[8,100]) {
  %param = (s32[]{:T(128)}, /*index=1*/bf16[8,100]{1,0:T(8,128)(2,1)S(1)}) \
parameter(0)
  %one = s32[] constant(1)
  %count = s32[]{:T(128)} get-tuple-element(%param), index=0
  %next = s32[] add(%count, %one)
  %rest = bf16[8,100]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%param), index=1
  ROOT %tuple = (s32[], bf16[8,100]{1,0:T(8,128)(2,1)S(1)}) tuple(%next, %rest)
}

%condition (param.1: (s32[], bf16[8,100])) -> pred[] {
  %param.1 = (s32[], bf16[8,100]{1,0}) parameter(0)
  %limit = s32[] constant(12)
  %now = s32[] get-tuple-element(%param.1), index=0
  ROOT %less = pred[] compare(%now, %limit), direction=LT
}

ENTRY %main (x: bf16[8,100]) -> bf16[8,100] {
  %x = bf16[8,100]{1,0:T(8,128)(2,1)} parameter(0), \
metadata={op_name="calls=%no, {x}" stack_frame_id=1}
  %zero = s32[] constant(2)
  %start = (s32[], bf16[8,100]{1,0}) tuple(%zero, %x)
  %loop = (s32[], bf16[8,100]{1,0}) while(%start), condition=%condition, \
body=%body, backend_config={"a":{"b":"}"}}
  ROOT %out = bf16[8,100]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_instructions_operands_and_computations_are_read():
  module = hlo_text.parse(_TEXT)
  assert module.entry == "main"
  assert set(module.computations) == {"body", "condition", "main"}
  main = module.computations["main"]
  assert main.root == "out"
  assert main.parameters == ("x",)
  loop = main.instructions["loop"]
  assert (loop.opcode, loop.operands) == ("while", ("start",))
  assert loop.called == ("condition", "body")
  assert loop.backend_config == {"a": {"b": "}"}}
  assert [len(a.dims) for a in loop.shape] == [0, 2]
  x = main.instructions["x"]
  assert x.called == ()
  assert x.op_name == "calls=%no, {x}"
  assert [user.name for user in main.users["start"]] == ["loop"]


def test_an_element_of_a_tuple_is_an_operand_of_its_own():
  """As jaxlib 0.12 writes it; before, it was an instruction with a line."""
  short = _TEXT
  for whole, name, index in (
    ("param", "count", 0),
    ("param", "rest", 1),
    ("param.1", "now", 0),
  ):
    line = re.search(rf"\n  %{name} = .*? get-tuple-element\(.*", short).group()
    short = short.replace(line, "").replace(f"%{name}", f"%{whole}#{index}")
  assert short.count("#") == 3
  long, short = hlo_text.parse(_TEXT), hlo_text.parse(short)
  body = short.computations["body"]
  (array,) = body.instructions["param#1"].shape
  assert array.padded_bytes == 8 * 128 * 2
  assert [user.name for user in body.users["param"]] == ["param#0", "param#1"]
  costs = [hlo_cost.cost(module, num_devices=1) for module in (long, short)]
  assert costs[0] == costs[1]
  assert costs[1].unknown_loops == 0


def test_a_tile_is_padded_and_other_memory_is_no_hbm():
  body = hlo_text.parse(_TEXT).computations["body"]
  _, rest = body.instructions["param"].shape
  assert rest.num_bytes == 8 * 100 * 2
  assert rest.padded_bytes == 8 * 128 * 2
  assert rest.hbm_bytes == 0
  x = hlo_text.parse(_TEXT).computations["main"].instructions["x"].shape[0]
  assert x.hbm_bytes == 8 * 128 * 2


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo_text.parse("HloModule x\n")


def test_a_line_that_is_no_instruction_is_named():
  with pytest.raises(ValueError, match="body: cannot read .*what is this"):
    hlo_text.parse(_TEXT.replace("%one = s32[] constant(1)", "what is this"))
