"""Jobs run once, in order, and end with their study, whatever ends it."""

import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from specialize_jax import errors
from specialize_jax.study import jobs

# Appends its name to a list and writes its result from those it needs.
_WRITES = """
import json, pathlib, sys
place, needs = pathlib.Path(sys.argv[1]), sys.argv[2:]
with (place.parent / "order.txt").open("a") as stream:
  stream.write(place.name.split("-")[0] + "\\n")
values = [
  json.loads((pathlib.Path(need) / "result.json").read_text()) for need in needs
]
(place / "result.json").write_text(json.dumps(1 + sum(values)))
"""
# A job that holds its directory and waits to be ended.
_WAITS = """
import pathlib, sys, time
from specialize_jax.study import jobs
place = pathlib.Path(sys.argv[1])
with jobs.attached(place):
  (place / "started").write_text("")
  time.sleep(120)
"""


def job(name, *needs, script=_WRITES, settings=None, cost=1.0):
  return jobs.Job(
    name=name,
    settings=settings,
    command=lambda place, needed: [
      *(sys.executable, "-c", script, str(place)),
      *map(str, needed.values()),
    ],
    needs=needs,
    cost=cost,
  )


DIAMOND = [
  job("a"),
  job("b", "a"),
  job("c", "a", cost=5.0),
  job("d", "b", "c"),
]


def order(directory):
  return (directory / "order.txt").read_text().split()


def result(places, name):
  return json.loads((places[name] / jobs.RESULT).read_text())


def test_jobs_run_after_what_they_need_and_the_dearest_first(tmp_path):
  places = jobs.run(DIAMOND, tmp_path, num_workers=1)
  assert order(tmp_path) == ["a", "c", "b", "d"]
  assert result(places, "d") == 5


def test_several_run_at_a_time(tmp_path):
  script = "import time; time.sleep(1.5);" + _WRITES
  start = time.monotonic()
  jobs.run(
    [job(str(n), script=script) for n in range(4)], tmp_path, num_workers=4
  )
  spent = jobs.spent(tmp_path)
  assert len(spent) == 4
  assert all(s.status == 0 and s.seconds >= 1.5 for s in spent)
  assert time.monotonic() - start < sum(s.seconds for s in spent)


def test_what_is_done_is_not_done_again(tmp_path):
  jobs.run(DIAMOND, tmp_path, num_workers=2)
  places = jobs.run(DIAMOND, tmp_path, num_workers=2)
  assert len(order(tmp_path)) == 4
  (places["b"] / jobs.RESULT).unlink()
  jobs.run(DIAMOND, tmp_path, num_workers=2)
  assert order(tmp_path)[4:] == ["b"]


def test_a_setting_that_changes_redoes_what_depends_on_it(tmp_path):
  jobs.run(DIAMOND, tmp_path, num_workers=1)
  changed = [
    DIAMOND[0],
    job("b", "a", settings={"steps": 2}),
    *DIAMOND[2:],
  ]
  jobs.run(changed, tmp_path, num_workers=1)
  assert order(tmp_path)[4:] == ["b", "d"]


def test_a_failure_shows_its_log_and_stops_the_others(tmp_path):
  fails = "import sys; print('the lamp is out', file=sys.stderr); sys.exit(3)"
  waiting = job("waits", script=_WAITS)
  with pytest.raises(jobs.JobFailed, match="fails ended with status 3.*lamp"):
    _run_in_two_lines([waiting, job("fails", script=fails)], tmp_path)
  ended = {s.job: s.status for s in jobs.spent(tmp_path)}
  assert ended == {"fails": 3, "waits": -signal.SIGTERM}


def _run_in_two_lines(planned, directory):
  try:
    jobs.run(planned, directory, num_workers=2)
  except jobs.JobFailed as error:
    raise jobs.JobFailed(str(error).replace("\n", " ")) from error


def test_what_a_user_can_mend_stays_one_sentence(tmp_path):
  fails = "import sys; print('error: no such gin file'); sys.exit(2)"
  with pytest.raises(errors.UserError, match="^x: error: no such gin file$"):
    jobs.run([job("x", script=fails)], tmp_path, num_workers=1)


