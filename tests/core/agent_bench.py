"""A node agent on a bench: its clients, and workers that become ready as soon as they are started."""

from __future__ import annotations

from typing import Any

from zray.base.config import Config
from zray.base.resources import ResourceSet
from zray.base.wire import LeaseGranted
from zray.base.wire_actors import ActorPlaced
from zray.core.agent import NodeAgent
from zray.core.effects import START_WORKER, WATCH

from .reading import CONTROL, NODE, drain, resident, sent, verbs

JOB, OTHER_JOB = b"job1", b"job2"
DRIVER, SECOND = resident("driv")[0], resident("seco")[0]
ONE = {"CPU": 10_000}
A = bytes([1]) * 20
ACTOR, OTHER = b"actor-a-----", b"actor-b-----"


class Bench:
    """An agent with its clients; workers become ready as soon as they are started."""

    def __init__(self, cpus: float = 2, prestart: int = 0, *, remote: bool = False, **limits: Any) -> None:
        total = ResourceSet.of({"CPU": cpus})
        self.agent = NodeAgent(NODE, total, 1 << 20, prestart, CONTROL, Config(**limits), remote=remote)
        self.granted: dict[tuple[bytes, int], LeaseGranted] = {}
        self.requests = 0
        for driver in (DRIVER, SECOND):
            assert verbs(self.does("on_peer_joined", driver, "driver", 77), WATCH) == [(driver, 77)]

    def does(self, event: str, *args: Any, now: float = 0.0) -> list[Any]:
        getattr(self.agent, event)(now, *args)
        self.agent.check()
        effects = drain(self.agent.out)
        for peer, grant in sent(effects, LeaseGranted):
            self.granted[peer, grant.request_id] = grant
        return effects

    def hears_of_bundles(self, event: str, *args: Any) -> list[Any]:
        """The control says something about a placement group."""
        getattr(self.agent.bundles, "on_" + event)(0.0, CONTROL, *args)
        self.agent.check()
        return drain(self.agent.out)

    def ready(self, worker_id: bytes) -> list[Any]:
        self.does("on_peer_joined", worker_id, "worker", 1)
        return self.does("on_worker_ready", worker_id, worker_id, "sim://", 1)

    def started(self, effects: list[Any]) -> list[Any]:
        """Everything that was started becomes ready; the effects, later ones included."""
        for (worker_id,) in verbs(effects, START_WORKER):
            effects = effects + self.started(self.ready(worker_id))
        return effects

    def request(self, owner: bytes = DRIVER, job: bytes = JOB, cpus: float = 1, depth: int = 0) -> list[Any]:
        self.requests += 1
        demand = {"CPU": int(cpus * 10_000)}
        return self.does("on_request_lease", owner, self.requests, job, demand, depth)

    def lease(self, owner: bytes = DRIVER, job: bytes = JOB) -> LeaseGranted:
        self.started(self.request(owner, job))
        return self.granted[owner, self.requests]

    def place(
        self,
        actor: bytes = ACTOR,
        incarnation: int = 1,
        job: bytes = JOB,
        detached: bool = False,
        holds: dict[str, int] | None = None,
        needs: dict[str, int] | None = None,
        retriable: bool = True,
        strategy: Any = ("default",),
    ) -> list[Any]:
        what = (needs or ONE, holds or {}, retriable, b"creation", strategy)
        return self.does("on_place_actor", CONTROL, actor, incarnation, job, detached, *what)

    def actor(self, actor: bytes = ACTOR, **options: Any) -> bytes:
        """The worker of an actor that was placed."""
        effects = self.started(self.place(actor, **options))
        [placed] = [m for _, m in sent(effects, ActorPlaced) if m.actor_id == actor]
        return placed.worker_id

    def end(self, force: bool, actor: bytes = ACTOR, incarnation: int = 1) -> list[Any]:
        return self.does("on_end_actor", CONTROL, actor, incarnation, force)

    def balanced(self) -> bool:
        resources = self.agent.scheduler.resources
        return resources.available == dict(resources.total) and not self.agent.scheduler.leases
