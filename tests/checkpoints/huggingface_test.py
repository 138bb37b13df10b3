"""Round trips with folders that PyTorch's transformers writes and reads."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from testdata import recorded, tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import huggingface, name_table, sources


@pytest.fixture(scope="module", params=tiny_checkpoints.FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
  path = tmp_path_factory.mktemp("transformers") / family
  tiny_checkpoints.save_theirs(family, path)
  return path


def load(path, **changes):
  source = huggingface.Folder(path)
  config = dataclasses.replace(source.config, dtype="float32", **changes)
  return config, name_table.assemble(config, source)


def write(path, config, params, **options):
  huggingface.write(path, config, tiny_checkpoints.source_of(params), **options)


def tensors_of(path):
  read = {}
  for file in sorted(path.glob("*.safetensors")):
    read |= safetensors.numpy.load_file(file)
  return read


def test_a_folder_gives_its_model(family, folder):
  config, params = load(folder)
  assert config.tied_head == (family == "t5_1_0")
  assert (config.num_encoder_layers, config.num_decoder_layers) == (3, 2)
  assert config.relative_attention_max_distance == 20
  np.testing.assert_allclose(
    tiny_checkpoints.our_logits(config, params),
    tiny_checkpoints.their_logits(folder, family),
    atol=1e-4,
  )


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_round_trip_changes_no_bit(folder, tmp_path, scan_layers):
  config, params = load(folder, scan_layers=scan_layers)
  write(tmp_path / "out", config, params)
  before, after = tensors_of(folder), tensors_of(tmp_path / "out")
  assert before.keys() == after.keys()
  for name, value in before.items():
    np.testing.assert_array_equal(after[name], value, err_msg=name)


def test_transformers_loads_what_we_write_in_shards(family, folder, tmp_path):
  config, params = load(folder)
  path = tmp_path / "out"
  write(path, config, params, max_shard_bytes=4000)
  shards = list(path.glob("model-*-of-*.safetensors"))
  assert len(shards) > 3
  assert max(shard.stat().st_size for shard in shards) < 8000
  if recorded.HAS_TORCH:  # else both are the recording
    np.testing.assert_array_equal(
      tiny_checkpoints.their_logits(path, family),
      tiny_checkpoints.their_logits(folder, family),
    )
  generation = json.loads((path / "generation_config.json").read_text())
  assert generation["decoder_start_token_id"] == 0
  config_again, params_again = load(path)
  assert config_again == config
  jax.tree.map(np.testing.assert_array_equal, params, params_again)


def test_bfloat16_files_come_back_as_they_were(folder, tmp_path):
  config, params = load(folder)
  write(tmp_path / "half", config, params, dtype="bfloat16")
  config, params = load(tmp_path / "half")
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
  write(tmp_path / "again", config, params, dtype="bfloat16")
  before, after = tensors_of(tmp_path / "half"), tensors_of(tmp_path / "again")
  for name, value in before.items():
    assert value.dtype.name == "bfloat16"
    np.testing.assert_array_equal(after[name], value)


def edit(folder, path, *, keys=None, tensors=None):
  """Copies a folder, with keys of its config and tensors changed."""
  path.mkdir()
  config = json.loads((folder / "config.json").read_text()) | (keys or {})
  config = {k: v for k, v in config.items() if v is not ...}
  (path / "config.json").write_text(json.dumps(config))
  values = tensors_of(folder) | (tensors or {})
  values = {k: v for k, v in values.items() if v is not ...}
  safetensors.numpy.save_file(values, path / "model.safetensors")
  return path


V4 = {"scale_decoder_outputs": ...}


@pytest.mark.parametrize(
  ("start", "keys", "own_head", "tied"),
  [
    # transformers v4 said all by one key.
    ("t5_1_0", V4 | {"tie_word_embeddings": True}, None, True),
    ("t5_1_0", V4 | {"tie_word_embeddings": ...}, None, True),
    ("t5_1_1", V4 | {"tie_word_embeddings": False}, "different", False),
    # T5 1.0's first files hold the head beside the embedding.
    ("t5_1_0", V4 | {"tie_word_embeddings": True}, "equal", True),
    # v5 always writes true, and says by the other key what is scaled.
    ("t5_1_1", {"tie_word_embeddings": True}, "different", False),
    # A fresh T5 1.1 of v5: tied, but not scaled.
    (
      "t5_1_1",
      {"tie_word_embeddings": True, "scale_decoder_outputs": False},
      None,
      False,
    ),
    # A head of its own whose logits are scaled all the same.
    (
      "t5_1_1",
      {"tie_word_embeddings": True, "scale_decoder_outputs": True},
      "different",
      False,
    ),
  ],
)
def test_the_head_is_what_transformers_makes_of_the_files(
  start, keys, own_head, tied, tmp_path
):
  tiny_checkpoints.save_theirs(start, tmp_path / "start")
  embedding = tensors_of(tmp_path / "start")["shared.weight"]
  head = {
    None: ...,
    "equal": embedding,
    "different": np.cos(embedding).astype(np.float32),
  }[own_head]
  path = edit(
    tmp_path / "start",
    tmp_path / "edited",
    keys=keys,
    tensors={"lm_head.weight": head},
  )
  config, params = load(path)
  assert config.tied_head == tied
  said = [f"{key}_{'absent' if v is ... else v}" for key, v in keys.items()]
  name = "_".join([start, f"{own_head}_head", *said])
  np.testing.assert_allclose(
    tiny_checkpoints.our_logits(config, params),
    tiny_checkpoints.their_logits(path, name),
    atol=1e-4,
  )


def test_known_duplicates_are_passed_over(tmp_path):
  tiny_checkpoints.save_theirs("t5_1_0", tmp_path / "start")
  embedding = tensors_of(tmp_path / "start")["shared.weight"]
  cross = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
  path = edit(
    tmp_path / "start",
    tmp_path / "edited",
    tensors={
      "encoder.embed_tokens.weight": embedding,
      "decoder.embed_tokens.weight": embedding,
      f"{cross}.weight": np.zeros((8, 3), np.float32),
    },
  )
  load(path)


_EMBEDDINGS = [
  "shared.weight",
  "encoder.embed_tokens.weight",
  "decoder.embed_tokens.weight",
]


def test_the_embedding_is_under_any_of_its_names(folder, tmp_path):
  embedding = tensors_of(folder)["shared.weight"]
  changed = embedding + np.eye(*embedding.shape, dtype=np.float32)
  for number in range(1, 8):
    names = {
      name: embedding if number & 1 << place else ...
      for place, name in enumerate(_EMBEDDINGS)
    }
    source = huggingface.Folder(
      edit(folder, tmp_path / f"{number}", tensors=names)
    )
    name_table.check(source.config, source)
    np.testing.assert_array_equal(source.read(sources.EMBEDDING), embedding)
    there = [name for name in names if names[name] is not ...]
    for name in there if len(there) > 1 else []:
      other = tmp_path / f"{number}_{name}"
      edit(folder, other, tensors=names | {name: changed})
      with pytest.raises(errors.UserError, match="differ, and a T5 has one"):
        _ = huggingface.Folder(other).shapes


def test_a_tied_head_alone_is_the_embedding_and_no_other_head_is(tmp_path):
  none = dict.fromkeys(_EMBEDDINGS, ...)
  for name in tiny_checkpoints.FAMILIES:
    tiny_checkpoints.save_theirs(name, tmp_path / name)
  embedding = tensors_of(tmp_path / "t5_1_0")["shared.weight"]
  tied = edit(
    tmp_path / "t5_1_0",
    tmp_path / "tied",
    tensors=none | {"lm_head.weight": embedding},
  )
  config, params = load(tied)
  assert config.tied_head
  np.testing.assert_array_equal(
    params["token_embedder"]["embedding"], embedding
  )
  untied = edit(tmp_path / "t5_1_1", tmp_path / "untied", tensors=none)
  with pytest.raises(errors.UserError, match="missing: token_embedder/emb"):
    load(untied)


@pytest.mark.parametrize(
  ("keys", "activations"),
  [
    ({"feed_forward_proj": "gated-gelu_new"}, ("gelu", "linear")),
    ({"feed_forward_proj": "gated-relu"}, ("relu", "linear")),
  ],
)
def test_activations_are_those_of_transformers(tmp_path, keys, activations):
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "start")
  derived = {"is_gated_act": ..., "dense_act_fn": ...}
  path = edit(tmp_path / "start", tmp_path / "edited", keys=keys | derived)
  config, params = load(path)
  assert config.mlp_activations == activations
  np.testing.assert_allclose(
    tiny_checkpoints.our_logits(config, params),
    tiny_checkpoints.their_logits(path, f"t5_1_1_{keys['feed_forward_proj']}"),
    atol=1e-4,
  )
  write(tmp_path / "back", config, params)
  assert load(tmp_path / "back")[0].mlp_activations == activations


def test_keys_that_are_absent_have_transformers_defaults(tmp_path):
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "start")
  absent = ["num_decoder_layers", "d_ff", "num_heads", "dropout_rate"]
  path = edit(
    tmp_path / "start", tmp_path / "edited", keys=dict.fromkeys(absent, ...)
  )
  config = huggingface.Folder(path).config
  assert (config.num_decoder_layers, config.mlp_dim) == (3, 2048)
  assert (config.num_heads, config.dropout_rate) == (8, 0.1)


@pytest.mark.parametrize(
  ("dtype", "value", "problem"),
  [
    ("float16", 70000.0, "which is too large for float16"),
    ("bfloat16", 3.4e38, "which is too large for bfloat16"),
    ("float32", np.nan, "holds 1 values that are NaN or infinite"),
    ("float32", -np.inf, "holds 1 values that are NaN or infinite"),
    ("bfloat16", np.nan, "holds 1 values that are NaN or infinite"),
    ("bfloat16", -np.inf, "holds 1 values that are NaN or infinite"),
  ],
)
def test_a_weight_that_is_not_finite_or_would_not_be_is_refused_by_name(
  folder, tmp_path, dtype, value, problem
):
  config, params = load(folder)
  params = jax.tree.map(np.array, params)
  params["decoder"]["decoder_norm"]["scale"][3] = value
  with pytest.raises(errors.UserError) as raised:
    write(tmp_path / "out", config, params, dtype=dtype)
  assert "decoder/decoder_norm/scale (decoder.final_layer_norm.weight)" in str(
    raised.value
  )
  assert problem in str(raised.value)
  assert list(tmp_path.iterdir()) == []


def test_tensors_that_do_not_fit_are_named_as_in_the_file(tmp_path):
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "start")
  path = edit(
    tmp_path / "start",
    tmp_path / "edited",
    keys=V4 | {"tie_word_embeddings": False},
    tensors={"lm_head.weight": ..., "extra.weight": np.zeros(2)},
  )
  with pytest.raises(errors.UserError) as raised:
    load(path)
  assert "missing: decoder/logits_dense/kernel;" in str(raised.value)
  assert "unexpected: extra.weight" in str(raised.value)


@pytest.mark.parametrize(
  ("keys", "message"),
  [
    ({"model_type": "mt5"}, "type 'mt5', and only 't5'"),
    ({"feed_forward_proj": "gated-silu"}, 'd_proj is "gated-silu" in config'),
    ({"feed_forward_proj": ["relu"]}, r'd_proj is \["relu"\] in config'),
    ({"is_gated_act": False}, "is_gated_act is false .* must be true where"),
    ({"dense_act_fn": "silu"}, 'dense_act_fn is "silu" in config.json'),
    ({"d_model": "16"}, 'd_model is "16" in config.json, and must be a whole'),
    ({"d_kv": 6.0}, "d_kv is 6.0 in config.json, and must be a whole"),
    ({"num_layers": 0}, "num_layers is 0 in config.json"),
    ({"num_layers": 10**6}, "num_layers is 1000000 .* must be at most 1,000"),
    ({"d_ff": 10**400}, "d_ff is 1000.* must be at most 1,000,000,000"),
    ({"vocab_size": None}, "vocab_size is null in config.json, and must be a"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is NaN in"),
    ({"dropout_rate": True}, "dropout_rate is true in config.json"),
    ({"layer_norm_epsilon": -1e-6}, "layer_norm_epsilon is -1e-06 in config"),
    ({"tie_word_embeddings": "no"}, 'tie_word_embeddings is "no" in config'),
    ({"pruned_heads": {"0": [1]}}, "pruned_heads is .* must be empty"),
  ],
)
def test_another_architecture_is_refused_by_name(tmp_path, keys, message):
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "start")
  path = edit(tmp_path / "start", tmp_path / "edited", keys=keys)
  with pytest.raises(errors.UserError, match=message):
    load(path)


def test_a_broken_folder_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="not a Hugging Face folder"):
    load(tmp_path / "nowhere")
  tiny_checkpoints.save_theirs("t5_1_1", tmp_path / "start")
  weights = tmp_path / "start" / "model.safetensors"
  weights.write_bytes(weights.read_bytes()[:-100])
  with pytest.raises(errors.UserError, match="model.safetensors cannot be re"):
    load(tmp_path / "start")
  weights.unlink()
  with pytest.raises(errors.UserError, match="holds neither model.safe"):
    load(tmp_path / "start")


def test_nothing_is_left_of_a_write_that_failed(folder, tmp_path):
  config, params = load(folder)
  with pytest.raises(errors.UserError, match="exists already"):
    write(tmp_path, config, params)
  del params["decoder"]["decoder_norm"]
  with pytest.raises(errors.UserError, match="decoder/decoder_norm/scale"):
    write(tmp_path / "out", config, params)
  assert list(tmp_path.iterdir()) == []
