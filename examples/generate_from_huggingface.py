"""Decodes with a Hugging Face folder of a T5, in a few lines.

  python examples/generate_from_huggingface.py FOLDER "some input" ...

Without arguments a tiny T5 with random weights is written first, so that it
runs without a download; its outputs are noise.
"""

import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import sentencepiece

from specialize_jax import checkpoints, decoding, t5


def write_tiny_folder() -> str:
  """Writes a T5 1.1 with random weights as a Hugging Face folder."""
  folder = pathlib.Path(tempfile.mkdtemp())
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["What is 3 + 4?", "The answer is 7."] * 9),
    model_prefix=f"{folder}/spiece",
    vocab_size=40,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
  )
  config = t5.T5Config(
    vocab_size=128,
    embed_dim=16,
    mlp_dim=32,
    num_heads=2,
    head_dim=8,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_activations=("gelu", "linear"),
    tied_head=False,
    scan_layers=False,
  )
  tokens = jnp.ones((1, 4), jnp.int32)
  variables = t5.EncoderDecoder(config).init(
    jax.random.key(0), tokens, tokens, deterministic=True
  )
  checkpoints.export_params(
    folder / "model",
    config,
    variables["params"],
    vocabulary_path=folder / "spiece.model",
  )
  return str(folder / "model")


folder, *texts = sys.argv[1:] or [write_tiny_folder()]
texts = texts or ["What is 3 + 4?", "What is 4 + 4?"]

checkpoint = checkpoints.open_checkpoint(folder)
vocabulary = decoding.open_vocabulary(checkpoint.vocabulary_path)
model = t5.EncoderDecoder(checkpoint.config)
outputs = decoding.generate(
  model,
  checkpoint.params(),
  texts,
  vocabulary=vocabulary,
  settings=decoding.Settings(max_new_tokens=12),
)
for text, output in zip(texts, outputs, strict=True):
  print(f"{text!r} -> {output!r}")
