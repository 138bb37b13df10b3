"""A checkpoint's own padding, start and end of sequence go all the way."""

import copy
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import transformers
from testdata import recorded, tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import (
  conversion,
  huggingface,
  name_table,
  opening,
)
from specialize_jax.decoding import generator, requests, rows
from specialize_jax.parallel import mesh, placement
from specialize_jax.t5 import network

PAD, START, LENGTH = 3, 5, 12
INPUTS = [[7, 8, 9, 6], [11, 0, 12, 13, 14, 15, 6], [30, 31]]
"""Token 0 is one like any other here."""
TARGET = [9, 0, 6, 8]


@functools.cache
def _model():
  """A T5 of transformers whose outputs end early, by either of two tokens."""
  torch = recorded.torch()
  model = copy.deepcopy(tiny_checkpoints.theirs("t5_1_1"))
  torch.manual_seed(1)
  for name, parameter in model.named_parameters():
    if "norm" not in name:
      # Small enough that attention is not decided by rounding.
      std = 1.0 if name in ("shared.weight", "lm_head.weight") else 0.5
      torch.nn.init.normal_(parameter, std=std)
  for config in (model.config, model.generation_config):
    config.pad_token_id, config.decoder_start_token_id = PAD, START
    config.eos_token_id = None
  free = _their_greedy(model)
  ends = [int(free[0, 4]), int(free[1, 7])]
  model.config.eos_token_id = ends[0]
  model.generation_config.eos_token_id = ends
  assert PAD not in ends
  return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return recorded.folder(
    "special_tokens/folder",
    lambda path: _model().save_pretrained(path),
    tmp_path_factory.mktemp("model") / "folder",
  )


@pytest.fixture(scope="module")
def ends(folder):
  """The tokens that end a sequence."""
  content = (folder / "generation_config.json").read_text()
  return json.loads(content)["eos_token_id"]


@pytest.fixture(scope="module")
def theirs():
  """What transformers decodes, and a target's log-probabilities."""

  def compute():
    torch, model = recorded.torch(), _model()
    labels = torch.tensor([TARGET])
    with torch.no_grad():
      logits = model(input_ids=torch.tensor([INPUTS[1]]), labels=labels).logits
    log_probs = torch.log_softmax(logits, -1)[0, range(len(TARGET)), labels[0]]
    return {
      "greedy": _their_greedy(model),
      "beams_2": _their_greedy(model, num_beams=2, length_penalty=1.0),
      "beams_4": _their_greedy(model, num_beams=4, length_penalty=1.0),
      "target": log_probs.numpy(),
    }

  return recorded.arrays("special_tokens/outputs", compute)


@pytest.fixture(scope="module")
def ours(folder, tmp_path_factory):
  planned = conversion.plan(opening.open_checkpoint(folder), to="ours")
  path = tmp_path_factory.mktemp("ours") / "model_dir"
  conversion.write_ours(planned, path)
  return opening.open_checkpoint(path)


def _padded():
  batch = np.full((len(INPUTS), max(map(len, INPUTS))), PAD)
  for row, ids in enumerate(INPUTS):
    batch[row, : len(ids)] = ids
  return recorded.torch().from_numpy(batch)


def _their_greedy(model, **options):
  inputs = _padded()
  return model.generate(
    inputs,
    attention_mask=(inputs != PAD).long(),
    max_new_tokens=LENGTH,
    do_sample=False,
    **options,
  ).numpy()


def _our_rows(checkpoint, **settings):
  config = dataclasses.replace(checkpoint.config, dtype="float32")
  decoder = generator.Generator(
    network.EncoderDecoder(config),
    requests.Settings(max_new_tokens=LENGTH, **settings),
    batch_size=3,
  )
  reader = rows.Reader(
    where="rows", model=config, vocabulary=None, input_limit=20
  )
  given = [{"input_ids": [*ids, PAD, PAD]} for ids in INPUTS]
  asked, _ = reader.read(list(enumerate(given, start=1)))
  results = {}
  params = name_table.assemble(config, checkpoint.source)
  for batch in decoder.run(params, asked):
    results |= batch
  return [results[i].output for i in range(len(INPUTS))]


