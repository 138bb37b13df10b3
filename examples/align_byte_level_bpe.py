"""A byte-level BPE teacher on T5's tokens, on another BPE's, and on its own.

The teacher may be anything that returns log-probabilities: its tokens come as
ids of a fast tokenizer, of a .tiktoken file, or as strings from a server. Here
all tokenizers are trained on the spot, so that nothing is downloaded; give
T5's own with

  python examples/align_byte_level_bpe.py --t5=spiece.model
"""

import argparse
import io
import math
import sys

import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from specialize_jax import align

TEXTS = [
  "Natalia sold 48/2 = 24 clips in May. She sold 48+24 = 72 clips in all.",
  "Ann has 12 red apples and 3 green ones, so she has 12 + 3 = 15 apples.",
  "Bob pays $5 for a pen and 30 cents for paper.\nThe answer is 530",
]
RATIONALE = "She sold 48+24 = 72 clips."


def byte_level_bpe(vocab_size):
  """Trains a tokenizer of GPT-2's, Llama 3's and Qwen's kind."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(TEXTS * 20, trainer)
  return align.HuggingFaceStudent(tokenizer)


def t5_like():
  """Trains a SentencePiece model as T5's is."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 20),
    model_writer=model,
    vocab_size=120,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  return align.SentencePieceStudent(model.getvalue())


def sampled(teacher):
  """Returns what a teacher sampled: ids, and each one's alternatives.

  A real teacher weighs its vocabulary; this one has 0.7 for the sampled token,
  and 0.1, 0.05 and 0.05 for three others.
  """
  ids = teacher.encode_ids(RATIONALE)
  words = teacher.encode_ids(" 24 clips and 12 apples.")
  tops = []
  for index in ids:
    others = [other for other in dict.fromkeys(words) if other != index][:3]
    probs = zip([index, *others], (0.7, 0.1, 0.05, 0.05), strict=False)
    tops.append({other: math.log(prob) for other, prob in probs})
  return ids, tops


def show(name, student, mode, tokens):
  """Prints the targets of each of the student's tokens."""
  targets, mask, coverage = align.Aligner(student, mode)(tokens)
  print(
    f"\n{name}, {mode}: {coverage.one_to_one} of {coverage.positions} positions"
    f" one to one, {mask.sum()} with the teacher's distribution"
  )
  for token_id, ids, probs in zip(
    targets.token_ids, targets.top_ids, targets.top_probs, strict=True
  ):
    shown = ", ".join(
      f"{student.id_to_piece(int(index))} {prob:.3f}"
      for index, prob in zip(ids, probs, strict=True)
      if prob > 0
    )
    print(f"  {student.id_to_piece(int(token_id)):10} {shown}")
  return targets


def main(argv=()):
  """Aligns, and prints; returns the targets by student."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--t5", help="T5's spiece.model; else a small one")
  flags = parser.parse_args(argv)
  teacher = byte_level_bpe(420)
  t5 = align.SentencePieceStudent.from_file(flags.t5) if flags.t5 else t5_like()
  ids, tops = sampled(teacher)
  tokens = align.from_ids(teacher, ids, tops)
  print("teacher:", [token.spelling.decode() for token in tokens])
  students = {"T5": t5, "another BPE": byte_level_bpe(290), "itself": teacher}
  return {
    name: show(name, student, "marginal", tokens)
    for name, student in students.items()
  }


if __name__ == "__main__":
  main(sys.argv[1:])
