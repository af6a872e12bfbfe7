"""ObjectRefGenerator: the references to the items of a generator that runs elsewhere, as they are made."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from zray.base.config import Config
from zray.base.ids import END_INDEX, return_id
from zray.core.generators import STREAMING, Stream
from zray.core.tasks import Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.object_ref import ObjectRef

if TYPE_CHECKING:
    from zray.base.wire import Address
    from zray.runtime.core_worker import CoreWorker

T = TypeVar("T")
_ANY_SIZE = 1 << 60


class ObjectRefGenerator(Generic[T]):
    """What a call of a generator returns: iterate over it, with ``for`` or ``async for``, to get references to its items.

    Made by ``.remote()``. An item's reference is there as soon as the item is; an exception that the generator raises is the
    value of the last one. The generator pauses while many items wait to be taken, and is stopped when nobody refers to this
    object, nor to ``completed()``.

    Example:
        >>> import zray as ray
        >>> @ray.remote
        ... def squares(n):
        ...     for x in range(n):
        ...         yield x * x
        >>> [ray.get(ref) for ref in squares.remote(3)]  # doctest: +SKIP
        [0, 1, 4]
    """

    __slots__ = ("__weakref__", "_completion", "_lock", "_stream", "_taken", "_worker")

    def __init__(self, worker: CoreWorker, stream: Stream, completion: ObjectRef[None]) -> None:
        self._worker = worker
        self._stream = stream
        self._completion = completion
        self._taken = 0
        self._lock = threading.Lock()  # several threads may share it

    def __iter__(self) -> ObjectRefGenerator[T]:
        return self

    def __next__(self) -> ObjectRef[T]:
        """The reference to the next item; waits until it is there.

        Raises:
            StopIteration: there are no more items.
        """
        while True:
            ref = self._take()
            if ref is not None:
                return ref
            if self.is_finished():
                raise StopIteration
            waiter = Waiter(1)
            self._worker.loop.post((self._worker.owner.await_item, waiter, self._stream, self._taken))
            self._worker.block(waiter)

    def __aiter__(self) -> ObjectRefGenerator[T]:
        return self

    async def __anext__(self) -> ObjectRef[T]:
        while True:
            ref = self._take()
            if ref is not None:
                return ref
            if self.is_finished():
                raise StopAsyncIteration
            await self._item_came()

    def completed(self) -> ObjectRef[None]:
        """A reference that is there when the generator is over: its value is None, or an error if it failed or was cancelled.

        An exception that the generator itself raised is the value of its last item only. Who waits for this reference wants all
        items to be made: the generator does not pause any more.
        """
        return self._completion

    def next_ready(self) -> bool:
        """Whether ``next()`` would return a reference at once."""
        if self._taken < self._stream.received:
            return True
        self.report()
        return False

    def is_finished(self) -> bool:
        """Whether the generator is over and all of its items were taken."""
        return self._stream.ended and self._taken >= self._stream.received

    def send(self, value: Any) -> NoReturn:
        """Not supported: the generator runs elsewhere."""
        raise NotImplementedError("send() is not supported: the generator runs elsewhere, and ahead of who reads it")

    def throw(self, value: Any) -> NoReturn:
        """Not supported: the generator runs elsewhere."""
        raise NotImplementedError("throw() is not supported: the generator runs elsewhere, and ahead of who reads it")

    def close(self) -> NoReturn:
        """Not supported: drop the last reference to this object instead."""
        raise NotImplementedError("close() is not supported: drop the last reference to the generator, and it is stopped")

    async def asend(self, value: Any) -> NoReturn:
        """Not supported, as ``send()``."""
        self.send(value)

    async def athrow(self, value: Any) -> NoReturn:
        """Not supported, as ``throw()``."""
        self.throw(value)

    async def aclose(self) -> NoReturn:
        """Not supported, as ``close()``."""
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an ObjectRefGenerator can not be passed to a task, returned or put: it belongs to the process that called the "
            "generator. Pass the references it gives, or call the generator where its items are needed"
        )

    def __del__(self) -> None:
        # Runs at any moment, in any thread, even inside the loop: it may do nothing but append to the inbox.
        del self._completion  # before the word that nobody reads: whether somebody else holds it says what to do then
        self._worker.loop.post((self._worker.owner.drop_stream, self._stream, self._taken))

    def __repr__(self) -> str:
        return f"ObjectRefGenerator({self._stream.task_id.hex()})"

    # -- for wait(), where it stands for its next item --------------------------------------------------------------

    @property
    def _id(self) -> bytes:
        over = self.is_finished()
        return self._completion._id if over else return_id(self._stream.task_id, self._taken + 1)

    @property
    def _release(self) -> Any:
        return self._worker.release

    @property
    def owner(self) -> Address:
        """The process that owns the items: this one."""
        return self._worker.address

    def binary(self) -> bytes:
        """The id of the next item as 20 bytes; at the end that of ``completed()``."""
        return self._id

    def hex(self) -> str:
        """The same as hexadecimal text."""
        return self._id.hex()

    def report(self) -> None:
        """Have the worker told how many items were taken."""
        self._worker.loop.post((self._worker.owner.report_taken, self._stream, self._taken))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _take(self) -> ObjectRef[T] | None:
        """The next reference, if it is there."""
        stream, worker = self._stream, self._worker
        with self._lock:
            number = self._taken + 1
            if number > stream.received:
                return None
            self._taken = number
        ref: ObjectRef[T] = ObjectRef(stream.task_id + number.to_bytes(4, "big"), worker.address, worker.release)
        if number >= stream.report_at:
            stream.report_at = number + stream.step
            worker.loop.post((worker.owner.report_taken, stream, number))
        return ref

    async def _item_came(self) -> None:
        """Wait for the next item, or the end."""
        from zray.runtime.futures import awaited_waiter  # only who awaits has to do with asyncio

        worker = self._worker
        if worker.broken is not None:
            raise worker.broken
        waiter, came = awaited_waiter()
        worker.loop.post((worker.owner.await_item, waiter, self._stream, self._taken))
        await came
        if worker.broken is not None:
            raise worker.broken


def returns_of(chosen: Mapping[str, Any], *, generates: bool) -> int:
    """How many results a call has: a number, or STREAMING."""
    returns = chosen.get("num_returns")
    if returns is None:
        return STREAMING if generates else 1
    return returns if isinstance(returns, int) else STREAMING


def window_of(chosen: Mapping[str, Any], config: Config) -> tuple[int, int, bool]:
    """How many items of a generator may wait, and bytes of them, 0 for any number; and whether it is dynamic."""
    if chosen.get("num_returns") == "dynamic":
        return 0, _ANY_SIZE, True
    if "_generator_backpressure_num_objects" not in chosen:
        return config.generator_items_max, config.generator_bytes_max, False
    items = chosen["_generator_backpressure_num_objects"]
    return 0 if items is None or items < 0 else items, _ANY_SIZE, False


def call_generator(worker: CoreWorker, task_id: bytes, template: TaskTemplate, *rest: Any) -> Any:
    """Submit the task of a generator.

    Args:
        rest: payload, slots, nested references and depth, as of any task.

    Returns:
        An ObjectRefGenerator; a reference if the generator is dynamic.
    """
    payload, slots, nested, depth = rest
    items_max, bytes_max, dynamic = template.window
    completion = worker.new_ref(task_id + END_INDEX)
    stream = Stream(task_id, items_max, bytes_max, dynamic=dynamic)
    task = Task(task_id, template, payload, slots, nested, (completion.binary(),), depth)
    worker.loop.post((worker.owner.open_stream, time.monotonic(), stream, task))
    worker.loop.maybe_turn()
    return completion if dynamic else ObjectRefGenerator(worker, stream, completion)
