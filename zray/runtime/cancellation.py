"""Cancellation: how a worker stops one task or call, and nothing else.

Theory of operation
-------------------
What has not been started is taken out of the queue and handed back; calls of actors are answered: their numbers are used up.

A task that runs in the main thread gets a KeyboardInterrupt there, once. Three rules see to it that neither the next task nor the
worker itself is hit:

- The main thread says in ``running`` which task's code it runs, from just before the first line of it to just after the last. The
  signal that wakes it says nothing: its handler, which runs in that same thread, looks whether it is *this* task that is to be
  stopped. A signal that comes late finds nothing to do.
- A cancellation that comes when the main thread has taken the task and not said so yet is noted in ``cancelled``, where it
  looks when it has said so. Whichever comes first, one of them sees the other.
- Inside zray nothing is raised but where it waits (``io/loop.py``). What was put off ends with the task.

An asynchronous call is cancelled as any ``asyncio.Task``. A call of another actor can not be interrupted, since its state would
be left half-way: ``get_runtime_context().is_canceled()`` tells it.

To force the end of a task is to end this process, after all that is known of other tasks was sent.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from zray.base.wire import HandBack
from zray.io.loop import NUDGE

if TYPE_CHECKING:
    from zray.runtime.worker import TaskExecutor


class Cancellation:
    """What is cancelled of a worker's tasks and calls.

    Args:
        worker: the worker.
    """

    __slots__ = ("_worker", "cancelled", "running")

    def __init__(self, worker: TaskExecutor) -> None:
        self._worker = worker
        self.running = b""  # the task whose code the main thread runs; only that thread says so
        self.cancelled: dict[bytes, bool] = {}  # tasks and calls -> whether they are still to be interrupted

    def catch_signals(self) -> None:
        """In the main thread: have signals handled here."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        signal.signal(NUDGE, self._on_nudge)
        self._worker.loop.nudges = True

    # -- in the loop ----------------------------------------------------------------------------------------------

    def on_cancel_task(self, now: float, peer: bytes, task_id: bytes, force: bool, recursive: bool) -> None:
        """The owner of a task that was pushed here, or the caller of an actor, does not want it any more."""
        worker = self._worker
        if worker.actor is not None:
            running = worker.actor.cancel(task_id)
        elif self.take_out(task_id):
            return
        elif force and worker.task_id == task_id:
            worker.on_inbox(now)  # what it has submitted
            worker.owner.cancel_children(now, task_id, force=True)
            worker.settle(now)
            worker.transport.close(linger_ms=1000)
            os._exit(1)
        else:
            self.cancelled[task_id] = True
            running = self.running == task_id
            if running:
                main = threading.main_thread().ident
                assert main is not None
                signal.pthread_kill(main, NUDGE)
        if running and recursive:
            worker.loop.post((self._cancel_children, task_id, force))

    def take_out(self, task_id: bytes) -> bool:
        """Take what is not started out of the worker's queue; whether it was there."""
        worker = self._worker
        for item in list(worker.queue):
            peer, lease_id, spec = item
            if spec[0] != task_id:
                continue
            try:
                worker.queue.remove(item)
            except ValueError:
                break  # the main thread has just taken it
            if worker.actor is None:
                worker.send(peer, HandBack(lease_id, [task_id]))
            else:
                self.answer(peer, spec)
            return True
        return False

    def answer(self, peer: bytes, spec: Any) -> None:
        """A call of this actor was cancelled before it began."""
        error = self._worker.error_entry(KeyboardInterrupt(), spec[6], None, spec[0])
        self._worker.finish(peer, 0, (spec[0], (error,) * spec[4], 0, {}))

    def _cancel_children(self, task_id: bytes, force: bool) -> None:
        """After all that the task has submitted so far."""
        self._worker.owner.cancel_children(time.monotonic(), task_id, force=force)

    # -- in the main thread ---------------------------------------------------------------------------------------

    def look(self) -> None:
        """``running`` was set: raise KeyboardInterrupt if the task was cancelled before."""
        if self.cancelled.get(self.running):
            self.cancelled[self.running] = False
            raise KeyboardInterrupt

    def over(self, task_id: bytes) -> None:
        """The code of a task has returned. That of an actor's call which was cancelled meanwhile has done so in vain."""
        self._worker.loop.interrupted = False
        if self._worker.actor is not None and task_id in self.cancelled:
            raise KeyboardInterrupt
        self.cancelled.clear()

    def forget(self) -> None:
        """A task is over; whatever was to interrupt it is not for the next."""
        self._worker.loop.interrupted = False
        self.cancelled.clear()

    def _on_interrupt(self, signum: int, frame: Any) -> None:
        """Somebody sent SIGINT to this process."""
        if self.running:
            self._worker.loop.on_interrupt(signum, frame)

    def _on_nudge(self, signum: int, frame: Any) -> None:
        """There is something to look at."""
        if self.running and self.cancelled.get(self.running):
            self.cancelled[self.running] = False
            self._worker.loop.interrupted = True
        self._worker.loop.on_nudge(signum, frame)

