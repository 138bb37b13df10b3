"""Hidden states, a head and a batch with a teacher, drawn at random."""

import numpy as np

BATCH, LENGTH, EMBED, VOCAB, CANDIDATES = 4, 10, 6, 24, 3


def draw(seed=0, dtype=np.float32, vocab_size=VOCAB):
  """Returns hidden states, kernel and batch; half of the weights are zero."""
  rng = np.random.default_rng(seed)
  shape = (BATCH, LENGTH)
  ids = np.argsort(rng.random((*shape, vocab_size)), -1)[..., :CANDIDATES]
  probs = rng.dirichlet(np.ones(CANDIDATES), shape) * 0.95
  probs[..., -1] *= rng.integers(0, 2, shape)
  batch = {
    "decoder_target_tokens": rng.integers(0, vocab_size, shape).astype("i4"),
    "decoder_loss_weights": rng.integers(0, 2, shape).astype(np.float32),
    "decoder_teacher_top_ids": np.where(probs > 0, ids, 0).astype(np.int32),
    "decoder_teacher_top_probs": probs.astype(np.float32),
    "decoder_teacher_top_mask": rng.integers(0, 2, shape).astype(np.int32),
  }
  hidden = rng.standard_normal((*shape, EMBED)).astype(dtype)
  kernel = rng.standard_normal((EMBED, vocab_size)).astype(dtype)
  return hidden, kernel, batch
