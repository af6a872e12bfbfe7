"""Dispatcher: calls that wait, calls that run, and how their results reach those who want them.

Theory of operation
-------------------
A call is ``Work``, the future of its own result. Work waits here until a *lane* has room for it: the lane knows where calls run
(as tasks, or in a set of processes) and how many may be there at once. What waits can be cancelled, what a lane was given can
not.

Results are brought by whoever has reason to. A thread that waits for one result fetches it itself, since to hand a result
from thread to thread takes longer than a short call. All other results, those that have callbacks or that somebody waits for
in ways this module does not see, are brought by one thread of the dispatcher, which looks at everything that runs. It gives
a thread that might fetch a moment (``GRACE_S``) before it does, except where it was told to *hurry*.

While that thread sleeps in ``ray.wait`` it can not be told of work that starts meanwhile. A short sleep (``FRESH_S``) is
ended by the clock. Before a long one it says so (``_settled``), and whatever starts from then on is watched by a future of its
own.

In the main thread of a task, only what waits in ``ray.wait`` lends its CPU to others. There the waiting thread brings all
results.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool  # the error that users of process pools are prepared for
from typing import Any, Protocol

import zray as ray
from zray.exceptions import RayTaskError

GRACE_S = 0.002
FRESH_S = 0.005
_LONGEST_S = 86400.0  # waits are cut into pieces of at most this, which every clock can count
_QUICK_S = 0.01  # work that is over so soon after it started may have more behind it
_SLOW_S = 0.04

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class Work(Future[Any]):
    """A call, as the future of its result."""

    def __init__(self, dispatcher: Dispatcher, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call: Call | None = (function, args, kwargs)  # None when it is over
        self.ref: Any = None  # of its result, once it was started
        self.started = 0.0
        self.place: Any = None  # the lane's own note
        self._dispatcher = dispatcher

    def result(self, timeout: float | None = None) -> Any:
        return super().result(self._dispatcher.fetch(self, timeout))

    def exception(self, timeout: float | None = None) -> BaseException | None:
        return super().exception(self._dispatcher.fetch(self, timeout))

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        super().add_done_callback(fn)
        self._dispatcher.hurry()


class Batch:
    """Work that is made when there is room for it.

    Args:
        works: makes it; with the dispatcher's lock held, so it must not wait for anything.
        cut: is told why, if not all of it will be made.
    """

    def __init__(self, works: Iterator[Work], cut: Callable[[Exception], object]) -> None:
        self.works = works
        self.cut = cut


class Entry(Protocol):
    """What runs: work, or a question of the lane's own."""

    @property
    def ref(self) -> Any: ...


Outcome = tuple[Work, Any, BaseException | None]


class Lane(Protocol):
    """Where work runs. All methods are called with the dispatcher's lock held."""

    def open(self, dispatcher: Dispatcher) -> None:
        """Before the first work."""

    def has_room(self) -> bool:
        """Whether one more may start."""

    def start(self, work: Work) -> Any:
        """Start work and return its reference; what this raises becomes its result."""

    def steady(self, work: Work) -> bool:
        """Whether the reference that this work has now is the one that will bring its result."""

    def ended(self, entry: Any, value: Any, error: BaseException | None) -> list[Outcome]:
        """Something that ran has a result; which work is over by that, and how."""

    def rest(self) -> None:
        """As much as possible was started."""

    def close(self) -> None:
        """There will be no more work, and none is left."""


class Window:
    """How much work may be under way: enough to hide the way there and back, and not so much that it waits for long.

    It grows while what is started is soon over, and shrinks where it is not.

    Args:
        least: how much may always be under way.
        most: how much at most.
    """

    __slots__ = ("_least", "_most", "size")

    def __init__(self, least: int, most: int) -> None:
        self._least = least
        self._most = most
        self.size = least

    def took(self, seconds: float, *, wanted: bool) -> None:
        """Some work was over after so many seconds; ``wanted``: more was waiting for room."""
        if seconds < _QUICK_S:
            if wanted and self.size < self._most:
                self.size += 1
        elif seconds > _SLOW_S and self.size > self._least:
            self.size -= 1

    def reset(self) -> None:
        """Nothing is under way: what comes next may be of another kind."""
        self.size = self._least


