"""Demands that no node can ever fit fail after a while, with a reason; so do nesting without an end and huge arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray.exceptions import RayError, TaskUnschedulableError


@pytest.fixture(autouse=True, scope="module")
def short_patience(no_leak_in_module: None, local_mode: bool) -> Iterator[None]:
    limits = {"infeasible_grace_s": 0.1, "workers_max": 8, "task_depth_max": 30, "args_bytes_max": 1 << 20}
    offered = {"resources": {"special": 1}, "object_store_memory": 1 << 24}
    with ray.init(num_cpus=2, local_mode=local_mode, _system_config=limits, **offered):
        yield


@pytest.fixture(autouse=True)
def the_next_call_works() -> Iterator[None]:
    yield
    assert ray.get(ray.remote(lambda: "works").remote(), timeout=30) == "works"


@pytest.mark.parametrize(
    ("demand", "text"),
    [
        ({"num_cpus": 3}, "3 CPU where the largest node has 2"),
        ({"num_gpus": 1}, "1 GPU where the largest node has 0"),
        ({"resources": {"special": 2}}, "2 special where the largest node has 1"),
        ({"resources": {"unknown": 0.5}}, r"0\.5 unknown where the largest node has 0"),
        ({"memory": 1 << 60}, "memory"),
        ({"accelerator_type": "A100"}, "A100"),
    ],
)
def test_an_infeasible_task_names_the_demand_and_what_there_is(demand: dict[str, Any], text: str) -> None:
    @ray.remote(**demand)
    def f() -> None: ...

    with pytest.raises(TaskUnschedulableError, match=rf"f\(\)[\s\S]*{text}"):
        ray.get(f.remote())


def test_all_results_of_all_infeasible_tasks_fail_and_the_others_run() -> None:
    @ray.remote(num_cpus=50, num_returns=2)
    def f() -> Any:
        return 1, 2

    @ray.remote
    def use(x: int) -> int:
        return x

    refs = [ref for _ in range(5) for ref in f.remote()]
    good = [use.remote(i) for i in range(20)]
    dependent = use.remote(refs[0])
    assert ray.get(good) == list(range(20))
    for ref in [*refs, dependent]:
        with pytest.raises(TaskUnschedulableError):
            ray.get(ref)


def test_an_infeasible_task_inside_a_task() -> None:
    @ray.remote
    def outer() -> str:
        try:
            ray.get(ray.remote(num_cpus=99)(lambda: 1).remote())
        except TaskUnschedulableError as error:
            return str(error)
        return ""

    assert "99 CPU" in ray.get(outer.remote())


def test_what_needs_the_whole_node_waits_for_it() -> None:
    @ray.remote(num_cpus=2)
    def whole() -> int:
        return 2

    @ray.remote
    def part() -> int:
        return 1

    refs = [f.remote() for _ in range(10) for f in (whole, part)]
    assert ray.get(refs, timeout=30) == [2, 1] * 10


@pytest.mark.parametrize("cpus", [1, 0])
def test_a_task_that_submits_itself_without_an_end_fails(cpus: int) -> None:
    """Each waits for the next: when as many workers wait as there may be, the last submission fails, and so do all."""

    @ray.remote(num_cpus=cpus)
    def endless(n: int) -> int:
        return ray.get(endless.remote(n + 1))

    with pytest.raises(RayError, match=r"nested|deep"):
        ray.get(endless.remote(0), timeout=60)


def test_a_task_that_submits_itself_and_does_not_wait_ends() -> None:
    """The chain ends at the depth that is allowed."""

    @ray.remote
    def chain(n: int) -> Any:
        return n, [chain.remote(n + 1)]

    depth = 0
    ref = chain.remote(0)
    with pytest.raises(RayError, match="TASK_DEPTH_MAX"):
        while depth < 1000:
            depth, (ref,) = ray.get(ref, timeout=30)
    assert depth < 40


def test_nesting_as_deep_as_workers_allow() -> None:
    @ray.remote
    def down(n: int) -> int:
        return ray.get(down.remote(n - 1)) + 1 if n else 0

    assert ray.get(down.remote(6), timeout=30) == 6


def test_more_parents_than_workers_wait_for_their_children() -> None:
    @ray.remote
    def child(x: int) -> int:
        return x

    @ray.remote
    def parent(x: int) -> int:
        return sum(ray.get([child.remote(i) for i in range(x)]))

    assert ray.get([parent.remote(4) for _ in range(20)], timeout=30) == [6] * 20


def test_arguments_larger_than_the_limit_are_refused_at_submit() -> None:
    @ray.remote
    def size(data: bytes) -> int:
        return len(data)

    with pytest.raises(ValueError, match=r"size\(\)[\s\S]*ZRAY_ARGS_BYTES_MAX[\s\S]*pass a path"):
        size.remote(bytes(2 << 20))
    assert ray.get(size.remote(ray.put(bytes(2 << 20)))) == 2 << 20
