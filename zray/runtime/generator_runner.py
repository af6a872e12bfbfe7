"""GeneratorRunner: runs the generator of one task or call, and sends its items as they are made.

Items gather until the loop is turned. The thread that makes them does that itself every ``flush_ms``, so that many items of
a fast generator travel in one message, and each one of a slow generator travels at once. Those that were made in between, when
that thread is busy again, are taken by the loop thread.

Before the next item is made, there must be room for it: the owner says how many items were taken. While there is none the thread
waits as in ``get``, and a coroutine lets others run.
"""

from __future__ import annotations

import inspect
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zray.base import serialization
from zray.base.ids import return_id
from zray.base.wire import Entry
from zray.base.wire_generators import ITEMS
from zray.core.entries import size_of
from zray.core.waiters import Waiter
from zray.object_ref import DynamicObjectRefGenerator
from zray.runtime.client import resolve
from zray.runtime.futures import awaited_waiter

if TYPE_CHECKING:
    from zray.runtime.executor import Executor


class GeneratorRunner:
    """One attempt to run a generator.

    Args:
        body: the executor.
        peer: the owner of the items.
        spec: the task or call.
    """

    def __init__(self, body: Executor, peer: bytes, spec: Any) -> None:
        self._body = body
        self.peer = peer
        self._name = spec[6]
        self._extra = spec[7]
        self._task_id: bytes = spec[0]
        self._attempt, self._skip, again, self.taken, self._items_max, self._bytes_max, self._owner = spec[7]["stream"]
        self._again = frozenset(again)
        self.stopped = False
        self._cancelled = False
        self._made = 0
        self._items: deque[Entry] = deque()  # made and not sent
        self._sent = self._skip
        self._posted = False
        self._queued = 0  # items that went into the inbox: what is inside them must be known to the brain first
        self._unqueued = 0  # ... and that were taken out of it; those that follow may not overtake them
        self._announced = False  # the owner knows which worker has this attempt
        self._sizes: deque[int] = deque()  # of what was made and not taken
        self._size_bytes = 0
        self._counted = self._skip  # items before this one are not in ``sizes`` any more
        self._waiter: Waiter | None = None
        self._flush_s = body.config.flush_ms / 1000
        self._flush_at = 0.0

    # -- running --------------------------------------------------------------------------------------------------

    def run(self, result: Any) -> Any:
        """Make all items, in this thread; the result of the task."""
        self._check(result)
        self._body.runners[self._task_id] = self
        try:
            for value in result:
                self._take(value)
                del value  # it may be large, and the next one far away
                if self._items_max:
                    while not self.stopped and not self._has_room():
                        self._wait()
                if self.stopped:
                    self._look()
                    break
                now = time.monotonic()
                if now >= self._flush_at:
                    self._flush_at = now + self._flush_s
                    self._body.loop.turn_if_free()
        except Exception as error:
            if not self._is_last_item(error):
                raise
        finally:
            self._body.runners.pop(self._task_id, None)
            if hasattr(result, "close"):
                result.close()
        return self._refs()

    async def run_async(self, result: Any) -> Any:
        """Make all items, in the event loop; the result of the call."""
        import asyncio

        if inspect.isawaitable(result):
            result = await result
        if not hasattr(result, "__aiter__"):
            self._check(result)
            result = _as_async(result)
        self._body.runners[self._task_id] = self
        try:
            async for value in result:
                self._take(value)
                del value
                if self._items_max:
                    while not self.stopped and not self._has_room():
                        await self._room()
                if self.stopped:
                    self._look()
                    break
                now = time.monotonic()
                if now >= self._flush_at:
                    self._flush_at = now + self._flush_s
                    await asyncio.sleep(0)  # others want to run too
        except Exception as error:
            if not self._is_last_item(error):
                raise
        finally:
            self._body.runners.pop(self._task_id, None)
            if hasattr(result, "aclose"):
                await result.aclose()
        return self._refs()

    def _look(self) -> None:
        if self._cancelled:
            raise KeyboardInterrupt

    def _check(self, result: Any) -> None:
        if not hasattr(result, "__next__"):
            raise TypeError(f"{self._name}() is to be streamed and returned a {type(result).__name__}: it must be an iterator")

    def _take(self, value: Any) -> None:
        """An item was made."""
        index = self._made
        self._made = index + 1
        if index < self._skip and index not in self._again:
            return
        body = self._body
        body.end_if_forked()
        entry = body.entry(return_id(self._task_id, index + 1), serialization.serialize(value), self.peer)
        self._add(index, entry)

    def _add(self, index: int, entry: Entry) -> None:
        if index < self._skip:
            self._body.loop.post((self._send_again, index, entry))
            return
        if self._items_max:
            content = entry[1]
            size = len(content) if type(content) is bytes else size_of(entry)
            self._sizes.append(size)
            self._size_bytes += size
        if (len(entry) > 2 and entry[-1]) or self._queued != self._unqueued:
            self._queued += 1
            self._body.loop.post((self._send_in_order, entry))
            return
        self._items.append(entry)
        if not self._posted:
            self._posted = True
            self._body.loop.post((self._send,))

    def _is_last_item(self, error: Exception) -> bool:
        """Whether an exception is the last item: of a dynamic generator, whose result refers to it; others have it as result."""
        if self._owner is None:
            return False
        entry = self._body.error_entry(error, self._name, self._extra, self._task_id)
        if len(entry) > 2:  # it is to be tried again
            return False
        self._add(self._made, entry)
        self._made += 1
        return True

    def _refs(self) -> Any:
        """The result of a dynamic generator; of others there is none."""
        if self._owner is None:
            return None
        adopt, owner = self._body.adopt, self._owner
        return DynamicObjectRefGenerator([adopt(return_id(self._task_id, n + 1), owner) for n in range(self._made)])

    # -- room -----------------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        taken = self.taken
        sizes = self._sizes
        while self._counted < taken and sizes:
            self._counted += 1
            self._size_bytes -= sizes.popleft()
        waiting = self._made - taken
        enough: bool = waiting <= 0 or (waiting < self._items_max and self._size_bytes < self._bytes_max)
        return enough

    def _wait(self) -> None:
        waiter = Waiter(1)
        self._body.loop.post((self._await, waiter, self.taken))
        self._body.block(waiter)

    async def _room(self) -> None:
        waiter, came = awaited_waiter()
        self._body.loop.post((self._await, waiter, self.taken))
        await came

    # -- in the loop ----------------------------------------------------------------------------------------------

    def on_taken(self, taken: int) -> None:
        """The owner says how many items were taken."""
        self.taken = max(taken, self.taken)
        self._wake()

    def cancel(self) -> None:
        """It is cancelled where it can not be interrupted: at its next item."""
        self._cancelled = True
        self.stop()

    def stop(self) -> None:
        """Nobody is there for the other items."""
        self.stopped = True
        self._wake()

    def _await(self, waiter: Waiter, taken: int) -> None:
        """Resolve ``waiter`` when more were taken; the owner must know who waits for that."""
        if not self._announced:
            self._send()
            if not self._announced:
                self._send_from(self._sent, [])
        self._waiter = waiter
        if self.stopped or self.taken != taken:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.done = True
            resolve(waiter)

    def _send(self) -> None:
        self._posted = False  # first: what is added from here on is posted again, or sent now
        items, entries = self._items, []
        while items:
            entries.append(items.popleft())
        if entries:
            first = self._sent
            self._sent += len(entries)
            self._send_from(first, entries)

    def _send_in_order(self, entry: Entry) -> None:
        self._body.give(self.peer, entry)
        self._items.append(entry)
        self._send()
        self._unqueued += 1  # last: from here on items need not go into the inbox

    def _send_again(self, index: int, entry: Entry) -> None:
        self._body.give(self.peer, entry)
        self._send_from(index, [entry])

    def _send_from(self, first: int, entries: list[Entry]) -> None:
        self._announced = True
        self._body.send_items(self.peer, (ITEMS, self._task_id, self._attempt, first, entries))


async def _as_async(items: Iterator[Any]) -> Any:
    """An ordinary generator of an asynchronous actor."""
    try:
        for item in items:
            yield item
    finally:
        if hasattr(items, "close"):
            items.close()
