"""Policy: on which node of the cluster a request should run.

Theory of operation
-------------------
An agent knows its own node exactly and the others by *views*, which are a little old. For each request for a lease it asks
``Policy.choose``, and the answer is one of six: run it here, queue it here, send its owner to another node, wait for news of
its placement group, or refuse it: *infeasible* when no node that exists can run it (one that joins may), *impossible* when none
ever will. Whoever sends a request on takes what it asks for off the view (``NodeView.debit``), so that a burst does not go to one
node; the next view puts that right. A request that was sent here is taken if there is room, whatever the policy would prefer,
and is sent on at most ``hops_max`` times: two agents with old views can not play ping-pong with it.

By default a node is filled until it is half busy, then the least busy is taken, at random among the best few, since other agents
choose at the same moment; the node that asks is preferred when no other is better, and the node that has most of the
arguments when it has room. When all are busy, the request waits where it is. ``relocate`` says which of those that wait should go
elsewhere, since room appeared there.

Strategies travel as plain data. ``hard`` and ``soft`` are conditions on the labels of a node, ``(key, operator, values)`` each;
a strategy may have ``hard`` as a further last field, from the option ``label_selector``:

- ``("default",)``
- ``("spread",)``: one node after the other
- ``("affinity", node_id, soft)``: that node; with ``soft``, another when that one is gone or too small
- ``("labels", hard, soft)``: a node that meets all of ``hard``, and of ``soft`` if one with room does
- ``("bundle", placement_group_id, index)``: that bundle of the group, or any for -1
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple, Protocol

from zray.base.resources import ResourceSet
from zray.core.views import (
    LOCALITY_BYTES_MIN,
    REMOVED,
    Condition,
    GroupView,
    NodeView,
    Views,
    busy,
    counted,
    in_words,
    is_condition,
    living,
    meets,
    shortage,
)

__all__ = [
    "DEFAULT",
    "LOCALITY_BYTES_MIN",
    "Decision",
    "GroupView",
    "NodeView",
    "Policy",
    "Rng",
    "Strategy",
    "Verdict",
    "Waiting",
    "debit",
    "read_locality",
    "readable",
]

Strategy = tuple[Any, ...]

DEFAULT: Strategy = ("default",)
SPREAD_THRESHOLD = 0.5  # a node that is less busy counts as idle
TOP_K_FRACTION = 0.2  # of the nodes, from which one is chosen at random
_KINDS: dict[str, tuple[type, ...]] = {
    "default": (),
    "spread": (),
    "affinity": (bytes, bool),
    "labels": (tuple, tuple),
    "bundle": (bytes, int),
}
_CONDITIONS_AT = {"default": 1, "spread": 1, "affinity": 3, "labels": 1, "bundle": 3}


class Rng(Protocol):
    """What is needed of ``random.Random``."""

    def randrange(self, stop: int, /) -> int: ...


class Verdict(Enum):
    """What is to be done with a request."""

    RUN = 1  # here: there is room
    QUEUE = 2  # here: until there is room
    SEND = 3  # its owner should ask the agent of that node
    WAIT = 4  # nothing can be said before its placement group has its place
    INFEASIBLE = 5  # no node that exists can run it
    IMPOSSIBLE = 6  # no node ever will


class Decision(NamedTuple):
    """What is to be done with a request, where, and why."""

    verdict: Verdict
    node: NodeView | None
    reason: str


class Waiting(NamedTuple):
    """A request that waits in a queue, under the caller's name for it."""

    key: Any
    demand: ResourceSet
    strategy: Strategy


def conditions_of(strategy: Strategy) -> tuple[Condition, ...]:
    """The conditions that a node must meet."""
    at = _CONDITIONS_AT[strategy[0]]
    return tuple(strategy[at]) if len(strategy) > at else ()


def debit(view: NodeView, demand: ResourceSet, strategy: Strategy, groups: Mapping[bytes, GroupView]) -> None:
    """``NodeView.debit`` for any strategy: what goes into a bundle is taken from there."""
    group = groups.get(strategy[1]) if strategy[0] == "bundle" else None
    if group is None:
        view.debit(demand)
        return
    free = _free_bundle(view, demand, group, strategy[2])
    if free is None:
        view.queued += 1
    else:
        group.free[free[0]] = free[1].minus(demand)


