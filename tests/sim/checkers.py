"""Checkers: what must hold while everything goes wrong, and what must hold when all is over.

The judge knows everything: the right value of each object, through which hands each reference went, and who died. An error is
accepted only if somebody's death, or a limit that the seed made too small, can be its cause.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from zray.base.ids import agent_id, agent_of
from zray.core.actor import ActorState
from zray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    ObjectStoreFullError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)

from .world import SimulationError, World

if TYPE_CHECKING:
    from zray.core.tasks import Task

    from .actors import Handle, Options
    from .bodies import OwnerBody
    from .processes import WorkerBody

_TASK = re.compile(r"\(task ([0-9a-f]{32})\)")


class TaskFailure(Exception):
    """What a task of the workload raises when it is meant to."""


class ActorTruth:
    """What really happened to an actor."""

    def __init__(self, body: OwnerBody, options: Options) -> None:
        self.owner = body.id
        self.job_id = body.job_id
        self.options = options
        self.placed: list[bytes] = []  # workers that were to become it
        self.processes: list[WorkerBody] = []  # those that heard of it
        self.killed = False
        self.ended = 0  # how often it was ended, to be restarted
        self.exits = False


class CallTruth:
    """What really happened to a call."""

    def __init__(self, caller: bytes, number: int, handle: Handle, retried: bool) -> None:
        self.caller = caller
        self.number = number  # among all calls of its caller
        self.actor_id = handle.actor_id
        self.ordered = handle.description.ordered
        self.retries = handle.description.retries
        self.found = handle.found
        self.handle_id = handle.handle_id
        self.retried = retried  # it raises, and that is to be tried again


class GroupTruth:
    """What really happened to a placement group."""

    def __init__(self, body: OwnerBody) -> None:
        self.maker = body.id
        self.job_id = body.job_id
        self.removed = False  # somebody asked for that


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
        self.strategies: dict[bytes, tuple[tuple[Any, ...], dict[str, float]]] = {}  # task -> what it asks for
        self.groups: dict[bytes, GroupTruth] = {}
        self.outcomes: dict[tuple[bytes, bytes], str] = {}
        self.actors: dict[bytes, ActorTruth] = {}
        self.calls: dict[bytes, CallTruth] = {}
        self.finished_jobs: dict[bytes, None] = {}
        self.givers: dict[tuple[bytes, bytes], dict[bytes, None]] = {}  # (object, receiver) -> who registered it
        self._run: dict[bytes, dict[bytes, None]] = {}  # process -> the calls that it has started
        self._last: dict[tuple[bytes, bytes], int] = {}  # (process, caller) -> the number of the last call
        self._failed: dict[str, None] = {}  # actors of which a call failed, for a reason
        self.answered: dict[bytes, None] = {}  # tasks and calls whose callers have their results
        self.refusals: dict[str, None] = {}  # what stores have said to those who got no room, for a reason
        self.cancelled: dict[bytes, None] = {}  # tasks that a user cancelled, or tried to
        self.parents: dict[bytes, bytes] = {}  # tasks -> those that submitted them
        self.control_ends = False
        self.links_break = False  # between the machines
        self.late_news = False  # somebody may not have heard of a node for long
        self.values = 0
        self.errors: dict[str, int] = {}

    # -- what the bodies tell -------------------------------------------------------------------------------------

    def touched(self, process: bytes, object_id: bytes) -> None:
        self.hands.setdefault(object_id, {})[process] = None

    def registered(self, object_id: bytes, receiver: bytes, giver: bytes) -> None:
        self.givers.setdefault((object_id, receiver), {})[giver] = None

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

    def error_seen(self, process: bytes, object_id: bytes, error: BaseException, *, read: bool = False) -> None:
        """A process got an error in place of a value: is there a reason? ``read``: it was there, and now can not be read."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1
        if not read:
            self._same(process, object_id, "error")
        if not self._excused(error) and not self._in_vain(process):
            raise SimulationError(
                f"{self._world.name(process)} got {name} for {object_id.hex()} and nobody's death explains it: {error}"
            )

    def refused(self, node: str, text: str, wrong: str) -> None:
        """A store had no room for somebody. ``wrong``: how it could have had some."""
        if wrong:
            raise SimulationError(f"{node} refuses somebody and {wrong}: {text}")
        self.refusals[text] = None

    def no_room(self, text: str) -> bool:
        """Whether a text tells of a refusal of a store, or of a disk that fails."""
        return any(refusal in text for refusal in self.refusals)

    def was_cancelled(self, task_id: bytes) -> bool:
        """Whether somebody has cancelled a task, or one that it descends from."""
        while task_id and task_id not in self.cancelled:
            task_id = self.parents.get(task_id, b"")
        return bool(task_id)

    # -- actors ---------------------------------------------------------------------------------------------------

    def actor_made(self, actor_id: bytes, body: OwnerBody, options: Options) -> None:
        self.actors[actor_id] = ActorTruth(body, options)

    def actor_placed(self, actor_id: bytes, worker: bytes) -> None:
        self.actors[actor_id].placed.append(worker)

    def actor_started(self, actor_id: bytes, body: WorkerBody) -> None:
        """A process becomes an actor: it must be the only one, but for those of nodes that are believed to be dead."""
        if body.id in self._world.dead:
            return
        for other in self.actors[actor_id].processes:
            if other.alive and other.id not in self._world.dead:
                raise SimulationError(f"{body.name} becomes actor {actor_id.hex()}, which {other.name} still is")
        self.actors[actor_id].processes.append(body)

    def actor_killed(self, actor_id: bytes, no_restart: bool) -> None:
        self.actors[actor_id].killed |= no_restart
        self.actors[actor_id].ended += 1

    def actor_exits(self, actor_id: bytes) -> None:
        self._world.faults += 1
        self.actors[actor_id].exits = True

    def call_made(self, task_id: bytes, caller: bytes, handle: Handle, *, retried: bool) -> None:
        self.calls[task_id] = CallTruth(caller, len(self.calls), handle, retried)

    def call_started(self, process: bytes, caller: bytes, task_id: bytes) -> None:
        """An actor runs a call: once, and in the order in which its caller made it."""
        call = self.calls[task_id]
        if call.caller != caller:
            raise SimulationError(f"call {task_id.hex()} came from {self._world.name(caller)}, who did not make it")
        if call.retried or task_id in self.answered:
            return  # it runs again, for a result that was lost; its place is not the same each time
        run = self._run.setdefault(process, {})
        if task_id in run:
            raise SimulationError(f"call {task_id.hex()} ran twice in {self._world.name(process)}")
        run[task_id] = None
        last = self._last.get((process, caller), -1)
        if call.ordered and call.number < last:
            raise SimulationError(f"call {task_id.hex()} ran after others that were made later")
        self._last[process, caller] = max(call.number, last)

    def call_failed(self, task: Task, error: BaseException) -> None:
        """A caller hears that an actor, or one of its processes, is gone: is there a reason?"""
        assert task.template.actor is not None
        actor_id = task.template.actor[0]
        actor = self.actors[actor_id]
        dead = self._world.dead if self._world.faults else {}
        if getattr(error, "actor_id", actor_id.hex()) != actor_id.hex():
            good = self._excused(error)  # an argument of its constructor was a call of another
        elif isinstance(error, TaskCancelledError):
            good = self._excused(error)  # it, or an argument of the constructor
        elif isinstance(error, ActorUnavailableError):
            attempts = sum(1 for process in self.pushed.get(task.id, ()) if process in dead)
            good = attempts > self.calls[task.id].retries >= 0
        elif isinstance(error, ActorUnschedulableError):
            good = (
                "GPU" in actor.options.resources
                or self._world.config.actors_max < 100
                or self._has_no_place(actor.options.strategy, actor.options.resources)
            )
        elif isinstance(error, ActorDiedError):
            good = self._died(actor, str(error), self.calls[task.id])
        else:
            good = self._excused(error)  # of its constructor
        if not good:
            raise SimulationError(f"a call of actor {actor_id.hex()} failed and nothing explains it: {error}")
        self._failed[actor_id.hex()] = None

    @property
    def nodes_lost(self) -> bool:
        """Whether a node has ended, or was given up."""
        return any(agent_of(process) == process for process in self._world.dead)

    def _died(self, actor: ActorTruth, text: str, call: CallTruth) -> bool:
        """Whether the reason of an actor's death is true."""
        dead = self._world.dead
        if "zray.kill() was called" in text:
            return actor.killed
        if "exit_actor()" in text:
            return actor.exits
        if "went out of scope" in text:
            if call.found:
                return True
            hands = self.hands.get(call.handle_id, {})  # who was given a handle keeps the actor, unless a giver died too early
            return self._world.faults > 0 and any(process in dead for process in hands)
        if "created it ended" in text:
            return actor.owner in dead and (call.found or self._world.faults > 0)
        if "its job ended" in text:
            return actor.job_id in self.finished_jobs
        if "placement group" in text and actor.options.strategy[0] == "bundle":
            return self._has_no_place(actor.options.strategy, {})
        if "is unknown" in text:
            return actor.owner in dead or self._world.config.dead_actors_max < 1000
        deaths = sum(1 for worker in actor.placed if worker in dead) + actor.ended
        return "max_restarts" in text and self._world.faults > 0 and deaths > actor.options.restarts >= 0

    # -- inside ---------------------------------------------------------------------------------------------------

    def _same(self, process: bytes, object_id: bytes, kind: str) -> None:
        """At the owner an object that was lost is never found, and one that was there is never lost."""
        if object_id[:10] != process[:10] or self.nodes_lost:
            return  # what was read once may be lost with its node
        if self.outcomes.setdefault((process, object_id), kind) != kind:
            raise SimulationError(f"{object_id.hex()} was both done and lost at its owner")

    def _in_vain(self, process: bytes) -> bool:
        """Whether a process is an actor that is dead already: the arguments of what it runs still may be gone."""
        for actor_id, actor in self.actors.items():
            for body in actor.processes:
                if body.id == process:
                    known = body.cluster.control.brain.actors.actors.get(actor_id)
                    return known is None or known.state is ActorState.DEAD
        return False

    def _excused(self, error: BaseException) -> bool:
        # Workers that the node ends itself excuse nothing, unless there was a fault from which that follows.
        dead = self._world.dead if self._world.faults else {}
        if isinstance(error, TaskFailure):
            return error.args[0] in self.raising
        if isinstance(error, ObjectStoreFullError):
            return self.no_room(str(error))
        if isinstance(error, ObjectLostError):
            if self.links_break and "can not be brought" in str(error):
                return True
            if self.no_room(str(error)):
                return True
            return any(process in dead for process in self.hands.get(bytes.fromhex(error.object_id), {}))
        if isinstance(error, (ActorDiedError, ActorUnavailableError, ActorUnschedulableError)):
            return error.actor_id in self._failed
        if isinstance(error, TaskCancelledError):
            return self.was_cancelled(bytes.fromhex(error.task_id))
        found = _TASK.search(str(error))
        if found is None:
            return False
        task_id = bytes.fromhex(found.group(1))
        if isinstance(error, WorkerCrashedError):
            deaths = sum(1 for worker in self.pushed.get(task_id, ()) if worker in dead)
            return deaths > self.retries[task_id] >= 0
        if isinstance(error, TaskUnschedulableError):
            small = task_id in self.infeasible or self._world.config.workers_max < 100
            small |= self.control_ends and self._world.config.infeasible_grace_s < 3  # nodes did not hear of others in time
            return small or self._has_no_place(*self.strategies[task_id])
        return False

    def _has_no_place(self, strategy: tuple[Any, ...], demand: dict[str, float]) -> bool:
        """Whether what was asked for is gone, or was for a while."""
        if strategy[0] == "bundle":
            group = self.groups.get(strategy[1])
            over = group is None or group.removed or group.job_id in self.finished_jobs
            return over or self.nodes_lost or self.late_news
        if strategy[0] == "labels":
            return self.late_news
        if strategy[0] == "affinity" and not strategy[2]:
            return self.late_news or agent_id(strategy[1]) in self._world.dead
        return any(name.startswith("here") for name in demand) and (self.late_news or self.nodes_lost)
