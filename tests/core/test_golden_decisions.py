"""Golden tables: for each policy, what an agent sees, what is asked of it, and what it decides.

A world is written ``"a 3/4, b 0/4 zone=x gpu=2 q=5, c dead"``: free CPUs of all, labels, GPUs, how many wait there. The request
comes to node a and asks for one CPU, unless the row says otherwise. Decisions: ``run``, ``queue``, ``send b``, ``wait``,
``infeasible``, ``impossible``.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from zray.base.resources import ResourceSet
from zray.core.packing import STRATEGIES, pack_bundles
from zray.core.policy import Decision, GroupView, NodeView, Policy, Verdict

GROUP = b"group-----------"
MIB = 1 << 20


class Nth:
    """Chance that always takes the same of those among which it may choose; ``asked`` is how many these were."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.asked: list[int] = []

    def randrange(self, stop: int, /) -> int:
        self.asked.append(stop)
        return min(self.position, stop - 1)


def node_id(name: str) -> bytes:
    return f"node-{name}".encode().ljust(16, b"-")


def world(text: str) -> dict[bytes, NodeView]:
    views = {}
    for part in text.split(", "):
        name, *words = part.split()
        free, total = next(((float(f), float(t)) for f, t in re.findall(r"([\d.]+)/([\d.]+)", part)), (4.0, 4.0))
        given = dict(word.split("=") for word in words if "=" in word)
        gpus, queued = float(given.pop("gpu", 0)), int(given.pop("q", 0))
        have, has = (ResourceSet.of({"CPU": cpus, "GPU": gpus}) for cpus in (total, free))
        view = NodeView(node_id(name), name.encode(), "", have, has, given, "dead" not in words, queued, name)
        views[view.node_id] = view
    return views


def said(decision: Decision) -> str:
    word = decision.verdict.name.lower()
    return f"{word} {decision.node.hostname}" if decision.verdict is Verdict.SEND and decision.node is not None else word


def decide(views: str, policy: Policy | None = None, strategy: Any = ("default",), **request: Any) -> str:
    demand = ResourceSet.of({"CPU": 1, **request.pop("demand", {})})
    policy = policy or Policy(Nth(), hops_max=3)
    local = node_id("a") if "a " in views or views == "a" else b""
    return said(policy.choose(world(views), local, demand, strategy, request.pop("hops", 0), **request))


# -- hybrid -----------------------------------------------------------------------------------------------------------

HYBRID = [
    ("a 4/4, b 4/4, c 4/4", {}, "run"),
    ("a 2.5/4, b 4/4", {}, "run"),  # less than half busy: it is packed
    ("a 2/4, b 4/4", {}, "send b"),  # half busy: spread from here on
    ("a 2/4, b 2/4", {}, "run"),  # nobody is better
    ("a 1/4, b 2/4, c 1.5/4", {}, "send b"),  # the least busy
    ("a 1/4, b 2/4 q=3, c 2/4", {}, "send c"),  # of equals the shorter queue
    ("a 1/4, b 7/16", {}, "send b"),  # it is the share that counts, not the number
    ("a 1/4, b 1/4, c 4/4", {"demand": {"CPU": 2}}, "send c"),
    ("a 0/4, b 0/4", {}, "queue"),
    ("a 3/4, b 3/4", {"demand": {"CPU": 4}}, "queue"),
    ("a 1/1, b 0/4", {"demand": {"CPU": 4}}, "send b"),  # it can never run here
    ("a 1/1, b 0/4 q=2, c 0/4 q=1", {"demand": {"CPU": 4}}, "send c"),
    ("a 4/4, b 4/4", {"demand": {"CPU": 5}}, "infeasible"),
    ("a 4/4, b dead", {"demand": {"CPU": 5}}, "infeasible"),
    ("a 0/4, b dead, c 1/4", {}, "send c"),
    ("a 4/4 gpu=1, b 4/4", {}, "send b"),  # GPUs are left to those who need them
    ("a 4/4 gpu=1, b 4/4", {"demand": {"GPU": 1}}, "run"),
    ("a 4/4 gpu=1, b 0/4", {}, "run"),
    ("a 4/4, b 4/4 gpu=2", {"demand": {"GPU": 0.5}}, "send b"),
    ("a 0/4, b 4/4", {"demand": {"CPU": 0}}, "send b"),
    ("a 1/4, b 4/4", {"hops": 1}, "run"),  # it was sent here, and there is room
    ("a 0/4, b 4/4", {"hops": 1}, "send b"),
    ("a 0/4, b 4/4", {"hops": 3}, "queue"),  # it was sent around enough
    ("a 1/1, b 0/4", {"hops": 3, "demand": {"CPU": 4}}, "infeasible"),
]