class Policy:
    """The choices of one agent, or of the control for actors.

    Args:
        rng: for the choice among the best.
        hops_max: how often a request is sent on.
    """

    __slots__ = ("_hops_max", "_rng", "_turn", "packs")

    def __init__(self, rng: Rng, hops_max: int = 4) -> None:
        self._rng = rng
        self._hops_max = hops_max
        self.packs = True  # of nodes that are equally good, the first are preferred, so that others stay empty
        self._turn = -1  # of SPREAD; the agents start at different nodes

    def choose(
        self,
        views: Views,
        local: bytes,
        demand: ResourceSet,
        strategy: Strategy = DEFAULT,
        hops: int = 0,
        *,
        locality: Mapping[bytes, int] | None = None,
        groups: Mapping[bytes, GroupView] | None = None,
    ) -> Decision:
        """What is to be done with a request.

        Args:
            views: all nodes by id, that of the one who asks included.
            local: the node of the one who asks; b"" for the control, which is on none.
            demand, strategy: what is asked for.
            hops: how often the request was sent on already.
            locality: bytes of its arguments by node.
            groups: the placement groups that are known.
        """
        here = views.get(local)
        if here is not None and strategy == DEFAULT and not locality and _suits(here, demand, hops):
            return Decision(Verdict.RUN, here, "it has room")  # without a look at the others: most requests are like that
        if strategy[0] == "bundle":
            return self._choose_bundle(views, here, demand, strategy, hops, groups or {})
        if strategy[0] == "affinity":
            settled = _choose_affinity(views, here, demand, strategy)
            if settled is not None:
                return settled
        feasible = _feasible(views, demand, strategy)
        if not feasible:
            return Decision(Verdict.INFEASIBLE, None, shortage(views, demand, conditions_of(strategy)))
        stays = here if here in feasible else None
        if stays is not None and hops and (stays.available.covers(demand) or hops >= self._hops_max):
            return _answer(here, stays, demand, "it was sent here")
        if hops >= self._hops_max:
            text = f"it was sent to {counted(hops, 'node')}, and none of them can run it"
            return Decision(Verdict.INFEASIBLE, None, text)
        if strategy[0] == "spread" and not hops:
            return _answer(here, self._next(feasible, demand), demand, "it is the next in turn")
        room = [view for view in feasible if view.available.covers(demand)]
        if room:
            node, reason = self._best(room, here, demand, strategy, locality or {}, len(views))
            return _answer(here, node, demand, reason)
        if stays is not None:
            return _answer(here, stays, demand, "")
        return _answer(here, _least_queued(feasible, demand), demand, "this node can not run it, and that one can")

    def relocate(
        self,
        views: Views,
        local: bytes,
        waiting: Iterable[Waiting],
        groups: Mapping[bytes, GroupView] | None = None,
    ) -> list[tuple[Waiting, NodeView, str]]:
        """Which of those that wait here should go elsewhere, since there is room: ``(request, node, reason)`` each.

        What is found for one is not offered to the next; the views stay as they are. To be asked when they have changed.
        """
        known = views
        views = {node_id: replace(view) for node_id, view in known.items()}
        waiting = list(waiting)
        wanted = {request.strategy[1]: None for request in waiting if request.strategy[0] == "bundle"}
        groups = {i: replace(group, free=dict(group.free)) for i, group in (groups or {}).items() if i in wanted}
        here = views.get(local)
        moves = []
        failed: dict[tuple[ResourceSet, Strategy], None] = {}
        for request in waiting:
            demand, strategy = request.demand, request.strategy
            if (demand, strategy) in failed:
                continue
            node = self._room_for(views, here, request, groups)
            if node is None:
                failed[demand, strategy] = None
                continue
            debit(node, demand, strategy, groups)
            if node is not here:  # else it will be granted here
                moves.append((request, known[node.node_id], f"room appeared on node {node.title()}"))
        return moves

    def _room_for(
        self, views: Views, here: NodeView | None, request: Waiting, groups: Mapping[bytes, GroupView]
    ) -> NodeView | None:
        """Where one that waits here can run now: here if it can, or on another node; None leaves it as it is."""
        demand, strategy = request.demand, request.strategy
        settled = None
        if strategy[0] == "bundle":
            settled = self._choose_bundle(views, here, demand, strategy, 0, groups, waits=True)
        elif strategy[0] == "affinity":
            settled = _choose_affinity(views, here, demand, strategy)
        if settled is not None:
            return settled.node if settled.verdict in (Verdict.RUN, Verdict.SEND) else None
        room = [view for view in _feasible(views, demand, strategy) if view.available.covers(demand)]
        if here is not None and here in room:
            return here
        return self._best(room, None, demand, strategy, {}, len(views))[0] if room else None

    def _best(
        self,
        room: list[NodeView],
        here: NodeView | None,
        demand: ResourceSet,
        strategy: Strategy,
        locality: Mapping[bytes, int],
        nodes: int,
    ) -> tuple[NodeView, str]:
        """The best of the nodes with room, and why."""
        if strategy[0] == "labels" and strategy[2]:
            room = [view for view in room if meets(view.labels, strategy[2])] or room
        if locality:
            most = max(room, key=lambda view: (locality.get(view.node_id, 0), view is here))
            others = locality.get(here.node_id, 0) if here is not None and here is not most and here in room else 0
            if locality.get(most.node_id, 0) >= others + LOCALITY_BYTES_MIN:
                return most, f"it has {locality[most.node_id]} bytes of the arguments"
        if not demand["GPU"]:  # GPUs are left to those who need them
            room = [view for view in room if not view.total["GPU"]] or room

        def score(view: NodeView) -> float:
            share = busy(view, demand)
            return 0.0 if share < SPREAD_THRESHOLD else share

        ranked = sorted(room, key=lambda view: (score(view), view.queued, view.node_id))
        if here is not None and here in room and score(here) <= score(ranked[0]):
            return here, "it is as good as the best"
        top = ranked[: max(1, int(nodes * TOP_K_FRACTION))]
        if not self.packs:
            best = (score(ranked[0]), ranked[0].queued)
            top = [view for view in ranked if (score(view), view.queued) == best]
        chosen = top[self._rng.randrange(len(top))]
        if here is None or here not in room:
            return chosen, "it has room that suits better"
        return chosen, f"it is {busy(chosen, demand):.0%} busy and this node is {busy(here, demand):.0%}"

    def _next(self, feasible: list[NodeView], demand: ResourceSet) -> NodeView:
        """Round robin: the next node with room, else the next at all."""
        if self._turn < 0:
            self._turn = self._rng.randrange(len(feasible))
        count = len(feasible)
        order = [feasible[(self._turn + step) % count] for step in range(count)]
        chosen = next((view for view in order if view.available.covers(demand)), order[0])
        self._turn = (feasible.index(chosen) + 1) % count
        return chosen

    def _choose_bundle(
        self,
        views: Views,
        here: NodeView | None,
        demand: ResourceSet,
        strategy: Strategy,
        hops: int,
        groups: Mapping[bytes, GroupView],
        *,
        waits: bool = False,
    ) -> Decision:
        group = groups.get(strategy[1])
        if group is None:
            return Decision(Verdict.WAIT, None, f"placement group {strategy[1].hex()} is not known here yet")
        if group.state == REMOVED:
            reason = f": {group.reason}" if group.reason else ""
            return Decision(Verdict.IMPOSSIBLE, None, f"placement group {strategy[1].hex()} was removed{reason}")
        indexes = _bundles_that_could_hold(group, demand, strategy)
        if isinstance(indexes, str):
            return Decision(Verdict.IMPOSSIBLE, None, indexes)
        nodes = [views[group.nodes[i]] for i in indexes if group.nodes[i] in views]
        nodes = [view for view in nodes if view.alive and meets(view.labels, conditions_of(strategy))]
        if not nodes:
            conditions = conditions_of(strategy)
            where = f" on a node where {in_words(conditions)}" if conditions else ""
            return Decision(Verdict.WAIT, None, f"placement group {strategy[1].hex()} is {group.state}, with no bundle{where}")
        if here not in nodes and hops >= self._hops_max:
            return Decision(Verdict.WAIT, None, f"placement group {strategy[1].hex()} is moving")
        surely = waits and here in nodes  # what waits in one bundle goes to another only if that is known to have room
        room = [view for view in nodes if _free_bundle(view, demand, group, strategy[2], surely=surely) is not None]
        if here is not None and (here in room or (here in nodes and (not room or hops >= self._hops_max))):
            verdict = Verdict.RUN if here in room else Verdict.QUEUE
            return Decision(verdict, here, "" if here in room else "its bundle has no room now")
        node = min(room or nodes, key=lambda view: (view.queued, view.node_id))
        return Decision(Verdict.SEND, node, "its bundle is there")


