"""Parity with PyTorch's T5 of the same random parameters, in float32.

`transformers` v5 ties the head of a fresh T5 1.1 whatever the family, so the
untied model here is given a head of its own.
"""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from testdata import recorded

from specialize_jax.checkpoints import name_table
from specialize_jax.decoding import beam, loop, scoring, strategies
from specialize_jax.t5 import config as t5_config
from specialize_jax.t5 import network

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
RECORDED_ROWS = 8
MAX_NEW_TOKENS = 12


@functools.cache
def ours(family, geometry="tiny"):
  """A random network with its parameters, by the numbers of NumPy alone."""
  mlp_activations, _, tied = FAMILIES[family]
  config = t5_config.T5Config(
    **GEOMETRIES[geometry],
    mlp_activations=mlp_activations,
    tied_head=tied,
    dropout_rate=0.0,
    dtype="float32",
    scan_layers=False,
  )
  model = network.EncoderDecoder(config)
  shapes = flax.traverse_util.flatten_dict(
    name_table.abstract_params(config), sep="/"
  )
  rng = np.random.default_rng(0)
  params = {
    name: (_mean(name) + _std(name, config) * rng.normal(size=leaf.shape))
    for name, leaf in sorted(shapes.items())
  }
  return model, jax.tree.map(
    jnp.float32, flax.traverse_util.unflatten_dict(params, sep="/")
  )


def _mean(name):
  return 1.0 if name.endswith("scale") else 0.0


def _std(name, config):
  """Keeps logits near those of training, and outputs from repeating inputs."""
  sizes = {
    "query": (config.embed_dim * config.head_dim) ** -0.5,
    "out": config.joined_kv_dim**-0.5,
    "wo": config.mlp_dim**-0.5,
    "embedding": 1.0,
    "scale": 0.1,
    "rel_embedding": config.embed_dim**-0.5,
  }
  parts = name.split("/")
  std = next(
    (sizes[part] for part in parts if part in sizes), config.embed_dim**-0.5
  )
  in_layer = any(part.startswith("layers_") for part in parts)
  if config.tied_head and in_layer and config.embed_dim == TINY["embed_dim"]:
    std *= 2.0  # it would repeat its input if its layers added less
  return std


