"""A slice of TPU chips to compile for: its devices, meshes and links."""

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from specialize_jax import errors
from specialize_jax.parallel import chips
from specialize_jax.parallel import mesh as meshes
from specialize_jax.t5 import config as t5_config
from specialize_jax.tpu import collectives, slices

# Tensor parallelism over more chips costs more in communication than it saves.
_MAX_MODEL = 8
# Chips of one copy of the parameters, where a slice holds several: so few send
# no more for being part of a larger slice, and hold FlanT5-XXL with Adafactor.
_REPLICA = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """The chips of a slice, and the links between them.

  Attributes:
    name: the compiler's name, such as "v5e:4x4".
    chip: peak rates and memory of a chip.
    shape: number of chips along each axis.
    devices: one device per chip, to compile for; they cannot compute.
  """

  name: str
  chip: chips.Chip
  shape: tuple[int, ...]
  devices: tuple[jax.Device, ...]

  @property
  def num_chips(self) -> int:
    """Number of chips."""
    return math.prod(self.shape)

  def seconds(
    self, exchanges: Sequence[collectives.Collective], mesh: jax.sharding.Mesh
  ) -> float:
    """Returns a lower bound on the time of collectives, in seconds.

    The bytes of a group travel along the axes of the torus in which its devices
    differ, at full bandwidth: over two links per axis that closes to a ring,
    otherwise over the one link of the chip at the axis's end. Collectives along
    different axes may overlap, so the bound is the time of the busiest axis.

    Args:
      exchanges: the collectives of one step of a program.
      mesh: the mesh of the program.
    """
    places = [device.coords for device in mesh.devices.flat]
    busy = dict.fromkeys(range(len(self.shape)), 0.0)
    for exchange in exchanges:
      sent = exchange.count * exchange.sent_bytes
      if not sent:
        continue
      links = min(
        (
          self._links([places[index] for index in group])
          for group in exchange.groups
          if len(set(group)) > 1
        ),
        key=lambda links: sum(links.values()),
      )
      speed = sum(links.values()) * self.chip.link_bytes_per_second
      for axis in links:
        busy[axis] += sent / speed
    return max(busy.values())

  def _links(self, group: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Returns the number of links of a chip along each axis of a group."""
    return {
      axis: 2 if self._closes(length) else 1
      for axis, length in enumerate(self.shape)
      if len({place[axis] for place in group}) > 1
    }

  def _closes(self, length: int) -> bool:
    """Whether an axis of the slice is a ring."""
    if self.chip.pod_axis is not None:
      return length == self.chip.pod_axis
    return all(side % 4 == 0 for side in self.shape)


def load(name: str) -> Topology:
  """Returns the topology of a slice by its name, from the TPU compiler.

  Args:
    name: a name for `slices.parse`, such as "v5e:4x4" or "v5e-16".

  Raises:
    UserError: there is no such slice, or libtpu is not installed.
  """
  rented = slices.parse(name)
  if importlib.util.find_spec("libtpu") is None:
    raise errors.UserError(
      "the TPU compiler, libtpu, is not installed: run `pip install "
      "'specialize-jax[plan]'`, or `pip install libtpu`."
    )
  # No TPU is used: skip the metadata server of cloud machines, and the lock
  # against two processes on one TPU.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  chip = chips.CHIPS[rented.generation]
  text = f"{rented.generation}:{rented.topology}"
  # Otherwise each of the two cores of a chip is a device.
  megacore = {"chip_config_name": "megacore"} if chip.cores_per_chip > 1 else {}
  shape = tuple(int(side) for side in rented.topology.split("x"))
  # The compiler must know that a slice is only part of a host.
  if math.prod(shape) < slices.CHIPS_PER_HOST:
    megacore["chips_per_host_bounds"] = (*shape, 1)
  try:
    with _flags_of_the_cpu_hidden():
      described = topologies.get_topology_desc(
        platform="tpu", topology_name=text, **megacore
      )
      _compile_something(described.devices[0])
  except (RuntimeError, NotImplementedError) as error:
    what = " ".join(str(error).split())
    raise errors.UserError(
      f"--topology={name}: the TPU compiler does not know it: {what}"
    ) from error
  return Topology(
    name=text, chip=chip, shape=shape, devices=tuple(described.devices)
  )


@contextlib.contextmanager
def _flags_of_the_cpu_hidden() -> Iterator[None]:
  """Hides XLA_FLAGS from libtpu, which aborts the process at flags of the CPU.

  The CPU client has read them by then.
  """
  jax.devices("cpu")
  flags = os.environ.pop("XLA_FLAGS", None)
  try:
    yield
  finally:
    if flags is not None:
      os.environ["XLA_FLAGS"] = flags


def _compile_something(device: jax.Device) -> None:
  """Makes libtpu read its flags, which it does at its first compilation."""
  scalar = jax.ShapeDtypeStruct(
    (), jnp.int32, sharding=jax.sharding.SingleDeviceSharding(device)
  )
  jax.jit(lambda x: x).lower(scalar).compile()


def parse_mesh(text: str, num_chips: int) -> dict[str, int]:
  """Parses the shape of a mesh: `fsdp=16` or `data=2,fsdp=4,model=2`.

  Axes that are not named have size 1, and an axis of -1 has the remaining
  chips.

  Raises:
    UserError: an axis is unknown, named twice or not a number, or the product
      of the axes is not the number of chips.
  """
  axes: dict[str, int] = {}
  for part in text.split(","):
    name, _, size = part.strip().partition("=")
    if name not in meshes.AXES or name in axes or not _is_size(size):
      raise errors.UserError(
        f"--mesh={text}: {part!r} is not possible: expected each of "
        f"{', '.join(meshes.AXES)} once at most with its number of chips, "
        "such as fsdp=8,model=2."
      )
    axes[name] = int(size)
  sizes = {name: axes.get(name, 1) for name in meshes.AXES}
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if list(sizes.values()).count(-1) == 1 and num_chips % fixed == 0:
    sizes = {n: num_chips // fixed if s == -1 else s for n, s in sizes.items()}
  if -1 in sizes.values():
    raise errors.UserError(
      f"--mesh={text} leaves -1 to the other chips: at most one axis may, and"
      f" the product of the others, {abs(fixed):,}, must divide {num_chips}"
    )
  if math.prod(sizes.values()) != num_chips:
    raise errors.UserError(
      f"--mesh={text} is for {math.prod(sizes.values())} chips, and the "
      f"topology has {num_chips}: give axes that multiply to {num_chips}."
    )
  return sizes


def sensible_meshes(
  config: t5_config.T5Config, *, batch_size: int, num_chips: int
) -> list[dict[str, int]]:
  """Returns the meshes to compile.

  Fully sharded parameters with a model axis of 1, 2, 4 and 8; two replicas;
  replicas of 16 chips, whose all-gathers are those of 16 chips alone; and pure
  data parallelism. Meshes over which the batch or the network is not divisible
  are left out.

  Args:
    config: the network.
    batch_size: number of rows of a global batch.
    num_chips: number of chips.

  Raises:
    UserError: no mesh divides the batch.
  """
  found = []
  for sizes in _candidates(num_chips):
    cuts_batch = batch_size % (sizes["data"] * sizes["fsdp"]) == 0
    cuts_network = config.embed_dim % sizes["fsdp"] == 0 and all(
      size % sizes["model"] == 0
      for size in (config.num_heads, config.mlp_dim, config.vocab_size)
    )
    if cuts_batch and cuts_network and sizes not in found:
      found.append(sizes)
  if not found:
    raise errors.UserError(
      f"no mesh of {num_chips} chips cuts --batch_size={batch_size} evenly: "
      f"give a multiple of {num_chips}."
    )
  return found


def written(sizes: Mapping[str, int]) -> str:
  """Returns a mesh as users write it, without axes of 1: "fsdp=8,model=2"."""
  parts = [f"{name}={size}" for name, size in sizes.items() if size > 1]
  return ",".join(parts) or "data=1"


def _candidates(num_chips: int) -> Iterator[dict[str, int]]:
  model = 1
  while model <= min(_MAX_MODEL, num_chips):
    if num_chips % model == 0:
      yield {"data": 1, "fsdp": num_chips // model, "model": model}
    model *= 2
  if num_chips % 2 == 0:
    yield {"data": 2, "fsdp": num_chips // 2, "model": 1}
  if num_chips % _REPLICA == 0 and num_chips > _REPLICA:
    yield {"data": num_chips // _REPLICA, "fsdp": _REPLICA, "model": 1}
  yield {"data": num_chips, "fsdp": 1, "model": 1}


def _is_size(text: str) -> bool:
  return text == "-1" or (text.isdecimal() and int(text) >= 1)
