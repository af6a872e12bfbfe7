"""Results as they come: ``as_completed`` of references that exist, ``map_unordered`` of tasks that are made on the way.

A call of ``ray.wait`` costs time in proportion to the list it is given. So only the front of a long list is waited for; tasks
that were submitted one after the other are done in about that order. Where nothing at the front is ready for a while, the whole
list is looked at once, and what comes after the one that was found becomes the front.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import zray as ray
from zray.actor import ActorClass
from zray.exceptions import GetTimeoutError

if TYPE_CHECKING:
    from zray.actor import ActorMethod
    from zray.object_ref import ObjectRef
    from zray.remote_function import RemoteFunction

T = TypeVar("T")
_FRONT = 128
_STUCK_S = 0.05


@overload
def as_completed(
    refs: Iterable[ObjectRef[T]], *, timeout: float | None = None, chunk_size: int = 1, yield_obj_refs: Literal[False] = False
) -> Iterator[T]: ...
@overload
def as_completed(
    refs: Iterable[ObjectRef[T]], *, timeout: float | None = None, chunk_size: int = 1, yield_obj_refs: Literal[True]
) -> Iterator[ObjectRef[T]]: ...
def as_completed(
    refs: Iterable[ObjectRef[Any]], *, timeout: float | None = None, chunk_size: int = 1, yield_obj_refs: bool = False
) -> Iterator[Any]:
    """The values of references, in the order in which they are ready; of those that are ready at once, in the order given.

    Args:
        refs: the references. One that is there twice gives its value once.
        timeout: seconds for all of them together, from the first ``next`` on.
        chunk_size: wait until so many are ready, or all that are left.
        yield_obj_refs: give the references themselves, each of them ready.

    Returns:
        An iterator. A task that raised raises here; the next ``next`` gives the result after it.

    Raises:
        GetTimeoutError: by the iterator, which is a TimeoutError too: not all were ready in time.
        TypeError, ValueError: an argument has a bad value.

    Example:
        >>> from zray.util import as_completed
        >>> for value in as_completed([f.remote(i) for i in range(100)]):  # doctest: +SKIP
        ...     print(value)
    """
    waiting = list(dict.fromkeys(refs))
    for index, ref in enumerate(waiting):
        if not isinstance(ref, ray.ObjectRef):
            raise TypeError(f"as_completed() takes ObjectRefs: item {index} is a {type(ref).__name__}: {ref!r}")
    _check_size("chunk_size", chunk_size)
    ready = _ready(waiting, timeout, chunk_size)
    return ready if yield_obj_refs else map(ray.get, ready)


@overload
def map_unordered(
    fn: RemoteFunction[..., T] | Callable[..., T],
    items: Iterable[Any],
    max_in_flight: int | None = None,
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: Literal[False] = False,
) -> Iterator[T]: ...
@overload
def map_unordered(
    fn: RemoteFunction[..., T] | Callable[..., T],
    items: Iterable[Any],
    max_in_flight: int | None = None,
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: Literal[True],
) -> Iterator[ObjectRef[T]]: ...
@overload
def map_unordered(
    fn: ActorMethod,
    items: Iterable[Any],
    max_in_flight: int | None = None,
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: bool = False,
) -> Iterator[Any]: ...
def map_unordered(
    fn: Any,
    items: Iterable[Any],
    max_in_flight: int | None = None,
    *,
    backpressure_size: int | None = 100,
    chunk_size: int = 1,
    yield_obj_refs: bool = False,
) -> Iterator[Any]:
    """Call a function with each item, as tasks, and give the results in the order in which they are ready.

    Items are read as results are taken, so there may be any number of them. What is under way, or done and not taken, is never
    more than ``max_in_flight``. When the iterator is dropped or closed before its end, what is under way is cancelled.

    Args:
        fn: a remote function, a method of an actor, or a plain function, which is made remote.
        items: one argument for each call. Work begins at the first ``next``.
        max_in_flight: how many calls at a time, 100 unless told otherwise.
        backpressure_size: the same, as Ray calls it; here None reads and submits all items at once.
        chunk_size: wait until so many are ready. Short calls cost less if they are taken in tens.
        yield_obj_refs: give references, each of them ready.

    Returns:
        An iterator. A call that raised raises here; the next ``next`` gives the result after it.

    Raises:
        TypeError, ValueError: an argument has a bad value.

    Example:
        >>> from zray.util import map_unordered
        >>> sum(map_unordered(abs, range(-1000, 1000)))  # doctest: +SKIP
        1000000
    """
    if isinstance(fn, (type, ActorClass)) or not (callable(fn) or hasattr(fn, "remote")):
        raise TypeError(f"map_unordered() takes a remote function or a method of an actor, not {fn!r}")
    _check_size("chunk_size", chunk_size)
    name, most = ("backpressure_size", backpressure_size) if max_in_flight is None else ("max_in_flight", max_in_flight)
    if most is not None:
        _check_size(name, most)
        if most < chunk_size:
            raise ValueError(f"{name} ({most}) must not be less than chunk_size ({chunk_size})")
    remote = fn.remote if hasattr(fn, "remote") else ray.remote(fn).remote
    source = iter(items)
    if most is None:
        ready = _submitted(remote, source, chunk_size)
    else:
        ready = _in_turn(remote, source, most, chunk_size)
    return ready if yield_obj_refs else map(ray.get, ready)


def _submitted(remote: Callable[[Any], Any], items: Iterator[Any], chunk_size: int) -> Iterator[Any]:
    yield from _ready([remote(item) for item in items], None, chunk_size, own=True)


def _in_turn(remote: Callable[[Any], Any], items: Iterator[Any], most: int, chunk_size: int) -> Iterator[Any]:
    running: list[Any] = []
    try:
        running.extend(remote(item) for item in islice(items, most))
        while running:
            ready, running = _wait(running, chunk_size, None)
            while ready:
                # Reversed, so that what was taken is no longer kept here; the next call starts before this result is used.
                running.extend(remote(item) for item in islice(items, 1))
                yield ready.pop()
    finally:
        _cancel(running)


def _ready(refs: list[Any], timeout: float | None, chunk_size: int, *, own: bool = False) -> Iterator[Any]:
    """References as they are ready; if they are its ``own``, they are cancelled when nobody wants the rest."""
    end = None if timeout is None else time.monotonic() + timeout
    front, behind = refs[:_FRONT], deque(refs[_FRONT:])
    try:
        while front:
            left = None if end is None else max(0.0, end - time.monotonic())
            patience = left if not behind else _STUCK_S if left is None else min(left, _STUCK_S)
            ready, front = _wait(front, chunk_size, patience)
            if not ready and behind:
                ready, front, behind = _look_behind([*front, *behind], left)
            if not ready:
                raise GetTimeoutError(
                    f"{len(front) + len(behind)} of the references were not ready within {timeout} s. They are intact: ask again"
                )
            while ready:
                front.extend(behind.popleft() for _ in range(min(len(behind), _FRONT - len(front))))
                yield ready.pop()
    finally:
        if own:
            _cancel([*front, *behind])


def _cancel(refs: list[Any]) -> None:
    """Nobody will ask for the results of these calls."""
    if ray.is_initialized():  # else they are over already, and to cancel them would start a cluster
        for ref in refs:
            ray.cancel(ref)


def _wait(refs: list[Any], least: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    """Wait until so many are ready; all that are, the last first, and the others."""
    ready, rest = ray.wait(refs, num_returns=min(least, len(refs)), timeout=timeout)
    if ready and rest:
        more, rest = ray.wait(rest, num_returns=len(rest), timeout=0)
        ready += more
    ready.reverse()
    return ready, rest


def _look_behind(refs: list[Any], timeout: float | None) -> tuple[list[Any], list[Any], deque[Any]]:
    """Wait for one of all references; those after it become the front."""
    ready, rest = ray.wait(refs, timeout=timeout)
    if ready:
        found = next(index for index, ref in enumerate(refs) if ref is ready[0])
        rest = rest[found:] + rest[:found]
    return ready, rest[:_FRONT], deque(rest[_FRONT:])


def _check_size(name: str, size: Any) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be a number of references, not {size!r}")
    if size < 1:
        raise ValueError(f"{name} must be 1 or more, not {size}")
