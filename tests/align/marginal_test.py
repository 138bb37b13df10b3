"""What the teacher's tree says of each position; hand-worked, and its laws."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testdata import alignment_oracle as oracle
from testdata import real_files, trees

from specialize_jax.align import targets

SETTINGS = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def marginal(tokens, student=None):
  text = b"".join(token.spelling for token in tokens).decode()
  return trees.align(tokens, text, student or real_files.t5(), "marginal")


def named(aligned, student=None):
  """The targets as {piece: probability} a position."""
  student = student or real_files.t5()
  return [
    {student.id_to_piece(index): prob for index, prob in target.items()}
    for target in trees.probs_by_id(aligned)
  ]


@SETTINGS
@given(trees.samples(), st.booleans())
def test_likelihood_is_conserved(drawn, real):
  text, tokens = drawn
  student = real_files.t5() if real else trees.tiny_student()
  aligned = trees.align(tokens, text, student, "marginal")
  if isinstance(aligned, targets.Rejected):
    return
  if (aligned.kinds_T == targets.Kind.MASKED).any():
    return  # what has no target says nothing of its text
  product = math.prod(
    target[index]
    for index, target in zip(
      aligned.ids_T.tolist(), trees.probs_by_id(aligned), strict=True
    )
  )
  laid = oracle.lay(tokens, text, student)
  leaves = oracle.leaves_of(laid, oracle.steps_of(laid, student), student)
  # A leaf that has all of the text's tokens is that text to the student.
  whole = sum(
    math.exp(leaf.log_weight)
    for _, leaf in leaves
    if leaf.position == len(laid.ids)
  )
  assert product == pytest.approx(whole, rel=1e-6)
  every = math.prod(math.exp(token.log_prob) for token in tokens)
  visible = math.prod(
    math.exp(token.log_prob)
    for token, blank in zip(tokens, laid.blank, strict=True)
    if not blank
  )
  same_text = whole - math.exp(leaves[0][1].log_weight)
  assert every * (1 - 1e-6) <= product <= (visible + same_text) * (1 + 1e-6)


@pytest.mark.parametrize(
  ("sampled", "other", "pieces"),
  [
    ("+", " +", ("\u258148", "+", "24")),
    (" +", "+", ("\u258148", "\u2581+", "24")),
  ],
)
def test_an_operator_has_no_mass_of_the_one_spaced_otherwise(
  sampled, other, pieces
):
  tokens = [
    trees.token("48", 1.0),
    trees.token(sampled, 0.5, **{other: 0.25}),
    trees.token("24", 1.0),
  ]
  aligned = marginal(tokens)
  assert aligned.pieces == pieces
  marked = {"+": "+", " +": "\u2581+"}
  assert named(aligned)[1] == pytest.approx(
    {marked[sampled]: 0.5, marked[other]: 0.25}
  )


def test_white_space_between_two_words_is_one_text_however_it_is_written():
  tokens = [
    trees.token("May", 1.0),
    trees.token("\n", 0.5, **{" ": 0.25, "\n\n": 0.125, ".": 0.0625}),
    trees.token("If", 0.5, **{"In": 0.25}),
  ]
  assert named(marginal(tokens)) == [
    pytest.approx({"\u2581May": 1.0}),
    pytest.approx({"\u2581If": 0.4375, "\u2581In": 0.21875, ".": 0.0625}),
  ]


def test_nothing_in_place_of_white_space_joins_the_words():
  tokens = [
    trees.token("May", 1.0),
    trees.token("\n", 0.5, **{"": 0.25}),
    trees.token("If", 1.0),
  ]
  # "May" and nothing is known to that place only: its mass is missing after.
  assert named(marginal(tokens))[1] == pytest.approx({"\u2581If": 0.5})
  tokens[2] = trees.token(" If", 1.0)
  assert named(marginal(tokens))[1] == pytest.approx({"\u2581If": 0.75})


def test_a_visible_token_keeps_its_own_probability():
  # " If" after a newline is the same text so far, and what follows is unknown.
  tokens = [
    trees.token("\n", 1.0),
    trees.token("If", 0.5, **{" If": 0.25}),
    trees.token(" she", 1.0),
  ]
  assert named(marginal(tokens)) == [
    pytest.approx({"\u2581If": 0.75}),
    pytest.approx({"\u2581she": 0.5 / 0.75}),
  ]


def test_what_the_student_cannot_spell_has_no_target_and_no_mass():
  student = real_files.t5()
  tokens = [
    trees.token("x", 1.0),
    trees.token("{", 0.5, **{"y": 0.25, "}": 0.125}),
    trees.token("2", 0.5, **{"~": 0.25, "3": 0.125}),
  ]
  aligned = marginal(tokens)
  assert aligned.pieces == ("\u2581", "x", "<unk>", "2")
  assert aligned.kinds_T[2] == targets.Kind.MASKED
  assert aligned.mask_T.tolist() == [1, 1, 0, 1]
  assert named(aligned)[2] == {}
  assert all(student.unknown_id not in t for t in trees.probs_by_id(aligned))
  # "{" and "}" are of no student token, and neither is "~" after them; nor
  # has the masked position a place for "y".
  assert aligned.mass_offered == pytest.approx(1.0 + 0.875 + 0.875)
  assert aligned.mass_kept == pytest.approx(1.0 + 0.625)


def test_a_candidate_that_resegments_parts_where_its_own_piece_begins():
  # T5 has "\u258112" and "\u258113": the candidate for " 1" + "2" is "13".
  student = real_files.t5()
  assert student.encode("x 12")[1][-1] == "\u258112"
  tokens = [
    trees.token("x", 1.0),
    trees.token(" 1", 0.5, **{" 2": 0.25}),
    trees.token("2", 0.5, **{"3": 0.5}),
  ]
  aligned = marginal(tokens)
  last = trees.probs_by_id(aligned)[-1]
  assert last == pytest.approx(
    {
      student.piece_id("\u258112"): 0.25,
      student.piece_id("\u258113"): 0.25,
      student.piece_id("\u25812"): 0.25,
    }
  )


def test_a_one_to_one_position_gets_the_papers_rule():
  student = real_files.t5()
  tokens = [
    trees.token("Nat", 0.5, **{"In": 0.25, "She": 0.125}),
    trees.token("alia", 0.75, **{"han": 0.125}),
    trees.token(" sold", 0.5, **{" had": 0.25, ",": 0.125}),
  ]
  aligned = marginal(tokens)
  assert aligned.pieces[-1] == "\u2581sold"
  assert trees.probs_by_id(aligned)[-1] == pytest.approx(
    {
      student.piece_id("\u2581sold"): 0.5,
      student.piece_id("\u2581had"): 0.25,
      student.piece_id(","): 0.125,
    }
  )


def test_a_leaf_that_goes_on_after_the_end_is_the_same_text():
  tokens = [
    trees.token(".", 0.5),
    trees.token(" ", 0.5),
    trees.token(" ", 0.25, **{".": 0.5}),
  ]
  student = trees.tiny_student()
  expected = oracle.align(tokens, ".  ", student, "marginal")
  found = named(marginal(tokens, student), student)
  assert found == [pytest.approx(one) for one in named(expected, student)]


def test_rounding_above_one_is_scaled():
  tokens = [trees.token("May", 0.75, June=0.5)]
  assert named(marginal(tokens)) == [
    pytest.approx({"\u2581May": 0.6, "\u2581June": 0.4})
  ]


def test_a_long_text_does_not_underflow():
  student = trees.tiny_student()
  text = " ".join(["Ann has 12 red apples"] * 200)
  spellings = [text[i : i + 3].encode() for i in range(0, len(text), 3)]
  tokens = [
    targets.TeacherToken(
      spelling=spelling, log_prob=math.log(0.1), top=((b"z", math.log(0.2)),)
    )
    for spelling in spellings
  ]
  aligned = trees.align(tokens, text, student, "marginal")
  found = trees.probs_by_id(aligned)
  log_product = sum(
    math.log(target[index])
    for index, target in zip(aligned.ids_T.tolist(), found, strict=True)
  )
  assert log_product == pytest.approx(len(tokens) * math.log(0.1), rel=1e-9)


def test_a_sampled_token_of_no_probability_is_rejected():
  tokens = [targets.TeacherToken(spelling=b"a", log_prob=-math.inf, top=())]
  rejected = marginal(tokens, trees.tiny_student())
  assert rejected == targets.Rejected(
    "the teacher gives a sampled token probability 0"
  )
