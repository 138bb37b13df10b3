"""Estimates the memory and time of a job on a topology, by mesh."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax

from specialize_jax.parallel import mesh as meshes
from specialize_jax.parallel import placement as placements
from specialize_jax.t5 import arithmetic
from specialize_jax.t5 import config as t5_config
from specialize_jax.tpu import (
  breakdown,
  hlo_cost,
  hlo_text,
  programs,
  topology,
)

Row = dict[str, object]
"""A JSON object with the fields of `row`."""

STEPS = ("train", "decode")
# The backward pass takes twice what the forward pass takes.
_PASSES = {"train": 3, "decode": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """The configuration of a plan.

  Attributes:
    job: the model, batch and loss.
    topology: the chips.
    steps: the steps to compile, of `STEPS`.
    train_steps: number of steps of the run whose hours are estimated; None for
      no estimate.
    breakdown: whether rows have `breakdown`, the cost of each part of the
      network.
  """

  job: programs.Job
  topology: topology.Topology
  steps: Sequence[str] = ("train",)
  train_steps: int | None = None
  breakdown: bool = False


def plan(
  request: Request,
  mesh_sizes: Sequence[Mapping[str, int]],
  *,
  progress: Callable[[str], None] = lambda _: None,
) -> list[Row]:
  """Compiles every step for every mesh; the best mesh of a step comes first.

  Args:
    request: the configuration.
    mesh_sizes: the meshes, each as the number of chips along each axis.
    progress: called with a line of text before each compilation.

  Raises:
    UserError: the batch is not divisible over a mesh; before any compilation.
  """
  placed = [placement_on(request.topology, sizes) for sizes in mesh_sizes]
  for placement in placed:
    programs.check(request.job, placement)
  rows, total = [], len(placed) * len(request.steps)
  for step_name in request.steps:
    found = []
    for sizes, placement in zip(mesh_sizes, placed, strict=True):
      number = len(rows) + len(found) + 1
      mesh = topology.written(sizes)
      progress(f"{number} of {total}: compiling {step_name} for {mesh}")
      found.append(row(request, placement, sizes, step_name))
    rows += sorted(found, key=_goodness)
  return rows


def row(
  request: Request,
  placement: placements.Placement,
  sizes: Mapping[str, int],
  step_name: str,
) -> Row:
  """Compiles one step for one mesh.

  Args:
    request: the configuration.
    placement: the mesh and the axis rules.
    sizes: number of chips along each axis of the mesh.
    step_name: one of `STEPS`.

  Returns:
    mesh, step, fits; hbm_gib (the peak), hbm_limit_gib, parameters_gib,
    optimizer_gib and activations_gib (all else: gradients, activations, the
    batch, the program); flops, hbm_bytes, interconnect_bytes (sent),
    interconnect_bytes_by_kind; compute_seconds, memory_seconds and
    interconnect_seconds, each at peak rate and without the others;
    step_seconds, the longest of them, and bound_by, its name: a lower bound on
    the time of a step; mfu, the flops of the network over the peak flops of the
    chips in that time; examples_per_second and tokens_per_second of the whole
    slice; compile_seconds; unknown_loops; advice; and, if requested and the
    program fits, breakdown, from `breakdown.rows`. All but the rates are per
    chip. Fields that are unknown for a program that does not fit are None.
  """
  job, chip = request.job, request.topology.chip
  with placement.entered():  # else a kernel for TPUs would be refused here
    held = programs.state_bytes(job, placement, step_name)
  program = _program(request, placement, step_name, held)
  limit = (program.limit_bytes or 0) / 2**30 or chip.hbm_gib
  peak = programs.gib(program.peak_bytes)
  known = programs.gib(held.parameters + held.optimizer)
  result: Row = {
    "mesh": topology.written(sizes),
    "step": step_name,
    "topology": request.topology.name,
    "num_chips": request.topology.num_chips,
    "fits": bool(program.text),
    "hbm_gib": peak,
    "hbm_limit_gib": limit,
    "parameters_gib": programs.gib(held.parameters),
    "optimizer_gib": programs.gib(held.optimizer),
    "activations_gib": max(peak - known, 0.0) if known <= limit else None,
    **dict.fromkeys(_COUNTED),
    "compile_seconds": program.compile_seconds,
    "advice": "",
  }
  if not program.text:
    result["advice"] = _advice(
      request, sizes, peak - limit, known, trains=step_name == "train"
    )
    return result
  return result | _counted(request, placement, step_name, program.text)


_COUNTED = (
  "flops",
  "hbm_bytes",
  "interconnect_bytes",
  "interconnect_bytes_by_kind",
  "compute_seconds",
  "memory_seconds",
  "interconnect_seconds",
  "step_seconds",
  "bound_by",
  "mfu",
  "examples_per_second",
  "tokens_per_second",
  "hours",
  "chip_hours",
  "unknown_loops",
)


def _program(
  request: Request,
  placement: placements.Placement,
  step_name: str,
  held: programs.StateBytes,
) -> programs.Program:
  """Compiles, unless the state alone is larger than the memory."""
  start = held.parameters + held.optimizer
  if programs.gib(start) > request.topology.chip.hbm_gib:
    return programs.Program(
      compile_seconds=0.0, peak_bytes=start, limit_bytes=None, text=""
    )
  return programs.compiled(programs.lower(request.job, placement, step_name))


def _counted(
  request: Request,
  placement: placements.Placement,
  step_name: str,
  text: str,
) -> Row:
  """Returns the fields of `row` that depend on the program's text."""
  job, slice_ = request.job, request.topology
  module = hlo_text.parse(text)
  # Decoding ends when all rows have ended: at the latest after this many.
  result = bounds(
    module, slice_, placement.mesh, unknown_trip_count=job.target_length
  )
  step_seconds = result["step_seconds"]
  useful = _PASSES[step_name] * arithmetic.forward_flops(
    job.config,
    batch_size=job.batch_size,
    input_length=job.input_length,
    target_length=job.target_length,
  )
  possible = slice_.chip.peak_flops * slice_.num_chips * step_seconds
  tokens = job.batch_size * (job.input_length + job.target_length)
  hours = None
  if request.train_steps is not None and step_name == "train":
    hours = request.train_steps * step_seconds / 3600
  result |= {
    "mfu": useful / possible,
    "examples_per_second": job.batch_size / step_seconds,
    "tokens_per_second": tokens / step_seconds,
    "hours": hours,
    "chip_hours": None if hours is None else hours * slice_.num_chips,
  }
  if request.breakdown:
    result["breakdown"] = breakdown.rows(
      module, num_devices=slice_.num_chips, unknown_trip_count=job.target_length
    )
  return result


