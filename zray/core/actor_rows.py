"""What is told of an actor: to those who look it up, to its callers, and in lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.base.wire_actors import ActorUpdated

if TYPE_CHECKING:
    from zray.core.actor import Actor


def found(actor: Actor) -> tuple[Any, ...]:
    """What makes a handle of it."""
    return actor.id, actor.handle_id, actor.owner, actor.description, actor.detached


def update_of(actor: Actor) -> ActorUpdated:
    """Where it is, for its callers."""
    alive = actor.state.name == "ALIVE"
    worker_id, endpoint = (actor.worker_id, actor.endpoint) if alive else (b"", "")
    return ActorUpdated(actor.id, actor.state.name, actor.incarnation, worker_id, endpoint, actor.error)


def row_of(actor: Actor) -> dict[str, Any]:
    """The actor as a row of the state API."""
    return {
        "actor_id": actor.id,
        "class_name": actor.class_name,
        "state": actor.state.name,
        "job_id": actor.job_id,
        "name": actor.name,
        "ray_namespace": actor.namespace,
        "detached": actor.detached,
        "node_id": actor.node_id,
        "worker_id": actor.worker_id,
        "pid": actor.pid,
        "restarts": actor.restarts,
        "max_restarts": actor.max_restarts,
        "resources": actor.resources,
        "reason": actor.reason or actor.infeasible,
    }


def explained(actor: Actor | None) -> str:
    """Why it takes no calls, in words."""
    if actor is None:
        return "the control does not know the actor (yet)"
    waits = actor.infeasible or ("" if actor.agent else "it waits for its turn to be placed")
    where = f"; its process is on node {actor.node_id.hex()[:8]}, pid {actor.pid}" if actor.agent and actor.pid else ""
    more = f": {actor.reason or waits}" if actor.reason or waits else where
    restarts = f", restarted {actor.restarts} time(s)" if actor.restarts else ""
    return f"{actor.title()} is {actor.state.name}{restarts}{more}"
