"""The end of nodes, of the head and of whole clusters: what was lost, what carries on, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.cluster_utils import Cluster, ClusterNode
from zray.exceptions import ActorDiedError, ObjectLostError, TaskUnschedulableError

from .driving import PATIENCE_S, alive, assert_nothing_remains, eventually, processes_of
from .gates import Gate
from .test_nodes import ELEMENTS, Place, head, held, introduced, make, names, on, total, where


def test_what_no_node_can_run_names_the_closest() -> None:
    with Cluster(head_node_args={"num_cpus": 1, "env_vars": {"ZRAY_INFEASIBLE_GRACE_S": "0.1"}}, connect=True) as cluster:
        node = cluster.add_node(num_cpus=4)
        introduced(cluster)
        with pytest.raises(TaskUnschedulableError, match=rf"asks for 64 CPU .* \({node.node_id[:8]} on host .*\) has 4"):
            ray.get(where.options(num_cpus=64).remote(), timeout=PATIENCE_S)
        with pytest.raises(TaskUnschedulableError, match="asks for 1 gold"):
            ray.get(where.options(resources={"gold": 1}).remote(), timeout=PATIENCE_S)


# -- the end of nodes -----------------------------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    """A head and two nodes whose end is noticed soon."""
    limits = {"ZRAY_NODE_DEATH_S": "1.5", "ZRAY_NODE_SUSPECT_S": "0.7", "ZRAY_HEALTH_CHECK_MS": "100"}
    arguments = {"num_cpus": 1, "resources": {"head": 1}, "env_vars": limits}
    with Cluster(head_node_args=arguments, connect=True) as cluster:
        for name in ("east", "west"):
            cluster.add_node(num_cpus=2, resources={name: 1, "both": 2})
        introduced(cluster)
        yield cluster


@pytest.mark.parametrize("graceful", [False, True])
def test_a_node_ends_and_the_others_carry_on(mortal: Cluster, tmp_path: Path, graceful: bool) -> None:
    ids = {name: node for node, name in names(mortal).items()}
    east, west = mortal.worker_nodes
    gate = Gate(str(tmp_path / "gate"))
    tasks = [held.options(resources={"both": 0.5}).remote(gate) for _ in range(4)]
    dies = Place.options(**on("east")).remote()
    returns = Place.options(resources={"both": 0.01}, max_restarts=3, max_task_retries=3).remote()
    lost = make.options(**on("east"), max_retries=0).remote()
    kept = make.options(**on("west")).remote()
    ray.wait([lost, kept], num_returns=2, fetch_local=False)
    assert ray.get(dies.where.remote()) == ids["east"]
    gate.wait_for(4)
    session, home = east.session_dir, home_of(east)
    assert len(processes_of(home)) > 2
    mortal.remove_node(east, allow_graceful=graceful)
    mortal.wait_for_nodes()
    assert {node["NodeID"]: node["Alive"] for node in ray.nodes()}[ids["east"]] is False
    assert ray.cluster_resources()["CPU"] == 3
    gate.open()
    assert set(ray.get(tasks, timeout=PATIENCE_S)) == {west.node_id}, "those of the lost node ran again"
    with pytest.raises(ActorDiedError):
        ray.get(dies.where.remote(), timeout=PATIENCE_S)
    assert ray.get(returns.where.remote(), timeout=PATIENCE_S) == west.node_id
    with pytest.raises(ObjectLostError):
        ray.get(lost, timeout=PATIENCE_S)
    with pytest.raises(ObjectLostError):
        ray.get(total.options(**on("west")).remote(lost), timeout=PATIENCE_S)
    assert ray.get(kept)[-1] == ELEMENTS - 1
    eventually(lambda: not processes_of(home), "the end of the node's workers")
    if graceful:
        assert_nothing_remains(session)


def test_a_node_that_was_given_up_hears_of_it_and_comes_back_as_another(mortal: Cluster) -> None:
    east = mortal.worker_nodes[0]

    def living() -> list[str]:
        return [node["NodeID"] for node in ray.nodes() if node["Alive"] and "east" in node["Resources"]]

    east.pause()
    eventually(lambda: not living(), "the death of the node")
    east.resume()
    [again] = eventually(living, "its return")
    assert "gave it up" in east.log() and east.alive()
    assert again != east.node_id
    assert_nothing_remains(east.session_dir)
    mortal.wait_for_nodes()
    assert east.node_id == again and os.path.exists(east.session_dir), "it is the same ClusterNode"


def test_a_node_can_join_while_another_hangs(mortal: Cluster) -> None:
    east = mortal.worker_nodes[0]
    east.pause()
    try:
        node = mortal.add_node(num_cpus=1)
        assert node.node_id in {row["NodeID"] for row in ray.nodes() if row["Alive"]}
    finally:
        east.resume()


def test_a_cluster_that_can_not_be_made_leaves_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    homes: list[str] = []

    def mkdtemp(**options: Any) -> str:
        homes.append(made(**options))
        return homes[-1]

    made = tempfile.mkdtemp
    monkeypatch.setattr("tempfile.mkdtemp", mkdtemp)
    with Cluster(connect=True) as first:
        with pytest.raises(RuntimeError, match="called before"):
            Cluster(connect=True)
        assert ray.get(where.remote()) == head(first).node_id, "the one that was connected still is"
    with pytest.raises(RuntimeError, match="the node did not start"):
        Cluster(head_node_args={"env_vars": {"ZRAY_NODE_DEATH_S": "long"}})
    assert len(homes) == 3 and not any(map(os.path.exists, homes)) and not any(map(processes_of, homes))


def test_a_node_whose_process_is_killed_is_dead_long_before_one_that_is_silent() -> None:
    limits = {"ZRAY_NODE_DEATH_S": "1000", "ZRAY_NODE_LOST_S": "0.2", "ZRAY_HEALTH_CHECK_MS": "100"}
    with Cluster(head_node_args={"num_cpus": 1, "env_vars": limits}, connect=True) as cluster:
        node = cluster.add_node(num_cpus=1)
        cluster.remove_node(node, allow_graceful=False)
        cluster.wait_for_nodes()
        assert "its connection ended" in head(cluster).log()


def test_a_node_that_ends_in_good_order_is_dead_at_once() -> None:
    limits = {"ZRAY_NODE_DEATH_S": "1000", "ZRAY_NODE_LOST_S": "1000"}
    with Cluster(head_node_args={"num_cpus": 1, "env_vars": limits}, connect=True) as cluster:
        node = cluster.add_node(num_cpus=1)
        cluster.remove_node(node)
        cluster.wait_for_nodes()
        assert "it left the cluster: SIGTERM" in head(cluster).log()


# -- nothing is left ------------------------------------------------------------------------------------------------


def home_of(node: ClusterNode) -> str:
    """What the command lines of all its processes name."""
    return os.path.dirname(os.path.dirname(node.session_dir))


def pids_of(cluster: Cluster) -> dict[str, set[int]]:
    return {node.session_dir: set(processes_of(home_of(node))) for node in cluster.list_all_nodes()}


def test_nothing_is_left_after_the_end_of_a_cluster() -> None:
    cluster = Cluster(head_node_args={"num_cpus": 1}, connect=True)
    cluster.add_node(num_cpus=1, resources={"east": 1})
    introduced(cluster)
    array = ray.get(make.options(**on("east")).remote())
    assert len(array) == ELEMENTS
    del array
    processes = pids_of(cluster)
    assert all(len(pids) > 1 for pids in processes.values())
    cluster.shutdown()
    for session, pids in processes.items():
        assert_nothing_remains(session)
        eventually(lambda pids=pids: not any(alive(pid) for pid in pids), "the end of all processes")


def node_is_dead() -> bool:
    """Whether this driver knows that the agent of its machine is gone."""
    try:
        ray.get(where.remote(), timeout=PATIENCE_S)
    except ray.exceptions.NodeDiedError:
        return True
    return False


def test_the_head_is_killed_and_its_nodes_end_too() -> None:
    limits = {"ZRAY_CONTROL_DEATH_S": "1.5", "ZRAY_HEALTH_CHECK_MS": "100"}
    cluster = Cluster(head_node_args={"num_cpus": 1, "env_vars": limits}, connect=True)
    try:
        node = cluster.add_node(num_cpus=1, resources={"east": 1})
        introduced(cluster)
        ray.get(where.options(**on("east")).remote())
        never = where.options(resources={"east": 1}, num_cpus=1).remote()
        processes = pids_of(cluster)
        os.kill(head(cluster).pid, signal.SIGKILL)
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(never, timeout=PATIENCE_S)
        eventually(node_is_dead, "the news that the agent of this machine has ended with the head")
        eventually(lambda: not node.alive(), "the end of the node, which hears nothing of its head")
        assert "the head has been silent" in node.log()
        assert_nothing_remains(node.session_dir)
        for pids in processes.values():
            eventually(lambda pids=pids: not any(alive(pid) for pid in pids - {head(cluster).pid}), "the end of all processes")
        ray.shutdown()
        sweep_home(head(cluster))
    finally:
        cluster.shutdown()


def sweep_home(node: ClusterNode) -> None:
    """What the next start there does: a head that was killed could not tidy up."""
    from zray.io.session import sweep

    node._process.wait(PATIENCE_S)
    eventually(lambda: sweep(home_of(node)) or not os.path.exists(node.session_dir), "the session swept")
    assert_nothing_remains(node.session_dir)
