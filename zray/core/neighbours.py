"""Neighbours: the other nodes of the cluster, as one agent sees them, and which of them should run a request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zray.base.resources import ResourceSet
from zray.core.bundles import NodeBundles
from zray.core.policy import (
    Decision,
    GroupView,
    NodeView,
    Policy,
    Rng,
    Strategy,
    Verdict,
    Waiting,
    conditions_of,
    debit,
)
from zray.core.room import DRAWN, FEW, Room

CROWD = 200  # nodes that can tell the control of each change every ``heartbeat_ms``
DEAD_NODES_MAX = 1000  # of which it is remembered that they are dead


class Neighbours:
    """What one agent knows of the other nodes.

    Args:
        node_id: its own node.
        agent: its process id.
        rng: chance, for choices among equals.
        hops_max: how often a request may be sent on.
    """

    __slots__ = ("_dead", "_debited", "_debited_groups", "_own", "_policy", "_room", "_rows", "by_agent", "views")

    def __init__(self, node_id: bytes, agent: bytes, rng: Rng, hops_max: int) -> None:
        self._own = NodeView(node_id, agent, "", ResourceSet({}), ResourceSet({}))
        self._policy = Policy(rng, hops_max)
        self._dead: dict[bytes, NodeView] = {}  # nodes, the oldest first
        self._rows: dict[bytes, tuple[Any, ...]] = {}  # what the control said last, by node
        self._debited: dict[bytes, None] = {}  # nodes to which something was sent since then
        self._debited_groups: list[GroupView] = []
        self.views: dict[bytes, NodeView] = {}
        self._room = Room(self.views, rng)
        self.by_agent: dict[bytes, NodeView] = {}

    def describe(self, total: ResourceSet, labels: dict[str, str]) -> None:
        """What this node has in all."""
        self._own.total = total
        self._own.labels = labels

    def update(self, row: tuple[Any, ...]) -> NodeView:
        """The control says how a node is."""
        node_id, agent, endpoint, hostname, total, available, labels, alive = row
        view = NodeView(node_id, agent, endpoint, ResourceSet(total), _not_negative(available), labels, alive)
        view.hostname = hostname
        self._debited.pop(node_id, None)
        if alive:
            self._rows[node_id] = row
            self.views[node_id] = self.by_agent[agent] = view
            self._room.joined(view)
        else:
            self._rows.pop(node_id, None)
            self.views.pop(node_id, None)
            self._room.left(node_id)
            self.by_agent.pop(agent, None)
            self._dead[node_id] = view
            if len(self._dead) > DEAD_NODES_MAX:
                del self._dead[next(iter(self._dead))]
        return view

    def crowd(self) -> float:
        """How much more rarely than usual the control is to be told of each change, since there are so many who do."""
        return max(1.0, len(self.views) / CROWD)

    def load(self, node_id: bytes, available: dict[str, int]) -> None:
        """The control says what is free on a node that is known."""
        view = self.views.get(node_id)
        if view is not None:
            row = self._rows[node_id]
            self._rows[node_id] = (*row[:5], available, *row[6:])
            self._debited.pop(node_id, None)
            view.available = _not_negative(available)
            view.queued = 0
            self._room.changed(view)

    def correct(self) -> bool:
        """Believe the control again; whether that is news.

        What was sent to a node is not free there until the control says so. But it may say nothing: a request that was cancelled,
        or was served between two of its looks, has changed nothing.
        """
        debited, self._debited = self._debited, {}
        for node_id in debited:
            self.load(node_id, self._rows[node_id][5])
        for group in self._debited_groups:
            group.free = dict(group.told)
        self._debited_groups = []
        return bool(debited)

    def choose(
        self,
        available: dict[str, int],
        queued: int,
        demand: ResourceSet,
        strategy: Strategy,
        hops: int,
        bundles: NodeBundles,
        locality: Mapping[bytes, int] | None = None,
    ) -> Decision:
        """Where a request should run, which counts as taken there; ``locality``: bytes of its arguments by node."""
        decision = self.judge(available, queued, demand, strategy, hops, bundles, locality)
        if decision.node is not None and decision.node is not self._own:
            self._debit(decision.node, demand, strategy, bundles)
        return decision

    def judge(
        self,
        available: dict[str, int],
        queued: int,
        demand: ResourceSet,
        strategy: Strategy,
        hops: int,
        bundles: NodeBundles,
        locality: Mapping[bytes, int] | None = None,
    ) -> Decision:
        """What ``choose`` would say."""
        self._settle(available, queued)
        if strategy[0] == "bundle":
            bundles.count(strategy[1])
        views = self._some(demand, strategy, bundles, DRAWN, locality or ())
        groups, own = bundles.groups, self._own.node_id
        decision = self._policy.choose(views, own, demand, strategy, hops, locality=locality, groups=groups)
        if decision.verdict is Verdict.INFEASIBLE and len(views) <= len(self.views):  # that is to be said of all of them
            everybody = {own: self._own, **self.views, **views}
            decision = self._policy.choose(everybody, own, demand, strategy, hops, locality=locality, groups=groups)
        return decision

    def relocate(
        self, available: dict[str, int], queued: int, waiting: list[Waiting], bundles: NodeBundles
    ) -> list[tuple[Waiting, NodeView, str]]:
        """Which of the requests that wait here should go elsewhere."""
        self._settle(available, queued)
        views: dict[bytes, NodeView] = {}
        shapes: dict[tuple[ResourceSet, Strategy], int] = {}
        for request in waiting:
            if request.strategy[0] == "bundle":
                bundles.count(request.strategy[1])
            shapes[request[1:]] = shapes.get(request[1:], 0) + 1
        for (demand, strategy), count in shapes.items():
            views.update(self._some(demand, strategy, bundles, min(count + DRAWN, DRAWN * 8)))
        moves = self._policy.relocate(views, self._own.node_id, waiting, bundles.groups)
        for request, node, _ in moves:
            self._debit(node, request.demand, request.strategy, bundles)
        return moves

    def _debit(self, node: NodeView, demand: ResourceSet, strategy: Strategy, bundles: NodeBundles) -> None:
        debit(node, demand, strategy, bundles.groups)
        self._debited[node.node_id] = None
        self._room.changed(node)
        if strategy[0] == "bundle":
            self._debited_groups.append(bundles.groups[strategy[1]])

    def _settle(self, available: dict[str, int], queued: int) -> None:
        """How this node is now."""
        self._own.available = _not_negative(available)
        self._own.queued = queued

    def _some(
        self, demand: ResourceSet, strategy: Strategy, bundles: NodeBundles, count: int, near: Iterable[bytes] = ()
    ) -> dict[bytes, NodeView]:
        """This node, and those others that a request may go to; of many, some."""
        views = {self._own.node_id: self._own}
        self._policy.packs = len(self.views) <= FEW  # else many would choose the same at once
        if self._policy.packs:
            views.update(self.views)
        elif strategy[0] == "bundle":
            group = bundles.groups.get(strategy[1])
            self._add(views, group.nodes if group is not None else ())
        else:
            self._add(views, near)
            if strategy[0] == "affinity":
                self._add(views, strategy[1:2])
            self._add(views, self._room.drawn(demand, conditions_of(strategy), self._own, count))
        if strategy[0] == "affinity" and strategy[1] in self._dead:
            views[strategy[1]] = self._dead[strategy[1]]  # which is another thing than one that nobody knows
        return views

    def _add(self, views: dict[bytes, NodeView], node_ids: Iterable[bytes]) -> None:
        for node_id in node_ids:
            view = self.views.get(node_id)
            if view is not None:
                views[node_id] = view


def _not_negative(amounts: dict[str, int]) -> ResourceSet:
    """What is free: a worker that woke may have taken more than there is."""
    return ResourceSet({name: max(0, units) for name, units in amounts.items()})
