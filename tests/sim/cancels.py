"""Cancelling in the simulated world: anything that somebody has a reference to, at any time."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.exceptions import TaskCancelledError

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .processes import WorkerBody


class Interrupted(Exception):
    """A task is stopped in the middle, or a call has run in vain."""


def cancel(body: OwnerBody, rng: random.Random, refs: list[Any]) -> None:
    """What a user does: cancel something, whatever has become of it."""
    ref = rng.choice(refs)
    object_id = ref.binary()
    task_id = object_id[:16]
    force = rng.random() < 0.15 and body.cluster.violent
    body.judge.cancelled[task_id] = None
    body.world.faults += force
    body.world.note(body, f"cancels {task_id.hex()}{' by force' if force else ''}")
    if not body.owner.cancel(body.world.now, object_id, force=force, recursive=rng.random() < 0.8):
        body.owner.cancel(body.world.now, object_id)


def on_cancel_task(body: WorkerBody, task_id: bytes, force: bool, recursive: bool) -> None:
    """What a worker does: take the task out, interrupt it, or end."""
    if body.actor is not None:
        running = body.actor.cancel(task_id)
    else:
        for item in body.queue:
            if item[2][0] == task_id:
                body.queue.remove(item)
                body.send(item[0], wire.HandBack(item[1], [task_id]))
                return
        running = body.running == task_id
        if running and force:
            body.owner.cancel_children(body.world.now, task_id, force=True)
            body.flush()
            body.finish()
            body.node.end_worker(body, "it exited with code 1", politely=True)
            return
        for thread in body.threads:
            if running and thread.task_id == task_id:
                thread.interrupt()
    if running and recursive:
        body.owner.cancel_children(body.world.now, task_id, force=force)


def outcome(error: BaseException, task_id: bytes) -> BaseException:
    """What the results of a task are that ended so."""
    if isinstance(error, Interrupted):
        return TaskCancelledError(f"the task (task {task_id.hex()}) was cancelled", task_id.hex())
    return error


def check_wanted(body: Any, specs: list[Any]) -> None:
    """What is sent to a worker must not have been cancelled before."""
    for spec in specs:
        task = body.owner.tasks.pending.get(spec[0])
        assert task is None or not task.cancelled, f"task {spec[0].hex()} is sent after it was cancelled"
