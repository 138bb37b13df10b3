"""The scripts for a slice's machines, run by a real bash on this one."""

import json
import os
import subprocess
import time

import pytest
from testdata import stand_ins

from specialize_jax import errors
from specialize_jax.tpu import remote_script

HOSTILE = [
  "--gin.TASK_FEATURE_LENGTHS={'inputs': 768, \"targets\": 256}",
  "--gin.A=$(touch injected)`touch injected`",
  "--gin.B=; touch injected & touch injected | touch injected",
  "--gin.C=two\nlines\n\ttouch injected",
  "--gin.D=ünïcødé 数学 \U0001f9ee",
  "--gin.E=*~!#\\ \\\\ %s $HOME ${PATH} $$ $1 <in >out",
  "--gin.F=''\"'\"'",
  "",
  "  spaces  ",
  "run' \"$@\" '",
]


@pytest.fixture
def machine(tmp_path):
  """A home directory in which `specialize` prints its arguments."""
  bin_dir = tmp_path / remote_script.ENVIRONMENT / "bin"

  def run(script, **options):
    return subprocess.run(
      ["bash", "-c", script],
      env=os.environ | {"HOME": str(tmp_path)},
      cwd=tmp_path,
      capture_output=True,
      text=True,
      timeout=30,
      check=False,
      **options,
    )

  run.home = tmp_path
  run.bin_dir = bin_dir
  run.say = lambda body="": stand_ins.install(bin_dir, "specialize", body)
  run.say()
  return run


def test_hostile_values_arrive_as_they_are_and_run_nothing(machine):
  finished = machine(remote_script.start("xl", ["train", *HOSTILE]))
  assert finished.returncode == 0, finished.stderr
  (call,) = stand_ins.calls(machine.bin_dir)
  assert call["arguments"] == ["train", *HOSTILE]
  assert not list(machine.home.rglob("injected"))


def test_the_runs_log_is_shown_and_its_status_is_the_scripts(machine):
  machine.say(
    "print('step 1', flush=True); sys.exit(os.system('echo trouble >&2') or 75)"
  )
  finished = machine(remote_script.start("xl", ["train"]))
  assert finished.returncode == 75
  assert finished.stdout == "step 1\ntrouble\n"
  log = machine.home / remote_script.RUNS / "xl" / "log"
  assert log.read_text() == finished.stdout


def test_a_run_that_was_killed_is_no_success(machine):
  machine.say("os.kill(os.getpid(), 9)")
  assert machine(remote_script.start("xl", ["train"])).returncode == 137
  # Even where the machine went down with it, and no status was written.
  machine.say("os.kill(os.getppid(), 9); os.kill(os.getpid(), 9)")
  assert machine(remote_script.start("xl", ["train"])).returncode == 1


def test_a_second_start_joins_the_first_and_a_broken_connection_ends_neither(
  machine,
):
  machine.say(
    "import time\nprint('on', flush=True)\n"
    "while not (here / 'go').exists(): time.sleep(0.02)\nsys.exit(7)"
  )
  script = remote_script.start("xl", ["train"])
  first = subprocess.Popen(
    ["bash", "-c", script],
    env=os.environ | {"HOME": str(machine.home)},
    stdout=subprocess.PIPE,
    start_new_session=True,
  )
  assert first.stdout.readline() == b"on\n"
  os.killpg(first.pid, 9)  # what a lost connection does to the remote shell
  first.wait()
  first.stdout.close()
  second = subprocess.Popen(
    ["bash", "-c", script],
    env=os.environ | {"HOME": str(machine.home)},
    stdout=subprocess.PIPE,
  )
  assert second.stdout.readline() == b"on\n"
  assert second.poll() is None
  (machine.bin_dir / "go").touch()
  assert second.wait(timeout=30) == 7
  second.stdout.close()
  assert len(stand_ins.calls(machine.bin_dir)) == 1


def test_logs_follow_what_the_run_writes(machine):
  machine(remote_script.start("xl", ["train"]))
  log = machine.home / remote_script.RUNS / "xl" / "log"
  log.write_text("\n".join(map(str, range(5))) + "\n")
  following = subprocess.Popen(
    ["bash", "-c", remote_script.logs("xl", num_lines=2)],
    env=os.environ | {"HOME": str(machine.home)},
    stdout=subprocess.PIPE,
  )
  try:
    assert following.stdout.readline() == b"3\n"
    assert following.stdout.readline() == b"4\n"
    with log.open("a") as end:
      end.write("more\n")
    began = time.monotonic()
    assert following.stdout.readline() == b"more\n"
    assert time.monotonic() - began < 10
  finally:
    following.kill()
    following.wait()
    following.stdout.close()


@pytest.mark.parametrize(
  ("package", "installed"),
  [
    ("p-1.0-py3-none-any.whl", "./p-1.0-py3-none-any.whl[tpu]"),
    ("p @ git+https://h/r@$(x); y", "p[tpu] @ git+https://h/r@$(x); y"),
    ("p==1.0", "p[tpu]==1.0"),
    ("p[plan] @ git+u", "p[tpu,plan] @ git+u"),
  ],
)
def test_install_asks_uv_for_the_package_with_its_tpu_extra(
  machine, package, installed
):
  tools = machine.home / "tools"
  stand_ins.install(tools, "python3")
  finished = subprocess.run(
    ["bash", "-c", remote_script.install(package)],
    env={"HOME": str(machine.home), "PATH": stand_ins.path_with(tools)},
    check=False,
  )
  assert finished.returncode == 0
  *_, last = stand_ins.calls(tools)
  assert last["arguments"][:4] == ["-m", "uv", "pip", "install"]
  assert last["arguments"][-1] == installed


@pytest.mark.parametrize("package", ["git+https://h/r", "./folder", ""])
def test_a_package_without_a_name_is_refused_before_anything_is_rented(package):
  with pytest.raises(errors.UserError, match="begins with a name"):
    remote_script.install(package)


def test_install_stops_at_the_first_failure(machine):
  tools = machine.home / "tools"
  stand_ins.install(tools, "python3", "sys.exit('venv' in sys.argv)")
  finished = subprocess.run(
    ["bash", "-c", remote_script.install("p")],
    env={"HOME": str(machine.home), "PATH": stand_ins.path_with(tools)},
    check=False,
  )
  assert finished.returncode == 1
  assert len(json.dumps(stand_ins.calls(tools))) > 2
  assert len(stand_ins.calls(tools)) == 2
