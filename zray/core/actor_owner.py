"""ActorOwner: the part of an owner that makes actors and ends them.

Who calls ``Cls.remote()`` owns the actor: it registers it, sends the call of its constructor when the arguments of that are
there, keeps these for as long as the constructor may have to run again, and says when no handle is left. What the control says
of actors comes here too.
"""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.wire import CONTROL, ERROR, Entry
from zray.base.wire_actors import ActorOutOfScope, CreateActor, RegisterActor
from zray.core.actor import ActorState
from zray.core.actor_calls import ActorTaskSubmitter
from zray.core.effects import SEND, Effect
from zray.core.references import ReferenceCounter
from zray.core.tasks import Task, TaskManager


class ActorOwner:
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    calls: ActorTaskSubmitter
    creations: dict[bytes, Task]  # actors of this process that may need their constructor's arguments (again)
    memory: dict[bytes, Entry]
    out: list[Effect]
    references: ReferenceCounter
    tasks: TaskManager

    def _fail(self, now: float, task: Task, entry: Entry) -> None:
        """A task will have no other result."""
        raise NotImplementedError

    def _make_spec(self, task: Task) -> tuple[Any, ...] | None:
        """What a worker must know of a task."""
        raise NotImplementedError

    def _ready(self, now: float, task: Task) -> None:
        """All arguments of a task are there."""
        raise NotImplementedError

    def _seek(self, object_id: bytes, owner: Any) -> None:
        """Somebody here waits for an object."""
        raise NotImplementedError

    def meet(self, process: bytes) -> None:
        """Have the end of a process told."""
        raise NotImplementedError

    def create_actor(self, now: float, task: Task, registration: RegisterActor | None) -> None:
        """An actor was called into being; one with a name is registered already, and its handle owned since that was asked."""
        actor = task.template.actor
        assert actor is not None
        self.references.counts.setdefault(actor[1], 1)
        if registration is not None:
            self.out.append((SEND, CONTROL, registration))
        queue = self.calls.open(*actor, subscribed=registration is not None)  # or ask what has happened since
        queue.registration = registration
        self.creations[actor[0]] = task
        missing = self.tasks.submit(task, self.memory.__contains__)
        for ref in missing:
            self._seek(ref.binary(), ref.owner)
        if not missing:
            self._ready(now, task)

    def kill_actor(self, actor_id: bytes, no_restart: bool, handle_id: bytes) -> None:
        """End an actor, after what was said of it before."""
        self.calls.kill(actor_id, no_restart, handle_id)

    def on_actor_updated(
        self,
        now: float,
        peer: bytes,
        actor_id: bytes,
        state: str,
        incarnation: int,
        worker_id: bytes,
        endpoint: str,
        error: bytes,
    ) -> None:
        """The control says where an actor is."""
        if worker_id:
            self.meet(worker_id)
        self.calls.on_updated(now, actor_id, state, incarnation, worker_id, endpoint, error)
        if state == ActorState.DEAD.name:
            task = self.creations.pop(actor_id, None)
            if task is not None and task.id in self.tasks.pending:
                self._fail(now, task, (ERROR, error))

    def send_creation(self, actor_id: bytes, task: Task) -> None:
        """The arguments of a constructor are there."""
        spec = self._make_spec(task)
        if spec is None:
            return  # one of them was lost meanwhile: this comes again
        creation = pickle.dumps((spec, self.references.me), 5)
        self.out.append((SEND, CONTROL, CreateActor(actor_id, creation, b"")))

    def _created(self, task: Task) -> None:
        """A constructor is over; its arguments are needed no more, unless it may be run again."""
        actor = task.template.actor
        if actor is not None and not (task.template.extra or {}).get("max_restarts"):
            self.creations.pop(actor[0], None)

    def _creation_failed(self, task: Task, entry: Entry) -> None:
        """An argument of a constructor is an error."""
        actor = task.template.actor
        if actor is not None and actor[0] in self.creations:
            del self.creations[actor[0]]
            self.out.append((SEND, CONTROL, CreateActor(actor[0], b"", entry[1])))

    def _out_of_scope(self, handle_id: bytes) -> None:
        """No handle of an actor is left anywhere; a detached one lives on."""
        self.out.append((SEND, CONTROL, ActorOutOfScope(self.calls.forget(handle_id))))
