"""Both kinds of vocabulary spell alike, and one of another model is refused."""

import pytest
import tokenizers
from etils import epath
from testdata import real_files, tiny_vocabulary

from specialize_jax import errors
from specialize_jax.decoding import vocabulary as vocabularies

TEXT = "ab cd 12 + 3 = 15"


@pytest.fixture(scope="module")
def tokenizer_json(tmp_path_factory):
  """The same pieces as transformers writes them."""
  ours = tiny_vocabulary.load()
  processor = ours._processor
  pieces = [
    (processor.id_to_piece(i), processor.get_score(i))
    for i in range(ours.num_pieces)
  ]
  tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  tokenizer.decoder = tokenizers.decoders.Metaspace()
  tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<extra_id_0>"])
  path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
  tokenizer.save(str(path))
  return path


def test_both_kinds_give_the_same_ids_and_texts(tokenizer_json):
  ours, theirs = tiny_vocabulary.load(), vocabularies.from_file(tokenizer_json)
  ids = ours.encode(TEXT)
  assert theirs.encode(TEXT) == ids
  assert theirs.decode([*ids, 1, 0]) == ours.decode([*ids, 1, 0]) == TEXT
  assert [theirs.piece(i) for i in ids] == [ours.piece(i) for i in ids]
  assert ours.piece(1) == theirs.piece(1) == ""
  assert theirs.num_pieces == ours.num_pieces
  assert theirs.fingerprint != ours.fingerprint


def test_a_tokenizer_that_begins_every_text_with_a_token_is_refused(
  tokenizer_json, tmp_path
):
  """As CodeT5's does. One that ends them alone is T5's."""
  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_json))
  special = [(t, tokenizer.token_to_id(t)) for t in ("</s>", "<extra_id_0>")]
  for template, is_read in (("$A </s>", True), ("<extra_id_0> $A </s>", False)):
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single=template, special_tokens=special
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    if is_read:
      vocabularies.from_file(tmp_path / "tokenizer.json")
      continue
    with pytest.raises(errors.UserError, match="begins every text with <ext"):
      vocabularies.from_file(tmp_path / "tokenizer.json")


def test_sentinels_are_encoded_as_transformers_documents_it():
  t5 = vocabularies.from_file(real_files.find("tokenizers", "t5_spiece.model"))
  ids = t5.encode("The <extra_id_0> walks in <extra_id_1> park")
  assert ids == [37, 32099, 10681, 16, 32098, 2447]
  unknown = t5.encode("The <extra_id_100> walks")
  assert max(unknown) < t5.num_pieces


def test_the_number_of_sentinels_is_that_of_the_tokenizers_config(tmp_path):
  (tmp_path / "spiece.model").write_bytes(tiny_vocabulary.model())
  (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 4}')
  ours = vocabularies.from_file(tmp_path / "spiece.model")
  assert ours.encode("<extra_id_3>") == [ours.num_pieces]
  assert len(ours.encode("<extra_id_4>")) > 1


def test_ids_that_spell_nothing_are_left_out():
  ours = tiny_vocabulary.load()
  ids = ours.encode(TEXT)
  assert ours.decode([*ids, ours.num_pieces + 5, 1, 0]) == TEXT
  assert ours.piece(ours.num_pieces + 5) == ""


def test_t5s_pieces_fit_the_released_embeddings_and_no_other():
  path = real_files.find("tokenizers", "t5_spiece.model")
  t5 = vocabularies.from_file(path)
  for vocab_size in (32_000, 32_100, 32_128):
    vocabularies.check_size(t5, vocab_size, path)
  for vocab_size in (384, 31_999, 32_256, 250_112):
    with pytest.raises(errors.UserError, match="has 32,000 pieces, and the mo"):
      vocabularies.check_size(t5, vocab_size, path)


def test_a_file_that_is_not_a_vocabulary_is_an_error(tmp_path):
  with pytest.raises(errors.UserError, match="no vocabulary beside the check"):
    vocabularies.from_file(None)
  with pytest.raises(errors.UserError, match="does not exist"):
    vocabularies.from_file(tmp_path / "none.model")
  for name, match in (
    ("bad.model", "cannot be read as a SentencePiece model: give the model's"),
    ("bad.json", "is not a tokenizer"),
  ):
    (tmp_path / name).write_text("{}")
    with pytest.raises(errors.UserError, match=match):
      vocabularies.from_file(tmp_path / name)
  (tmp_path / "empty.model").write_bytes(b"")
  with pytest.raises(errors.UserError, match="cannot be read"):
    vocabularies.from_file(tmp_path / "empty.model")


def _files(folder, **contents):
  for name, content in contents.items():
    (folder / name.replace("__", ".")).write_text(content)
  return [epath.Path(file) for file in sorted(folder.iterdir())]


def test_a_folders_own_file_is_found(tmp_path):
  assert vocabularies.beside([]) is None
  whole = _files(tmp_path, tokenizer__json="{}")
  assert vocabularies.beside(whole).name == "tokenizer.json"
  both = _files(tmp_path, spiece__model="")
  assert vocabularies.beside(both).name == "spiece.model"


def test_tokens_that_were_added_are_never_left_out(tmp_path):
  sentinels = '{"<extra_id_0>": 32099}'
  files = _files(tmp_path, spiece__model="", added_tokens__json=sentinels)
  assert vocabularies.beside(files).name == "spiece.model"
  files = _files(tmp_path, added_tokens__json='{"\\n": 32100, "<sep>": 32101}')
  with pytest.raises(errors.UserError, match=r"adds '\\n', '<sep>' to the"):
    vocabularies.beside(files)
  added = '{"added_tokens": [{"content": "</s>"}, {"content": "<sep>"}]}'
  files = _files(tmp_path, tokenizer__json=added)
  assert vocabularies.beside(files).name == "tokenizer.json"
