"""Room: some of the nodes that have something free, at a cost that does not grow with the cluster."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zray.base.ids import agent_id
from zray.base.resources import ResourceSet
from zray.core.neighbours import Neighbours
from zray.core.policy import DEFAULT, Decision, Policy, Verdict, Waiting
from zray.core.room import DRAWN, Draw, Room
from zray.core.views import NodeView

HERE = b"here-here-here--"
ONE = ResourceSet.of({"CPU": 1})
FULL = {"CPU": 0}
NO_BUNDLES: Any = SimpleNamespace(groups={}, count=lambda group_id: None)
MANY = 200


def node(number: int) -> bytes:
    return b"node-%03d" % number + b"-" * 8


def row(number: int, free: float = 0, zone: str = "a") -> tuple[Any, ...]:
    total = {"CPU": 20_000}
    return node(number), agent_id(node(number)), "tcp://x", "host", total, {"CPU": int(free * 10_000)}, {"zone": zone}, True


def crowd(*free: int) -> Neighbours:
    """An agent of a large cluster where only these nodes have room."""
    neighbours = Neighbours(HERE, agent_id(HERE), random.Random(1), 3)
    neighbours.describe(ResourceSet.of({"CPU": 2}), {})
    for number in range(MANY):
        neighbours.update(row(number, free=1 if number in free else 0))
    return neighbours


def choose(neighbours: Neighbours, strategy: tuple[Any, ...] = DEFAULT, demand: ResourceSet = ONE, hops: int = 0) -> Decision:
    return neighbours.choose(FULL, 0, demand, strategy, hops, NO_BUNDLES)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.integers(0, 12), st.randoms(use_true_random=False))
def test_what_is_drawn_is_in_the_set_and_nothing_twice(steps: list[tuple[bool, int]], count: int, rng: random.Random) -> None:
    draw, members = Draw(), set[bytes]()
    for adds, number in steps:
        (draw.add if adds else draw.discard)(node(number))
        (members.add if adds else members.discard)(node(number))
    drawn = draw.draw(count, rng)
    assert len(draw) == len(members) and set(drawn) <= members
    assert len(drawn) == len(set(drawn)) == min(count, len(members))


def test_of_nodes_the_scarcest_resource_decides_who_is_drawn() -> None:
    views = {node(n): NodeView(node(n), b"", "", *[ResourceSet.of({"CPU": 1, "GPU": n == 7})] * 2) for n in range(MANY)}
    room = Room(views, random.Random(1))
    for view in views.values():
        room.joined(view)
    here = NodeView(HERE, b"", "", ResourceSet.of({"CPU": 1, "GPU": 1}), ResourceSet({}))
    assert room.drawn(ResourceSet.of({"CPU": 1, "GPU": 1}), (), here, 5) == [node(7)]
    assert len(room.drawn(ONE, (), here, 5)) == 5
    room.left(node(7))
    del views[node(7)]
    assert room.drawn(ResourceSet.of({"GPU": 1}), (), here, 5) == [], "nobody else can"


def test_the_one_node_with_room_is_found_among_many_and_not_twice() -> None:
    neighbours = crowd(123)
    decision = choose(neighbours)
    assert decision.verdict is Verdict.SEND and decision.node is neighbours.views[node(123)]
    assert choose(neighbours).verdict is Verdict.QUEUE, "it is taken now"
    assert neighbours.correct()
    assert choose(neighbours).node is neighbours.views[node(123)]
    neighbours.load(node(123), {"CPU": 0})
    neighbours.load(node(45), {"CPU": 10_000})
    neighbours.load(b"who-is-that-----", {"CPU": 10_000})
    assert choose(neighbours).node is neighbours.views[node(45)]


def test_what_waits_goes_where_room_appears() -> None:
    neighbours = crowd()
    waiting = [Waiting(number, ONE, DEFAULT) for number in range(3)]
    assert neighbours.relocate(FULL, 3, waiting, NO_BUNDLES) == []
    neighbours.load(node(77), {"CPU": 20_000})
    moves = neighbours.relocate(FULL, 3, waiting, NO_BUNDLES)
    assert [(waiter.key, view.node_id) for waiter, view, _ in moves] == [(0, node(77)), (1, node(77))]


def test_what_asks_for_certain_nodes_finds_them() -> None:
    neighbours = crowd()
    neighbours.update(row(150, free=2, zone="b"))
    labels = ("labels", (("zone", "in", ("b",)),), ())
    for strategy in (("affinity", node(150), False), labels):
        assert choose(neighbours, strategy).node is neighbours.views[node(150)]
    assert choose(neighbours, ("affinity", node(3), False)).node is neighbours.views[node(3)], "it waits there"


def test_that_nobody_can_run_it_is_said_of_all() -> None:
    decision = choose(crowd(5), demand=ResourceSet.of({"CPU": 3}))
    assert decision.verdict is Verdict.INFEASIBLE and "best node" in decision.reason
    neighbours = crowd(5)
    total = {"CPU": 80_000}
    neighbours.update((node(199), agent_id(node(199)), "tcp://x", "host", total, {"CPU": 0}, {}, True))
    decision = choose(neighbours, demand=ResourceSet.of({"CPU": 3}))
    assert decision.verdict is Verdict.SEND and decision.node is neighbours.views[node(199)], "it waits where it can run"


def test_a_decision_looks_at_a_few_nodes_only(monkeypatch: Any) -> None:
    looked: list[int] = []
    known = Policy.choose

    def count(policy: Policy, views: Any, *args: Any, **options: Any) -> Decision:
        looked.append(len(views))
        return known(policy, views, *args, **options)

    monkeypatch.setattr(Policy, "choose", count)
    neighbours = crowd(*range(MANY))
    chosen = [choose(neighbours).node for _ in range(100)]
    assert max(looked) <= 1 + DRAWN
    assert len({view.node_id for view in chosen if view is not None}) == 100, "who was chosen is full"


def test_in_a_large_cluster_the_control_is_told_more_rarely() -> None:
    neighbours = crowd()
    assert neighbours.crowd() == 1.0
    for number in range(MANY, 5 * MANY):
        neighbours.update(row(number))
    assert neighbours.crowd() == 5.0