def bounds(
  module: hlo_text.Module,
  slice_: topology.Topology,
  mesh: jax.sharding.Mesh,
  *,
  unknown_trip_count: int = 1,
) -> Row:
  """Returns the cost of a compiled program, and a lower bound on its time.

  Args:
    module: the program.
    slice_: the chips it was compiled for.
    mesh: the mesh of all of them.
    unknown_trip_count: see `hlo_cost.cost`.

  Returns:
    The fields flops to bound_by, and unknown_loops, of `row`.
  """
  cost = hlo_cost.cost(
    module, num_devices=slice_.num_chips, unknown_trip_count=unknown_trip_count
  )
  sent = cost.sent_bytes()
  seconds = {
    "compute": cost.flops / slice_.chip.peak_flops,
    "memory": cost.hbm_bytes / slice_.chip.hbm_bytes_per_second,
    "interconnect": slice_.seconds(cost.exchanges, mesh),
  }
  bound_by = max(seconds, key=seconds.__getitem__)
  return {
    "flops": cost.flops,
    "hbm_bytes": cost.hbm_bytes,
    "interconnect_bytes": sum(sent.values()),
    "interconnect_bytes_by_kind": dict(sent),
    **{f"{name}_seconds": value for name, value in seconds.items()},
    "step_seconds": seconds[bound_by],
    "bound_by": bound_by,
    "unknown_loops": cost.unknown_loops,
  }


def placement_on(
  slice_: topology.Topology, sizes: Mapping[str, int]
) -> placements.Placement:
  """Returns the mesh of all chips of a slice, with the default axis rules."""
  return placements.Placement(
    mesh=meshes.make_mesh(**sizes, devices=slice_.devices)
  )


def _goodness(found: Row) -> tuple:
  """Returns a sort key: meshes that fit first, then by time, then by memory."""
  if not found["fits"]:
    return (1, found["hbm_gib"], 0.0)
  return (0, found["step_seconds"], found["hbm_gib"])


def _advice(
  request: Request,
  sizes: Mapping[str, int],
  over: float,
  held: float,
  *,
  trains: bool,
) -> str:
  """Describes how to make a step fit, the least loss of speed first."""
  job, limit = request.job, request.topology.chip.hbm_gib
  ways = []
  if held > limit:
    ways.append(f"the state alone is {held:.2f} GiB")
  if sizes["data"] > 1:
    ways.append(f"more fsdp (now {sizes['fsdp']}) in place of data")
  if trains and held > limit / 2 and job.optimizer.name != "adafactor":
    ways.append("--optimizer=adafactor")
  if held <= limit:
    shards = sizes["data"] * sizes["fsdp"]
    if trains:
      policies = t5_config.REMAT_POLICIES
      stronger = policies[policies.index(job.config.remat_policy) + 1 :][:2]
      ways += [f"--remat={policy}" for policy in stronger]
      pieces = 2 * job.num_microbatches
      if job.batch_size % (shards * pieces) == 0:
        ways.append(f"--microbatches={pieces}")
    if job.batch_size > shards:
      ways.append(f"a smaller batch (a multiple of {shards})")
  ways.append("more chips")
  return f"{over:.2f} GiB over: try {', '.join(ways)}"
