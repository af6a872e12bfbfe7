"""Placement groups and strategies on several nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.util import placement_group_table, remove_placement_group
from zray.util.placement_group import placement_group
from zray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)


@pytest.fixture
def cluster() -> Iterator[Any]:
    made = Cluster(head_node_args={"num_cpus": 1})
    for zone in ("x", "y"):
        made.add_node(num_cpus=2, labels={"zone": zone})
    made.connect()
    made.wait_for_nodes()
    yield made
    made.shutdown()


@ray.remote(max_retries=0)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


def test_strategies(cluster: Any) -> None:
    ids = [node.node_id for node in cluster.list_all_nodes()]
    for node_id in ids:
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        assert ray.get(where.options(scheduling_strategy=strategy).remote(), timeout=20) == node_id
    strategy = NodeLabelSchedulingStrategy({"zone": In("y")})
    assert ray.get(where.options(scheduling_strategy=strategy).remote(), timeout=20) == ids[2]
    assert ray.get(where.options(label_selector={"zone": "!in(y)"}, num_cpus=2).remote(), timeout=20) == ids[1]


def test_bundles_lie_on_several_nodes_and_move_when_one_dies(cluster: Any) -> None:
    group = placement_group([{"CPU": 1}] * 3, strategy="STRICT_SPREAD")
    assert group.wait(20)
    nodes = placement_group_table(group)["bundles_to_node_id"]
    assert sorted(nodes.values()) == sorted(node.node_id for node in cluster.list_all_nodes())

    def run(index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(group, index)
        return where.options(scheduling_strategy=strategy, max_retries=3).remote()

    assert ray.get([run(i) for i in range(3)], timeout=20) == [nodes[i] for i in range(3)]
    assert ray.get(group.ready(), timeout=20) == group
    victim = cluster.worker_nodes[0]
    lost = next(i for i, n in nodes.items() if n == victim.node_id)
    cluster.remove_node(victim, allow_graceful=False)
    end = time.monotonic() + 20
    while placement_group_table(group)["state"] != "RESCHEDULING" and time.monotonic() < end:
        time.sleep(0.1)
    waiting = run(lost)
    assert ray.wait([waiting], timeout=0.5)[0] == []
    new = cluster.add_node(num_cpus=2)
    assert ray.get(waiting, timeout=20) == new.node_id and group.wait(20)
    assert placement_group_table(group)["bundles_to_node_id"] == {**nodes, lost: new.node_id}
    remove_placement_group(group)
