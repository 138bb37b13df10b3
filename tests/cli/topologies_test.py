"""Every topology's gin file is a mesh of that slice, under a whole run's."""

import argparse
import math
import pathlib

import pytest

from specialize_jax.cli import gin_files
from specialize_jax.parallel import mesh as meshes
from specialize_jax.runs import experiment
from specialize_jax.tpu import slices, topology

_CONFIGS = pathlib.Path(__file__).parents[2] / "gin_configs"
_FILES = sorted(path.stem for path in (_CONFIGS / "topologies").glob("*.gin"))
_SLICES = [name for name in _FILES if name != "cpu"]
_PROMISED = (
  *(f"v4-{cores}" for cores in (8, 16, 32, 64, 128, 256, 512)),
  *(f"v5e-{chips}" for chips in (16, 64, 256)),
  *(f"v5p-{cores}" for cores in (64, 128)),
  *(f"v6e-{chips}" for chips in (16, 64, 256)),
)


def _experiment(name, *bindings):
  files = argparse.Namespace(
    gin_file=[
      "runs/train.gin",
      "models/flan_t5_xl.gin",
      "losses/distribution_matching.gin",
      f"topologies/{name}.gin",
    ],
    gin_search_paths=str(_CONFIGS),
    default_gin_file=None,
  )
  needed = (
    "MODEL_DIR = '/unused'",
    "MIXTURE_OR_TASK_NAME = 'unused'",
    "TASK_FEATURE_LENGTHS = {'inputs': 768, 'targets': 256}",
    "TRAIN_STEPS = 1000",
  )
  with gin_files.loaded(files, [*needed, *bindings]):
    return gin_files.configured(experiment.Experiment)()


def test_every_promised_slice_has_a_file():
  assert set(_PROMISED) == set(_SLICES)


@pytest.mark.parametrize("name", _SLICES)
def test_a_slice_is_filled_and_cuts_batch_and_networks_evenly(name):
  run = _experiment(name)
  sizes = (run.mesh.data, run.mesh.fsdp, run.mesh.model)
  assert math.prod(sizes) == slices.parse(name).num_chips
  assert run.batch_size % (run.mesh.data * run.mesh.fsdp) == 0
  assert run.model.embed_dim % run.mesh.fsdp == 0
  for size in (run.model.num_heads, run.model.mlp_dim, run.model.vocab_size):
    assert size % run.mesh.model == 0
  # Without it FlanT5-XL's activations do not fit the smaller chips.
  assert run.model.remat_policy == "minimal"


@pytest.mark.parametrize("name", ["v4-32", "v5e-16", "v5p-64", "v6e-256"])
def test_the_compiler_s_own_slice_takes_the_mesh(name):
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  shape = _experiment(name).mesh
  mesh = meshes.make_mesh(
    data=shape.data,
    fsdp=shape.fsdp,
    model=shape.model,
    devices=topology.load(name).devices,
  )
  assert mesh.size == slices.parse(name).num_chips
  # Chips that share a row are neighbors: their collectives are many and small.
  if shape.model > 1:
    pair = mesh.devices.reshape(-1, shape.model)[0]
    distances = [
      abs(a - b) for a, b in zip(pair[0].coords, pair[1].coords, strict=True)
    ]
    assert sum(distances) == 1


def test_a_file_that_follows_the_topology_s_wins():
  run = _experiment("v5e-16", "FSDP_AXIS = 8", "MODEL_AXIS = 2")
  assert (run.mesh.fsdp, run.mesh.model) == (8, 2)


def test_on_a_cpu_every_device_is_a_replica():
  run = _experiment("cpu")
  assert run.model.remat_policy == "none"
  mesh = run.mesh.placement().mesh
  assert dict(mesh.shape) == {"data": mesh.size, "fsdp": 1, "model": 1}


def test_a_large_slice_may_hold_copies_of_a_small_one_s_parameters():
  model = _experiment("v5e-256").model
  found = topology.sensible_meshes(model, batch_size=2048, num_chips=256)
  assert {"data": 16, "fsdp": 16, "model": 1} in found
  few = topology.sensible_meshes(model, batch_size=128, num_chips=16)
  assert all(sizes["data"] in (1, 2, 16) for sizes in few)
