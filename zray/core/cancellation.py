"""TaskCancellation: how an owner has its tasks cancelled.

Theory of operation
-------------------
A task that has not been sent to a worker is taken out of where it waits and gets its error at once. One that has been sent is the
worker's to stop; it stays pending until the worker says what became of it: it hands back what it had not started, and what
was running ends in an error, or in a value where the task was over already or did not let itself be stopped. If the worker dies
instead, the task was cancelled. Whatever comes, a task that was cancelled never runs again.

To *force* the end of a task is to end its process. Those that were queued behind it there are not to blame: they run again, and
nothing is charged.

What a process has submitted while it ran a task are the *children* of that task, and are cancelled with it if that is wished
(recursive). Objects owned elsewhere are cancelled there.
"""

from __future__ import annotations

from collections.abc import Iterable

from zray.base.wire import Address, CancelObject, CancelTask, Entry
from zray.core.actor_calls import ActorTaskSubmitter
from zray.core.effects import DIAL, SEND, Effect
from zray.core.entries import task_cancelled
from zray.core.leases import NormalTaskSubmitter
from zray.core.references import ReferenceCounter
from zray.core.tasks import CANCELLED, FORCED, Task, TaskManager


class TaskCancellation:
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    calls: ActorTaskSubmitter
    leases: NormalTaskSubmitter
    memory: dict[bytes, Entry]
    out: list[Effect]
    references: ReferenceCounter
    tasks: TaskManager

    def _fail(self, now: float, task: Task, entry: Entry) -> None:
        """A task will have no other result."""
        raise NotImplementedError

    def _left_behind(self, task: Task) -> tuple[bytes, ...]:
        """What attempts of a task may have left in stores."""
        raise NotImplementedError

    def _sweep(self, returns: Iterable[bytes], agents: Iterable[bytes]) -> None:
        """An attempt may have left results in the store."""
        raise NotImplementedError

    def meet(self, process: bytes) -> None:
        """Have the end of a process told."""
        raise NotImplementedError

    def cancel(self, now: float, object_id: bytes, *, force: bool = False, recursive: bool = True) -> bool:
        """Cancel the task that makes an object, if it is not over yet.

        Returns:
            False if it can not be done: a call of an actor can not be forced.
        """
        owner: Address | None = self.references.owners.get(object_id)
        if owner is not None:
            if object_id not in self.memory:
                self.meet(owner[0])
                self.out.append((DIAL, owner[0], owner[1]))
                self.out.append((SEND, owner[0], CancelObject(object_id, force, recursive)))
            return True
        task = self.tasks.pending.get(object_id[:16])
        if task is None or task.template.creates:
            return True
        if force and task.template.actor is not None:
            return False
        self._cancel(now, task, force, recursive)
        return True

    def cancel_children(self, now: float, parent: bytes, *, force: bool) -> None:
        """A task that this process runs was cancelled: so is what it has submitted."""
        for task in [task for task in self.tasks.pending.values() if task.parent == parent]:
            self._cancel(now, task, force and task.template.actor is None, True)

    def on_cancel_object(self, now: float, peer: bytes, object_id: bytes, force: bool, recursive: bool) -> None:
        """A borrower cancels; the calls of actors are never forced."""
        if not self.cancel(now, object_id, force=force, recursive=recursive):
            self.cancel(now, object_id, recursive=recursive)

    def on_hand_back(self, now: float, peer: bytes, lease_id: int, task_ids: list[bytes]) -> None:
        """A worker gives back what it has not started."""
        for task in self.leases.on_handed_back(lease_id, task_ids):
            self._end_cancelled(now, task)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _cancel(self, now: float, task: Task, force: bool, recursive: bool) -> None:
        wish = FORCED if force else CANCELLED
        if wish <= task.cancelled:
            return  # it was said already
        task.cancelled = wish
        worker = self.leases.cancel(task) if task.template.actor is None else self.calls.cancel(task)
        if worker:
            self.out.append((SEND, worker, CancelTask(task.id, force, recursive)))
        else:
            self.tasks.withdraw(task)
            self._end_cancelled(now, task)

    def _end_cancelled(self, now: float, task: Task) -> None:
        """A cancelled task is over."""
        if task.tried:
            self._sweep(self._left_behind(task), task.tried)
        self._fail(now, task, task_cancelled(task))