def _suits(here: NodeView, demand: ResourceSet, hops: int) -> bool:
    """Whether no other node could be better than this one."""
    if not here.available.covers(demand):
        return False
    spares_gpus = bool(demand["GPU"]) or not here.total["GPU"]
    return hops > 0 or (spares_gpus and busy(here, demand) < SPREAD_THRESHOLD)


def _answer(here: NodeView | None, node: NodeView, demand: ResourceSet, reason: str) -> Decision:
    """The decision for a node, seen from here."""
    if here is None or node is not here:
        return Decision(Verdict.SEND, node, reason)
    if node.available.covers(demand):
        return Decision(Verdict.RUN, node, reason)
    return Decision(Verdict.QUEUE, node, f"no node has room now; {node.queued} wait on this one")


def _feasible(views: Views, demand: ResourceSet, strategy: Strategy) -> list[NodeView]:
    """The nodes that can run it, if not now."""
    conditions = conditions_of(strategy)
    return [view for view in living(views) if view.total.covers(demand) and meets(view.labels, conditions)]


def _least_queued(feasible: list[NodeView], demand: ResourceSet) -> NodeView:
    return min(feasible, key=lambda view: (view.queued, busy(view, demand), view.node_id))


def _choose_affinity(views: Views, here: NodeView | None, demand: ResourceSet, strategy: Strategy) -> Decision | None:
    """The decision for a request that asks for one node; None if any other will do, since that one does not."""
    node = views.get(strategy[1])
    if node is not None and node.alive and node.total.covers(demand) and meets(node.labels, conditions_of(strategy)):
        decision = _answer(here, node, demand, "it asks for that node")
        waits = decision.verdict is Verdict.QUEUE
        return decision._replace(reason="the node it asks for has no room now") if waits else decision
    if strategy[2]:
        return None
    asked = f"it asks for node {strategy[1].hex()}"
    conditions = conditions_of(strategy)
    if node is None:
        return Decision(Verdict.INFEASIBLE, None, f"{asked}, and there is no such node")
    if not node.alive:
        return Decision(Verdict.IMPOSSIBLE, None, f"{asked}, which is dead")
    if not meets(node.labels, conditions):
        return Decision(Verdict.INFEASIBLE, None, f"{asked} and for one where {in_words(conditions)}, which it is not")
    return Decision(Verdict.INFEASIBLE, None, f"{asked}, and {shortage({node.node_id: node}, demand)}")


