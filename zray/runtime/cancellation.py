"""Cancellation: how an executor stops one task or call, and nothing else.

Theory of operation
-------------------
What has not been started is taken out of the queue and handed back; calls of actors are answered: their numbers are used up.

A task that runs in the main thread of a worker gets a KeyboardInterrupt there, once. Three rules see to it that neither the next
task nor the worker itself is hit:

- The main thread says in ``running`` which task's code it runs, from just before the first line of it to just after the last. The
  signal that wakes it says nothing: its handler, which runs in that same thread, looks whether it is *this* task that is to be
  stopped. A signal that comes late finds nothing to do.
- A cancellation that comes when the main thread has taken the task and not said so yet is noted in ``cancelled``, where it
  looks when it has said so. Whichever comes first, one of them sees the other.
- Inside zray nothing is raised but where it waits (``io/loop.py``). What was put off ends with the task.

In local mode it is any thread that is interrupted, without a signal (``runtime/local_worker.py``).

An asynchronous call is cancelled as any ``asyncio.Task``. A call of another actor can not be interrupted, since its state would
be left half-way: ``get_runtime_context().is_canceled()`` tells it.

To force the end of a task is to end this process, after all that is known of other tasks was sent.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zray.base.wire import HandBack
from zray.runtime.actor import current_call

if TYPE_CHECKING:
    from zray.runtime.executor import Executor


class Cancellation:
    """What is cancelled of an executor's tasks and calls.

    Args:
        body: the executor.
    """

    __slots__ = ("_body", "cancelled", "running")

    def __init__(self, body: Executor) -> None:
        self._body = body
        self.running = b""  # the task whose code the main thread runs; only that thread says so
        self.cancelled: dict[bytes, bool] = {}  # tasks and calls -> whether they are still to be interrupted

    def current(self) -> bytes:
        """The task or call that runs in this thread or coroutine."""
        call = current_call.get()
        return self._body.task_id if call is None else call[0]

    # -- in the loop ----------------------------------------------------------------------------------------------

    def cancel(self, now: float, task_id: bytes, force: bool, recursive: bool) -> None:
        """The owner of a task that was pushed here, or the caller of an actor, does not want it any more."""
        body = self._body
        if body.actor is not None:
            running = body.actor.cancel(task_id)
        elif self.take_out(task_id):
            return
        elif force and body.task_id == task_id:
            body.on_inbox(now)  # what it has submitted
            body.owner.cancel_children(now, task_id, force=True)
            body.end_now()
            return
        else:
            self.cancelled[task_id] = True
            running = self.running == task_id
            if running:
                body.nudge()
        if running and recursive:
            body.loop.post((self._cancel_children, task_id, force))

    def take_out(self, task_id: bytes) -> bool:
        """Take what is not started out of the queue; whether it was there."""
        body = self._body
        for item in list(body.queue):
            peer, lease_id, spec = item
            if spec[0] != task_id:
                continue
            try:
                body.queue.remove(item)
            except ValueError:
                break  # the main thread has just taken it
            if body.actor is None:
                body.send(peer, HandBack(lease_id, [task_id]))
            else:
                self.answer(peer, spec)
            return True
        return False

    def answer(self, peer: bytes, spec: Any) -> None:
        """A call of this actor was cancelled before it began."""
        error = self._body.error_entry(KeyboardInterrupt(), spec[6], None, spec[0])
        self._body.finish(peer, 0, (spec[0], (error,) * abs(spec[4]), 0, {}))

    def _cancel_children(self, task_id: bytes, force: bool) -> None:
        """After all that the task has submitted so far."""
        self._body.owner.cancel_children(time.monotonic(), task_id, force=force)

    # -- in the main thread ---------------------------------------------------------------------------------------

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt was put off."""
        return self._body.loop.interrupted

    def wants_interrupt(self) -> bool:
        """Whether the task that runs is to be interrupted; once."""
        if self.running and self.cancelled.get(self.running):
            self.cancelled[self.running] = False
            return True
        return False

    def look(self) -> None:
        """``running`` was set: raise KeyboardInterrupt if the task was cancelled before."""
        if self.wants_interrupt():
            raise KeyboardInterrupt

    def over(self, task_id: bytes) -> None:
        """The code of a task has returned. That of an actor's call which was cancelled meanwhile has done so in vain."""
        in_vain = self._body.actor is not None and task_id in self.cancelled
        self.forget()
        if in_vain:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """A task is over; whatever was to interrupt it is not for the next."""
        self._body.calm()
        self.cancelled.clear()
