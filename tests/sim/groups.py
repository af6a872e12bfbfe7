"""Placement groups of the simulated world: who makes them, what runs in them, who removes them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from zray.base.resources import ResourceSet
from zray.base.wire_placement import RegisterPlacementGroup, RemovePlacementGroup, WaitPlacementGroup
from zray.core.placement import GroupState
from zray.object_ref import ObjectRef

from .bodies import CONTROL
from .checkers import GroupTruth

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .cluster import Cluster
    from .threads import Steps

STRATEGIES = ["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]


def act(body: OwnerBody, rng: random.Random, tag: str, held: list[ObjectRef[Any]]) -> Steps:
    """A placement group, tasks in it, and its end: removed by its maker, at once or later."""
    group_id = yield from make(body, rng)
    if group_id is None:
        return
    if rng.random() < 0.5:
        yield ("ask", CONTROL, WaitPlacementGroup, (group_id, rng.choice([0.01, 0.1, 1.0])))
    for number in range(rng.randint(1, 4)):
        held += call(body, rng, f"{tag}.{number}", group_id)
    fate = rng.random()
    if fate < 0.3:  # with what runs in it
        yield from remove(body, group_id)
    elif fate < 0.7:  # it may never get its places: others may hold them for ever
        yield from body.get(held[-2:], timeout_s=1.0)
        yield from remove(body, group_id)


def remove_own(body: OwnerBody) -> Steps:
    """Remove the groups that this process has left."""
    for group_id, group in list(body.judge.groups.items()):
        if group.maker == body.id and not group.removed:
            yield from remove(body, group_id)


def make(body: OwnerBody, rng: random.Random) -> Steps:
    """A new placement group, or None where it would take what the others need."""
    cluster = body.cluster
    strategy = rng.choice(STRATEGIES)
    most = len(cluster.machines) if strategy == "STRICT_SPREAD" else 3
    bundles = [rng.choice([0.5, 1.0]) for _ in range(rng.randint(1, most))]
    if sum(bundles) > cluster.cpus_to_hold:
        return None
    cluster.cpus_to_hold -= sum(bundles)
    group_id = body.job_id + rng.getrandbits(96).to_bytes(12, "big")
    cluster.judge.groups[group_id] = GroupTruth(body)
    units = [dict(ResourceSet.of({"CPU": cpus})) for cpus in bundles]
    fields = (group_id, body.job_id, b"", "", "", False, strategy, units, [])
    ok, answer = yield ("ask", CONTROL, RegisterPlacementGroup, fields)
    assert ok, answer
    return group_id


def call(body: OwnerBody, rng: random.Random, tag: str, group_id: bytes) -> list[ObjectRef[Any]]:
    """A task in one of its bundles; every bundle has half a CPU."""
    from .workloads import Arguments

    return body.call(
        tag,
        Arguments(tag, rng.getrandbits(30), False),
        [],
        function=b"fast-function---",
        demand={"CPU": 0.5},
        retries=rng.choice([0, 3, -1]),
        returns=1,
        depth=1,
        strategy=("bundle", group_id, rng.choice([-1, -1, 0])),
    )


def remove(body: OwnerBody, group_id: bytes) -> Steps:
    body.world.faults += 1  # what runs in it is ended
    body.judge.groups[group_id].removed = True
    ok, answer = yield ("ask", CONTROL, RemovePlacementGroup, (group_id,))
    assert ok, answer


def remove_groups(cluster: Cluster) -> None:
    """Nobody needs any group any more."""
    driver = next(driver for driver in cluster.drivers if driver.alive)
    for group in list(cluster.control.brain.placement.groups.values()):
        if group.state is not GroupState.REMOVED:
            cluster.judge.groups[group.id].removed = True
            driver.send(CONTROL, RemovePlacementGroup(0, group.id))
