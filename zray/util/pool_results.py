"""The results of a pool: of one call, of many at once, and of many as they come."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from multiprocessing import TimeoutError
from typing import Any

from zray.util.dispatch import Dispatcher, Work

Callback = Callable[[Any], object] | None


class AsyncResult:
    """The result of a call, or of many, that will be there."""

    def __init__(self, dispatcher: Dispatcher, future: futures.Future[Any], work: Work | None) -> None:
        self._dispatcher = dispatcher
        self._future = future
        self._work = work  # if it is one call

    def ready(self) -> bool:
        """Whether it is there, or an error in its place."""
        return self._future.done()

    def successful(self) -> bool:
        """Whether it is there without an error.

        Raises:
            ValueError: neither is there yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready: wait() for it first")
        return self._future.exception() is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is there, or the time is over.

        Args:
            timeout: seconds to wait at most; None waits for ever.
        """
        if self._work is not None:
            left = self._dispatcher.fetch(self._work, timeout)
        else:
            left = self._dispatcher.serve(self._future.done, timeout)
        if not self._future.done():
            futures.wait([self._future], left)

    def get(self, timeout: float | None = None) -> Any:
        """The result; waits for it.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            What the call returned; of many calls, the list of what they returned, in order.

        Raises:
            multiprocessing.TimeoutError: it did not come in time.
            Exception: what the call raised; of many calls, the first that did.
        """
        self.wait(timeout)
        if not self._future.done():
            raise TimeoutError(f"there was no result within {timeout} s: get() it again to go on waiting")
        return self._future.result()


class Chunks:
    """The calls of ``map``: chunk by chunk, and one result of all."""

    def __init__(self, dispatcher: Dispatcher, count: int, callback: Callback, error_callback: Callback) -> None:
        self.future: futures.Future[Any] = futures.Future()
        self._dispatcher = dispatcher
        self._callbacks = callback, error_callback
        self._lock = threading.Lock()
        self._values: list[Any] = [None] * count
        self._left = count  # items without a result
        self._error: BaseException | None = None

    def works(self, run: Callable[..., Any], items: Sequence[Any], chunksize: int) -> Iterator[Work]:
        for start, chunk in zip(itertools.count(0, chunksize), slices(items, chunksize)):
            work = Work(self._dispatcher, run, (chunk,), {})
            work.add_done_callback(functools.partial(self._chunk_done, start, len(chunk)))
            yield work

    def cut(self, error: Exception) -> None:
        """Some chunks were dropped, or it was not known yet that there were none left."""
        with self._lock:
            settled, self._left = self._left == 0, -1
        if not settled:
            self.settle(error)

    def settle(self, error: BaseException | None) -> None:
        settle(self.future, error, lambda: self._values, *self._callbacks)

    def _chunk_done(self, start: int, length: int, work: futures.Future[Any]) -> None:
        error = work.exception()
        with self._lock:
            if error is None:
                self._values[start : start + length] = work.result()
            else:
                self._error = self._error or error
            self._left -= length
            last = self._left == 0
        if last:
            self.settle(self._error)


def settle(
    future: futures.Future[Any],
    error: BaseException | None,
    value: Callable[[], Any],
    callback: Callback,
    error_callback: Callback,
) -> None:
    """Call the callback, and then let those go on who wait. What it raises is logged by the future that brought us here."""
    try:
        if error is None and callback is not None:
            callback(value())
        elif error is not None and error_callback is not None:
            error_callback(error)
    finally:
        if error is None:
            future.set_result(value())
        else:
            future.set_exception(error)


class IMapIterator:
    """The results of ``imap`` and ``imap_unordered``, as they come."""

    def __init__(self, dispatcher: Dispatcher, ordered: bool) -> None:
        self._dispatcher = dispatcher
        self._ordered = ordered
        self._changed = threading.Condition()
        self._done: dict[int, futures.Future[Any]] = {}  # chunks by number
        self._next = 0
        self._made = 0  # chunks so far
        self._count: int | None = None  # chunks in all, when it is known
        self._items: deque[Any] = deque()
        self._error: Exception | None = None  # what reading the input raised: the last result

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """The next result; waits for it.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            What a call of the function returned.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: it did not come in time.
            Exception: what a call raised, in the place of its chunk.
        """
        while not self._items:
            end = None if timeout is None else time.monotonic() + timeout
            left = self._dispatcher.serve(self._has_next, timeout)
            with self._changed:
                if not self._changed.wait_for(self._has_next, left):
                    raise TimeoutError(f"there was no result within {timeout} s: call next() again to go on waiting")
                if self._next == self._count:
                    error, self._error = self._error, None
                    raise error or StopIteration
                self._take_good()
                if self._items:
                    break
                chunk = self._done.pop(self._next if self._ordered else next(iter(self._done)))
                self._next += 1
            self._items.extend(chunk.result())
            timeout = None if end is None else max(0.0, end - time.monotonic())
        return self._items.popleft()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _take_good(self) -> None:
        """All results that are there, up to the first error; the lock is held."""
        done = self._done
        while done:
            number = self._next if self._ordered else next(iter(done))
            if number not in done:
                break
            try:
                values = done[number].result(0)
            except BaseException:
                break  # it has its own turn
            self._items.extend(values)
            del done[number]
            self._next += 1

    def _has_next(self) -> bool:
        return self._next == self._count or (self._next in self._done if self._ordered else bool(self._done))

    def _works(self, run: Callable[..., Any], chunks: Iterator[Any]) -> Iterator[Work]:
        for number, chunk in enumerate(chunks):
            work = Work(self._dispatcher, run, (chunk,), {})
            work.add_done_callback(functools.partial(self._chunk_done, number))
            self._made = number + 1
            yield work
        self._end(None)

    def _cut(self, error: Exception) -> None:
        """Reading the input raised, or some chunks were dropped."""
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            self._error = error
            self._count = self._made
            self._changed.notify_all()

    def _chunk_done(self, number: int, work: futures.Future[Any]) -> None:
        with self._changed:
            self._done[number] = work
            self._changed.notify_all()


def slices(items: Sequence[Any], size: int) -> Iterator[Any]:
    """The items, so many at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))
