"""A slice has one meaning, whichever of its names is given."""

import pytest

from specialize_jax import errors
from specialize_jax.tpu import slices


@pytest.mark.parametrize(
  ("names", "chips", "hosts", "accelerator_type"),
  [
    (("v5e:4x4", "v5e-16", "v5litepod-16"), 16, 4, "v5litepod-16"),
    (("v5e:16x16", "v5e-256"), 256, 64, "v5litepod-256"),
    (("v5e:2x4", "v5e-8"), 8, 1, "v5litepod-8"),
    (("v6e:8x8", "v6e-64"), 64, 16, "v6e-64"),
    (("v4:2x2x1", "v4-8"), 4, 1, "v4-8"),
    (("v4:4x4x4", "v4-128"), 64, 16, "v4-128"),
    (("v4-512",), 256, 64, "v4-512"),
    (("v5p:2x4x4", "v5p-64"), 32, 8, "v5p-64"),
    (("v5p:4x12x16",), 768, 192, "v5p-1536"),
  ],
)
def test_all_names_of_a_slice_mean_it(names, chips, hosts, accelerator_type):
  slice_ = slices.parse(names[0])
  assert {slices.parse(name) for name in names} == {slice_}
  assert (slice_.num_chips, slice_.num_hosts) == (chips, hosts)
  assert slice_.accelerator_type == accelerator_type


def test_gcloud_is_told_the_shape_of_a_cube_alone():
  cube, flat = slices.parse("v4:2x2x4"), slices.parse("v5e:4x4")
  assert cube.gcloud_flags == ("--type=v4", "--topology=2x2x4")
  assert flat.gcloud_flags == ("--accelerator-type=v5litepod-16",)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v5e:3x5", r"v5e:3x5 is not a slice of v5e: expected v5e: and one of 1x1"),
    ("v5e:4x4x4", "not a slice of v5e"),
    ("v5e-12", "not a slice of v5e"),
    ("v4-9", "not a slice of v4"),
    ("v5p:3x3x3", "or three ascending multiples of 4, such as v5p:8x16x16"),
    ("v4:8x4x4", "not a slice of v4"),
    ("v9:4x4", "v9:4x4 is unknown: expected one of v4, v5e, v5p, v6e"),
    ("", "such as v5e:4x4"),
    ("v5e:4x4; rm -rf ~", "is unknown"),
  ],
)
def test_a_slice_that_is_not_rented_is_an_error(name, message):
  with pytest.raises(errors.UserError, match=message):
    slices.parse(name)
