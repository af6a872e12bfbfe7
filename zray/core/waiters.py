"""Waiters: who in this process waits for objects.

Theory of operation
-------------------
A *watcher* waits for certain objects and is listed under each of them. A *listener* waits until a number of objects have arrived,
whichever: ``get`` and ``wait`` on many references would pay for each of them if they watched them all, ``wait`` in a loop each
time anew; so they look at their list again when enough has arrived that they may be done. A waiter that is to fail fast is
told of the first error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.base.wire import ERROR, Entry
from zray.core.effects import RESOLVE, Effect
from zray.exceptions import InvariantError


class Waiter:
    """Something local that waits until ``remaining`` more objects are there.

    ``callback`` is for the body: it runs in the loop when the RESOLVE effect is executed.
    """

    __slots__ = ("callback", "done", "fail_fast", "remaining", "signal")

    def __init__(self, remaining: int, callback: Callable[[], None] | None = None) -> None:
        self.remaining = remaining
        self.done = remaining <= 0
        self.callback = callback
        self.fail_fast = False  # an error among the objects ends the waiting
        self.signal: Any = None  # a lock the body releases to wake the thread that waits


class Waiters:
    """All who wait in one process.

    Args:
        out: where effects go.
    """

    __slots__ = ("_abandoned", "_listeners", "_out", "arrivals", "failures", "watchers")

    def __init__(self, out: list[Effect]) -> None:
        self._out = out
        self._abandoned = False
        self._listeners: list[Waiter] = []
        self.watchers: dict[bytes, list[Waiter]] = {}
        self.arrivals = 0  # objects that arrived so far
        self.failures = 0  # ... that are errors

    def watch(self, waiter: Waiter, object_id: bytes) -> bool:
        """``waiter`` waits for an object that is not here; whether it is the first to do so."""
        if self._abandoned:
            self._resolve(waiter)
            return False
        watchers = self.watchers.get(object_id)
        if watchers is None:
            self.watchers[object_id] = [waiter]
            return True
        watchers[:] = [w for w in watchers if not w.done]  # those that gave up, or have enough, go now
        watchers.append(waiter)
        return False

    def listen(self, waiter: Waiter, since: int, failures: int) -> None:
        """Tell ``waiter`` when ``remaining`` objects have arrived after the ``since``-th.

        One that is to fail fast is told of the first error after the ``failures``-th too.
        """
        waiter.remaining -= self.arrivals - since
        if waiter.remaining <= 0 or (waiter.fail_fast and self.failures != failures) or self._abandoned:
            self._resolve(waiter)
        else:
            self._listeners = [w for w in self._listeners if not w.done]  # those that gave up go now
            self._listeners.append(waiter)

    def arrived(self, object_id: bytes, entry: Entry) -> None:
        """An object is here: wake those who have waited for it."""
        self.arrivals += 1
        if entry[0] == ERROR:
            self.failures += 1
        if self._listeners:
            for waiter in self._listeners:
                self.count_down(waiter, entry)
            self._listeners = [w for w in self._listeners if not w.done]
        watchers = self.watchers.pop(object_id, None)
        if watchers is not None:
            for waiter in watchers:
                self.count_down(waiter, entry)

    def count_down(self, waiter: Waiter, entry: Entry) -> None:
        """One of the objects that a waiter waits for is here."""
        waiter.remaining -= 1
        if waiter.remaining <= 0 or (waiter.fail_fast and entry[0] == ERROR):
            self._resolve(waiter)

    def dismiss(self, object_id: bytes) -> None:
        """Nobody holds a reference any more to wait with."""
        self.watchers.pop(object_id, None)

    def abandon(self) -> None:
        """Nothing will arrive any more, so nobody shall wait, now or later."""
        self._abandoned = True
        for waiters in [*self.watchers.values(), self._listeners]:
            for waiter in waiters:
                self._resolve(waiter)
        self.watchers.clear()

    def _resolve(self, waiter: Waiter) -> None:
        if not waiter.done:
            waiter.done = True
            self._out.append((RESOLVE, waiter))

    def check(self, memory: dict[bytes, Entry]) -> None:
        """Assert the invariants, given the objects that are here."""
        for object_id in self.watchers:
            if object_id in memory:
                raise InvariantError(f"somebody waits for {object_id.hex()}, which is here")
