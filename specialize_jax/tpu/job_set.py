"""A run on GKE: a JobSet, whose pods are the hosts of one slice.

The cluster restarts the run, as `resume` does on TPU VMs: after a preemption
whenever there is capacity, after failures up to `max_restarts` times.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import yaml

from specialize_jax import errors
from specialize_jax.tpu import launch, resume, slices, tpu_vm

_WORKERS = "workers"  # the set's one job
_CONTAINER = "specialize"
# Port of the coordinator of `jax.distributed` (its default).
_COORDINATOR_PORT = 8482


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSet:
  """A run in a cluster.

  Attributes:
    name: name of the JobSet.
    slice: the chips.
    image: the container image; its entry point is not used.
    namespace: the namespace of the cluster.
    spot: whether it runs on spot nodes, which may be preempted at any time.
    max_restarts: number of restarts after failures; preemptions do not count.
    grace_seconds: time from SIGTERM to SIGKILL, in which the run saves its
      step. Google Cloud allows spot nodes less than this.
    service_account: the service account of the cluster with access to buckets;
      None for the default one.
    environment: variables that are set for the run.
  """

  name: str
  slice: slices.Slice
  image: str
  namespace: str = "default"
  spot: bool = False
  max_restarts: int = 5
  grace_seconds: int = 300
  service_account: str | None = None
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    """Raises UserError for an invalid name, or a missing image."""
    tpu_vm.check_name(self.name)
    if not self.image:
      raise errors.UserError(
        "--image is missing: give the container image that has specialize-jax "
        "installed, with its `tpu` extra."
      )

  def manifest(self, arguments: Sequence[str]) -> dict[str, object]:
    """Returns the JobSet that runs `specialize ARGUMENT...` on every host."""
    return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": {
        "name": self.name,
        "namespace": self.namespace,
        # All pods of a slice on the nodes of one slice, and no others there.
        "annotations": {
          "alpha.jobset.sigs.k8s.io/exclusive-topology": (
            "cloud.google.com/gke-nodepool"
          )
        },
      },
      "spec": {
        "failurePolicy": {
          "maxRestarts": self.max_restarts,
          "rules": [
            {
              "name": "preempted",
              "action": "RestartJobSetAndIgnoreMaxRestarts",
              "onJobFailureReasons": ["PodFailurePolicy"],
            }
          ],
        },
        "replicatedJobs": [
          {
            "name": _WORKERS,
            "replicas": 1,
            "template": {"spec": self._job(arguments)},
          }
        ],
      },
    }

  def _job(self, arguments: Sequence[str]) -> dict[str, object]:
    """Returns a job of one pod for each host; if one pod ends, all end."""
    return {
      "parallelism": self.slice.num_hosts,
      "completions": self.slice.num_hosts,
      "completionMode": "Indexed",
      "backoffLimit": 0,
      "podFailurePolicy": {
        "rules": [
          {
            "action": "FailJob",
            "onExitCodes": {
              "containerName": _CONTAINER,
              "operator": "In",
              "values": [resume.PREEMPTED],
            },
          },
          {
            "action": "FailJob",
            "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
          },
        ]
      },
      "template": {"spec": self._pod(arguments)},
    }

  def _pod(self, arguments: Sequence[str]) -> dict[str, object]:
    chips = str(self.slice.chips_per_host)
    selector = {
      "cloud.google.com/gke-tpu-accelerator": self.slice.gke_accelerator,
      "cloud.google.com/gke-tpu-topology": self.slice.topology,
    }
    if self.spot:
      selector["cloud.google.com/gke-spot"] = "true"
    pod = {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": self.grace_seconds,
      "nodeSelector": selector,
      "containers": [
        {
          "name": _CONTAINER,
          "image": self.image,
          "command": ["specialize", *map(_unexpanded, arguments)],
          "ports": [{"containerPort": _COORDINATOR_PORT}],
          "resources": {
            "requests": {"google.com/tpu": chips},
            "limits": {"google.com/tpu": chips},
          },
        }
      ],
    }
    if self.environment:
      pod["containers"][0]["env"] = [
        {"name": name, "value": _unexpanded(value)}
        for name, value in self.environment.items()
      ]
    if self.service_account is not None:
      pod["serviceAccountName"] = self.service_account
    return pod

  def create(self, arguments: Sequence[str]) -> launch.Command:
    """Creates the JobSet in the cluster."""
    return self._kubectl(
      f"start the run on {self.slice.num_hosts} hosts",
      # Not `apply`, which starts nothing where the same JobSet has ended.
      ("create",),
      "--filename=-",
      input_text=to_yaml(self.manifest(arguments)),
    )

  def describe(self) -> launch.Command:
    """Shows the state of the JobSet."""
    return self._kubectl("how it stands", ("get", "jobset", self.name))

  def logs(self) -> launch.Command:
    """Follows the log of the first host."""
    labels = {
      "jobset.sigs.k8s.io/jobset-name": self.name,
      "batch.kubernetes.io/job-completion-index": "0",
    }
    selector = ",".join(f"{key}={value}" for key, value in labels.items())
    return self._kubectl(
      "follow the log",
      ("logs",),
      f"--selector={selector}",
      f"--container={_CONTAINER}",
      "--follow",
      "--tail=100",
    )

  def delete(self) -> launch.Command:
    """Deletes the JobSet and frees its nodes."""
    return self._kubectl("end the run", ("delete", "jobset", self.name))

  def _kubectl(
    self,
    purpose: str,
    words: tuple[str, ...],
    *flags: str,
    input_text: str | None = None,
  ) -> launch.Command:
    return launch.Command(
      purpose=purpose,
      arguments=(
        "kubectl",
        *words,
        f"--namespace={self.namespace}",
        *flags,
      ),
      input_text=input_text,
    )


def to_yaml(manifest: Mapping[str, object]) -> str:
  """Returns a manifest as YAML for kubectl, its keys in their order."""
  return yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True)


def _unexpanded(argument: str) -> str:
  """Escapes an argument for Kubernetes, which expands `$(NAME)`.

  It reads `$$` as one `$`; nothing else is special.
  """
  return argument.replace("$", "$$")
