"""T5X's own train step beside ours: compiled for one slice, walked alike.

  python bench/t5x_step.py --output=t5x.json              # all, many minutes
  python bench/t5x_step.py --only=base_v5e_16

needs the TPU compiler, no TPU, and T5X (docs/t5x.md). Both steps take packed
rows of the same lengths, compute in bfloat16, rematerialise as `minimal` and
update with Adafactor; ours has the sparse-KL loss, T5X's its cross-entropy.
T5X sums the gradients of kernels over chips in bfloat16, so here ours does too;
`--gradient_dtype=float32` is our default of training.
T5X's network is its scanned one, its rules `standard_logical_axis_rules(1, 2)`:
parameters are sharded over both axes of its mesh, activations over the model
axis. Its mesh is entered with `jax.set_mesh`, since Flax drops constraints
under the legacy one that T5X enters.

A row has what `specialize plan` counts: HBM at the peak, HBM traffic, bytes
communicated, the time of each at full speed, and the largest of them, the
bound.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

TRAFFIC_WANTED, BOUND_WANTED, PEAK_WANTED = 0.7, 0.75, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """One job, of T5X and of ours.

  Attributes:
    model: a file of gin_configs/models.
    topology: the slice.
    submesh: the chips over which T5X shards a copy of its model, along the
      slice's axes and the cores of a chip.
    mesh: ours.
    batch_size: rows of the global batch.
    input_length: tokens of the encoder's rows.
    target_length: tokens of the decoder's rows.
  """

  model: str
  topology: str
  submesh: tuple[int, int, int, int]
  mesh: str
  batch_size: int = 128
  input_length: int = 768
  target_length: int = 256


CASES: Mapping[str, Case] = {
  "base_v5e_16": Case(
    model="flan_t5_base",
    topology="v5e:4x4",
    submesh=(1, 1, 1, 1),
    mesh="fsdp=16",
  ),
  # With so few tokens a step is bound by its links: fsdp=64 sends 22.6 GB.
  "xl_v5e_64": Case(
    model="flan_t5_xl",
    topology="v5e:8x8",
    submesh=(4, 1, 1, 1),
    mesh="fsdp=16,model=4",
  ),
  "xl_packed_v5e_64": Case(
    model="flan_t5_xl",
    topology="v5e:8x8",
    submesh=(4, 1, 1, 1),
    mesh="fsdp=64",
    input_length=2048,
    target_length=384,
  ),
  "xxl_v5p_64": Case(
    model="flan_t5_xxl",
    topology="v5p:4x4x4",
    submesh=(4, 1, 1, 1),
    mesh="fsdp=64",
    batch_size=256,
  ),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Compiles what is asked for, prints each pair of rows; 1 if one misses."""
  args = parse(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"
  results, missed = {}, []
  print(HEADING)
  for name in args.only or CASES:
    case = CASES[name]
    if args.mesh:
      case = dataclasses.replace(case, mesh=args.mesh)
    rows = {
      "t5x": t5x_row(case),
      "ours": our_row(case, gradient_dtype=args.gradient_dtype),
    }
    for who, row in rows.items():
      print(line(f"{name}, {who}", row), flush=True)
    results[name] = rows | {"ratios": ratios(rows["ours"], rows["t5x"])}
    missed += [f"{name}: {what}" for what in misses(results[name]["ratios"])]
    if args.output:
      args.output.write_text(json.dumps(results, indent=2) + "\n")
  for what in missed:
    print(f"missed: {what}")
  return int(bool(missed))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--only", action="append", choices=CASES, help="default: all"
  )
  parser.add_argument("--mesh", help="ours, instead of the case's own")
  parser.add_argument(
    "--gradient_dtype",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="in which ours sums gradients over chips (default: T5X's, bfloat16)",
  )
  parser.add_argument("--output", type=pathlib.Path, metavar="FILE.json")
  return parser.parse_args(argv)


HEADING = (
  f"{'':<26} {'GiB':>6} {'HBM GB':>7} {'sent GB':>7} {'compute':>8} "
  f"{'HBM s':>8} {'links s':>8} {'bound s':>8} {'compiled':>8}"
)