def _ended(tokens, ends):
  """Without the start token, up to and with the first that ends."""
  tokens = tokens.tolist()[1:]
  at = next((i for i, token in enumerate(tokens) if token in ends), None)
  return tokens if at is None else tokens[: at + 1]


def test_greedy_decoding_is_that_of_transformers(folder, ours, ends, theirs):
  expected = [_ended(row, ends) for row in theirs["greedy"]]
  assert sorted(map(len, expected))[0] < LENGTH, "no row ends early"
  for checkpoint in (opening.open_checkpoint(folder), ours):
    found = [output.ids.tolist() for output in _our_rows(checkpoint)]
    assert found == expected


@pytest.mark.parametrize("beams", [2, 4])
def test_a_beam_search_is_that_of_transformers(ours, ends, theirs, beams):
  found = _our_rows(ours, strategy="beam", num_beams=beams)
  for row, output in zip(theirs[f"beams_{beams}"], found, strict=True):
    assert output.ids.tolist() == _ended(row, ends)


def test_a_target_has_the_log_probabilities_of_transformers(ours, theirs):
  config = dataclasses.replace(ours.config, dtype="float32")
  decoder = generator.Generator(
    network.EncoderDecoder(config), requests.Settings(), batch_size=1
  )
  row = {"input_ids": INPUTS[1], "target_ids": TARGET}
  asked, _ = rows.Reader(
    where="rows", model=config, vocabulary=None, input_limit=20
  ).read([(1, row)])
  (results,) = decoder.run(name_table.assemble(config, ours.source), asked)
  np.testing.assert_allclose(
    results[0].target_log_probs, theirs["target"], atol=1e-4
  )


def test_what_ours_gives_back_says_the_same(folder, ours, theirs, tmp_path):
  planned = conversion.plan(ours, to="huggingface")
  conversion.write_folder(planned, tmp_path / "back")
  before, after = (
    huggingface.Folder(folder),
    huggingface.Folder(tmp_path / "back"),
  )
  assert after.config.pad_id == PAD
  assert dataclasses.replace(
    after.config, param_dtype=before.config.param_dtype
  ) == before.config  # fmt: skip
  recorded.torch()
  loaded = transformers.T5ForConditionalGeneration.from_pretrained(
    tmp_path / "back"
  )
  np.testing.assert_array_equal(_their_greedy(loaded.eval()), theirs["greedy"])


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("decoder_start_id", START),
    ("pad_id", PAD),
    ("layer_norm_epsilon", 1e-5),
    ("relative_attention_max_distance", 64),
    ("mlp_activations", ("relu", "linear")),
  ],
)
def test_t5x_which_has_no_place_for_them_is_not_written(ours, field, value):
  fixed = dataclasses.replace(
    ours.config,
    pad_id=0,
    decoder_start_id=0,
    relative_attention_max_distance=128,
  )
  one = dataclasses.replace(
    ours, config=dataclasses.replace(fixed, **{field: value})
  )
  with pytest.raises(errors.UserError, match=f"T5Config.{field} is .* T5X has"):
    conversion.plan(one, to="t5x")


def test_settings_of_a_generation_config_come_back(folder, tmp_path):
  path = _edited(folder, tmp_path / "in", generation={"num_beams": 4})
  planned = conversion.plan(opening.open_checkpoint(path), to="ours")
  conversion.write_ours(planned, tmp_path / "ours")
  ours = opening.open_checkpoint(tmp_path / "ours")
  assert huggingface.decoding_settings(ours.generation_config) == {
    "num_beams": 4
  }
  conversion.write_folder(
    conversion.plan(ours, to="huggingface"), tmp_path / "out"
  )
  content = (tmp_path / "out" / "generation_config.json").read_text()
  assert json.loads(content)["num_beams"] == 4


