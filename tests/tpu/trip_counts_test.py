"""Trip counts are computed from a loop's scalars, or reported as unknown."""

import re

import pytest

from specialize_jax.tpu import hlo_text, trip_counts
from tests.tpu import hlo_text_test

_TEXT = hlo_text_test._TEXT


def _trip_count(text):
  module = hlo_text.parse(text)
  main = module.computations[module.entry]
  return trip_counts.trip_count(module, main, main.instructions["loop"])


def test_a_counter_is_run_from_its_start_to_its_limit():
  assert _trip_count(_TEXT) == 10  # from 2 to 12


@pytest.mark.parametrize(
  ("old", "new", "count"),
  [
    ("%one = s32[] constant(1)", "%one = s32[] constant(3)", 4),
    ("direction=LT", "direction=LE", 11),
    ("%limit = s32[] constant(12)", "%limit = s32[] constant(0)", 0),
    ('{"a":{"b":"}"}}', '{"known_trip_count":{"n":"7"}}', 7),
  ],
)
def test_steps_directions_and_what_the_compiler_knows(old, new, count):
  assert _trip_count(_TEXT.replace(old, new)) == count


def test_the_trip_count_is_unknown_if_the_first_value_is():
  unknown = _TEXT.replace("%zero = s32[] constant(2)", "%zero = s32[] custom()")
  assert _trip_count(unknown) is None


_LESS = "ROOT %less = pred[] compare(%now, %limit), direction=LT"
_NEXT = "%next = s32[] add(%count, %one)"


def _with_lines(old, *lines):
  """The program with lines in place of one."""
  assert _TEXT.count(old) == 1
  return _TEXT.replace(old, "\n  ".join(lines))


@pytest.mark.parametrize(
  ("old", "lines", "count"),
  [
    (
      _LESS,
      [
        "%more = pred[] compare(%now, %limit), direction=GE",
        "ROOT %less = pred[] not(%more)",
      ],
      10,
    ),
    (
      _LESS,
      [
        "%twice = s32[] add(%now, %now)",
        "ROOT %less = pred[] compare(%twice, %limit), direction=LT",
      ],
      4,
    ),
    (
      _NEXT,
      [
        "%is_long = pred[] constant(true)",
        "%three = s32[] constant(3)",
        "%step = s32[] select(%is_long, %three, %one)",
        "%next = s32[] add(%count, %step)",
      ],
      4,
    ),
    (
      _NEXT,
      [
        "%is_long = pred[] constant(false)",
        "%three = s32[] constant(3)",
        "%step = s32[] select(%is_long, %three, %one)",
        "%next = s32[] add(%count, %step)",
      ],
      10,
    ),
  ],
)
def test_not_add_and_select_are_evaluated(old, lines, count):
  assert _trip_count(_with_lines(old, *lines)) == count


def test_a_condition_that_was_fused_is_looked_into():
  fused = """%fused (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %is_less = pred[] compare(%a, %b), direction=LT
}

ENTRY"""
  text = _with_lines(
    _LESS, "ROOT %less = pred[] fusion(%now, %limit), kind=kLoop, calls=%fused"
  )
  assert _trip_count(text.replace("ENTRY", fused)) == 10


_FUSED_BODY = """HloModule jit_f

%fused (p: s32[], q: s32[]) -> (s32[], s32[]) {
  %p = s32[] parameter(0)
  %q = s32[] parameter(1)
  %next = s32[] add(%p, %q)
  ROOT %tuple = (s32[], s32[]) tuple(%next, %q)
}

%body (param: (s32[], s32[])) -> (s32[], s32[]) {
  %param = (s32[], s32[]) parameter(0)
  %count = s32[] get-tuple-element(%param), index=0
  %step = s32[] get-tuple-element(%param), index=1
  ROOT %both = (s32[], s32[]) fusion(%count, %step), kind=kLoop, calls=%fused
}

%condition (param.1: (s32[], s32[])) -> pred[] {
  %param.1 = (s32[], s32[]) parameter(0)
  %limit = s32[] constant(12)
  %now = s32[] get-tuple-element(%param.1), index=0
  %end = s32[] get-tuple-element(%param.1), index=1
  %last = s32[] subtract(%limit, %end)
  ROOT %less = pred[] compare(%now, %last), direction=LE
}

ENTRY %main () -> s32[] {
  %zero = s32[] constant(2)
  %two = s32[] constant(2)
  %start = (s32[], s32[]) tuple(%zero, %two)
  %loop = (s32[], s32[]) while(%start), condition=%condition, body=%body
  ROOT %out = s32[] get-tuple-element(%loop), index=0
}
"""


def test_a_body_that_was_fused_as_a_whole_is_looked_into():
  assert _trip_count(_FUSED_BODY) == 5  # 2, 4, 6, 8, 10


def test_a_fused_body_that_is_not_evaluated_is_not_guessed():
  """It holds an array too, and the condition reads what follows that."""
  text = _FUSED_BODY.replace("(s32[], s32[]) fusion", "(f32[8], s32[]) fusion")
  for name in ("now", "out"):
    text = re.sub(rf"(%{name} .*)index=0", r"\1index=1", text)
  assert _trip_count(text) is None


@pytest.mark.parametrize(
  ("old", "lines"),
  [
    (_NEXT, ["%next = s32[] divide(%count, %one)"]),
    ("%one = s32[] constant(1)", ["%one = f32[] constant(1)"]),
    ("%one = s32[] constant(1)", ["%one = s8[] constant(1)"]),
    ("%limit = s32[] constant(12)", ["%limit = s32[1]{0} constant({...})"]),
  ],
)
def test_what_is_not_evaluated_is_not_guessed(old, lines):
  assert _trip_count(_with_lines(old, *lines)) is None


def test_a_loop_over_one_number_is_not_guessed():
  """The compiler makes tuples; a state without one is not followed."""
  text = """HloModule jit_f

%body (count: s32[]) -> s32[] {
  %count = s32[] parameter(0)
  %one = s32[] constant(1)
  ROOT %next = s32[] add(%count, %one)
}

%condition (now: s32[]) -> pred[] {
  %now = s32[] parameter(0)
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%now, %limit), direction=LT
}

ENTRY %main () -> s32[] {
  %zero = s32[] constant(2)
  ROOT %loop = s32[] while(%zero), condition=%condition, body=%body
}
"""
  assert _trip_count(text) is None


def test_a_loop_without_an_end_is_given_up(monkeypatch):
  monkeypatch.setattr(trip_counts, "_MAX_TRIP_COUNT", 50)
  endless = _with_lines("%one = s32[] constant(1)", "%one = s32[] constant(0)")
  assert _trip_count(endless) is None
  assert _trip_count(_TEXT) == 10
