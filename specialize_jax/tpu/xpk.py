"""A run on a GKE cluster through xpk, as those who run xpk type it.

Flags are those of xpk 1.13 (`xpk workload create --help`), which makes the
JobSet itself: queued, with its own names, on clusters that xpk created.
"""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence

from specialize_jax import errors
from specialize_jax.tpu import launch, resume, slices, tpu_vm

_CONTAINER = "specialize"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
  """A run as a workload of xpk.

  Attributes:
    name: the workload's name.
    slice: the chips.
    image: the container image.
    cluster: the cluster's name, as given to `xpk cluster create`.
    project: Google Cloud's; empty for gcloud's default.
    zone: the cluster's; empty for gcloud's default.
    spot: whether it runs on spot nodes, which may be preempted at any time.
    max_restarts: number of restarts, after preemptions too: xpk counts both.
    grace_seconds: time from SIGTERM to SIGKILL, for saving the step.
    environment: variables that are set for the run.
  """

  name: str
  slice: slices.Slice
  image: str
  cluster: str
  project: str = ""
  zone: str = ""
  spot: bool = False
  max_restarts: int = 5
  grace_seconds: int = 300
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    """Raises UserError for an impossible name, no image or no cluster."""
    tpu_vm.check_name(self.name)
    if not self.image:
      raise errors.UserError(
        "--image is missing: give the container image that has specialize-jax "
        "installed; the repository's Dockerfile builds one."
      )
    if not self.cluster:
      raise errors.UserError(
        "--cluster is missing: give the name of a cluster that `xpk cluster "
        "create` has made."
      )
    named = self.slice.accelerator_type
    if slices.parse(named) != self.slice:
      raise errors.UserError(
        f"xpk knows a slice by its name alone, and {named} is not of the shape"
        f" {self.slice.topology}: give --topology={named}, or --on=gke or"
        " --on=tpu_vm, which take a shape."
      )

  def create(self, arguments: Sequence[str]) -> launch.Command:
    """Submits the run."""
    return self._xpk(
      f"start the run on {self.slice.num_hosts} hosts",
      "create",
      f"--workload={self.name}",
      f"--tpu-type={self.slice.accelerator_type}",
      "--num-slices=1",
      f"--docker-image={self.image}",
      f"--docker-name={_CONTAINER}",
      f"--max-restarts={self.max_restarts}",
      f"--restart-on-exit-codes={resume.PREEMPTED}",
      f"--termination-grace-period-seconds={self.grace_seconds}",
      *(("--spot",) if self.spot else ()),
      f"--command={_shell_command(arguments, self.environment)}",
    )

  def describe(self) -> launch.Command:
    """Shows the state of the workload."""
    return self._xpk("its state", "list", f"--filter-by-job={self.name}")

  def logs(self) -> launch.Command:
    """Follows the log of the first host."""
    labels = {
      "xpk.google.com/workload": self.name,
      "batch.kubernetes.io/job-completion-index": "0",
    }
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return launch.Command(
      purpose="follow the log",
      arguments=(
        "kubectl",
        "logs",
        f"--selector={selector}",
        f"--container={_CONTAINER}",
        "--follow",
        "--tail=100",
      ),
    )

  def delete(self) -> launch.Command:
    """Ends the run and frees its nodes."""
    return self._xpk(
      "end the run", "delete", f"--workload={self.name}", "--force"
    )

  def _xpk(self, purpose: str, action: str, *flags: str) -> launch.Command:
    place = [f"--cluster={self.cluster}"]
    place += [f"--project={self.project}"] if self.project else []
    place += [f"--zone={self.zone}"] if self.zone else []
    return launch.Command(
      purpose=purpose, arguments=("xpk", "workload", action, *place, *flags)
    )


def _shell_command(
  arguments: Sequence[str], environment: Mapping[str, str]
) -> str:
  """Writes `specialize ARGUMENT...` as xpk puts it into a bash script.

  `exec` replaces xpk's subshell, so that SIGTERM reaches the run, which then
  saves its step. Kubernetes reads `$$` as `$`, before bash reads anything.
  """
  variables = [f"{name}={value}" for name, value in environment.items()]
  for argument in (*variables, *arguments):
    if "\n" in argument:
      raise errors.UserError(
        f"{argument!r} has a line break, which xpk cannot pass on: put the "
        "value into a gin file."
      )
  setting = ["env", *variables] if variables else []
  words = shlex.join([*setting, "specialize", *arguments])
  return f"exec {words}".replace("$", "$$")
