"""LocalWorker: what a worker process is in a cluster, as a thread of the user's own process.

Theory of operation
-------------------
A local worker hears and says the same messages as a worker process, and runs tasks and actors with the same code. It has a
thread while it has tasks to run; an actor keeps its thread for life, since its libraries may expect that. A thread that waits in
``get`` for a single task which nobody has begun takes that task instead (``LocalRuntime`` decides): the worker is *lent* to it.

A thread can not be killed. A worker that is ended is *gone*: nothing it says is heard any more, no call of it is begun, and its
threads leave the user's code with ``WorkerGone`` at the next thing they do: at once where they wait for something of zray's, at
the next line of Python otherwise. One that stays in foreign code (a long ``time.sleep``) ends when that returns.

A task that is cancelled while it runs is interrupted in the same way, with KeyboardInterrupt. Since its worker goes on, nothing
of ours may be left half-way: where the thread is in our own code and does not wait, the loop looks again a little later.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.wire import SCHEMA, Address
from zray.core.entries import contained_in
from zray.exceptions import InvariantError
from zray.runtime.client import resolve
from zray.runtime.executor import NO_LEASE, Executor, Item, Slot, exit_code
from zray.runtime.process import log

if TYPE_CHECKING:
    from zray.core.waiters import Waiter
    from zray.runtime.local import LocalRuntime

# The worker whose task or call runs in this thread or coroutine.
current_worker: ContextVar[LocalWorker | None] = ContextVar("current_worker", default=None)

INTERRUPT_TIMER = "worker.interrupt"
_AGAIN_S = 0.005
_HEARD = {schema.op: schema.handler for schema in SCHEMA.values() if schema.receiver == "worker"}


class WorkerGone(BaseException):
    """Raised in the threads of a worker that was ended: they leave the user's code."""


