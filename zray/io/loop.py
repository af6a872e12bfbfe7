"""Loop: one process's sockets, timers and inbox, driven by whichever thread has nothing better to do.

Theory of operation
-------------------
The loop is an object with ``turn()``: sleep until something happens, read sockets, take the inbox, fire timers,
``settle``. Exactly one thread at a time turns it: the one that holds the *baton*. So sockets and brain need no locks.

Handing work from thread to thread costs tens of microseconds, more than a whole task. Therefore a thread that would
only wait (``get``; a worker between tasks) takes the baton and turns the loop itself, and the loop thread steps back
for ``lazy_s``: a program that calls ``get`` again and again never pays a hand-over, and a program that goes away to
compute gets a live loop within that time. While a thread submits many tasks the loop is turned in between, by the same
thread (``maybe_turn``). Threads that wait while another one drives are *followers*: they sleep on a lock of their own
until what they wait for is there, or until the driver leaves and one of them takes over.

Other threads (and ``__del__``, which may run at any moment) only append to ``inbox``, and write the wake-up descriptor
when the driver sleeps. An interrupt (Ctrl-C) that reaches the driving thread is held back until the turn is complete: a
brain is never left half-way. One that reaches the main thread in any other of zray's own lines is held back too: until it waits
for something, or is back in the code of the user, where the next turn *nudges* it, by a signal of its own.
"""

from __future__ import annotations

import heapq
import os
import select
import signal
import threading
import time
import types
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

_SPIN_S = 0.0001  # how long a thread looks for an answer before it sleeps, after one that came quickly
_QUICK_S = 0.001
_SKIPS_MAX = 8  # turns in a row that do not look at the descriptors because there is other work
_SEVERAL_CPUS = (os.cpu_count() or 1) > 1  # on one, looking would only keep the answer from being made
NUDGE = signal.SIGRTMIN + 6 if hasattr(signal, "SIGRTMIN") else signal.SIGUSR2  # "look whether you are to be interrupted"
_OURS = tuple(
    f"zray.{name}" for name in ("io.", "runtime.", "core.", "base.", "api", "actor", "arguments", "remote_function", "object_ref")
)
_SUBMIT_BATCH = 64  # submissions between turns that the submitting thread makes itself


class Waitable(Protocol):
    """What a thread can wait for."""

    @property
    def done(self) -> bool: ...

    signal: Any


class Source(Protocol):
    """Something with a descriptor to read."""

    def fileno(self) -> int: ...

    def on_readable(self) -> None: ...


