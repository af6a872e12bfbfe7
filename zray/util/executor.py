"""Executor: the interface of ``concurrent.futures``, with zray's workers behind it."""

from __future__ import annotations

import atexit
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from itertools import islice
from types import FunctionType
from typing import Any, ParamSpec, TypeVar

import zray as ray
from zray.util.dispatch import Dispatcher, Lane, Outcome, Window, Work
from zray.util.functions import Regulars, over_each

P = ParamSpec("P")
T = TypeVar("T")
_WINDOW_MAX = 1024
_open: weakref.WeakSet[Dispatcher] = weakref.WeakSet()  # their work is to be finished before the program ends


class Executor(futures.Executor):
    """Runs functions in worker processes, and returns ``concurrent.futures.Future`` objects.

    A drop-in for ``ProcessPoolExecutor``: submit, map, shutdown, callbacks, cancelling, and with them everything that takes an
    executor, such as ``run_in_executor`` of asyncio. Calls are zray tasks: they may submit tasks themselves, ObjectRefs
    among their arguments arrive as values, lambdas and functions of the script work, and a call whose worker dies is run
    again (``max_retries``, 3 unless told otherwise).

    A future can be cancelled until its call is given to the cluster. So that this is of use, only as many calls are given to it
    as keep it busy for some hundredths of a second; the others are held back here.

    With an ``initializer`` or ``max_tasks_per_child`` the executor has processes of its own, actors, instead of sharing the
    cluster's workers.

    Args:
        max_workers: how many calls run at once, at most. By default as many as the cluster has CPUs for, and never more
            than that: for calls that only wait, give ``num_cpus=0`` too.
        initializer, initargs: called once in each process, before its first call.
        max_tasks_per_child: how many calls a process serves before another takes its place.
        options: of the tasks, such as ``num_cpus``, ``resources`` or ``max_retries``; of the actors, if there is an initializer.

    Raises:
        ValueError, TypeError: an argument has a bad value.

    Example:
        >>> from zray.util import Executor
        >>> with Executor() as executor:  # doctest: +SKIP
        ...     print(executor.submit(pow, 2, 10).result(), list(executor.map(abs, [-1, 2])))
        1024 [1, 2]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        _check_count("max_workers", max_workers)
        _check_count("max_tasks_per_child", max_tasks_per_child)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        if options.get("num_returns", 1) != 1:
            raise ValueError("num_returns must be 1: the future of a call has one result; return a tuple")
        lane: Lane
        if initializer is None and max_tasks_per_child is None:
            lane = TaskLane(max_workers, options)
        else:
            from zray.util.crew import Crew

            lane = Crew(max_workers, initializer, initargs, max_tasks_per_child, options)
        self._dispatcher = Dispatcher(lane, "zray-executor")
        weakref.finalize(self, self._dispatcher.shutdown, wait=False).atexit = False
        atexit.unregister(_finish_all)
        atexit.register(_finish_all)  # after zray's own, which is called after this one then
        _open.add(self._dispatcher)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Have ``fn(*args, **kwargs)`` called.

        Args:
            fn: the function.
            args, kwargs: its arguments.

        Returns:
            The future of what it returns. What it raises is raised by ``result()``, with the worker's traceback as its cause.

        Raises:
            RuntimeError: the executor was shut down; BrokenProcessPool, which is one, if the cluster is gone.

        Example:
            >>> executor.submit(pow, 2, 10).result()  # doctest: +SKIP
            1024
        """
        if "self" in kwargs:  # which is a parameter of .remote()
            work = Work(self._dispatcher, _call_with, (fn, args, kwargs), {})
        else:
            work = Work(self._dispatcher, fn, args, kwargs)
        self._dispatcher.add(work)
        return work

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call ``fn`` with an element of each iterable, for all of them, and give the results in order.

        Args:
            fn: the function.
            iterables: read at once; with ``buffersize`` as the results are taken.
            timeout: seconds from this call on; a result that is not there by then is a TimeoutError.
            chunksize: how many calls travel together. Short calls are faster in hundreds.
            buffersize: how many chunks are under way, or done and not taken yet.

        Returns:
            An iterator. It raises what a call raised; then, and when it is closed, what was not started is cancelled.

        Raises:
            ValueError: ``chunksize`` or ``buffersize`` is less than 1.

        Example:
            >>> list(executor.map(pow, [2, 3], [10, 2]))  # doctest: +SKIP
            [1024, 9]
        """
        if chunksize < 1:
            raise ValueError(f"chunksize must be >= 1, not {chunksize!r}")
        _check_count("buffersize", buffersize)
        end = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables)  # as short as the shortest of them
        if chunksize == 1:
            todo: Iterator[futures.Future[Any]] = (self.submit(fn, *args) for args in calls)
            return _in_order(deque(islice(todo, buffersize)), todo, end)
        each = over_each(fn)
        todo = (self.submit(each, chunk) for chunk in _chunks(calls, chunksize))
        return _flat(_in_order(deque(islice(todo, buffersize)), todo, end))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls.

        Args:
            wait: return when all calls are done. If not, they are done nevertheless, and before the program ends.
            cancel_futures: cancel those that were not started.
        """
        self._dispatcher.shutdown(wait=wait, cancel=cancel_futures)