class LocalWorker(Executor):
    """A worker of local mode.

    Args:
        runtime: the one of this process.
        me: its id.
        config: limits.
    """

    def __init__(self, runtime: LocalRuntime, me: bytes, config: Config) -> None:
        super().__init__(config)
        self.me = me
        self.agent = runtime.agent
        self.node_id = runtime.node_id
        self.loop = runtime.loop
        self.owner = runtime.owner
        self.tell = self._tell
        self.tell_control = lambda message: self._tell(wire.CONTROL, message)
        self.send = self._send
        self.call = runtime.call
        self.on_inbox = runtime.on_inbox
        self.entry = runtime.entry
        self.adopt = runtime.adopt
        self.block = runtime.block
        self.gone = False
        self._runtime = runtime
        self._exiting: SystemExit | None = None
        self._left = False  # its thread has ended it: nothing more is begun
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None
        self._staffed = False  # some thread runs what is in the queue, or will
        self._guard = threading.Lock()
        self._busy: dict[int, bool] = {}  # threads in the user's code; whether they were told to leave it
        self._waiting: dict[Waiter, int] = {}  # ... or in a wait of ours, in it
        self._raised = False  # what runs is to be interrupted at its next line

    def receive(self, now: float, peer: bytes, message: tuple[Any, ...]) -> None:
        """In the loop: a message for this worker."""
        getattr(self, _HEARD[message[0]])(now, peer, *message[1:])

    # -- in the loop ----------------------------------------------------------------------------------------------

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        if not self._staffed and not self._blocked and not self._leaving and not self.queue:
            claim = self._runtime.claims.pop(specs[0][0], None)
            if claim is not None:
                self._staffed = True
                self._running_since = now
                claim.given = (self, (peer, lease_id, specs[0]))
                resolve(claim.waiter)
                specs = specs[1:]
        if specs:
            super().on_push(now, peer, lease_id, specs)

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        """The node has no use for this worker. What an actor without handles still does is done for nobody."""
        if NO_LEASE not in self.leases and (self.queue or self._staffed):
            self._send(peer, wire.WorkerStays(self.me))
        elif self._running_since:
            self._end_soon(SystemExit(0))
        else:
            self._runtime.end_worker(self, "exited with code 0")

    def wake(self) -> None:
        with self._ready:
            if not self.queue:
                return
            if self._staffed:
                self._ready.notify()
                return
            self._staffed = True
        self._start_thread()

    def stop(self) -> None:
        """From now on nothing is heard of this worker, and its threads end as soon as they can."""
        actor = self.becoming  # its thread may forget it as soon as the worker is gone
        self.gone = self._leaving = True
        self.queue.clear()
        if actor is not None:
            actor.stop()
        for runner in list(self.runners.values()):
            runner.stop()
        for waiter in list(self._waiting):
            resolve(waiter)
        waiting = {*self._waiting.values(), threading.get_ident()}
        with self._guard:
            for thread in self._busy:
                if thread not in waiting:
                    self._busy[thread] = True
                    _raise_in(thread, WorkerGone)
        with self._ready:
            self._ready.notify_all()

    def nudge(self) -> None:
        thread = self.thread
        with self._guard:
            waiting = [waiter for waiter, who in list(self._waiting.items()) if who == thread]
            frame = None if waiting else sys._current_frames().get(thread)
            if frame is not None and not self.loop.is_ours(frame) and self.cancellation.wants_interrupt():
                self._raised = True
                _raise_in(thread, KeyboardInterrupt)
        for waiter in waiting:
            resolve(waiter)
        if self.cancellation.cancelled.get(self.cancellation.running):
            self.loop.add_timer(time.monotonic() + _AGAIN_S, (INTERRUPT_TIMER, self.me))

    def calm(self) -> None:
        with self._guard:
            if self._raised:
                self._raised = False
                _raise_in(threading.get_ident(), None)

    def settle(self, now: float) -> None:
        self.settle_results(now)
        if self._exiting is not None and not self.gone and not self._running_since:
            self._runtime.end_worker(self, f"exited with code {exit_code(self._exiting)}")

    def _finished(self, peer: bytes, lease_id: int, item: tuple[Any, ...]) -> None:
        if self.gone:  # what was given to the owner is given back
            for entry in item[1]:
                self.owner.references.come_home(contained_in(entry))
        else:
            super()._finished(peer, lease_id, item)
            self._runtime.stir(self)

    def _send_done(self) -> None:
        came = [entry for items in self._results.values() for item in items for entry in item[1] if len(entry) > 2]
        super()._send_done()
        for entry in came:  # owner and executor are one process: what was held on the way is held no more
            self.owner.references.come_home(contained_in(entry))

    def send_items(self, peer: bytes, message: tuple[Any, ...]) -> None:
        super().send_items(peer, message)
        for entry in message[4]:
            self.owner.references.come_home(contained_in(entry))

    def _send(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if not self.gone:
            self._runtime.deliver(self.me, peer, message)

    def _tell(self, peer: bytes, message: tuple[Any, ...]) -> None:
        self.loop.post((self._send, peer, message))

    def meet(self, owner: Address) -> None:
        """It is in this very process."""

    # -- its thread -----------------------------------------------------------------------------------------------

    def _start_thread(self) -> None:
        name = f"zray-worker-{int.from_bytes(self.me[6:10], 'big')}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def join(self, deadline: float) -> None:
        """Wait until its thread has ended, after ``stop``, but no longer than until ``deadline``."""
        if self._thread is not None:
            self._thread.join(max(0.0, deadline - time.monotonic()))
            if self._thread.is_alive():
                log.warning("%s() does not end: it is in foreign code, and its thread stays until that returns", self.task_name)

    def _work(self) -> None:
        """Run what is in the queue until there is no more, as an actor until it ends."""
        current_worker.set(self)
        item = self._next()
        while item is not None:
            self._run(item)
            del item  # or what it holds would live until the next comes
            item = self._next()
        if self.gone:
            self._forget()
        self.loop.turn_if_free()

    def _forget(self) -> None:
        """Let go of what a process takes with it: the instance of an actor, and handles and references in it."""
        if self.becoming is not None:
            self.becoming.stop()  # it may have been made after the worker was told to stop
            self.becoming.forget()
        self.becoming = self.actor = None
        self._functions.clear()

    def _next(self) -> Item | None:
        """What to run next; None if this thread is not needed any more."""
        if not self.queue:
            self._running_since = 0.0
            self.loop.post((self._runtime.stir, self))
            self.loop.turn_if_free()
        with self._ready:
            while not self.gone:
                if not self._left:
                    with contextlib.suppress(IndexError):
                        return self.queue.popleft()
                if self.becoming is None:
                    break
                self._ready.wait()
            self._staffed = False
            self._running_since = 0.0
            return None

    def run_given(self, item: Item) -> None:
        """Run a task in a thread that waits for it; what came behind it meanwhile gets a thread of this worker's own."""
        Context().run(self._run_as_guest, item)

    def give_back(self, item: Item) -> None:
        """Whoever was to run it does not."""
        self.queue.appendleft(item)
        self._start_thread()

    def _run_as_guest(self, item: Item) -> None:
        current_worker.set(self)
        try:
            self._run(item)
        finally:
            following = self._next()
            if following is not None:
                self.give_back(following)

    def _run(self, item: Item) -> None:
        before, self.thread = self.thread, threading.get_ident()
        try:
            self.run_user_code(self.do, item)
        except BaseException as error:
            self.crash(error)
        finally:
            self.thread = before

    def run_user_code(self, function: Callable[..., None], *args: Any) -> None:
        thread = threading.get_ident()
        with self._guard:
            self._busy[thread] = False
        try:
            function(*args)
        finally:
            with self._guard:
                if self._busy.pop(thread):
                    _raise_in(thread, None)  # nothing, if it came; else it would come too late

    def run_thread(self, work: Callable[[], None]) -> None:
        try:
            work()
        except WorkerGone:
            log.debug("a thread of worker %s ends", self.me[6:10].hex())

    @contextlib.contextmanager
    def waits(self, waiter: Waiter) -> Iterator[None]:
        """A thread of this worker waits for something: if the worker is ended it leaves."""
        self._waiting[waiter] = threading.get_ident()
        try:
            self._look()
            yield
        finally:
            del self._waiting[waiter]
            self._look()

    def _look(self) -> None:
        """In a thread that waits: whether it is to leave, or the task that it runs to be interrupted."""
        if self.gone:
            raise WorkerGone
        if threading.get_ident() == self.thread and self.cancellation.wants_interrupt():
            raise KeyboardInterrupt

    def enter(self) -> None:
        current_worker.set(self)

    # -- the end --------------------------------------------------------------------------------------------------

    def leave(self, code: int) -> None:
        self._left = self._leaving = True
        self.loop.post((self._runtime.end_worker, self, f"exited with code {code}"))
        raise WorkerGone

    def end_now(self) -> None:
        self._runtime.end_worker(self, "exited with code 1")

    def end_soon(self, error: SystemExit) -> None:
        self.loop.post((self._end_soon, error))  # after all that was said before

    def _end_soon(self, error: SystemExit) -> None:
        self._exiting = error
        self._leaving = True
        self._runtime.stir(self)

    def end_if_forked(self, code: int = 0) -> None:
        if os.getpid() != self._pid:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def crash(self, error: BaseException) -> None:
        if not isinstance(error, WorkerGone):
            log.error("a call of %s failed in a way that can not be told", self.task_name, exc_info=error)
            self.loop.post((self._runtime.end_worker, self, f"failed: {type(error).__name__}: {error}"))

    # -- what a task needs ----------------------------------------------------------------------------------------

    def enter_lease(self, lease_id: int) -> None:
        """There is only one job, whose process this is."""

    def read(self, slots: list[Slot]) -> list[Any]:
        raise InvariantError("an argument lies in an object store, and local mode has none")

    def read_lost(self, object_id: bytes, owner: Address) -> None:
        raise InvariantError(f"object {object_id.hex()} is lost, and local mode loses none")


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread, at the next line of Python it comes to; None takes back what has not come yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error))
