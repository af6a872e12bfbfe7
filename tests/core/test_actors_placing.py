"""ActorManager: actors for which there is no place now, or never."""

from __future__ import annotations

from zray.base.wire_actors import Notice, PlaceActor
from zray.core.actor_places import Place
from zray.core.actors import INFEASIBLE_TIMER
from zray.exceptions import ActorUnschedulableError

from .reading import AGENT, sent, timers
from .test_actors import OWNER, A, Bench, refused, told_error


def test_an_actor_for_which_the_cluster_has_no_place_and_never_will_dies_at_once() -> None:
    bench = Bench()
    bench.agent, bench.no_place = None, Place(b"", "exhausted", "it asks for node 77, which is dead")
    bench.register()
    error = told_error(bench.create())
    assert isinstance(error, ActorUnschedulableError) and "it asks for node 77, which is dead" in str(error)


def test_an_actor_that_no_node_can_run_is_placed_when_one_joins_that_can() -> None:
    bench = Bench(infeasible_grace_s=3.0)
    bench.agent, bench.no_place = None, Place(b"", "infeasible", "it asks for 9 GPU")
    bench.register()
    effects = bench.create()
    assert [peer for peer, _ in sent(effects, Notice)] == [OWNER]
    assert timers(effects) == [(3.0, (INFEASIBLE_TIMER, A, 0))]
    bench.manager.node_joined(1.0)
    assert bench.effects() == [], "it can not run it either"
    bench.agent = AGENT
    bench.manager.node_joined(2.0)
    assert [m.incarnation for _, m in sent(bench.effects(), PlaceActor)] == [1]
    assert bench.timer(3.0, INFEASIBLE_TIMER, A, 0) == []


def test_an_actor_that_an_agent_sends_back_is_placed_anew() -> None:
    bench = Bench()
    bench.register()
    bench.create()
    effects = refused(bench, "elsewhere")
    assert [m.incarnation for _, m in sent(effects, PlaceActor)] == [2] and sent(effects, Notice) == []