class TaskLane:
    """Calls as tasks, as many as the cluster has CPUs for."""

    def __init__(self, max_workers: int | None, options: dict[str, Any]) -> None:
        self._options = options
        self._call = self._remote(_call)  # refuses bad options at once
        self._remotes: Regulars[Any] = Regulars(self._remote)
        self._max_workers = max_workers
        self._window = Window(1, 1)

    def open(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        cpus = ray.cluster_resources().get("CPU", 1)
        each = self._options.get("num_cpus")
        each = 1 if each is None else each
        limit = cpus / each if each else float("inf")  # how many run at once anyway
        wanted = cpus if self._max_workers is None and not each else self._max_workers
        if wanted is not None and wanted < limit:
            self._window = Window(max(1, int(wanted)), max(1, int(wanted)))
        else:
            self._window = Window(int(limit) + 1, max(_WINDOW_MAX, int(limit) + 1))

    def has_room(self) -> bool:
        return len(self._dispatcher.running) < self._window.size

    def start(self, work: Work) -> Any:
        assert work.call is not None
        function, args, kwargs = work.call
        remote = self._remotes.get(function)
        if remote is None:
            call = self._call.options(name=function.__qualname__) if type(function) is FunctionType else self._call
            return call.remote(function, *args, **kwargs)
        return remote.remote(*args, **kwargs)

    def steady(self, work: Work) -> bool:
        return True

    def ended(self, entry: Work, value: Any, error: BaseException | None) -> list[Outcome]:
        dispatcher = self._dispatcher
        self._window.took(time.monotonic() - entry.started, wanted=bool(dispatcher.pending))
        return [(entry, value, error)]

    def rest(self) -> None:
        if not self._dispatcher.running:
            self._window.reset()

    def close(self) -> None:
        """Workers are the cluster's."""

    def _remote(self, function: Callable[..., Any]) -> Any:
        return ray.remote(**self._options)(function) if self._options else ray.remote(function)


def _call(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def _call_with(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)


def _check_count(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be greater than 0, not {value!r}")


def _chunks(calls: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(calls, size)):
        yield chunk


def _in_order(
    under_way: deque[futures.Future[Any]], todo: Iterator[futures.Future[Any]], end: float | None
) -> Generator[Any, None, None]:
    """The results of futures in their order. Before one is waited for, the next begins; none is kept here once it was given."""
    try:
        while under_way:
            yield _taken(under_way, todo, end)
    finally:
        for future in under_way:
            future.cancel()


def _taken(under_way: deque[futures.Future[Any]], todo: Iterator[futures.Future[Any]], end: float | None) -> Any:
    future = under_way.popleft()
    try:
        under_way.extend(islice(todo, 1))
        return future.result(None if end is None else end - time.monotonic())
    finally:
        future.cancel()
        del future  # else what it raised would keep it


def _flat(chunks: Generator[list[Any], None, None]) -> Generator[Any, None, None]:
    try:
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()
    finally:
        chunks.close()


def _forget_all() -> None:
    """A fork of the user's: its parent finishes them."""
    _open.clear()


os.register_at_fork(after_in_child=_forget_all)


def _finish_all() -> None:
    """The program ends: as with every executor of the standard library, not before all is done."""
    for dispatcher in list(_open):
        dispatcher.shutdown(wait=True)
