"""ActorPool: work spread over a fixed set of actors, one piece for each at a time.

Every piece of work gets a number when it starts. What runs is kept by that number, so results can be taken in order or as they
come. An actor is busy until somebody takes the result of its work; only then the next value that waits is given to it. So a
pool never holds more results than it has actors, however slowly they are read.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import zray as ray
from zray.exceptions import ActorDiedError, ActorUnschedulableError, RayTaskError

A = TypeVar("A")
V = TypeVar("V")


class _Work(Generic[A]):
    """A call that was made, and whose result nobody has taken yet."""

    __slots__ = ("actors", "error", "future", "unseen")

    def __init__(self, future: Any, actors: list[A], error: Exception | None = None) -> None:
        self.future = future
        self.actors = actors  # the one that is busy with it; none if the call could not be made
        self.error = error  # why it could not be made
        self.unseen = list(dict.fromkeys(future if isinstance(future, list) else [future]))

    def ready(self, timeout: float | None) -> bool:
        """Wait until all it consists of is there."""
        if self.unseen:
            _, self.unseen = ray.wait(self.unseen, num_returns=len(self.unseen), timeout=timeout)
        return not self.unseen


class ActorPool(Generic[A]):
    """Spreads work over actors.

    Results are taken with ``get_next`` in the order of submission, or with ``get_next_unordered`` as they come; do not mix the
    two while work is under way. An error that a task raises is raised where its result would be taken, and its actor
    goes on to the next value. Only an actor that died, or that no node can ever run, leaves the pool. A pool is for one
    thread at a time.

    Args:
        actors: handles of the actors.

    Example:
        >>> import zray as ray
        >>> from zray.util import ActorPool
        >>> @ray.remote
        ... class Doubler:
        ...     def double(self, x):
        ...         return 2 * x
        >>> pool = ActorPool([Doubler.remote(), Doubler.remote()])  # doctest: +SKIP
        >>> list(pool.map(lambda actor, x: actor.double.remote(x), [1, 2, 3]))  # doctest: +SKIP
        [2, 4, 6]
    """

    def __init__(self, actors: Iterable[A]) -> None:
        self._idle = list(actors)  # taken from the end; while there are any, no value waits
        self._waiting: deque[tuple[Callable[[A, Any], Any], Any]] = deque()
        self._running: dict[int, _Work[A]] = {}  # by number, oldest first
        self._started = 0  # how many numbers were given
        self._next = 0  # the number get_next() takes
        self._round = 0  # how many times map() or map_unordered() began

    # -- many values --------------------------------------------------------------------------------------------------

    def map(self, fn: Callable[[A, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """Apply a function to all values, and give the results in the order of the values.

        Work begins at once; the values are read at once too. Results of earlier submissions that were not taken are given
        up: their calls are made and run, but nobody sees what comes of them.

        Args:
            fn: ``fn(actor, value)`` calls a method of the actor and returns its ObjectRef, or its list of ObjectRefs.
            values: what to apply it to.

        Returns:
            An iterator. If it raises the error of a task it ends there; the other results can be taken with ``get_next``.

        Raises:
            RuntimeError: by the iterator, if it was overtaken by another ``map``, or if no actor is left for a value.

        Example:
            >>> list(pool.map(lambda actor, x: actor.double.remote(x), [1, 2]))  # doctest: +SKIP
            [2, 4]
        """
        return self._map("map", self.get_next, fn, values)

    def map_unordered(self, fn: Callable[[A, V], Any], values: Iterable[V]) -> Iterator[Any]:
        """As ``map``, but the results come as they are ready.

        Args:
            fn, values: as of ``map``.

        Returns:
            An iterator. If it raises the error of a task it ends there; the other results can be taken with
            ``get_next_unordered``.

        Raises:
            RuntimeError: by the iterator, as with ``map``.

        Example:
            >>> sorted(pool.map_unordered(lambda actor, x: actor.double.remote(x), [1, 2]))  # doctest: +SKIP
            [2, 4]
        """
        return self._map("map_unordered", self.get_next_unordered, fn, values)

    def _map(self, name: str, take: Callable[[], Any], fn: Callable[[A, V], Any], values: Iterable[V]) -> Iterator[Any]:
        _check_function(name, fn)
        every_value = iter(values)
        self._round += 1
        while self._running:  # what waits is started in turn, as it would have been, and given up as well
            self._take_out(next(iter(self._running)))
        for value in every_value:
            self.submit(fn, value)
        return self._results(name, take, self._round)

    def _results(self, name: str, take: Callable[[], Any], own_round: int) -> Iterator[Any]:
        while True:
            if self._round != own_round:
                raise RuntimeError(
                    f"the results of this {name}() were given up when the pool's map() or map_unordered() was called again: "
                    "read one to its end before the next, or use two pools"
                )
            if not self._running:
                break
            yield take()
        if self._waiting:
            raise RuntimeError(
                f"the pool has no actor left for {len(self._waiting)} values of this {name}(): give it one with push(), and "
                "take their results with get_next()"
            )

    # -- one value ----------------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[[A, V], Any], value: V) -> None:
        """Have one value worked on: by an idle actor at once, or by the next one whose result is taken.

        Args:
            fn: ``fn(actor, value)`` calls a method of the actor and returns its ObjectRef, or its list of ObjectRefs.
            value: what to apply it to.

        Raises:
            TypeError: ``fn`` is no function, or returned something else than ObjectRefs.

        Example:
            >>> pool.submit(lambda actor, x: actor.double.remote(x), 1)  # doctest: +SKIP
            >>> pool.get_next()  # doctest: +SKIP
            2
        """
        _check_function("submit", fn)
        if self._idle:
            self._start(fn, value)
        else:
            self._waiting.append((fn, value))

    def has_next(self) -> bool:
        """Whether there is a result to take, now or later. Values that wait in a pool without actors do not count."""
        return bool(self._running)

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission; waits for it.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            ignore_if_timedout: give up the result that did not come in time, so that the next call is about the one after
                it. Its actor is used again, though after the others.

        Returns:
            The value; a list of values if the function gave a list of ObjectRefs.

        Raises:
            Exception: what the task raised.
            TimeoutError: the result did not come in time.
            StopIteration: there are no results to take.
            ValueError: all that is under way was submitted before something that ``get_next_unordered`` returned already.

        Example:
            >>> pool.get_next(timeout=10)  # doctest: +SKIP
            2
        """
        self._check_next("get_next")
        if self._next >= self._started:
            raise ValueError(
                "get_next() can not tell what is next after get_next_unordered(): take the rest with get_next_unordered()"
            )
        number = self._next
        if timeout is not None and not self._running[number].ready(timeout):
            raise self._late(number, timeout, ignore_if_timedout)
        return self._result(number)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """Some result, the first that is ready; waits for it.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            ignore_if_timedout: if none came in time, give up the one that was submitted first.

        Returns:
            The value; a list of values if the function gave a list of ObjectRefs.

        Raises:
            Exception: what the task raised.
            TimeoutError: no result came in time.
            StopIteration: there are no results to take.

        Example:
            >>> pool.get_next_unordered(timeout=10)  # doctest: +SKIP
            2
        """
        self._check_next("get_next_unordered")
        number = self._first_ready(timeout)
        if number is None:
            raise self._late(next(iter(self._running)), timeout, ignore_if_timedout)
        return self._result(number)

    # -- the actors ---------------------------------------------------------------------------------------------------

    def has_free(self) -> bool:
        """Whether a submission would start at once."""
        return bool(self._idle) and not self._waiting

    def pop_idle(self) -> A | None:
        """Take an idle actor out of the pool; None if there is none."""
        return self._idle.pop() if self.has_free() else None

    def push(self, actor: A) -> None:
        """Add an actor to the pool.

        Args:
            actor: its handle.

        Raises:
            ValueError: it is in the pool already.
        """
        if actor in self._idle or any(actor in work.actors for work in self._running.values()):
            raise ValueError(f"{actor!r} is in the pool already: push() each actor once")
        self._idle.append(actor)
        self._start_waiting()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start(self, fn: Callable[[A, V], Any], value: V) -> None:
        """Give a value to an idle actor; whatever comes in between, the actor is not lost."""
        actor = self._idle.pop()
        try:
            future = _checked(fn(actor, value))
        except BaseException:
            self._idle.append(actor)
            raise
        self._file(_Work(future, [actor]))

    def _start_waiting(self) -> None:
        """Give waiting values to idle actors. An error of the function becomes the result of its value."""
        while self._waiting and self._idle:
            fn, value = self._waiting[0]
            try:
                self._start(fn, value)
            except Exception as error:
                self._file(_Work([], [], error))
            self._waiting.popleft()

    def _file(self, work: _Work[A]) -> None:
        self._running[self._started] = work
        self._started += 1

    def _take_out(self, number: int, *, alive: bool = True, done: bool = False) -> None:
        """Nobody waits for this work any longer: its actor is used for other work, unless it is dead."""
        work = self._running.pop(number)
        self._next = max(self._next, number + 1)
        if alive:
            # One that may be busy yet comes last, behind all that are idle for certain.
            self._idle = self._idle + work.actors if done else work.actors + self._idle
        self._start_waiting()

    def _check_next(self, name: str) -> None:
        if not self._running:
            mend = f"push() an actor for the {len(self._waiting)} values that wait" if self._waiting else "submit() first"
            raise StopIteration(f"{name}(): the pool has no more results: {mend}")

    def _first_ready(self, timeout: float | None) -> int | None:
        """The oldest work that is ready, None if none is in time. Work of several references is waited for one by one."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            heads: dict[Any, _Work[A]] = {}
            for number, work in self._running.items():
                if not work.unseen:
                    return number
                heads.setdefault(work.unseen[0], work)
            found, _ = ray.wait(list(heads), num_returns=1, timeout=timeout)
            if not found:
                return None
            heads[found[0]].unseen.pop(0)
            if end is not None:
                timeout = max(0.0, end - time.monotonic())

    def _late(self, number: int, timeout: float | None, give_up: bool) -> TimeoutError:
        work = self._running[number]
        if not give_up:
            return TimeoutError(f"{work.future} was not ready within {timeout} s: call again to go on waiting")
        self._take_out(number)
        return TimeoutError(f"{work.future} was not ready within {timeout} s and was given up; its actor stays in the pool")

    def _result(self, number: int) -> Any:
        work = self._running[number]
        try:
            if work.error is not None:
                raise work.error
            value = ray.get(work.future)
        except Exception as error:
            # A task that met the death of another actor raises a RayTaskError that is an ActorDiedError too: its own lives.
            dead = isinstance(error, (ActorDiedError, ActorUnschedulableError)) and not isinstance(error, RayTaskError)
            self._take_out(number, alive=not dead, done=True)
            raise
        self._take_out(number, done=True)  # not if Ctrl-C ended the wait: the result can still be taken
        return value


def _check_function(name: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"{name}() needs a function of an actor and a value, not {fn!r}")


def _checked(future: Any) -> Any:
    refs = future if isinstance(future, list) and future else [future]
    if not all(isinstance(ref, ray.ObjectRef) for ref in refs):
        raise TypeError(
            f"the function given to a pool must return an ObjectRef or a list of them, as actor.method.remote(value) does, not "
            f"{future!r}"
        )
    return future
