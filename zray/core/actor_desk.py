"""ActorDesk: the part of a node agent that the control talks to about actors.

The control has chosen the node; here the actor waits for resources as any request does. One that waits although another node has
room by now goes back to the control, which chooses again.

The control is told what becomes of them. One that begins anew asks for that once more, so the ends of the latest are remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zray.base.wire_actors import ActorLost, ActorPlaced, ActorRefused, PlaceActor, StartActor
from zray.core.actor_places import ELSEWHERE
from zray.core.bundles import NodeBundles
from zray.core.effects import SEND
from zray.core.object_desk import ObjectDesk
from zray.core.policy import readable
from zray.core.scheduler import GrantedLease, LeaseScheduler, Request
from zray.core.workers import Worker, WorkerPool

ENDS_MAX = 1000  # that are remembered


class ActorDesk(ObjectDesk):
    """What ``NodeAgent`` inherits; the fields are made there."""

    __slots__ = ("_actors", "_ends", "_exiting", "_placements")

    _actors: dict[bytes, GrantedLease]
    _control: bytes
    _ends: dict[bytes, tuple[int, str, bool]]
    _exiting: dict[bytes, str]
    _placements: Iterator[int]
    bundles: NodeBundles
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

    def on_actor_exiting(self, now: float, peer: bytes, actor_id: bytes, reason: str) -> None:
        """An actor is about to end its process, and does not want to come back."""
        lease = self._actors.get(actor_id)
        if lease is not None and lease.worker == peer:
            self._exiting[peer] = reason

    def _become(self, lease: GrantedLease, actor: PlaceActor, worker: Worker) -> None:
        """A worker was found for an actor."""
        worker.lasting = actor.detached
        start = StartActor(*actor[:3], dict(lease.request.demand), lease.gpu_ids, actor.creation)
        placed = ActorPlaced(*actor[:2], bytes(self._node_id), worker.id, worker.endpoint, worker.pid)
        self.out.append((SEND, self._control, placed))
        self.out.append((SEND, worker.id, start))

    def _actor_gone(self, lease: GrantedLease, actor: PlaceActor, reason: str) -> None:
        """The process of an actor ended."""
        if self._actors.get(actor.actor_id) is lease:
            del self._actors[actor.actor_id]
        will = self._exiting.pop(lease.worker or b"", "")
        end = (actor.incarnation, will or reason, bool(will))
        self._ends.pop(actor.actor_id, None)
        self._ends[actor.actor_id] = end
        if len(self._ends) > ENDS_MAX:
            del self._ends[next(iter(self._ends))]
        self.out.append((SEND, self._control, ActorLost(actor.actor_id, *end)))

    def actors_here(self) -> list[tuple[Any, ...]]:
        """The actors that are here or will be: id, incarnation, worker, endpoint, pid."""
        waiting = [request.actor for request in self.scheduler.queue.values() if request.actor is not None]
        rows: list[tuple[Any, ...]] = [(actor.actor_id, actor.incarnation, b"", "", 0) for actor in waiting]
        for actor_id, lease in self._actors.items():
            assert lease.request.actor is not None
            worker = self.pool.workers.get(lease.worker or b"")
            place = (worker.id, worker.endpoint, worker.pid) if worker is not None else (b"", "", 0)
            rows.append((actor_id, lease.request.actor.incarnation, *place))
        return rows
