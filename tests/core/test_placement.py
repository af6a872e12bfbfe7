"""PlacementGroupManager: places for bundles, rounds with the nodes, and how groups end."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.config import Config
from zray.base.ids import agent_of, process_id
from zray.base.resources import UNIT, ResourceSet
from zray.base.wire import Reply
from zray.base.wire_actors import Notice
from zray.base.wire_placement import CommitBundles, PlacementGroupUpdated, PrepareBundles, ReturnBundles
from zray.core.effects import AFTER_PERSIST, PERSIST
from zray.core.placement import RETRY_TIMER, WAIT_TIMER, GroupState, PlacementGroupManager
from zray.core.views import NodeView
from zray.exceptions import InvariantError

from .reading import AGENT, drain, process, sent, timers, verbs

A, B, C = (b"node-%s----------" % letter for letter in (b"a", b"b", b"c"))
G, H = process("group-g"), process("group-h")
JOB, OTHER_JOB = b"job1", b"job2"
OWNER, OTHER = process("owner"), process("other")
ACTOR = b"actor-1-----"
PENDING, CREATED, RESCHEDULING, REMOVED = GroupState
ONE = {"CPU": UNIT}


def agent(node_id: bytes) -> bytes:
    return b"agent-" + node_id[:10]


class Bench:
    """The manager and the views it has of nodes."""

    def __init__(self, *nodes: bytes, cpus: int = 2, **limits: Any) -> None:
        self.out: list[Any] = []
        self.views: dict[bytes, NodeView] = {}
        for node_id in nodes:
            self.join(node_id, cpus)
        self.told: list[bytes] = []
        self.manager = PlacementGroupManager(Config(**limits), self.out, lambda: self.views, self._tell)

    def _tell(self, now: float, group_id: bytes) -> None:
        self.told.append(group_id)

    def join(self, node_id: bytes, cpus: int = 2, free: int | None = None) -> None:
        total = ResourceSet.of({"CPU": cpus})
        available = total if free is None else ResourceSet.of({"CPU": free})
        self.views[node_id] = NodeView(node_id, agent(node_id), "", total, available, hostname="h")

    def effects(self) -> list[Any]:
        self.manager.check()
        return drain(self.out)

    def hears(self, event: str, *fields: Any, peer: bytes = OWNER, now: float = 0.0) -> list[Any]:
        getattr(self.manager, "on_" + event)(now, peer, *fields)
        return self.effects()

    def tell(self, method: str, *fields: Any) -> list[Any]:
        getattr(self.manager, method)(*fields)
        return self.effects()

    def timer(self, now: float, *key: Any) -> list[Any]:
        self.manager.on_timer(now, key)
        return self.effects()

    def register(
        self,
        group_id: bytes = G,
        bundles: Any = (ONE, ONE),
        strategy: str = "PACK",
        *,
        name: str = "",
        actor: bytes = b"",
        detached: bool = False,
        conditions: Any = (),
        job: bytes = JOB,
        peer: bytes = OWNER,
        now: float = 0.0,
    ) -> list[Any]:
        what = (group_id, job, actor, name, "space", detached, strategy, list(bundles), list(conditions))
        return self.hears("register_placement_group", 7, *what, peer=peer, now=now)

    def prepared(
        self, node_id: bytes, reason: str = "", group_id: bytes = G, attempt: int = 1, now: float = 0.0
    ) -> list[Any]:
        return self.hears("bundles_prepared", group_id, attempt, node_id, reason, peer=agent(node_id), now=now)

    def created(self, group_id: bytes = G, **options: Any) -> list[Any]:
        """A group whose bundles have their places."""
        effects = self.register(group_id, **options)
        for peer, _ in sent(effects, PrepareBundles):
            last = self.prepared(next(i for i in self.views if agent(i) == peer), group_id=group_id)
        assert self.state(group_id) is CREATED
        return last

    def state(self, group_id: bytes = G) -> GroupState:
        return self.manager.groups[group_id].state

    def nodes(self, group_id: bytes = G) -> list[bytes]:
        return self.manager.groups[group_id].nodes


def replies(effects: list[Any]) -> list[tuple[bytes, Any, Any]]:
    return [(peer, m.ok, m.value) for peer, m in sent(effects, Reply)]


def rows(effects: list[Any], statement: str) -> list[Any]:
    return [parameters for name, parameters in verbs(effects, PERSIST) if name == statement]


def asked(effects: list[Any]) -> list[tuple[bytes, int, list[int]]]:
    """Who is to prepare which bundles in which round."""
    return [(peer, m.attempt, [index for index, _ in m.rows]) for peer, m in sent(effects, PrepareBundles)]


def returned(effects: list[Any]) -> list[tuple[bytes, list[int]]]:
    return [(peer, m.indexes) for peer, m in sent(effects, ReturnBundles)]


# -- from the registration to the places ------------------------------------------------------------------------------


def test_a_registration_is_written_down_acknowledged_and_the_nodes_are_asked() -> None:
    bench = Bench(A, B)
    effects = bench.register(name="mine", strategy="SPREAD")
    [row] = rows(effects, "save_placement_group")
    assert row[:-1] == (G, JOB, OWNER, "mine", "space", False, "SPREAD", "{CPU: 1}; {CPU: 1}", "PENDING")
    assert verbs(effects, AFTER_PERSIST) == [(OWNER, Reply(7, True, None))]
    assert sent(effects, PrepareBundles) == [
        (agent(A), PrepareBundles(G, 1, [(0, ONE)])),
        (agent(B), PrepareBundles(G, 1, [(1, ONE)])),
    ]


def test_all_commit_when_all_have_prepared() -> None:
    bench = Bench(A, B)
    bench.register(strategy="SPREAD")
    assert bench.prepared(A) == [] and bench.state() is PENDING
    effects = bench.prepared(B)
    assert sent(effects, CommitBundles) == [(agent(A), CommitBundles(G, 1)), (agent(B), CommitBundles(G, 1))]
    assert bench.state() is CREATED and bench.nodes() == [A, B]
    [row] = rows(effects, "update_placement_group")
    assert (*row[:3], row[-1]) == ("CREATED", f"{A.hex()[:8]}, {B.hex()[:8]}", "", G)
    assert next(effect[0] for effect in effects if effect[0] in (PERSIST, AFTER_PERSIST)) == PERSIST, "nobody hears it before"
    assert bench.told == [G]


def test_one_refusal_ends_the_round_and_another_follows_later() -> None:
    bench = Bench(A, B, C)
    bench.register(strategy="STRICT_SPREAD", bundles=[ONE, ONE, ONE])
    bench.prepared(A)
    effects = bench.prepared(B, "0 of 1 CPU free", now=5.0)
    assert sorted(returned(effects)) == [(agent(A), [0]), (agent(C), [2])]
    assert timers(effects) == [(5.05, (RETRY_TIMER, G))]
    assert bench.manager.groups[G].reason == f"node {B.hex()[:8]} had no room: 0 of 1 CPU free"
    assert bench.prepared(C) == [], "its answer comes too late"
    effects = bench.timer(5.05, RETRY_TIMER, G)
    assert asked(effects) == [(agent(A), 2, [0]), (agent(B), 2, [1]), (agent(C), 2, [2])]
    assert bench.prepared(A, attempt=1) == [] and bench.prepared(A, attempt=2) == []


def test_the_delay_between_rounds_doubles_and_is_bounded() -> None:
    bench = Bench(A, placement_retry_ms=100.0, placement_retry_max_s=0.5)
    bench.register()
    delays = []
    for attempt in range(1, 7):
        [(at, key)] = timers(bench.prepared(A, "no", attempt=attempt))
        delays.append(at)
        bench.timer(0.0, *key)
    assert delays == [0.1, 0.2, 0.4, 0.5, 0.5, 0.5]


def test_it_waits_while_there_is_no_room_and_nodes_that_change_wake_it() -> None:
    bench = Bench()
    bench.join(A, 2, free=1)
    effects = bench.register()
    assert asked(effects) == [] and timers(effects) == [(0.05, (RETRY_TIMER, G))]
    assert bench.manager.groups[G].reason == "there is not enough free at the moment"
    assert bench.tell("nodes_changed", 0.01) == [], "the timer is set already"
    bench.join(A, 2)
    assert asked(bench.tell("nodes_changed", 0.02)) == [(agent(A), 1, [0, 1])]
    assert bench.timer(0.05, RETRY_TIMER, G) == [], "the node is being asked"


def test_what_one_round_has_asked_for_is_not_offered_to_another() -> None:
    bench = Bench(A, cpus=3)
    assert asked(bench.register(G)) == [(agent(A), 1, [0, 1])]
    assert asked(bench.register(H)) == []
    bench.prepared(A, "no")
    assert asked(bench.tell("nodes_changed", 0.0)) == [(agent(A), 2, [0, 1])], "the older goes first"


def test_one_that_does_not_fit_does_not_hold_up_the_next() -> None:
    bench = Bench()
    bench.join(A, 2, free=1)
    bench.register(G)
    assert asked(bench.register(H, bundles=[ONE])) == [(agent(A), 1, [0])]


def test_labels_that_bundles_ask_for() -> None:
    bench = Bench(A, B)
    bench.views[B].labels["zone"] = "x"
    effects = bench.register(conditions=[(), (("zone", "in", ("x",)),)])
    assert asked(effects) == [(agent(B), 1, [0, 1])]


# -- what the nodes can never hold ------------------------------------------------------------------------------------


BIG = {"CPU": 9 * UNIT}
REASON = f"no node can hold bundle 0: it asks for 9 CPU where the best node ({A.hex()[:8]} on host h) has 2"


def test_what_the_nodes_can_never_hold_is_told_once_and_fails_after_a_grace() -> None:
    bench = Bench(A, infeasible_grace_s=10.0)
    effects = bench.register(name="big", bundles=[BIG])
    notice = Notice(f"no nodes can hold placement group 'big' ({G.hex()}): {REASON}; it fails in 10 s")
    assert sent(effects, Notice) == [(OWNER, notice)]
    for now in (1.0, 9.0):
        effects = bench.timer(now, RETRY_TIMER, G)
        assert sent(effects, Notice) == [] and len(timers(effects)) == 1
    bench.hears("wait_placement_group", 8, G, -1.0)
    effects = bench.timer(10.0, RETRY_TIMER, G)
    assert bench.state() is REMOVED and timers(effects) == []
    text = f"placement group 'big' ({G.hex()}) was removed: no nodes can hold it: {REASON}"
    assert replies(effects) == [(OWNER, False, text)]


def test_a_cluster_that_waits_for_nodes_does_not_give_up() -> None:
    bench = Bench(A, infeasible_grace_s=10.0, infeasible="wait")
    [(_, notice)] = sent(bench.register(bundles=[BIG]), Notice)
    assert notice.text.endswith("; it waits for nodes that can")
    bench.timer(1000.0, RETRY_TIMER, G)
    assert bench.state() is PENDING
    bench.join(B, 9)
    assert asked(bench.tell("nodes_changed", 1001.0)) == [(agent(B), 1, [0])]


def test_the_grace_starts_anew_when_it_could_be_held_meanwhile() -> None:
    bench = Bench(A, infeasible_grace_s=10.0)
    bench.register(bundles=[BIG])
    bench.join(B, 9, free=0)
    bench.timer(5.0, RETRY_TIMER, G)
    del bench.views[B]
    effects = bench.timer(11.0, RETRY_TIMER, G)
    assert len(sent(effects, Notice)) == 1 and bench.state() is PENDING


# -- the death of a node ----------------------------------------------------------------------------------------------


def die(bench: Bench, node_id: bytes) -> list[Any]:
    bench.views[node_id].alive = False
    return bench.tell("node_ended", 3.0, node_id, agent(node_id))


def test_the_bundles_of_a_dead_node_get_new_places_and_the_others_stay() -> None:
    bench = Bench(A, B, C)
    bench.created(strategy="STRICT_SPREAD")
    bench.hears("subscribe_placement_group", G, peer=AGENT)
    effects = die(bench, B)
    assert bench.state() is RESCHEDULING and asked(effects) == [(agent(C), 2, [1])]
    reason = f"node {B.hex()[:8]} died"
    assert sent(effects, PlacementGroupUpdated) == [
        (AGENT, PlacementGroupUpdated(G, "RESCHEDULING", [ONE, ONE], [A, b""], reason))
    ]
    effects = bench.prepared(C, attempt=2)
    assert sent(effects, CommitBundles) == [(agent(C), CommitBundles(G, 2))]
    assert sent(effects, PlacementGroupUpdated)[0][1].nodes == [A, C] and bench.state() is CREATED


def test_a_node_that_dies_in_the_round_ends_it_and_another_starts_at_once() -> None:
    for answered in (False, True):
        bench = Bench(A, B, C)
        bench.register(strategy="STRICT_SPREAD")
        if answered:
            bench.prepared(A)
        effects = die(bench, A)
        assert returned(effects) == [(agent(B), [1])] and asked(effects) == [(agent(B), 2, [0]), (agent(C), 2, [1])]


def test_a_node_that_dies_while_others_are_asked_for_what_was_lost_before() -> None:
    bench = Bench(A, B, C)
    bench.created(strategy="STRICT_SPREAD")
    assert asked(die(bench, B)) == [(agent(C), 2, [1])]
    bench.join(b"node-d----------")
    effects = die(bench, A)
    assert returned(effects) == [(agent(C), [1])], "places are looked for anew, for both"
    assert asked(effects) == [(agent(C), 3, [0]), (agent(b"node-d----------"), 3, [1])]


def test_an_answer_to_an_earlier_round_is_ignored() -> None:
    bench = Bench(A, B)
    bench.register(strategy="STRICT_SPREAD")
    bench.prepared(A, "no")
    bench.timer(0.1, RETRY_TIMER, G)
    assert bench.prepared(B, attempt=1) == [] and bench.prepared(A, attempt=2) == []
    assert bench.state() is PENDING


def test_the_last_that_prepares_may_be_followed_by_a_death() -> None:
    bench = Bench(A, B)
    bench.created(strategy="SPREAD")
    die(bench, A)
    effects = die(bench, B)
    assert returned(effects) == [], "nobody is left who could give something back"
    assert bench.state() is RESCHEDULING and bench.nodes() == [b"", b""]
    bench.join(C)
    assert asked(bench.tell("nodes_changed", 4.0)) == [(agent(C), 3, [0, 1])]


def test_a_group_that_had_its_places_is_not_given_up() -> None:
    bench = Bench(A, infeasible_grace_s=1.0)
    bench.created()
    [(_, notice)] = sent(die(bench, A), Notice)
    assert notice.text.endswith("the cluster has no node; it waits for nodes that can")
    bench.timer(100.0, RETRY_TIMER, G)
    assert bench.state() is RESCHEDULING


def test_a_node_with_no_bundles_may_die() -> None:
    bench = Bench(A, B)
    bench.created()
    assert die(bench, B) == []


# -- ends -------------------------------------------------------------------------------------------------------------


def test_removal_gives_all_back_and_is_acknowledged_when_it_is_written_down() -> None:
    bench = Bench(A, B)
    bench.created(strategy="SPREAD", name="mine", bundles=[ONE, ONE, ONE])
    bench.hears("subscribe_placement_group", G, peer=AGENT)
    effects = bench.hears("remove_placement_group", 9, G)
    text = f"placement group 'mine' ({G.hex()}) was removed: remove_placement_group() was called on it"
    assert sent(effects, ReturnBundles) == [
        (agent(A), ReturnBundles(G, [0, 2], text)),
        (agent(B), ReturnBundles(G, [1], text)),
    ]
    [(_, update)] = sent(effects, PlacementGroupUpdated)
    assert (update.state, update.nodes) == ("REMOVED", [b"", b"", b""])
    assert verbs(effects, AFTER_PERSIST)[-1] == (OWNER, Reply(9, True, None))
    assert effects.index((AFTER_PERSIST, OWNER, Reply(9, True, None))) > max(
        number for number, effect in enumerate(effects) if effect[0] == PERSIST
    )
    assert verbs(bench.hears("remove_placement_group", 10, G), AFTER_PERSIST) == [(OWNER, Reply(10, True, None))]
    assert bench.manager.names == {}


def test_removal_in_a_round() -> None:
    bench = Bench(A, B)
    bench.register(strategy="SPREAD")
    bench.prepared(A)
    effects = bench.hears("remove_placement_group", 9, G)
    assert sorted(returned(effects)) == [(agent(A), [0]), (agent(B), [1])]
    assert bench.prepared(B) == [] and bench.timer(1.0, RETRY_TIMER, G) == []


def test_removal_of_what_nobody_knows_is_no_error() -> None:
    assert verbs(Bench().hears("remove_placement_group", 9, G), AFTER_PERSIST) == [(OWNER, Reply(9, True, None))]


# The actor that created it; whether it is detached; whether job and actor end; whether the group does.
ENDS = [
    (b"", False, (False, False), False),
    (b"", False, (True, False), True),
    (b"", True, (True, False), False),
    (ACTOR, False, (True, False), False),
    (ACTOR, False, (False, True), False),
    (ACTOR, False, (True, True), True),
    (ACTOR, True, (True, True), False),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("actor", "detached", "ended", "gone"), ENDS)
def test_a_group_lives_as_long_as_its_job_or_the_actor_that_created_it(
    actor: bytes, detached: bool, ended: tuple[bool, bool], gone: bool, late: bool
) -> None:
    bench = Bench(A)
    if not late:
        bench.created(actor=actor, detached=detached)
    bench.tell("job_finished", 1.0, OTHER_JOB)
    if ended[0]:
        bench.tell("job_finished", 1.0, JOB)
    if ended[1]:
        bench.tell("actor_ended", 1.0, ACTOR)
    if late:  # what it sent arrives after the news of its end
        bench.register(actor=actor, detached=detached)
    assert (bench.state() is REMOVED) == gone
    assert not gone or bench.manager.groups[G].reason == "its job ended"


def test_of_the_removed_only_the_last_are_remembered() -> None:
    bench = Bench(A, dead_placement_groups_max=2)
    ids = [process(f"group-{number}") for number in range(3)]
    for group_id in ids:
        bench.created(group_id)
        effects = bench.hears("remove_placement_group", 9, group_id)
    assert rows(effects, "forget_placement_group") == [(ids[0],)] and list(bench.manager.groups) == ids[1:]
    gone = bench.manager.view(ids[0])
    assert (gone.state, gone.reason) == ("REMOVED", "it was removed long ago")


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_until_its_group_is_removed() -> None:
    bench = Bench(A)
    bench.register(name="mine")
    text = f"the name 'mine' is taken in namespace 'space' by placement group 'mine' ({G.hex()})"
    assert replies(bench.register(H, name="mine", peer=OTHER)) == [(OTHER, False, text)]
    assert list(bench.manager.groups) == [G]
    bench.hears("remove_placement_group", 9, G)
    assert verbs(bench.register(H, name="mine"), AFTER_PERSIST) == [(OWNER, Reply(7, True, None))]


def test_groups_are_found_by_name() -> None:
    bench = Bench(A)
    bench.register(name="mine")
    bench.register(H, name="yours")
    assert replies(bench.hears("get_placement_group", 3, "mine", "space")) == [(OWNER, True, (G, [ONE, ONE]))]
    text = "there is no placement group named 'theirs' in namespace 'space': those there are 'mine', 'yours'"
    assert replies(bench.hears("get_placement_group", 3, "theirs", "space")) == [(OWNER, False, text)]
    text = "there is no placement group named 'mine' in namespace 'other': there is none with a name"
    assert replies(bench.hears("get_placement_group", 3, "mine", "other")) == [(OWNER, False, text)]


# -- who wants to know ------------------------------------------------------------------------------------------------


def wait(bench: Bench, timeout_s: float, request_id: int = 8, peer: bytes = OWNER) -> list[Any]:
    return bench.hears("wait_placement_group", request_id, G, timeout_s, peer=peer)


def test_those_who_wait_are_answered_when_all_have_their_places() -> None:
    bench = Bench(A)
    bench.register()
    assert replies(wait(bench, 0)) == [(OWNER, True, False)]
    assert wait(bench, -1.0) == []
    assert timers(wait(bench, 5.0, 9, OTHER)) == [(5.0, (WAIT_TIMER, G, OTHER, 9))]
    assert replies(bench.prepared(A)) == [(OWNER, True, True), (OTHER, True, True)]
    assert bench.timer(5.0, WAIT_TIMER, G, OTHER, 9) == []
    assert replies(wait(bench, 0)) == [(OWNER, True, True)]


def test_those_who_wait_too_long_are_told() -> None:
    bench = Bench()
    bench.register()
    wait(bench, 5.0)
    assert replies(bench.timer(5.0, WAIT_TIMER, G, OWNER, 8)) == [(OWNER, True, False)]
    bench.join(A)
    bench.tell("nodes_changed", 6.0)
    assert replies(bench.prepared(A)) == []


def test_those_who_wait_for_what_is_removed_are_told_why() -> None:
    bench = Bench()
    bench.register()
    wait(bench, -1.0)
    text = f"placement group ({G.hex()}) was removed: remove_placement_group() was called on it"
    assert (OWNER, False, text) in replies(bench.hears("remove_placement_group", 9, G))
    assert replies(wait(bench, 5.0)) == [(OWNER, False, text)]
    forgotten = bench.hears("wait_placement_group", 8, H, 5.0)
    assert replies(forgotten) == [(OWNER, False, f"placement group ({H.hex()}) was removed: it was removed long ago")]


def test_the_dead_wait_for_nothing() -> None:
    bench = Bench(A)
    bench.register()
    wait(bench, -1.0, peer=OTHER)
    wait(bench, -1.0)
    bench.tell("process_ended", OTHER)
    assert replies(bench.prepared(A)) == [(OWNER, True, True)]


def test_the_processes_of_a_dead_node_wait_for_nothing() -> None:
    bench = Bench(A)
    bench.register()
    there = process_id(C, b"work")
    wait(bench, -1.0, peer=there)
    wait(bench, -1.0)
    bench.tell("node_ended", 0.0, C, agent_of(there))
    assert list(bench.manager._waits) == [OWNER]
    assert replies(bench.prepared(A)) == [(OWNER, True, True)]


def test_an_agent_that_subscribes_hears_how_it_is_and_the_rest_of_it() -> None:
    bench = Bench(A)
    bench.register()
    effects = bench.hears("subscribe_placement_group", G, peer=AGENT)
    update = PlacementGroupUpdated(G, "PENDING", [ONE, ONE], [b"", b""], "")
    assert sent(effects, PlacementGroupUpdated) == [(AGENT, update)]
    update = PlacementGroupUpdated(G, "CREATED", [ONE, ONE], [A, A], "")
    assert sent(bench.prepared(A), PlacementGroupUpdated) == [(AGENT, update)]
    effects = bench.hears("subscribe_placement_group", H, peer=AGENT)
    update = PlacementGroupUpdated(H, "REMOVED", [], [], "it was removed long ago")
    assert sent(effects, PlacementGroupUpdated) == [(AGENT, update)]


def test_nothing_is_told_to_a_dead_agent() -> None:
    bench = Bench(A, B)
    bench.created(strategy="SPREAD")
    bench.join(C)
    for node_id in (A, C):
        bench.hears("subscribe_placement_group", G, peer=agent(node_id))
    assert die(bench, C) == []
    assert sent(die(bench, A), PlacementGroupUpdated) == []


def test_the_list_has_a_row_for_each() -> None:
    bench = Bench(A)
    bench.created(name="mine")
    [(_, _, [row])] = replies(bench.hears("list_placement_groups", 4))
    assert row == {
        "placement_group_id": G,
        "name": "mine",
        "ray_namespace": "space",
        "strategy": "PACK",
        "state": "CREATED",
        "bundles": [ONE, ONE],
        "bundles_to_node_id": [A, A],
        "job_id": JOB,
        "detached": False,
        "reason": "",
    }
    assert bench.manager.statistics() == {
        "placement_groups": 1,
        "placement_groups_pending": 0,
        "placement_groups_removed": 0,
    }


# -- what users' processes may send -----------------------------------------------------------------------------------


REFUSED = [
    ({"strategy": "TIGHT"}, "strategy must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD, not 'TIGHT'"),
    ({"bundles": []}, "a placement group has between 1 and 3 bundles, not 0"),
    ({"bundles": [ONE] * 4}, "a placement group has between 1 and 3 bundles, not 4"),
    ({"bundles": [ONE, {}]}, "bundle 1 must hold something: {}"),
    ({"bundles": [{"CPU": 0}]}, "bundle 0 must hold something: {'CPU': 0}"),
    ({"bundles": [{"CPU": -1}]}, "bundle 0 must hold something: {'CPU': -1}"),
    ({"bundles": [{"CPU": 0.5}]}, "bundle 0 must hold something: {'CPU': 0.5}"),
    ({"bundles": [{7: 5}]}, "bundle 0 must hold something: {7: 5}"),
    ({"conditions": [(("zone", "like", ("x",)),)]}, "the labels that its bundles ask for can not be read"),
    ({"conditions": [(("zone", "in", "x"),)]}, "the labels that its bundles ask for can not be read"),
    ({"conditions": [("zone",)]}, "the labels that its bundles ask for can not be read"),
    ({"conditions": [()] * 3}, "the labels that its bundles ask for can not be read"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_makes_no_sense_is_refused_with_the_reason(options: Any, text: str) -> None:
    bench = Bench(A, placement_bundles_max=3)
    assert replies(bench.register(**options)) == [(OWNER, False, text)] and bench.manager.groups == {}


def test_a_registration_that_is_said_twice_counts_once() -> None:
    bench = Bench(A)
    bench.register()
    assert bench.register() == [(AFTER_PERSIST, OWNER, Reply(7, True, None))], "its answer may have been lost"


def test_check_sees_a_group_that_nobody_looks_after() -> None:
    bench = Bench()
    bench.register()
    bench.manager.groups[G].retry_set = False
    with pytest.raises(InvariantError, match="nobody looks for places"):
        bench.manager.check()
