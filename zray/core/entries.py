"""Entries: what an owner knows of an object's value. Their layout is in ``base/wire.py``; here is what is made of them."""

from __future__ import annotations

import pickle

from zray.base.wire import ERROR, INLINE, STORED, Contained, Entry
from zray.core.tasks import OUT_OF_MEMORY, Task
from zray.exceptions import (
    ObjectLostError,
    ObjectReconstructionFailedError,
    OutOfMemoryError,
    OwnerDiedError,
    TaskCancelledError,
    WorkerCrashedError,
)


def error_entry(error: BaseException) -> Entry:
    """The entry of an object whose value is an error."""
    return (ERROR, pickle.dumps(error, 5))


def contained_in(entry: Entry) -> Contained:
    """The references inside the value of an entry."""
    kind = entry[0]
    if kind == INLINE:
        return entry[2] if len(entry) > 2 else ()
    return entry[3] if kind == STORED else ()


def size_of(entry: Entry) -> int:
    """The bytes that a value takes, wherever it lies."""
    content = entry[1]
    if isinstance(content, int):
        return content
    return len(content) if isinstance(content, bytes) else sum(map(len, content))


def lost(object_id: bytes) -> Entry:
    """The entry of an object that its owner does not know any more."""
    text = (
        f"object {object_id.hex()} does not exist any more: its last reference was dropped. Keep the ObjectRef "
        "for as long as the value is needed"
    )
    return error_entry(ObjectLostError(text, object_id.hex()))


def irrecoverable(object_id: bytes, reason: str, problem: str) -> Entry:
    """The entry of an object that is lost and can not be brought back."""
    text = f"object {object_id.hex()} is lost: {reason}. It can not be made again: {problem}"
    return error_entry(ObjectReconstructionFailedError(text, object_id.hex()))


def owner_died(object_id: bytes, owner: bytes, reason: str) -> Entry:
    """The entry of an object whose owner is gone."""
    text = (
        f"object {object_id.hex()} is lost because the process that owned it ended: {owner.hex()[:8]}, "
        f"{reason}. An object lives only as long as the process that made its reference"
    )
    return error_entry(OwnerDiedError(text, object_id.hex()))


def task_cancelled(task: Task) -> Entry:
    """The result of a task that was cancelled."""
    text = f"{task.template.name}() (task {task.id.hex()}) was cancelled"
    return error_entry(TaskCancelledError(text, task.id.hex()))


def worker_crashed(task: Task, reason: str, cause: str) -> Entry:
    """The result of a task whose worker died under it for the last time."""
    text = f"the worker died while it ran {task.template.name}() (task {task.id.hex()}): {reason}. "
    if cause == OUT_OF_MEMORY:
        advice = "Give the task num_cpus or memory that keeps others away, or have it use less"
        return error_entry(OutOfMemoryError(f"{text}{task.attempts()}. {advice}"))
    return error_entry(
        WorkerCrashedError(f"{text}{task.attempts()}; max_retries allows more")
    )
