"""A bar on a terminal, lines elsewhere, and nothing lost when one closes."""

import io

import pytest

from specialize_jax.terminal import progress


class Terminal(io.StringIO):
  """A terminal that keeps what was written to it."""

  def isatty(self):
    return True


class Closed(io.StringIO):
  """A pipe whose reader has left, or a terminal that was closed."""

  def __init__(self, number):
    super().__init__()
    self.tries = 0
    self._number = number

  def write(self, text):
    self.tries += 1
    raise OSError(self._number, "gone")


@pytest.fixture
def clock(monkeypatch):
  """Seconds that pass when they are added to."""
  now = [1000.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  return now


def test_lines_come_as_often_as_asked_with_the_time_left(clock):
  log = io.StringIO()
  bar = progress.Progress(100, "steps", title="training", stream=log)
  with bar:
    for step in range(1, 31):
      clock[0] += 1.0
      bar.update(step, "loss 0.5")
  assert log.getvalue().splitlines() == [
    "training: 10 of 100 steps, loss 0.5, 2 min left",
    "training: 20 of 100 steps, loss 0.5, 80 s left",
    "training: 30 of 100 steps, loss 0.5, 70 s left",
  ]


def test_the_time_before_the_first_unit_and_earlier_runs_do_not_count(clock):
  log = io.StringIO()
  with progress.Progress(100, "rows", done=50, stream=log) as bar:
    clock[0] += 300.0  # it compiles
    bar.advance()
    clock[0] += 10.0
    bar.advance(9)
  assert log.getvalue().splitlines()[-1] == "60 of 100 rows, 44 s left"


def test_a_total_that_is_not_known_is_left_out(clock):
  log = io.StringIO()
  with progress.Progress(None, "records", title="aligning", stream=log) as bar:
    clock[0] += 60.0
    bar.advance(1234)
  assert log.getvalue() == "aligning: 1,234 records\n"


def test_a_terminal_has_a_bar_that_lines_stand_above_and_that_goes_away():
  screen = Terminal()
  with progress.Progress(3, "steps", title="training", stream=screen) as bar:
    bar.advance()
    bar.say("step 1: saved")
    bar.update(3)
  shown = screen.getvalue()
  assert "training" in shown
  assert "step 1: saved\n" in shown
  assert shown.endswith("\r")  # tqdm has wiped its line


def test_a_silent_process_writes_nothing(clock):
  for stream in (io.StringIO(), Terminal()):
    with progress.Progress(3, "steps", stream=stream, speaks=False) as bar:
      clock[0] += 60.0
      bar.advance()
      bar.say("a line")
    assert stream.getvalue() == ""
    assert bar.done == 1


@pytest.mark.parametrize("number", [5, 32])  # EIO, EPIPE
def test_a_terminal_that_closes_ends_no_computation(number, clock):
  stream = Closed(number)
  with progress.Progress(30, "steps", stream=stream) as bar:
    for _ in range(30):
      clock[0] += 20.0
      bar.advance()
    bar.say("a line")
  assert (bar.done, stream.tries) == (30, 1)


def test_durations_are_in_words():
  assert [progress.duration(s) for s in (3, 89, 91, 5399, 12000)] == [
    "3 s",
    "89 s",
    "2 min",
    "1 h 30 min",
    "3 h 20 min",
  ]
