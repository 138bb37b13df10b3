"""Rounds of a loop are told from its scalars, or honestly not."""

import pytest

from specialize_jax.tpu import hlo_text, trip_counts
from tests.tpu import hlo_text_test

_TEXT = hlo_text_test._TEXT


def _rounds(text):
  module = hlo_text.parse(text)
  main = module.computations[module.entry]
  return trip_counts.trip_count(module, main, main.instructions["loop"])


def test_a_counter_is_run_from_its_start_to_its_limit():
  assert _rounds(_TEXT) == 10  # from 2 to 12


@pytest.mark.parametrize(
  ("old", "new", "rounds"),
  [
    ("%one = s32[] constant(1)", "%one = s32[] constant(3)", 4),
    ("direction=LT", "direction=LE", 11),
    ("%limit = s32[] constant(12)", "%limit = s32[] constant(0)", 0),
    ('{"a":{"b":"}"}}', '{"known_trip_count":{"n":"7"}}', 7),
  ],
)
def test_steps_directions_and_what_the_compiler_knows(old, new, rounds):
  assert _rounds(_TEXT.replace(old, new)) == rounds


def test_a_limit_that_is_computed_is_not_guessed():
  unknown = _TEXT.replace("%zero = s32[] constant(2)", "%zero = s32[] custom()")
  assert _rounds(unknown) is None