class Loop:
    """The event loop of one process.

    Args:
        lazy_s: how long the loop thread stays away after another thread used the loop.

    The owner sets ``on_inbox(now)``, which takes everything out of ``inbox``; ``on_timer(now, key)``; ``settle(now)``,
    which draws consequences and sends; and ``pending()``, which says whether a socket has something to read that the
    selector will not report.
    """

    def __init__(self, lazy_s: float) -> None:
        self.inbox: deque[Any] = deque()
        self.on_inbox: Callable[[float], None] = lambda now: self.inbox.clear()
        self.on_timer: Callable[[float, Any], None] = lambda now, key: None
        self.settle: Callable[[float], None] = lambda now: None
        self.pending: Callable[[], bool] = lambda: False
        self.interrupted = False
        self.interrupts = 0  # how many came
        self.stopped = False
        self._sleeping = False
        self._posted = False
        self._lazy_s = lazy_s
        self._sources: dict[int, Source] = {}
        self._skipped = 0
        self._poller: Any
        self._poll: Callable[[float | None], list[tuple[int, int]]]
        if hasattr(select, "epoll"):
            self._poller = select.epoll()
            self._poll = self._poller.poll
        else:
            self._poller = poller = select.poll()
            self._poll = lambda timeout_s: poller.poll(None if timeout_s is None else timeout_s * 1000)
        self._wake_read, self._wake_write = os.pipe()
        for fd in (self._wake_read, self._wake_write):
            os.set_blocking(fd, False)
        self._poller.register(self._wake_read, select.POLLIN)
        self._timers: list[tuple[float, int, Any]] = []
        self._timer_count = 0
        self._baton = threading.Lock()
        self._driver = 0
        self._uses = 0
        self._deep = False
        self._quick = False  # the last wait for one answer was short
        self._spinning = False
        self._park = threading.Lock()
        self._park.acquire()
        self._followers: deque[Waitable] = deque()
        self._thread: threading.Thread | None = None
        self._main = threading.main_thread().ident
        self.nudges = False  # NUDGE is handled by on_nudge
        self._nudged = False  # ... just now
        self.user_frame: types.CodeType | None = None  # the code of ours in which users' functions run: that may be interrupted
        self._on_error: Callable[[BaseException], None] | None = None

    # -- for every thread -----------------------------------------------------------------------------------------

    def post(self, entry: Any) -> None:
        """Put an entry into the inbox and make sure that somebody takes it. Safe anywhere, ``__del__`` included."""
        self.inbox.append(entry)
        if self._sleeping:
            self._sleeping = False
            self._posted = True
            self.wake()

    def wake(self) -> None:
        """End the driver's sleep."""
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # as full as a pipe can be: it will wake
        except OSError:
            if not self.stopped:
                raise

    def hand_over(self) -> None:
        """This thread will not wait here, but wants what was posted to be done: the loop thread need not wait for it."""
        if self._park.locked():
            _release(self._park)

    def maybe_turn(self) -> None:
        """After a submission: turn the loop when enough has gathered and nobody else does."""
        if len(self.inbox) >= _SUBMIT_BATCH and not self._baton.locked():
            self.turn_if_free()

    def turn_if_free(self) -> None:
        """Turn once without sleeping; if another thread drives, it will see the inbox itself."""
        if self._baton.acquire(False):
            self._uses += 1
            self._driver = threading.get_ident()
            try:
                self.turn(0.0)
            finally:
                self._leave()
            self._raise_interrupt()
        elif self._sleeping:
            self.wake()

    def wait(self, waiter: Waitable, timeout_s: float | None = None, *, spin: bool = False) -> bool:
        """Wait until ``waiter`` is done, turning the loop meanwhile if nobody else does.

        Args:
            waiter: what to wait for.
            timeout_s: how long at most; None is for ever.
            spin: one short answer is awaited. To sleep and be woken takes longer than a short task, so after a wait that
                was over quickly the thread looks for a moment before it sleeps.

        Returns:
            Whether it is done; False when the time ran out.

        Raises:
            KeyboardInterrupt: Ctrl-C in the main thread.
            RuntimeError: called from inside the loop, by a finalizer or signal handler.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._driver == threading.get_ident():
            raise RuntimeError(
                "zray was asked to wait from inside its own event loop (a __del__ method or a signal handler called it): "
                "such code must not block; do the call from ordinary code"
            )
        while not waiter.done:
            if self.stopped:
                return False
            if self._baton.acquire(False):
                self._spinning = spin and self._quick
                started = time.monotonic()
                in_time = self._lead(waiter, deadline)
                if spin:
                    self._quick = _SEVERAL_CPUS and time.monotonic() - started < _QUICK_S
                if not in_time:
                    return False
            elif not self._follow(waiter, deadline):
                return bool(waiter.done)
            elif self.interrupted:
                self._raise_interrupt()
        return True

    def is_turned_here(self) -> bool:
        """Whether this thread is turning the loop: what asks is a signal handler then, or a finalizer, and can not wait."""
        return self._driver == threading.get_ident()

    def run_in_thread(self, name: str, on_error: Callable[[BaseException], None]) -> None:
        """Start the loop thread; ``on_error`` is called if the loop itself fails, which ends it."""
        self._on_error = on_error
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self) -> None:
        """Turn until stopped: for processes whose main thread is the loop."""
        with self._baton:
            self._driver = threading.get_ident()
            while not self.stopped:
                self.turn(None)

    def stop(self) -> None:
        """No more turns; waits for the loop thread unless it is the caller."""
        self.stopped = True
        self.wake()
        if self._park.locked():
            self._park.release()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        for follower in list(self._followers):
            _release(follower.signal)

    def acquire(self, timeout_s: float) -> bool:
        """Take the baton for good after ``stop``, to close what the loop owned."""
        return self._baton.acquire(timeout=timeout_s)

    def close(self) -> None:
        """Close the loop's own descriptors."""
        if hasattr(self._poller, "close"):
            self._poller.close()
        os.close(self._wake_read)
        wake_write, self._wake_write = self._wake_write, -1  # who comes later must not write to what has its number then
        os.close(wake_write)

    # -- for the driver -------------------------------------------------------------------------------------------

    def add_source(self, source: Source) -> None:
        """Call ``source.on_readable()`` whenever its descriptor can be read."""
        fd = source.fileno()
        self._sources[fd] = source
        self._poller.register(fd, select.POLLIN)

    def remove_source(self, source: Source) -> None:
        fd = source.fileno()
        del self._sources[fd]
        self._poller.unregister(fd)

    def add_timer(self, at: float, key: Any) -> None:
        """Call ``on_timer(now, key)`` at the monotonic time ``at``."""
        self._timer_count += 1
        heapq.heappush(self._timers, (at, self._timer_count, key))

    def turn(self, timeout_s: float | None) -> None:
        """One round: sleep at most ``timeout_s`` (None: for ever) if there is nothing to do, then do what there is."""
        timers = self._timers
        if self.inbox or self.pending():
            # Who would sleep turns again at once: the descriptors can wait for that, but not for ever.
            if timeout_s == 0.0 or self._skipped >= _SKIPS_MAX:
                self._look(0.0)
            else:
                self._skipped += 1
        else:
            if timers:
                until = max(0.0, timers[0][0] - time.monotonic())
                timeout_s = until if timeout_s is None else min(timeout_s, until)
            self._sleeping = True
            if self.inbox:  # posted before the flag was up
                timeout_s = 0.0
            self._look(timeout_s)
        now = time.monotonic()
        if self.inbox:
            self.on_inbox(now)
        while timers and timers[0][0] <= now:
            self.on_timer(now, heapq.heappop(timers)[2])
        self.settle(now)
        if self.interrupted and self.nudges and self._driver != self._main and self._main is not None:
            signal.pthread_kill(self._main, NUDGE)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _look(self, timeout_s: float | None) -> None:
        """Wait for descriptors that can be read, and have them read."""
        self._skipped = 0
        events = self._spin() if self._spinning and timeout_s != 0.0 else []
        if not events:
            events = self._poll(0.0 if self.inbox else timeout_s)
        self._sleeping = False
        if events and self.inbox:  # what was done here comes before what others say of it
            self.on_inbox(time.monotonic())
        sources = self._sources
        for fd, _ in events:
            source = sources.get(fd)
            if source is not None:
                source.on_readable()
            elif fd == self._wake_read:
                self._drain_wake()

    def _spin(self) -> list[tuple[int, int]]:
        """Look for a moment without sleeping."""
        poll = self._poll
        until = time.monotonic() + _SPIN_S
        while not self.inbox:
            events = poll(0.0)
            if events or time.monotonic() >= until:
                return events
        return []

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            pass

    def _lead(self, waiter: Waitable, deadline: float | None) -> bool:
        """Drive until ``waiter`` is done; the baton is held. False when the time ran out."""
        self._uses += 1
        me = self._driver = threading.get_ident()
        try:
            while not waiter.done and not self.stopped and not (self.interrupted and me == self._main):
                if deadline is None:
                    self.turn(None)
                    continue
                left = deadline - time.monotonic()
                self.turn(max(0.0, left))
                if left <= 0:
                    return waiter.done
        finally:
            self._leave()
        self._raise_interrupt()
        return True

    def _follow(self, waiter: Waitable, deadline: float | None) -> bool:
        """Another thread drives: sleep until ``waiter`` is done or the driver leaves. False when the time ran out."""
        waiter.signal = threading.Lock()
        waiter.signal.acquire()
        self._followers.append(waiter)
        try:
            if waiter.done or self.stopped or not self._baton.locked():
                return True
            if self._sleeping:
                self._sleeping = False
                self.wake()
            left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            return bool(waiter.signal.acquire(timeout=left))
        finally:
            self._followers.remove(waiter)
            if self._followers and not self._baton.locked():
                _release(self._followers[0].signal)

    def _leave(self) -> None:
        """Give the baton up: to a follower if there is one."""
        self._driver = 0
        self._spinning = False
        self._baton.release()
        for follower in list(self._followers):
            if not follower.done:
                self._uses += 1  # it will use the loop: or the loop thread might be there before it, again and again
                _release(follower.signal)
                return
        if self._deep:
            self._deep = False
            _release(self._park)

    def _raise_interrupt(self) -> None:
        if self.interrupted and threading.current_thread() is threading.main_thread():
            self.interrupted = False
            raise KeyboardInterrupt

    def catch_interrupts(self) -> bool:
        """Have Ctrl-C come here, if the program has no handler of its own and this is the main thread; returns whether."""
        handler = signal.getsignal(signal.SIGINT)
        free = handler is signal.default_int_handler or _is_of_a_loop(handler)
        if not free or threading.current_thread() is not threading.main_thread():
            return False
        signal.signal(signal.SIGINT, self.on_interrupt)
        return True

    def release_interrupts(self) -> None:
        """Give Ctrl-C back. That needs the main thread: without it the handler stays, and is as good as none after the end."""
        self.nudges = False  # a last one may be under way: its handler stays
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == self.on_interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """Signal handler for SIGINT: interrupt at once, but never in the middle of a turn or of anything else of ours."""
        if self.stopped:
            signal.default_int_handler(signum, frame)
        self.interrupts += 1
        self.interrupted = True
        self.on_nudge(signum, frame)

    def on_nudge(self, signum: int, frame: Any) -> None:
        """Signal handler: interrupt what was not interrupted before, if that can be done now."""
        if not self.interrupted or self.stopped or self._nudged:
            return
        if self._driver != self._main and (frame is None or not self.is_ours(frame)):
            self.interrupted = False
            raise KeyboardInterrupt
        self._nudged = True  # who is woken nudges again at once, maybe before this has returned
        self.wake()
        for follower in list(self._followers):  # this thread may be among them
            _release(follower.signal)
        self._nudged = False

    def is_ours(self, frame: types.FrameType) -> bool:
        """Whether an exception there would leave something of ours half-way."""
        name = frame.f_globals.get("__name__", "")
        return name.startswith(_OURS) and frame.f_code is not self.user_frame

    def _run(self) -> None:
        try:
            seen = -1
            while not self.stopped:
                if self._uses != seen:  # somebody used the loop lately: leave it to them
                    seen = self._uses
                    self._park.acquire(timeout=self._lazy_s)
                elif self._baton.acquire(False):
                    self._drive()
                else:  # somebody has been driving for a whole period: sleep until they leave
                    self._deep = True
                    if self._baton.acquire(False):
                        self._deep = False
                        self._drive()
                    elif not self.stopped:
                        self._park.acquire(timeout=1.0)
        except BaseException as error:
            if self._on_error is None:
                raise
            self._on_error(error)

    def _drive(self) -> None:
        """Turn until a thread waits that could drive itself, or has just submitted and will go on submitting."""
        self._driver = threading.get_ident()
        try:
            self._posted = False
            self.turn(0.0)  # what was left in the inbox, and a look at a thread that is busy with something long
            while not self.stopped and not self._followers:
                self.turn(None)
                if self._posted:
                    self._uses += 1
                    return
        finally:
            self._leave()


def _release(lock: Any) -> None:
    try:
        lock.release()
    except RuntimeError:
        pass  # already released: one wake-up is enough


def _is_of_a_loop(handler: Any) -> bool:
    return isinstance(getattr(handler, "__self__", None), Loop)


def _after_fork_in_child() -> None:
    """A fork of the user's has no loop: Ctrl-C is as it is without one."""
    if _is_of_a_loop(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
