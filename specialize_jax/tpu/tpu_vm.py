"""A run on TPU VMs: the gcloud commands from create to delete."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.tpu import launch, remote_script, slices

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuVm:
  """A slice of TPU VMs, which need not exist yet.

  Attributes:
    name: name of the slice and of the run on it.
    slice: the chips.
    project: the project of Google Cloud.
    zone: the zone, such as "us-west4-a".
    queued: whether to create it as a queued resource, which waits for capacity;
      otherwise creation fails if there is none.
    spot: whether to use spot capacity, which is cheaper and may be preempted at
      any time.
    runtime_version: the image; None for the default of the chips.
    environment: variables that are set for the run.
  """

  name: str
  slice: slices.Slice
  project: str
  zone: str
  queued: bool = False
  spot: bool = False
  runtime_version: str | None = None
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    """Raises UserError for an invalid name, project or zone."""
    check_name(self.name)
    for flag in ("project", "zone"):
      if not getattr(self, flag):
        raise errors.UserError(
          f"--{flag} is missing: give it, or set "
          f"CLOUDSDK_{'CORE' if flag == 'project' else 'COMPUTE'}_"
          f"{flag.upper()} as for gcloud."
        )

  def create(self) -> launch.Command:
    """Creates the TPU VM, or its queued resource."""
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
    """Prints only its state, for `resume`."""
    kind = "queued-resources" if self.queued else "tpu-vm"
    field = "state.state" if self.queued else "state"
    return self._gcloud(
      "how it stands",
      (kind, "describe", self.name),
      f"--format=value({field})",
    )

  def install(self, package: str) -> list[launch.Command]:
    """Installs the package on every host.

    Args:
      package: a local wheel, which is copied, or a requirement of pip.

    Raises:
      UserError: the wheel does not exist.
    """
    commands = []
    if remote_script.is_wheel(package):
      if not os.path.isfile(package):
        raise errors.UserError(
          f"--package={package} is not a file: give a wheel, or a "
          "requirement for pip, such as 'specialize-jax @ git+https://...'."
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

  def copy(self, sources: Sequence[str]) -> list[launch.Command]:
    """Copies files and folders to the run's directory on every host.

    Each keeps the last part of its name; what was copied before is replaced.

    Args:
      sources: paths of this machine.

    Raises:
      UserError: two would have the same name there, or one that of a file of
        the run.
    """
    if not sources:
      return []
    wholes = [os.path.abspath(path) for path in sources]
    names = [os.path.basename(path) for path in wholes]
    for place, name in enumerate(names):
      if name in (*names[:place], *remote_script.FILES):
        raise errors.UserError(
          f"--copy={sources[place]} would be {name} in the run's directory,"
          " which has another file of that name: rename it"
        )
    return [
      self._ssh(
        "make the run's directory on every host",
        remote_script.make_directory(self.name),
      ),
      self._gcloud(
        "copy what the run reads to every host",
        (
          *("tpu-vm", "scp", *wholes),
          f"{self.name}:{remote_script.RUNS}/{self.name}/",
        ),
        "--recurse",
        "--worker=all",
      ),
    ]

  def start(self, arguments: Sequence[str]) -> launch.Command:
    """Starts `specialize ARGUMENT...` on every host and waits for it."""
    return self._ssh(
      "start the run on every host, or join it; the status is the run's",
      remote_script.start(self.name, arguments, self.environment),
    )

  def logs(self) -> launch.Command:
    """Follows the log of the first host."""
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
  """Raises UserError for a name that is invalid for a host or a pod."""
  if not _NAME.fullmatch(name):
    raise errors.UserError(
      f"--name={name} is not possible: expected at most 40 lower-case "
      "letters, digits and hyphens, a letter first and no hyphen last."
    )
