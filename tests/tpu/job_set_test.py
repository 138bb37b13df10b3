"""The JobSet is what Kubernetes takes, and runs what was asked for."""

import re

import jsonschema
import kubernetes_validate
import pytest
import yaml

from specialize_jax import errors
from specialize_jax.tpu import job_set, slices

HOSTILE = [
  "--gin.A=$(HOME) $$(HOME) $HOME ${HOME} $",
  "--gin.B='x' \"y\"; `z`\nlines: - {a: 1} # no\n---\n",
  "--gin.C=ünïcødé 数学",
  "yes",
  "0x1f",
  "",
]

_STRING = {"type": "string"}


def _object(required, **properties):
  return {
    "type": "object",
    "required": required,
    "properties": properties,
    "additionalProperties": False,
  }


def _list(items):
  return {"type": "array", "items": items, "minItems": 1}


# The parts of the JobSet API's schema (jobset.x-k8s.io/v1alpha2) that are used
# here; what a job is, `kubernetes_validate` knows.
_JOB_SET = _object(
  ["apiVersion", "kind", "metadata", "spec"],
  apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
  kind={"const": "JobSet"},
  metadata=_object(
    ["name"],
    name={"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"},
    namespace=_STRING,
    annotations={"type": "object", "additionalProperties": _STRING},
  ),
  spec=_object(
    ["replicatedJobs"],
    failurePolicy=_object(
      [],
      maxRestarts={"type": "integer", "minimum": 0},
      rules=_list(
        _object(
          ["name", "action"],
          name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*)$"},
          action={
            "enum": [
              "FailJobSet",
              "RestartJobSet",
              "RestartJobSetAndIgnoreMaxRestarts",
            ]
          },
          onJobFailureReasons=_list(
            {
              "enum": [
                "BackoffLimitExceeded",
                "DeadlineExceeded",
                "FailedIndexes",
                "MaxFailedIndexesExceeded",
                "PodFailurePolicy",
              ]
            }
          ),
        )
      ),
    ),
    replicatedJobs=_list(
      _object(
        ["name", "template"],
        name=_STRING,
        replicas={"type": "integer", "minimum": 1},
        template=_object(["spec"], spec={"type": "object"}),
      )
    ),
  ),
)


def _run(topology="v5e:4x4", **changes):
  return job_set.JobSet(
    name="xl", slice=slices.parse(topology), image="gcr.io/p/i", **changes
  )


def _job(manifest):
  (job,) = manifest["spec"]["replicatedJobs"]
  return job["template"]["spec"]


def _validate(manifest):
  jsonschema.validate(manifest, _JOB_SET)
  kubernetes_validate.validate(
    {
      "apiVersion": "batch/v1",
      "kind": "Job",
      "metadata": {"name": "workers"},
      "spec": _job(manifest),
    },
    "1.31",
    strict=True,
  )


def _expanded(argument):
  """Returns an argument as Kubernetes expands it, where HOME is "/root"."""
  return re.sub(
    r"\$(\$|\(HOME\))",
    lambda found: "$" if found[1] == "$" else "/root",
    argument,
  )


@pytest.mark.parametrize("topology", ["v5e:4x4", "v6e:2x4", "v4:4x4x4"])
@pytest.mark.parametrize("spot", [False, True])
def test_the_manifest_is_what_kubernetes_takes(topology, spot):
  run = _run(topology, spot=spot, service_account="trainer")
  text = job_set.to_yaml(run.manifest(["train", *HOSTILE]))
  manifest = yaml.safe_load(text)
  assert manifest == run.manifest(["train", *HOSTILE])
  _validate(manifest)


def test_the_check_fails_where_a_manifest_is_wrong():
  for breakage in (
    lambda job: job.pop("template"),
    lambda job: job.update(backofLimit=0),
    lambda job: job["podFailurePolicy"]["rules"][0].pop("action"),
    lambda job: job["template"]["spec"].update(restartPolicy=1),
  ):
    manifest = _run().manifest(["train"])
    breakage(_job(manifest))
    with pytest.raises(
      (jsonschema.ValidationError, kubernetes_validate.ValidationError)
    ):
      _validate(manifest)


def test_every_host_of_the_slice_is_a_pod_with_its_chips():
  job = _job(_run("v4:2x2x4").manifest(["train"]))
  assert (job["parallelism"], job["completions"]) == (4, 4)
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v4-podslice",
    "cloud.google.com/gke-tpu-topology": "2x2x4",
  }
  resources = pod["containers"][0]["resources"]
  assert resources["limits"] == {"google.com/tpu": "4"} == resources["requests"]


def test_a_preempted_run_starts_again_without_being_counted():
  manifest = _run(max_restarts=3).manifest(["train"])
  policy = manifest["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 3
  assert policy["rules"][0]["action"] == "RestartJobSetAndIgnoreMaxRestarts"
  job = _job(manifest)
  exit_codes, disruption = job["podFailurePolicy"]["rules"]
  assert exit_codes["onExitCodes"]["values"] == [75]
  names = {c["name"] for c in job["template"]["spec"]["containers"]}
  assert exit_codes["onExitCodes"]["containerName"] in names
  assert disruption["onPodConditions"][0]["type"] == "DisruptionTarget"
  # Kubernetes takes exit codes into account for pods that do not restart only.
  assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_hostile_values_arrive_as_they_are():
  text = job_set.to_yaml(_run().manifest(["train", *HOSTILE]))
  pod = _job(yaml.safe_load(text))["template"]["spec"]
  program, *arguments = pod["containers"][0]["command"]
  assert program == "specialize"
  assert [_expanded(a) for a in arguments] == ["train", *HOSTILE]
  assert _expanded(HOSTILE[0]) != HOSTILE[0]


def test_a_set_without_an_image_is_an_error():
  with pytest.raises(errors.UserError, match="--image is missing"):
    job_set.JobSet(name="xl", slice=slices.parse("v5e:4x4"), image="")
