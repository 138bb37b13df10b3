"""Prefetches items in a thread."""

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
  """Calls a function in a thread, ahead of its single consumer.

  The function is never running within `paused` or `restarted`, so the consumer
  can read or replace its state there.
  """

  def __init__(
    self, make: Callable[[], Item | None], *, num_ahead: int, name: str
  ) -> None:
    """Creates a prefetcher, whose thread starts with the first `take`.

    Args:
      make: Returns the next item, or None at the end. Its exceptions are raised
        by `take`, after the items before them.
      num_ahead: The number of items to prefetch.
      name: The name of the thread.
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
    """Returns the next item, waiting for it if necessary.

    Raises:
      StopIteration: there are no more items, or the prefetcher was closed.
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
    """Suspends the thread, and yields the prefetched items.

    Raises:
      Exception: that of the function, if it has failed. Its state may then lack
        parts of the item that it was making.
    """
    with self._making, self._queue:
      if self._ending is not None and self._ending.error is not None:
        raise self._ending.error
      yield tuple(self._ready)

  @contextlib.contextmanager
  def restarted(self) -> Iterator[None]:
    """Discards the prefetched items, and suspends the thread for the block.

    A prefetcher that was closed stays closed.
    """
    with self._making, self._queue:
      yield
      self._ready.clear()
      if self._ending is not None and not self._ending.closed:
        self._ending = None
      self._queue.notify_all()

  def close(self) -> None:
    """Stops the thread; `take` still returns the prefetched items."""
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
  """The reason why no item follows: the end, an error, or `close`."""

  error: Exception | None = None
  closed: bool = False
