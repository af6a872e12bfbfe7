"""Policy: on which node a request runs, and why."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.resources import ResourceSet
from zray.core.policy import LOCALITY_BYTES_MIN, Decision, GroupView, NodeView, Policy, Verdict, Waiting, debit, readable
from zray.core.views import in_words, meets, shortage

A, B, C, D = (b"node-%s----------" % letter for letter in (b"a", b"b", b"c", b"d"))
GROUP = b"group-----------"
RUN, QUEUE, SEND, WAIT, INFEASIBLE, IMPOSSIBLE = Verdict


class First:
    """No chance at all: always the first."""

    def randrange(self, stop: int, /) -> int:
        return 0


class Last:
    """Always the last."""

    def randrange(self, stop: int, /) -> int:
        return stop - 1


def cpus(amount: float, **others: float) -> ResourceSet:
    return ResourceSet.of({"CPU": amount, **others})


def node(node_id: bytes, free: float, total: float = 4, *, gpus: float = 0, queued: int = 0, **labels: str) -> NodeView:
    """A node with so many CPUs, and so many of them free; all its GPUs are."""
    have, has = cpus(total, GPU=gpus), cpus(free, GPU=gpus)
    name = node_id[5:6].decode()
    return NodeView(node_id, b"agent" + node_id, f"sim://{name}", have, has, labels, queued=queued, hostname=name)


def world(*views: NodeView) -> dict[bytes, NodeView]:
    return {view.node_id: view for view in views}


def choose(
    views: dict[bytes, NodeView], demand: ResourceSet | float = 1, strategy: Any = ("default",), hops: int = 0, **more: Any
) -> Decision:
    wanted = demand if isinstance(demand, ResourceSet) else cpus(demand)
    return Policy(First(), hops_max=3).choose(views, A, wanted, strategy, hops, **more)


def place_of(decision: Decision) -> tuple[Verdict, bytes]:
    return decision.verdict, decision.node.node_id if decision.node is not None else b""


def affinity(node_id: bytes, soft: bool = False) -> Any:
    return ("affinity", node_id, soft)


def labels(hard: Any = (), soft: Any = ()) -> Any:
    return ("labels", tuple(hard), tuple(soft))


# -- the default ------------------------------------------------------------------------------------------------------


# What is free of four CPUs on a, b and c; what is asked for; what becomes of a request on a.
HYBRID = [
    ("idle: it is packed where it is", (4, 4, 4), 1, RUN, A),
    ("a quarter busy: likewise", (3, 4, 4), 1, RUN, A),
    ("half busy: the first of the idle ones", (2, 4, 4), 1, SEND, B),
    ("nobody is better", (2, 2, 2), 1, RUN, A),
    ("all are more than half busy, c least", (1, 0, 2), 1, SEND, C),
    ("it fits only elsewhere", (1, 1, 2), 2, SEND, C),
    ("no room anywhere: it waits here", (0, 0, 0), 1, QUEUE, A),
    ("no room for so much anywhere", (3, 3, 3), 4, QUEUE, A),
    ("nothing is asked for, and the node is full", (0, 4, 4), 0, SEND, B),
    ("a worker that woke took more than there was", (-1, -1, 1), 1, SEND, C),
]


@pytest.mark.parametrize(("what", "free", "demand", "verdict", "where"), HYBRID, ids=[row[0] for row in HYBRID])
def test_hybrid_packs_until_half_busy_and_then_takes_the_least_busy(
    what: str, free: tuple[float, ...], demand: float, verdict: Verdict, where: bytes
) -> None:
    views = world(*(NodeView(i, i, "", cpus(4), ResourceSet({"CPU": int(f * 10_000)})) for i, f in zip((A, B, C), free)))
    assert place_of(choose(views, demand)) == (verdict, where)


def test_the_scarcest_resource_says_how_busy_a_node_is() -> None:
    a, b = node(A, 4, gpus=4), node(B, 4, gpus=4)
    a.available = cpus(4, GPU=1)
    views = world(a, b)
    assert place_of(choose(views, cpus(0, GPU=1))) == (SEND, B)
    a.available, a.total = cpus(4, memory=10), cpus(4, memory=100)
    b.total = b.available = cpus(4)
    assert place_of(choose(views)) == (SEND, B), "memory counts even if nobody asks for it"


def test_nodes_with_gpus_are_left_to_those_who_need_them() -> None:
    views = world(node(A, 4, gpus=2), node(B, 1))
    assert place_of(choose(views)) == (SEND, B)
    assert place_of(choose(views, 2)) == (RUN, A), "if there is room elsewhere"
    assert place_of(choose(views, cpus(1, GPU=1))) == (RUN, A)


def test_one_of_the_best_is_taken_at_random_since_others_choose_at_the_same_moment() -> None:
    ids = [b"node-%02d---------" % number for number in range(20)]
    views = world(node(A, 0), *(node(i, 4 if number < 10 else 1) for number, i in enumerate(ids)))
    policy = Policy(random.Random(1))
    chosen = [policy.choose(views, A, cpus(1)).node for _ in range(200)]
    assert sorted({view.node_id for view in chosen if view is not None}) == ids[:4], "a fifth of 21"


def test_among_equals_the_one_with_the_shorter_queue_comes_first() -> None:
    assert place_of(choose(world(node(A, 0), node(B, 4, queued=3), node(C, 4)))) == (SEND, C)


def test_when_this_node_is_too_small_and_the_others_full_the_shortest_queue_is_taken() -> None:
    views = world(node(A, 1, 1), node(B, 0, queued=5), node(C, 0, queued=2), node(D, 0, queued=9))
    decision = choose(views, 2)
    assert place_of(decision) == (SEND, C) and decision.reason == "this node can not run it, and that one can"


def test_dead_nodes_are_not_there() -> None:
    views = world(node(A, 0), node(B, 4), node(C, 1))
    views[B].alive = False
    assert place_of(choose(views)) == (SEND, C)


def test_the_control_is_on_no_node() -> None:
    views = world(node(A, 0), node(B, 4), node(C, 4))
    policy = Policy(First())
    assert place_of(policy.choose(views, b"", cpus(1))) == (SEND, B)
    assert place_of(policy.choose(world(node(A, 0), node(B, 0, queued=1)), b"", cpus(1))) == (SEND, A)
    assert place_of(policy.choose({}, b"", cpus(1))) == (INFEASIBLE, b"")


# -- hops -------------------------------------------------------------------------------------------------------------


# Hops so far; what is free on a and b; what becomes of it on a.
HOPS = [
    ("it was sent here and there is room, though b is better", 1, 1, 4, RUN, A),
    ("the room has gone meanwhile, and b has some", 1, 0, 4, SEND, B),
    ("it has been sent around enough: it waits", 3, 0, 4, QUEUE, A),
    ("... or runs", 3, 1, 4, RUN, A),
]


@pytest.mark.parametrize(("what", "hops", "a", "b", "verdict", "where"), HOPS, ids=[row[0] for row in HOPS])
def test_what_was_sent_here_is_sent_on_only_for_want_of_room_and_not_for_ever(
    what: str, hops: int, a: float, b: float, verdict: Verdict, where: bytes
) -> None:
    for strategy in (("default",), ("spread",), labels()):
        assert place_of(choose(world(node(A, a), node(B, b)), 1, strategy, hops)) == (verdict, where)


def test_what_was_sent_to_nodes_that_can_not_run_it_is_refused_in_the_end() -> None:
    views = world(node(A, 1, 1), node(B, 4))
    assert place_of(choose(views, 2, hops=2)) == (SEND, B)
    decision = choose(views, 2, hops=3)
    assert decision == (INFEASIBLE, None, "it was sent to 3 nodes, and none of them can run it")


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=6), st.integers(0, 5), st.integers(0, 99))
def test_however_wrong_the_views_are_a_request_comes_to_rest(nodes: list[tuple[int, int]], demand: int, seed: int) -> None:
    """Each agent has views of its own of what is free on the others; all agree on what each has in all."""
    rng = random.Random(seed)
    ids = [b"node-%02d---------" % number for number in range(len(nodes))]
    strategy = rng.choice([("default",), ("spread",), labels(soft=[("zone", "in", ("x",))]), affinity(ids[-1], True)])
    here, hops = ids[0], 0
    while True:
        views = world(*(node(i, rng.randrange(total * 2 + 1) / 2, total) for i, (_, total) in zip(ids, nodes)))
        decision = Policy(rng, hops_max=3).choose(views, here, cpus(demand), strategy, hops)
        if decision.verdict is not SEND:
            break
        assert decision.node is not None and decision.node.node_id != here
        assert decision.node.total.covers(cpus(demand))
        here, hops = decision.node.node_id, hops + 1
        assert hops <= 4
    assert (decision.verdict is INFEASIBLE) == all(total < demand for _, total in nodes)
    assert decision.verdict is INFEASIBLE or (decision.node is not None and decision.node.node_id == here)


# -- SPREAD -----------------------------------------------------------------------------------------------------------


def test_spread_goes_round() -> None:
    views = world(node(A, 4), node(B, 4), node(C, 1, 1), node(D, 4))
    policy = Policy(First())
    turns = [place_of(policy.choose(views, A, cpus(2), ("spread",))) for _ in range(5)]
    assert turns == [(RUN, A), (SEND, B), (SEND, D), (RUN, A), (SEND, B)], "c is too small"


def test_agents_start_at_different_nodes() -> None:
    views = world(node(A, 4), node(B, 4), node(C, 4))
    assert place_of(Policy(Last()).choose(views, A, cpus(1), ("spread",))) == (SEND, C)


def test_spread_takes_the_next_with_room_and_spreads_the_queues_when_there_is_none() -> None:
    policy = Policy(First())
    views = world(node(A, 0), node(B, 0), node(C, 4))
    assert [place_of(policy.choose(views, A, cpus(1), ("spread",))) for _ in range(2)] == [(SEND, C), (SEND, C)]
    views[C].available = cpus(0)
    turns = [place_of(policy.choose(views, A, cpus(1), ("spread",))) for _ in range(4)]
    assert turns == [(QUEUE, A), (SEND, B), (SEND, C), (QUEUE, A)]


def test_spread_over_nodes_with_a_label() -> None:
    views = world(node(A, 4), node(B, 4, zone="x"), node(C, 4, zone="x"))
    policy = Policy(First())
    strategy = ("spread", (("zone", "in", ("x",)),))
    assert [place_of(policy.choose(views, A, cpus(1), strategy))[1] for _ in range(3)] == [B, C, B]


# -- one node ---------------------------------------------------------------------------------------------------------


DEAD = b"node-dead-------"
TOO_SMALL = "it asks for 2 CPU where the best node (6e6f6465 on host c) has 1"
AFFINITY = [
    ("this node", A, False, 1, RUN, A, "it asks for that node"),
    ("this node, which is full", A, False, 3, QUEUE, A, "the node it asks for has no room now"),
    ("another, which is full", B, False, 3, SEND, B, "it asks for that node"),
    ("another, softly: it waits there all the same", B, True, 3, SEND, B, "it asks for that node"),
    ("one that is too small", C, False, 2, INFEASIBLE, b"", f"it asks for node {C.hex()}, and {TOO_SMALL}"),
    ("one that is too small, softly", C, True, 2, RUN, A, "it is as good as the best"),
    ("one that is dead", DEAD, False, 1, IMPOSSIBLE, b"", f"it asks for node {DEAD.hex()}, which is dead"),
    ("one that is dead, softly", DEAD, True, 2, RUN, A, "it is as good as the best"),
    ("one that nobody knows", D, False, 1, INFEASIBLE, b"", f"it asks for node {D.hex()}, and there is no such node"),
    ("one that nobody knows, softly", D, True, 2, RUN, A, "it is as good as the best"),
]


@pytest.mark.parametrize(
    ("what", "asked", "soft", "demand", "verdict", "where", "reason"), AFFINITY, ids=[row[0] for row in AFFINITY]
)
def test_affinity(what: str, asked: bytes, soft: bool, demand: float, verdict: Verdict, where: bytes, reason: str) -> None:
    views = world(node(A, 2), node(B, 0), node(C, 1, 1), node(DEAD, 4))
    views[DEAD].alive = False
    decision = choose(views, demand, affinity(asked, soft))
    assert (place_of(decision), decision.reason) == ((verdict, where), reason)


def test_affinity_holds_however_often_it_was_sent_on() -> None:
    assert place_of(choose(world(node(A, 4), node(B, 0)), 1, affinity(B), hops=9)) == (SEND, B)


def test_affinity_with_a_label_that_the_node_has_not() -> None:
    views = world(node(A, 4, zone="x"), node(B, 4, zone="y"))
    hard = (("zone", "in", ("x",)),)
    assert place_of(choose(views, 1, ("affinity", A, False, hard))) == (RUN, A)
    decision = choose(views, 1, ("affinity", B, False, hard))
    assert decision.verdict is INFEASIBLE
    assert decision.reason == f"it asks for node {B.hex()} and for one where zone is 'x', which it is not"
    assert place_of(choose(views, 1, ("affinity", B, True, hard))) == (RUN, A)


# -- labels -----------------------------------------------------------------------------------------------------------


CONDITIONS = [
    (("zone", "in", ("x", "y")), [True, True, False], "zone is one of 'x', 'y'"),
    (("zone", "in", ("x",)), [True, False, False], "zone is 'x'"),
    (("zone", "not_in", ("x",)), [False, True, True], "zone is not 'x'"),
    (("zone", "not_in", ("x", "y")), [False, False, True], "zone is not one of 'x', 'y'"),
    (("zone", "exists", ()), [True, True, False], "zone is there"),
    (("zone", "does_not_exist", ()), [False, False, True], "zone is not there"),
]


@pytest.mark.parametrize(("condition", "met", "words"), CONDITIONS)
def test_conditions_on_labels(condition: Any, met: list[bool], words: str) -> None:
    nodes = [{"zone": "x", "disk": "ssd"}, {"zone": "y"}, {"disk": "ssd"}]
    assert [meets(has, [condition]) for has in nodes] == met
    assert in_words([condition]) == words


def test_all_conditions_must_be_met_and_none_is_met_by_all() -> None:
    both = [("zone", "in", ("x",)), ("disk", "exists", ())]
    assert meets({"zone": "x", "disk": "ssd"}, both) and not meets({"zone": "x"}, both) and meets({}, [])
    assert in_words(both) == "zone is 'x' and disk is there"


HARD, SOFT = [("zone", "in", ("x",))], [("disk", "in", ("ssd",))]


def test_hard_labels_bind_and_soft_ones_decide_among_those_with_room() -> None:
    views = world(node(A, 4), node(B, 4, zone="x"), node(C, 4, zone="x", disk="ssd"))
    assert place_of(choose(views, 1, labels(HARD))) == (SEND, B)
    assert place_of(choose(views, 1, labels(HARD, SOFT))) == (SEND, C)
    assert place_of(choose(views, 1, labels((), SOFT))) == (SEND, C)
    views[C].available = cpus(0)
    assert place_of(choose(views, 1, labels(HARD, SOFT))) == (SEND, B), "one with room comes first"
    views[B].available = cpus(0)
    assert place_of(choose(views, 1, labels(HARD, SOFT))) == (SEND, B), "and the right label without room is never traded in"


def test_labels_that_no_node_has_are_infeasible() -> None:
    views = world(node(A, 4), node(B, 4, zone="y"))
    decision = choose(views, 1, labels(HARD))
    assert decision == (INFEASIBLE, None, "it asks for a node where zone is 'x', and there is none among 2 nodes")


def test_a_label_selector_may_go_with_the_default() -> None:
    assert place_of(choose(world(node(A, 4), node(B, 4, zone="x")), 1, ("default", tuple(HARD)))) == (SEND, B)


# -- what peers send --------------------------------------------------------------------------------------------------


ONE = (("zone", "in", ("x",)),)
READABLE = [
    ("default",),
    ("default", ONE),
    ("spread", ()),
    affinity(A),
    ("affinity", A, True, ONE),
    ("labels", ONE, ()),
    ("labels", (), ONE + ONE),
    ("bundle", GROUP, -1),
    ("bundle", GROUP, 0, ONE),
]
RUBBISH = [
    None,
    (),
    "default",
    ["default"],
    (7,),
    ([],),
    ("fastest",),
    ("default", ONE, ONE),
    ("default", "zone"),
    ("affinity",),
    ("affinity", A),
    ("affinity", "a", True),
    ("affinity", A, 1.5),
    ("affinity", A, True, None),
    ("labels", ONE),
    ("labels", ONE, ONE, ONE),
    ("labels", [], ()),
    ("labels", (7,), ()),
    ("labels", (("zone", "in", ["x"]),), ()),
    ("labels", (("zone", "like", ("x",)),), ()),
    ("labels", (("zone", [], ("x",)),), ()),
    ("labels", ((b"zone", "in", ("x",)),), ()),
    ("labels", (("zone", "in", (1,)),), ()),
    ("bundle", GROUP),
    ("bundle", GROUP, "0"),
]


@pytest.mark.parametrize(("given", "is_one"), [(s, True) for s in READABLE] + [(s, False) for s in RUBBISH])
def test_what_is_a_strategy_and_what_is_not(given: Any, is_one: bool) -> None:
    assert readable(given) is is_one
    if is_one:
        choose(world(node(A, 4)), 1, given, groups=group([A]))


# -- where the arguments are ------------------------------------------------------------------------------------------


MUCH = LOCALITY_BYTES_MIN


def test_a_request_goes_to_its_arguments() -> None:
    views = world(node(A, 4), node(B, 1), node(C, 4))
    decision = choose(views, 1, locality={B: 5 * MUCH, C: MUCH})
    assert place_of(decision) == (SEND, B) and decision.reason == f"it has {5 * MUCH} bytes of the arguments"


@pytest.mark.parametrize(
    ("free", "bytes_by_node"),
    [
        ((4, 4), {B: MUCH - 1}),  # it is not worth it
        ((4, 4), {A: 2 * MUCH, B: 2 * MUCH}),  # here as many
        ((4, 0), {B: 5 * MUCH}),  # no room there
        ((4, 4), {D: 5 * MUCH}),  # on a node that is gone
        ((4, 4), {}),
    ],
)
def test_but_not_if_little_is_gained(free: tuple[float, float], bytes_by_node: dict[bytes, int]) -> None:
    assert place_of(choose(world(node(A, free[0]), node(B, free[1])), locality=bytes_by_node)) == (RUN, A)


def test_arguments_hold_a_request_where_it_is() -> None:
    assert place_of(choose(world(node(A, 1), node(B, 4)), locality={A: 5 * MUCH})) == (RUN, A), "though b is less busy"


# -- what no node can run ---------------------------------------------------------------------------------------------


SHORTAGES = [
    (cpus(1, GPU=4), "it asks for 4 GPU where the best node (6e6f6465 on host b) has 1"),
    (cpus(5), "it asks for 5 CPU where the best node (6e6f6465 on host a) has 4"),
    (cpus(6, GPU=2), "it asks for 6 CPU and 2 GPU where the best node (6e6f6465 on host b) has 4 and 1"),
    (cpus(0, special=0.5), "it asks for 0.5 special where the best node (6e6f6465 on host a) has 0"),
]


@pytest.mark.parametrize(("demand", "text"), SHORTAGES)
def test_what_is_infeasible_is_told_with_the_node_that_comes_closest(demand: ResourceSet, text: str) -> None:
    views = world(node(A, 4), node(B, 4, gpus=1))
    assert choose(views, demand) == (INFEASIBLE, None, text)


def test_the_closest_is_looked_for_among_the_nodes_that_are_asked_for() -> None:
    views = world(node(A, 4, 8), node(B, 4, zone="x"))
    text = shortage(views, cpus(9), HARD)
    assert text == "it asks for 9 CPU where the best node of those where zone is 'x' (6e6f6465 on host b) has 4"


def test_a_cluster_without_nodes() -> None:
    assert choose({}) == (INFEASIBLE, None, "the cluster has no node")


# -- placement groups -------------------------------------------------------------------------------------------------


def group(
    nodes: list[bytes], bundles: list[float] | None = None, state: str = "CREATED", reason: str = ""
) -> dict[bytes, GroupView]:
    sizes = bundles or [2.0] * len(nodes)
    return {GROUP: GroupView(state, tuple(cpus(size) for size in sizes), tuple(nodes), reason)}


def bundle(index: int = -1) -> Any:
    return ("bundle", GROUP, index)


def test_a_bundle_says_the_node() -> None:
    views, groups = world(node(A, 0), node(B, 0)), group([A, B])
    assert place_of(choose(views, 1, bundle(0), groups=groups)) == (RUN, A), "what is free outside does not matter"
    assert place_of(choose(views, 1, bundle(1), groups=groups)) == (SEND, B)
    assert place_of(choose(views, 1, bundle(-1), groups=groups)) == (RUN, A)


def test_a_bundle_that_is_full_is_waited_for_unless_any_will_do() -> None:
    views, groups = world(node(A, 4), node(B, 4)), group([A, B])
    groups[GROUP].free = {0: cpus(0.5)}
    decision = choose(views, 1, bundle(0), groups=groups)
    assert place_of(decision) == (QUEUE, A) and decision.reason == "its bundle has no room now"
    assert place_of(choose(views, 1, bundle(-1), groups=groups)) == (SEND, B)
    assert place_of(choose(views, 1, bundle(-1), groups=groups, hops=3)) == (QUEUE, A)
    groups[GROUP].free[1] = cpus(0)
    assert place_of(choose(views, 1, bundle(1), groups=groups)) == (SEND, B)
    assert place_of(choose(views, 1, bundle(-1), groups=groups)) == (QUEUE, A)


def test_a_task_does_not_take_from_two_bundles() -> None:
    groups = group([A, A], [1, 1])
    decision = choose(world(node(A, 4)), 2, bundle(-1), groups=groups)
    assert decision == (IMPOSSIBLE, None, "it asks for {CPU: 2} where no bundle of its placement group has as much")


GONE = group([b""], state="REMOVED", reason="its job ended")
NAMED = f"placement group {GROUP.hex()}"
ZONED = ("bundle", GROUP, -1, tuple(HARD))
GROUP_ERRORS = [
    (bundle(0), {}, WAIT, f"{NAMED} is not known here yet"),
    (bundle(0), group([b""], state="PENDING"), WAIT, f"{NAMED} is PENDING, with no bundle"),
    (bundle(0), group([D]), WAIT, f"{NAMED} is CREATED, with no bundle"),
    (bundle(0), GONE, IMPOSSIBLE, f"{NAMED} was removed: its job ended"),
    (bundle(0), group([A], [0.5]), IMPOSSIBLE, "it asks for {CPU: 1} where bundle 0 of its placement group has {CPU: 0.5}"),
    (bundle(1), group([A]), IMPOSSIBLE, "its placement group has no bundle 1: there are 1, numbered from 0"),
    (ZONED, group([A]), WAIT, f"{NAMED} is CREATED, with no bundle on a node where zone is 'x'"),
]


@pytest.mark.parametrize(("strategy", "groups", "verdict", "reason"), GROUP_ERRORS)
def test_groups_that_can_not_be_used(strategy: Any, groups: Any, verdict: Verdict, reason: str) -> None:
    assert choose(world(node(A, 4)), 1, strategy, groups=groups) == (verdict, None, reason)


def test_a_group_that_moves_is_not_chased_for_ever() -> None:
    views, groups = world(node(A, 4), node(B, 4)), group([B])
    assert place_of(choose(views, 1, bundle(0), 2, groups=groups)) == (SEND, B)
    assert choose(views, 1, bundle(0), 3, groups=groups).verdict is WAIT


# -- what is sent on is taken off the view ----------------------------------------------------------------------------


def test_a_burst_does_not_go_to_one_node() -> None:
    views, policy, places = world(node(A, 0), node(B, 4), node(C, 4)), Policy(First()), []
    for _ in range(10):
        decision = policy.choose(views, A, cpus(2))
        places.append(place_of(decision)[1])
        if decision.node is not None and decision.verdict is SEND:
            decision.node.debit(cpus(2))
    assert places == [B, C, B, C, A, A, A, A, A, A]


def test_what_is_sent_to_wait_is_counted() -> None:
    view = node(B, 1)
    view.debit(cpus(2))
    assert (view.available, view.queued) == (cpus(1), 1)


def test_bundles_are_debited_too() -> None:
    view, groups = node(B, 4), group([B, B])
    for _ in range(5):
        debit(view, cpus(1), bundle(-1), groups)
    assert groups[GROUP].free == {0: cpus(0), 1: cpus(0)} and view.queued == 1 and view.available == cpus(4)


# -- those that wait --------------------------------------------------------------------------------------------------


def relocate(views: dict[bytes, NodeView], waiting: list[Waiting], **more: Any) -> list[tuple[Any, bytes]]:
    before = {i: (view.available, view.queued) for i, view in views.items()}
    moves = Policy(First()).relocate(views, A, waiting, **more)
    assert before == {i: (view.available, view.queued) for i, view in views.items()}
    assert all(view is views[view.node_id] for _, view, _ in moves)
    return [(request.key, view.node_id) for request, view, _ in moves]


def ones(count: int, strategy: Any = ("default",), demand: float = 1) -> list[Waiting]:
    return [Waiting(number, cpus(demand), strategy) for number in range(count)]


def test_those_that_wait_go_where_room_appeared_as_many_as_there_is_room() -> None:
    views = world(node(A, 0), node(B, 1), node(C, 2))
    assert relocate(views, ones(5)) == [(0, C), (1, B), (2, C)]


def test_those_that_will_run_here_stay() -> None:
    assert relocate(world(node(A, 2), node(B, 4)), ones(4)) == [(2, B), (3, B)]


def test_a_larger_one_does_not_hold_up_a_smaller_one() -> None:
    waiting = [Waiting("large", cpus(4), ("default",)), Waiting("small", cpus(1), ("default",))]
    assert relocate(world(node(A, 0), node(B, 2)), waiting) == [("small", B)]


MOVES = [
    (("spread",), B),
    (labels([("zone", "in", ("x",))]), C),
    (labels([("zone", "in", ("z",))]), None),
    (affinity(A), None),
    (affinity(A, True), None),
    (affinity(C), C),  # it joined after the request came
    (affinity(D), None),
    (("default", (("zone", "in", ("x",)),)), C),
]


@pytest.mark.parametrize(("strategy", "where"), MOVES)
def test_those_that_wait_keep_to_their_strategy(strategy: Any, where: bytes | None) -> None:
    views = world(node(A, 0), node(B, 4), node(C, 4, zone="x"))
    expected = [] if where is None else [(0, where)]
    assert relocate(views, ones(1, strategy)) == expected


def test_those_that_wait_for_a_bundle_go_to_it_when_it_is_there() -> None:
    views = world(node(A, 0), node(B, 0))
    assert relocate(views, ones(3, bundle(0)), groups=group([b""], state="PENDING")) == []
    assert relocate(views, ones(3, bundle(0)), groups=group([B])) == [(0, B), (1, B), (2, B)]
    known = group([A, B])
    known[GROUP].free = {0: cpus(2)}
    assert relocate(views, ones(4, bundle(-1)), groups=known) == [], "two will run here, and of b nothing is known"
    known[GROUP].free[1] = cpus(1)
    assert relocate(views, ones(4, bundle(-1)), groups=known) == [(2, B)]
    assert known[GROUP].free == {0: cpus(2), 1: cpus(1)}, "what is only looked at stays as it is"
    known[GROUP].free[0] = cpus(0)
    assert relocate(views, ones(4, bundle(0)), groups=known) == []
