"""Placement groups through the public API, on one node."""

from __future__ import annotations

from typing import Any

import pytest

import zray as ray
from zray.exceptions import GetTimeoutError, RayActorError, TaskUnschedulableError
from zray.util import placement_group_table, remove_placement_group
from zray.util.placement_group import PlacementGroup, get_current_placement_group, get_placement_group, placement_group
from zray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from .modes import held


@pytest.fixture(autouse=True)
def cluster(local_mode: bool) -> Any:
    labels, limits = {"zone": "here"}, {"infeasible_grace_s": 0.5}
    ray.init(num_cpus=4, num_gpus=2, labels=labels, local_mode=local_mode, _system_config=limits)
    yield
    ray.shutdown()


def within(group: PlacementGroup, index: int = -1, captures: bool | None = None) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, index, captures)


@ray.remote
def gpu_ids() -> Any:
    return ray.get_gpu_ids()


@ray.remote
def sleep_forever() -> None:
    held()


@ray.remote(num_cpus=1)
class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self) -> int:
        self.n += 1
        return self.n


def free() -> dict[str, float]:
    available = ray.available_resources()
    return {name: available.get(name, 0.0) for name in ("CPU", "GPU")}


def settled(expected: dict[str, float]) -> None:
    import time

    end = time.monotonic() + 10
    while free() != expected and time.monotonic() < end:
        time.sleep(0.05)
    assert free() == expected


def test_a_group_is_ready_and_tasks_run_in_it() -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2, "GPU": 1}], strategy="PACK", name="mine")
    assert group.wait(10) and ray.get(group.ready(), timeout=10) == group
    settled({"CPU": 1, "GPU": 1})
    task = gpu_ids.options(num_gpus=1, scheduling_strategy=within(group, 1))
    ids = ray.get([task.remote() for _ in range(3)], timeout=10)
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == 1
    assert get_placement_group("mine") == group and get_placement_group("mine").bundle_specs == [{"CPU": 1}, {"CPU": 2, "GPU": 1}]
    row = placement_group_table(group)
    assert row["state"] == "CREATED" and row["bundles"] == {0: {"CPU": 1}, 1: {"CPU": 2, "GPU": 1}}
    remove_placement_group(group)
    settled({"CPU": 4, "GPU": 2})
    assert placement_group_table(group)["state"] == "REMOVED"
    with pytest.raises(ValueError, match="was removed"):
        group.wait(1)
    with pytest.raises(ValueError, match="there is no placement group named 'mine'"):
        get_placement_group("mine")


def test_what_waits_for_room_gets_it_when_another_goes() -> None:
    first = placement_group([{"CPU": 3}])
    assert first.wait(10)
    second = placement_group([{"CPU": 2}, {"CPU": 1}])
    assert not second.wait(0.2)
    task = gpu_ids.options(scheduling_strategy=within(second)).remote()
    with pytest.raises(GetTimeoutError):
        ray.get(task, timeout=0.2)
    remove_placement_group(first)
    assert second.wait(10) and ray.get(task, timeout=10) == []


def test_removal_ends_what_runs_in_it() -> None:
    group = placement_group([{"CPU": 2}])
    assert group.wait(10)
    task = sleep_forever.options(scheduling_strategy=within(group)).remote()
    waiting = sleep_forever.options(num_cpus=2, scheduling_strategy=within(group)).remote()
    actor = Counter.options(scheduling_strategy=within(group, 0)).remote()
    assert ray.get(actor.add.remote(), timeout=10) == 1
    remove_placement_group(group)
    for ref in (task, waiting):
        with pytest.raises(TaskUnschedulableError, match="was removed"):
            ray.get(ref, timeout=10)
    with pytest.raises(RayActorError):
        ray.get(actor.add.remote(), timeout=10)
    settled({"CPU": 4, "GPU": 2})


def test_what_no_node_can_hold_fails_after_a_grace() -> None:
    group = placement_group([{"CPU": 40}])
    with pytest.raises(ValueError, match="no nodes can hold it: no node can hold bundle 0: it asks for 40 CPU"):
        group.wait(10)
    with pytest.raises(TaskUnschedulableError, match="no nodes can hold it"):
        ray.get(group.ready(), timeout=10)


def test_an_actor_waits_for_its_group_and_lives_in_it() -> None:
    first = placement_group([{"CPU": 4}])
    assert first.wait(10)
    second = placement_group([{"CPU": 4}])
    actor = Counter.options(scheduling_strategy=within(second)).remote()
    call = actor.add.remote()
    with pytest.raises(GetTimeoutError):
        ray.get(call, timeout=0.2)
    remove_placement_group(first)
    assert ray.get(call, timeout=10) == 1
    settled({"CPU": 0, "GPU": 2})


