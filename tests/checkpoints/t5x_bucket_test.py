"""T5X's checkpoints in a bucket are read and written as those on a disk are."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from testdata import tiny_checkpoints

from specialize_jax import errors
from specialize_jax.checkpoints import conversion, opening

# Every array is several requests.
CONFIG = tiny_checkpoints.config(
  "t5_1_1", num_encoder_layers=1, num_decoder_layers=1
)
DEFAULT_DISTANCE = {"relative_attention_max_distance": 128}


@pytest.fixture(scope="module")
def tensors():
  return tiny_checkpoints.random_tensors(CONFIG)


@pytest.fixture(scope="module")
def legacy(bucket, tensors, tmp_path_factory):
  """A legacy checkpoint in the bucket, as `gcloud storage cp` puts it there."""
  place = tmp_path_factory.mktemp("t5x") / "checkpoint_7"
  tiny_checkpoints.write_t5x(place, tensors)
  for file in place.rglob("*"):
    if file.is_file():
      copy = epath.Path(bucket) / "legacy" / file.relative_to(place.parent)
      copy.write_bytes(file.read_bytes())
  return f"{bucket}/legacy"


def check(checkpoint, tensors):
  assert (checkpoint.kind, checkpoint.step) == ("t5x", 7)
  expected = dataclasses.replace(CONFIG, **DEFAULT_DISTANCE)
  read = {name: checkpoint.source.read(name) for name in tensors}
  assert dataclasses.replace(checkpoint.config, dtype="float32") == expected
  for name, value in tensors.items():
    np.testing.assert_array_equal(read[name], value, err_msg=name)


@pytest.mark.parametrize(
  "layers",
  # On a disk both are read and written by t5x_export_test.py.
  ["listed", pytest.param("scanned", marks=pytest.mark.slow)],
)
def test_checkpoints_of_both_layouts_are_read_from_a_bucket(
  bucket, legacy, tensors, layers
):
  opened = opening.open_checkpoint(legacy)
  check(opened, tensors)
  written = conversion.write_t5x(
    conversion.plan(opened, to="t5x"),
    f"{bucket}/{layers}",
    layers=layers,
  )
  assert written == epath.Path(f"{bucket}/{layers}/checkpoint_7")
  check(opening.open_checkpoint(f"{bucket}/{layers}"), tensors)


def test_files_in_a_bucket_are_told_apart_by_names_sizes_and_times(bucket):
  place = epath.Path(bucket) / "written" / "checkpoint_7"
  (place / "target.a" / "0.0").write_text("text")
  (place / "checkpoint").write_text("")
  before = dict(one[:2] for one in opening._written(place, folder=False))
  assert before == {"target.a/0.0": 4, "checkpoint": 0}
  times = {one[2] for one in opening._written(place, folder=False)}
  assert all(time > 0 for time in times)


def test_a_folder_of_hugging_face_s_in_a_bucket_is_refused(bucket):
  folder = f"{bucket}/folder"
  (epath.Path(folder) / "config.json").write_text("{}")
  with pytest.raises(errors.UserError) as caught:
    opening.open_checkpoint(folder)
  assert str(caught.value) == (
    f"{folder} is a Hugging Face folder in a bucket, and its tensors are read"
    " from a disk: copy it with `gcloud storage cp -r`, or give its name on the"
    " hub."
  )


def test_what_is_missing_or_torn_in_a_bucket_is_named(bucket, legacy, tensors):
  with pytest.raises(errors.UserError, match="no checkpoint directory gs://b"):
    opening.open_checkpoint(f"{bucket}/nothing")
  del tensors
  array = epath.Path(legacy) / "checkpoint_7/target.encoder.encoder_norm.scale"
  (array / "0").rename(array / "lost")
  with pytest.raises(errors.UserError, match="checkpoint_7 is torn: encoder/e"):
    opening.open_checkpoint(legacy).source.read("encoder/encoder_norm/scale")
  (array / "lost").rename(array / "0")
  index = epath.Path(legacy) / "checkpoint_7/checkpoint"
  index.write_bytes(index.read_bytes()[:100])
  with pytest.raises(errors.UserError, match="or torn: its index"):
    opening.open_checkpoint(f"{legacy}/checkpoint_7")
