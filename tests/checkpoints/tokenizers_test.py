"""A vocabulary is counted with its extra ids, and refused where it is none."""

import io
import json
import random

import pytest
import sentencepiece
import transformers
from etils import epath
from testdata import trees

from specialize_jax import errors
from specialize_jax.checkpoints import tokenizers
from specialize_jax.files import fast_tokenizers


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


def _trained(folder, **settings):
  """A SentencePiece model of a few words, as a Hugging Face folder."""
  words = ["apple", "cat", "dog", "12", "34", "the", "is", "+", "=", "x"]
  rng = random.Random(0)
  text = [" ".join(rng.choices(words, k=12)) for _ in range(300)]
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text),
    model_writer=model,
    vocab_size=60,
    hard_vocab_limit=False,
    **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    minloglevel=2,
    **settings,
  )
  folder.mkdir()
  (folder / "x.model").write_bytes(model.getvalue())
  vocabulary = tokenizers.from_sentencepiece(folder / "x.model")
  for name, content in vocabulary.files.items():
    (folder / name).write_bytes(content)
  (folder / "config.json").write_text('{"model_type": "t5"}')
  return model.getvalue()


def test_special_tokens_are_spelt_as_the_model_spells_them(tmp_path):
  spelt = {"pad_piece": "[PAD]", "eos_piece": "[EOS]", "unk_piece": "[UNK]"}
  _trained(tmp_path / "own", **spelt)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
  assert theirs("apple").input_ids[-1] == 1
  assert theirs.pad_token_id == 0


@pytest.mark.parametrize(
  ("settings", "named"),
  [
    ({}, []),
    ({"add_dummy_prefix": False}, ["add_dummy_prefix=false"]),
    ({"user_defined_symbols": ["{", "}"]}, ["user-defined symbols"]),
    (
      {"remove_extra_whitespaces": False},
      ["remove_extra_whitespaces=false"],
    ),
  ],
)
def test_what_a_model_has_that_transformers_reads_otherwise_is_named(
  tmp_path, settings, named
):
  content = _trained(tmp_path / "own", **settings)
  assert tokenizers.unlike_t5(content) == named
  processor = sentencepiece.SentencePieceProcessor(model_proto=content)
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
  texts = ("3 + 4 = 7, {x}", " two  spaces ", "apple cat")
  same = [theirs(t).input_ids == [*processor.encode(t), 1] for t in texts]
  assert all(same) is not bool(named)


def test_the_ids_of_a_tokenizer_json_are_compared_with_a_model_s(tmp_path):
  content = _trained(tmp_path / "own")
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "own")
  theirs.save_pretrained(tmp_path / "whole")
  whole = epath.Path(tmp_path / "whole" / tokenizers.WHOLE)
  assert tokenizers.is_in_whole(content, whole)
  assert not tokenizers.is_in_whole(trees.tiny_model(), whole)
  assert fast_tokenizers.added_tokens(whole) == []
  theirs.add_tokens(["{"])
  theirs.save_pretrained(tmp_path / "whole")
  assert fast_tokenizers.added_tokens(whole) == ["{"]