@functools.cache
def theirs(family, geometry="tiny"):
  """The PyTorch model of the same parameters."""
  torch = recorded.torch()
  _, feed_forward_proj, tied = FAMILIES[family]
  sizes = GEOMETRIES[geometry]
  model = transformers.T5ForConditionalGeneration(
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
    model.lm_head.weight = torch.nn.Parameter(
      torch.empty_like(model.shared.weight)
    )
  _, params = ours(family, geometry)
  weights = to_weights(params, sizes, tied)
  named = dict(model.named_parameters())
  assert named.keys() == weights.keys()
  with torch.no_grad():
    for name, weight in weights.items():
      named[name].copy_(torch.from_numpy(np.array(weight)))
  assert (model.lm_head.weight is model.shared.weight) == tied
  return model


def to_weights(params, sizes, tied):
  """By hand and not through the name table, which has a test of its own."""
  weights = {}

  def kernel(name, part):
    weights[f"{name}.weight"] = part["kernel"].T

  def norm(name, part):
    weights[f"{name}.weight"] = part["scale"]

  def attention(name, part):
    of_ours = {"query": "q", "key": "k", "value": "v", "out": "o"}
    for ours, theirs in of_ours.items():
      kernel(f"{name}.{theirs}", part[ours])

  def mlp(name, part):
    for ours in ("wi",) if tied else ("wi_0", "wi_1"):
      kernel(f"{name}.{ours}", part[ours])
    kernel(f"{name}.wo", part["wo"])

  weights["shared.weight"] = params["token_embedder"]["embedding"]
  for stack in ("encoder", "decoder"):
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    bias = params[stack]["relpos_bias"]["rel_embedding"]
    weights[f"{table}.weight"] = bias.T
    norm(f"{stack}.final_layer_norm", params[stack][f"{stack}_norm"])
  for index in range(sizes["num_encoder_layers"]):
    block, layer = f"encoder.block.{index}.layer", f"layers_{index}"
    part = params["encoder"][layer]
    norm(f"{block}.0.layer_norm", part["pre_attention_layer_norm"])
    attention(f"{block}.0.SelfAttention", part["attention"])
    norm(f"{block}.1.layer_norm", part["pre_mlp_layer_norm"])
    mlp(f"{block}.1.DenseReluDense", part["mlp"])
  for index in range(sizes["num_decoder_layers"]):
    block, layer = f"decoder.block.{index}.layer", f"layers_{index}"
    part = params["decoder"][layer]
    norm(f"{block}.0.layer_norm", part["pre_self_attention_layer_norm"])
    attention(f"{block}.0.SelfAttention", part["self_attention"])
    norm(f"{block}.1.layer_norm", part["pre_cross_attention_layer_norm"])
    attention(f"{block}.1.EncDecAttention", part["encoder_decoder_attention"])
    norm(f"{block}.2.layer_norm", part["pre_mlp_layer_norm"])
    mlp(f"{block}.2.DenseReluDense", part["mlp"])
  if not tied:
    kernel("lm_head", params["decoder"]["logits_dense"])
  return weights


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
  model, params = ours(family, geometry)
  source, target = inputs()

  def compute(num_rows=NUM_ROWS):
    torch = recorded.torch()
    ids, mask = torch.from_numpy(source), torch.from_numpy(source > 0)
    with torch.no_grad():
      output = theirs(family, geometry)(
        input_ids=ids,
        attention_mask=mask.long(),
        decoder_input_ids=torch.from_numpy(target),
      )
    return {
      "encoded": output.encoder_last_hidden_state[:num_rows].numpy(),
      "logits": output.logits[:num_rows].numpy(),
    }

  if geometry == "tiny":
    expected = recorded.arrays(
      f"parity/{family}", lambda: compute(RECORDED_ROWS)
    )
  if recorded.HAS_TORCH or geometry != "tiny":
    expected = compute()
  shown = slice(len(expected["logits"]))
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
  is_token = source[shown, :, None] > 0
  np.testing.assert_allclose(
    np.where(is_token, encoded[shown], 0),
    np.where(is_token, expected["encoded"], 0),
    atol=1e-4,
  )
  assert np.abs(expected["logits"]).max() > 0.5
  np.testing.assert_allclose(logits[shown], expected["logits"], atol=2e-4)


def _generated(family, **options):
  """What transformers decodes from the inputs."""
  torch = recorded.torch()
  source, _ = inputs()
  with torch.no_grad():
    return theirs(family).generate(
      input_ids=torch.from_numpy(source),
      attention_mask=torch.from_numpy(source > 0).long(),
      max_new_tokens=MAX_NEW_TOKENS,
      do_sample=False,
      **options,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_sequences_are_those_of_generate(family):
  model, params = ours(family)
  source, _ = inputs()
  generated = recorded.arrays(
    f"parity/{family}_greedy",
    lambda: {
      "tokens": _generated(family, num_beams=1).numpy()[:, 1:].astype(np.int32)
    },
  )["tokens"]
  found = loop.decode(
    model,
    params,
    jnp.asarray(source, jnp.int32),
    max_new_tokens=MAX_NEW_TOKENS,
    strategy=strategies.Greedy(),
  ).tokens
  width = MAX_NEW_TOKENS - generated.shape[1]
  np.testing.assert_array_equal(found, np.pad(generated, ((0, 0), (0, width))))
  assert len({tuple(row) for row in generated.tolist()}) > NUM_ROWS // 2


@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_sequences_are_those_of_generate_or_ties(family, length_penalty):
  model, params = ours(family)
  source, _ = inputs()

  def compute():
    generated = _generated(
      family,
      num_beams=4,
      num_return_sequences=2,
      length_penalty=length_penalty,
      early_stopping=False,
      output_scores=True,
      return_dict_in_generate=True,
    )
    return {
      "tokens": generated.sequences.numpy()[:, 1:].astype(np.int32),
      "scores": generated.sequences_scores.numpy(),
    }

  generated = recorded.arrays(
    f"parity/{family}_beams_{length_penalty}", compute
  )
  sequences = generated["tokens"].copy()
  width = MAX_NEW_TOKENS - sequences.shape[1]
  sequences = np.pad(sequences, ((0, 0), (0, width))).reshape(NUM_ROWS, 2, -1)
  # Theirs fills up with EOS where the padding token is 0.
  ends = sequences == t5_config.EOS_ID
  sequences[np.cumsum(ends, axis=-1) - ends > 0] = t5_config.PAD_ID
  source = jnp.asarray(source, jnp.int32)
  found = beam.decode(
    model,
    params,
    source,
    max_new_tokens=MAX_NEW_TOKENS,
    num_beams=4,
    num_return_sequences=2,
    length_penalty=length_penalty,
  )
  np.testing.assert_allclose(
    found.scores.reshape(-1), generated["scores"], rtol=2e-5
  )
  # A sequence that differs is a tie: our network, too, finds theirs as good.
  differ = (np.asarray(found.tokens) != sequences).any(axis=-1)
  for row, rank in np.argwhere(differ):
    theirs_1T = jnp.asarray(sequences[row, rank][None])
    log_probs = np.asarray(
      scoring.score(model, params, source[row][None], theirs_1T)
    )
    length = (log_probs != 0).sum()
    score = log_probs.sum() / length**length_penalty
    np.testing.assert_allclose(score, found.scores[row, rank], rtol=2e-5)
  assert differ.mean() < 0.05
  assert len({tuple(row) for row in sequences[:, 0].tolist()}) > NUM_ROWS // 2
