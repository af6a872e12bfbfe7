"""ActorDesk: the part of a node agent that the control talks to about actors.

The control has chosen the node; here the actor waits for resources as any request does. One that waits although another node has
room by now goes back to the control, which chooses again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zray.base.config import Config
from zray.base.wire_actors import ActorLost, ActorRefused, PlaceActor
from zray.core.actor_places import ELSEWHERE
from zray.core.bundles import NodeBundles
from zray.core.effects import SEND, Effect
from zray.core.policy import readable
from zray.core.scheduler import GrantedLease, LeaseScheduler, Request
from zray.core.workers import Worker, WorkerPool


class ActorDesk:
    """What ``NodeAgent`` inherits; the fields are made there."""

    __slots__ = ()

    _actors: dict[bytes, GrantedLease]
    _config: Config
    _control: bytes
    _placements: Iterator[int]
    bundles: NodeBundles
    out: list[Effect]
    pool: WorkerPool
    scheduler: LeaseScheduler

    def _advance(self, now: float) -> None:
        """Grant what can be granted."""
        raise NotImplementedError

    def _serve(self, served: tuple[int, Worker] | None) -> None:
        """A worker is free for one that waited for it."""
        raise NotImplementedError

    def on_place_actor(
        self,
        now: float,
        peer: bytes,
        actor_id: bytes,
        incarnation: int,
        job_id: bytes,
        detached: bool,
        placement: dict[str, int],
        resources: dict[str, int],
        retriable: bool,
        creation: bytes,
        strategy: tuple[Any, ...] = ("default",),
    ) -> None:
        kind = "exhausted"
        reason = f"its node runs {self._config.actors_max} actors already, which is its limit (ZRAY_ACTORS_MAX)"
        queued = sum(1 for request in self.scheduler.queue.values() if request.actor is not None)
        if not self.pool.full_of_actors(queued):
            place = PlaceActor(
                actor_id, incarnation, job_id, detached, placement, resources, retriable, creation, strategy
            )
            kind = "infeasible"
            reason = f"{strategy!r} is no strategy"
            if readable(strategy):
                reason = self.scheduler.place(self._control, next(self._placements), place)
        if reason:
            self.out.append((SEND, self._control, ActorRefused(actor_id, incarnation, kind, reason)))
            return
        if strategy[0] == "bundle":
            self.bundles.learn(strategy[1])  # it may move, or end
        self._advance(now)

    def on_end_actor(self, now: float, peer: bytes, actor_id: bytes, incarnation: int, force: bool) -> None:
        unborn = ActorLost(actor_id, incarnation, "it was ended before it had a process")
        for request in list(self.scheduler.queue.values()):
            if request.actor is not None and request.actor[:2] == (actor_id, incarnation):
                self.scheduler.cancel(request.owner, request.id)
                self.out.append((SEND, self._control, unborn))
        lease = self._actors.get(actor_id)
        if lease is None or lease.request.actor is None or lease.request.actor.incarnation != incarnation:
            return
        if force and lease.worker is not None:
            self.pool.kill(self.pool.workers[lease.worker])
            return
        del self._actors[actor_id]
        self.scheduler.end(lease.id)
        if lease.worker is None:
            self.pool.cancel(lease.id)
            self.out.append((SEND, self._control, unborn))
        else:
            self._serve(self.pool.on_returned(now, lease.worker))
        self._advance(now)

    def _send_back(self, request: Request, reason: str) -> None:
        """An actor that has no process yet can not run here, or can run elsewhere."""
        assert request.actor is not None
        self.scheduler.cancel(request.owner, request.id)
        self._actors.pop(request.actor.actor_id, None)
        self.out.append((SEND, self._control, ActorRefused(*request.actor[:2], ELSEWHERE, reason)))
