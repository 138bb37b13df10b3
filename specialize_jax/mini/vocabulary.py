"""The mini world's two tokenizers, both trained on its own text at set-up.

The student's is a SentencePiece unigram model laid out as T5's (padding 0,
end of sequence 1, unknown 2, no beginning of sequence; white space is one
space). The teacher's is GPT's kind: byte pairs within words that begin with
their space. They cut words differently, so aligning them is a real task.
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

  Every number up to 100 is one piece that begins its word, as T5 has it, so
  that a number is one token to copy. The same texts give the same bytes.

  Args:
    texts: What the student will read and write.
    vocab_size: The most pieces to have; text this small may fill fewer.

  Returns:
    The serialised model, what a `.model` file holds.
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
  # The scratch path differs between runs, and the model must not.
  proto.trainer_spec.ClearField("seed_sentencepieces_file")
  return proto.SerializeToString(deterministic=True)


def train_teacher(texts: Iterable[str], *, vocab_size: int) -> str:
  """Trains the teacher's byte-level byte-pair tokenizer.

  Args:
    texts: What the teacher reads and writes.
    vocab_size: The end of text, 256 bytes, and one token for each merge. The
      fewer merges, the more of the rarer words are several tokens.

  Returns:
    The tokenizer as JSON, what `TeacherTokenizer.from_json` reads.
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
  """Lists each word with its count, as the trainer reads its first pieces.

  Its own search for pieces takes only what at least two different words
  share, which leaves out most whole words of so small a language.
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
  """The teacher's tokenizer: texts to token ids, and what a token spells.

  Attributes:
    vocab_size: The number of tokens, the end of text included.
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
    """Builds the tokenizer that `train_teacher` or a world's file holds."""
    return cls(tokenizers.Tokenizer.from_str(text))

  def _encode(self, text: str) -> tuple[int, ...]:
    """Gives the token ids of a text, the end of text not among them."""
    return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

  def _spell(self, token: int) -> str:
    """Gives the text that one token spells."""
    if token == self.end_id:
      return END_OF_TEXT
    return self._tokenizer.decode([token], skip_special_tokens=False)
