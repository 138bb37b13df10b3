"""T5X's own checkpoint, and others written here in the same layout."""

import dataclasses
import re

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from testdata import real_files, tiny_checkpoints, xla_flags

from specialize_jax import errors
from specialize_jax.checkpoints import conversion, name_table, opening, t5x
from specialize_jax.t5 import network

CONFIG = tiny_checkpoints.config("t5_1_1", dtype="bfloat16")
DEFAULT_DISTANCE = {"relative_attention_max_distance": 128}


def test_logits_are_those_that_t5x_recorded():
  tiny = real_files.find("t5x", "tiny_t5_1_1")
  checkpoint = t5x.Checkpoint(tiny / "checkpoint_0")
  config = dataclasses.replace(checkpoint.config, dtype="float32")
  check_reference(tiny, config, name_table.assemble(config, checkpoint))


def check_reference(folder, config, params):
  reference = np.load(folder / "reference.npz")
  model = network.EncoderDecoder(config)
  # Compiled as users compile it: without the optimizer, which conftest.py turns
  # off, rounding alone is 1.4e-4.
  compiled_as_usual = {"xla_backend_optimization_level": 3}
  if "--xla_cpu_use_fusion_emitters" in xla_flags.QUICK:
    compiled_as_usual["xla_cpu_use_fusion_emitters"] = True
  logits = jax.jit(
    lambda params, source, target: model.apply(
      {"params": params}, source, target, deterministic=True
    ),
    compiler_options=compiled_as_usual,
  )(
    params,
    reference["ids"].astype(np.int32),
    reference["dec"].astype(np.int32),
  )
  np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)


def written(tmp_path, tensors, **options):
  path = tiny_checkpoints.write_t5x(
    tmp_path / "checkpoint_7", tensors, **options
  )
  return t5x.Checkpoint(path)


def check_tensors(checkpoint, config, tensors):
  assert checkpoint.config == dataclasses.replace(config, **DEFAULT_DISTANCE)
  params = name_table.assemble(config, checkpoint)
  again = tiny_checkpoints.source_of(params)
  assert again.shapes.keys() == tensors.keys()
  for name, value in tensors.items():
    np.testing.assert_array_equal(again.read(name), value, err_msg=name)


@pytest.mark.parametrize("family", tiny_checkpoints.FAMILIES)
@pytest.mark.parametrize("layers", ["listed", "scanned"])
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_every_layout_gives_the_tensors_that_were_written(
  tmp_path, family, layers, with_optimizer
):
  config = tiny_checkpoints.config(family, dtype="bfloat16")
  tensors = tiny_checkpoints.random_tensors(config)
  stored = (
    tensors if layers == "listed" else tiny_checkpoints.scanned(tensors, config)
  )
  checkpoint = written(
    tmp_path,
    stored,
    with_optimizer=with_optimizer,
    inline=["encoder/encoder_norm/scale"],
  )
  check_tensors(checkpoint, config, tensors)


@pytest.mark.parametrize("layout", ["old_spec", "placeholder"])
def test_an_index_may_name_arrays_in_any_of_t5x_s_ways(tmp_path, layout):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  check_tensors(written(tmp_path, tensors, layout=layout), CONFIG, tensors)


