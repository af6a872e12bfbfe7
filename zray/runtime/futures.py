"""Futures: the values of references as futures, and awaited in event loops.

Theory of operation
-------------------
What is awaited is asked for once per turn of the event loop, all together, and what has arrived is brought with one call into it,
however many references there are. The coroutine that awaits reads the value itself, at its turn. Only what lies in the store, and
may have to come from another node or from disk, is read in a thread before; that thread, of which there is one and only if it is
needed, also completes ``ref.future()``.

A coroutine that waits no more takes its wish back, and nothing is left of it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from zray.base.wire import STORED
from zray.core.waiters import Waiter
from zray.exceptions import RayTaskError

if TYPE_CHECKING:
    import asyncio

    from zray.object_ref import ObjectRef
    from zray.runtime.core_worker import CoreWorker


def awaited_waiter() -> tuple[Waiter, asyncio.Future[None]]:
    """For a coroutine: something that can be waited for in zray's loop, and what to await meanwhile."""
    import asyncio

    loop = asyncio.get_running_loop()
    came: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not came.done():
            came.set_result(None)

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # that event loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(tell)

    return Waiter(1, wake), came


class Wish:
    """A coroutine that awaits a reference."""

    __slots__ = ("events", "future", "outcome", "ref", "waiter")

    def __init__(self, events: Events, ref: ObjectRef[Any], future: asyncio.Future[Any]) -> None:
        self.events = events
        self.ref: ObjectRef[Any] | None = ref
        self.future = future
        self.outcome: Future[Any] | None = None  # the value, if it was read before
        self.waiter = Waiter(1, partial(events.on_there, self))

    def take_back(self) -> None:
        """Nobody awaits it any more."""
        self.waiter.done = True
        self.waiter.callback = None
        self.ref = None


class Events:
    """An event loop, as seen from zray's.

    Args:
        futures: those of the process.
        loop: the event loop.
    """

    def __init__(self, futures: Futures, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._futures = futures
        self._asked: list[Wish] = []
        self._arrived: deque[Wish] = deque()
        self._called = False

    def ask(self, wish: Wish) -> None:
        """In the event loop: have an object brought; what is asked for in this turn goes together."""
        self._asked.append(wish)
        if len(self._asked) == 1:
            self.loop.call_soon(self._send)

    def on_there(self, wish: Wish) -> None:
        """In zray's loop: an object has arrived, or nothing ever will."""
        ref = wish.ref
        if ref is not None and not self._futures.read_first(wish, ref):
            self.arrive(wish)

    def arrive(self, wish: Wish) -> None:
        """In any thread: a wish is fulfilled."""
        self._arrived.append(wish)
        if not self._called:
            self._called = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the event loop was closed: nobody awaits anything there
                self._arrived.clear()

    def _send(self) -> None:
        wishes, self._asked = self._asked, []
        self._futures.watch(wishes)

    def _deliver(self) -> None:
        """In the event loop: wake those who await what has arrived."""
        self._called = False
        arrived = self._arrived
        while arrived:
            wish = arrived.popleft()
            if not wish.future.done():
                wish.future.set_result(None)


class _Thread(threading.local):
    """The event loop of this thread, the last one if there were several."""

    events: Events | None = None


class Futures:
    """The futures of one process.

    Args:
        worker: the process.
    """

    def __init__(self, worker: CoreWorker) -> None:
        self._worker = worker
        self._thread = _Thread()
        self._completions: queue.SimpleQueue[tuple[Future[Any], ObjectRef[Any], Wish | None] | None] = queue.SimpleQueue()
        self._started = False

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future of a value."""
        future: Future[Any] = Future()
        self._start()
        self._worker.check_ours([ref])
        waiter = Waiter(1, lambda: self._completions.put((future, ref, None)))
        self._worker.loop.post((self._worker.owner.watch, waiter, [ref]))
        return future

    def awaited(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
        """In an event loop: wait for a value."""
        import asyncio

        worker = self._worker
        memory = worker.owner.memory
        while True:
            entry = memory.get(ref.binary())
            if entry is not None and entry[0] != STORED:
                return _read(worker, ref)
            if worker.broken is not None:
                raise worker.broken
            worker.check_ours([ref])
            loop = asyncio.get_running_loop()
            events = self._thread.events
            if events is None or events.loop is not loop:
                events = self._thread.events = Events(self, loop)
            wish = Wish(events, ref, loop.create_future())
            events.ask(wish)
            try:
                yield from wish.future
            finally:
                wish.take_back()
            if wish.outcome is not None:
                return wish.outcome.result()

    def watch(self, wishes: list[Wish]) -> None:
        """Have these objects brought, and whoever turns the loop do so now: the thread of the event loop will not."""
        self._worker.loop.post((self._watch, wishes))
        self._worker.loop.hand_over()

    def read_first(self, wish: Wish, ref: ObjectRef[Any]) -> bool:
        """In the loop: whether the value has to be read by the thread."""
        entry = self._worker.owner.memory.get(ref.binary())
        if entry is None or entry[0] != STORED:
            return False
        self._start()
        wish.outcome = Future()
        self._completions.put((wish.outcome, ref, wish))
        return True

    def close(self) -> None:
        """No more is completed."""
        if self._started:
            self._completions.put(None)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _watch(self, wishes: list[Wish]) -> None:
        watch = self._worker.owner.watch
        for wish in wishes:
            if wish.ref is not None:
                watch(wish.waiter, [wish.ref])

    def _start(self) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._complete, name="zray-futures", daemon=True).start()

    def _complete(self) -> None:
        while True:
            item = self._completions.get()
            if item is None:
                return
            future, ref, wish = item
            if future.set_running_or_notify_cancel() and (wish is None or wish.ref is not None):
                try:
                    value = _read(self._worker, ref)
                except BaseException as error:  # SystemExit too, from a value that is read: others need this thread
                    future.set_exception(error)
                else:
                    future.set_result(value)
                    del value
                if wish is not None:
                    wish.events.arrive(wish)
            del item, future, ref, wish  # or the last one's reference would live until the next


def _read(worker: CoreWorker, ref: ObjectRef[Any]) -> Any:
    try:
        return worker.get([ref])[0]
    except StopIteration as error:  # whoever awaits it would take it for the end of a coroutine
        raise _not_stop_iteration(error) from None


def _not_stop_iteration(error: StopIteration) -> Exception:
    """The same error as another type."""
    if isinstance(error, RayTaskError):
        return RayTaskError(error.function_name, error.traceback_str, error.cause, error.pid, error.node)
    return RuntimeError(f"reading the value raised {error!r}")