def _edited(folder, path, *, config=None, generation=None):
  path.mkdir()
  for file in folder.iterdir():
    (path / file.name).symlink_to(file)
  for name, changes in (
    ("config.json", config),
    ("generation_config.json", generation),
  ):
    content = json.loads((folder / name).read_text()) | (changes or {})
    content = {k: v for k, v in content.items() if v is not ...}
    (path / name).unlink()
    (path / name).write_text(json.dumps(content))
  return path


@pytest.mark.parametrize(
  ("config", "generation", "ids"),
  [
    # What neither says is T5's; the decoder starts with the padding.
    (dict.fromkeys(["pad", "start", "eos"], ...),) * 2 + ((0, 0, (1,)),),
    ({"start": ...}, {"start": ...}, (PAD, PAD, None)),
    ({"start": None}, {"start": None, "pad": None}, (PAD, PAD, None)),
    ({"start": ...}, {"start": 8}, (PAD, 8, None)),
    ({"start": ..., "bos": 9}, {"start": ...}, (PAD, 9, None)),
    ({"eos": [7, 8, 7]}, {"eos": ...}, (PAD, START, (7, 8))),
    ({"eos": 8}, {"eos": [7, 8]}, (PAD, START, (8, 7))),
    ({"eos": 8}, {"eos": 8}, (PAD, START, (8,))),
  ],
)
def test_both_files_say_the_special_tokens(
  folder, tmp_path, config, generation, ids
):
  path = _edited(
    folder, tmp_path / "in", config=_keys(config), generation=_keys(generation)
  )
  found = huggingface.Folder(path).config
  pad, start, ends = ids
  assert (found.pad_id, found.decoder_start_id) == (pad, start)
  assert ends is None or found.eos_ids == ends


@pytest.mark.parametrize(
  ("config", "generation", "message"),
  [
    ({"pad": 40}, {}, r"pad_token_id is 40 in config.json, .* from 0 to 39"),
    ({"pad": None}, {}, "pad_token_id is null in config.json"),
    ({"eos": None}, {}, "eos_token_id is null in config.json"),
    ({"eos": []}, {}, r"eos_token_id is \[\] in config.json"),
    ({"eos": -1}, {}, "eos_token_id is -1 in config.json"),
    ({"start": True}, {}, "decoder_start_token_id is true in config.json"),
    ({"start": [5]}, {}, r"decoder_start_token_id is \[5\] in config.json"),
    ({"start": "5"}, {}, 'decoder_start_token_id is "5" in config.json'),
    ({}, {"start": 6}, "is 5 in config.json and 6 in generation_config.json"),
    ({}, {"pad": 0}, "is 3 in config.json and 0 in generation_config.json"),
    ({"eos": 8}, {"eos": [7]}, r"is \[8\] in config.json and \[7\] in gener"),
    ({"eos": PAD}, {"eos": ...}, "pad_token_id and eos_token_id are both 3"),
  ],
)
def test_what_cannot_be_honoured_is_refused(
  folder, tmp_path, config, generation, message
):
  path = _edited(
    folder, tmp_path / "in", config=_keys(config), generation=_keys(generation)
  )
  with pytest.raises(errors.UserError, match=message):
    opening.open_checkpoint(path)


def _keys(short):
  names = {"start": "decoder_start_token_id"}
  return {names.get(k, f"{k}_token_id"): v for k, v in short.items()}


@pytest.mark.parametrize(
  "changes",
  [
    {"decoder_start_id": 0},
    {"eos_ids": (1,)},
    {"pad_id": 0},
    {"relative_attention_max_distance": 128},
    {"layer_norm_epsilon": 1e-5},
    {"mlp_activations": ("relu", "linear")},
  ],
)
def test_parameters_are_not_read_into_another_function(ours, changes):
  placed = placement.Placement(
    mesh=mesh.make_mesh(data=1, devices=jax.devices()[:1])
  )
  config = dataclasses.replace(ours.config, **changes)
  name = next(iter(changes))
  with pytest.raises(errors.UserError, match=f"T5Config.{name} is "):
    ours.params(placed, config)
