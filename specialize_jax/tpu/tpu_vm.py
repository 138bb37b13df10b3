"""A run on TPU VMs: the gcloud commands of its life, from create to delete."""

import dataclasses
import os
import re
from collections.abc import Sequence

from specialize_jax import errors
from specialize_jax.tpu import launch, remote_script, slices

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm:
  """A slice of TPU VMs, rented or to be rented.

  Attributes:
    name: of the slice and of the run on it.
    slice: which chips.
    project: Google Cloud's.
    zone: such as "us-west4-a".
    queued: whether it waits in a queue of requests until there is room;
      otherwise creating it fails where there is none.
    spot: whether it costs less and may be taken away at any time.
    runtime_version: of the image; that of the chips where None.
  """

  name: str
  slice: slices.Slice
  project: str
  zone: str
  queued: bool = False
  spot: bool = False
  runtime_version: str | None = None

  def __post_init__(self) -> None:
    """Raises UserError for a name that Google Cloud would refuse."""
    check_name(self.name)
    for flag in ("project", "zone"):
      if not getattr(self, flag):
        raise errors.UserError(
          f"--{flag} is missing: give it, or set "
          f"CLOUDSDK_{'CORE' if flag == 'project' else 'COMPUTE'}_"
          f"{flag.upper()} as for gcloud."
        )

  def create(self) -> launch.Command:
    """Rents it, or asks for it to be rented."""
    version = self.runtime_version or self.slice.runtime_version
    if self.queued:
      kind, named = "queued-resources", (f"--node-id={self.name}",)
      versioned = f"--runtime-version={version}"
    else:
      kind, named, versioned = "tpu-vm", (), f"--version={version}"
    return self._gcloud(
      f"rent {self.slice.num_chips} chips on {self.slice.num_hosts} hosts",
      (kind, "create", self.name),
      *named,
      *self.slice.gcloud_flags,
      versioned,
      *(("--spot",) if self.spot else ()),
    )

  def describe(self) -> launch.Command:
    """Prints its state alone, see `resume`."""
    kind = "queued-resources" if self.queued else "tpu-vm"
    field = "state.state" if self.queued else "state"
    return self._gcloud(
      "how it stands",
      (kind, "describe", self.name),
      f"--format=value({field})",
    )

  def install(self, package: str) -> list[launch.Command]:
    """Installs the package on every machine.

    Args:
      package: a wheel here, which is copied there, or what pip takes.

    Raises:
      UserError: a wheel that is not here.
    """
    commands = []
    if package.endswith(".whl"):
      if not os.path.isfile(package):
        raise errors.UserError(
          f"--package={package} is not a file: give a wheel, or what pip "
          "takes, such as 'specialize-jax @ git+https://...'."
        )
      commands.append(
        self._gcloud(
          "copy the wheel to every host",
          ("tpu-vm", "scp", os.path.abspath(package), f"{self.name}:"),
          "--worker=all",
        )
      )
      package = os.path.basename(package)
    return [
      *commands,
      self._ssh("install it on every host", remote_script.install(package)),
    ]

  def start(self, arguments: Sequence[str]) -> launch.Command:
    """Starts `specialize ARGUMENT...` on every machine and waits for it."""
    return self._ssh(
      "start the run on every host, or join it; the status is the run's",
      remote_script.start(self.name, arguments),
    )

  def logs(self) -> launch.Command:
    """Follows the log of the first machine."""
    script = remote_script.logs(self.name)
    return self._ssh("follow the log", script, worker="0")

  def delete(self) -> launch.Command:
    """Deletes the TPU VM, including the contents of its disks."""
    if self.queued:
      return self._gcloud(
        "give the slice and the request back",
        ("queued-resources", "delete", self.name),
        "--force",
        "--quiet",
      )
    return self._gcloud(
      "give the slice back", ("tpu-vm", "delete", self.name), "--quiet"
    )

  def _ssh(
    self, purpose: str, script: str, *, worker: str = "all"
  ) -> launch.Command:
    return self._gcloud(
      purpose,
      ("tpu-vm", "ssh", self.name),
      f"--worker={worker}",
      f"--command={script}",
    )

  def _gcloud(
    self, purpose: str, words: tuple[str, ...], *flags: str
  ) -> launch.Command:
    return launch.Command(
      purpose=purpose,
      arguments=(
        *("gcloud", "compute", "tpus"),
        *words,
        f"--project={self.project}",
        f"--zone={self.zone}",
        *flags,
      ),
    )


def check_name(name: str) -> None:
  """Raises UserError for a name that a machine or a pod cannot have."""
  if not _NAME.fullmatch(name):
    raise errors.UserError(
      f"--name={name} is not possible: expected at most 40 lower-case "
      "letters, digits and hyphens, a letter first and no hyphen last."
    )