@pytest.mark.parametrize(("views", "request_", "decision"), HYBRID)
def test_hybrid(views: str, request_: dict[str, Any], decision: str) -> None:
    assert decide(views, **dict(request_)) == decision


# How many nodes, besides a full one, have room; of them idle; among how many the choice is; the first and last of those.
TOP_K = [
    (3, 3, 1, "b", "b"),
    (9, 9, 2, "b", "c"),
    (9, 1, 2, "b", "c"),  # the idle one, then the least busy of the others
    (14, 14, 3, "b", "d"),
    (20, 20, 4, "b", "e"),
]


@pytest.mark.parametrize(("room", "idle", "among", "first", "last"), TOP_K)
def test_hybrid_takes_one_of_the_best_fifth_at_random(room: int, idle: int, among: int, first: str, last: str) -> None:
    names = [chr(ord("b") + number) for number in range(room)]
    free = [4.0 if number < idle else 2 - number / 100 for number in range(room)]
    views = ", ".join(["a 0/4", *(f"{name} {amount}/4" for name, amount in zip(names, free))])
    chances = Nth(0), Nth(99)
    assert [decide(views, Policy(chance)) for chance in chances] == [f"send {first}", f"send {last}"]
    assert chances[0].asked == [among]


# -- SPREAD -----------------------------------------------------------------------------------------------------------

SPREAD = [
    ("a 4/4, b 4/4, c 4/4", {}, ["run", "send b", "send c", "run"]),
    ("a 4/4, b 0/4, c 4/4", {}, ["run", "send c", "run", "send c"]),  # who has no room is passed over
    ("a 0/4, b 0/4, c 0/4", {}, ["queue", "send b", "send c", "queue"]),  # there is none: the queues are spread
    ("a 4/4, b 1/1, c 4/4", {"demand": {"CPU": 2}}, ["run", "send c", "run", "send c"]),
    ("a 4/4, b 4/4 zone=x, c 4/4 zone=x", {"labels": "x"}, ["send b", "send c", "send b", "send c"]),
    ("a 4/4, b dead", {}, ["run", "run"]),
    ("a 0/4, b 4/4", {"hops": 1}, ["send b", "send b"]),  # what was sent here goes where there is room
    ("a 1/4, b 4/4", {"hops": 1}, ["run", "run"]),
    ("a 4/4, b 4/4", {"demand": {"CPU": 5}}, ["infeasible"]),
]


@pytest.mark.parametrize(("views", "request_", "decisions"), SPREAD)
def test_spread(views: str, request_: dict[str, Any], decisions: list[str]) -> None:
    asked = dict(request_)
    zone = asked.pop("labels", None)
    strategy = ("spread",) if zone is None else ("spread", (("zone", "in", (zone,)),))
    policy = Policy(Nth(), hops_max=3)
    assert [decide(views, policy, strategy, **dict(asked)) for _ in decisions] == decisions


# -- affinity ---------------------------------------------------------------------------------------------------------

AFFINITY = [  # the node, hard and soft
    ("a 4/4, b 4/4", "b", "send b", "send b"),
    ("a 4/4, b 4/4", "a", "run", "run"),
    ("a 0/4, b 4/4", "a", "queue", "queue"),  # it waits for that node, though another has room
    ("a 4/4, b 0/4", "b", "send b", "send b"),
    ("a 4/4, b 0.5/0.5", "b", "infeasible", "run"),  # too small for ever
    ("a 4/4, b dead", "b", "impossible", "run"),
    ("a 0/4, b dead, c 4/4", "b", "impossible", "send c"),
    ("a 4/4", "z", "infeasible", "run"),  # it may be about to join
]


