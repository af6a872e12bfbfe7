"""Neighbours: what one agent knows of the others, and where it sends requests on."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from zray.base.ids import agent_id
from zray.base.resources import ResourceSet
from zray.core.neighbours import Neighbours
from zray.core.policy import DEFAULT, Verdict, Waiting
from zray.core.views import GroupView

HERE, FIRST, SECOND = b"here-here-here--", b"first-first-fi--", b"second-second---"
ONE = ResourceSet.of({"CPU": 1})
FULL = {"CPU": 0}
NO_BUNDLES: Any = SimpleNamespace(free=dict, groups={})  # no placement group has anything here


def row(node_id: bytes, cpus: float = 2, free: float | None = None, alive: bool = True, **more: Any) -> tuple[Any, ...]:
    """What the control says of a node."""
    total = {"CPU": int(cpus * 10_000), **more.get("resources", {})}
    available = {**total, "CPU": int((cpus if free is None else free) * 10_000)}
    return node_id, agent_id(node_id), "tcp://" + node_id.decode(), "host", total, available, more.get("labels", {}), alive


def bench(*rows: tuple[Any, ...], cpus: float = 2) -> Neighbours:
    neighbours = Neighbours(HERE, agent_id(HERE), random.Random(1), 3)
    neighbours.describe(ResourceSet.of({"CPU": cpus}), {"zone": "here"})
    for each in rows:
        neighbours.update(each)
    return neighbours


def test_views_come_change_and_go() -> None:
    neighbours = bench(row(FIRST), row(SECOND))
    assert neighbours.by_agent[agent_id(FIRST)] is neighbours.views[FIRST]
    view = neighbours.update(row(FIRST, free=1))
    assert neighbours.views[FIRST] is view and view.available == ONE and view.title().endswith("on host host")
    gone = neighbours.update(row(FIRST, alive=False))
    assert not gone.alive and list(neighbours.views) == [SECOND] and list(neighbours.by_agent) == [agent_id(SECOND)]
    neighbours.update(row(FIRST, alive=False))
    assert list(neighbours.views) == [SECOND], "the news of a death may come twice"


def test_what_has_room_here_runs_here() -> None:
    decision = bench(row(FIRST)).choose({"CPU": 20_000}, 0, ONE, DEFAULT, 0, NO_BUNDLES)
    assert decision.verdict is Verdict.RUN


def test_what_was_sent_on_and_changed_nothing_there_is_forgotten_at_the_next_word_of_the_control() -> None:
    """It was cancelled, or served between two looks: no view will ever say that the room is free again."""
    neighbours = bench(row(FIRST, cpus=1))
    assert not neighbours.correct()
    for _ in range(2):
        assert neighbours.choose(FULL, 0, ONE, DEFAULT, 0, NO_BUNDLES).verdict is Verdict.SEND
        assert neighbours.choose(FULL, 0, ONE, DEFAULT, 0, NO_BUNDLES).verdict is Verdict.QUEUE
        assert neighbours.correct() and not neighbours.correct()
    neighbours.choose(FULL, 0, ONE, DEFAULT, 0, NO_BUNDLES)
    neighbours.update(row(FIRST, alive=False))
    assert not neighbours.correct() and not neighbours.views


def test_a_burst_is_spread_since_what_was_sent_on_counts_as_taken() -> None:
    neighbours = bench(row(FIRST, cpus=2), row(SECOND, cpus=1))
    sent = [neighbours.choose(FULL, 0, ONE, DEFAULT, 0, NO_BUNDLES) for _ in range(4)]
    nodes = [decision.node.node_id for decision in sent[:3] if decision.node is not None]
    assert sorted(nodes) == [FIRST, FIRST, SECOND]
    assert sent[3].verdict is Verdict.QUEUE, "then all are full, and it waits where it is"
    neighbours.update(row(SECOND, cpus=1))
    decision = neighbours.choose(FULL, 1, ONE, DEFAULT, 0, NO_BUNDLES)
    assert decision.node is neighbours.views[SECOND], "the next view puts that right"


def test_so_is_what_was_sent_into_a_bundle() -> None:
    group = GroupView("CREATED", (ONE,), (FIRST,))
    bundles: Any = SimpleNamespace(count=lambda group_id: None, groups={b"group": group})
    neighbours, strategy = bench(row(FIRST)), ("bundle", b"group", 0)

    def sends() -> bool:
        full = ResourceSet({}) in group.free.values()
        return neighbours.choose(FULL, 0, ONE, strategy, 0, bundles).verdict is Verdict.SEND and not full

    assert sends() and not sends()
    assert neighbours.correct()
    assert sends()
    group.told[0] = ResourceSet({})
    assert neighbours.correct()
    assert not sends(), "it was told that there is nothing free"


def test_a_node_that_is_gone_is_sent_nothing() -> None:
    neighbours = bench(row(FIRST), row(FIRST, alive=False))
    assert neighbours.choose(FULL, 0, ONE, DEFAULT, 0, NO_BUNDLES).verdict is Verdict.QUEUE
    decision = neighbours.choose({"CPU": 20_000}, 0, ResourceSet.of({"CPU": 4}), DEFAULT, 0, NO_BUNDLES)
    assert decision.verdict is Verdict.INFEASIBLE


def test_what_can_run_nowhere_is_refused_in_the_name_of_the_closest_node() -> None:
    neighbours = bench(row(FIRST, cpus=8), row(SECOND, cpus=4))
    decision = neighbours.choose({"CPU": 20_000}, 0, ResourceSet.of({"CPU": 16}), DEFAULT, 0, NO_BUNDLES)
    assert decision.verdict is Verdict.INFEASIBLE
    assert decision.reason == f"it asks for 16 CPU where the best node ({FIRST.hex()[:8]} on host host) has 8"


def test_labels_of_this_node_and_of_others_are_looked_at() -> None:
    neighbours = bench(row(FIRST, labels={"zone": "there"}))
    free = {"CPU": 20_000}

    def strategy(zone: str) -> tuple[Any, ...]:
        return ("labels", (("zone", "in", (zone,)),), ())

    assert neighbours.choose(free, 0, ONE, strategy("here"), 0, NO_BUNDLES).verdict is Verdict.RUN
    assert neighbours.choose(free, 0, ONE, strategy("there"), 0, NO_BUNDLES).node is neighbours.views[FIRST]
    assert neighbours.choose(free, 0, ONE, strategy("nowhere"), 0, NO_BUNDLES).verdict is Verdict.INFEASIBLE


def test_a_worker_that_woke_may_have_taken_more_than_there_is() -> None:
    neighbours = bench(row(FIRST, free=-1))
    assert neighbours.views[FIRST].available["CPU"] == 0
    assert neighbours.choose({"CPU": -10_000}, 0, ONE, DEFAULT, 0, NO_BUNDLES).verdict is Verdict.QUEUE


def test_those_who_wait_go_where_room_appeared_as_many_as_fit() -> None:
    neighbours = bench(row(FIRST, free=0))
    waiting = [Waiting((b"owner", n), ONE, DEFAULT) for n in range(3)]
    assert neighbours.relocate(FULL, 3, waiting, NO_BUNDLES) == []
    neighbours.update(row(FIRST, free=2))
    moves = neighbours.relocate(FULL, 3, waiting, NO_BUNDLES)
    assert [(request.key, node.node_id) for request, node, _ in moves] == [((b"owner", 0), FIRST), ((b"owner", 1), FIRST)]
    assert neighbours.relocate(FULL, 1, waiting[2:], NO_BUNDLES) == [], "the room is taken until the next view"


def test_those_who_wait_stay_if_they_can_run_here() -> None:
    neighbours = bench(row(FIRST, free=2))
    waiting = [Waiting((b"owner", n), ONE, DEFAULT) for n in range(2)]
    moves = neighbours.relocate({"CPU": 10_000}, 2, waiting, NO_BUNDLES)
    assert [request.key for request, _, _ in moves] == [(b"owner", 1)]
