"""The tokenizers of the mini world, trained on its text when it is built.

The student's is a SentencePiece unigram model with T5's layout (padding 0, end
of sequence 1, unknown 2, no beginning of sequence; white space is one space).
The teacher's is a byte-level BPE like GPT's, within words that include their
leading space. They split words differently, so aligning them is a real task.
"""

import collections
import functools
import io
import pathlib
import re
import tempfile
from collections.abc import Iterable

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"

_WORD_START = "\u2581"
_LARGEST_PIECE_NUMBER = 100


def train_student(texts: Iterable[str], *, vocab_size: int) -> bytes:
  """Trains the student's SentencePiece model.

  Each number up to 100 is one word-initial piece, as in T5's vocabulary, so
  that copying a number takes one token. The result is deterministic.

  Args:
    texts: The texts that the student will read and write.
    vocab_size: The maximum number of pieces; small texts may need fewer.

  Returns:
    The serialized model, the content of a `.model` file.
  """
  texts = list(texts)
  model = io.BytesIO()
  with tempfile.TemporaryDirectory() as scratch:
    seeds = pathlib.Path(scratch, "seeds.tsv")
    seeds.write_text(_seed_pieces(texts), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      pad_id=0,
      eos_id=1,
      unk_id=2,
      bos_id=-1,
      unk_surface=" \u2047 ",
      user_defined_symbols=[
        f"{_WORD_START}{n}" for n in range(_LARGEST_PIECE_NUMBER + 1)
      ],
      num_threads=1,
      minloglevel=2,
      seed_sentencepieces_file=str(seeds),
    )
  proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
  # The path of the temporary directory would make the model differ by run.
  proto.trainer_spec.ClearField("seed_sentencepieces_file")
  return proto.SerializeToString(deterministic=True)


def train_teacher(texts: Iterable[str], *, vocab_size: int) -> str:
  """Trains the teacher's byte-level byte-pair tokenizer.

  Args:
    texts: The texts that the teacher reads and writes.
    vocab_size: The end of text, 256 bytes, and one token for each merge. With
      fewer merges, more of the rarer words are several tokens.

  Returns:
    The tokenizer as JSON, for `TeacherTokenizer.from_json`.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  tokenizer.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[END_OF_TEXT],
      initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
      show_progress=False,
    ),
  )
  return tokenizer.to_str(pretty=True)


def _seed_pieces(texts: Iterable[str]) -> str:
  """Returns the seed pieces for the trainer: each word with its count.

  The trainer's own seeds are substrings that at least two distinct words share,
  which excludes most whole words of so small a language.
  """
  counts = collections.Counter(
    f"{_WORD_START}{word}"
    for text in texts
    for word in re.findall(r"[A-Za-z]+|(?<= )[^\sA-Za-z0-9]", text)
  )
  return "".join(
    f"{piece}\t{count}\n" for piece, count in sorted(counts.items())
  )


class TeacherTokenizer:
  """The teacher's tokenizer.

  Attributes:
    vocab_size: The number of tokens, including the end of text.
    end_id: The id of the end of text.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
    self._tokenizer = tokenizer
    self.vocab_size = tokenizer.get_vocab_size()
    self.end_id = tokenizer.token_to_id(END_OF_TEXT)
    self.encode = functools.lru_cache(maxsize=1 << 16)(self._encode)
    self.spell = functools.cache(self._spell)

  @classmethod
  def from_json(cls, text: str) -> "TeacherTokenizer":
    """Loads the tokenizer from the JSON that `train_teacher` returns."""
    return cls(tokenizers.Tokenizer.from_str(text))

  def _encode(self, text: str) -> tuple[int, ...]:
    """Encodes a text, without the end of text."""
    return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

  def _spell(self, token: int) -> str:
    """Returns the text of a token."""
    if token == self.end_id:
      return END_OF_TEXT
    return self._tokenizer.decode([token], skip_special_tokens=False)
