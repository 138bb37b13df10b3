"""Fast tokenizers as students: of themselves, and of other teachers."""

import math
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from testdata import alignment_oracle as oracle
from testdata import tiny_tokenizers, trees

from specialize_jax import align, errors
from specialize_jax.align import targets

KINDS = ("byte_level_bpe", "unigram", "word_piece")
SETTINGS = settings(
  deadline=None,
  max_examples=40,
  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PROBS = (0.5, 0.2, 0.1, 0.05, 0.02)
TEXTS = (
  *trees.SENTENCES,
  "48+24 = 72\n\nAnn has  12",
  " and 3 apples ",
  "cafe \u00e9t\u00e9 \u20ac5 \U0001f600",
)


def own_teacher(student, text, rng):
  """A teacher with the student's tokens, and what it says by student id.

  A token of the same bytes as the sampled one is never its alternative.
  """
  encoding = student.encode_with_spans(text)
  tops = []
  for index in encoding.ids:
    spelling = (student.token_bytes(index) or b"").strip()
    others = [
      other
      for other in rng.sample(range(student.vocab_size), 30)
      if (student.token_bytes(other) or b"").strip() not in (spelling, b"")
    ]
    ids = [index, *others[: len(PROBS) - 1]]
    tops.append(dict(zip(ids, map(math.log, PROBS), strict=True)))
  return encoding.ids, tops


@pytest.mark.parametrize("mode", align.MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_laid_on_itself_returns_the_teachers_distribution(
  kind, mode
):
  student = tiny_tokenizers.student(kind)
  aligner = align.Aligner(student, mode)
  rng = random.Random(0)
  positions = 0
  for text in TEXTS:
    ids, tops = own_teacher(student, text, rng)
    if student.unknown_id in ids:
      continue
    tokens = align.from_ids(student, ids, tops, text=text)
    if not "".join(text.split()):
      continue
    found, mask, coverage = aligner(tokens)
    assert found.token_ids.tolist() == list(ids)
    assert mask.all()
    assert coverage.one_to_one == coverage.positions == len(ids)
    for top, top_ids, top_probs in zip(
      tops, found.top_ids.tolist(), found.top_probs.tolist(), strict=True
    ):
      expected = {index: math.exp(log_prob) for index, log_prob in top.items()}
      listed = zip(top_ids, top_probs, strict=True)
      used = {index: prob for index, prob in listed if prob > 0}
      assert used == pytest.approx(expected, abs=1e-6)
      positions += 1
  assert positions > 60


@pytest.mark.parametrize("mode", align.MODES)
def test_an_end_of_sequence_among_the_alternatives_is_the_students(mode):
  student = tiny_tokenizers.student("byte_level_bpe")
  (end,) = student.encode_ids("<|endoftext|>")
  ids = student.encode_ids(" and 12")
  tops = [{index: math.log(0.5), end: math.log(0.25)} for index in ids]
  found, _, _ = align.Aligner(student, mode)(align.from_ids(student, ids, tops))
  assert found.top_ids.tolist() == [[index, end] for index in ids]
  np.testing.assert_allclose(found.top_probs, [[0.5, 0.25]] * len(ids))


@pytest.mark.parametrize("mode", ["whitespace", "chunk", "marginal"])
@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(drawn=trees.samples())
def test_other_teachers_are_aligned_as_the_oracle_does(kind, mode, drawn):
  text, tokens = drawn
  student = tiny_tokenizers.student(kind)
  found = trees.align(tokens, text, student, mode)
  spans = student.encode_with_spans(text).spans
  if len(spans) == len(tokens):
    return  # maybe the same tokens, which are copied
  expected = oracle.align(tokens, text, student, mode)
  if isinstance(expected, targets.Rejected):
    assert found == expected
    return
  assert found.ids_T.tolist() == expected.ids_T.tolist()
  assert found.kinds_T.tolist() == expected.kinds_T.tolist()
  assert found.groups == expected.groups
  assert found.mass_kept == pytest.approx(expected.mass_kept)
  for mine, theirs in zip(
    trees.probs_by_id(found), trees.probs_by_id(expected), strict=True
  ):
    assert mine == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("before", ["", "a"])
def test_white_space_that_a_student_normalizes_is_one_text(before):
  blank = targets.TeacherToken(
    spelling=b" ", log_prob=math.log(1 / 3), top=((b"\xc2\xa0", -math.log(3)),)
  )
  tokens = [
    *(
      targets.TeacherToken(spelling=c.encode(), log_prob=math.log(0.5), top=())
      for c in before
    ),
    blank,
    targets.TeacherToken(spelling=b"  ", log_prob=math.log(0.5), top=()),
  ]
  student = tiny_tokenizers.student("unigram")
  text = before + "   "
  found = trees.align(tokens, text, student, "marginal")
  expected = oracle.align(tokens, text, student, "marginal")
  (space,) = trees.probs_by_id(found)[len(before)].values()
  assert space == pytest.approx(2 / 3)
  for mine, theirs in zip(
    trees.probs_by_id(found), trees.probs_by_id(expected), strict=True
  ):
    assert mine == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@SETTINGS
@given(text=st.one_of(trees.texts, st.sampled_from(TEXTS)))
def test_spans_tile_any_text_but_for_what_is_dropped_at_its_end(kind, text):
  student = tiny_tokenizers.student(kind)
  encoding = student.encode_with_spans(text)
  assert encoding.ids == student.encode_ids(text)
  bounds = [bound for span in encoding.spans for bound in span]
  assert bounds == sorted(bounds)
  assert bounds[2::2] == bounds[1:-1:2]
  if bounds:
    assert bounds[0] == 0
    assert bounds[-1] <= len(text.encode())


@pytest.mark.parametrize(
  ("kind", "keeps", "lost"),
  [("byte_level_bpe", True, 0), ("unigram", True, 1), ("word_piece", False, 1)],
)
def test_a_student_keeps_white_space_or_folds_it(kind, keeps, lost):
  student = tiny_tokenizers.student(kind)
  assert student.keeps_white_space == keeps
  assert student.encode_with_spans("12 ~").characters_lost == lost


def test_what_is_no_fast_tokenizer_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="expected a tokenizers"):
    align.HuggingFaceStudent("t5-base")
  with pytest.raises(errors.UserError, match="does not exist"):
    align.HuggingFaceStudent.from_file(tmp_path)
  (tmp_path / "tokenizer.json").write_text("{}")
  with pytest.raises(errors.UserError, match="is not a tokenizer"):
    align.HuggingFaceStudent.from_file(tmp_path)


def test_user_defined_symbols_of_sentencepiece_are_spelled_as_pieces_are():
  """As Gemma's runs of spaces, which its `tokenizer.json` has as added."""
  tokenizer = tiny_tokenizers.unigram()
  tokenizer.add_tokens(["\u2581\u2581\u2581", "\n\n"])
  tokenizer.add_special_tokens(["<end\u2581of>"])
  student = align.HuggingFaceStudent(tokenizer)

  def spelled(piece):
    return student.token_bytes(tokenizer.token_to_id(piece))

  assert spelled("\u2581\u2581\u2581") == b"   "
  assert spelled("\n\n") == b"\n\n"
  assert spelled("<end\u2581of>") == "<end\u2581of>".encode()


def test_an_alternative_has_its_token_in_that_text_and_no_other():
  """Not that of the same letters after a space, which may be the only one."""
  student = tiny_tokenizers.student("byte_level_bpe")
  word = next(
    piece
    for piece in map(student.id_to_piece, range(student.vocab_size))
    if piece.startswith("\u0120")
    and len(piece) > 2
    and piece[1:].isalpha()
    and student._tokenizer.token_to_id(piece[1:]) is None
  )[1:]
  tops = [{"(": 0.0}, {"5": math.log(0.6), word: math.log(0.4)}]
  for mode in ("marginal", "whitespace", "chunk", "paper"):
    found, _, _ = align.Aligner(student, mode)(["(", "5"], tops)
    ids = found.top_ids[np.asarray(found.top_probs) > 0]
    taught = {student.token_bytes(int(index)) for index in ids}
    assert f" {word}".encode() not in taught


def test_sampled_special_tokens_are_no_text():
  tokenizer = tiny_tokenizers.byte_level_bpe()
  student = align.HuggingFaceStudent(tokenizer)
  end = tokenizer.token_to_id("<|endoftext|>")
  ids = [*tokenizer.encode("Ann has").ids]
  tops = [{index: -0.1} for index in [*ids, end, end]]
  found = align.from_ids(student, [*ids, end, end], tops)
  assert b"".join(token.spelling for token in found) == b"Ann has"
  with pytest.raises(errors.UserError, match="spells no text"):
    align.from_ids(student, [end, *ids], tops[:-1][::-1])


def test_what_is_no_student_is_named():
  for student in ("t5_spiece.model", tiny_tokenizers.unigram()):
    with pytest.raises(errors.UserError, match="wrap a tokenizer in Hugging"):
      align.Aligner(student)
    with pytest.raises(errors.UserError, match="wrap a tokenizer in Hugging"):
      align.from_ids(student, [1], [{1: 0.0}])


def test_a_saved_tokenizer_is_the_same_student(tmp_path):
  tokenizer = tiny_tokenizers.byte_level_bpe()
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  student = align.HuggingFaceStudent.from_file(tmp_path)
  assert student.fingerprint == align.HuggingFaceStudent(tokenizer).fingerprint
  assert student.encode_ids("Ann") == tuple(tokenizer.encode("Ann").ids)
