"""Packing: nodes for the bundles of a placement group, checked against every assignment there is."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.resources import ResourceSet
from zray.core.packing import STRATEGIES, pack_bundles
from zray.core.views import NodeView, meets

A, B, C = (b"node-%s----------" % letter for letter in (b"a", b"b", b"c"))


def cpus(amount: float, **others: float) -> ResourceSet:
    return ResourceSet.of({"CPU": amount, **others})


def node(node_id: bytes, free: float, total: float = 4, gpus: float = 0, **labels: str) -> NodeView:
    has = cpus(free, GPU=gpus)
    return NodeView(node_id, node_id, "", cpus(total, GPU=gpus), has, labels, hostname=node_id[5:6].decode())


def world(*views: NodeView) -> dict[bytes, NodeView]:
    return {view.node_id: view for view in views}


def letters(nodes: Any) -> str | None:
    return None if nodes is None else "".join(n[5:6].decode() for n in nodes)


# Free CPUs of a, b and c, which have four each; bundles; and the nodes that each strategy finds for them.
GOLDEN = [
    ("one", (4, 4, 4), [1], {"PACK": "a", "SPREAD": "a", "STRICT_PACK": "a", "STRICT_SPREAD": "a"}),
    ("two", (4, 4, 4), [1, 1], {"PACK": "aa", "SPREAD": "ab", "STRICT_PACK": "aa", "STRICT_SPREAD": "ab"}),
    ("four", (4, 4, 4), [1] * 4, {"PACK": "aaaa", "SPREAD": "abca", "STRICT_PACK": "aaaa", "STRICT_SPREAD": None}),
    ("the fullest that holds all", (4, 3, 2), [1, 1], {"PACK": "cc", "SPREAD": "ab", "STRICT_PACK": "cc"}),
    ("not on one", (2, 3, 2), [2, 2], {"PACK": "ac", "SPREAD": "ab", "STRICT_PACK": None, "STRICT_SPREAD": "ab"}),
    ("the largest first", (1, 4, 0), [1, 4], {"PACK": "ab", "SPREAD": "ab", "STRICT_PACK": None, "STRICT_SPREAD": "ab"}),
    ("no room for one", (1, 1, 1), [1, 2], dict.fromkeys(STRATEGIES)),
    ("no room for all", (2, 2, 1), [2, 2, 2], dict.fromkeys(STRATEGIES)),
    ("nothing is asked for", (0, 0, 0), [0, 0], {"PACK": "aa", "SPREAD": "ab", "STRICT_PACK": "aa", "STRICT_SPREAD": "ab"}),
]


@pytest.mark.parametrize(("what", "free", "bundles", "found"), GOLDEN, ids=[row[0] for row in GOLDEN])
def test_each_strategy(what: str, free: tuple[float, ...], bundles: list[float], found: dict[str, str | None]) -> None:
    views = world(*(node(i, f) for i, f in zip((A, B, C), free)))
    assert {s: letters(pack_bundles(views, [cpus(b) for b in bundles], s).nodes) for s in found} == found


def test_nodes_with_gpus_are_left_to_bundles_with_gpus() -> None:
    views = world(node(A, 4, gpus=2), node(B, 4))
    for strategy in STRATEGIES:
        assert letters(pack_bundles(views, [cpus(1)], strategy).nodes) == "b"
        assert letters(pack_bundles(views, [cpus(1, GPU=1)], strategy).nodes) == "a"
    assert letters(pack_bundles(views, [cpus(1), cpus(4, GPU=1)], "STRICT_SPREAD").nodes) == "ba"


def test_lost_bundles_find_new_places_that_suit_the_others() -> None:
    views, ones = world(node(A, 4), node(B, 4), node(C, 4)), [cpus(1)] * 3
    placed = {1: B}
    assert letters(pack_bundles(views, ones, "PACK", placed=placed).nodes) == "bbb"
    assert letters(pack_bundles(views, ones, "SPREAD", placed=placed).nodes) == "abc"
    assert letters(pack_bundles(views, ones, "STRICT_PACK", placed=placed).nodes) == "bbb"
    assert letters(pack_bundles(views, ones, "STRICT_SPREAD", placed=placed).nodes) == "abc"
    assert letters(pack_bundles(world(node(A, 4), node(B, 4)), ones, "STRICT_SPREAD", placed=placed).nodes) is None


def test_conditions_on_the_nodes_of_bundles() -> None:
    views = world(node(A, 4), node(B, 4, zone="x"), node(C, 4, zone="x"))
    x, other = ((("zone", "in", ("x",)),), (("zone", "not_in", ("x",)),))
    ones = [cpus(1), cpus(1)]
    assert letters(pack_bundles(views, ones, "PACK", conditions=[x]).nodes) == "bb"
    assert letters(pack_bundles(views, ones, "PACK", conditions=[x, other]).nodes) in ("ba", "ca")
    assert letters(pack_bundles(views, ones, "STRICT_SPREAD", conditions=[x, x]).nodes) == "bc"
    packing = pack_bundles(views, ones, "STRICT_PACK", conditions=[x, other])
    assert packing.infeasible and "none of 3 nodes meets the conditions of all" in packing.reason


BEST = "where the best node (6e6f6465 on host a) has"
REASONS = [
    ([cpus(5)], "PACK", "no node can hold bundle 0: it asks for 5 CPU where the best node (6e6f6465 on host a) has 4"),
    ([cpus(1), cpus(1, GPU=1)], "SPREAD", f"no node can hold bundle 1: it asks for 1 GPU {BEST} 0"),
    ([cpus(4)] * 3, "PACK", "2 nodes can not hold 3 bundles at once"),
    ([cpus(4)] * 3, "SPREAD", "2 nodes can not hold 3 bundles at once"),
    ([cpus(3)] * 2, "STRICT_PACK", f"STRICT_PACK needs one node for all bundles: it asks for 6 CPU {BEST} 4"),
    ([cpus(1)] * 3, "STRICT_SPREAD", "STRICT_SPREAD needs a node of its own for each of 3 bundles, which 2 nodes can not give"),
]


@pytest.mark.parametrize(("bundles", "strategy", "reason"), REASONS)
def test_what_these_nodes_can_never_hold_is_told_with_the_reason(bundles: list[ResourceSet], strategy: str, reason: str) -> None:
    assert pack_bundles(world(node(A, 0), node(B, 0)), bundles, strategy) == (None, reason, True)


def test_what_does_not_fit_now_may_fit_later() -> None:
    packing = pack_bundles(world(node(A, 1)), [cpus(2)], "PACK")
    assert packing == (None, "there is not enough free at the moment", False)


def test_an_empty_cluster_holds_nothing() -> None:
    packing = pack_bundles({}, [cpus(1)], "PACK")
    assert packing == (None, "no node can hold bundle 0: the cluster has no node", True)


def test_a_strategy_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="strategy must be one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD, not 'TIGHT'"):
        pack_bundles(world(node(A, 1)), [cpus(1)], "TIGHT")


def test_a_thousand_bundles_find_a_thousand_nodes() -> None:
    views = world(*(node(b"node-%05d------" % number, 1, 1) for number in range(1000)))
    nodes = pack_bundles(views, [cpus(1)] * 1000, "STRICT_SPREAD").nodes
    assert nodes is not None and len(set(nodes)) == 1000


def test_a_search_for_what_is_very_tight_ends() -> None:
    views = world(*(node(b"node-%02d---------" % number, 10 + number / 10, 20) for number in range(20)))
    bundles = [cpus(3 + number / 10) for number in range(60)]
    packing = pack_bundles(views, bundles, "PACK")
    assert packing.nodes is None and not packing.infeasible
    assert pack_bundles(views, bundles * 4, "PACK").infeasible is False, "it is not known"


def test_a_tight_one_is_found() -> None:
    views = world(node(A, 5, 5), node(B, 6, 6))
    assert letters(pack_bundles(views, [cpus(c) for c in (4, 3, 3, 1)], "PACK").nodes) == "abba"
    assert letters(pack_bundles(views, [cpus(c) for c in (3, 2, 2, 2, 2)], "PACK").nodes) == "aabbb"


small = st.integers(0, 3)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(small, small, st.booleans()), min_size=1, max_size=3),
    st.lists(st.tuples(small, st.integers(0, 1), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(STRATEGIES),
    st.dictionaries(st.integers(0, 3), small, max_size=2),
)
def test_what_is_found_is_right_and_what_is_not_found_does_not_exist(
    nodes: list[tuple[int, int, bool]], wanted: list[tuple[int, int, bool]], strategy: str, fixed: dict[int, int]
) -> None:
    views = world(
        *(node(b"node-%02d---------" % i, c, 9, gpus=g, **({"zone": "x"} if x else {})) for i, (c, g, x) in enumerate(nodes))
    )
    ids = list(views)
    bundles = [cpus(c, GPU=g) for c, g, _ in wanted]
    conditions: list[Any] = [(("zone", "exists", ()),) if x else () for _, _, x in wanted]
    placed = {i: ids[n % len(ids)] for i, n in fixed.items() if i < len(bundles)}
    if strategy == "STRICT_SPREAD":
        placed = {i: n for number, (i, n) in enumerate(placed.items()) if n not in list(placed.values())[:number]}
    elif strategy == "STRICT_PACK":
        placed = dict.fromkeys(placed, ids[0])

    def right(assignment: tuple[bytes, ...]) -> bool:
        if any(assignment[i] != n for i, n in placed.items()):
            return False
        if strategy == "STRICT_PACK" and len(set(assignment)) > 1:
            return False
        if strategy == "STRICT_SPREAD" and len(set(assignment)) < len(assignment):
            return False
        for node_id in ids:
            held = ResourceSet({})
            for i, where in enumerate(assignment):
                if where == node_id and i not in placed:
                    if not meets(views[node_id].labels, conditions[i]):
                        return False
                    held = held.plus(bundles[i])
            if not views[node_id].available.covers(held):
                return False
        return True

    found = pack_bundles(views, bundles, strategy, placed=placed, conditions=conditions)
    every = [assignment for assignment in product(ids, repeat=len(bundles)) if right(assignment)]
    if found.nodes is not None:
        assert right(found.nodes)
        if strategy == "SPREAD" and not placed and len({*bundles}) == 1 and not any(x for _, _, x in wanted):
            assert len(set(found.nodes)) == max(len(set(a)) for a in every), "as many nodes as can be"
    else:
        assert found.reason and not every
