"""Queue: a first-in, first-out queue that tasks, actors and drivers share.

The queue is an actor with an event loop. A call that must wait, a ``get`` of nothing or a ``put`` without room, waits there;
items are handed straight to the calls that wait, in the order in which they came. Since all of the actor's code runs in one
thread and awaits nothing else, every item is taken exactly once.

A caller may stop waiting before the answer is there: Ctrl-C, or ``asyncio.wait_for(queue.get_async(), 5)``. Its call would
remain in the actor and take an item that nobody sees. So every call that may wait carries a name, by which the caller gives it
up; an item that was on its way already is sent back, to the head of the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError

T = TypeVar("T")
_SHUT_DOWN = "the queue was ended by shutdown(): make a new Queue"


class Empty(queue.Empty):
    """There is no item, or none came in time."""


class Full(queue.Full):
    """There is no room, or none came in time."""


class Queue(Generic[T]):
    """A queue for tasks, actors and drivers. It can be passed to tasks and actors; they all see the same queue.

    It ends with ``shutdown()``, or when nobody has it any more. Calls of a queue that ended raise ActorDiedError, those that
    wait at that moment too. It serves up to 1000 calls at a time, and those that wait count: where more shall wait, say
    so with ``actor_options={"max_concurrency": ...}``.

    Args:
        maxsize: how many items it can hold; 0 or less is without limit.
        actor_options: options for the actor that holds the items, such as ``{"num_cpus": 1}``.

    Example:
        >>> from zray.util.queue import Queue
        >>> queue = Queue(maxsize=100)  # doctest: +SKIP
        >>> queue.put("a")  # doctest: +SKIP
        >>> queue.get(timeout=10)  # doctest: +SKIP
        'a'
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be a number of items, or 0 for no limit, not {maxsize!r}")
        self.maxsize = maxsize
        self.actor: Any = ray.remote(_QueueActor).options(**(actor_options or {})).remote(maxsize)

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        """How many items there are."""
        return int(ray.get(self._living().qsize.remote()))

    def qsize(self) -> int:
        """How many items there are."""
        return self.size()

    def empty(self) -> bool:
        """Whether there are no items."""
        return bool(ray.get(self._living().empty.remote()))

    def full(self) -> bool:
        """Whether there is no room."""
        return bool(ray.get(self._living().full.remote()))

    # -- one item -----------------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end.

        Args:
            item: anything that pickles. Of an ObjectRef the queue gets the value; put a list with it to pass the reference.
            block: wait for room if there is none.
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            Full: there is no room, or none came in time.
            ValueError: the timeout is negative.
            ActorDiedError: the queue was shut down.

        Example:
            >>> queue.put("a", timeout=10)  # doctest: +SKIP
        """
        with self._put(item, block, timeout) as done:
            ray.get(done)

    async def put_async(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """As ``put``, for asyncio. If it is cancelled while it waits for room, the item is not added.

        Args:
            item, block, timeout: as of ``put``.

        Raises:
            Full, ValueError, ActorDiedError: as ``put``.
        """
        with self._put(item, block, timeout) as done:
            await done

    def put_nowait(self, item: T) -> None:
        """As ``put`` with ``block=False``.

        Args:
            item: as of ``put``.

        Raises:
            Full, ActorDiedError: as ``put``.
        """
        self.put(item, block=False)

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the item that is in the queue for the longest time.

        Args:
            block: wait for an item if there is none.
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            The item.

        Raises:
            Empty: there is no item, or none came in time.
            ValueError: the timeout is negative.
            ActorDiedError: the queue was shut down.

        Example:
            >>> queue.get(timeout=10)  # doctest: +SKIP
            'a'
        """
        with self._get(block, timeout) as found:
            return ray.get(found)  # type: ignore[no-any-return]

    async def get_async(self, block: bool = True, timeout: float | None = None) -> T:
        """As ``get``, for asyncio. If it is cancelled, no item is lost.

        Args:
            block, timeout: as of ``get``.

        Returns:
            The item.

        Raises:
            Empty, ValueError, ActorDiedError: as ``get``.
        """
        with self._get(block, timeout) as found:
            return await found  # type: ignore[no-any-return]

    def get_nowait(self) -> T:
        """As ``get`` with ``block=False``.

        Returns:
            The item.

        Raises:
            Empty, ActorDiedError: as ``get``.
        """
        return self.get(block=False)

    # -- many items ---------------------------------------------------------------------------------------------------

    def put_nowait_batch(self, items: Iterable[T]) -> None:
        """Add all items in order, or none of them.

        Args:
            items: any number of items; each is as of ``put``, but references among them stay references.

        Raises:
            Full: there is not room for all.
            TypeError: ``items`` can not be iterated over.
            ActorDiedError: the queue was shut down.

        Example:
            >>> queue.put_nowait_batch(["a", "b"])  # doctest: +SKIP
        """
        if not isinstance(items, Iterable):
            raise TypeError(f"put_nowait_batch() takes a list of items, not {items!r}")
        actor = self._living()
        with _waiting_for(actor, actor.put_nowait_batch.remote(list(items))) as done:
            ray.get(done)

    def get_nowait_batch(self, num_items: int) -> list[T]:
        """Take so many items, or none of them.

        Args:
            num_items: how many.

        Returns:
            The items, in the order in which they were added.

        Raises:
            Empty: there are not so many.
            TypeError, ValueError: ``num_items`` is no number of items.
            ActorDiedError: the queue was shut down.

        Example:
            >>> queue.get_nowait_batch(2)  # doctest: +SKIP
            ['a', 'b']
        """
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be a number of items, not {num_items!r}")
        if num_items < 0:
            raise ValueError(f"num_items must not be negative: {num_items}")
        actor = self._living()
        with _waiting_for(actor, actor.get_nowait_batch.remote(num_items), takes="batch") as found:
            return list(ray.get(found))

    # -- the end ------------------------------------------------------------------------------------------------------

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue; items in it are lost, and calls that wait raise ActorDiedError. Doing it twice does no harm.

        Args:
            force: kill the actor at once, whatever it is doing.
            grace_period_s: if not ``force``: how many seconds the actor has to end by itself, before it is killed.

        Raises:
            ValueError: the grace period is negative.
        """
        _check_seconds("grace_period_s", grace_period_s)
        actor = self.actor
        if actor is None:
            return
        if force or not _end(actor, grace_period_s):
            ray.kill(actor, no_restart=True)
        self.actor = None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _living(self) -> Any:
        if self.actor is None:
            raise ActorDiedError(_SHUT_DOWN)
        return self.actor

    def _put(self, item: T, block: bool, timeout: float | None) -> contextlib.AbstractContextManager[Any]:
        actor = self._living()
        if not block:
            return _waiting_for(actor, actor.put_nowait.remote(item))
        _check_seconds("timeout", timeout)
        name = uuid.uuid4().hex
        return _waiting_for(actor, actor.put.remote(item, timeout, name), name)

    def _get(self, block: bool, timeout: float | None) -> contextlib.AbstractContextManager[Any]:
        actor = self._living()
        if not block:
            return _waiting_for(actor, actor.get_nowait.remote(), takes="item")
        _check_seconds("timeout", timeout)
        name = uuid.uuid4().hex
        return _waiting_for(actor, actor.get.remote(timeout, name), name, takes="item")


@contextlib.contextmanager
def _waiting_for(actor: Any, answer: Any, name: str = "", takes: str = "") -> Iterator[Any]:
    """Within this context one waits for the answer to a call, and may stop waiting.

    Args:
        actor: the queue's.
        answer: the ObjectRef.
        name: of the call, if it is one that may wait in the actor.
        takes: what it takes out of the queue: an "item", a "batch" of them, or nothing.
    """
    try:
        yield answer
    except RayTaskError as error:
        if isinstance(error.cause, _ShutDown):
            raise ActorDiedError(_SHUT_DOWN) from None
        if isinstance(error.cause, (Empty, Full)):
            raise error.cause from None  # where it was raised in the actor tells nobody anything
        raise
    except Exception:
        raise
    except BaseException:  # Ctrl-C, or the cancelling of a coroutine: nobody will see the answer
        if ray.is_initialized():
            if name:
                actor.give_up.remote(name)
            if takes:
                actor.take_back.remote(answer, takes == "batch")
        raise


def _end(actor: Any, grace_period_s: float) -> bool:
    """Have those who wait told, and then the actor end by itself; whether it did both in time."""
    deadline = time.monotonic() + grace_period_s
    told, _ = ray.wait([actor.close.remote()], timeout=grace_period_s)
    ended = [actor.__ray_terminate__.remote()] if told else []
    return bool(ended and ray.wait(ended, timeout=max(0.0, deadline - time.monotonic()))[0])


def _check_seconds(what: str, seconds: float | None) -> None:
    if seconds is None:
        return
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{what} must be a number of seconds, not {seconds!r}")
    if not seconds >= 0:  # NaN too
        raise ValueError(f"{what} must not be negative: {seconds!r}")


class _ShutDown(ActorDiedError):
    """The queue ends while the call waits in it."""


class _GivenUp:
    """What a call returns that was given up before it had an item: nothing."""


class _QueueActor:
    """The items, and the calls that wait.

    Either items are there or calls wait for some; calls wait for room only while there is none.
    """

    def __init__(self, maxsize: int) -> None:
        self._maxsize = maxsize
        self._closed = False
        self._items: deque[Any] = deque()
        self._getters: OrderedDict[str, asyncio.Future[Any]] = OrderedDict()  # by the name of the call, oldest first
        self._putters: OrderedDict[str, tuple[asyncio.Future[None], Any]] = OrderedDict()

    # -- what callers call: methods without waits see the queue as it is, since the actor has one thread ----------------

    async def qsize(self) -> int:
        return len(self._items)

    async def empty(self) -> bool:
        return not self._items

    async def full(self) -> bool:
        return not self._has_room(1)

    async def blocked(self) -> tuple[int, int]:
        """How many calls wait: for items, for room."""
        return len(self._getters), len(self._putters)

    async def put(self, item: Any, timeout: float | None = None, name: str = "") -> None:
        self._check_open()
        if self._has_room(1):
            self._add(item)
            return
        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        name = name or uuid.uuid4().hex
        self._putters[name] = (admitted, item)
        try:
            await asyncio.wait([admitted], timeout=timeout)
        finally:
            self._putters.pop(name, None)
        if not admitted.done():
            raise Full(f"no room came in {timeout} s: the queue is full (maxsize={self._maxsize})")
        admitted.result()

    async def put_nowait(self, item: Any) -> None:
        self._check_open()
        if not self._has_room(1):
            raise Full(f"the queue is full (maxsize={self._maxsize})")
        self._add(item)

    async def put_nowait_batch(self, items: list[Any]) -> None:
        self._check_open()
        if not self._has_room(len(items)):
            raise Full(f"{len(items)} items do not fit: the queue holds {len(self._items)} of {self._maxsize} now")
        for item in items:
            self._add(item)

    async def get(self, timeout: float | None = None, name: str = "") -> Any:
        self._check_open()
        if self._items:
            return self._take()
        handed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        name = name or uuid.uuid4().hex
        self._getters[name] = handed
        try:
            # wait() leaves the future alone when time is up or the call is cancelled: an item it was given is not lost.
            await asyncio.wait([handed], timeout=timeout)
        except asyncio.CancelledError:
            if handed.done() and handed.exception() is None:
                await self.take_back(handed.result())
            raise
        finally:
            self._getters.pop(name, None)
        if not handed.done():
            raise Empty(f"no item came in {timeout} s: the queue is empty")
        return handed.result()

    async def get_nowait(self) -> Any:
        self._check_open()
        if not self._items:
            raise Empty("the queue is empty")
        return self._take()

    async def get_nowait_batch(self, num_items: int) -> list[Any]:
        self._check_open()
        if num_items > len(self._items):
            raise Empty(f"there are not {num_items} items: the queue holds {len(self._items)} now")
        return [self._take() for _ in range(num_items)]

    async def give_up(self, name: str) -> None:
        """A caller does not wait any longer: its call ends, if it has not, and does nothing."""
        if name in self._putters:
            self._putters.pop(name)[0].set_result(None)
        elif name in self._getters:
            self._getters.pop(name).set_result(_GivenUp())

    async def take_back(self, answer: Any, batch: bool = False) -> None:
        """What a call took that nobody waited for: it comes first again, even if there is no room."""
        for item in reversed(answer) if batch else [answer]:
            if not isinstance(item, _GivenUp) and not self._hand_over(item):
                self._items.appendleft(item)

    async def close(self) -> None:
        """Answer all calls that wait, and those that come yet, with the end."""
        self._closed = True
        while self._getters:
            self._getters.popitem()[1].set_exception(_ShutDown(_SHUT_DOWN))
        while self._putters:
            self._putters.popitem()[1][0].set_exception(_ShutDown(_SHUT_DOWN))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise _ShutDown(_SHUT_DOWN)

    def _has_room(self, count: int) -> bool:
        return self._maxsize <= 0 or len(self._items) + count <= self._maxsize

    def _add(self, item: Any) -> None:
        if not self._hand_over(item):
            self._items.append(item)

    def _hand_over(self, item: Any) -> bool:
        """Give an item to the call that waits for the longest time, if any does."""
        if not self._getters:
            return False
        self._getters.popitem(last=False)[1].set_result(item)
        return True

    def _take(self) -> Any:
        item = self._items.popleft()
        while self._putters and self._has_room(1):
            admitted, waiting = self._putters.popitem(last=False)[1]
            self._items.append(waiting)
            admitted.set_result(None)
        return item
