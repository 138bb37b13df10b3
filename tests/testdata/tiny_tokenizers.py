"""Small fast tokenizers of each kind, trained on the spot."""

import functools

import tokenizers
from testdata import trees
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from specialize_jax import align

_TEXTS = [*trees.SENTENCES, "Ann has\n\n12 apples\n and 3", "48+24 = 72"] * 20


def byte_level_bpe(size=400):
  """Trains GPT-2's kind, which Llama 3 and Qwen are of."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  return _trained(
    tokenizer,
    trainers.BpeTrainer(
      vocab_size=size,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=["<|endoftext|>"],
      show_progress=False,
    ),
  )


def unigram():
  """Trains T5's and XLM-R's kind, white space kept."""
  tokenizer = tokenizers.Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  tokenizer.decoder = decoders.Metaspace()
  return _trained(
    tokenizer,
    trainers.UnigramTrainer(
      vocab_size=150,
      special_tokens=["<unk>"],
      unk_token="<unk>",
      show_progress=False,
    ),
  )


def word_piece():
  """Trains BERT's kind."""
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  return _trained(
    tokenizer,
    trainers.WordPieceTrainer(
      vocab_size=150, special_tokens=["[UNK]"], show_progress=False
    ),
  )


def _trained(tokenizer, trainer):
  tokenizer.train_from_iterator(_TEXTS, trainer)
  return tokenizer


@functools.cache
def student(kind):
  """Returns a student of a kind, by the name of a function above."""
  return align.HuggingFaceStudent(globals()[kind]())
