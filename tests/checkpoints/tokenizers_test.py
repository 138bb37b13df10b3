"""A vocabulary is counted with its extra ids, and refused where it is none."""

import json

import pytest
from etils import epath
from testdata import trees

from specialize_jax import errors
from specialize_jax.checkpoints import tokenizers


@pytest.fixture
def spiece(tmp_path):
  path = tmp_path / "spiece.model"
  path.write_bytes(trees.tiny_model())
  return path


def test_pieces_and_extra_ids_are_counted(spiece):
  pieces = trees.tiny_student().vocab_size
  vocabulary = tokenizers.from_sentencepiece(spiece, extra_ids=7)
  assert vocabulary.num_tokens == pieces + 7
  for name, content in vocabulary.files.items():
    (spiece.parent / name).write_bytes(content)
  files = [epath.Path(spiece.parent / name) for name in vocabulary.files]
  assert tokenizers.beside(files).num_tokens == pieces + 7
  (spiece.parent / "tokenizer_config.json").write_text(json.dumps({}))
  assert tokenizers.beside(files).num_tokens == pieces + 100
  assert tokenizers.beside([]) is None


@pytest.mark.parametrize(
  ("rows", "fits"),
  [(32_099, False), (32_100, True), (32_227, True), (32_228, False)],
)
def test_a_model_has_at_least_a_row_a_token_and_little_padding(rows, fits):
  vocabulary = tokenizers.Vocabulary(where="v", num_tokens=32_100, files={})
  if fits:
    tokenizers.check(vocabulary, rows)
    return
  with pytest.raises(errors.UserError, match="v has 32,100 tokens"):
    tokenizers.check(vocabulary, rows)


def test_a_model_s_own_vocabulary_may_leave_any_number_of_rows_unused():
  vocabulary = tokenizers.Vocabulary(where="v", num_tokens=176, files={})
  tokenizers.check(vocabulary, 384, own=True)
  with pytest.raises(errors.UserError, match="v has 176 tokens"):
    tokenizers.check(vocabulary, 175, own=True)


def test_what_is_no_vocabulary_is_named(tmp_path, spiece):
  with pytest.raises(errors.UserError, match="nowhere does not exist"):
    tokenizers.from_sentencepiece(tmp_path / "nowhere")
  broken = tmp_path / "tokenizer.json"
  broken.write_text("{}")
  with pytest.raises(errors.UserError, match="json is not a tokenizer"):
    tokenizers.beside([epath.Path(broken)])
  config = tmp_path / "tokenizer_config.json"
  for extra_ids in ("a hundred", -1, 10**12, None, True):
    config.write_text(json.dumps({"extra_ids": extra_ids}))
    with pytest.raises(errors.UserError, match="whole number from 0 to 100,00"):
      tokenizers.beside([epath.Path(config), epath.Path(spiece)])
  for content in (b"no model", b""):
    spiece.write_bytes(content)
    with pytest.raises(errors.UserError, match="is no SentencePiece model"):
      tokenizers.from_sentencepiece(spiece)
