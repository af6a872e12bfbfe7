"""The control of a cluster is killed: what goes on without it, what waits, and that the next one has lost nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.experimental import internal_kv as kv
from zray.util.placement_group import placement_group, remove_placement_group

from .driving import PATIENCE_S, eventually
from .test_nodes import head, introduced, on


@ray.remote(max_retries=0)
def double(x: int) -> int:
    return 2 * x


@ray.remote(max_restarts=0)
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n

    def leave(self) -> None:
        ray.actor.exit_actor()


@ray.remote(num_cpus=0.01)
class Maker:
    """It owns actors, and says nothing to the control by itself."""

    def make(self) -> Any:
        self.made = Counter.remote()
        return self.made

    def drop(self) -> None:
        del self.made


@pytest.fixture(scope="module")
def two() -> Iterator[Cluster]:
    """A head and a node."""
    with Cluster(head_node_args={"num_cpus": 2, "resources": {"head": 1}}, connect=True) as cluster:
        cluster.add_node(num_cpus=2, resources={"east": 1})
        introduced(cluster)
        yield cluster


@contextlib.contextmanager
def without_control(cluster: Cluster) -> Iterator[None]:
    """The control is dead, and its supervisor does not see it for a while."""
    pid = head(cluster).child("zray-control")
    os.kill(head(cluster).pid, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        yield
    finally:
        os.kill(head(cluster).pid, signal.SIGCONT)


def kill_control(cluster: Cluster) -> None:
    pid = eventually(lambda: head(cluster).child("zray-control"), "a control")
    os.kill(pid, signal.SIGKILL)


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=PATIENCE_S)


def test_tasks_and_calls_go_on_without_a_control_and_what_is_new_waits_for_it(two: Cluster) -> None:
    here, there = Counter.options(**on("head")).remote(), Counter.options(**on("east")).remote()
    assert get([double.remote(1), double.options(**on("east")).remote(1), here.add.remote(), there.add.remote()]) == [2, 2, 1, 1]
    with without_control(two):
        for n in range(2, 5):
            assert get([double.remote(n), here.add.remote(), there.add.remote()]) == [2 * n, n, n]
        new = Counter.remote()
        first = new.add.remote()
        never_seen = ray.remote(lambda: "new").remote()
        ready, _ = ray.wait([first, never_seen], timeout=0.2)
        assert ready == []
    assert get([first, never_seen]) == [1, "new"]
    assert get([here.add.remote(), there.add.remote()]) == [5, 5]


def test_names_groups_keys_jobs_and_nodes_are_there_afterwards(two: Cluster) -> None:
    named = Counter.options(name="named", lifetime="detached", **on("east")).remote()
    get(named.add.remote())
    group = placement_group([{"CPU": 0.5}, {"CPU": 0.5}], strategy="STRICT_SPREAD", name="mine")
    assert group.wait(PATIENCE_S)
    kv._internal_kv_put(b"key", b"value")
    nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
    job = ray.get_runtime_context().get_job_id()
    for n in range(2, 5):
        kill_control(two)
        assert get(ray.get_actor("named").add.remote()) == n
        assert ray.util.get_placement_group("mine").id == group.id
        assert kv._internal_kv_get(b"key") == b"value"
        assert kv._internal_kv_put(b"key", b"other", overwrite=False), "it exists"
        assert {node["NodeID"]: node["Alive"] for node in ray.nodes()} == nodes
        assert get(double.options(**on("east")).remote(n)) == 2 * n
    assert ray.get_runtime_context().get_job_id() == job
    remove_placement_group(group)
    ray.kill(named)


def test_what_is_said_while_there_is_no_control_is_heard_by_the_next(two: Cluster) -> None:
    named = Counter.options(name="to kill", lifetime="detached").remote()
    dropped, leaves = Counter.options(name="to drop").remote(), Counter.options(name="leaves", max_restarts=-1).remote()
    maker = Maker.options(**on("east")).remote()
    made = get(maker.make.remote())
    get([actor.add.remote() for actor in (named, dropped, leaves, made)])
    with without_control(two):
        ray.kill(named)
        leaves.leave.remote()
        del named, dropped, made
        get(maker.drop.remote())

    def living() -> list[str]:
        actors = [actor for actor in ray.util.state.list_actors() if actor["state"] != "DEAD"]
        return [actor["name"] for actor in actors if actor["class_name"] == "Counter"]

    eventually(lambda: not {"to kill", "to drop", "leaves", ""} & set(living()), "the end of those that nobody needs")
