"""Three hosts with a network between them, whose cables are pulled and plugged in again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zray as ray
from zray.cluster_utils import Cluster
from zray.exceptions import ObjectLostError

from .driving import PATIENCE_S, Script, alive, eventually
from .namespaces import Network, Refused
from .test_nodes import introduced, names, on, where

ARRAY_BYTES = int(os.environ.get("ZRAY_TEST_ARRAY_BYTES", "") or 100 << 20)
STORE_BYTES = ARRAY_BYTES * 3 // 2
HEAD, EAST = 0, 1  # hosts
LONGER_S = 60.0  # a host that comes back has its processes started anew


class Hosts(Cluster):
    """A cluster of the real commands, each node on a host of its own; this process lives on the head's."""

    def __init__(self, network: Network, **limits: str) -> None:
        self.network = network
        super().__init__(initialize_head=False)
        try:
            for name in ("head", "east", "west"):
                self.add_node(
                    num_cpus=2, resources={name: 1, "all": 1}, object_store_memory=STORE_BYTES, env_vars=limits
                )
            self.connect()
            introduced(self)
        except BaseException:
            self.shutdown()
            raise

    def _host(self, number: int) -> str:
        return self.network.addresses[number]

    def _spawn(self, number: int, command: list[str], environment: dict[str, str], log: Any) -> subprocess.Popen[bytes]:
        spawned: subprocess.Popen[bytes] = self.network.hosts[number].run(
            lambda: super(Hosts, self)._spawn(number, command, environment, log)
        )
        return spawned


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    try:
        made = Network(3)
    except Refused as error:
        pytest.skip(str(error))
    with made.entered(HEAD):
        yield made
    made.close()


@pytest.fixture
def patient(network: Network) -> Iterator[Hosts]:
    """The limits are those of a cluster that nobody configured."""
    with Hosts(network) as cluster:
        yield cluster


@ray.remote
def slow(number: int) -> tuple[int, str]:
    time.sleep(0.02)
    return number, ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
