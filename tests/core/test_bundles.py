"""NodeBundles: resources that are set apart on a node, and the leases that take from them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.resources import UNIT, NodeResources, ResourceSet
from zray.base.wire_placement import BundlesPrepared, SubscribePlacementGroup
from zray.core.bundles import Bundle, BundleState, NodeBundles
from zray.core.gpus import GpuSlots
from zray.core.views import GroupView
from zray.exceptions import InvariantError

from .reading import CONTROL, drain, process, sent

NODE = process("node")
G, H = process("group-g"), process("group-h")


def cpus(amount: float, **others: float) -> ResourceSet:
    return ResourceSet.of({"CPU": amount, **others})


class Bench:
    """The bundles of a node, and what its agent does with them."""

    def __init__(self, amount: float = 4, gpus: int = 0) -> None:
        self.out: list[Any] = []
        total = cpus(amount, GPU=gpus)
        self.resources = NodeResources(total)
        self.gpus = GpuSlots(total["GPU"] // UNIT)
        self.evicted: list[tuple[int, str]] = []
        self.advanced = 0
        self.node = NodeBundles(NODE, CONTROL, self.resources, self.gpus, self.out, self._evict, self._advance)

    def _evict(self, bundle: Bundle, reason: str) -> None:
        assert bundle.state is BundleState.RETURNED
        self.evicted.append((bundle.index, reason))

    def _advance(self, now: float) -> None:
        self.advanced += 1

    def hears(self, event: str, *fields: Any) -> list[Any]:
        before = self.advanced
        getattr(self.node, "on_" + event)(0.0, CONTROL, *fields)
        assert self.advanced == before + 1, "what waits may go on"
        self.node.check()
        self.gpus.check()
        return drain(self.out)

    def prepare(self, *rows: tuple[int, ResourceSet], group: bytes = G, attempt: int = 1) -> str:
        """Why it can not be; nothing if it can."""
        effects = self.hears("prepare_bundles", group, attempt, [(index, dict(demand)) for index, demand in rows])
        [(peer, answer)] = sent(effects, BundlesPrepared)
        assert (peer, *answer[:3]) == (CONTROL, group, attempt, NODE)
        return str(answer.reason)

    def committed(self, *rows: tuple[int, ResourceSet], group: bytes = G) -> None:
        assert self.prepare(*rows, group=group) == ""
        self.hears("commit_bundles", group, 1)

    @property
    def usable(self) -> dict[bytes, dict[int, ResourceSet]]:
        """What is free in the bundles that can be used, as the control is told."""
        found: dict[bytes, dict[int, ResourceSet]] = {}
        for group_id, index, units in self.node.rows():
            found.setdefault(group_id, {})[index] = ResourceSet(units)
        return found

    @property
    def free(self) -> ResourceSet:
        return ResourceSet(self.resources.available)


def test_what_is_prepared_is_set_apart_and_can_be_used_when_it_is_committed() -> None:
    bench = Bench(4)
    assert bench.prepare((0, cpus(1)), (1, cpus(2))) == ""
    assert bench.free == cpus(1) and bench.node.reserved() == cpus(3)
    assert bench.node.take(G, 0, cpus(1)) is None and bench.usable == {}
    bench.hears("commit_bundles", G, 1)
    assert bench.usable == {G: {0: cpus(1), 1: cpus(2)}}
    taken = bench.node.take(G, 0, cpus(1))
    assert taken is not None and (taken[0].index, taken[1]) == (0, ())
    assert bench.free == cpus(1), "a lease takes from the bundle, not from the node"
    assert bench.node.take(G, 0, cpus(1)) is None
    assert bench.usable == {G: {0: cpus(0), 1: cpus(2)}}


def test_all_that_one_message_asks_for_or_nothing() -> None:
    bench = Bench(2, gpus=2)
    assert bench.prepare((0, cpus(1, GPU=1)), (1, cpus(1)), (2, cpus(1))) == "0 of 1 CPU free"
    assert bench.free == cpus(2, GPU=2) and bench.gpus.free == [UNIT, UNIT] and bench.node.bundles == {}
    assert bench.prepare((0, cpus(3, GPU=4))) == "2 of 3 CPU and 2 of 4 GPU free"


def test_a_commit_is_for_its_own_attempt() -> None:
    bench = Bench(4)
    bench.prepare((0, cpus(1)), attempt=3)
    bench.hears("commit_bundles", G, 2)
    bench.hears("commit_bundles", H, 3)
    assert bench.usable == {}
    bench.hears("commit_bundles", G, 3)
    bench.hears("commit_bundles", G, 3)
    assert bench.usable == {G: {0: cpus(1)}}


def test_any_bundle_of_the_group_the_first_with_room() -> None:
    bench = Bench(6)
    bench.committed((2, cpus(2)), (0, cpus(1)))
    bench.committed((0, cpus(2)), group=H)

    def take(amount: float) -> int | None:
        taken = bench.node.take(G, -1, cpus(amount))
        return None if taken is None else taken[0].index

    assert [take(a) for a in (2, 1, 1, 0, 3)] == [2, 0, None, 0, None], "a lease takes from one bundle only"


def test_what_a_lease_gives_back_is_the_bundles_again() -> None:
    bench = Bench(4)
    bench.committed((0, cpus(2)))
    taken = bench.node.take(G, 0, cpus(2))
    assert taken is not None
    taken[0].give(cpus(2))
    assert bench.free == cpus(2) and bench.usable == {G: {0: cpus(2)}}


def test_a_blocked_worker_lends_its_cpu_to_its_bundle() -> None:
    bench = Bench(4)
    bench.committed((0, cpus(1)))
    first = bench.node.take(G, 0, cpus(1))
    assert first is not None
    first[0].give(cpus(1))
    assert bench.node.take(G, 0, cpus(1)) is not None
    first[0].retake(cpus(1))
    assert bench.usable == {G: {0: cpus(0)}} and bench.free == cpus(3)
    assert bench.node.take(G, 0, cpus(1)) is None


# -- GPUs -------------------------------------------------------------------------------------------------------------


def test_a_bundle_has_gpus_of_its_own() -> None:
    bench = Bench(4, gpus=3)
    assert bench.gpus.assign(UNIT) == (0,)
    bench.resources.acquire(cpus(0, GPU=1))
    bench.committed((0, cpus(1, GPU=2)))
    one, other = (bench.node.take(G, 0, cpus(0, GPU=1)) for _ in range(2))
    assert one is not None and other is not None and (one[1], other[1]) == ((1,), (2,))
    one[0].give(cpus(0, GPU=1), one[1])
    half, rest = (bench.node.take(G, 0, cpus(0, GPU=0.5)) for _ in range(2))
    assert half is not None and rest is not None and half[1] == rest[1] == (1,), "fractions share one"
    assert bench.node.take(G, 0, cpus(0, GPU=0.5)) is None


def test_bundles_share_a_gpu_if_they_ask_for_a_part_of_one() -> None:
    bench = Bench(4, gpus=1)
    bench.committed((0, cpus(1, GPU=0.5)), (1, cpus(1, GPU=0.25)))
    taken = [bench.node.take(G, index, cpus(0, GPU=0.25)) for index in (0, 0, 0, 1, 1)]
    assert [t and t[1] for t in taken] == [(0,), (0,), None, (0,), None]
    assert bench.gpus.free == [UNIT // 4]


def test_gpus_that_are_free_only_in_pieces() -> None:
    bench = Bench(4, gpus=2)
    bench.committed((0, cpus(0, GPU=0.5)))
    bench.gpus.free = [UNIT // 2, UNIT // 2]
    bench.resources.acquire(cpus(0, GPU=0.5))
    assert bench.prepare((1, cpus(1, GPU=1))) == "its GPUs are not free in the pieces that are asked for"
    assert bench.prepare((1, cpus(1, GPU=0.5))) == ""


# -- giving back ------------------------------------------------------------------------------------------------------


def test_a_bundle_that_is_given_back_leaves_what_is_lent_until_its_leases_end() -> None:
    bench = Bench(4, gpus=2)
    bench.committed((0, cpus(3, GPU=2)), (1, cpus(1)))
    lease = bench.node.take(G, 0, cpus(2, GPU=1))
    assert lease is not None
    bench.hears("return_bundles", G, [0, 5], "it was removed")
    assert bench.evicted == [(0, "it was removed")]
    assert bench.free == cpus(1, GPU=1) and bench.gpus.free == [0, UNIT]
    assert bench.usable == {G: {1: cpus(1)}} and bench.node.take(G, 0, cpus(0)) is None
    lease[0].give(cpus(2, GPU=1), lease[1])
    assert bench.free == cpus(3, GPU=2) and bench.gpus.free == [UNIT, UNIT]


def test_a_worker_that_is_blocked_when_its_bundle_goes() -> None:
    bench = Bench(2)
    bench.committed((0, cpus(2)))
    lease = bench.node.take(G, 0, cpus(2))
    assert lease is not None
    lease[0].give(cpus(2))  # it blocks
    bench.hears("return_bundles", G, [0], "")
    assert bench.free == cpus(2)
    lease[0].retake(cpus(2))  # it wakes before it is ended
    assert bench.free == cpus(0)
    lease[0].give(cpus(2))
    assert bench.free == cpus(2)


def test_one_that_is_prepared_anew_takes_the_place_of_the_old() -> None:
    bench = Bench(4)
    bench.committed((0, cpus(3)))
    assert bench.prepare((0, cpus(4)), attempt=2) == ""
    assert bench.evicted == [(0, "its placement group was placed anew")] and bench.free == cpus(0)


def test_what_was_only_prepared_can_be_given_back() -> None:
    bench = Bench(4, gpus=1)
    bench.prepare((0, cpus(3, GPU=0.5)))
    bench.hears("return_bundles", G, [0], "another node had no room")
    assert bench.free == cpus(4, GPU=1) and bench.gpus.free == [UNIT]


# -- what is known of groups ------------------------------------------------------------------------------------------


def test_the_control_is_asked_once_for_a_group_and_tells_from_then_on() -> None:
    bench = Bench()
    bench.node.learn(G)
    bench.node.learn(G)
    assert sent(drain(bench.out), SubscribePlacementGroup) == [(CONTROL, SubscribePlacementGroup(G))]
    bench.hears("placement_group_updated", G, "CREATED", [{"CPU": UNIT}], [NODE], "")
    assert bench.node.groups == {G: GroupView("CREATED", (cpus(1),), (NODE,), "")}


def known(*nodes: bytes) -> Bench:
    """A bench that has been told of a group with bundles of two CPUs on these nodes."""
    bench = Bench()
    bench.node.learn(G)
    bench.hears("placement_group_updated", G, "CREATED", [{"CPU": 2 * UNIT}] * len(nodes), list(nodes), "")
    return bench


ELSEWHERE = process("elsewhere")


def test_what_is_free_elsewhere_is_told_and_what_is_free_here_is_looked_at() -> None:
    bench = known(NODE, ELSEWHERE, ELSEWHERE)
    bench.committed((0, cpus(2)))
    taken = bench.node.take(G, 0, cpus(0.5))
    assert taken is not None
    bench.hears("bundles_counted", G, {0: {"CPU": 0}, 1: {"CPU": UNIT}})
    bench.node.count(G)
    assert bench.node.groups[G].free == {0: cpus(1.5), 1: cpus(1)}, "of the third nothing is known"
    bench.node.count(H)  # which is not known


def test_what_was_known_of_a_bundle_is_forgotten_when_it_moves() -> None:
    bench = known(NODE, ELSEWHERE, ELSEWHERE)
    bench.hears("bundles_counted", G, {1: {"CPU": 1}, 2: {"CPU": 2}})
    moved = [NODE, ELSEWHERE, process("another")]
    bench.hears("placement_group_updated", G, "CREATED", [{"CPU": 2 * UNIT}] * 3, moved, "")
    assert bench.node.groups[G].free == {1: ResourceSet({"CPU": 1})}


def test_what_is_told_of_bundles_that_nobody_knows_changes_nothing() -> None:
    bench = known(ELSEWHERE)
    bench.node.on_bundles_counted(0.0, CONTROL, H, {0: {"CPU": 1}})
    bench.hears("bundles_counted", G, {0: "all", 7: {"CPU": 1}})
    assert bench.node.groups[G].free == {}


def test_groups_that_were_removed_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zray.core.bundles.REMOVED_GROUPS_MAX", 2)
    bench = Bench()
    ids = [process(f"group-{number}") for number in range(4)]
    for group_id in ids:
        bench.node.learn(group_id)
        bench.hears("placement_group_updated", group_id, "CREATED", [], [], "")
    for group_id in ids[:3]:
        bench.hears("placement_group_updated", group_id, "REMOVED", [], [], "its job ended")
    assert list(bench.node.groups) == [ids[3], ids[1], ids[2]]
    drain(bench.out)
    bench.node.learn(ids[0])
    assert sent(drain(bench.out), SubscribePlacementGroup), "the control is asked again"


def test_check_sees_a_bundle_with_more_than_it_holds() -> None:
    bench = Bench()
    bench.committed((0, cpus(1)))
    bench.node.bundles[G, 0].resources.release(cpus(1))
    with pytest.raises(InvariantError, match="more CPU free than it has"):
        bench.node.check()


def test_statistics() -> None:
    bench = Bench()
    bench.committed((0, cpus(1)))
    assert bench.node.statistics() == {"bundles": 1, "placement_groups_known": 0}


# -- a random walk ----------------------------------------------------------------------------------------------------


class Lease:
    def __init__(self, demand: ResourceSet, bundle: Bundle | None, gpu_ids: tuple[int, ...]) -> None:
        self.demand, self.bundle, self.gpu_ids, self.blocked = demand, bundle, gpu_ids, False

    @property
    def outside(self) -> bool:
        return self.bundle is None or self.bundle.state is BundleState.RETURNED


@settings(max_examples=200)
@given(st.integers(0, 1 << 30), st.integers(10, 120))
def test_random_walk_what_is_free_lent_and_set_apart_is_all_there_is(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    bench = Bench(6, gpus=3)
    leases: list[Lease] = []

    def check() -> None:
        for name, total in bench.resources.total.items():
            lent = sum(
                lease.demand[name] for lease in leases if lease.outside and not (lease.blocked and name == "CPU")
            )
            assert bench.resources.available[name] + lent + bench.node.reserved()[name] == total
        shares = [sum(b.gpus.free) for b in bench.node.bundles.values()]
        lent = sum(lease.demand["GPU"] for lease in leases)
        assert sum(bench.gpus.free) + sum(shares) + lent == 3 * UNIT
        used = [0, 0, 0]
        for lease in leases:
            for gpu in lease.gpu_ids:
                used[gpu] += min(lease.demand["GPU"], UNIT)
        assert max(used) <= UNIT, "no GPU is lent twice"

    for number in range(steps):
        what = rng.choice(["prepare", "commit", "return", "take", "take", "outside", "end", "block", "wake"])
        group, index = rng.choice([G, H]), rng.randrange(3)
        demand = cpus(rng.choice([0, 0.5, 1, 2]), GPU=rng.choice([0, 0, 0.5, 1]))
        lease = rng.choice(leases) if leases else None
        if what == "prepare":
            bench.prepare((index, demand), ((index + 1) % 3, cpus(1)), group=group, attempt=number)
        elif what == "commit":
            bench.hears("commit_bundles", group, max((b.attempt for b in bench.node.bundles.values()), default=0))
        elif what == "return":
            bench.hears("return_bundles", group, [index, 2], "")
        elif what == "take":
            taken = bench.node.take(group, rng.choice([-1, index]), demand)
            if taken is not None:
                leases.append(Lease(demand, *taken))
        elif what == "outside" and bench.resources.fits(demand):
            gpu_ids = bench.gpus.assign(demand["GPU"]) if demand["GPU"] else ()
            if gpu_ids is not None:
                bench.resources.acquire(demand)
                leases.append(Lease(demand, None, gpu_ids))
        elif lease is not None:
            cpu = lease.demand.only("CPU")
            if what == "end":
                leases.remove(lease)
                rest = lease.demand.minus(cpu) if lease.blocked else lease.demand
                if lease.bundle is not None:
                    lease.bundle.give(rest, lease.gpu_ids)
                else:
                    bench.resources.release(rest)
                    bench.gpus.release(lease.gpu_ids, rest["GPU"])
            elif what in ("block", "wake") and lease.bundle is not None and lease.blocked == (what == "wake"):
                lease.blocked = not lease.blocked
                (lease.bundle.give if lease.blocked else lease.bundle.retake)(cpu)
        bench.node.check()
        check()
