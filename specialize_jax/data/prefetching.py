"""Makes the items of an iterator ahead of time, in a thread."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
  """Calls a function in a thread, ahead of the consumer.

  For one consumer. The function runs in one thread at a time, and never while
  `paused` or `restarted` is entered, so it may change state of its own that
  the consumer reads there.
  """

  def __init__(
    self, make: Callable[[], Item | None], *, num_ahead: int, name: str
  ) -> None:
    """Starts the thread when the first item is taken.

    Args:
      make: returns the next item, or None at the end. What it raises is raised
        by `take`, after the items before it.
      num_ahead: number of items to hold ready.
      name: the name of the thread.
    """
    self._make = make
    self._num_ahead = num_ahead
    self._name = name
    self._ready: collections.deque[Item] = collections.deque()
    self._ending: _Ending | None = None
    # The first lock is held while an item is made. The second, acquired inside
    # the first, guards the queue and its ending.
    self._making = threading.Lock()
    self._queue = threading.Condition()
    self._thread: threading.Thread | None = None

  def take(self) -> Item:
    """Returns the next item; waits for it if necessary.

    Raises:
      StopIteration: there is none, or the prefetcher was closed.
    """
    with self._queue:
      if self._thread is None:
        self._thread = threading.Thread(
          target=self._produce, name=self._name, daemon=True
        )
        self._thread.start()
      self._queue.wait_for(lambda: self._ready or self._ending)
      if not self._ready:
        raise self._ending.error or StopIteration
      item = self._ready.popleft()
      self._queue.notify_all()
      return item

  @contextlib.contextmanager
  def paused(self) -> Iterator[Sequence[Item]]:
    """Yields the items that are ready, while none is made or taken."""
    with self._making, self._queue:
      yield tuple(self._ready)

  @contextlib.contextmanager
  def restarted(self) -> Iterator[None]:
    """Discards what was made; the block moves `make` to another place."""
    with self._making, self._queue:
      yield
      self._ready.clear()
      self._ending = None
      self._queue.notify_all()

  def close(self) -> None:
    """Ends the thread; `take` still returns the items that are ready."""
    with self._queue:
      self._ending = _Ending(closed=True)
      self._queue.notify_all()
    if self._thread is not None:
      self._thread.join()

  def _produce(self) -> None:
    while True:
      with self._queue:
        self._queue.wait_for(self._may_produce)
        if self._ending is not None:
          return
      with self._making:
        try:
          item, error = self._make(), None
        except Exception as raised:  # noqa: BLE001 (raised where it is awaited)
          item, error = None, raised
        with self._queue:
          if item is not None:
            self._ready.append(item)
          elif self._ending is None:
            self._ending = _Ending(error=error)
          self._queue.notify_all()

  def _may_produce(self) -> bool:
    if self._ending is not None:
      return self._ending.closed
    return len(self._ready) < self._num_ahead


@dataclasses.dataclass(frozen=True)
class _Ending:
  """Why no item follows: the end of the data, an error, or `close`."""

  error: Exception | None = None
  closed: bool = False