def make(size: int) -> Any:
    return np.arange(size // 8, dtype=np.int64)


@ray.remote(num_cpus=0)
def whole(array: Any) -> tuple[bool, str]:
    right = bool(array[0] == 0 and array[-1] == len(array) - 1 and np.array_equal(np.diff(array[::4096]), np.full(
        len(array[::4096]) - 1, 4096)))
    return right and int(array.sum()) == len(array) * (len(array) - 1) // 2, ray.get_runtime_context().get_node_id()


@ray.remote(num_cpus=0)
class Counter:
    def __init__(self) -> None:
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count


def test_tasks_spill_to_all_hosts(patient: Hosts) -> None:
    results = ray.get([slow.remote(number) for number in range(120)], timeout=PATIENCE_S)
    assert [number for number, _ in results] == list(range(120))
    assert {names(patient)[node] for _, node in results} == {"head", "east", "west"}


@pytest.mark.parametrize("maker", ["east", "head"])
def test_an_array_made_on_one_host_is_read_whole_on_the_others(patient: Hosts, maker: str) -> None:
    array = make.options(**on(maker)).remote(ARRAY_BYTES)
    readers = [name for name in names(patient).values() if name != maker]
    results = ray.get([whole.options(**on(name)).remote(array) for name in readers], timeout=LONGER_S)
    assert [(right, names(patient)[node]) for right, node in results] == [(True, name) for name in readers]


@pytest.mark.parametrize("host", [EAST, HEAD], ids=["east", "head"])
def test_a_link_that_is_cut_for_three_seconds_loses_nothing(patient: Hosts, host: int) -> None:
    """Tasks, calls, objects and their transfer are under way all the time, and nothing is run for the second time."""
    counters = [Counter.options(**on(name)).remote() for name in ("east", "west")]
    assert ray.get([counter.add.remote() for counter in counters]) == [1, 1]
    kept = make.options(**on("east")).remote(1 << 20)
    ids = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    calls: list[Any] = []
    tasks: list[Any] = []
    reads: list[Any] = []
    once = {"max_retries": 0}

    def load(seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            calls.extend(counter.add.remote() for counter in counters)
            tasks.append(slow.options(**once).remote(len(tasks)))
            ray.wait(tasks, num_returns=len(tasks), timeout=0.05)
            if len(tasks) % 8 == 1:
                array = make.options(**on("east"), **once).remote(1 << 20)
                reads.append(whole.options(**on("west"), **once).remote(array))

    load(0.3)
    patient.network.cut(host)
    load(3.0)
    patient.network.heal(host)
    load(0.3)
    assert ray.get(calls, timeout=LONGER_S) == [2 + number // 2 for number in range(len(calls))]
    assert [number for number, _ in ray.get(tasks, timeout=LONGER_S)] == list(range(len(tasks)))
    assert all(right for right, _ in ray.get(reads, timeout=LONGER_S))
    assert ray.get(whole.options(**on("west")).remote(kept), timeout=LONGER_S)[0]
    assert {node["NodeID"] for node in ray.nodes() if node["Alive"]} == ids


def test_a_link_that_is_cut_for_long_moves_the_work_and_the_host_comes_back(network: Network) -> None:
    limits = {"ZRAY_NODE_DEATH_S": "2", "ZRAY_NODE_SUSPECT_S": "1", "ZRAY_HEALTH_CHECK_MS": "200"}
    with Hosts(network, **limits) as cluster:
        east = cluster.worker_nodes[0]
        before = names(cluster)
        moves = Counter.options(resources={"all": 0.01}, max_restarts=-1, max_task_retries=-1).remote()
        stays = Counter.options(**on("west")).remote()
        ray.get([moves.add.remote(), stays.add.remote()])
        lost = make.options(max_retries=0, **on("east")).remote(1 << 20)
        again = make.options(resources={"all": 0.01}).remote(1 << 20)
        ray.wait([lost, again], num_returns=2, timeout=PATIENCE_S, fetch_local=False)
        tasks = [slow.remote(number) for number in range(400)]
        ray.wait(tasks, num_returns=40, timeout=PATIENCE_S)
        network.cut(EAST)
        results = ray.get(tasks, timeout=LONGER_S)
        assert [number for number, _ in results] == list(range(400)), "what ran there ran again elsewhere"
        assert {before[node] for _, node in results} >= {"head", "west"}
        eventually(lambda: len([node for node in ray.nodes() if node["Alive"]]) == 2, "the death of the node")
        assert ray.get(moves.add.remote(), timeout=LONGER_S) >= 1
        assert ray.get(stays.add.remote(), timeout=LONGER_S) == 2
        assert ray.get(whole.remote(again), timeout=LONGER_S)[0], "made anew, if it lay there"
        with pytest.raises(ObjectLostError):
            ray.get(lost, timeout=LONGER_S)
        network.heal(EAST)
        old = east.node_id
        cluster.wait_for_nodes(LONGER_S)
        assert east.node_id != old and "gave it up" in east.log()
        introduced(cluster)
        assert ray.get(where.options(**on("east")).remote(), timeout=LONGER_S) == east.node_id
        results = ray.get([slow.remote(number) for number in range(120)], timeout=PATIENCE_S)
        assert {names(cluster)[node] for _, node in results} == {"head", "east", "west"}


# -- a driver whose cable is pulled ---------------------------------------------------------------------------------

FAR = """
ray.init(sys.argv[1], _temp_dir=sys.argv[2])

@ray.remote(max_retries=0, scheduling_strategy="SPREAD")
def task(number):
    time.sleep(0.02)
    return number, ray.get_runtime_context().get_node_id()

@ray.remote(num_cpus=0, resources={"west": 0.1})
class Counter:
    def __init__(self):
        self.count = 0
    def add(self):
        self.count += 1
        return self.count
    def pid(self):
        return os.getpid()

counter = Counter.remote()
say("pid", ray.get(counter.pid.remote()))
made = [ray.remote(num_cpus=0, resources={name: 0.1})(lambda: bytes(1 << 20)).remote() for name in ("east", "west")]
ray.wait(made, num_returns=2)
tasks = [task.remote(number) for number in range(int(sys.argv[3]))]
calls = [counter.add.remote() for _ in range(50)]
say("submitted", ray.get(calls[0]))
"""
RIGHT = """
sys.stdin.readline()
calls += [counter.add.remote() for _ in range(50)]
say("goes on")
rows = ray.get(tasks)
assert [number for number, _ in rows] == list(range(len(tasks)))
assert ray.get(calls) == list(range(1, 101))
assert [len(value) for value in ray.get(made)] == [1 << 20] * 2
say("right", len({node for _, node in rows}))
ray.shutdown()
"""
CUT_OFF = """
for ask in (lambda: ray.get(tasks), lambda: ray.get(ray.remote(lambda: 1).remote()), lambda: ray.put(1) and ray.nodes()):
    try:
        ask()
    except (ray.exceptions.RaySystemError, ray.exceptions.NodeDiedError) as error:
        say("told", error)
ray.shutdown()
"""


def far_driver(cluster: Hosts, script: Callable[..., Script], rest: str, tasks: int) -> Script:
    """A driver on the host in the east, with work everywhere."""
    home = os.path.join(cluster._home, str(EAST))
    arguments = f"sys.argv += [{cluster.address!r}, {home!r}, '{tasks}']\n"
    program: Script = cluster.network.hosts[EAST].run(lambda: script(arguments + FAR + rest))
    return program


def test_a_driver_whose_cable_is_out_for_less_than_the_limit_loses_nothing(
    patient: Hosts, script: Callable[..., Script]
) -> None:
    program = far_driver(patient, script, RIGHT, 300)
    program.until("submitted")
    patient.network.cut(EAST)
    program.say("go on")
    program.until("goes")
    time.sleep(3.0)  # a long time for a cable, and less than ZRAY_NODE_DEATH_S
    patient.network.heal(EAST)
    assert int(program.until("right")) > 1, "tasks ran on the other side too"
    assert program.finish()[0] == 0


def test_a_driver_whose_cable_is_out_for_too_long_is_tidied_up_after_and_told(
    network: Network, script: Callable[..., Script]
) -> None:
    limits = {"ZRAY_NODE_DEATH_S": "2", "ZRAY_NODE_SUSPECT_S": "1", "ZRAY_HEALTH_CHECK_MS": "200"}
    with Hosts(network, **limits) as cluster:
        other = Counter.options(**on("west")).remote()
        assert ray.get(other.add.remote()) == 1
        program = far_driver(cluster, script, CUT_OFF, 100_000)
        actor_pid = int(program.until("pid"))
        program.until("submitted")
        network.cut(EAST)
        eventually(lambda: not alive(actor_pid), "the end of its actor on another host")
        free = {"num_cpus": 2}
        busy = [where.options(**free, **on(name)).remote() for name in ("head", "west")]
        assert len(set(ray.get(busy, timeout=LONGER_S))) == 2, "the others have their CPUs back"
        assert ray.get(other.add.remote(), timeout=LONGER_S) == 2
        assert alive(program.pid)
        network.heal(EAST)
        told = [program.until("told") for _ in range(3)]
        assert all("gave it up" in text for text in told), told
        assert program.finish()[0] == 0
        cluster.wait_for_nodes(LONGER_S)
