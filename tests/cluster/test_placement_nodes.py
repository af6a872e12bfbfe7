"""Placement groups and strategies on several nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.exceptions import ActorUnschedulableError, RayActorError, TaskUnschedulableError
from zray.util import placement_group_table, remove_placement_group
from zray.util.placement_group import placement_group
from zray.util.scheduling_strategies import (
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from .driving import eventually


@pytest.fixture
def cluster() -> Iterator[Any]:
    patient = {"ZRAY_INFEASIBLE_GRACE_S": "600"}  # what never can be fails at once all the same
    made = Cluster(head_node_args={"num_cpus": 1, "env_vars": patient})
    for zone in ("x", "y"):
        made.add_node(num_cpus=2, num_gpus=2, labels={"zone": zone})
    made.connect()
    made.wait_for_nodes()
    yield made
    made.shutdown()


@ray.remote(max_retries=0)
def where() -> str:
    return ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=1)
class Place:
    def where(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def gpus(self) -> tuple[str, Any]:
        return self.where(), ray.get_gpu_ids()


def test_strategies_of_actors(cluster: Any) -> None:
    ids = [node.node_id for node in cluster.list_all_nodes()]
    wanted = [
        (ids[2], {"scheduling_strategy": NodeAffinitySchedulingStrategy(ids[2], soft=False)}),
        (ids[1], {"scheduling_strategy": NodeAffinitySchedulingStrategy(ids[1], soft=True)}),
        (ids[2], {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": In("y")})}),
        (ids[1], {"label_selector": {"zone": "x"}, "scheduling_strategy": "SPREAD"}),
    ]
    actors = [Place.options(num_cpus=0, **options).remote() for _, options in wanted]
    assert ray.get([actor.where.remote() for actor in actors], timeout=20) == [node_id for node_id, _ in wanted]
    late = Place.options(num_cpus=0, label_selector={"zone": "z"}).remote()
    call = late.where.remote()
    assert ray.wait([call], timeout=0.3)[0] == [], "no node has that label"
    new = cluster.add_node(num_cpus=1, labels={"zone": "z"})
    assert ray.get(call, timeout=20) == new.node_id


def test_a_node_that_is_asked_for_and_is_dead_is_no_reason_to_wait(cluster: Any) -> None:
    victim = cluster.worker_nodes[0]
    strategy = NodeAffinitySchedulingStrategy(victim.node_id, soft=False)
    task, cls = where.options(scheduling_strategy=strategy), Place.options(scheduling_strategy=strategy, num_cpus=0)
    waiting = [where.options(scheduling_strategy=strategy, num_cpus=2).remote() for _ in range(3)]
    actor = cls.options(max_restarts=-1).remote()
    assert ray.get([task.remote(), actor.where.remote(), *waiting], timeout=20) == [victim.node_id] * 5
    cluster.remove_node(victim, allow_graceful=False)
    cluster.wait_for_nodes()
    with pytest.raises(TaskUnschedulableError, match="which is dead"):
        ray.get(task.remote(), timeout=20)
    with pytest.raises(ActorUnschedulableError, match="which is dead"):
        ray.get(cls.remote().where.remote(), timeout=20)
    with pytest.raises(RayActorError, match="which is dead"):
        ray.get(actor.where.remote(), timeout=20)
    soft = NodeAffinitySchedulingStrategy(victim.node_id, soft=True)
    assert ray.get(task.options(scheduling_strategy=soft).remote(), timeout=20) != victim.node_id


def test_actors_fill_the_bundles_of_their_group_one_after_the_other(cluster: Any) -> None:
    group = placement_group([{"CPU": 1, "GPU": 1}] * 4, strategy="SPREAD")
    cls = Place.options(num_gpus=1, scheduling_strategy=PlacementGroupSchedulingStrategy(group))
    actors = [cls.remote() for _ in range(4)]  # before there is a place for any of them
    held = ray.get([actor.gpus.remote() for actor in actors], timeout=30)
    nodes = [node.node_id for node in cluster.worker_nodes]
    assert sorted((node, ids) for node, ids in held) == sorted((node, [gpu]) for node in nodes for gpu in (0, 1))
    ray.kill(actors[0])
    assert ray.get(cls.remote().gpus.remote(), timeout=30) == held[0], "the only one that is free"
    remove_placement_group(group)

    def ended() -> bool:
        try:
            ray.get(actors[1].where.remote(), timeout=20)
        except RayActorError:
            return True
        return False

    eventually(ended, "the end of an actor with its group")


def test_what_waits_in_one_bundle_goes_to_another_that_is_free(cluster: Any) -> None:
    group = placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", bundle_label_selector=[{"zone": "x"}, {"zone": "y"}])
    index = [Place.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, i)).remote() for i in (0, 1)]
    nodes = ray.get([actor.where.remote() for actor in index], timeout=20)
    waiting = where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    assert ray.wait([waiting], timeout=0.3)[0] == []
    ray.kill(index[1])
    assert ray.get(waiting, timeout=20) == nodes[1]
    waiting = where.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group)).remote()
    assert ray.get(waiting, timeout=20) == nodes[1], "whichever was asked first"


@ray.remote(num_cpus=1)
def make() -> Any:
    return np.zeros(1 << 20)


@ray.remote(num_cpus=1)
def read(*arrays: Any) -> str:
    return str(ray.get_runtime_context().get_node_id())


def test_tasks_run_where_their_large_arguments_lie(cluster: Any) -> None:
    nodes = [node.node_id for node in cluster.worker_nodes]
    there = [NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in nodes]
    small, large = make.options(scheduling_strategy=there[0]).remote(), [
        make.options(scheduling_strategy=there[1]).remote() for _ in range(2)
    ]

    def found() -> bool:  # the leases of those who made them may be there still
        return bool(ray.get([read.remote(small), read.remote(small, *large)], timeout=20) == nodes)

    eventually(found, "each where most of its arguments are")
    assert found()
    assert ray.get(read.remote(1), timeout=20) == cluster.head_node.node_id


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
