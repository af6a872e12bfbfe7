"""TaskManager: the tasks this process submitted and has no result of.

Theory of operation
-------------------
A task waits here for its arguments, goes to ``leases`` when all of them are there, and is forgotten when its results
arrive. An argument that turned out to be an error is the task's result too: the task never runs.

Attempts are counted by what ended them. Those that ended with their worker or node, and those that raised an exception for which
``retry_exceptions`` says so, share the budget of ``max_retries``; those that were ended because memory was short have one of
their own, which is nothing where ``max_retries`` is 0. Hand-backs cost nothing, nor does the death of a worker that had several
tasks: each of them then runs alone. A task that was cancelled never runs again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from zray.base.ids import agent_of
from zray.base.resources import ResourceSet
from zray.exceptions import InvariantError

WORKER_DIED, NODE_DIED, OUT_OF_MEMORY, RAISED = "its worker died", "its node died", "memory was short", "it raised an exception"
_NONE: dict[str, int] = {}
CANCELLED, FORCED = 1, 2  # what is wished of a task that is to end early; 0 of all others


class TaskTemplate:
    """What all tasks made by one remote function, or one method of a handle, with one set of options have in common."""

    __slots__ = (
        "_at_depths",
        "actor",
        "budget",
        "creates",
        "extra",
        "function_id",
        "key",
        "max_retries",
        "name",
        "num_returns",
        "ordered",
        "resources",
        "window",
    )

    def __init__(
        self,
        function_id: bytes,
        name: str,
        resources: ResourceSet,
        num_returns: int,
        max_retries: int,
        extra: dict[str, Any] | None,
        strategy: tuple[Any, ...] = ("default",),
    ) -> None:
        self.function_id = function_id
        self.key: tuple[Any, ...] = (resources, strategy)  # tasks of one key share leases
        self.name = name
        self.resources = resources
        self.num_returns = num_returns
        self.max_retries = max_retries
        self.extra = extra  # what only the worker needs: max_calls, retry_exceptions
        self.actor: tuple[bytes, bytes] | None = None  # whose calls these are: the actor, and the object of its handles
        self.creates = False  # the call is that of the actor's constructor
        self.ordered = True  # the calls of one caller run in their order
        self.window = (0, 0, False)  # of a generator: how many items and bytes may wait to be taken, and whether it is dynamic
        self.budget: CallBudget | None = None  # how many of these calls may be pending, where that is limited
        self._at_depths: dict[int, TaskTemplate] = {}

    def at_depth(self, depth: int) -> TaskTemplate:
        """The same for tasks of one depth, which do not share leases with those of others.

        For a process that submits tasks of all depths: those that others wait for must not queue behind those that wait.
        """
        known = self._at_depths.get(depth)
        if known is None:
            resources, strategy = self.key
            known = TaskTemplate(
                self.function_id, self.name, resources, self.num_returns, self.max_retries, self.extra, strategy
            )
            known.key = (resources, strategy, depth)
            self._at_depths[depth] = known
        return known


class CallBudget:
    """How many calls of an actor this process may have pending (``max_pending_calls``).

    User threads take, the loop gives back. Threads that take at the same moment may pass the limit by as many as they are.
    """

    __slots__ = ("_given", "_taken", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0
        self._given = 0

    def take(self) -> bool:
        """One more call; False if that would be too many."""
        if self._taken - self._given >= self.most:
            return False
        self._taken += 1
        return True

    def give(self) -> None:
        """A call has its result."""
        self._given += 1


class Task:
    """One submitted task.

    ``returns`` are the ids of its results; ``slots`` say where a top-level reference stood: ``(position or name,
    ref)``; ``nested`` are references deeper inside the arguments. Holding the reference objects keeps the counts up
    until the task ends.
    """

    __slots__ = (
        "cancelled",
        "depth",
        "failures",
        "id",
        "missing",
        "nested",
        "parent",
        "payload",
        "retries_left",
        "returns",
        "slots",
        "suspect",
        "template",
        "tried",
    )

    def __init__(
        self,
        id: bytes,
        template: TaskTemplate,
        payload: Any,
        slots: tuple[Any, ...],
        nested: tuple[Any, ...],
        returns: tuple[bytes, ...],
        depth: int,
    ) -> None:
        self.id = id
        self.template = template
        self.payload = payload
        self.slots = slots
        self.nested = nested
        self.returns = returns
        self.depth = depth
        self.missing = 0
        self.retries_left = template.max_retries
        self.suspect = False
        self.tried: tuple[bytes, ...] = ()  # agents of the nodes where earlier attempts may have left results
        self.failures = _NONE  # attempts that had no result, by what ended them
        self.cancelled = 0
        self.parent = b""  # the task that submitted it, in the process that runs that

    def tried_on(self, worker: bytes) -> None:
        """An attempt is over that was not the last one."""
        agent = agent_of(worker)
        if agent not in self.tried:
            self.tried = (*self.tried, agent)


    def failed(self, cause: str) -> int:
        """An attempt has ended without a result; how many have for the same cause."""
        count = self.failures.get(cause, 0) + 1
        self.failures = {**self.failures, cause: count}
        return count

    def attempts(self) -> str:
        """How often it was tried and what ended that, in words."""
        causes = [f"{count} time(s) {cause}" for cause, count in self.failures.items()]
        return f"It was tried {sum(self.failures.values())} time(s): {', '.join(causes)}"


class TaskManager:
    """Pending tasks and what they wait for.

    Args:
        oom_retries_max: attempts after the first when memory was short.
    """

    __slots__ = ("_oom_retries_max", "pending", "waiting")

    def __init__(self, oom_retries_max: int = 0) -> None:
        self._oom_retries_max = oom_retries_max
        self.pending: dict[bytes, Task] = {}
        self.waiting: dict[bytes, list[Task]] = {}

    def submit(self, task: Task, is_ready: Callable[[bytes], bool]) -> list[Any]:
        """Take a task on.

        Returns:
            The references among its arguments that are not there yet; the task is ready when there is none.
        """
        self.pending[task.id] = task
        missing = []
        for _, ref in task.slots:
            object_id = ref.binary()
            if not is_ready(object_id):
                task.missing += 1
                self.waiting.setdefault(object_id, []).append(task)
                missing.append(ref)
        return missing

    def on_object_ready(self, object_id: bytes) -> list[Task]:
        """An argument is there: the tasks that waited for nothing else."""
        ready = []
        for task in self.waiting.pop(object_id, ()):
            task.missing -= 1
            if task.missing == 0 and task.id in self.pending:
                ready.append(task)
        return ready

    def withdraw(self, task: Task) -> None:
        """A task does not wait for its arguments any more."""
        if task.missing:
            for object_id in {ref.binary() for _, ref in task.slots}:
                left = [other for other in self.waiting.get(object_id, ()) if other is not task]
                if left:
                    self.waiting[object_id] = left
                else:
                    self.waiting.pop(object_id, None)
            task.missing = 0

    def may_retry(self, task: Task, cause: str) -> bool:
        """Charge an attempt that had no result to the budget of its cause: whether the task may run again."""
        count = task.failed(cause)
        if task.cancelled:
            return False
        if cause == OUT_OF_MEMORY:
            return task.template.max_retries != 0 and count <= self._oom_retries_max
        if task.retries_left > 0:
            task.retries_left -= 1
            return True
        return task.retries_left < 0

    def check(self) -> None:
        """Assert the invariants."""
        waiting: dict[bytes, int] = {}
        for tasks in self.waiting.values():
            for task in tasks:
                waiting[task.id] = waiting.get(task.id, 0) + 1
        for task in self.pending.values():
            if task.missing != waiting.get(task.id, 0):
                raise InvariantError(f"task {task.id.hex()} waits for {task.missing}, not as listed")

    def statistics(self) -> dict[str, int]:
        return {"pending": len(self.pending), "waiting_for_arguments": len(self.waiting)}
