"""Room: finds nodes that may run a request, without a look at all of them.

Theory of operation
-------------------
An agent of a large cluster decides often, and others decide at the same moment. A look at every node would cost more the larger
the cluster is, and all would find the same best node. So a few nodes are drawn by chance of those that have something free of
the scarcest resource that is asked for, and the policy takes the best of these: the power of a few choices. Where nobody has
anything free, or the node that asks could never run the request, some are drawn of those that could. In a small cluster all
nodes are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from zray.base.resources import ResourceSet
from zray.core.views import Condition, NodeView, meets

FEW = 24  # nodes: of so many, all are looked at
DRAWN = 12  # ... and of more, so many
_SHAPES_MAX = 100  # of requests, for which it is remembered who could run them


class Chance(Protocol):
    """What is needed of ``random.Random``."""

    def randrange(self, stop: int, /) -> int: ...


class Draw:
    """A set from which some members are drawn."""

    __slots__ = ("_at", "_members")

    def __init__(self, members: Iterable[bytes] = ()) -> None:
        self._members = list(members)
        self._at = {member: index for index, member in enumerate(self._members)}

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: bytes) -> None:
        if member not in self._at:
            self._at[member] = len(self._members)
            self._members.append(member)

    def discard(self, member: bytes) -> None:
        index = self._at.pop(member, -1)
        if index >= 0:
            last = self._members.pop()
            if last != member:
                self._members[index] = last
                self._at[last] = index

    def draw(self, count: int, rng: Chance) -> list[bytes]:
        """So many members, those that follow each other from a place that chance names; all if there are no more."""
        members = self._members
        if len(members) <= count:
            return list(members)
        start = rng.randrange(len(members))
        chosen = members[start : start + count]
        return chosen + members[: count - len(chosen)]


class Room:
    """The other nodes, by what is free on them.

    Args:
        views: what is known of them, which lives elsewhere.
        rng: chance.
    """

    __slots__ = ("_able", "_free", "_rng", "_views")

    def __init__(self, views: Mapping[bytes, NodeView], rng: Chance) -> None:
        self._views = views
        self._rng = rng
        self._free: dict[str, Draw] = {}  # by resource
        self._able: dict[tuple[ResourceSet, tuple[Condition, ...]], Draw] = {}  # who could run what, if not now

    def joined(self, view: NodeView) -> None:
        """A node came, or is not what it was."""
        self._able.clear()
        self.changed(view)

    def changed(self, view: NodeView) -> None:
        """Something else is free on a node."""
        available = view.available
        for name in view.total:
            if available[name] > 0:
                free = self._free.get(name)
                if free is None:
                    free = self._free[name] = Draw()
                free.add(view.node_id)
            elif name in self._free:
                self._free[name].discard(view.node_id)

    def left(self, node_id: bytes) -> None:
        """A node is gone."""
        self._able.clear()
        for free in self._free.values():
            free.discard(node_id)

    def drawn(self, demand: ResourceSet, conditions: tuple[Condition, ...], here: NodeView, count: int) -> list[bytes]:
        """Nodes that may run a request."""
        found: list[bytes] = []
        if demand and not conditions:
            nothing = Draw()
            found = min((self._free.get(name, nothing) for name in demand), key=len).draw(count, self._rng)
        if not found or not here.total.covers(demand):
            found += self._could(demand, conditions).draw(count, self._rng)
        return found

    def _could(self, demand: ResourceSet, conditions: tuple[Condition, ...]) -> Draw:
        """The nodes that could ever run it."""
        shape = (demand, conditions)
        able = self._able.get(shape)
        if able is None:
            if len(self._able) >= _SHAPES_MAX:
                self._able.clear()
            able = self._able[shape] = Draw(
                view.node_id for view in self._views.values() if view.total.covers(demand) and meets(view.labels, conditions)
            )
        return able
