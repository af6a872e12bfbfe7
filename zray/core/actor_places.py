"""Where actors are placed: the choice of the control among all nodes.

By default an actor goes to the node with room that has the fewest; one with a strategy goes where that says. The control
hears what is free a little later than it places actors, so a bundle of a placement group is never thought to have more than the
actors that were placed there leave, and the node with the fewest of the group comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from zray.base.resources import ResourceSet
from zray.core.policy import DEFAULT, GroupView, NodeView, Policy, Strategy, Verdict, readable
from zray.core.views import shortage

WAITING = "waiting"  # nothing can be said yet
INFEASIBLE = "infeasible"  # no node that exists can run it
EXHAUSTED = "exhausted"  # there will never be a place
ELSEWHERE = "elsewhere"  # an agent says that another node has room by now
_KINDS = {Verdict.WAIT: WAITING, Verdict.INFEASIBLE: INFEASIBLE, Verdict.IMPOSSIBLE: EXHAUSTED}


class Place(NamedTuple):
    """The agent of a node; or none, with the kind and the words of the reason."""

    agent: bytes
    kind: str = ""
    reason: str = ""


class Member(NamedTuple):
    """An actor in a placement group: the agent of its node, its bundle (-1 for any), and what it holds."""

    agent: bytes
    bundle: int
    held: ResourceSet


def choose_place(
    policy: Policy,
    views: Mapping[bytes, NodeView],
    demand: ResourceSet,
    strategy: Strategy,
    counts: Mapping[bytes, int],
    group: tuple[bytes, GroupView, Iterable[Member]] | None = None,
) -> Place:
    """A node for an actor.

    Args:
        policy: chooses for actors with a strategy.
        views: all nodes by id.
        demand: what the node must have.
        strategy: of the actor.
        counts: how many actors each agent has.
        group: the placement group that the strategy names, with its actors.
    """
    if not any(view.alive for view in views.values()):
        return Place(b"", WAITING, "the cluster has no node")
    if not readable(strategy):
        return Place(b"", EXHAUSTED, f"{strategy!r} is no strategy")
    if strategy == DEFAULT:
        return _fewest(views, demand, counts)
    groups = {}
    if group is not None:
        group_id, view, members = group
        groups[group_id] = view
        _debit_members(views, view, members)
    decision = policy.choose(views, b"", demand, strategy, groups=groups)
    if decision.node is None:
        return Place(b"", _KINDS[decision.verdict], decision.reason)
    return Place(decision.node.agent)


def _fewest(views: Mapping[bytes, NodeView], demand: ResourceSet, counts: Mapping[bytes, int]) -> Place:
    """The node with the fewest actors, of those with room if there are any."""
    large = [view for view in views.values() if view.alive and view.total.covers(demand)]
    if not large:
        return Place(b"", INFEASIBLE, shortage(views, demand))
    room = [view for view in large if view.available.covers(demand)] or large
    return Place(min(room, key=lambda view: counts.get(view.agent, 0)).agent)


def _debit_members(views: Mapping[bytes, NodeView], group: GroupView, members: Iterable[Member]) -> None:
    """Put into the views what is left of the group's bundles, and how many of its actors each node has."""
    by_agent = {view.agent: view for view in views.values()}
    left = dict(enumerate(group.bundles))
    for view in views.values():
        view.queued = 0
    for member in members:
        where = by_agent.get(member.agent)
        if where is None:
            continue
        where.queued += 1
        here = [i for i, node in enumerate(group.nodes) if node == where.node_id and member.bundle in (-1, i)]
        taken = next((i for i in here if left[i].covers(member.held)), None)
        if taken is not None:
            left[taken] = left[taken].minus(member.held)
    group.free = {i: free.least(group.free.get(i, free)) for i, free in left.items()}
