"""What is told of an actor: to those who look it up, to its callers, and in lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.base.wire_actors import ActorUpdated

if TYPE_CHECKING:
    from zray.core.actors import Actor


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
