"""Each mode's rule on hand-worked samples, and the laws of all of them."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testdata import real_files, trees

from specialize_jax import align as align_lib
from specialize_jax.align import targets

SETTINGS = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MODES = st.sampled_from(align_lib.MODES)


def align(tokens, mode, student=None):
  text = b"".join(token.spelling for token in tokens).decode()
  return trees.align(tokens, text, student or real_files.t5(), mode)


def named(aligned, student=None):
  """The targets as {piece: probability} a position."""
  student = student or real_files.t5()
  return [
    {
      student.id_to_piece(index): round(math.exp(log_prob), 9)
      for index, log_prob in zip(ids, log_probs, strict=True)
      if index != 0
    }
    for ids, log_probs in zip(
      aligned.top_ids_TC.tolist(),
      aligned.top_log_probs_TC.tolist(),
      strict=True,
    )
  ]


def test_the_paper_gives_a_one_hot_target_at_a_line_start():
  aligned = align(
    [trees.token("If", 0.5, **{"She": 0.25}), trees.token(" she", 0.5)],
    "paper",
  )
  assert aligned.pieces == ("\u2581If", "\u2581she")
  assert named(aligned) == [{"\u2581If": 1.0}, {"\u2581she": 0.5}]
  assert aligned.mask_T.tolist() == [0, 1]


def test_the_paper_takes_the_first_of_equal_candidates():
  aligned = align(
    [trees.token("x", 0.5), trees.token(".", 0.5, **{",": 0.25, ".": 0.125})],
    "paper",
  )
  assert named(aligned)[-1] == {".": 0.5, ",": 0.25}


def test_whitespace_transfers_at_a_line_start():
  aligned = align(
    [
      trees.token("May", 0.5, **{"April": 0.25}),
      trees.token(".", 0.5, **{"\n": 0.25, ",": 0.125, " and": 0.125}),
      trees.token("\n", 0.5, **{" She": 0.5}),
      trees.token("If", 0.5, **{"She": 0.25, " The": 0.125, "xqzj": 0.125}),
    ],
    "whitespace",
  )
  assert aligned.pieces == ("\u2581May", ".", "\u2581If")
  assert named(aligned) == [
    {"\u2581May": 0.5, "\u2581April": 0.25},
    {".": 0.5, ",": 0.125, "\u2581and": 0.125},
    {"\u2581If": 0.5, "\u2581She": 0.25, "\u2581The": 0.125},
  ]
  assert aligned.mask_T.tolist() == [1, 1, 1]
  assert [(g.teacher, g.student) for g in aligned.groups] == [
    ((0,), (0,)),
    ((1,), (1,)),
    ((2,), ()),
    ((3,), (2,)),
  ]


def test_whitespace_lays_an_alternative_on_the_token_that_it_yields_there():
  aligned = align(
    [
      trees.token("x", 1.0),
      trees.token(
        " 48", 0.5, **{"48": 0.25, "  24": 0.0625, " 24": 0.0625, "24": 0.125}
      ),
    ],
    "whitespace",
  )
  # "48" and "24" would go on with the word, " 24" begins one.
  assert named(aligned)[-1] == {
    "\u258148": 0.5,
    "48": 0.25,
    "\u258124": 0.125,
    "24": 0.125,
  }


@pytest.mark.parametrize("mode", ["whitespace", "chunk"])
def test_an_alternative_that_yields_another_token_there_is_left_out(mode):
  # "Nat" + "ural" is "\u2581Natural" to T5, and "Nat" + "alie" is two pieces.
  aligned = align(
    [
      trees.token("Nat", 1.0),
      trees.token("alia", 0.5, **{"ural": 0.25, "alie": 0.125, "al": 0.0625}),
    ],
    mode,
  )
  assert aligned.pieces == ("\u2581Nat", "alia")
  assert named(aligned)[1] == {"alia": 0.5, "al": 0.0625}


def test_candidates_part_at_a_word_start_that_is_spelled_apart():
  aligned = align(
    [
      trees.token("as", 1.0),
      trees.token(" a", 0.5, **{" the": 0.25, ",": 0.125, " {": 0.125}),
    ],
    "whitespace",
  )
  assert aligned.pieces == ("\u2581as", "\u2581", "a")
  # T5 has no "{".
  assert named(aligned)[1:] == [
    {"\u2581": 0.5, "\u2581the": 0.25, ",": 0.125},
    {"a": 1.0},
  ]
  assert aligned.kinds_T.tolist() == [1, 1, 1]
  assert aligned.mass_kept == pytest.approx(1.0 + 0.875)


def test_once_a_word_has_begun_its_candidates_share_what_is_left():
  # T5 spells " b" as it spells " a": "\u2581", "b".
  aligned = align(
    [trees.token(" a", 0.375, **{" b": 0.125, " the": 0.25})], "whitespace"
  )
  assert named(aligned) == [
    {"\u2581": 0.5, "\u2581the": 0.25},
    {"a": 0.75, "b": 0.25},
  ]


def test_a_chunk_has_the_teachers_likelihood():
  tokens = [
    trees.token("Nat", 0.5),
    trees.token("al", 0.5, **{"an": 0.5}),
    trees.token("ia", 0.25),
    trees.token(" sold", 0.5, **{" had": 0.25}),
  ]
  whitespace = align(tokens, "whitespace")
  assert whitespace.pieces == ("\u2581Nat", "alia", "\u2581sold")
  assert named(whitespace)[1] == {"alia": 1.0}
  assert whitespace.kinds_T.tolist() == [1, 0, 1]
  aligned = align(tokens, "chunk")
  assert named(aligned) == [
    {"\u2581Nat": 0.5},
    {"alia": 0.125},
    {"\u2581sold": 0.5, "\u2581had": 0.25},
  ]
  assert aligned.kinds_T.tolist() == [1, 2, 1]
  one_to_many = align([trees.token("Natalia", 0.25)], "chunk")
  assert named(one_to_many) == [{"\u2581Nat": 0.5}, {"alia": 0.5}]


def test_what_the_student_cannot_spell_is_counted():
  aligned = align(
    [trees.token("{", 0.5, **{"x": 0.25}), trees.token("\u00bd", 0.5)],
    "whitespace",
  )
  assert aligned.characters_lost == 2
  assert aligned.pieces[:2] == ("\u2581", "<unk>")
  assert named(aligned)[:2] == [{"\u2581": 0.75}, {}]
  assert aligned.mask_T[:2].tolist() == [1, 0]
  assert aligned.kinds_T[1] == targets.Kind.MASKED


def test_a_candidate_never_becomes_a_control_piece():
  aligned = align(
    [
      trees.token(
        "x", 0.5, **{"</s>": 0.125, "<pad>": 0.125, "<unk>": 0.125, "{": 0.125}
      )
    ],
    "whitespace",
  )
  assert all(len(candidates) == 1 for candidates in named(aligned))
  assert aligned.mass_kept == pytest.approx(0.5)
  assert aligned.mass_offered == pytest.approx(0.625)  # of x and {


@pytest.mark.parametrize("mode", ["whitespace", "chunk", "marginal"])
@pytest.mark.parametrize("special", ["<|im_end|>", "[EOS]", "</s>"])
def test_a_special_token_is_never_taught_by_its_letters(mode, special):
  text = [trees.token("\n", 0.75), trees.token("So", 0.5, **{special: 0.25})]
  with_special, without = (
    align([text[0], token], mode) for token in (text[1], trees.token("So", 0.5))
  )
  assert named(with_special) == named(without)
  assert with_special.mask_T.tolist() == without.mask_T.tolist()


def test_a_zero_probability_stays_listed_by_the_paper_only():
  token = targets.TeacherToken(
    spelling=b"x", log_prob=math.log(0.5), top=((b".", -math.inf),)
  )
  again = targets.TeacherToken(
    spelling=b".", log_prob=math.log(0.5), top=((b",", -math.inf),)
  )
  assert named(align([token, again], "paper"))[-1] == {".": 0.5, ",": 0.0}
  assert named(align([token, again], "whitespace"))[-1] == {".": 0.5}


def test_mass_above_one_is_scaled():
  aligned = align([trees.token("May", 0.75, June=0.5)], "whitespace")
  assert named(aligned) == [{"\u2581May": 0.6, "\u2581June": 0.4}]


@SETTINGS
@given(trees.samples(), MODES, st.booleans())
def test_laws_of_every_mode(drawn, mode, real):
  text, tokens = drawn
  student = real_files.t5() if real else trees.tiny_student()
  aligned = trees.align(tokens, text, student, mode)
  if isinstance(aligned, targets.Rejected):
    assert student.encode(text)[0] == ()
    return
  assert tuple(aligned.ids_T.tolist()) == student.encode(text)[0]
  assert aligned.pieces == student.encode(text)[1]
  probs_TC = np.exp(aligned.top_log_probs_TC)
  assert (probs_TC.sum(axis=1) <= 1 + 1e-9).all()
  unknown_T = aligned.ids_T == student.unknown_id
  assert ((probs_TC.sum(axis=1) > 0) == ~unknown_T).all()
  assert ((aligned.kinds_T == targets.Kind.MASKED) == unknown_T).all()
  assert student.unknown_id not in aligned.top_ids_TC
  assert (aligned.mask_T == np.isin(aligned.kinds_T, (1, 2))).all()
  for j in np.flatnonzero((aligned.mask_T == 0) & ~unknown_T):
    assert aligned.top_ids_TC[j, 0] == aligned.ids_T[j]
    assert probs_TC[j].tolist() == [1.0] + [0.0] * (probs_TC.shape[1] - 1)
  for ids in aligned.top_ids_TC.tolist():
    used = [index for index in ids if index != 0]
    assert len(used) == len(set(used))
  teacher = [i for group in aligned.groups for i in group.teacher]
  assert teacher == list(range(len(tokens)))
  positions = [j for group in aligned.groups for j in group.student]
  assert positions == list(range(len(aligned.ids_T)))
  assert 0 <= aligned.mass_kept <= aligned.mass_offered + 1e-9
  assert aligned.mass_offered <= len(tokens) + 1e-9


@SETTINGS
@given(trees.samples())
def test_chunks_conserve_the_likelihood_of_visible_text(drawn):
  text, tokens = drawn
  student = trees.tiny_student()
  aligned = trees.align(tokens, text, student, "chunk")
  if isinstance(aligned, targets.Rejected):
    return
  for group in aligned.groups:
    if not group.teacher or not group.student:
      continue
    if {int(aligned.kinds_T[j]) for j in group.student} != {2}:
      continue  # a match, or with a masked position
    likelihood = math.prod(math.exp(tokens[i].log_prob) for i in group.teacher)
    product = math.prod(
      math.exp(aligned.top_log_probs_TC[j, 0]) for j in group.student
    )
    assert product == pytest.approx(likelihood)


@SETTINGS
@given(trees.texts)
def test_a_teacher_with_the_students_own_tokens_is_followed_whole(text):
  student = trees.tiny_student()
  encoding = student.encode_with_spans(text)
  spelled = text.encode()
  spellings = [spelled[a:b] for a, b in encoding.spans]
  if not encoding.ids or not all(spellings):
    return  # a token without a cover of its own has no teacher token
  aligned = trees.align(
    trees.plain_tokens(spellings),
    b"".join(spellings).decode(),
    student,
    "whitespace",
  )
  for group in aligned.groups:
    if not group.teacher or not group.student:
      continue
    if any(aligned.ids_T[j] == student.unknown_id for j in group.student):
      continue
    assert {int(aligned.kinds_T[j]) for j in group.student} == {1}
    product = math.prod(
      math.exp(aligned.top_log_probs_TC[j, 0]) for j in group.student
    )
    assert product == pytest.approx(0.5)


@pytest.mark.parametrize("mode", align_lib.MODES)
def test_an_empty_token_within_a_character_has_no_white_space(mode):
  first, last = trees.plain_tokens([b"\xe6", b"\x97\xa5"])
  with_one, without = (
    align(
      [first, trees.token("", 0.5, **top), last], mode, trees.tiny_student()
    )
    for top in ({" ": 0.25}, {})
  )
  assert len(with_one.mask_T) == 2
  assert named(with_one, trees.tiny_student()) == named(
    without, trees.tiny_student()
  )


@pytest.mark.parametrize("mode", align_lib.MODES)
def test_probabilities_that_a_server_did_not_compute_are_no_distribution(mode):
  unknown = align_lib.TeacherToken(
    spelling=b" she", log_prob=-9999.0, top=((b" he", -9999.0),)
  )
  aligned = align([trees.token("If", 0.5), unknown], mode)
  assert aligned.pieces == ("\u2581If", "\u2581she")
  assert named(aligned)[-1] == {"\u2581she": 1.0}
  assert aligned.mask_T[-1] == 0
