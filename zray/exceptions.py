"""Every exception a user of zray can meet.

The names are Ray's, so that ``except`` clauses carry over::

    RayError
     +-- RayTaskError               the user's function raised; also an instance of what it raised
     +-- TaskCancelledError
     +-- WorkerCrashedError         the process that ran the task died
     |    +-- OutOfMemoryError      ... because the node was short of memory
     +-- TaskUnschedulableError     no node can ever satisfy the demand
     +-- GetTimeoutError            (also a TimeoutError)
     +-- ObjectStoreFullError
     +-- OutOfDiskError
     +-- ObjectLostError
     |    +-- ObjectFetchTimedOutError
     |    +-- ObjectFreedError
     |    +-- ObjectReconstructionFailedError
     |    +-- OwnerDiedError
     +-- RayActorError
     |    +-- ActorDiedError
     |    +-- ActorUnavailableError
     |    +-- ActorUnschedulableError  no node can ever run it
     +-- ActorAlreadyExistsError    (also a ValueError)
     +-- PendingCallsLimitExceeded
     +-- RuntimeEnvSetupError
     +-- NodeDiedError              the node agent or the control process is gone
     +-- RaySystemError             zray itself broke one of its rules

Each carries the ids needed to find the thing in logs, says what happened, and what to do about it.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from typing import Any


class RayError(Exception):
    """The root of all errors raised by zray."""


class RayTaskError(RayError):
    """A task raised an exception.

    ``get`` raises an error that is an instance of both this class and the type the function raised, so
    ``except ValueError`` works; ``cause`` is the original exception.

    Args:
        function_name: qualified name of the function that raised.
        traceback_str: the traceback as text, as seen in the worker.
        cause: the exception itself, or None where it could not be pickled.
        pid: process id of the worker.
        node: hexadecimal id of the node.
    """

    def __init__(
        self,
        function_name: str = "",
        traceback_str: str = "",
        cause: BaseException | None = None,
        pid: int = 0,
        node: str = "",
    ) -> None:
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.pid = pid
        self.node = node
        Exception.__init__(self, function_name, traceback_str)  # not super(): that may be the user's own type

    def __str__(self) -> str:
        where = f"{self.function_name}() (pid={self.pid}, node={self.node[:8]})"
        return f"{where}\n{self.traceback_str.rstrip()}"

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.function_name, self.traceback_str, self.cause, self.pid, self.node)
        return RayTaskError, fields

    def as_instanceof_cause(self) -> RayTaskError:
        """The same error as an instance of the user's own exception type too, where that type can be subclassed."""
        cause = self.cause
        if cause is None or isinstance(cause, RayTaskError):
            return self
        cause_type = type(cause)
        try:
            both = type(
                f"RayTaskError({cause_type.__name__})",
                (RayTaskError, cause_type),
                {"__init__": RayTaskError.__init__, "__str__": RayTaskError.__str__, "__module__": __name__},
            )
            error: RayTaskError = _bare_instance(both)
            RayTaskError.__init__(
                error, self.function_name, self.traceback_str, cause, self.pid, self.node
            )
        except TypeError:  # the type is final or its layout does not mix: the plain error still says all
            return self
        error.args = cause.args
        for name, value in _fields(cause):
            if name not in error.__dict__:
                with contextlib.suppress(AttributeError, TypeError):
                    setattr(error, name, value)
        error.__cause__ = cause
        return error


def _bare_instance(kind: type) -> Any:
    """An instance without a call of the user's ``__new__``. The base whose layout it has must make it, as OSError."""
    for base in kind.__mro__:
        if isinstance(vars(base).get("__new__"), types.BuiltinFunctionType):
            with contextlib.suppress(TypeError):
                return vars(base)["__new__"](kind)
    raise TypeError(f"no base of {kind.__name__} makes an instance of it")


def _fields(error: BaseException) -> Iterator[tuple[str, Any]]:
    """Attributes of an exception: its own, and those its types keep in slots, as ``errno`` of OSError."""
    yield from vars(error).items()
    for base in type(error).__mro__:
        for name, member in vars(base).items():
            if isinstance(member, types.MemberDescriptorType) and not name.startswith("__"):
                with contextlib.suppress(AttributeError):
                    yield name, member.__get__(error)


class TaskCancelledError(RayError):
    """The task was cancelled before it produced a result.

    Args:
        message: which task.
        task_id: hexadecimal id of the task.
    """

    def __init__(self, message: str = "", task_id: str = "") -> None:
        self.task_id = task_id
        super().__init__(message, task_id)

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerCrashedError(RayError):
    """The worker process died while it ran the task (killed, ``os._exit``, segmentation fault)."""


class OutOfMemoryError(WorkerCrashedError):
    """The worker was ended because the node was short of memory."""


class TaskUnschedulableError(RayError):
    """No node of the cluster can ever satisfy what the task asks for."""


class GetTimeoutError(RayError, TimeoutError):
    """``get`` ran out of time; the objects themselves are intact."""


class ObjectStoreFullError(RayError):
    """The object fits neither into shared memory nor anywhere else."""


class OutOfDiskError(RayError):
    """The store had to spill to disk and the disk is full."""


class ObjectLostError(RayError):
    """All copies of the object are gone.

    Args:
        message: what happened and what to do.
        object_id: hexadecimal id of the object.
    """

    def __init__(self, message: str = "", object_id: str = "") -> None:
        self.object_id = object_id
        super().__init__(message, object_id)

    def __str__(self) -> str:
        return str(self.args[0])


class ObjectFetchTimedOutError(ObjectLostError):
    """A copy of the object exists but could not be fetched in time."""


class ObjectFreedError(ObjectLostError):
    """The object was freed by hand while a reference was still in use."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and the task that made it cannot be run again."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the object died, and the object with it."""


class RayActorError(RayError):
    """A call to an actor could not be completed.

    Args:
        message: what happened and what to do.
        actor_id: hexadecimal id of the actor.
    """

    def __init__(self, message: str = "", actor_id: str = "") -> None:
        self.actor_id = actor_id
        self.cause: BaseException | None = None  # what its constructor raised, if that ended it
        super().__init__(message, actor_id)

    def __str__(self) -> str:
        return str(self.args[0])


class ActorDiedError(RayActorError):
    """The actor is dead and will not come back."""


class ActorUnavailableError(RayActorError):
    """The actor cannot be reached just now; the call may or may not have run."""


class ActorUnschedulableError(RayActorError):
    """No node of the cluster can ever run the actor."""


class ActorAlreadyExistsError(RayError, ValueError):
    """The name of the actor is taken in its namespace."""


class PendingCallsLimitExceeded(RayError):
    """The caller has ``max_pending_calls`` calls of this actor outstanding."""


class RuntimeEnvSetupError(RayError):
    """The runtime environment of a task, actor or job could not be built."""


class NodeDiedError(RayError):
    """The node agent or the control process that this process depends on is gone."""


class RaySystemError(RayError):
    """An internal rule of zray was broken: please report it with the text."""


class InvariantError(RaySystemError):
    """A state machine found itself in a state that must not exist."""
