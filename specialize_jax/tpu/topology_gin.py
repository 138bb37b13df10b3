"""The gin file of a slice, with the best mesh of a plan and what chose it."""

import textwrap
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.parallel import mesh as meshes
from specialize_jax.tpu import plan, slices, topology

_LINE = 78
_OTHERS = 3
"""How many of the next best meshes the file names."""


def text(request: plan.Request, rows: Sequence[plan.Row], command: str) -> str:
  """Writes `gin_configs/topologies/NAME.gin` for the best mesh of a plan.

  Args:
    request: the planned run.
    rows: the plan's rows for its train step, the best mesh first.
    command: the command line that planned it, for the file's header.

  Raises:
    UserError: no mesh fits.
  """
  best, *others = rows
  slice_ = slices.parse(request.topology.name)
  if not best["fits"]:
    raise errors.UserError(
      f"--write_topology: no mesh of {request.topology.name} fits this job; "
      f"the nearest, {best['mesh']}, is {best['advice']}."
    )
  found = f"{best['mesh']}: at least {_bound(best)} a step"
  also = [f"{row['mesh']} {_bound(row)}" for row in others if row["fits"]]
  unfit = sum(not row["fits"] for row in others)
  if also:
    found += f"; next {', '.join(also[:_OTHERS])}"
  if unfit:
    found += f"; {unfit} more do not fit"
  sizes = topology.parse_mesh(str(best["mesh"]), request.topology.num_chips)
  hosts = "host" if slice_.num_hosts == 1 else "hosts"
  return "\n".join(
    (
      f"# {slice_.name}: {request.topology.name}, {slice_.num_chips} chips on "
      f"{slice_.num_hosts} {hosts}.",
      "#",
      *_comment(
        f"The best of {len(rows)} by the TPU's compiler, {found} "
        f"({best['hbm_gib']:.1f} of {best['hbm_limit_gib']:.1f} GiB a chip)."
      ),
      *_comment(f"Chosen by: {command}", "  "),
      *_axes(sizes),
      "",
      f'REMAT_POLICY = "{request.job.config.remat_policy}"',
      "",
    )
  )


def _axes(sizes: Mapping[str, int]) -> list[str]:
  return [f"{axis.upper()}_AXIS = {sizes[axis]}" for axis in meshes.AXES]


def _bound(row: plan.Row) -> str:
  return f"{row['step_seconds']:.3f} s ({row['bound_by']})"


def _comment(words: str, indent: str = "") -> list[str]:
  return textwrap.wrap(
    words,
    _LINE,
    initial_indent="# ",
    subsequent_indent=f"# {indent}",
    break_long_words=False,
    break_on_hyphens=False,
  )
