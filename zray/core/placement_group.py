"""PlacementGroup: what the control knows of one placement group, and the states it goes through."""

from __future__ import annotations

from enum import Enum

from zray.base.resources import ResourceSet
from zray.core.lifecycle import Lifecycle
from zray.core.packing import Conditions
from zray.core.views import GroupView


class GroupState(Enum):
    PENDING = 1
    CREATED = 2
    RESCHEDULING = 3
    REMOVED = 4


GROUP_LIFECYCLE = Lifecycle(
    "placement group",
    {
        GroupState.PENDING: "Its bundles have no places yet: there is no room, or the nodes are being asked.",
        GroupState.CREATED: "All its bundles have their places.",
        GroupState.RESCHEDULING: "A node died: the bundles that were there need new places.",
        GroupState.REMOVED: "It is gone, with what ran in it; the reason is known.",
    },
    {
        GroupState.PENDING: {"placed": GroupState.CREATED, "removed": GroupState.REMOVED},
        GroupState.CREATED: {"lost": GroupState.RESCHEDULING, "removed": GroupState.REMOVED},
        GroupState.RESCHEDULING: {
            "placed": GroupState.CREATED,
            "lost": GroupState.RESCHEDULING,
            "removed": GroupState.REMOVED,
        },
        GroupState.REMOVED: {},
    },
)


class PlacementGroup:
    """What the control knows of one placement group."""

    __slots__ = (
        "actor_id",
        "actor_over",
        "asked",
        "attempt",
        "bundles",
        "conditions",
        "creator",
        "detached",
        "free",
        "id",
        "infeasible",
        "infeasible_since",
        "job_id",
        "job_over",
        "name",
        "namespace",
        "nodes",
        "plan",
        "prepared",
        "reason",
        "retry_set",
        "state",
        "strategy",
        "subscribers",
        "tries",
        "waiters",
    )

    def __init__(
        self,
        id: bytes,
        job_id: bytes,
        creator: bytes,
        strategy: str,
        bundles: tuple[ResourceSet, ...],
        conditions: tuple[Conditions, ...],
    ) -> None:
        self.id = id
        self.job_id = job_id
        self.creator = creator
        self.actor_id = b""
        self.name = ""
        self.namespace = ""
        self.detached = False
        self.strategy = strategy
        self.bundles = bundles
        self.conditions = conditions
        self.state = GroupState.PENDING
        self.nodes: list[bytes] = [b""] * len(bundles)
        self.free: dict[int, dict[str, int]] = {}  # what is free in each bundle, as its node said last
        self.attempt = 0  # the number of the round
        self.plan: dict[int, bytes] = {}  # bundle -> node, of the round
        self.asked: dict[bytes, list[int]] = {}  # node -> bundles; nothing when there is no round
        self.prepared: dict[bytes, list[int]] = {}
        self.tries = 0  # in vain, in a row
        self.retry_set = False
        self.infeasible = ""  # why no nodes can hold it, while that is so
        self.infeasible_since = 0.0
        self.reason = ""  # why it waits, or was removed
        self.waiters: dict[tuple[bytes, int], None] = {}  # (process, request)
        self.subscribers: dict[bytes, None] = {}  # agents
        self.job_over = False
        self.actor_over = False

    def move(self, event: str) -> None:
        self.state = GROUP_LIFECYCLE.next(self.state, event)

    def view(self) -> GroupView:
        """What policies must know of it."""
        free = {index: ResourceSet(units) for index, units in self.free.items()}
        return GroupView(self.state.name, self.bundles, tuple(self.nodes), self.reason, free)

    def title(self) -> str:
        """The group in the words of an error."""
        name = f" {self.name!r}" if self.name else ""
        return f"placement group{name} ({self.id.hex()})"
