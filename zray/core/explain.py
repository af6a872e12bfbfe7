"""Explanations: why an object is not there yet, in the words of those who know.

The owner knows what became of the task: whether it waits for arguments, for a worker, or for an actor. It names who knows more:
the worker what it is doing, the agent why it grants no lease (``LeaseScheduler.explain``), the control why an actor takes no
calls. Everything here only looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from zray.base.ids import agent_id
from zray.base.wire import CONTROL, ERROR, STORED, Address
from zray.base.wire_state import ExplainActor, ExplainLease, ExplainNode, ExplainTask
from zray.core.recovery import LOST_LIFECYCLE

if TYPE_CHECKING:
    from zray.core.actor_calls import CallQueue
    from zray.core.leases import LeaseQueue
    from zray.core.owner import Owner
    from zray.core.tasks import Task


class Finding(NamedTuple):
    """What an owner can say of an object."""

    text: str
    ask: tuple[Any, ...] | None = None  # who knows more: (peer, message, fields)
    waits_for: tuple[tuple[bytes, Address], ...] = ()  # other objects


def of_object(owner: Owner, now: float, object_id: bytes) -> Finding:
    """Why an object of this owner is not there, or that it is."""
    entry = owner.memory.get(object_id)
    if entry is not None:
        if entry[0] == ERROR:
            return Finding("it is there: its value is an error, which get() raises")
        if entry[0] != STORED:
            return Finding("it is there, with its owner")
        ask = (CONTROL, ExplainNode, (agent_id(entry[2]),))
        return Finding(f"it is there, {entry[1]} bytes in the store of a node", ask)
    task = owner.tasks.pending.get(object_id[:16])
    lost = owner.lost.get(object_id)
    prefix = ""
    if lost is not None:
        prefix = f"it was lost ({lost.reason}). {LOST_LIFECYCLE.sentences[lost.state]} "
        if task is None:
            return Finding(prefix.strip())
    if task is None:
        return Finding("its owner does not know it any more: the last reference was dropped")
    finding = _of_task(owner, now, task)
    return finding._replace(text=prefix + finding.text)


def _of_task(owner: Owner, now: float, task: Task) -> Finding:
    name = f"{task.template.name}() (task {task.id.hex()})"
    if task.missing:
        missing = tuple((ref.binary(), ref.owner) for _, ref in task.slots if ref.binary() not in owner.memory)
        listed = ", ".join(object_id.hex() for object_id, _ in missing[:5])
        return Finding(f"{name} waits for {task.missing} of its arguments: {listed}", None, missing)
    actor = task.template.actor
    if actor is not None and task.template.creates:
        return Finding(f"the constructor {name} is not over", (CONTROL, ExplainActor, (actor[0],)))
    if actor is not None:
        queue = owner.calls.queues.get(actor[0])
        return _of_call(name, task, queue) if queue is not None else Finding(f"{name} is being sent")
    for lease in owner.leases.leases.values():
        if task.id in lease.inflight:
            others = len(lease.inflight) - 1
            sent = f"{name} was sent to a worker" + (f" with {others} others" if others else "")
            return Finding(sent, (lease.worker, ExplainTask, (task.id,)))
    queues = owner.leases.queues_of(task)
    return _of_queue(name, task, next((queue for queue in queues if task in queue.tasks), None), now)


def _of_call(name: str, task: Task, queue: CallQueue) -> Finding:
    if task.id in queue.inflight:
        return Finding(f"the call {name} was sent to the actor", (queue.worker, ExplainTask, (task.id,)))
    before = next((n for n, other in enumerate(queue.tasks) if other.id == task.id), 0)
    text = f"the call {name} waits here" + (f" behind {before} others" if before else "")
    if not queue.worker:
        return Finding(f"{text} for the actor", (CONTROL, ExplainActor, (queue.actor_id,)))
    head = queue.tasks[0] if queue.tasks else None
    if head is not None and head.missing:
        missing = tuple((ref.binary(), ref.owner) for _, ref in head.slots)
        return Finding(f"{text}, the first of which, {head.template.name}(), waits for its arguments", None, missing)
    return Finding(text)


def _of_queue(name: str, task: Task, queue: LeaseQueue | None, now: float) -> Finding:
    if queue is None:
        return Finding(f"{name} is about to be queued")
    before = next((n for n, other in enumerate(queue.tasks) if other.id == task.id), 0)
    text = f"{name} waits for a worker" + (f", {before} others before it" if before else "")
    if queue.leases:
        text += f"; {len(queue.leases)} run such tasks for this process"
    if queue.infeasible:
        left_s = (queue.give_up_at or 0.0) - now
        until = f"; it fails in {left_s:.1f} s" if 0 < left_s < float("inf") else ""
        return Finding(f"{text}. No node can run it: {queue.infeasible}{until}")
    for request_id, asked in queue.requests.items():
        return Finding(text, (asked[0], ExplainLease, (request_id,)))
    return Finding(text)
