"""A driver or worker on a bench: its brain, the references its user holds, and a loop that turns after each event."""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.config import Config
from zray.base.ids import TaskIDs, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import (
    ERROR,
    INLINE,
    Address,
    RequestLease,
)
from zray.core.owner import Owner
from zray.core.tasks import Task, TaskTemplate
from zray.object_ref import ObjectRef

from .reading import AGENT, NODE, drain, resident, sent

ME, FRIEND, WORKER = resident("me"), resident("frie"), resident("work")
A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))
ONE = ResourceSet.of({"CPU": 1})


class Bench:
    """An owner, the references its user holds, and a turn of the loop after each event."""

    def __init__(self, **limits: Any) -> None:
        self.owner = Owner(ME, b"job1", NODE, AGENT, Config(**limits), self.ref)
        self.inbox: list[bytes] = []
        self.ids = TaskIDs(ME[0])
        self.leases = 0

    def turn(self, now: float = 0.0) -> list[Any]:
        while True:
            while self.inbox:
                self.owner.references.release(self.inbox.pop(0))
            self.owner.settle(now)
            if not self.inbox:
                break
        self.owner.check()
        return drain(self.owner.out)

    def does(self, event: str, *args: Any, now: float = 0.0) -> list[Any]:
        getattr(self.owner, event)(now, *args)
        return self.turn(now)

    def hears(self, event: str, *fields: Any, peer: bytes = AGENT, now: float = 0.0) -> list[Any]:
        return self.does("on_" + event, peer, *fields, now=now)

    def ref(self, object_id: bytes, owner: Address = ME) -> ObjectRef[Any]:
        return ObjectRef(object_id, owner, self.inbox.append)

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        self.owner.adopt(object_id, owner)
        return self.ref(object_id, owner)

    def put(self, payload: bytes, contained: Any = ()) -> ObjectRef[Any]:
        object_id = self.ids() + bytes(4)
        self.owner.put(object_id, (INLINE, payload, contained) if contained else (INLINE, payload))
        return self.ref(object_id)

    def call(
        self, *args: Any, nested: Any = (), retries: int = 3, returns: int = 1, demand: ResourceSet = ONE
    ) -> tuple[list[ObjectRef[Any]], list[Any]]:
        """Call a task; the references to its results and the effects."""
        task_id = self.ids()
        template = TaskTemplate(b"f" * 16, "fun", demand, returns, retries, None)
        ids = tuple(return_id(task_id, n + 1) for n in range(returns))
        task = Task(task_id, template, b"p", tuple(enumerate(args)), tuple(nested), ids, 1)
        refs = [self.ref(i) for i in ids]
        self.owner.submit(0.0, task)
        del task
        return refs, self.turn()

    def grant(self, effects: list[Any]) -> tuple[int, list[Any]]:
        """The agent grants the one request among the effects."""
        [(_, request)] = sent(effects, RequestLease)
        self.leases += 1
        return self.leases, self.hears("lease_granted", request.request_id, self.leases, WORKER[0], WORKER[1])

    def done(self, lease_id: int, ref: ObjectRef[Any], *entries: Any, borrowed: Any = ()) -> list[Any]:
        items = [(ref.binary()[:16], list(entries), 10, list(borrowed))]
        return self.hears("done", lease_id, items, peer=WORKER[0])

    def error(self, ref: ObjectRef[Any]) -> BaseException:
        kind, payload = self.owner.memory[ref.binary()][:2]
        assert kind == ERROR
        error = pickle.loads(payload)
        assert isinstance(error, BaseException)
        return error

    def at_rest(self) -> bool:
        owner = self.owner
        numbers = owner.statistics()
        return not any(numbers[name] for name in ("objects", "fetching", "pending", "counted", "borrowed", "lent"))