def test_an_index_that_leads_out_of_its_checkpoint_is_refused(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  written(tmp_path, tensors, layout="placeholder")
  index = tmp_path / "checkpoint_7" / "checkpoint"
  inside, outside = (
    f"PLACEHOLDER://{top}.encoder.encoder_norm.scale".encode()
    for top in ("target", "../get")
  )
  content = index.read_bytes()
  assert inside in content
  index.write_bytes(content.replace(inside, outside))
  with pytest.raises(errors.UserError, match="not the name of an array in"):
    t5x.Checkpoint(tmp_path / "checkpoint_7")


def test_layers_may_be_stacked_along_the_first_axis(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  stored = tiny_checkpoints.scanned(tensors, CONFIG, axis=0)
  check_tensors(written(tmp_path, stored), CONFIG, tensors)


def test_listed_layers_may_each_have_the_table_of_their_stack(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  stored = tiny_checkpoints.per_layer_tables(tensors, CONFIG)
  check_tensors(written(tmp_path, stored), CONFIG, tensors)


def test_bfloat16_stays_as_it_is(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG, "bfloat16")
  checkpoint = written(tmp_path, tensors)
  assert {dtype.name for dtype in checkpoint.dtypes} == {"bfloat16"}
  name = "decoder/layers_1/mlp/wi_1/kernel"
  np.testing.assert_array_equal(checkpoint.read(name), tensors[name])


def test_the_first_t5x_s_disguised_bfloat16_is_refused(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  tensors["encoder/encoder_norm/scale"] = np.ones(16, np.uint16)
  with pytest.raises(errors.UserError, match="encoder_norm/scale is of type u"):
    written(tmp_path, tensors)


def test_layers_with_tables_of_their_own_are_a_network_of_such(tmp_path):
  stored = tiny_checkpoints.scanned(
    tiny_checkpoints.random_tensors(CONFIG), CONFIG
  )
  stored["decoder/layers/relpos_bias/rel_embedding"][0, 1, 0] += 1
  checkpoint = written(tmp_path, stored)
  assert checkpoint.config.relative_bias == "per_layer"
  params = name_table.assemble(checkpoint.config, checkpoint)
  np.testing.assert_array_equal(
    params["decoder"]["layers"]["relpos_bias"]["rel_embedding"][1],
    stored["decoder/layers/relpos_bias/rel_embedding"][:, 1],
  )
  with pytest.raises(errors.UserError, match="set it to 'per_layer'"):
    name_table.assemble(CONFIG, checkpoint)
  opened = opening.open_checkpoint(tmp_path / "checkpoint_7")
  with pytest.raises(errors.UserError, match="has one for all layers of a st"):
    conversion.plan(opened, to="huggingface")


def test_one_table_a_stack_starts_a_network_with_one_a_layer(tmp_path):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  checkpoint = written(tmp_path, tensors)
  params = name_table.assemble(
    dataclasses.replace(CONFIG, relative_bias="per_layer"), checkpoint
  )
  for stack in ("encoder", "decoder"):
    for table in params[stack]["layers"]["relpos_bias"]["rel_embedding"]:
      np.testing.assert_array_equal(
        table, tensors[f"{stack}/relpos_bias/rel_embedding"]
      )


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_heads_may_be_apart_in_any_layout(tmp_path, axis):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  heads = (CONFIG.num_heads, CONFIG.head_dim)

  def apart(name, value):
    if name.endswith("/out/kernel"):
      return value.reshape(*heads, -1)
    if re.search("/(query|key|value)/kernel$", name):
      return value.reshape(-1, *heads)
    return value

  stored = {name: apart(name, value) for name, value in tensors.items()}
  if axis is not None:
    stored = {
      re.sub("^(encoder|decoder)/layers/", r"\1/\1/", name): value
      for name, value in tiny_checkpoints.scanned(stored, CONFIG, axis).items()
    }
  check_tensors(written(tmp_path, stored), CONFIG, tensors)


@pytest.mark.parametrize(
  ("path", "wrapped"),
  [
    ("target", {"optimizer": 1}),
    ("target", {}),
    ("params", {}),
    ("target/params", {}),
  ],
)
def test_parameters_are_target_or_params(tmp_path, path, wrapped, monkeypatch):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  tree = flax.traverse_util.unflatten_dict(
    {f"{path}/{name}": value for name, value in tensors.items()}, sep="/"
  )
  tree["state"] = {"step": np.int32(7)}
  tree = {"optimizer": tree, "version": 3} if wrapped else tree
  legacy, orbax = tmp_path / "checkpoint_7", tmp_path / "checkpoint_9"
  legacy.mkdir()
  (legacy / "checkpoint").write_bytes(flax.serialization.to_bytes(tree))
  ocp.PyTreeCheckpointer().save(orbax / "state", tree)
  check_tensors(t5x.Checkpoint(legacy), CONFIG, tensors)
  check_tensors(t5x.Checkpoint(orbax), CONFIG, tensors)
  # The directory stands for its newest step, the item for itself.
  assert opening.open_checkpoint(tmp_path).step == 9
  assert opening.open_checkpoint(orbax / "state").kind == "t5x"
  monkeypatch.chdir(tmp_path)  # where a user stands, who gives a short path
  check_tensors(t5x.Checkpoint(epath.Path("checkpoint_9")), CONFIG, tensors)


@pytest.mark.parametrize("options", [{"use_zarr3": True}, {"use_ocdbt": False}])
def test_orbax_may_store_arrays_in_any_of_its_ways(tmp_path, options):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  tree = flax.traverse_util.unflatten_dict(tensors, sep="/")
  handler = ocp.PyTreeCheckpointHandler(**options)
  with ocp.Checkpointer(handler) as writer:
    writer.save(
      tmp_path / "checkpoint_7" / "state",
      args=ocp.args.PyTreeSave({"target": tree}),
    )
  check_tensors(t5x.Checkpoint(tmp_path / "checkpoint_7"), CONFIG, tensors)


@pytest.mark.parametrize("name", ["checkpoints", "2024", "run"])
def test_the_newest_finished_checkpoint_stands_for_the_run(tmp_path, name):
  run = tmp_path / name
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  for step in (7, 10):
    tiny_checkpoints.write_t5x(run / f"checkpoint_{step}", tensors)
  (run / "checkpoint_11.tmp-1700000000").mkdir()
  (run / "checkpoint_12" / "state").mkdir(parents=True)  # never finished
  opened = opening.open_checkpoint(run)
  assert (opened.kind, opened.step) == ("t5x", 10)
  with pytest.raises(errors.UserError, match="checkpoint_12 holds no checkp"):
    opening.open_checkpoint(run / "checkpoint_12")


@pytest.mark.parametrize("through", ["legacy", "orbax"])
def test_any_lost_or_cut_file_is_told(tmp_path, through):
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  path = tmp_path / "checkpoint_7"
  if through == "legacy":
    tiny_checkpoints.write_t5x(path, tensors)
  else:
    tree = flax.traverse_util.unflatten_dict(tensors, sep="/")
    ocp.PyTreeCheckpointer().save(path / "state", {"target": tree})
  files = [file for file in path.rglob("*") if file.is_file()]
  # Of the many zarr arrays two say what all do.
  few = [f for f in files if not f.parent.name.startswith("target.")] + [
    f for f in files if f.parent.name.endswith("encoder_norm.scale")
  ]
  noticed = 0
  for file in few:
    whole = file.read_bytes()
    for content in (None, whole[: len(whole) // 2]):
      file.unlink() if content is None else file.write_bytes(content)
      try:
        checkpoint = t5x.Checkpoint(path)
        again = {name: checkpoint.read(name) for name in checkpoint.shapes}
      except errors.UserError:
        noticed += 1
      else:  # then it only described or sped up reading
        for name, value in tensors.items():
          np.testing.assert_array_equal(again[name], value, err_msg=name)
      file.write_bytes(whole)
  assert noticed >= 5


@pytest.mark.parametrize(
  ("sizes", "name"),
  [
    ({"vocab_size": 250_112, "embed_dim": 4}, "mT5"),
    ({"vocab_size": 256_384, "embed_dim": 4}, "UMT"),
    ({"embed_dim": 4096, "head_dim": 256, "num_heads": 1}, "UL2"),
  ],
)
def test_a_model_of_another_vocabulary_or_function_is_refused(
  tmp_path, sizes, name
):
  config = dataclasses.replace(CONFIG, **sizes)
  path = tiny_checkpoints.write_t5x(
    tmp_path / "checkpoint_7", tiny_checkpoints.random_tensors(config)
  )
  with pytest.raises(errors.UserError, match=f"is a checkpoint of {name}"):
    opening.open_checkpoint(path)


def test_a_checkpoint_of_tensorflow_is_named(tmp_path):
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1"')
  with pytest.raises(errors.UserError, match="is a TensorFlow checkpoint"):
    opening.open_checkpoint(tmp_path)


def test_the_stored_references_are_t5x_s():
  for name, step in (("scalable_1_0", 0), ("orbax_t5_1_1", 20)):
    folder = real_files.find("t5x", name)
    checkpoint = opening.open_checkpoint(folder)
    assert checkpoint.step == step
    config = dataclasses.replace(checkpoint.config, dtype="float32")
    params = name_table.assemble(config, checkpoint.source)
    check_reference(folder, config, params)


def test_another_model_is_refused_by_name(tmp_path):
  checkpoint = written(tmp_path, tiny_checkpoints.random_tensors(CONFIG))
  with pytest.raises(errors.UserError, match="missing: encoder/layers_3/"):
    name_table.assemble(
      dataclasses.replace(CONFIG, num_encoder_layers=4), checkpoint
    )


def test_what_is_no_checkpoint_is_named(tmp_path):
  with pytest.raises(errors.UserError, match="is not a T5X checkpoint"):
    t5x.Checkpoint(tmp_path)
  tensors = tiny_checkpoints.random_tensors(CONFIG)
  path = tiny_checkpoints.write_t5x(tmp_path / "checkpoint_7", tensors)
  directory = path / "target.encoder.encoder_norm.scale"
  directory.rename(tmp_path / "lost")
  with pytest.raises(
    errors.UserError, match="is torn: encoder/encoder_norm/sc"
  ):
    t5x.Checkpoint(path)
  other = {"transformer/w": np.zeros((2, 2), np.float32)}
  tiny_checkpoints.write_t5x(tmp_path / "other", other)
  with pytest.raises(errors.UserError, match="but not of a T5"):
    _ = t5x.Checkpoint(tmp_path / "other").config
