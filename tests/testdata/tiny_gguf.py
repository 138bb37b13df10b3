"""A random LLaMA of a few thousand parameters, as llama.cpp reads it."""

import numpy as np

WORDS = ("The", "answer", "is", "There", "are", "left", "So", "she", "has")
SIZE = 32
CONTEXT = 4096


def vocabulary():
  """Returns tokens and merges: GPT-2's bytes of ASCII, numbers, some words.

  Also the two bytes of "\u00e9" by themselves, so that a random model says
  tokens that are no whole character.
  """
  # GPT-2 writes a byte that is no visible character as one from U+0100 on.
  tokens = ["<|endoftext|>", "\u010a", "\u0120"]
  tokens += [chr(code) for code in range(33, 127)]
  tokens += ["\u00c3", "\u00a9"]
  merges = []
  for word in ["\u0120" + word for word in WORDS] + list("0123456789"):
    for other in "0123456789" if word.isdigit() else "":
      merges.append(f"{word} {other}")
      tokens.append(word + other)
    for end in range(1, len(word)):
      if word[: end + 1] not in tokens:
        merges.append(f"{word[:end]} {word[end]}")
        tokens.append(word[: end + 1])
  return tokens, merges


def write(path, *, seed=0):
  """Writes the model; needs the `gguf` package."""
  import gguf

  tokens, merges = vocabulary()
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_context_length(CONTEXT)
  writer.add_embedding_length(SIZE)
  writer.add_block_count(1)
  writer.add_feed_forward_length(2 * SIZE)
  writer.add_head_count(2)
  writer.add_head_count_kv(2)
  writer.add_rope_dimension_count(SIZE // 2)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_vocab_size(len(tokens))
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  writer.add_token_list(tokens)
  kinds = [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * len(tokens[1:])
  writer.add_token_types(kinds)
  writer.add_token_merges(merges)
  writer.add_bos_token_id(0)
  writer.add_eos_token_id(0)
  rng = np.random.default_rng(seed)
  norms = {"output_norm": SIZE, "blk.0.attn_norm": SIZE, "blk.0.ffn_norm": SIZE}
  matrices = {
    "token_embd": (len(tokens), SIZE),
    "output": (len(tokens), SIZE),
    **{f"blk.0.attn_{name}": (SIZE, SIZE) for name in "qkv"},
    "blk.0.attn_output": (SIZE, SIZE),
    "blk.0.ffn_gate": (2 * SIZE, SIZE),
    "blk.0.ffn_up": (2 * SIZE, SIZE),
    "blk.0.ffn_down": (SIZE, 2 * SIZE),
  }
  for name, size in norms.items():
    writer.add_tensor(f"{name}.weight", np.ones(size, np.float32))
  for name, shape in matrices.items():
    values = rng.normal(0, 0.3, shape).astype(np.float32)
    writer.add_tensor(f"{name}.weight", values)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path
