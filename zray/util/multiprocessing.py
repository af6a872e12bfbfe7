"""Pool: the interface of ``multiprocessing.Pool``, with actors as its processes.

A pool is a crew of actors with a queue in front of them. Long inputs are cut into chunks, each of which is one call; chunks are
made when a process has room for them, so a long input costs no more than what is under way. The input of ``imap``, which may
have no end, is read by a thread of its own, a bounded number of chunks ahead.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from multiprocessing import JoinableQueue, TimeoutError
from typing import Any

import zray as ray
from zray.util.crew import Crew
from zray.util.dispatch import Batch, Dispatcher, Work
from zray.util.functions import named_as, over_each
from zray.util.pool_results import AsyncResult, Callback, Chunks, IMapIterator, settle, slices

__all__ = ["AsyncResult", "JoinableQueue", "Pool", "TimeoutError"]

log = logging.getLogger("zray")

_TERMINATED = "the pool was terminated before this was done"
_RUNNERS_KEPT = 32
_CHUNKS_AHEAD = 256
_ROOM_STEP = 64  # chunks that are over before more are read: a thread that is woken for each would cost more than the calls


class Pool:
    """A pool of processes that call functions.

    Its methods, their parameters and their results are those of ``multiprocessing.Pool``. The processes are actors: functions
    may be lambdas, and may use the cluster; a call whose process dies is made again in a new one, up to three times, and
    fails then. Results of a pool that was terminated raise, where those of the standard library never come.

    Args:
        processes: how many; by default one for each CPU of the cluster.
        initializer, initargs: called in each process when it starts. If it raises, the pool is broken.
        maxtasksperchild: how many calls or chunks a process serves before a new one takes its place.
        context: not used, which is logged: the cluster starts the processes.
        ray_address: of the cluster to join, as ``address`` of ``init``, if the program has not joined one.
        ray_remote_args: options of the actors, such as ``{"num_gpus": 1}``. ``max_task_retries`` is how often a call whose
            process died is made again; 0 for calls that must not happen twice.

    Raises:
        ValueError, TypeError: an argument has a bad value.

    Example:
        >>> from zray.util.multiprocessing import Pool
        >>> with Pool(2) as pool:  # doctest: +SKIP
        ...     print(pool.map(abs, [-1, 2, -3]))
        [1, 2, 3]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] | None = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: Mapping[str, Any] | None = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError(f"Number of processes must be at least 1, not {processes!r}")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild < 1):
            raise ValueError(f"maxtasksperchild must be a positive int or None, not {maxtasksperchild!r}")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        if context is not None:
            log.warning("context=%r of a Pool is not used: the cluster starts its processes", context)
        if ray_address is not None and not ray.is_initialized():
            ray.init(ray_address)
        self._crew = Crew(processes, initializer, tuple(initargs or ()), maxtasksperchild, dict(ray_remote_args or {}))
        self._dispatcher = Dispatcher(self._crew, "zray-pool")
        self._runner = functools.lru_cache(_RUNNERS_KEPT)(_runner)
        self._lock = threading.Lock()
        self._state = "running"  # "closed", "terminated"
        self._feeders: set[threading.Thread] = set()
        weakref.finalize(self, self._dispatcher.shutdown, wait=False).atexit = False
        self._dispatcher.start()  # processes start in the background

    def __repr__(self) -> str:
        return f"<Pool {self._state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled: make one where it is used")

    def __enter__(self) -> Pool:
        self._check_running()
        return self

    def __exit__(self, *exception: object) -> None:
        self.terminate()

    # -- one call -----------------------------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None) -> Any:
        """Call ``func(*args, **kwds)`` and wait for its end.

        Args:
            func: a function.
            args, kwds: its arguments.

        Returns:
            What it returns.

        Raises:
            ValueError: the pool was closed or terminated.
            Exception: what it raises.

        Example:
            >>> pool.apply(pow, (2, 10))  # doctest: +SKIP
            1024
        """
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """Have ``func(*args, **kwds)`` called.

        Args:
            func: a function.
            args, kwds: its arguments.
            callback: called with the result when it is there.
            error_callback: called with the exception if it raises.

        Returns:
            An AsyncResult, at once; it is ready when its callback has been called.

        Raises:
            ValueError: the pool was closed or terminated.

        Example:
            >>> pool.apply_async(pow, (2, 10)).get(timeout=10)  # doctest: +SKIP
            1024
        """
        self._check_running()
        work = Work(self._dispatcher, func, tuple(args), dict(kwds) if kwds else {})
        future: futures.Future[Any] = work
        if callback is not None or error_callback is not None:
            future = futures.Future()  # not done before the callbacks are
            work.add_done_callback(lambda _: settle(future, work.exception(), work.result, callback, error_callback))
        self._dispatcher.add(work)
        return AsyncResult(self._dispatcher, future, work)

    # -- many calls ---------------------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Call ``func`` with each item, and wait for all results.

        Args:
            func: a function of one argument.
            iterable: the items.
            chunksize: how many items make one call; by default so many that each process gets about four.

        Returns:
            The results, in the order of the items.

        Raises:
            ValueError: the pool was closed or terminated, or ``chunksize`` is less than 1.
            Exception: what a call raised, the first that did.

        Example:
            >>> pool.map(abs, [-1, 2])  # doctest: +SKIP
            [1, 2]
        """
        return self.map_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """As ``map``, but does not wait.

        Args:
            func, iterable, chunksize: as of ``map``. The items are read at once.
            callback: called with the list of results when it is there.
            error_callback: called with the exception if a call raises.

        Returns:
            An AsyncResult of the list.

        Raises:
            ValueError: the pool was closed or terminated, or ``chunksize`` is less than 1.

        Example:
            >>> pool.map_async(abs, [-1, 2]).get(timeout=10)  # doctest: +SKIP
            [1, 2]
        """
        return self._map_async(func, iterable, chunksize, callback, error_callback, False)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """As ``map``, with a tuple of arguments for each call.

        Args:
            func: a function.
            iterable: the tuples.
            chunksize: how many of them make one call; by default as of ``map``.

        Returns:
            The results, in the order of the tuples.

        Raises:
            ValueError, Exception: as ``map``.

        Example:
            >>> pool.starmap(pow, [(2, 10), (3, 2)])  # doctest: +SKIP
            [1024, 9]
        """
        return self.starmap_async(func, iterable, chunksize).get()  # type: ignore[no-any-return]

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> AsyncResult:
        """As ``starmap``, but does not wait.

        Args:
            func, iterable, chunksize: as of ``starmap``.
            callback, error_callback: as of ``map_async``.

        Returns:
            An AsyncResult of the list.

        Raises:
            ValueError: as ``map_async``.
        """
        return self._map_async(func, iterable, chunksize, callback, error_callback, True)

    def imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """Call ``func`` with each item; the results come in order, each as soon as it is there.

        Args:
            func: a function of one argument.
            iterable: the items; read while calls are made.
            chunksize: how many items make one call.

        Returns:
            An iterator that has ``next(timeout)`` too.

        Example:
            >>> for result in pool.imap(abs, range(-3, 3)):  # doctest: +SKIP
            ...     print(result)
        """
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1) -> IMapIterator:
        """As ``imap``, but the results come as they are ready.

        Args:
            func, iterable, chunksize: as of ``imap``.

        Returns:
            An iterator that has ``next(timeout)`` too.
        """
        return self._imap(func, iterable, chunksize, ordered=False)

    # -- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more calls. The processes end when all are done."""
        with self._lock:
            if self._state == "running":
                self._state = "closed"
        self._close_if_fed()

    def terminate(self) -> None:
        """End the processes at once. Results that are not there yet raise."""
        with self._lock:
            self._state = "terminated"
        self._dispatcher.fail(_TERMINATED)
        with self._dispatcher.lock:
            self._crew.kill()

    def join(self) -> None:
        """Wait until all calls are done and the pool is at its end.

        Raises:
            ValueError: neither ``close`` nor ``terminate`` was called.
        """
        if self._state == "running":
            raise ValueError("Pool is still running: call close() or terminate() first")
        if self._state == "closed":
            for feeder in list(self._feeders):
                self._dispatcher.serve(lambda feeder=feeder: not feeder.is_alive(), None)  # type: ignore[misc]
                feeder.join()
        self._dispatcher.join()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._state != "running":
            raise ValueError(f"Pool not running: it was {self._state}; make a new one")

    def _close_if_fed(self) -> None:
        with self._lock:
            done = self._state == "closed" and not self._feeders
        if done:
            self._dispatcher.shutdown(wait=False)

    def _run_over(self, func: Callable[..., Any], star: bool) -> Callable[..., Any]:
        """The function that calls ``func`` with all items of a chunk; the same one each time, if ``func`` stays the same."""
        return self._runner(func, star) if type(func) is types.FunctionType else _runner(func, star)

    def _map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
        star: bool,
    ) -> AsyncResult:
        self._check_running()
        items = _sliceable(iterable)
        if chunksize is None:
            chunksize = max(1, -(-len(items) // (self._crew.size * 4)))
        _check_chunksize(chunksize)
        chunks = Chunks(self._dispatcher, len(items), callback, error_callback)
        if items:
            self._dispatcher.add(Batch(chunks.works(self._run_over(func, star), items, chunksize), chunks.cut))
        else:
            chunks.settle(None)
        return AsyncResult(self._dispatcher, chunks.future, None)

    def _imap(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int, *, ordered: bool) -> IMapIterator:
        self._check_running()
        _check_chunksize(chunksize)
        results = IMapIterator(self._dispatcher, ordered)
        run = self._run_over(func, False)
        if isinstance(iterable, (list, tuple, range)):
            self._dispatcher.add(Batch(results._works(run, slices(iterable, chunksize)), results._cut))
            return results
        items = iter(iterable)
        feeder = threading.Thread(
            target=self._feed, args=(results, run, items, chunksize), name="zray-pool-feeder", daemon=True
        )
        with self._lock:
            self._feeders.add(feeder)
        feeder.start()
        return results

    def _add(self, work: Work) -> None:
        try:
            self._dispatcher.add(work)
        except Exception as error:
            work.set_exception(error)
            raise

    def _feed(self, results: IMapIterator, run: Any, items: Iterator[Any], chunksize: int) -> None:
        """A thread: read an input and have its chunks worked on, a bounded number at a time."""
        room = threading.Semaphore(_CHUNKS_AHEAD)
        over = itertools.count(1)

        def make_room(_: object) -> None:
            if next(over) % _ROOM_STEP == 0:
                room.release(_ROOM_STEP)

        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        try:
            for work in results._works(run, chunks):
                work.add_done_callback(make_room)
                self._add(work)
                room.acquire()
        except Exception as error:
            results._cut(error)
        finally:
            with self._lock:
                self._feeders.discard(threading.current_thread())
            self._close_if_fed()


def _runner(func: Callable[..., Any], star: bool) -> Callable[..., Any]:
    if star:
        return over_each(func)

    def each(items: Iterable[Any]) -> list[Any]:
        return list(map(func, items))

    return named_as(func, each)


def _sliceable(iterable: Iterable[Any]) -> Sequence[Any]:
    return iterable if isinstance(iterable, (list, tuple, range)) else list(iterable)



def _check_chunksize(chunksize: int) -> None:
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