def test_a_job_that_is_killed_is_one_sentence(tmp_path):
  killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
  with pytest.raises(errors.UserError, match="^x was killed, .*start the stu"):
    jobs.run([job("x", script=killed)], tmp_path, num_workers=1)


def test_jobs_that_fail_at_once_leave_one_sentence(tmp_path):
  fails = "import sys; print('error: no such gin file'); sys.exit(2)"
  planned = [job(name, script=fails) for name in "abcd"]
  with pytest.raises(errors.UserError, match="error: no such gin file"):
    jobs.run(planned, tmp_path, num_workers=4)
  assert {s.status for s in jobs.spent(tmp_path)} == {2}


def test_a_line_of_costs_that_was_cut_short_costs_no_other(tmp_path):
  jobs.run([job("a")], tmp_path, num_workers=1)
  (path,) = tmp_path.glob("*.jsonl")
  path.write_text(f"{path.read_text()}{path.read_text()[:20]}")
  jobs.run([job("a"), job("b")], tmp_path, num_workers=1)
  assert [s.job for s in jobs.spent(tmp_path)] == ["a", "b"]


def test_a_job_that_ends_well_without_a_result_is_a_failure(tmp_path):
  with pytest.raises(jobs.JobFailed, match="status 0"):
    jobs.run([job("x", script="pass")], tmp_path, num_workers=1)


def test_names_are_unique_and_needs_come_before(tmp_path):
  with pytest.raises(ValueError, match="'a'"):
    jobs.directories([job("a"), job("a")], tmp_path)
  with pytest.raises(ValueError, match="needs b"):
    jobs.directories([job("a", "b"), job("b")], tmp_path)


def test_a_job_that_holds_its_directory_ends_well(tmp_path):
  script = (
    "import pathlib, sys\n"
    "from specialize_jax.study import jobs\n"
    "place = pathlib.Path(sys.argv[1])\n"
    "with jobs.attached(place):\n"
    "  (place / jobs.RESULT).write_text('1')\n"
  )
  jobs.run([job("x", script=script)], tmp_path, num_workers=1)
  assert [s.status for s in jobs.spent(tmp_path)] == [0]


# The study of the next tests: one job that waits.
_STUDY = """
import pathlib, sys
from study import jobs_test
from specialize_jax.study import jobs
jobs.run([jobs_test.job("x", script=jobs_test._WAITS)],
         pathlib.Path(sys.argv[1]), num_workers=1)
"""


def start_study(directory):
  here = pathlib.Path(__file__).parents[1]
  paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
  process = subprocess.Popen(
    [sys.executable, "-c", _STUDY, str(directory)],
    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
  )
  deadline = time.monotonic() + 30
  while not list(directory.glob("x-*/started")):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.05)
  return process


def holds(directory):
  """Whether a process holds the job's directory."""
  (lock,) = directory.glob("x-*/lock")
  with lock.open("w") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
  return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_jobs_end_with_their_study(tmp_path, how):
  study = start_study(tmp_path)
  assert holds(tmp_path)
  study.send_signal(how)
  assert study.wait(30) == (75 if how == signal.SIGTERM else -how)
  deadline = time.monotonic() + 10
  while holds(tmp_path):
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_two_studies_do_not_share_a_directory(tmp_path):
  study = start_study(tmp_path)
  try:
    with pytest.raises(errors.UserError, match="is being written by process"):
      jobs.run(DIAMOND, tmp_path, num_workers=1)
  finally:
    study.terminate()
    study.wait(30)


def test_time_left_counts_the_workers(capsys):
  waiting = [job("a"), job("b"), job("c", cost=3.0)]
  progress = jobs._Progress(3, waiting, num_workers=2)
  progress.done(waiting[0], seconds=120.0)
  # 4 of 5 parts are left, of 2 minutes each, shared by two workers.
  assert "[1/3] a; 0.0 min, about 4 left" in capsys.readouterr().err
