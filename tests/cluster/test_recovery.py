"""Lost objects on real nodes: what comes back, how, and what does not."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import zray as ray
from zray import api
from zray.cluster_utils import Cluster
from zray.core.waiters import Waiter
from zray.exceptions import ObjectReconstructionFailedError, TaskUnschedulableError
from zray.runtime.client import finish

from .driving import PATIENCE_S, eventually
from .test_nodes import ELEMENTS, introduced

Made = Callable[[int], int]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: Any) -> str:
    """Where objects are spilled to: a storage that all nodes can reach."""
    return str(tmp_path_factory.mktemp("spilled"))


@pytest.fixture(scope="module")
def frail(disk: str) -> Iterator[Cluster]:
    """A head and a node "west"; tests add others, and kill them."""
    limits = {
        "ZRAY_NODE_DEATH_S": "1.5",
        "ZRAY_NODE_SUSPECT_S": "0.7",
        "ZRAY_HEALTH_CHECK_MS": "100",
        "ZRAY_INFEASIBLE_GRACE_S": "0.5",
        "ZRAY_SPILL_DIRECTORIES": f"local://{disk}",
    }
    with Cluster(head_node_args={"num_cpus": 1, "env_vars": limits}, connect=True) as cluster:
        cluster.add_node(num_cpus=2, resources={"west": 100})
        introduced(cluster)
        ray.put(0).future().result(30)
        yield cluster


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """How often a number was made, in tests whose tasks note that in ``tmp_path``."""
    return lambda number: len(glob.glob(f"{tmp_path}/{number}-*"))


@ray.remote(num_cpus=0)
def make(folder: str, number: int) -> Any:
    with open(f"{folder}/{number}-{time.time_ns()}-{os.getpid()}", "w"):
        return np.full(ELEMENTS, number, dtype=np.float64)


@ray.remote(num_cpus=0)
def add(array: Any, number: int) -> Any:
    return array + number


@ray.remote(num_cpus=0)
def first(array: Any) -> float:
    return float(array[0])


@ray.remote(num_cpus=0)
def first_of(refs: list[Any]) -> float:
    """Read a borrowed reference."""
    return float(ray.get(refs[0])[0])


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Maker:
    def make(self, number: int) -> Any:
        return np.full(ELEMENTS, number, dtype=np.float64)


EAST, WEST = {"resources": {"east": 1}}, {"resources": {"west": 1}}


def add_east(cluster: Cluster) -> Any:
    node = cluster.add_node(num_cpus=2, resources={"east": 100}, object_store_memory=64 << 20)
    introduced(cluster)
    return node


def get(ref: Any) -> float:
    return float(ray.get(ref, timeout=PATIENCE_S)[0])


def test_what_was_lost_with_a_node_comes_back(frail: Cluster, tmp_path: Path, made: Made) -> None:
    east = add_east(frail)
    folder = str(tmp_path)
    copied = make.options(**EAST).remote(folder, 1)
    assert ray.get(first.options(**WEST).remote(copied), timeout=PATIENCE_S) == 1
    borrowed = make.options(**EAST).remote(folder, 3)
    called = Maker.options(**EAST).remote().make.remote(4)
    spilled = [make.options(**EAST).remote(folder, number) for number in range(10, 50)]
    everything = [copied, borrowed, called, *spilled]
    ray.wait(everything, num_returns=len(everything), timeout=PATIENCE_S)
    chained = add.options(**EAST).remote(make.options(**EAST).remote(folder, 2), 100)  # too new to be on disk
    once = make.options(max_retries=0, **EAST).remote(folder, 5)
    ray.wait([chained, once], num_returns=2, timeout=PATIENCE_S)
    del everything
    frail.remove_node(east, allow_graceful=False)
    add_east(frail)
    assert ray.get(first_of.options(**WEST).remote([borrowed]), timeout=PATIENCE_S) == 3
    assert get(copied) == 1 and made(1) == 1, "the copy in the west is the primary now"
    assert get(chained) == 102 and made(2) == 2, "its argument was freed, and is made again for it"
    assert get(called) == 4, "the actor lives again, and was called again"
    with pytest.raises(ObjectReconstructionFailedError, match="max_retries"):
        ray.get(once, timeout=PATIENCE_S)
    assert [get(ref) for ref in spilled] == list(range(10, 50))
    assert 40 <= sum(made(number) for number in range(10, 50)) < 80, "some were read from the disk"
    frail.remove_node(frail.worker_nodes[-1])


def test_what_was_put_there_is_gone_and_what_has_no_place_says_so(frail: Cluster, tmp_path: Path) -> None:
    east = add_east(frail)

    @ray.remote(num_cpus=0, max_restarts=0)
    class Putter:
        def put(self) -> Any:
            return ray.put(np.zeros(ELEMENTS))

    putter = Putter.options(**EAST).remote()
    inner = ray.get(putter.put.remote(), timeout=PATIENCE_S)
    homeless = make.options(**EAST).remote(str(tmp_path), 1)
    ray.wait([homeless], timeout=PATIENCE_S)
    frail.remove_node(east, allow_graceful=False)
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(inner, timeout=PATIENCE_S)
    with pytest.raises(TaskUnschedulableError, match="east"):
        ray.get(homeless, timeout=PATIENCE_S)


def test_a_damaged_file_has_the_task_run_again(frail: Cluster, disk: str, tmp_path: Path, made: Made) -> None:
    add_east(frail)
    before = set(files(disk))
    refs = [make.options(**EAST).remote(str(tmp_path), number) for number in range(60)]
    ray.wait(refs, num_returns=len(refs), timeout=PATIENCE_S)
    eventually(lambda: set(files(disk)) - before, "files on disk")
    for path in set(files(disk)) - before:
        os.truncate(path, os.path.getsize(path) // 2)
    assert [get(ref) for ref in refs] == list(range(60))
    assert sum(made(number) for number in range(60)) > 60
    frail.remove_node(frail.worker_nodes[-1])


class Omen:
    """While it is read for the first time, another object turns out to be lost."""

    told: ClassVar[set[bytes]] = set()

    def __init__(self, object_id: bytes, node_id: bytes) -> None:
        self.lost = (object_id, node_id)

    def __reduce__(self) -> tuple[Any, ...]:
        return lose, self.lost


def lose(object_id: bytes, node_id: bytes) -> str:
    if object_id in Omen.told:
        return "read"
    Omen.told.add(object_id)
    worker, taken = api.runtime(), Waiter(1)
    worker.loop.post((worker.owner.recover, object_id, node_id, "a test says so"))
    worker.loop.post((finish, taken))
    assert worker.loop.wait(taken, PATIENCE_S)
    return "read"


def test_what_is_lost_while_others_are_read_is_waited_for(frail: Cluster, tmp_path: Path, made: Made) -> None:
    lost = make.options(**WEST).remote(str(tmp_path), 1)
    ray.wait([lost], timeout=PATIENCE_S, fetch_local=False)
    omen = ray.put(Omen(lost.binary(), bytes.fromhex(frail.worker_nodes[0].node_id)))
    first, array, last = ray.get([omen, lost, ray.put("last")], timeout=PATIENCE_S)
    assert (first, float(array[0]), last) == ("read", 1.0, "last")
    assert made(1) == 2


def files(disk: str) -> list[str]:
    return glob.glob(f"{disk}/**/*.spill", recursive=True)
