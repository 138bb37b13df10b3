"""Parity with PyTorch's T5, randomly initialized, in float32.

`transformers` v5 ties the head of a fresh T5 1.1 whatever the family, so the
untied model here is given a head of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from specialize_jax.decoding import beam, loop, scoring, strategies
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

torch = pytest.importorskip("torch", reason="the parity oracle")

TINY = {
  "vocab_size": 96,
  "embed_dim": 32,
  "mlp_dim": 40,
  "num_heads": 3,
  "head_dim": 12,
  "num_encoder_layers": 3,
  "num_decoder_layers": 2,
  "relative_attention_num_buckets": 8,
  "relative_attention_max_distance": 20,
}
SMALL = {
  "vocab_size": 32128,
  "embed_dim": 512,
  "mlp_dim": 1024,
  "num_heads": 6,
  "head_dim": 64,
  "num_encoder_layers": 8,
  "num_decoder_layers": 8,
  "relative_attention_num_buckets": 32,
  "relative_attention_max_distance": 128,
}
GEOMETRIES = {"tiny": TINY, "small": SMALL}
FAMILIES = {
  "t5_1_0": (("relu",), "relu", True),
  "t5_1_1": (("gelu", "linear"), "gated-gelu", False),
}
NUM_ROWS = 64
MAX_NEW_TOKENS = 12


@functools.cache
def pair(family, geometry="tiny"):
  """The same random network twice: ours with its parameters, and theirs."""
  mlp_activations, feed_forward_proj, tied = FAMILIES[family]
  sizes = GEOMETRIES[geometry]
  torch.manual_seed(0)
  theirs = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=sizes["vocab_size"],
      d_model=sizes["embed_dim"],
      d_kv=sizes["head_dim"],
      d_ff=sizes["mlp_dim"],
      num_heads=sizes["num_heads"],
      num_layers=sizes["num_encoder_layers"],
      num_decoder_layers=sizes["num_decoder_layers"],
      relative_attention_num_buckets=sizes["relative_attention_num_buckets"],
      relative_attention_max_distance=sizes["relative_attention_max_distance"],
      dropout_rate=0.0,
      feed_forward_proj=feed_forward_proj,
      tie_word_embeddings=tied,
      scale_decoder_outputs=tied,
      decoder_start_token_id=0,
    )
  ).eval()
  if not tied:
    # Of T5X's initial size, which keeps logits near those of training.
    head = torch.randn_like(theirs.shared.weight) * sizes["embed_dim"] ** -0.5
    theirs.lm_head.weight = torch.nn.Parameter(head)
  with torch.no_grad():
    for name, weight in theirs.named_parameters():
      if "layer_norm" in name:
        weight.add_(0.1 * torch.randn_like(weight))
      elif tied and geometry == "tiny" and ".layer." in name:
        # It would repeat its input if its layers added as little as at first.
        weight.mul_(3.0)
  assert (theirs.lm_head.weight is theirs.shared.weight) == tied
  config = t5_config.T5Config(
    **sizes,
    mlp_activations=mlp_activations,
    tied_head=tied,
    dropout_rate=0.0,
    dtype="float32",
    scan_layers=False,
  )
  return network.EncoderDecoder(config), to_params(theirs, sizes, tied), theirs


def to_params(theirs, sizes, tied):
  """By hand and not through the name table, which has a test of its own."""
  weights = {k: v.detach().numpy() for k, v in theirs.state_dict().items()}

  def kernel(name):
    return {"kernel": jnp.asarray(weights[f"{name}.weight"].T)}

  def norm(name):
    return {"scale": jnp.asarray(weights[f"{name}.weight"])}

  def attention(name):
    parts = {"query": "q", "key": "k", "value": "v", "out": "o"}
    return {ours: kernel(f"{name}.{part}") for ours, part in parts.items()}

  def mlp(name):
    ours = {"wi": "wi"} if tied else {"wi_0": "wi_0", "wi_1": "wi_1"}
    return {part: kernel(f"{name}.{part}") for part in (*ours, "wo")}

  def stack(name, final_norm):
    table = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return {
      "relpos_bias": {
        "rel_embedding": jnp.asarray(weights[f"{table}.weight"].T)
      },
      final_norm: norm(f"{name}.final_layer_norm"),
    }

  params = {
    "token_embedder": {"embedding": jnp.asarray(weights["shared.weight"])},
    "encoder": stack("encoder", "encoder_norm"),
    "decoder": stack("decoder", "decoder_norm"),
  }
  for index in range(sizes["num_encoder_layers"]):
    block = f"encoder.block.{index}.layer"
    params["encoder"][f"layers_{index}"] = {
      "pre_attention_layer_norm": norm(f"{block}.0.layer_norm"),
      "attention": attention(f"{block}.0.SelfAttention"),
      "pre_mlp_layer_norm": norm(f"{block}.1.layer_norm"),
      "mlp": mlp(f"{block}.1.DenseReluDense"),
    }
  for index in range(sizes["num_decoder_layers"]):
    block = f"decoder.block.{index}.layer"
    params["decoder"][f"layers_{index}"] = {
      "pre_self_attention_layer_norm": norm(f"{block}.0.layer_norm"),
      "self_attention": attention(f"{block}.0.SelfAttention"),
      "pre_cross_attention_layer_norm": norm(f"{block}.1.layer_norm"),
      "encoder_decoder_attention": attention(f"{block}.1.EncDecAttention"),
      "pre_mlp_layer_norm": norm(f"{block}.2.layer_norm"),
      "mlp": mlp(f"{block}.2.DenseReluDense"),
    }
  if not tied:
    params["decoder"]["logits_dense"] = kernel("lm_head")
  return params


def inputs(length=30):
  rng = np.random.default_rng(0)
  source = rng.integers(2, 96, (NUM_ROWS, length))
  lengths = rng.integers(1, length + 1, (NUM_ROWS, 1))
  source = np.where(np.arange(length) < lengths, source, 0)
  target = rng.integers(2, 96, (NUM_ROWS, 25))
  target[:, 0] = 0
  return source, target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
  "geometry", ["tiny", pytest.param("small", marks=pytest.mark.slow)]
)
def test_hidden_states_and_logits_are_those_of_transformers(family, geometry):
  model, params, theirs = pair(family, geometry)
  source, target = inputs()
  ids, mask = torch.from_numpy(source), torch.from_numpy(source > 0)
  with torch.no_grad():
    output = theirs(
      input_ids=ids,
      attention_mask=mask.long(),
      decoder_input_ids=torch.from_numpy(target),
    )
  source, target = source.astype(np.int32), target.astype(np.int32)
  encoded = jax.jit(
    lambda params: model.apply(
      {"params": params}, source, deterministic=True, method="encode"
    )
  )(params)
  logits = jax.jit(
    lambda params: model.apply(
      {"params": params}, source, target, deterministic=True
    )
  )(params)
  np.testing.assert_allclose(
    np.where(source[..., None] > 0, encoded, 0),
    np.where(source[..., None] > 0, output.encoder_last_hidden_state, 0),
    atol=1e-4,
  )
  assert np.abs(output.logits.numpy()).max() > 0.5
  np.testing.assert_allclose(logits, output.logits.numpy(), atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_sequences_are_those_of_generate(family):
  model, params, theirs = pair(family)
  source, _ = inputs()
  with torch.no_grad():
    generated = theirs.generate(
      input_ids=torch.from_numpy(source),
      attention_mask=torch.from_numpy(source > 0).long(),
      max_new_tokens=MAX_NEW_TOKENS,
      do_sample=False,
      num_beams=1,
    ).numpy()[:, 1:]
  ours = loop.decode(
    model,
    params,
    jnp.asarray(source, jnp.int32),
    max_new_tokens=MAX_NEW_TOKENS,
    strategy=strategies.Greedy(),
  ).tokens
  width = MAX_NEW_TOKENS - generated.shape[1]
  np.testing.assert_array_equal(ours, np.pad(generated, ((0, 0), (0, width))))
  assert len({tuple(row) for row in generated.tolist()}) > NUM_ROWS // 2


@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_sequences_are_those_of_generate_or_ties(family, length_penalty):
  model, params, theirs = pair(family)
  source, _ = inputs()
  with torch.no_grad():
    generated = theirs.generate(
      input_ids=torch.from_numpy(source),
      attention_mask=torch.from_numpy(source > 0).long(),
      max_new_tokens=MAX_NEW_TOKENS,
      do_sample=False,
      num_beams=4,
      num_return_sequences=2,
      length_penalty=length_penalty,
      early_stopping=False,
      output_scores=True,
      return_dict_in_generate=True,
    )
  sequences = generated.sequences.numpy()[:, 1:].astype(np.int32)
  width = MAX_NEW_TOKENS - sequences.shape[1]
  sequences = np.pad(sequences, ((0, 0), (0, width))).reshape(NUM_ROWS, 2, -1)
  # Theirs fills up with EOS where the padding token is 0.
  ends = sequences == t5_config.EOS_ID
  sequences[np.cumsum(ends, axis=-1) - ends > 0] = t5_config.PAD_ID
  source = jnp.asarray(source, jnp.int32)
  ours = beam.decode(
    model,
    params,
    source,
    max_new_tokens=MAX_NEW_TOKENS,
    num_beams=4,
    num_return_sequences=2,
    length_penalty=length_penalty,
  )
  np.testing.assert_allclose(
    ours.scores.reshape(-1), generated.sequences_scores, rtol=2e-5
  )
  # A sequence that differs is a tie: our network, too, finds theirs as good.
  differ = (np.asarray(ours.tokens) != sequences).any(axis=-1)
  for row, rank in np.argwhere(differ):
    theirs_1T = jnp.asarray(sequences[row, rank][None])
    log_probs = np.asarray(
      scoring.score(model, params, source[row][None], theirs_1T)
    )
    length = (log_probs != 0).sum()
    score = log_probs.sum() / length**length_penalty
    np.testing.assert_allclose(score, ours.scores[row, rank], rtol=2e-5)
  assert differ.mean() < 0.05
  assert len({tuple(row) for row in sequences[:, 0].tolist()}) > NUM_ROWS // 2