def line(name: str, row: Mapping[str, object]) -> str:
  """Formats a row as the heading says."""
  return (
    f"{name:<26} {row['hbm_gib']:6.2f} {row['hbm_bytes'] / 1e9:7.1f} "
    f"{row['interconnect_bytes'] / 1e9:7.1f} {row['compute_seconds']:8.4f} "
    f"{row['memory_seconds']:8.4f} {row['interconnect_seconds']:8.4f} "
    f"{row['step_seconds']:8.4f} {row['compile_seconds']:8.0f}"
  )


def ratios(
  ours: Mapping[str, float], theirs: Mapping[str, float]
) -> dict[str, float]:
  """Returns ours over T5X's, of HBM traffic, the bound and the peak."""
  fields = {"traffic": "hbm_bytes", "bound": "step_seconds", "peak": "hbm_gib"}
  return {name: ours[key] / theirs[key] for name, key in fields.items()}


def misses(found: Mapping[str, float]) -> list[str]:
  """Returns a sentence for each ratio that is larger than wanted."""
  wanted = {
    "traffic": TRAFFIC_WANTED,
    "bound": BOUND_WANTED,
    "peak": PEAK_WANTED,
  }
  return [
    f"{name} {found[name]:.2f} of T5X's, {most} wanted"
    for name, most in wanted.items()
    if found[name] > most
  ]


def our_row(case: Case, *, gradient_dtype: str) -> dict[str, object]:
  """Compiles our step; returns the row of `specialize plan`.

  Args:
    case: the job.
    gradient_dtype: in which gradients are summed over chips.
  """
  from specialize_jax.cli import plan as command
  from specialize_jax.tpu import plan, topology

  request = command.request(
    [
      f"--model={case.model}",
      f"--topology={case.topology}",
      "--optimizer=adafactor",
      "--remat=minimal",
      f"--batch_size={case.batch_size}",
      f"--input_length={case.input_length}",
      f"--target_length={case.target_length}",
      f"--gin.T5Config.gradient_dtype='{gradient_dtype}'",
    ]
  )
  mesh = topology.parse_mesh(case.mesh, request.topology.num_chips)
  (row,) = plan.plan(request, [mesh])
  return row


def t5x_row(case: Case) -> dict[str, object]:
  """Compiles T5X's step; returns the same fields."""
  from t5x import partitioning

  from specialize_jax.tpu import hlo_text, plan, programs, topology

  slice_ = topology.load(case.topology)
  mesh = partitioning.get_mesh(
    case.submesh,
    input_devices=slice_.devices,
    input_local_devices=[
      device for device in slice_.devices if device.process_index == 0
    ],
  )
  config = _config(case)
  program = programs.compiled(_lowered(case, config, mesh))
  return {
    "mesh": dict(mesh.shape),
    "hbm_gib": programs.gib(program.peak_bytes),
    "compile_seconds": program.compile_seconds,
    **plan.bounds(hlo_text.parse(program.text), slice_, mesh),
  }


