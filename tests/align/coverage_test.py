"""Coverage counts add up, over positions and over samples."""

from testdata import trees

from specialize_jax import align
from specialize_jax.align import coverage


def cover(spellings, mode="whitespace"):
  text = b"".join(spellings).decode()
  aligner = align.Aligner(trees.tiny_student(), mode=mode)
  sample = trees.plain_tokens(spellings), text
  return coverage.Coverage.of_batch(aligner.align([sample]))


def test_kinds_of_positions_add_up_to_all():
  for mode in align.MODES:
    counted = cover([b"Ann", b" has", b" 1", b"2 apples", b"{"], mode)
    kinds = counted.one_to_one + counted.in_chunks + counted.one_hot
    assert kinds + counted.masked == counted.positions > 0
    assert counted.masked == counted.report()["masked"] == 1
    assert 0 < counted.teacher_mass_kept <= 1
    assert counted.characters_lost == 1
    assert counted.samples_with_lost_characters == 1


def test_coverage_of_two_samples_is_the_sum():
  one, two = cover([b"Ann", b" has"]), cover([b"Bob sold"])
  total = one + two
  assert total.samples == 2
  assert total.positions == one.positions + two.positions
  assert total.teacher_mass == one.teacher_mass + two.teacher_mass
  assert total + coverage.Coverage() == total


def test_rejected_samples_are_counted_by_reason():
  a = coverage.Coverage(samples=1, rejected={"a": 1})
  b = coverage.Coverage(samples=1, rejected={"b": 1})
  total = a + b + a
  assert total.rejected == {"a": 2, "b": 1}
  assert total.samples == 3
  assert total.positions == 0
  assert total.teacher_mass_kept == 0.0


def test_white_space_tokens_offer_no_mass():
  assert cover([b"Ann", b"\n", b"has"]).teacher_mass_offered == 1.0
