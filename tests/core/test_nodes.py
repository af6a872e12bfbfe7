"""NodeManager: which nodes there are, what the others are told of them, and when one counts as dead."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.config import Config
from zray.base.ids import agent_id
from zray.base.wire_nodes import ClusterLoads, ClusterView, NodeRefused, ProbeNode
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, WARN
from zray.core.gcs import Gcs
from zray.core.nodes import HEALTH_TIMER, VIEW_TIMER, NodeManager, NodeState
from zray.exceptions import InvariantError

from .reading import drain, sent, timers, verbs

HOME, FIRST, SECOND = b"home-home-home--", b"first-first-fi--", b"second-second---"
LIMITS = {"heartbeat_ms": 100.0, "health_check_ms": 500.0, "node_suspect_s": 1.5, "node_death_s": 3.0, "node_lost_s": 1.5}
TWO_CPUS = {"CPU": 20_000}
ONE_CPU = {"CPU": 10_000}


class Bench:
    """A control that knows its home and, by default, two other nodes, all of which it has told of one another."""

    def __init__(self, *others: bytes, published: bool = True) -> None:
        self.out: list[Any] = []
        self.members = NodeManager(Config(**LIMITS), self.out, agent_id(HOME))
        self.timers: list[tuple[float, Any]] = []
        self.join(HOME)
        for node_id in others or (FIRST, SECOND):
            self.join(node_id)
        if published:
            self.publish()

    def join(self, node_id: bytes, now: float = 0.0, labels: dict[str, str] | None = None) -> list[Any]:
        what = ("tcp://" + node_id.decode(), "host", 7, dict(TWO_CPUS), labels or {}, "arena", 1 << 20)
        return self.does("register", now, agent_id(node_id), node_id, *what)

    def does(self, event: str, *args: Any) -> list[Any]:
        self.last = getattr(self.members, event)(*args)
        self.members.check()
        effects = drain(self.out)
        self.timers += timers(effects)
        return effects

    def heard(self, node_id: bytes, now: float = 0.0, available: dict[str, int] | None = None) -> list[Any]:
        return self.does("heard", now, agent_id(node_id), node_id, TWO_CPUS if available is None else available)

    def publish(self, now: float = 0.0) -> list[Any]:
        return self.does("publish", now)

    def tick(self, now: float, *, keeps: tuple[bytes, ...] = ()) -> list[Any]:
        """One look at the time ``now``; ``keeps`` were heard just before it."""
        for node_id in keeps:
            self.heard(node_id, now)
        return self.does("tick", now)

    def ticks(self, until: float, *, keeps: tuple[bytes, ...] = ()) -> dict[float, bytes]:
        """All looks up to a time: when each node was found to be dead."""
        found = {}
        for step in range(1, int(until / 0.5) + 1):
            self.tick(step * 0.5, keeps=keeps)
            for node, reason in self.last:
                found[step * 0.5] = node.id
                self.does("end", step * 0.5, node, reason)
        return found

    def state(self, node_id: bytes) -> NodeState:
        return self.members.nodes[node_id].state


def views(effects: list[Any]) -> dict[bytes, list[tuple[Any, ...]]]:
    """What each agent is told of other nodes."""
    return {peer: view.rows for peer, view in sent(effects, ClusterView) if view.rows}


def told(effects: list[Any]) -> dict[bytes, list[bytes]]:
    """Of which nodes each agent is told."""
    return {peer: [row[0] for row in rows] for peer, rows in views(effects).items()}


def loads(effects: list[Any]) -> dict[bytes, dict[bytes, dict[str, int]]]:
    """What each agent is told of what is free."""
    return {peer: dict(message.rows) for peer, message in sent(effects, ClusterLoads)}


# -- registering ----------------------------------------------------------------------------------------------------


def test_a_node_that_joins_learns_of_all_others_at_once_and_they_of_it_with_the_next_view() -> None:
    bench = Bench(FIRST)
    effects = bench.join(SECOND, labels={"zone": "a"})
    assert told(effects) == {agent_id(SECOND): [HOME, FIRST]}
    assert [row[1][0] for row in verbs(effects, PERSIST)] == [SECOND]
    news = views(bench.publish())
    row = (SECOND, agent_id(SECOND), "tcp://second-second---", "host", TWO_CPUS, TWO_CPUS, {"zone": "a"}, True)
    assert news == {agent_id(HOME): [row], agent_id(FIRST): [row]}


def test_a_node_that_joins_learns_who_is_dead_so_that_whom_it_does_not_know_is_new() -> None:
    bench = Bench(FIRST)
    bench.does("end", 1.0, bench.members.nodes[FIRST], "it was silent")
    [known] = views(bench.join(SECOND)).values()
    assert [(row[0], row[-1]) for row in known] == [(HOME, True), (FIRST, False)]


def test_a_control_with_no_other_node_tells_nobody_and_looks_after_nobody() -> None:
    out: list[Any] = []
    alone = NodeManager(Config(), out, agent_id(HOME))
    alone.register(0.0, agent_id(HOME), HOME, "ipc://x", "host", 1, dict(TWO_CPUS), {}, "arena", 1)
    alone.heard(0.0, agent_id(HOME), HOME, ONE_CPU)
    assert timers(out) == [] and sent(out, ClusterView) == []
    assert alone.nodes[HOME].available == ONE_CPU


def test_two_living_nodes_with_one_agent_are_a_mistake() -> None:
    bench = Bench()
    what = ("tcp://x", "host", 7, dict(TWO_CPUS), {}, "arena", 1)
    with pytest.raises(InvariantError, match="same agent"):
        bench.does("register", 0.0, agent_id(FIRST), b"another-another-", *what)


def test_what_users_see_of_a_dead_node_has_nothing_free() -> None:
    bench = Bench()
    bench.does("end", 1.0, bench.members.nodes[FIRST], "it left")
    dead, alive = (bench.members.nodes[node].description() for node in (FIRST, SECOND))
    assert not dead["alive"] and dead["available"] == {} and dead["total"] == TWO_CPUS
    assert alive["alive"] and alive["available"] == TWO_CPUS
    assert bench.members.statistics() == {"nodes": 2, "dead_nodes": 1}


# -- views ----------------------------------------------------------------------------------------------------------


def test_a_death_is_told_when_it_is_on_disk() -> None:
    bench = Bench()
    bench.does("end", 1.0, bench.members.nodes[FIRST], "it was silent")
    effects = bench.publish()
    assert views(effects)[agent_id(SECOND)][0][0] == FIRST
    assert all(isinstance(message, ClusterView) for _, message in verbs(effects, AFTER_PERSIST))
    assert not [message for _, message in verbs(effects, SEND) if isinstance(message, ClusterView)]


def test_what_changed_is_published_once_per_heartbeat_and_to_all_others() -> None:
    bench = Bench()
    bench.timers.clear()
    first = bench.heard(FIRST, 1.0, ONE_CPU)
    assert views(first) == {}, "not at once"
    bench.heard(FIRST, 1.05, {"CPU": 0})
    bench.heard(SECOND, 1.06, ONE_CPU)
    assert [(at, key) for at, key in bench.timers if key == (VIEW_TIMER,)] == [(1.1, (VIEW_TIMER,))]
    effects = bench.publish()
    news = {FIRST: {"CPU": 0}, SECOND: ONE_CPU}
    assert loads(effects) == {agent_id(node): news for node in (HOME, FIRST, SECOND)}, "the newest of each"
    assert bench.publish() == [], "each change is told once"


def test_a_sign_of_life_without_news_is_told_to_nobody() -> None:
    bench = Bench()
    bench.timers.clear()
    assert bench.heard(FIRST, 1.0) == [] and bench.timers == []
    assert bench.publish() == []


def test_a_change_after_a_view_is_told_with_the_next_one() -> None:
    bench = Bench()
    bench.heard(FIRST, 1.0, ONE_CPU)
    bench.publish()
    bench.timers.clear()
    bench.heard(FIRST, 1.2, TWO_CPUS)
    [(at, key)] = bench.timers
    assert key == (VIEW_TIMER,) and at == pytest.approx(1.3)
    assert set(loads(bench.publish())) == {agent_id(node) for node in (HOME, FIRST, SECOND)}


def test_what_is_again_as_it_was_told_is_no_news() -> None:
    bench = Bench()
    bench.heard(FIRST, 1.0, ONE_CPU)
    bench.heard(FIRST, 1.05, TWO_CPUS)
    assert bench.publish() == []


def test_in_a_large_cluster_what_is_free_is_told_bit_by_bit_the_oldest_news_first(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    monkeypatch.setattr("zray.core.nodes.LOADS_PER_S", 30)  # one row for each of three nodes, ten times a second
    for node_id in (SECOND, FIRST):
        bench.heard(node_id, 1.0, ONE_CPU)
    bench.timers.clear()
    for node_id in (SECOND, FIRST):
        assert list(loads(bench.publish(1.1)).values()) == [{node_id: ONE_CPU}] * 3
    assert bench.timers == [(pytest.approx(1.2), (VIEW_TIMER,))], "after the first there is more to tell"
    bench.heard(FIRST, 1.2, TWO_CPUS)
    bench.does("end", 1.2, bench.members.nodes[SECOND], "it left")
    effects = bench.publish(1.3)
    assert told(effects) == {agent_id(HOME): [SECOND], agent_id(FIRST): [SECOND]} and loads(effects)


def test_the_dead_are_told_of_no_more_and_their_death_is_told_to_all_others() -> None:
    bench = Bench()
    effects = bench.does("end", 1.0, bench.members.nodes[FIRST], "it left")
    assert [text for (text,) in verbs(effects, WARN)] == [f"node {FIRST.hex()[:8]} on host is dead: it left"]
    assert [row[1][-1] for row in verbs(effects, PERSIST)] == ["DEAD"]
    news = views(bench.publish())
    assert {peer: [(row[0], row[7]) for row in rows] for peer, rows in news.items()} == {
        agent_id(HOME): [(FIRST, False)],
        agent_id(SECOND): [(FIRST, False)],
    }


def test_a_node_that_nobody_knows_changes_nothing() -> None:
    bench = Bench()
    assert bench.heard(b"stranger-strang-", 1.0, ONE_CPU) == []
    assert bench.publish() == []


# -- health ---------------------------------------------------------------------------------------------------------


def test_a_silent_node_is_suspected_then_asked_then_dead() -> None:
    bench = Bench(FIRST)
    probed = {}
    for step in range(1, 6):
        effects = bench.tick(step * 0.5)
        assert bench.last == []
        probed[step * 0.5] = sent(effects, ProbeNode)
    question = [(agent_id(FIRST), ProbeNode())]
    assert probed == {0.5: [], 1.0: [], 1.5: question, 2.0: question, 2.5: question}
    assert bench.state(FIRST) is NodeState.SUSPECTED and bench.members.nodes[FIRST].row()[7], "a suspect still counts"
    bench.tick(3.0)
    assert [node.id for node, _ in bench.last] == [FIRST]


def test_a_suspect_that_answers_lives() -> None:
    bench = Bench(FIRST)
    for step in range(1, 5):
        bench.tick(step * 0.5)
    bench.heard(FIRST, 2.1)
    assert bench.state(FIRST) is NodeState.ALIVE
    for now in (2.5, 3.0, 3.5):
        assert sent(bench.tick(now), ProbeNode) == [] and bench.last == []


def test_only_the_silent_die() -> None:
    bench = Bench()
    assert bench.ticks(10.0, keeps=(SECOND,)) == {3.0: FIRST}


def test_every_look_tells_the_nodes_that_the_control_lives() -> None:
    bench = Bench()
    quiet = [(peer, view.rows) for peer, view in sent(bench.tick(0.5), ClusterView)]
    assert quiet == [(agent_id(HOME), []), (agent_id(FIRST), []), (agent_id(SECOND), [])]


def test_home_is_never_dead() -> None:
    bench = Bench(FIRST)
    assert bench.ticks(60.0, keeps=(FIRST,)) == {}
    assert bench.state(HOME) is NodeState.ALIVE


def test_looking_goes_on_while_there_are_others_and_begins_again_with_the_next_one() -> None:
    bench = Bench(FIRST)
    assert [key for _, key in bench.timers if key == (HEALTH_TIMER,)] == [(HEALTH_TIMER,)], "one timer for all"
    assert timers(bench.tick(0.5)) == [(1.0, (HEALTH_TIMER,))]
    bench.does("end", 0.6, bench.members.nodes[FIRST], "it left")
    assert timers(bench.tick(1.0)) == []
    assert (100.5, (HEALTH_TIMER,)) in timers(bench.join(SECOND, 100.0))
    assert bench.tick(100.5) and bench.last == [], "the pause was not silence of the new one"
    assert (101.0, (HEALTH_TIMER,)) not in timers(bench.join(b"third-third-thi-", 100.6)), "it is set already"


def test_a_late_sign_of_the_dead_is_answered_with_an_invitation_to_join_anew() -> None:
    bench = Bench()
    bench.does("end", 4.0, bench.members.nodes[FIRST], "it was silent")
    bench.publish()
    effects = bench.heard(FIRST, 5.0, ONE_CPU)
    [(peer, refusal)] = sent(effects, NodeRefused)
    assert peer == agent_id(FIRST) and refusal.rejoin and "not heard" in refusal.reason
    assert bench.state(FIRST) is NodeState.DEAD and bench.publish() == [], "nothing that it says is believed"


def test_a_node_that_came_back_as_another_is_one_more() -> None:
    bench = Bench(FIRST)
    bench.does("end", 4.0, bench.members.nodes[FIRST], "it was silent")
    bench.join(SECOND, 5.0)
    assert [node.id for node in bench.members.alive()] == [HOME, SECOND]


def test_a_control_that_was_held_up_gives_everybody_the_time_it_missed() -> None:
    bench = Bench()
    bench.tick(0.5, keeps=(FIRST, SECOND))
    bench.tick(60.0)
    assert bench.last == [] and bench.state(FIRST) is NodeState.ALIVE, "it was this process that did not listen"
    deaths = {}
    for step in range(1, 12):
        bench.tick(60.0 + step * 0.5, keeps=(SECOND,))
        for node, _ in bench.last:
            deaths[node.id] = step * 0.5
            bench.does("end", 0.0, node, "it was silent")
    assert deaths == {FIRST: 2.5}, "but whoever is silent now dies as ever"


def test_who_spoke_after_the_control_woke_has_no_credit_for_the_time_it_slept() -> None:
    bench = Bench(FIRST)
    bench.tick(0.5, keeps=(FIRST,))
    bench.tick(600.0, keeps=(FIRST,))  # what lay in the socket is read before the timer comes
    late = {}
    for step in range(1, 10):
        bench.tick(600.0 + step * 0.5)
        late[step * 0.5] = len(bench.last)
    assert late[2.5] == 0 and late[3.0] == 1


def test_a_little_lateness_of_the_timer_is_no_reason_to_wait_longer() -> None:
    bench = Bench(FIRST)
    late = []
    for step in range(1, 5):
        bench.tick(step * 0.8)
        late.append(len(bench.last))
    assert late == [0, 0, 0, 1]


# -- connections that end --------------------------------------------------------------------------------------------


def test_a_node_whose_connection_ended_is_dead_unless_it_comes_back_soon() -> None:
    bench = Bench()
    for node_id in (FIRST, SECOND):
        bench.does("lost", 0.5, agent_id(node_id))
        bench.does("lost", 0.9, agent_id(node_id))
    bench.heard(SECOND, 1.0)
    for now in (1.0, 1.5):
        assert bench.tick(now) and bench.last == []
    bench.tick(2.0)
    [(node, reason)] = bench.last
    assert node.id == FIRST and "did not come back within 1.5 s" in reason


def test_a_control_that_was_held_up_waits_for_those_whose_connection_ended() -> None:
    bench = Bench(FIRST)
    bench.tick(0.5, keeps=(FIRST,))
    bench.does("lost", 0.6, agent_id(FIRST))
    bench.tick(60.0)
    assert bench.last == []
    for step in range(1, 4):
        bench.tick(60.0 + step * 0.5)
    assert [node.id for node, _ in bench.last] == [FIRST]


def test_a_connection_that_was_given_up_in_a_silence_says_nothing_of_the_node() -> None:
    bench = Bench(FIRST)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5):
        if now == 2.0:
            bench.does("lost", 1.5, agent_id(FIRST))
        assert bench.tick(now) and bench.last == []
    bench.tick(3.0)
    assert [reason for _, reason in bench.last] == ["it was silent for 3 s"]


def test_the_end_of_a_connection_of_somebody_else_is_nothing() -> None:
    bench = Bench(FIRST)
    assert bench.does("lost", 0.5, b"a driver") == []


# -- in the control -------------------------------------------------------------------------------------------------


def test_with_a_node_die_the_jobs_of_its_drivers() -> None:
    gcs = Gcs(b"cluster", Config(**LIMITS), home=agent_id(HOME))
    for node_id in (HOME, FIRST):
        what = ("tcp://x", "host", 7, dict(TWO_CPUS), {}, "arena", 1)
        gcs.on_register_node(0.0, agent_id(node_id), node_id, *what)
    drivers = [node_id[:6] + b"\x80\0\0\1" + node_id[6:12] for node_id in (HOME, FIRST)]
    for driver in drivers:
        gcs.on_register_job(0.0, driver, 1, driver, "tcp://d", 3, "script.py", "space", {})
    for step in range(1, 8):
        gcs.on_timer(step * 0.5, (HEALTH_TIMER,))
        gcs.check()
    assert [(job["driver"], job["state"]) for job in gcs.jobs.values()] == [(drivers[0], "RUNNING"), (drivers[1], "DIED")]
    assert [node["alive"] for node in gcs._described()] == [True, False]


def test_a_cluster_that_ends_tells_its_nodes_not_to_come_back() -> None:
    gcs = Gcs(b"cluster", Config(**LIMITS), home=agent_id(HOME))
    for node_id in (HOME, FIRST):
        what = ("tcp://x", "host", 7, dict(TWO_CPUS), {}, "arena", 1)
        gcs.on_register_node(0.0, agent_id(node_id), node_id, *what)
    drain(gcs.out)
    gcs.leave("SIGTERM")
    assert (agent_id(FIRST), NodeRefused("SIGTERM", False)) in sent(gcs.out, NodeRefused)


def test_a_node_that_leaves_is_dead_at_once_and_only_once() -> None:
    gcs = Gcs(b"cluster", Config(**LIMITS), home=agent_id(HOME))
    for node_id in (HOME, FIRST, SECOND):
        what = ("tcp://x", "host", 7, dict(TWO_CPUS), {}, "arena", 1)
        gcs.on_register_node(0.0, agent_id(node_id), node_id, *what)
    gcs.on_timer(0.1, (VIEW_TIMER,))
    drain(gcs.out)
    gcs.on_leave_cluster(1.0, agent_id(FIRST), FIRST, "SIGTERM")
    [(text,)] = verbs(gcs.out, WARN)
    assert text.endswith("is dead: it left the cluster: SIGTERM")
    gcs.on_timer(1.1, (VIEW_TIMER,))
    dead = {peer: [(row[0], row[7]) for row in rows] for peer, rows in views(drain(gcs.out)).items()}
    assert dead == {agent_id(HOME): [(FIRST, False)], agent_id(SECOND): [(FIRST, False)]}
    for node_id in (FIRST, b"unknown"):
        gcs.on_leave_cluster(2.0, agent_id(FIRST), node_id, "SIGTERM")
    assert gcs.out == []