def _lowered(
  case: Case,
  config: "network.T5Config",  # noqa: F821
  mesh: "jax.sharding.Mesh",  # noqa: F821
) -> "jax.stages.Lowered":  # noqa: F821
  """Traces T5X's train step over abstract state and batch."""
  import jax
  import jax.numpy as jnp
  import seqio
  from flax import linen as nn
  from t5x import adafactor, models, trainer, utils
  from t5x.examples.scalable_t5 import network

  vocabulary = seqio.ByteVocabulary()  # its size is not read
  optimizer = adafactor.Adafactor(
    decay_rate=0.8,
    step_offset=0,
    logical_factor_rules=adafactor.standard_logical_factor_rules(),
  )
  model = models.EncoderDecoderModel(
    module=network.Transformer(config=config),
    input_vocabulary=vocabulary,
    output_vocabulary=vocabulary,
    optimizer_def=optimizer,
    z_loss=1e-4,
  )
  rows = jax.P("data")
  partitioner = _partitioner(mesh, rows)
  shapes = {
    f"{side}_{what}": (case.batch_size, length)
    for side, length, arrays in (
      ("encoder", case.input_length, ("input_tokens",)),
      (
        "decoder",
        case.target_length,
        ("input_tokens", "target_tokens", "loss_weights"),
      ),
    )
    for what in (*arrays, "segment_ids", "positions")
  }
  batch = {
    name: jax.ShapeDtypeStruct(
      shape, jnp.int32, sharding=jax.NamedSharding(mesh, rows)
    )
    for name, shape in shapes.items()
  }
  state = _abstract_state(
    utils.TrainStateInitializer(
      optimizer_def=optimizer,
      init_fn=model.get_initial_variables,
      input_shapes=shapes,
      partitioner=partitioner,
    ),
    mesh,
  )

  def step(state: object, batch: Mapping[str, jax.Array]) -> tuple:
    return trainer.train_with_lr(
      state,
      batch,
      learning_rate=jnp.float32(1e-3),
      dropout_rng=jax.random.fold_in(jax.random.key(0), state.step),
      model=model,
      num_microbatches=None,
      data_partition_spec=rows,
    )

  placed = jax.tree.map(lambda leaf: leaf.sharding, state)
  rules = nn.logical_axis_rules(partitioner._logical_axis_rules)
  # Not before: what T5X computes to begin with would run on chips that are not
  # there.
  with jax.set_mesh(mesh), rules:
    return jax.jit(step, donate_argnums=0, out_shardings=(placed, None)).lower(
      state, batch
    )


def _config(case: Case) -> "network.T5Config":  # noqa: F821
  """Returns T5X's config of the network that a gin file of ours describes."""
  from t5x.examples.scalable_t5 import network

  from specialize_jax.cli import plan as command

  ours = command.request(
    [f"--model={case.model}", f"--topology={case.topology}"]
  ).job.config
  return network.T5Config(
    vocab_size=ours.vocab_size,
    dtype="bfloat16",
    emb_dim=ours.embed_dim,
    num_heads=ours.num_heads,
    num_encoder_layers=ours.num_encoder_layers,
    num_decoder_layers=ours.num_decoder_layers,
    head_dim=ours.head_dim,
    mlp_dim=ours.mlp_dim,
    mlp_activations=ours.mlp_activations,
    dropout_rate=ours.dropout_rate,
    logits_via_embedding=ours.tied_head,
    remat_policy="minimal",
    scan_layers=True,
  )


def _partitioner(
  mesh: "jax.sharding.Mesh",  # noqa: F821
  rows: "jax.sharding.PartitionSpec",  # noqa: F821
) -> "partitioning.PjitPartitioner":  # noqa: F821
  """Returns T5X's partitioner over a mesh of devices that are not there."""
  from t5x import partitioning

  class OverSlice(partitioning.PjitPartitioner):
    """Takes the mesh it is given, where T5X's asks for this host's devices."""

    data_partition_spec = rows

    @property
    def mesh(self) -> "jax.sharding.Mesh":  # noqa: F821
      return mesh

  return OverSlice(
    num_partitions=1,
    logical_axis_rules=partitioning.standard_logical_axis_rules(
      activation_partitioning_dims=1, parameter_partitioning_dims=2
    ),
  )


def _abstract_state(initializer: object, mesh: "jax.sharding.Mesh") -> object:  # noqa: F821
  """Returns the shapes of T5X's train state, placed as its rules say."""
  import jax

  # None is T5X's for what every chip has: Adafactor's rows and columns.
  is_spec = lambda leaf: leaf is None or isinstance(leaf, jax.P)  # noqa: E731
  specs = {
    jax.tree_util.keystr(path): spec or jax.P()
    for path, spec in jax.tree_util.tree_flatten_with_path(
      initializer.train_state_axes, is_leaf=is_spec
    )[0]
  }

  def place(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    name = jax.tree_util.keystr(path)
    if name not in specs:
      raise ValueError(f"T5X's rules do not place {name}, {leaf.shape}")
    return jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=jax.NamedSharding(mesh, specs[name]),
    )

  return jax.tree_util.tree_map_with_path(
    place, initializer.global_train_state_shape
  )


if __name__ == "__main__":
  sys.exit(main())
