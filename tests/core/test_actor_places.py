"""Where actors are placed: golden tables of the control's choices."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.resources import ResourceSet
from zray.core.actor_places import Member, Place, choose_place
from zray.core.chance import First
from zray.core.policy import DEFAULT, Policy
from zray.core.views import GroupView, NodeView

A, B, C = (b"node-%s----------" % letter for letter in (b"a", b"b", b"c"))
GROUP = b"group-----------"
ANY = ("bundle", GROUP, -1)
X = (("zone", "in", ("x",)),)


def cpus(amount: float, **others: float) -> ResourceSet:
    return ResourceSet.of({"CPU": amount, **others})


def world(*free: float, zone: str = "", dead: str = "") -> dict[bytes, NodeView]:
    """Nodes a, b, c ... of four CPUs, of which so many are free; some have a label, some are dead."""
    views = {}
    for letter, amount in zip("abc", free):
        node_id = f"node-{letter}".encode().ljust(16, b"-")
        labels = {"zone": "x"} if letter in zone else {}
        views[node_id] = NodeView(
            node_id, letter.encode(), "", cpus(4), cpus(amount), labels, letter not in dead, hostname=letter
        )
    return views


def choose(views: dict[bytes, NodeView], demand: float = 1, strategy: Any = DEFAULT, **more: Any) -> Place:
    return choose_place(Policy(First()), views, cpus(demand), strategy, more.pop("counts", {}), **more)


# What is free on a, b and c, how many actors each has; what is asked for; the node.
DEFAULTS = [
    ("the first of equals", (4, 4, 4), (0, 0, 0), 1, "a"),
    ("the fewest actors", (4, 4, 4), (2, 1, 1), 1, "b"),
    ("however busy, if it has room", (4, 1, 4), (2, 1, 2), 1, "b"),
    ("room counts for more than the number", (4, 0, 4), (3, 0, 2), 1, "c"),
    ("no room anywhere: it waits where there are the fewest", (0, 0, 0), (2, 1, 0), 1, "c"),
    ("it needs nothing", (0, 0, 0), (1, 0, 1), 0, "b"),
]


@pytest.mark.parametrize(("what", "free", "counts", "demand", "node"), DEFAULTS, ids=[row[0] for row in DEFAULTS])
def test_by_default_the_node_with_the_fewest(what: str, free: Any, counts: Any, demand: float, node: str) -> None:
    number = dict(zip((b"a", b"b", b"c"), counts))
    assert choose(world(*free), demand, counts=number) == Place(node.encode())


STRATEGIES = [
    ("spread", ("spread",), "a"),
    ("that node", ("affinity", B, False), "b"),
    ("that node, softly", ("affinity", B, True), "b"),
    ("one that is dead, softly", ("affinity", C, True), "a"),
    ("a label", ("labels", X, ()), "b"),
    ("a label, softly", ("labels", (), X), "b"),
    ("a label selector", ("default", X), "b"),
]


@pytest.mark.parametrize(("what", "strategy", "node"), STRATEGIES, ids=[row[0] for row in STRATEGIES])
def test_a_strategy_says_the_node(what: str, strategy: Any, node: str) -> None:
    assert choose(world(4, 4, 4, zone="b", dead="c"), strategy=strategy) == Place(node.encode())


NOWHERE = [
    ({}, 1, DEFAULT, "waiting", "the cluster has no node"),
    (world(4, dead="a"), 1, DEFAULT, "waiting", "the cluster has no node"),
    (world(4, 4), 9, DEFAULT, "infeasible", "it asks for 9 CPU where the best node (6e6f6465 on host a) has 4"),
    (world(4, 4), 9, ("spread",), "infeasible", "it asks for 9 CPU where the best node (6e6f6465 on host a) has 4"),
    (world(4, 4), 1, ("labels", X, ()), "infeasible", "it asks for a node where zone is 'x', and there is none among 2 nodes"),
    (world(4), 1, ("affinity", B, False), "infeasible", f"it asks for node {B.hex()}, and there is no such node"),
    (world(4, 4, dead="b"), 1, ("affinity", B, False), "exhausted", f"it asks for node {B.hex()}, which is dead"),
    (world(4), 1, ("somewhere",), "exhausted", "('somewhere',) is no strategy"),
]


@pytest.mark.parametrize(("views", "demand", "strategy", "kind", "reason"), NOWHERE)
def test_there_may_be_no_node(views: Any, demand: float, strategy: Any, kind: str, reason: str) -> None:
    assert choose(views, demand, strategy) == Place(b"", kind, reason)


def group(*nodes: bytes, state: str = "CREATED", **free: float) -> GroupView:
    """A group with bundles of two CPUs; ``b1=1``: what is known to be free in the second."""
    told = {int(name[1:]): cpus(amount) for name, amount in free.items()}
    return GroupView(state, (cpus(2),) * len(nodes), nodes, "", told)


def within(strategy: Any, view: GroupView, *members: Member, demand: float = 1) -> Place:
    return choose(world(4, 4, 4), demand, strategy, group=(GROUP, view, members))


ONE = cpus(1)
GROUPS = [
    ("the bundle that is asked for", ("bundle", GROUP, 1), group(A, B), (), "b"),
    ("any", ANY, group(B, C), (), "b"),
    ("those who are there have taken it", ANY, group(B, C), [(b"b", -1, cpus(2))], "c"),
    ("each node its share", ANY, group(B, C), [(b"b", -1, ONE)], "c"),
    ("... of those who hold nothing too", ANY, group(B, C), [(b"b", -1, cpus(0))], "c"),
    ("tasks have taken it, as the node said", ANY, group(B, C, b0=0.5), (), "c"),
    ("it was said before an actor took the rest", ANY, group(B, C, b0=2), [(b"b", 0, cpus(2))], "c"),
    ("a second bundle on the same node", ANY, group(B, B), [(b"b", 0, cpus(2))], "b"),
    ("no room anywhere: it waits where the fewest are", ANY, group(B, C, b0=0, b1=0), [(b"b", -1, ONE)], "c"),
    ("one on a node that is gone counts nowhere", ANY, group(B, C), [(b"z", -1, ONE)], "b"),
]


@pytest.mark.parametrize(("what", "strategy", "view", "members", "node"), GROUPS, ids=[row[0] for row in GROUPS])
def test_an_actor_in_a_placement_group(what: str, strategy: Any, view: GroupView, members: Any, node: str) -> None:
    assert within(strategy, view, *(Member(*member) for member in members)) == Place(node.encode())


def test_a_group_that_has_no_place_yet_is_waited_for_and_one_that_is_gone_is_not() -> None:
    assert within(ANY, group(b"", b"", state="PENDING")).kind == "waiting"
    gone = within(ANY, GroupView("REMOVED", (), (), "its job ended"))
    assert gone == Place(b"", "exhausted", f"placement group {GROUP.hex()} was removed: its job ended")
    assert within(ANY, group(B), demand=3).kind == "exhausted", "no bundle will ever be so large"


def test_a_burst_of_actors_fills_the_bundles_one_after_the_other() -> None:
    members: list[Member] = []
    for _ in range(6):
        place = within(ANY, group(A, B, C), *members)
        members.append(Member(place.agent, -1, ONE))
    assert [member.agent for member in members] == [b"a", b"b", b"c"] * 2