@pytest.mark.parametrize(("views", "asked", "hard", "soft"), AFFINITY)
def test_affinity(views: str, asked: str, hard: str, soft: str) -> None:
    found = [decide(views, strategy=("affinity", node_id(asked), is_soft)) for is_soft in (False, True)]
    assert found == [hard, soft]


# -- labels -----------------------------------------------------------------------------------------------------------

_IN_X, _NOT_X, _ANY, _NONE = ("in", ("x",)), ("not_in", ("x",)), ("exists", ()), ("does_not_exist", ())
_THREE = "a 4/4, b 4/4 zone=x, c 4/4 zone=y"
LABELS = [  # hard, soft
    (_THREE, [_IN_X], [], "send b"),
    (_THREE, [_NOT_X], [], "run"),
    (_THREE, [_ANY, _NOT_X], [], "send c"),
    (_THREE, [_NONE], [], "run"),
    (_THREE, [("in", ("z",))], [], "infeasible"),
    (_THREE, [], [_IN_X], "send b"),
    (_THREE, [], [("in", ("z",))], "run"),  # a wish that nobody meets
    (_THREE, [_ANY], [("in", ("y",))], "send c"),
    ("a 4/4, b 0/4 zone=x, c 4/4", [_IN_X], [], "send b"),  # it waits there: what is hard is hard
    ("a 4/4, b 0/4 zone=x, c 4/4", [], [_IN_X], "run"),  # room comes before wishes
    ("a 4/4, b 0.5/0.5 zone=x", [_IN_X], [], "infeasible"),
    ("a 0/4 zone=x, b 4/4", [_IN_X], [], "queue"),
]


@pytest.mark.parametrize(("views", "hard", "soft", "decision"), LABELS)
def test_labels(views: str, hard: Any, soft: Any, decision: str) -> None:
    conditions = [tuple(("zone", *condition) for condition in given) for given in (hard, soft)]
    assert decide(views, strategy=("labels", *conditions)) == decision


# -- where the arguments lie ------------------------------------------------------------------------------------------

LOCALITY = [  # MiB of the arguments by node
    ("a 4/4, b 4/4", {"b": 1}, "send b"),
    ("a 4/4, b 4/4", {"b": 0.9}, "run"),  # not worth a hop
    ("a 4/4, b 4/4", {"a": 5, "b": 5.9}, "run"),
    ("a 4/4, b 4/4", {"a": 5, "b": 6}, "send b"),
    ("a 1/4, b 4/4", {"a": 1}, "run"),  # they hold it where it is, though b is less busy
    ("a 4/4, b 1/4, c 4/4", {"b": 3, "c": 1}, "send b"),  # the most of them, though b is busy
    ("a 4/4, b 0/4, c 4/4", {"b": 3, "c": 2}, "send c"),  # no room there: the next best
    ("a 4/4, b 0/4", {"b": 3}, "run"),
    ("a 4/4, b dead", {"b": 3}, "run"),
    ("a 4/4, b 0.5/0.5", {"b": 3}, "run"),
    ("a 0/4, b 0/4", {"b": 3}, "queue"),
]


@pytest.mark.parametrize(("views", "mebibytes", "decision"), LOCALITY)
def test_locality(views: str, mebibytes: dict[str, float], decision: str) -> None:
    assert decide(views, locality={node_id(name): int(size * MIB) for name, size in mebibytes.items()}) == decision


def test_locality_does_not_hold_against_what_is_asked_for() -> None:
    much = {node_id("b"): 9 * MIB}
    views = "a 4/4 zone=x, b 4/4"
    assert decide(views, strategy=("labels", (("zone", "in", ("x",)),), ()), locality=much) == "run"
    assert decide(views, strategy=("affinity", node_id("a"), False), locality=much) == "run"
    assert decide(views, strategy=("spread",), locality=much) == "run"


# -- bundles ----------------------------------------------------------------------------------------------------------

