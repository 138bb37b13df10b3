"""Items are made ahead in a thread, in order, and stop when they must."""

import itertools
import threading
import time

import pytest

from specialize_jax.data import prefetching


@pytest.fixture
def prefetch():
  started = []

  def start(make, num_ahead=2):
    started.append(
      prefetching.Prefetcher(make, num_ahead=num_ahead, name="test")
    )
    return started[-1]

  yield start
  for one in started:
    one.close()


def counting(limit=None):
  numbers = iter(range(10**6) if limit is None else range(limit))
  return lambda: next(numbers, None)


def wait_until(condition, seconds=30):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def test_items_come_in_order_and_end(prefetch):
  prefetcher = prefetch(counting(5))
  assert [prefetcher.take() for _ in range(5)] == [0, 1, 2, 3, 4]
  for _ in range(2):
    with pytest.raises(StopIteration):
      prefetcher.take()


def test_no_more_is_made_ahead_than_was_asked_for(prefetch):
  made = []
  numbers = itertools.count()

  def make():
    made.append(next(numbers))
    return made[-1]

  prefetcher = prefetch(make, num_ahead=3)
  assert not made  # nothing before the first is taken
  assert prefetcher.take() == 0
  wait_until(lambda: len(made) == 4)
  time.sleep(0.05)
  assert len(made) == 4
  with prefetcher.paused() as ready:
    assert ready == (1, 2, 3)
  assert prefetcher.take() == 1


def test_an_error_is_raised_after_the_items_before_it(prefetch):
  numbers = iter(range(2))

  def make():
    try:
      return next(numbers)
    except StopIteration:
      raise ValueError("no third item") from None

  prefetcher = prefetch(make)
  assert [prefetcher.take(), prefetcher.take()] == [0, 1]
  for _ in range(2):
    with pytest.raises(ValueError, match="no third item"):
      prefetcher.take()


def test_there_is_no_pause_after_an_error_which_may_have_lost_a_part(prefetch):
  numbers = iter(range(3))

  def make():
    if next(numbers) == 2:
      raise OSError("read once, and lost")
    return "item"

  prefetcher = prefetch(make)
  prefetcher.take()
  wait_until(lambda: prefetcher._ending)
  with pytest.raises(OSError, match="lost"), prefetcher.paused():
    pass
  assert prefetcher.take() == "item"
  with prefetcher.restarted():
    numbers = itertools.count(3)
  assert prefetcher.take() == "item"
  with prefetcher.paused():
    pass


def test_a_restart_discards_what_was_made(prefetch):
  place = [0]

  def make():
    place[0] += 1
    return place[0] if place[0] <= 4 else None

  prefetcher = prefetch(make)
  assert [prefetcher.take() for _ in range(4)] == [1, 2, 3, 4]
  with pytest.raises(StopIteration):
    prefetcher.take()
  with prefetcher.restarted():
    place[0] = 2
  assert [prefetcher.take() for _ in range(2)] == [3, 4]


def test_nothing_is_made_while_it_is_paused(prefetch):
  making = threading.Event()

  def make():
    making.set()
    return 1

  prefetcher = prefetch(make, num_ahead=5)
  prefetcher.take()
  wait_until(lambda: len(prefetcher._ready) == 5)
  with prefetcher.paused():
    making.clear()
    assert not making.wait(0.05)


def test_closing_ends_the_thread(prefetch):
  prefetcher = prefetch(counting())
  prefetcher.take()
  before = [one for one in threading.enumerate() if one.name == "test"]
  assert before
  prefetcher.close()
  assert not any(one.is_alive() for one in before)


def test_a_restart_after_closing_makes_nothing(prefetch):
  """There is no thread to wait for."""
  prefetcher = prefetch(counting(), num_ahead=1)
  prefetcher.take()
  prefetcher.close()
  with prefetcher.restarted():
    pass
  took = []

  def take():
    with pytest.raises(StopIteration):
      prefetcher.take()
    took.append(True)

  thread = threading.Thread(target=take, daemon=True)
  thread.start()
  thread.join(10)
  assert took