def test_a_demand_that_its_bundle_can_not_hold_fails_at_once() -> None:
    group = placement_group([{"CPU": 1}])
    with pytest.raises(TaskUnschedulableError, match="it asks for {CPU: 2} where bundle 0 of its placement group has {CPU: 1}"):
        ray.get(gpu_ids.options(num_cpus=2, scheduling_strategy=within(group, 0)).remote(), timeout=10)


def test_groups_end_with_their_job_and_names_are_taken() -> None:
    placement_group([{"CPU": 1}], name="one")
    with pytest.raises(ValueError, match="the name 'one' is taken"):
        placement_group([{"CPU": 1}], name="one")


def test_groups_can_be_passed_to_tasks() -> None:
    group = placement_group([{"CPU": 2}])

    @ray.remote
    def inside(given: Any) -> Any:
        assert given.wait(10)
        return ray.get(gpu_ids.options(scheduling_strategy=within(given, 0)).remote())

    assert ray.get(inside.remote(group), timeout=20) == []


@ray.remote(num_cpus=0)
def current() -> Any:
    group = get_current_placement_group()
    return None if group is None else group.id.hex()


@ray.remote(num_cpus=0)
def families() -> Any:
    """In which groups this task is, and its children with their children."""
    context = ray.get_runtime_context()
    own = context.get_placement_group_id()
    children = [current.remote(), current.options(scheduling_strategy="DEFAULT").remote(), grandchildren.remote()]
    return own, captures(context), *ray.get(children)


@ray.remote(num_cpus=0)
def grandchildren() -> Any:
    return ray.get(current.remote())


def captures(context: Any) -> bool:
    return bool(context.should_capture_child_tasks_in_placement_group)


@ray.remote(num_cpus=0)
class Family:
    def __init__(self) -> None:
        self.at_birth = ray.get(current.remote())

    def groups(self) -> Any:
        child = Where.remote()
        return self.at_birth, ray.get(families.remote()), ray.get(child.where.remote())


@ray.remote(num_cpus=0)
class Where:
    def where(self) -> Any:
        return ray.get(current.remote())


def test_children_go_into_the_group_of_their_parent_if_it_captures_them() -> None:
    group = placement_group([{"CPU": 1}])
    own = group.id.hex()
    assert get_current_placement_group() is None and captures(ray.get_runtime_context())
    plain, caught = (families.options(scheduling_strategy=within(group, 0, capturing)) for capturing in (None, True))
    assert ray.get(plain.remote(), timeout=20) == (own, False, None, None, None)
    assert ray.get(caught.remote(), timeout=20) == (own, True, own, None, own)
    assert ray.get(families.remote(), timeout=20) == (None, False, None, None, None), "the worker is not in it any more"
    actor = Family.options(scheduling_strategy=within(group, 0, True)).remote()
    assert ray.get(actor.groups.remote(), timeout=20) == (own, (own, True, own, None, own), own)
    free = Family.options(scheduling_strategy=within(group, 0)).remote()
    assert ray.get(free.groups.remote(), timeout=20) == (None, (None, False, None, None, None), None)


def test_what_was_captured_ends_with_the_group() -> None:
    @ray.remote(num_cpus=0)
    def parent() -> None:
        ray.get(sleep_forever.remote())

    group = placement_group([{"CPU": 2}])
    ref = parent.options(scheduling_strategy=within(group, 0, True)).remote()
    settled({"CPU": 2, "GPU": 2})
    remove_placement_group(group)
    with pytest.raises(TaskUnschedulableError, match="was removed"):
        ray.get(ref, timeout=20)
    settled({"CPU": 4, "GPU": 2})


def test_the_node_that_init_starts_has_labels() -> None:
    assert [node["Labels"] for node in ray.nodes()] == [{"zone": "here"}]
    assert ray.get(gpu_ids.options(label_selector={"zone": "in(here, there)"}).remote(), timeout=10) == []
    with pytest.raises(TaskUnschedulableError, match="it asks for a node where zone is 'there', and there is none among 1 node"):
        ray.get(gpu_ids.options(label_selector={"zone": "there"}).remote(), timeout=10)
    actor = Counter.options(label_selector={"zone": "!here"}).remote()
    with pytest.raises(RayActorError, match="it asks for a node where zone is not 'here'"):
        ray.get(actor.add.remote(), timeout=10)


def test_one_node_can_be_asked_for() -> None:
    [node] = ray.nodes()
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    assert ray.get(gpu_ids.options(scheduling_strategy=strategy).remote(), timeout=10) == []
    with pytest.raises(TaskUnschedulableError, match="there is no such node"):
        other = NodeAffinitySchedulingStrategy("00" * 16, soft=False)
        ray.get(gpu_ids.options(scheduling_strategy=other).remote(), timeout=10)
