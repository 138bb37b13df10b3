"""Marginal targets equal a plain enumeration of the teacher's tree."""

import doctest
import math

import pytest
from hypothesis import HealthCheck, given, settings
from testdata import real_files, trees

from specialize_jax.align import marginal, sample, targets

SETTINGS = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_the_docstrings_numbers_are_true():
  outcome = doctest.testmod(marginal)
  assert outcome.attempted > 0
  assert outcome.failed == 0


def _same_text(left, right):
  try:
    return left.decode().strip() == right.decode().strip()
  except UnicodeDecodeError:
    return False


def enumerated(tokens, text, student):
  """The definition in the plainest words, with whole texts and weights."""
  encoding = student.encode_with_spans(text)
  ids = encoding.ids

  def where_known_text_ends(num_bytes):
    whole = 0
    for start, end in encoding.spans:
      if start < num_bytes and end <= num_bytes:
        whole += 1
      else:
        break
    return whole

  def part(leaf):
    leaf_ids = student.encode(leaf)[0]
    for j, own in enumerate(leaf_ids):
      if j == len(ids) or ids[j] != own:
        return j, own
    return len(leaf_ids), None

  leaves = []  # (position, own token, weight)
  weight = 1.0
  prefix = b""
  for token in tokens:
    candidates = dict(token.top) | {token.spelling: token.log_prob}
    stays = sum(
      math.exp(log_prob)
      for spelling, log_prob in candidates.items()
      if spelling == token.spelling or _same_text(spelling, token.spelling)
    )
    seen = stays
    for spelling, log_prob in candidates.items():
      if spelling == token.spelling or _same_text(spelling, token.spelling):
        continue
      seen += math.exp(log_prob)
      try:
        position, own = part((prefix + spelling).decode())
      except UnicodeDecodeError:
        position, own = where_known_text_ends(len(prefix)), None
      leaves.append((position, own, weight * math.exp(log_prob)))
    leaves.append(
      (where_known_text_ends(len(prefix)), None, weight * (1 - seen))
    )
    weight *= stays
    prefix += token.spelling
  same_text = sum(w for position, _, w in leaves if position == len(ids))
  leaves.append((len(ids), None, weight))

  result = []
  for j, sampled in enumerate(ids):
    mass = sum(w for position, _, w in leaves if position >= j)
    rest = sum(w for position, _, w in leaves if position > j)
    target = {sampled: rest / mass}
    for position, own, w in leaves:
      if position == j and own is not None:
        target[own] = target.get(own, 0.0) + w / mass
    result.append(target)
  return result, same_text


def target_dicts(aligned):
  return [
    {
      index: math.exp(log_prob)
      for index, log_prob in zip(ids, log_probs, strict=True)
      if log_prob > -math.inf
    }
    for ids, log_probs in zip(
      aligned.top_ids_TC.tolist(),
      aligned.top_log_probs_TC.tolist(),
      strict=True,
    )
  ]


def nonzero(target):
  return {index: prob for index, prob in target.items() if prob > 1e-12}


def check_against_enumeration(tokens, text, student):
  aligned = sample.align_sample(tokens, text, student=student, mode="marginal")
  if isinstance(aligned, targets.Rejected):
    assert not student.encode(text)[0]
    return
  expected, _ = enumerated(tokens, text, student)
  found = target_dicts(aligned)
  assert len(found) == len(expected)
  for mine, theirs in zip(found, expected, strict=True):
    assert nonzero(mine) == pytest.approx(nonzero(theirs), abs=1e-9)
    assert sum(mine.values()) <= 1 + 1e-9
  assert aligned.mask_T.all()


@SETTINGS
@given(trees.samples())
def test_a_tiny_students_targets_equal_the_enumeration(drawn):
  text, tokens = drawn
  check_against_enumeration(tokens, text, trees.tiny_student())


@SETTINGS
@given(trees.samples())
def test_t5s_targets_equal_the_enumeration(drawn):
  text, tokens = drawn
  check_against_enumeration(tokens, text, real_files.t5())


@SETTINGS
@given(trees.samples())
def test_likelihood_is_conserved(drawn):
  text, tokens = drawn
  student = trees.tiny_student()
  aligned = sample.align_sample(tokens, text, student=student, mode="marginal")
  if isinstance(aligned, targets.Rejected):
    return
  product = math.prod(
    target[index]
    for index, target in zip(
      aligned.ids_T.tolist(), target_dicts(aligned), strict=True
    )
  )
  sampled = math.prod(
    math.exp(marginal.merged_step(token).log_prob) for token in tokens
  )
  # A leaf that has all of the text's tokens is that text to the student.
  _, same_text = enumerated(tokens, text, student)
  assert product == pytest.approx(sampled + same_text, rel=1e-6)


def test_a_candidate_that_resegments_parts_where_its_own_piece_begins():
  # T5 has "\u258112" and "\u258113": the candidate for " 1" + "2" is "13".
  student = real_files.t5()
  assert student.encode("x 12")[1][-1] == "\u258112"
  tokens = [
    trees.token("x", 1.0),
    trees.token(" 1", 0.5, **{" 2": 0.25}),
    trees.token("2", 0.5, **{"3": 0.5}),
  ]
  aligned = sample.align_sample(
    tokens, "x 12", student=student, mode="marginal"
  )
  last = target_dicts(aligned)[-1]
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
  aligned = sample.align_sample(
    tokens, "Natalia sold", student=student, mode="marginal"
  )
  assert aligned.pieces[-1] == "\u2581sold"
  assert target_dicts(aligned)[-1] == pytest.approx(
    {
      student.piece_id("\u2581sold"): 0.5,
      student.piece_id("\u2581had"): 0.25,
      student.piece_id(","): 0.125,
    }
  )


def test_candidates_that_differ_in_white_space_alone_are_merged():
  step = marginal.merged_step(
    trees.token(" 48", 0.5, **{"48": 0.25, "\n48": 0.125, " 4": 0.125})
  )
  assert math.exp(step.log_prob) == pytest.approx(0.875)
  assert step.others == ((b" 4", pytest.approx(0.125)),)
  assert step.rest == pytest.approx(0.0)


def test_a_leaf_that_goes_on_after_the_end_is_the_same_text():
  tokens = [
    trees.token(".", 0.5),
    trees.token(" ", 0.5),
    trees.token(" ", 0.25, **{".": 0.5}),
  ]
  check_against_enumeration(tokens, ".  ", trees.tiny_student())


def test_rounding_above_one_is_scaled():
  step = marginal.merged_step(trees.token("a", 0.75, b=0.5))
  assert math.exp(step.log_prob) == pytest.approx(0.6)
  assert step.others[0][1] == pytest.approx(0.4)
  assert step.rest == pytest.approx(0.0, abs=1e-12)


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
  aligned = sample.align_sample(tokens, text, student=student, mode="marginal")
  found = target_dicts(aligned)
  log_product = sum(
    math.log(target[index])
    for index, target in zip(aligned.ids_T.tolist(), found, strict=True)
  )
  assert log_product == pytest.approx(len(tokens) * math.log(0.1), rel=1e-9)


def test_a_sampled_token_of_no_probability_is_rejected():
  tokens = [targets.TeacherToken(spelling=b"a", log_prob=-math.inf, top=())]
  rejected = sample.align_sample(
    tokens, "a", student=trees.tiny_student(), mode="marginal"
  )
  assert rejected == targets.Rejected(
    "the teacher gives a sampled token probability 0"
  )
