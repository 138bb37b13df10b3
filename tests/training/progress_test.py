"""MFU and memory of a run."""

import dataclasses

from specialize_jax.parallel import chips
from specialize_jax.training import progress


@dataclasses.dataclass
class Device:
  """A device with memory statistics."""

  stats: dict | None

  def memory_stats(self):
    return self.stats


def test_efficiency_is_the_share_of_the_peak_and_the_fullest_device():
  devices = [
    Device({"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**30}),
    Device({"bytes_in_use": 2**31, "peak_bytes_in_use": 2**31}),
  ]
  chip = chips.of_device_kind("TPU v5 lite")
  efficiency = progress.Efficiency(
    step_flops=197e12, peak_flops=chip.peak_flops * 2, devices=devices
  )
  assert efficiency.values(step_seconds=2.0) == {
    "mfu": 0.25,
    "hbm_gib": 2.0,
    "hbm_peak_gib": 3.0,
  }


def test_unknown_values_are_omitted():
  assert chips.of_device_kind("cpu") is None
  efficiency = progress.Efficiency(step_flops=1.0, devices=[Device(None)])
  assert efficiency.values(step_seconds=1.0) == {}
