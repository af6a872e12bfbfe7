"""Actor: what the control knows of one actor, its lifecycle, and the row that it survives in.

The columns that an operator reads are beside two that only this module does: ``details``, which never change, and ``standing``,
which does whenever the actor's state or place does.
"""

from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

from zray.core.lifecycle import Lifecycle


class ActorState(Enum):
    DEPENDENCIES_UNREADY = 1
    PENDING_CREATION = 2
    ALIVE = 3
    RESTARTING = 4
    DEAD = 5


_S = ActorState
ACTOR_LIFECYCLE = Lifecycle(
    "actor",
    {
        _S.DEPENDENCIES_UNREADY: "It is registered; the arguments of its constructor are not all there.",
        _S.PENDING_CREATION: "It waits for a worker, or its constructor runs.",
        _S.ALIVE: "Its constructor has returned, and it takes calls.",
        _S.RESTARTING: "Its process ended; another will take its place. Calls wait.",
        _S.DEAD: "It will never take a call again; the reason is known.",
    },
    {
        _S.DEPENDENCIES_UNREADY: {"created": _S.PENDING_CREATION, "ended": _S.DEAD},
        _S.PENDING_CREATION: {"started": _S.ALIVE, "lost": _S.RESTARTING, "ended": _S.DEAD},
        _S.ALIVE: {"lost": _S.RESTARTING, "ended": _S.DEAD},
        _S.RESTARTING: {"started": _S.ALIVE, "lost": _S.RESTARTING, "ended": _S.DEAD},
        _S.DEAD: {},
    },
)


class Actor:
    """What the control knows of one actor."""

    __slots__ = (
        "agent",
        "class_name",
        "creation",
        "description",
        "detached",
        "early",
        "endpoint",
        "error",
        "handle_id",
        "id",
        "incarnation",
        "infeasible",
        "job_id",
        "max_restarts",
        "name",
        "namespace",
        "node_id",
        "owner",
        "pid",
        "placement",
        "reason",
        "resources",
        "restarts",
        "started_at",
        "state",
        "strategy",
        "subscribers",
        "worker_id",
        "young_deaths",
    )

    def __init__(self, id: bytes, job_id: bytes, owner: tuple[bytes, str]) -> None:
        self.id = id
        self.job_id = job_id
        self.owner = owner
        self.state = ActorState.DEPENDENCIES_UNREADY
        self.handle_id = b""
        self.class_name = ""
        self.name = ""
        self.namespace = ""
        self.detached = False
        self.max_restarts = 0
        self.placement: dict[str, int] = {}
        self.resources: dict[str, int] = {}
        self.description = b""
        self.strategy: tuple[Any, ...] = ("default",)
        self.creation = b""
        self.incarnation = 0
        self.restarts = 0
        self.young_deaths = 0  # in a row
        self.started_at = 0.0
        self.agent = b""  # of the node it was placed on; nothing while it waits for its next try
        self.node_id = b""
        self.worker_id = b""
        self.endpoint = ""
        self.pid = 0
        self.early: tuple[bytes, bytes] | None = None  # the word of a worker that came before that of its agent
        self.infeasible = ""  # why no node can run it, while that is so
        self.reason = ""  # of its death
        self.error = b""  # what its calls get: for ever, or while it restarts
        self.subscribers: dict[bytes, None] = {}

    def move(self, event: str) -> None:
        self.state = ACTOR_LIFECYCLE.next(self.state, event)

    def title(self) -> str:
        """The actor in the words of an error."""
        name = f" {self.name!r}" if self.name else ""
        return f"actor {self.class_name}{name} ({self.id.hex()})"


def saved(actor: Actor) -> tuple[Any, ...]:
    """A new actor, as it is written down."""
    details = (
        actor.owner[1],
        actor.handle_id,
        actor.class_name,
        actor.name,
        actor.namespace,
        actor.placement,
        actor.resources,
        actor.description,
        actor.strategy,
    )
    return (
        actor.id,
        actor.job_id,
        actor.owner[0],
        actor.class_name,
        actor.name,
        actor.namespace,
        actor.detached,
        actor.max_restarts,
        actor.state.name,
        pickle.dumps(details, 5),
    )


def changed(actor: Actor) -> tuple[Any, ...]:
    """What is written down when its state or its place has changed."""
    standing = (actor.incarnation, actor.agent, actor.endpoint, actor.young_deaths, actor.error)
    return (
        actor.state.name,
        actor.restarts,
        actor.node_id,
        actor.worker_id,
        actor.pid,
        actor.reason,
        pickle.dumps(standing, 5),
        actor.id,
    )


def restored(row: dict[str, Any]) -> Actor:
    """The actor of a row."""
    endpoint, *details = pickle.loads(row["details"])
    actor = Actor(row["actor_id"], row["job_id"], (row["owner"], endpoint))
    (
        actor.handle_id,
        actor.class_name,
        actor.name,
        actor.namespace,
        actor.placement,
        actor.resources,
        actor.description,
        actor.strategy,
    ) = details
    actor.detached = bool(row["detached"])
    actor.max_restarts = int(row["max_restarts"])
    actor.state = ActorState[row["state"]]
    actor.restarts = row["restarts"]
    actor.creation = row["creation"] or b""
    if row["standing"]:
        actor.incarnation, actor.agent, actor.endpoint, actor.young_deaths, actor.error = pickle.loads(row["standing"])
        actor.node_id = row["node_id"]
        actor.worker_id = row["worker_id"]
        actor.pid = row["pid"]
        actor.reason = row["reason"]
    return actor
