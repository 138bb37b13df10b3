"""Peak compute, memory and interconnect figures of TPU chips."""

import dataclasses
from collections.abc import Mapping

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """The published figures of one chip.

  Attributes:
    name: "v4", "v5e", "v5p" or "v6e".
    device_kind: the value of `jax.Device.device_kind`.
    peak_flops: bfloat16 floating point operations per second.
    hbm_bytes_per_second: HBM bandwidth.
    hbm_gib: HBM available to a program, without what the system reserves: the
      limit that the compiler reports when a program does not fit.
    link_bytes_per_second: bandwidth of one link in one direction.
    torus_axes: 2 or 3; the chip has two links along each axis.
    cores_per_chip: number of TensorCores, which names such as v4-8 count.
    pod_axis: for two torus axes, the length at which an axis of a slice wraps
      around; three axes wrap around if all are multiples of 4.
  """

  name: str
  device_kind: str
  peak_flops: float
  hbm_bytes_per_second: float
  hbm_gib: float
  link_bytes_per_second: float
  torus_axes: int
  cores_per_chip: int
  pod_axis: int | None = None


def of_device_kind(device_kind: str) -> Chip | None:
  """Returns the chip of a device kind, or None if it is unknown."""
  return {chip.device_kind: chip for chip in CHIPS.values()}.get(device_kind)


# Sources: the chip's table on docs.cloud.google.com/tpu/docs/NAME ("Peak
# compute per chip (bf16)", "HBM capacity and bandwidth", "Interchip
# Interconnect BW", in bits a second and one direction: over four links in two
# dimensions, six in three). `hbm_gib` is the "of ...G hbm" in the error of the
# compiler, libtpu 0.0.52, when a program does not fit.
CHIPS: Mapping[str, Chip] = {
  chip.name: chip
  for chip in (
    # docs/v4: 275 TFLOPs, 32 GiB, 1200 GBps; six links of 50 GB/s (Jouppi et
    # al., ISCA 2023, arXiv 2304.01433, table 4).
    Chip(
      name="v4",
      device_kind="TPU v4",
      peak_flops=275e12,
      hbm_bytes_per_second=1200e9,
      hbm_gib=30.75,
      link_bytes_per_second=50e9,
      torus_axes=3,
      cores_per_chip=2,
    ),
    # docs/v5e: 197 TFLOPs, 16 GB, 819 GBps, 1600 Gbps.
    Chip(
      name="v5e",
      device_kind="TPU v5 lite",
      peak_flops=197e12,
      hbm_bytes_per_second=819e9,
      hbm_gib=15.75,
      link_bytes_per_second=50e9,
      torus_axes=2,
      cores_per_chip=1,
      pod_axis=16,
    ),
    # docs/v5p: 459 TFLOPs, 95 GiB, 2765 GBps, 4800 Gbps.
    Chip(
      name="v5p",
      device_kind="TPU v5",
      peak_flops=459e12,
      hbm_bytes_per_second=2765e9,
      hbm_gib=95.74,
      link_bytes_per_second=100e9,
      torus_axes=3,
      cores_per_chip=2,
    ),
    # docs/v6e: 918 TFLOPs, 32 GB, 1600 GBps, 3200 Gbps.
    Chip(
      name="v6e",
      device_kind="TPU v6 lite",
      peak_flops=918e12,
      hbm_bytes_per_second=1600e9,
      hbm_gib=31.25,
      link_bytes_per_second=100e9,
      torus_axes=2,
      cores_per_chip=1,
      pod_axis=16,
    ),
  )
}
