"""Checkers: what must hold while everything goes wrong, and what must hold when all is over.

The judge knows everything: the right value of each object, through which hands each reference went, and who died. An error is
accepted only if somebody's death, or a limit that the seed made too small, can be its cause.
"""

from __future__ import annotations

import re
from typing import Any

from zray.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from .world import SimulationError, World

_TASK = re.compile(r"\(task ([0-9a-f]{32})\)")


class TaskFailure(Exception):
    """What a task of the workload raises when it is meant to."""


class Judge:
    """All-knowing, and silent as long as everything is right."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.expected: dict[bytes, str] = {}  # object -> tag of its value
        self.raising: dict[str, None] = {}  # tags of the tasks that are meant to raise
        self.infeasible: dict[bytes, None] = {}  # tasks that no node can run
        self.hands: dict[bytes, dict[bytes, None]] = {}  # object -> processes that made, held or passed it
        self.pushed: dict[bytes, list[bytes]] = {}  # task -> workers it was pushed to
        self.started: dict[bytes, int] = {}
        self.retries: dict[bytes, int] = {}  # task -> max_retries
        self.outcomes: dict[tuple[bytes, bytes], str] = {}
        self.small_store = False
        self.values = 0
        self.errors: dict[str, int] = {}

    # -- what the bodies tell -------------------------------------------------------------------------------------

    def touched(self, process: bytes, object_id: bytes) -> None:
        self.hands.setdefault(object_id, {})[process] = None

    def task_pushed(self, task_id: bytes, worker: bytes) -> None:
        self.pushed.setdefault(task_id, []).append(worker)

    def task_started(self, task_id: bytes) -> None:
        self.started[task_id] = self.started.get(task_id, 0) + 1
        if self.retries[task_id] == 0 and self.started[task_id] > 1:
            raise SimulationError(f"task {task_id.hex()} must not be retried and was started twice")

    def value_seen(self, process: bytes, object_id: bytes, value: Any) -> None:
        """A process read the value of an object."""
        self.values += 1
        if value[1] != self.expected[object_id]:
            raise SimulationError(f"{object_id.hex()} is {value[1]!r} and should be {self.expected[object_id]!r}")
        self._same(process, object_id, "value")

    def error_seen(self, process: bytes, object_id: bytes, error: BaseException) -> None:
        """A process got an error in place of a value: is there a reason?"""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1
        self._same(process, object_id, "error")
        if not self._excused(error):
            raise SimulationError(
                f"{self._world.name(process)} got {name} for {object_id.hex()} and nobody's death explains it: {error}"
            )

    # -- inside ---------------------------------------------------------------------------------------------------

    def _same(self, process: bytes, object_id: bytes, kind: str) -> None:
        """At the owner an object that was lost is never found, and one that was there is never lost."""
        if object_id[:10] != process[:10]:
            return
        if self.outcomes.setdefault((process, object_id), kind) != kind:
            raise SimulationError(f"{object_id.hex()} was both done and lost at its owner")

    def _excused(self, error: BaseException) -> bool:
        # Workers that the node ends itself excuse nothing, unless there was a fault from which that follows.
        dead = self._world.dead if self._world.faults else {}
        if isinstance(error, TaskFailure):
            return error.args[0] in self.raising
        if isinstance(error, ObjectStoreFullError):
            return self.small_store
        if isinstance(error, ObjectLostError):
            return any(process in dead for process in self.hands.get(bytes.fromhex(error.object_id), {}))
        found = _TASK.search(str(error))
        if found is None:
            return False
        task_id = bytes.fromhex(found.group(1))
        if isinstance(error, WorkerCrashedError):
            deaths = sum(1 for worker in self.pushed.get(task_id, ()) if worker in dead)
            return deaths > self.retries[task_id] >= 0
        if isinstance(error, TaskUnschedulableError):
            return task_id in self.infeasible or self._world.config.workers_max < 100
        return False


def at_rest(world: World, agent: Any, owners: list[tuple[str, Any]]) -> None:
    """Nothing runs and nobody holds anything: so nothing may be left anywhere."""
    problems = []
    scheduler = agent.scheduler
    if scheduler.resources.available != dict(scheduler.resources.total):
        problems.append(f"resources: {scheduler.resources.available} of {dict(scheduler.resources.total)}")
    for what, left in (
        ("leases", scheduler.leases),
        ("lease requests", scheduler.queue),
        ("leases waiting for workers", agent.pool.waiting),
        ("spill files", agent.store.files.live),
        ("objects in the store", agent.store.objects),
        ("creations waiting", agent.store._demands),
    ):
        if left:
            problems.append(f"{what}: {len(left)}")
    if agent.store.arena.used_bytes:
        problems.append(f"the arena has {agent.store.arena.used_bytes} bytes in use")
    for name, owner in owners:
        references = owner.references
        left_over = {key: value for key, value in owner.statistics().items() if value}
        for what, table in (
            ("watchers", owner.waiters.watchers),
            ("gets of others", owner._remote_gets),
            ("registrations", references.handed),
            ("notes of passed arguments", references.passed),
            ("words to owners", references.deltas),
        ):
            if table:
                left_over[what] = len(table)
        if left_over:
            problems.append(f"{name}: {left_over}")
    if problems:
        raise SimulationError("at rest, but there is still: " + "; ".join(problems))
