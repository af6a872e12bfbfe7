"""Failures: what a task, a call or a constructor raised, as the entry of its results, and as ``get`` raises it.

An exception goes through two pickles: the error that says what happened, and apart from it the user's own exception. Who can not
read that one, because its class is unknown there or does not come out of a pickle, has the text still.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from zray.base import serialization
from zray.base.wire import ERROR, Entry
from zray.exceptions import ActorDiedError, RayError, RayTaskError, TaskCancelledError

_OWN_FILES = ("zray/runtime/executor.py", "zray/runtime/actor.py", "zray/runtime/generator_runner.py")


def of_task(error: BaseException, name: str, extra: dict[str, Any] | None, node: str, task_id: str) -> Entry:
    """What the results of a task or call are that raised ``error``; marked if it is to be tried again."""
    cause: BaseException = error
    if isinstance(error, RayTaskError) and error.cause is not None:
        cause = error.cause  # came through get: the same error goes on
    if isinstance(error, KeyboardInterrupt) or _is_cancellation(error):
        how = "interrupted" if isinstance(error, KeyboardInterrupt) else "cancelled"
        cancelled = TaskCancelledError(f"{name}() (task {task_id}) was {how}", task_id)
        return (ERROR, serialization.serialize(cancelled).inline())
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        cause = error
    text, payload = _told(error, cause)
    again, doubt = _is_to_be_tried_again(cause, extra.get("retry_exceptions") if extra else None)
    bare = RayTaskError(name, text + doubt, None, os.getpid(), node)
    entry = (ERROR, serialization.serialize((bare, payload)).inline())
    return (*entry, True) if again else entry


def of_constructor(error: BaseException, actor_id: bytes, extra: dict[str, Any], node: str) -> Entry:
    """What every call of an actor gets whose constructor raised ``error``."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    text, payload = _told(error, cause)
    name = f" {extra['name']!r}" if extra["name"] else ""
    where = f"(pid {os.getpid()} on node {node[:8]})"
    title = f"actor {extra['class_name']}{name} ({actor_id.hex()}) is dead: its constructor raised an error {where}"
    died = ActorDiedError(f"{title}\n{text.rstrip()}", actor_id.hex())
    return (ERROR, serialization.serialize((died, payload)).inline())


def _is_to_be_tried_again(cause: BaseException, wanted: Any) -> tuple[bool, str]:
    """Whether an exception is one of those after which a task runs again, and why that can not be said."""
    if wanted is None or wanted is True:
        return wanted is True, ""
    try:
        return isinstance(cause, serialization.deserialize(wanted)), ""
    except Exception as problem:  # a module that is not here, or whatever an import of the user's raises
        return False, f"\n(not tried again: its retry_exceptions can not be read here: {type(problem).__name__}: {problem})"


def as_raised(entry: Entry) -> BaseException:
    """The exception of an error entry, as ``get`` raises it."""
    error = serialization.deserialize(entry[1])
    if isinstance(error, tuple):
        error, cause = error
        if cause is not None:
            try:
                error.cause = serialization.deserialize(cause)
            except Exception as problem:
                if isinstance(error, RayTaskError):
                    error.traceback_str += (
                        f"\n(the exception itself can not be read here: {type(problem).__name__}: {problem})"
                    )
        if isinstance(error, RayTaskError):
            return error.as_instanceof_cause()
        error.__cause__ = error.cause
    assert isinstance(error, BaseException)
    return error


def _is_cancellation(error: BaseException) -> bool:
    """Whether a coroutine was cancelled: as an exception of that type it would cancel whoever awaits the result."""
    asyncio: Any = sys.modules.get("asyncio")
    cancelled = getattr(asyncio, "CancelledError", None)  # another thread may be importing it just now
    return cancelled is not None and isinstance(error, cancelled)


def _told(error: BaseException, cause: BaseException) -> tuple[str, Any]:
    """The traceback as text, without our own frames, and the cause as a payload if it can travel."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename.endswith(_OWN_FILES):
        frames = frames.tb_next
    text = "".join(traceback.format_exception(type(error), error, frames or error.__traceback__))
    try:
        payload = serialization.serialize(cause).inline()
        serialization.deserialize(payload)  # many exceptions pickle and can not be read back
    except BaseException as problem:  # it is the user's code that pickles: it may raise anything
        return text + f"\n(the exception itself could not be pickled: {problem!r})", None
    return text, payload
