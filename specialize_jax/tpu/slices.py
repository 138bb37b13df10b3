"""The slices of Google Cloud, by their names in its three interfaces.

A slice is `v5e:4x4` to the compiler, `v5litepod-16` to gcloud, and a pair of
node labels to GKE. Names are from cloud.google.com/tpu/docs ("TPU versions",
"TPU software versions") and from
cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
"""

import dataclasses
import math
import re

from specialize_jax import errors

CHIPS_PER_HOST = 4
# Number of chips of the largest two-dimensional slice of one host.
_LARGEST_SINGLE_HOST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Generation:
  """The names of a generation of chips.

  Attributes:
    gcloud: the prefix of `--accelerator-type`, and the value of `--type`.
    counted: units per chip of the number after that prefix: its cores, or 1.
    runtime_version: the image of the TPU VMs.
    gke: the value of the node label `gke-tpu-accelerator`.
    topologies: the default shape by number of chips.
  """

  gcloud: str
  counted: int
  runtime_version: str
  gke: str
  topologies: dict[int, str]


_FLAT = {
  1: "1x1",
  4: "2x2",
  8: "2x4",
  16: "4x4",
  32: "4x8",
  64: "8x8",
  128: "8x16",
  256: "16x16",
}
_CUBES = {
  4: "2x2x1",
  8: "2x2x2",
  16: "2x2x4",
  32: "2x4x4",
  64: "4x4x4",
  128: "4x4x8",
  256: "4x8x8",
  512: "8x8x8",
  1024: "8x8x16",
}
_GENERATIONS = {
  "v4": _Generation(
    gcloud="v4",
    counted=2,
    runtime_version="tpu-ubuntu2204-base",
    gke="tpu-v4-podslice",
    topologies=_CUBES,
  ),
  "v5e": _Generation(
    gcloud="v5litepod",
    counted=1,
    runtime_version="v2-alpha-tpuv5-lite",
    gke="tpu-v5-lite-podslice",
    topologies=_FLAT,
  ),
  "v5p": _Generation(
    gcloud="v5p",
    counted=2,
    runtime_version="v2-alpha-tpuv5",
    gke="tpu-v5p-slice",
    topologies=_CUBES,
  ),
  "v6e": _Generation(
    gcloud="v6e",
    counted=1,
    runtime_version="v2-alpha-tpuv6e",
    gke="tpu-v6e-slice",
    topologies=_FLAT,
  ),
}
_SHAPE = re.compile(r"(v\w+):([1-9]\d*(?:x[1-9]\d*)+)")
_COUNT = re.compile(r"(v\w+)-([1-9]\d*)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """A slice: chips that are allocated together.

  Attributes:
    generation: "v4", "v5e", "v5p" or "v6e".
    topology: chips along each axis, as "4x4" or "2x2x4".
  """

  generation: str
  topology: str

  @property
  def num_chips(self) -> int:
    """Number of chips."""
    return math.prod(map(int, self.topology.split("x")))

  @property
  def chips_per_host(self) -> int:
    """Number of chips per host; a small two-dimensional slice is one host."""
    flat = self.topology.count("x") == 1
    if flat and self.num_chips <= _LARGEST_SINGLE_HOST:
      return self.num_chips
    return CHIPS_PER_HOST

  @property
  def num_hosts(self) -> int:
    """Number of hosts, each of which runs one process."""
    return self.num_chips // self.chips_per_host

  @property
  def name(self) -> str:
    """As the files of gin_configs/topologies are called: "v5e-16"."""
    counted = _GENERATIONS[self.generation].counted
    return f"{self.generation}-{self.num_chips * counted}"

  @property
  def accelerator_type(self) -> str:
    """The name in gcloud; v4 and v5p count cores, two per chip."""
    generation = _GENERATIONS[self.generation]
    return f"{generation.gcloud}-{self.num_chips * generation.counted}"

  @property
  def gcloud_flags(self) -> tuple[str, ...]:
    """Flags of gcloud; with the topology if it is three-dimensional."""
    if self.topology.count("x") == 1:
      return (f"--accelerator-type={self.accelerator_type}",)
    kind = _GENERATIONS[self.generation].gcloud
    return (f"--type={kind}", f"--topology={self.topology}")

  @property
  def runtime_version(self) -> str:
    """The image of its TPU VMs."""
    return _GENERATIONS[self.generation].runtime_version

  @property
  def gke_accelerator(self) -> str:
    """The node label `cloud.google.com/gke-tpu-accelerator`."""
    return _GENERATIONS[self.generation].gke


def parse(text: str) -> Slice:
  """Parses a slice's name, the compiler's or gcloud's.

  Example: "v5e:4x4", "v5e-16" and "v5litepod-16" are the same 16 chips on 4
  hosts; "v4:2x2x4" and "v4-32" are the same 16 chips, of two cores each.

  Raises:
    UserError: there is no such slice.
  """
  shape, count = _SHAPE.fullmatch(text), _COUNT.fullmatch(text)
  name = (shape or count)[1] if shape or count else ""
  for generation, words in _GENERATIONS.items():
    if name not in (generation, words.gcloud):
      continue
    if shape and _is_rented(shape[2], words.topologies):
      return Slice(generation=generation, topology=shape[2])
    if count:
      chips, rest = divmod(int(count[2]), words.counted)
      if not rest and chips in words.topologies:
        topology = words.topologies[chips]
        return Slice(generation=generation, topology=topology)
    raise errors.UserError(
      f"--topology={text} is not a slice of {generation}: expected "
      f"{generation}: and one of {', '.join(words.topologies.values())}"
      + (
        f", or three ascending multiples of 4, such as {generation}:8x16x16"
        if _is_rented("8x16x16", words.topologies)
        else ""
      )
    )
  raise errors.UserError(
    f"--topology={text} is unknown: expected one of "
    f"{', '.join(_GENERATIONS)}, a colon and chips along each axis, such as "
    "v5e:4x4 or v4:2x2x4."
  )


def _is_rented(topology: str, listed: dict[int, str]) -> bool:
  """Whether a shape is listed, or a cuboid of 4 x 4 x 4 cubes."""
  if topology in listed.values():
    return True
  sides = [int(side) for side in topology.split("x")]
  cuboid = len(sides) == 3 == listed[4].count("x") + 1
  return cuboid and sides == sorted(sides) and all(s % 4 == 0 for s in sides)
