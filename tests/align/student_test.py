"""The student's tokenizer says what each token covers and what is lost."""

import pytest
from hypothesis import HealthCheck, given, settings
from testdata import real_files, trees

from specialize_jax import errors
from specialize_jax.align import student

SETTINGS = settings(
  deadline=None,
  max_examples=150,
  suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(params=["t5", "tiny"])
def tokenizer(request):
  return real_files.t5() if request.param == "t5" else trees.tiny_student()


@pytest.mark.parametrize(
  ("text", "lost"),
  [
    ("Natalia sold 48/2 = 24 clips.", 0),
    ("a\tb\nc\u00a0d", 0),
    ("{x}", 2),
    ("3 \u00d7 4 ~ 12", 2),
    ("\u00bd cup", 1),
    ("\ufb01ne", 1),
    ("wait\u2026", 1),
    ("A\x07B", 1),
    ("end\x07", 1),
    ("\u65e5\u672c", 2),
    ("", 0),
  ],
)
def test_t5_counts_the_characters_that_it_loses(text, lost):
  assert real_files.t5().encode_with_spans(text).characters_lost == lost


def test_spans_are_bytes_and_tile_the_text():
  encoding = real_files.t5().encode_with_spans("a \u20ac5\n\nIf")
  assert encoding.pieces == (
    "\u2581",
    "a",
    "\u2581\u20ac",
    "5",
    "\u2581If",
  )
  assert encoding.spans == ((0, 0), (0, 1), (1, 5), (5, 6), (6, 10))


@SETTINGS
@given(trees.texts)
def test_spans_tile_any_text_but_for_what_is_dropped_at_its_end(text):
  for tokenizer in (real_files.t5(), trees.tiny_student()):
    encoding = tokenizer.encode_with_spans(text)
    bounds = [bound for span in encoding.spans for bound in span]
    assert bounds == sorted(bounds)
    assert bounds[2::2] == bounds[1:-1:2]
    if encoding.ids:
      assert bounds[0] == 0
      dropped = text.encode()[bounds[-1] :].decode()
      assert tokenizer.encode(dropped)[0] == ()
    visible = sum(not character.isspace() for character in text)
    assert 0 <= encoding.characters_lost <= visible


def test_control_and_unknown_pieces_have_no_id_to_give(tokenizer):
  for piece in ("<pad>", "</s>", "<unk>", "no such piece"):
    assert tokenizer.piece_id(piece) is None
  index = tokenizer.piece_id("\u2581")
  assert tokenizer.id_to_piece(index) == "\u2581"


def test_a_fingerprint_tells_students_apart():
  assert len(trees.tiny_student().fingerprint) == 64
  assert trees.tiny_student().fingerprint != real_files.t5().fingerprint


def test_a_missing_vocabulary_is_named(tmp_path):
  with pytest.raises(errors.UserError, match=r"nowhere\.model does not exist"):
    student.SentencePieceStudent.from_file(tmp_path / "nowhere.model")


@pytest.mark.parametrize("content", [b"", b"hello", b"{}"])
def test_a_file_that_is_no_vocabulary_is_named(tmp_path, content):
  path = tmp_path / "wrong.model"
  path.write_bytes(content)
  with pytest.raises(errors.UserError, match="is no SentencePiece model"):
    student.SentencePieceStudent.from_file(path)


def test_an_id_beyond_the_pieces_spells_nothing(tokenizer):
  """As FlanT5's sentinels and padding do not, where it is the teacher."""
  for index in (-1, tokenizer.vocab_size, 32_127):
    assert tokenizer.token_bytes(index) is None
