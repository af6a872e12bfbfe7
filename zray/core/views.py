"""Views: what the parts of a cluster know of its nodes and placement groups, and whether a node will do.

An agent knows its own node exactly and the others by views, which are a little old; the control has all of them. Conditions on
the labels of a node are plain data: ``(key, operator, values)`` each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zray.base.resources import ResourceSet, from_units

Condition = tuple[str, str, tuple[str, ...]]  # (key, operator, values)
Views = Mapping[bytes, "NodeView"]

IN, NOT_IN, EXISTS, DOES_NOT_EXIST = OPERATORS = ("in", "not_in", "exists", "does_not_exist")
LOCALITY_BYTES_MIN = 1 << 20  # less of the arguments of a task is not worth a hop
REMOVED = "REMOVED"  # the state of a placement group that is gone for good
_ALWAYS_CRITICAL = ("CPU", "memory")


@dataclass(slots=True, eq=False)
class NodeView:
    """What is known of a node."""

    node_id: bytes
    agent: bytes
    endpoint: str
    total: ResourceSet
    available: ResourceSet
    labels: dict[str, str] = field(default_factory=dict)
    alive: bool = True
    queued: int = 0
    hostname: str = ""

    def debit(self, demand: ResourceSet) -> None:
        """A request was sent there: what it asks for is not free, or it waits there, until the next view says how it is."""
        if self.available.covers(demand):
            self.available = self.available.minus(demand)
        else:
            self.queued += 1

    def title(self) -> str:
        """The node in the words of an error."""
        return f"{self.node_id.hex()[:8]} on host {self.hostname}" if self.hostname else self.node_id.hex()[:8]


@dataclass(slots=True)
class GroupView:
    """What is known of a placement group: the state of its lifecycle, what its bundles hold, and their nodes (or b"").

    ``free``: what is free in each bundle, without what was sent there since that was ``told``. One that is not mentioned counts
    as all free for a request that is new, and as full for one that waits in another bundle.
    """

    state: str
    bundles: tuple[ResourceSet, ...]
    nodes: tuple[bytes, ...]
    reason: str = ""
    free: dict[int, ResourceSet] = field(default_factory=dict)
    told: dict[int, ResourceSet] = field(default_factory=dict)


def busy(view: NodeView, demand: ResourceSet) -> float:
    """How much of a node is taken, of the scarcest of CPUs, memory and what is asked for: 0 is idle, 1 is full."""
    shares = [
        1 - view.available[name] / view.total[name]
        for name in dict.fromkeys((*_ALWAYS_CRITICAL, *demand))
        if view.total[name]
    ]
    return max(shares, default=0.0)


# -- labels -------------------------------------------------------------------------------------------------------


def meets(labels: Mapping[str, str], conditions: Iterable[Condition]) -> bool:
    """Whether a node with these labels meets all conditions. One without the label has none of the values."""
    for key, operator, values in conditions:
        value = labels.get(key)
        if operator in (EXISTS, DOES_NOT_EXIST):
            if (value is not None) != (operator == EXISTS):
                return False
        elif (value in values) != (operator == IN):
            return False
    return True


def is_condition(given: Any) -> bool:
    """Whether what a peer sent is a condition."""
    if type(given) is not tuple or len(given) != 3:
        return False
    key, operator, values = given
    named = isinstance(key, str) and operator in OPERATORS and type(values) is tuple
    return named and all(isinstance(value, str) for value in values)


def in_words(conditions: Iterable[Condition]) -> str:
    """Conditions as an error names them."""
    return " and ".join(_condition_in_words(*condition) for condition in conditions)


def _condition_in_words(key: str, operator: str, values: Sequence[str]) -> str:
    if operator in (EXISTS, DOES_NOT_EXIST):
        return f"{key} is there" if operator == EXISTS else f"{key} is not there"
    listed = repr(values[0]) if len(values) == 1 else "one of " + ", ".join(map(repr, values))
    return f"{key} is {listed}" if operator == IN else f"{key} is not {listed}"


# -- what peers send ----------------------------------------------------------------------------------------------


def are_amounts(units: Any) -> bool:
    """Whether what a peer sent are amounts of resources."""
    return isinstance(units, dict) and all(isinstance(n, str) and type(a) is int and a >= 0 for n, a in units.items())


# -- what no node can run -----------------------------------------------------------------------------------------


def shortage(views: Views, demand: ResourceSet, conditions: Sequence[Condition] = ()) -> str:
    """Why no node can ever run a demand: what the node that comes closest has too little of."""
    alive = living(views)
    if not alive:
        return "the cluster has no node"
    matching = [view for view in alive if meets(view.labels, conditions)]
    if not matching:
        return f"it asks for a node where {in_words(conditions)}, and there is none among {counted(len(alive), 'node')}"

    def lacking(view: NodeView) -> float:
        return sum(1 - view.total[name] / demand[name] for name in demand if view.total[name] < demand[name])

    best = min(matching, key=lambda view: (lacking(view), view.node_id))
    short = [name for name in demand if best.total[name] < demand[name]]
    wanted = " and ".join(f"{from_units(demand[name]):g} {name}" for name in short)
    has = " and ".join(f"{from_units(best.total[name]):g}" for name in short)
    where = f" of those where {in_words(conditions)}" if conditions else ""
    return f"it asks for {wanted} where the best node{where} ({best.title()}) has {has}"


def counted(number: int, noun: str) -> str:
    """``2 nodes``, ``1 node``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def living(views: Views) -> list[NodeView]:
    """The nodes that live, in the order that all agents have."""
    return sorted((view for view in views.values() if view.alive), key=lambda view: view.node_id)
