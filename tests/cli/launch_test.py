"""`specialize launch` with stand-ins for gcloud and kubectl, as processes."""

import json
import os
import shlex
import subprocess

import pytest
import yaml
from testdata import stand_ins

from specialize_jax.cli import main
from specialize_jax.tpu import remote_script

RUN = ("train", "--gin_file=runs/train.gin", "--gin.MODEL_DIR=gs://b/run")
HOSTILE = "--gin.X={'a': \"$(touch injected)\"}; touch injected\nünï `x` $HOME"
VM = (
  "--name=xl",
  "--topology=v5e:4x4",
  "--project=my-project",
  "--zone=us-west4-a",
  "--package=p @ git+https://host/r",
)
XPK = (
  *("--on=xpk", "--name=xl", "--topology=v5e:4x4", "--image=gcr.io/p/i"),
  *("--cluster=pod", "--project=my-project", "--zone=us-west4-a"),
)
GKE = ("--on=gke", "--name=xl", "--topology=v5e:4x4", "--image=gcr.io/p/i")
LOCAL = "--gin.MODEL_DIR=run"
PLACE = ["--project=my-project", "--zone=us-west4-a"]

# A cloud in which a slice is there once it was created, and is READY then.
CLOUD = """
state = here / "state"
words = call["arguments"]
if "create" in words: state.write_text("READY")
if "delete" in words: state.unlink()
if "describe" in words:
  if not state.exists(): sys.exit("ERROR: NOT_FOUND: Resource not found")
  print(state.read_text())
if "ssh" in words and "uv" not in words[-1]:
  turns = here / "turns"
  turn = turns.read_text().split() if turns.exists() else ["0"]
  turns.write_text(" ".join(turn[1:] or ["0"]))
  if turn[0] == "taken": state.write_text("PREEMPTED"); sys.exit(255)
  sys.exit(int(turn[0]))
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch, capfd):
  """Runs the command with stand-ins on PATH; gives status, output, errors."""
  # python3 and HOME: where quoting failed, a script for a machine of the slice
  # would run here.
  for name in ("gcloud", "kubectl", "xpk", "python3"):
    stand_ins.install(tmp_path / "bin", name, CLOUD)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("PATH", stand_ins.path_with(tmp_path / "bin"))
  monkeypatch.chdir(tmp_path)
  for name in ("CLOUDSDK_CORE_PROJECT", "CLOUDSDK_COMPUTE_ZONE"):
    monkeypatch.delenv(name, raising=False)

  def run(*argv):
    status = main.main(["launch", *argv])
    output = capfd.readouterr()
    return status, output.out, output.err.strip()

  run.bin = tmp_path / "bin"
  run.calls = lambda: stand_ins.calls(tmp_path / "bin")
  run.arguments = lambda: [call["arguments"] for call in run.calls()]
  run.turns = (tmp_path / "bin" / "turns").write_text
  return run


def _kinds(cloud):
  """The calls in short, such as "create" or "ssh"."""
  kinds = [arguments[3] for arguments in cloud.arguments()]
  return [k for k in kinds if k != "describe"]


def test_what_is_printed_calls_just_what_is_executed(cloud, tmp_path):
  actions = ("create", "install", "start", "logs", "describe", "delete")
  status, script, _ = cloud(*VM, *actions, "--", *RUN, HOSTILE)
  assert status == 0
  assert cloud.calls() == []
  subprocess.run(["bash", "-ec", script], check=True, cwd=tmp_path)
  pasted = cloud.calls()
  (cloud.bin / "calls.jsonl").unlink()
  assert cloud(*VM, "--execute", *actions, "--", *RUN, HOSTILE)[0] == 0
  assert cloud.calls() == pasted
  assert len(pasted) == len(actions)
  assert not list(tmp_path.rglob("injected"))


def test_the_life_of_a_run_is_printed_where_no_action_is_given(cloud):
  _, script, _ = cloud(*VM, "--spot", "--", *RUN)
  assert [line for line in script.splitlines() if line.startswith("gc")] == [
    f"gcloud compute tpus tpu-vm {action} xl \\"
    for action in ("create", "ssh", "ssh", "ssh", "delete")
  ]
  assert "  --spot" in script.splitlines()


def test_a_queued_spot_slice_is_asked_for_by_its_own_commands(cloud):
  flags = (*VM, "--queued", "--spot", "--execute")
  assert cloud(*flags, "create", "describe", "delete")[0] == 0
  group = ["compute", "tpus", "queued-resources"]
  assert cloud.arguments() == [
    [
      *(*group, "create", "xl", *PLACE),
      *("--node-id=xl", "--accelerator-type=v5litepod-16"),
      *("--runtime-version=v2-alpha-tpuv5-lite", "--spot"),
    ],
    [*group, "describe", "xl", *PLACE, "--format=value(state.state)"],
    [*group, "delete", "xl", *PLACE, "--force", "--quiet"],
  ]


def test_several_hosts_are_told_so_and_one_is_not(cloud):
  for topology, told in (("v5e:4x4", True), ("v5e:2x4", False)):
    _, script, _ = cloud(*VM, f"--topology={topology}", "start", "--", *RUN)
    assert ("train --multi_host --gin_file" in script) is told
    assert "--worker=all" in script


def test_the_string_for_ssh_brings_hostile_values_through_a_real_shell(
  cloud, tmp_path
):
  assert cloud(*VM, "--execute", "start", "--", *RUN, HOSTILE)[0] == 0
  (arguments,) = cloud.arguments()
  script = arguments[-1].removeprefix("--command=")
  home = tmp_path / "home"
  bin_dir = home / remote_script.ENVIRONMENT / "bin"
  stand_ins.install(bin_dir, "specialize")
  subprocess.run(
    ["bash", "-c", script], env=os.environ | {"HOME": str(home)}, check=True
  )
  (call,) = stand_ins.calls(bin_dir)
  assert call["arguments"] == [RUN[0], "--multi_host", *RUN[1:], HOSTILE]
  assert not list(tmp_path.rglob("injected"))


def test_a_wheel_is_copied_to_every_host_first(cloud, tmp_path):
  (tmp_path / "s p.whl").touch()
  assert cloud(*VM[:-1], "--package=s p.whl", "--execute", "install")[0] == 0
  copy, install = cloud.arguments()
  assert copy[2:6] == ["tpu-vm", "scp", str(tmp_path / "s p.whl"), "xl:"]
  assert "'./s p.whl[tpu]'" in install[-1]


_SET = ("A", "b 'c' $(touch injected) $HOME \"d\"")


def test_variables_are_set_on_the_hosts(cloud, tmp_path):
  flags = (f"--env={'='.join(_SET)}", "--env", "EMPTY=", "--execute", "start")
  assert cloud(*VM, *flags, "--", *RUN, HOSTILE)[0] == 0
  script = cloud.arguments()[0][-1].removeprefix("--command=")
  home = tmp_path / "home"
  bin_dir = home / remote_script.ENVIRONMENT / "bin"
  stand_ins.install(
    bin_dir,
    "specialize",
    "found = os.environ['A'] + os.environ['EMPTY']\n"
    "(here / 'env').write_text(found)",
  )
  subprocess.run(
    ["bash", "-c", script], env=os.environ | {"HOME": str(home)}, check=True
  )
  assert (bin_dir / "env").read_text() == _SET[1]
  assert stand_ins.calls(bin_dir)[0]["arguments"][-1] == HOSTILE
  assert not list(tmp_path.rglob("injected"))


def test_variables_are_set_in_containers(cloud):
  flags = (f"--env={'='.join(_SET)}", "--execute", "create", "--", *RUN)
  assert cloud(*GKE, *flags)[0] == 0
  assert cloud(*XPK, *flags)[0] == 0
  on_gke, on_xpk = cloud.calls()
  job_set = yaml.safe_load(on_gke["input"])
  job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
  (container,) = job["template"]["spec"]["containers"]
  value = _SET[1].replace("$", "$$")  # as Kubernetes reads it
  assert container["env"] == [{"name": "A", "value": value}]
  script = on_xpk["arguments"][-1].removeprefix("--command=exec ")
  words = shlex.split(script.replace("$$", "$"))
  assert words[:4] == ["env", "=".join(_SET), "specialize", "train"]


def test_what_only_sounds_like_a_secret_is_a_variable(cloud):
  for given in ("HF_HUB_DISABLE_IMPLICIT_TOKEN=1", "HF_TOKEN_PATH=/a"):
    assert cloud(*VM, f"--env={given}", "start", "--", *RUN)[0] == 0


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ("A", "expected NAME=VALUE"),
    ("=b", "expected NAME=VALUE"),
    ("A-B=c", "expected NAME=VALUE"),
    ("WANDB_API_KEY=abc", "WANDB_API_KEY would be printed"),
    ("hf_token=abc", "hf_token would be printed"),
    ("DB_PASS=abc", "DB_PASS would be printed"),
    ("GITHUB_PAT=abc", "GITHUB_PAT would be printed"),
    ("PROXY=http://me:abc@proxy:3128", "PROXY would be printed"),
    ("URI=postgres://me:abc@host/db", "URI would be printed"),
  ],
)
def test_no_secret_is_a_variable_of_a_command_that_is_printed(
  cloud, given, message
):
  status, output, error = cloud(*VM, f"--env={given}", "start", "--", *RUN)
  assert (status, output) == (2, "")
  assert message in error
  assert given.startswith("A") or "abc" not in error


def test_what_the_run_reads_is_copied_to_where_it_runs(cloud, tmp_path):
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "a b.gin").touch()
  (tmp_path / "data").mkdir()
  flags = ("--copy=mine/a b.gin", f"--copy={tmp_path / 'data'}", "--execute")
  reads = ("--gin_file=a b.gin", "--data_dir", "data", "--tfds_data_dir=gs://b")
  argv = (*VM, *flags, "install", "start", "--", *RUN, *reads)
  assert cloud(*argv)[0] == 0
  _, made, copy, start = cloud.arguments()
  script = made[-1].removeprefix("--command=")
  home = tmp_path / "home"
  subprocess.run(
    ["bash", "-ec", script], env=os.environ | {"HOME": str(home)}, check=True
  )
  assert (home / remote_script.RUNS / "xl").is_dir()
  wholes = [str(tmp_path / "mine" / "a b.gin"), str(tmp_path / "data")]
  assert copy[2:7] == ["tpu-vm", "scp", *wholes, "xl:specialize_runs/xl/"]
  assert copy[-2:] == ["--recurse", "--worker=all"]
  assert "'--gin_file=a b.gin' --data_dir data" in start[-1]


def test_a_new_slice_gets_what_the_run_reads_too(cloud, tmp_path):
  (tmp_path / "my.gin").touch()
  cloud.turns("0 taken 0")  # the directory is made, the run preempted
  status, _, _ = cloud(
    *VM,
    *("--copy=my.gin", "--first_wait_seconds=0", "--execute"),
    *("resume_until_done", "--", *RUN, "--gin_file=my.gin"),
  )
  assert status == 0
  assert _kinds(cloud).count("scp") == 2


@pytest.mark.parametrize(
  ("copied", "reads", "message"),
  [
    ((), "--gin_file=my.gin", "add --copy=my.gin before the --"),
    ((), "--gin_file=./my.gin", "add --copy=my.gin before the --"),
    ((), "--data_dir=mine", "--data_dir=mine is of this machine"),
    ((), "--gin_search_paths=/a,mine", "--gin_search_paths=mine is of this"),
    (("mine/in.gin",), "--gin_file=mine/in.gin", "give --gin_file=in.gin"),
    (("mine",), "--gin_file={}/mine/in.gin", "give --gin_file=mine/in.gin"),
    (("no.gin",), "--gin_file=no.gin", "--copy=no.gin"),
    (("my.gin", "mine/my.gin"), "--data_dir=/a", "would be my.gin"),
    (("mine/log",), "--data_dir=/a", "would be log"),
  ],
)
def test_what_the_hosts_will_not_have_is_said_before_they_are_rented(
  cloud, tmp_path, copied, reads, message
):
  (tmp_path / "mine").mkdir()
  for name in ("my.gin", "mine/in.gin", "mine/my.gin", "mine/log"):
    (tmp_path / name).touch()
  flags = [f"--copy={path}" for path in copied]
  argv = (*flags, "install", "start", "--", *RUN, reads.format(tmp_path))
  status, output, error = cloud(*VM, *argv)
  assert (status, output) == (2, "")
  assert message in error
  assert "\n" not in error


@pytest.mark.parametrize(
  "reads",
  [
    "--gin_file=runs/train.gin",  # the package's
    "--gin_file=not_here.gin",
    "--gin.EVAL_OUTPUT_DIR=%OUT",
    "--data_dir=../../data",
    "--data_dir={}/mine",
    "--gin.MODEL_DIR=mine",  # written
  ],
)
def test_what_the_hosts_may_have_is_not_refused(cloud, tmp_path, reads):
  (tmp_path / "mine").mkdir()
  argv = (*VM, "start", "--", *RUN, reads.format(tmp_path))
  assert cloud(*argv)[0] == 0


@pytest.mark.parametrize(
  "reads",
  [
    "--gin_file=runs/train.gin",
    "--tfds_data_dir=gs://bucket/tfds",
    "--import=my_tasks",
  ],
)
def test_a_copied_folder_holds_only_what_is_in_it(
  cloud, tmp_path, monkeypatch, reads
):
  (tmp_path / "my_tasks.py").touch()
  monkeypatch.chdir(tmp_path)
  argv = (*VM, "--copy=.", "install", "start", "--", *RUN, reads)
  assert cloud(*argv)[0] == 0


def test_the_first_command_that_fails_ends_it_with_its_status(cloud):
  cloud.turns("7")
  status, _, error = cloud(*VM, "--execute", "start", "delete", "--", *RUN)
  assert status == 7
  assert "gcloud compute tpus tpu-vm ssh ended with status 7." in error
  assert _kinds(cloud) == ["ssh"]


def _resume(cloud, *flags):
  return cloud(
    *VM,
    *("--first_wait_seconds=0.01", "--longest_wait_seconds=0.02"),
    *("--max_failures=3", "--execute", "resume_until_done", *flags),
    *("--", *RUN),
  )


def test_a_preempted_run_starts_again_until_it_is_done(cloud):
  """Twice with its slice left to it (75), once with the slice taken away."""
  cloud.turns("75 75 taken 0")
  status, _, error = _resume(cloud)
  assert status == 0
  start = ["ssh", "ssh"]  # install, start
  assert _kinds(cloud) == ["create", *start * 3, "delete", "create", *start]
  assert error.count("the run was preempted") == 3
  assert "the run is done." in error
  assert "what is rented as xl is given back by" in error


def test_failures_in_a_row_end_it_and_a_preemption_begins_the_count_anew(cloud):
  cloud.turns("1 1 75 1 255 9 0")
  status, _, error = _resume(cloud)
  assert status == 9
  assert "3 tries in a row failed; the last with status 9." in error
  assert (cloud.bin / "turns").read_text() == "0"


def test_waits_grow_up_to_the_longest(cloud):
  cloud.turns("75 75 75 75 0")
  _, _, error = _resume(cloud, "--longest_wait_seconds=0.03")
  waits = [
    line.split(" in ")[1] for line in error.splitlines() if "again in" in line
  ]
  assert waits == ["0.01 s.", "0.02 s.", "0.03 s.", "0.03 s."]


def test_a_refused_question_is_not_taken_for_an_absent_slice(cloud):
  stand_ins.install(cloud.bin, "gcloud", "sys.exit('PERMISSION_DENIED')")
  status, _, error = _resume(cloud)
  assert status == 1
  assert "PERMISSION_DENIED" in error
  assert "3 tries in a row failed; the last with status 1." in error
  assert _kinds(cloud) == []


@pytest.mark.parametrize(
  ("complaint", "tries", "last"),
  [
    ("Quota limit 'TPUS' has been exceeded: RESOURCE_EXHAUSTED", 3, "in a row"),
    ("PERMISSION_DENIED", 3, "in a row"),
    ("There is no more capacity in the zone us-west4-a", 6, "is done."),
  ],
)
def test_a_slice_that_is_not_to_be_had_is_no_preemption(
  cloud, complaint, tries, last
):
  refuses = f"""