def _bundles_that_could_hold(group: GroupView, demand: ResourceSet, strategy: Strategy) -> list[int] | str:
    """The bundles that are large enough, or why there is none."""
    index = strategy[2]
    if not -1 <= index < len(group.bundles):
        return f"its placement group has no bundle {index}: there are {len(group.bundles)}, numbered from 0"
    asked = list(range(len(group.bundles))) if index == -1 else [index]
    large = [i for i in asked if group.bundles[i].covers(demand)]
    if large:
        return large
    which = f"bundle {index} of its placement group has {group.bundles[index]}"
    return f"it asks for {demand} where " + (which if index >= 0 else "no bundle of its placement group has as much")


def _free_bundle(
    view: NodeView, demand: ResourceSet, group: GroupView, wanted: int, *, surely: bool = False
) -> tuple[int, ResourceSet] | None:
    """The first bundle of a node with room for a request, and its room; ``surely``: only one of which its room is known."""
    for index in range(len(group.bundles)) if wanted == -1 else (wanted,):
        free = group.free.get(index, group.bundles[index])
        counts = index in group.free or not surely
        if counts and group.nodes[index] == view.node_id and free.covers(demand):
            return index, free
    return None


def read_locality(rows: tuple[Any, ...]) -> dict[bytes, int]:
    """What a peer said of where the arguments lie, ``(node, bytes)`` each; what can not be read is left out."""
    fields = [row for row in rows if type(row) is tuple and len(row) == 2]
    return {node: size for node, size in fields if isinstance(node, bytes) and type(size) is int}


def readable(strategy: Any) -> bool:
    """Whether what a peer sent is a strategy: processes of users are not trusted."""
    kind = strategy[0] if type(strategy) is tuple and strategy else None
    kinds = _KINDS.get(kind) if isinstance(kind, str) else None
    if kinds is None or len(strategy) < 1 + len(kinds) or not all(map(isinstance, strategy[1:], kinds)):
        return False
    more = strategy[_CONDITIONS_AT[strategy[0]] :]
    if len(more) > (2 if kind == "labels" else 1):
        return False
    return all(type(row) is tuple and all(map(is_condition, row)) for row in more)