class Dispatcher:
    """Work on its way through a lane.

    Args:
        lane: where it runs.
        name: of the thread that brings results.
    """

    def __init__(self, lane: Lane, name: str) -> None:
        self.lock = threading.RLock()  # pickling arguments may run code of the user's that comes back here
        self.pending: deque[Work | Batch] = deque()
        self.running: dict[bytes, Entry] = {}  # by the id of the reference
        self.broken = ""  # why nothing can run any more
        self.doomed = ""  # the same, as found by the lane
        self.closed = False
        self._lane = lane
        self._name = name
        self._thread: threading.Thread | None = None
        self._bell = threading.Event()
        self._lends = False  # this is a task: see above
        self._opener: threading.Thread | None = None
        self._starts = 0  # how much was started so far
        self._fetches = 0  # how many results were fetched by those who wait for them
        self._deep = False  # the thread sleeps until the bell rings
        self._hurried = False  # somebody wants results who does not fetch them
        self._looking = False
        self._settled = False

    # -- what users want ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Get ready, before there is work."""
        with self.lock:
            if self._thread is None:
                self._open()

    def add(self, work: Work | Batch) -> None:
        """Have work done.

        Raises:
            RuntimeError: it was closed; BrokenProcessPool, which is one, if nothing can run any more.
        """
        with self.lock:
            if self.broken:
                raise BrokenProcessPool(self.broken)
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._thread is None:
                self._open()
            waiting = bool(self.pending)
            self.pending.append(work)
        if not waiting:  # else there is no room
            self.refill()

    def fetch(self, work: Work, timeout: float | None) -> float | None:
        """Whoever waits for this work brings its result, if nobody else is about to; returns what is left of the time."""
        if work.done():
            return timeout
        if self._in_task():
            return self.serve(work.done, timeout)
        ref = work.ref
        with self.lock:
            if ref is not None and not self._lane.steady(work):
                ref = None  # another one may take its place
        if ref is None or self._looking:
            self.hurry()
            return timeout
        end = None if timeout is None else time.monotonic() + timeout
        try:
            ready, _ = self._wait([ref], timeout)
        except Exception as error:
            self.fail(_gone(error))
            return timeout
        if ready:
            self._fetches += 1
            self._hurried = False
            self._collect(ready)
        if not work.done():
            self.hurry()
        return None if end is None else max(0.0, end - time.monotonic())

    def serve(self, done: Callable[[], bool], timeout: float | None) -> float | None:
        """In the main thread of a task: bring results until ``done()``; elsewhere have them brought. What is left of the time."""
        if not self._in_task():
            self.hurry()
            return timeout
        end = None if timeout is None else time.monotonic() + timeout
        while not done():
            with self.lock:
                refs = [entry.ref for entry in self.running.values()]
            if not refs:
                break  # the rest is with another thread
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                ready, _ = self._wait(refs, left)
            except Exception as error:
                self.fail(_gone(error))
                break
            if not ready and left is not None and left <= _LONGEST_S:
                break
            self._collect(ready)
        return None if end is None else max(0.0, end - time.monotonic())

    def hurry(self) -> None:
        """Have results brought at once: those who want them do not fetch them."""
        self._hurried = True
        if not self._looking and self.running:
            self._bell.set()

    def shutdown(self, *, wait: bool, cancel: bool = False) -> None:
        """Take no more work, and end when all is done.

        Args:
            wait: return when all is done.
            cancel: drop what was not started.
        """
        dropped: list[Work | Batch] = []
        with self.lock:
            self.closed = True
            if cancel:
                dropped = self._take_pending()
            if self._thread is None:
                self._lane.close()
        for item in dropped:
            if isinstance(item, Batch):
                item.cut(futures.CancelledError())
            elif item.cancel():
                item.set_running_or_notify_cancel()  # tells those who wait in concurrent.futures.wait()
        self._hurried = True
        self._bell.set()
        if wait:
            self.join()

    def join(self) -> None:
        """Wait until all is done, after ``shutdown``."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self.serve(lambda: not thread.is_alive(), None)
            thread.join()

    def fail(self, reason: str) -> None:
        """Nothing can run any more: all that is not done fails."""
        with self.lock:
            if not self.broken:
                self.broken = reason
            self.closed = True
            lost: list[Work | Batch] = [entry for entry in self.running.values() if isinstance(entry, Work)]
            lost += self._take_pending()
            self.running.clear()
        for item in lost:
            if isinstance(item, Batch):
                item.cut(BrokenProcessPool(reason))
            elif item.running() or item.set_running_or_notify_cancel():
                _finish(item, None, BrokenProcessPool(reason))
        self._bell.set()

    # -- for the lane ---------------------------------------------------------------------------------------------

    def watch(self, entry: Entry) -> None:
        """Have the lane told when the reference of ``entry`` is ready."""
        self._starts += 1
        self.running[entry.ref.binary()] = entry
        if self._settled:
            ref = entry.ref
            ref.future().add_done_callback(lambda brought: self._collect([ref], lambda _: brought.result()))

    def again(self, work: Work) -> None:
        """Work that was started elsewhere without success comes first again."""
        self.running.pop(work.ref.binary(), None)
        work.ref = None
        self.pending.appendleft(work)

    # -- starting -------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._lends = ray.get_runtime_context().get_task_id() is not None
        self._opener = threading.current_thread()  # in local mode tasks have other threads than the main one
        self._lane.open(self)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def refill(self) -> None:
        """Start what there is room for."""
        if self.pending and not ray.is_initialized():
            self.fail(_gone(None))
        failed: list[tuple[Work, Exception]] = []
        with self.lock:
            while self.pending and self._lane.has_room():
                work = self._next_work()
                if work is None:
                    continue
                try:
                    work.ref = self._lane.start(work)
                except Exception as error:
                    failed.append((work, error))
                    continue
                work.started = time.monotonic()
                self.watch(work)
            self._lane.rest()
            if self._deep or ((self._hurried or self.pending) and not self._looking):
                self._bell.set()
        for work, problem in failed:
            _finish(work, None, problem)

    def _next_work(self) -> Work | None:
        head = self.pending[0]
        if isinstance(head, Work):
            self.pending.popleft()
            work = head
        else:
            following = next(head.works, None)
            if following is None:
                self.pending.popleft()
                return None
            work = following
        if work.started or work.set_running_or_notify_cancel():
            return work
        return None  # it was cancelled

    def _take_pending(self) -> list[Work | Batch]:
        taken = list(self.pending)
        self.pending.clear()
        return taken

    # -- bringing results -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        """The thread: bring results until there will be no more."""
        try:
            while self._rest():
                self._collect(self._look())
        except Exception as error:
            self.fail(_gone(error))
        with self.lock:
            self._lane.close()

    def _rest(self) -> bool:
        """Sleep until there is something to look at; False at the end."""
        seen = -1
        while True:
            fetches = self._fetches
            if self.running:
                if self._hurried or self.pending:
                    return True
                self._bell.wait(GRACE_S)
                if fetches == self._fetches:
                    self._hurried = True  # nobody fetches
            elif self.closed and not self.pending:
                return False
            elif fetches != seen:
                self._bell.wait(GRACE_S)  # somebody fetches, and may go on: to wake this thread each time would delay it
            else:
                self._deep = True
                if not self.running and not self.closed:
                    self._bell.wait()
                self._deep = False
            seen = fetches
            self._bell.clear()

    def _look(self) -> list[Any]:
        """Wait until something is ready, and return all that is; nothing, if more was started meanwhile."""
        with self.lock:
            refs = [entry.ref for entry in self.running.values()]
            starts = self._starts
        if not refs:
            return []
        self._looking = True
        try:
            ready, rest = self._wait(refs, FRESH_S)
            if not ready:
                with self.lock:
                    if starts != self._starts:
                        return []
                    self._settled = True
                ready, rest = self._wait(rest, None)
            if rest:
                more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
                ready += more
            return ready
        finally:
            self._settled = False
            self._looking = False

    def _collect(self, refs: list[Any], get: Callable[[Any], Any] | None = None) -> None:
        """Bring the results of what is ready to where they belong."""
        for ref in refs:
            key = ref.binary()
            if key not in self.running:
                continue  # another thread was faster
            value, problem = _outcome(ref, get)
            with self.lock:
                entry = self.running.get(key)
                over = [] if entry is None else self._lane.ended(entry, value, problem)
                self.running.pop(key, None)  # not before: if the lane failed at it, it would be lost
            for work, result, error in over:
                _finish(work, result, error)
            if self.doomed:
                self.fail(self.doomed)
        self.refill()

    def _wait(self, refs: list[Any], timeout: float | None) -> tuple[list[Any], list[Any]]:
        _check_connected()
        return ray.wait(refs, timeout=None if timeout is None else min(max(0.0, timeout), _LONGEST_S))

    def _in_task(self) -> bool:
        return self._lends and threading.current_thread() in (threading.main_thread(), self._opener)


def _outcome(ref: Any, get: Callable[[Any], Any] | None) -> tuple[Any, BaseException | None]:
    try:
        if get is not None:
            return get(ref), None
        _check_connected()
        return ray.get(ref), None
    except Exception as error:
        return None, error
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, perhaps
        return None, error  # to read the value raised it, and this thread must not end of that


def _check_connected() -> None:
    if not ray.is_initialized():  # to wait or get would start a new cluster
        raise BrokenProcessPool("zray.shutdown() was called")


def _gone(error: Exception | None) -> str:
    why = f" ({error})" if error is not None else ""
    return f"the cluster is gone{why}: after zray.init(), make a new executor or pool for what was not done"


def _finish(work: Work, value: Any, error: BaseException | None) -> None:
    work.call = work.ref = work.place = None
    if error is None:
        work.set_result(value)
    else:
        work.set_exception(own_error(error))


def own_error(error: BaseException) -> BaseException:
    """What a function raised, as itself; its cause has the worker's traceback."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        cause = error.cause
        cause.__cause__ = RayTaskError(error.function_name, error.traceback_str, None, error.pid, error.node)
        return cause
    return error