left = here / "left"
if "create" in call["arguments"]:
  count = int(left.read_text()) if left.exists() else 5
  left.write_text(str(count - 1))
  if count: sys.exit({complaint!r})
"""
  stand_ins.install(cloud.bin, "gcloud", refuses + CLOUD)
  _, _, error = _resume(cloud)
  assert _kinds(cloud).count("create") == tries
  assert complaint in error
  assert last in error.splitlines()[-2]  # before what remains to be deleted


def test_a_slice_that_was_stopped_is_kept(cloud):
  (cloud.bin / "state").write_text("STOPPED")
  status, _, error = _resume(cloud)
  assert status == 2
  assert "xl was stopped, and is not deleted" in error
  assert _kinds(cloud) == []


def test_a_mistake_is_not_started_again(cloud):
  cloud.turns("2 0")
  status, _, error = _resume(cloud)
  assert status == 2
  assert "a mistake that another start would repeat ended the run." in error
  assert (cloud.bin / "turns").read_text() == "0"


def test_the_manifest_reaches_kubectl_and_a_file_as_it_is_printed(
  cloud, tmp_path
):
  flags = (*GKE, "--manifest=job.yaml")
  _, script, _ = cloud(*flags, "create", "--", *RUN, HOSTILE)
  subprocess.run(["bash", "-ec", script], check=True, cwd=tmp_path)
  assert cloud(*GKE, "--execute", "create", "--", *RUN, HOSTILE)[0] == 0
  pasted, executed = cloud.calls()
  assert pasted == executed
  assert executed["arguments"] == [
    "create",
    "--namespace=default",
    "--filename=-",
  ]
  assert executed["input"] == (tmp_path / "job.yaml").read_text()
  assert yaml.safe_load(executed["input"])["kind"] == "JobSet"
  assert not list(tmp_path.rglob("injected"))


def test_xpk_is_called_as_those_who_run_it_type(cloud, tmp_path):
  flags = (*XPK, "--spot", "--max_failures=9")
  actions = ("create", "describe", "logs", "delete")
  _, script, _ = cloud(*flags, *actions, "--", *RUN)
  subprocess.run(["bash", "-ec", script], check=True, cwd=tmp_path)
  assert script.startswith(
    "# start the run on 4 hosts\nxpk workload create \\\n  --cluster=pod \\\n"
  )
  place = ["--cluster=pod", "--project=my-project", "--zone=us-west4-a"]
  create, describe, logs, delete = cloud.arguments()
  assert create == [
    *("workload", "create", *place, "--workload=xl"),
    *("--tpu-type=v5litepod-16", "--num-slices=1"),
    *("--docker-image=gcr.io/p/i", "--docker-name=specialize"),
    *("--max-restarts=9", "--restart-on-exit-codes=75"),
    *("--termination-grace-period-seconds=300", "--spot"),
    "--command=exec specialize train --multi_host --gin_file=runs/train.gin "
    "--gin.MODEL_DIR=gs://b/run",
  ]
  assert describe == ["workload", "list", *place, "--filter-by-job=xl"]
  assert logs[:2] == [
    "logs",
    "--selector=xpk.google.com/workload=xl,"
    "batch.kubernetes.io/job-completion-index=0",
  ]
  assert delete == ["workload", "delete", *place, "--workload=xl", "--force"]


def test_xpk_s_script_brings_hostile_values_through_kubernetes_and_bash(
  cloud, tmp_path
):
  hostile = HOSTILE.replace("\n", " ")
  assert cloud(*XPK, "--execute", "create", "--", *RUN, hostile)[0] == 0
  command = cloud.arguments()[0][-1].removeprefix("--command=")
  stand_ins.install(tmp_path / "container", "specialize")
  # As xpk's JobSet runs it; Kubernetes has read `$$` as `$` by then.
  script = f"({command.replace('$$', '$')}) & PID=$!; wait $PID"
  environment = {"PATH": stand_ins.path_with(tmp_path / "container")}
  subprocess.run(
    ["bash", "-c", script], check=True, cwd=tmp_path, env=environment
  )
  (call,) = stand_ins.calls(tmp_path / "container")
  assert call["arguments"] == [RUN[0], "--multi_host", *RUN[1:], hostile]
  assert not list(tmp_path.rglob("injected"))


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    ((*XPK[:4], "create", "--", *RUN), "--cluster is missing"),
    ((*XPK, "--image=", "create", "--", *RUN), "--image is missing"),
    ((*XPK, "--manifest=m.yaml", "create", "--", *RUN), "goes with --on=gke"),
    ((*XPK, "create", "--", *RUN, "a\nb"), "has a line break"),
    (
      (
        "--on=xpk",
        "--name=xl",
        "--image=i",
        "--cluster=c",
        "--topology=v5p:4x4x32",
        "create",
        "--",
        *RUN,
      ),
      "v5p-1024 is not of the shape 4x4x32",
    ),  # fmt: skip
    ((*XPK, "install", "--", *RUN), "not an action of --on=xpk"),
    ((*VM[:2], *VM[3:], "create"), "--project is missing"),
    ((*VM[:3], "create"), "--zone is missing"),
    ((*VM, "--topology=v5e:5x5", "create"), "not a slice of v5e"),
    ((*VM, "--name=Xl", "create"), "--name=Xl is not possible"),
    ((*VM, "start"), "the command to start is missing: give it after --"),
    ((*VM, "start", "--", "bash"), "missing instead of 'bash'"),
    (
      (*VM, "start", "--", "generate"),
      "`specialize generate` runs on one host",
    ),
    (
      (*VM, "start", "--", "select", "--model_dir=r"),
      "give --evaluate, or run",
    ),
    (
      (*VM, "--execute", "resume_until_done", "--", *RUN[:-1], LOCAL),
      "--gin.MODEL_DIR=run is on the hosts' own disks",
    ),
    (
      (*GKE, "create", "--", *RUN[:-1], LOCAL),
      "which are deleted with a pod: give a bucket",
    ),
    (
      (*XPK, "create", "--", "select", "--evaluate", "--model_dir=run"),
      "such as --model_dir=gs://bucket/run",
    ),
    (
      (*XPK, "create", "--", "select", "--evaluate", "--model_dir", "run"),
      "--model_dir=run is on the hosts' own disks",
    ),
    (
      (*GKE, "create", "--topology=v5e:2x4", "--")
      + ("convert", "--output=folder"),
      "--output=folder is on the hosts' own disks",
    ),
    ((*VM, "create", "--max_failures=2"), "goes with resume_until_done alone"),
    (
      (*VM[:-1], "--package=p @ git+https://ghp_SECRET@host/r", "install"),
      "--package has a user name or a token",
    ),
    ((*VM, "fly"), "fly is not an action of --on=tpu_vm"),
    ((*VM, "--execute"), "--execute does what it is told"),
    ((*VM[:-1], "install"), "--package is missing"),
    ((*VM[:-1], "--package=no.whl", "install"), "no.whl is not a file"),
    ((*VM, "--execute", "create", "resume_until_done"), "give it alone"),
    ((*GKE[:-1], "create", "--", *RUN), "--image is missing"),
    ((*GKE, "resume_until_done"), "a JobSet starts again by itself"),
    ((*XPK, "resume_until_done"), "a JobSet starts again by itself"),
  ],
)
def test_what_cannot_be_is_one_sentence_and_calls_nothing(cloud, argv, message):
  status, output, error = cloud(*argv)
  assert (status, output) == (2, "")
  assert error.startswith("specialize launch: error: ")
  assert "\n" not in error
  assert message in error
  assert cloud.calls() == []


@pytest.mark.parametrize("on", ["gcloud", "kubectl"])
def test_a_missing_program_is_named(cloud, monkeypatch, tmp_path, on):
  monkeypatch.setenv("PATH", str(tmp_path))
  flags = VM if on == "gcloud" else GKE
  status, _, error = cloud(*flags, "--execute", "delete")
  assert status == 2
  assert f"error: {on} is not installed: install it" in error


def test_the_project_and_zone_of_gcloud_are_used(cloud, monkeypatch):
  monkeypatch.setenv("CLOUDSDK_CORE_PROJECT", "mine")
  monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "here-1a")
  _, script, _ = cloud(*VM[:2], "delete")
  assert "--project=mine" in script
  assert "--zone=here-1a" in script
  assert json.dumps(cloud.calls()) == "[]"