BUNDLES = [  # the nodes of the bundles of two CPUs, what is known to be free in them; the index that is asked for
    ("a 0/4, b 0/4", "ab", {}, 0, "run"),  # what is free outside does not matter
    ("a 0/4, b 0/4", "ab", {}, 1, "send b"),
    ("a 0/4, b 0/4", "ab", {}, -1, "run"),
    ("a 4/4, b 4/4", "ab", {0: 0.5}, 0, "queue"),
    ("a 4/4, b 4/4", "ab", {0: 0.5}, -1, "send b"),
    ("a 4/4, b 4/4", "ab", {0: 0.5, 1: 0.5}, -1, "queue"),
    ("a 4/4, b 4/4", "ab", {1: 0}, 1, "send b"),  # it waits where its bundle is
    ("a 4/4, b 4/4, c 4/4 q=1", "cb", {}, -1, "send b"),  # the shorter queue
    ("a 4/4, b 4/4", "aa", {0: 0}, -1, "run"),
    ("a 4/4, b dead", "b", {}, 0, "wait"),  # it will be placed anew
    ("a 4/4", "-", {}, 0, "wait"),
    ("a 4/4", "a", {}, 1, "impossible"),  # there is no such bundle
]


@pytest.mark.parametrize(("views", "nodes", "free", "index", "decision"), BUNDLES)
def test_bundles(views: str, nodes: str, free: dict[int, float], index: int, decision: str) -> None:
    places = tuple(b"" if name == "-" else node_id(name) for name in nodes)
    two = ResourceSet.of({"CPU": 2})
    told = {i: ResourceSet.of({"CPU": amount}) for i, amount in free.items()}
    group = GroupView("CREATED" if all(places) else "PENDING", (two,) * len(places), places, "", told)
    assert decide(views, strategy=("bundle", GROUP, index), groups={GROUP: group}) == decision


# -- the four strategies of placement groups --------------------------------------------------------------------------

# Bundles of so many CPUs; where PACK, SPREAD, STRICT_PACK and STRICT_SPREAD put them; "-" if there is no place, "!" if never.
PLACES = [
    ("a 4/4, b 4/4, c 4/4", [1], "a", "a", "a", "a"),
    ("a 4/4, b 4/4, c 4/4", [1, 1], "aa", "ab", "aa", "ab"),
    ("a 4/4, b 4/4, c 4/4", [1, 1, 1], "aaa", "abc", "aaa", "abc"),
    ("a 4/4, b 4/4, c 4/4", [2, 2, 2], "aab", "abc", "!", "abc"),
    ("a 4/4, b 4/4, c 4/4", [1] * 4, "aaaa", "abca", "aaaa", "!"),
    ("a 4/4, b 4/4, c 4/4", [4, 4], "ab", "ab", "!", "ab"),
    ("a 4/4, b 3/4, c 2/4", [1, 1], "cc", "ab", "cc", "ab"),  # large room is spared
    ("a 2/4, b 3/4, c 2/4", [2, 2], "ac", "ab", "-", "ab"),
    ("a 1/4, b 4/4, c 0/4", [1, 4], "ab", "ab", "!", "ab"),
    ("a 0/4, b 4/4, c 4/4", [1, 1, 1], "bbb", "bcb", "bbb", "-"),
    ("a 1/4, b 1/4, c 1/4", [1, 2], "-", "-", "-", "-"),
    ("a 4/4, b 4/4, c dead", [1, 1, 1], "aaa", "aba", "aaa", "!"),
    ("a 4/4 gpu=1, b 4/4, c 4/4", [1, 1], "bb", "bc", "bb", "bc"),  # GPUs are left to those who need them
    ("a 4/4, b 4/4", [5], "!", "!", "!", "!"),
]


@pytest.mark.parametrize(("views", "bundles", "pack", "spread", "strict_pack", "strict_spread"), PLACES)
def test_placement_groups(
    views: str, bundles: list[float], pack: str, spread: str, strict_pack: str, strict_spread: str
) -> None:
    nodes = world(views)
    sets = [ResourceSet.of({"CPU": amount}) for amount in bundles]
    found = []
    for strategy in STRATEGIES:
        packing = pack_bundles(nodes, sets, strategy)
        nowhere = "!" if packing.infeasible else "-"
        found.append(nowhere if packing.nodes is None else "".join(nodes[place].hostname for place in packing.nodes))
    assert found == [pack, spread, strict_pack, strict_spread]
