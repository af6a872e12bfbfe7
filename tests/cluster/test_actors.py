"""The API of actors: making them, what is refused, and what they know of themselves."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.util.state import list_actors

from .actors import Box, Counter, PlainCounter
from .driving import PATIENCE_S, Script, eventually

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


# -- making them --------------------------------------------------------------------------------------------------------


def test_an_actor_keeps_its_state_between_calls() -> None:
    counter = Counter.remote(10)
    assert [ray.get(counter.add.remote()) for _ in range(3)] == [11, 12, 13]
    assert ray.get([counter.add.remote(5) for _ in range(3)]) == [18, 23, 28]


@pytest.mark.processes("it compares processes")
def test_each_actor_is_a_process_of_its_own() -> None:
    boxes = [Box.remote() for _ in range(3)]
    pids = ray.get([box.pid.remote() for box in boxes])
    assert len({*pids, os.getpid()}) == 4
    assert ray.get([box.pid.remote() for box in boxes]) == pids


def test_constructor_arguments_of_all_kinds() -> None:
    assert ray.get(Counter.remote(1, step=2).add.remote()) == 3
    assert ray.get(Counter.remote(start=ray.put(5)).get.remote()) == 5
    late = ray.remote(lambda: 7).remote()
    assert ray.get(Counter.remote(late, step=ray.put(3)).add.remote()) == 10
    assert ray.get(Box.remote(bytes(500_000)).get.remote()) == bytes(500_000)
    (inner,) = ray.get(Box.remote([ray.put("nested")]).get.remote())
    assert ray.get(inner) == "nested"


def test_a_class_with_a_decorator_without_and_with_options() -> None:
    @ray.remote
    class Bare:
        def f(self) -> str:
            return "bare"

    @ray.remote(num_cpus=1, max_restarts=2)
    class Chosen:
        def f(self) -> str:
            return "chosen"

    assert ray.get([Bare.remote().f.remote(), Chosen.remote().f.remote()]) == ["bare", "chosen"]
    assert (Bare.__name__, Bare.__doc__, Counter.__doc__) == ("Bare", None, "A counter.")
    assert repr(Counter) == "ActorClass(PlainCounter)"


def test_options_make_another_class_and_leave_the_first_alone() -> None:
    many = Counter.options(max_restarts=5).options(name="counted")
    actor = many.remote(1)
    plain = Counter.remote(2)
    assert ray.get([actor.get.remote(), plain.get.remote()]) == [1, 2]
    found = {row["actor_id"]: (row["name"], row["max_restarts"]) for row in list_actors()}
    assert found[actor._actor_id.hex()] == ("counted", 5)
    assert found[plain._actor_id.hex()] == ("", 0)


def test_a_class_made_by_a_function_is_another_each_time() -> None:
    def make(factor: int) -> Any:
        @ray.remote
        class Times:
            def of(self, x: int) -> int:
                return factor * x

        return Times

    actors = [make(i).remote() for i in range(3)]
    assert ray.get([actor.of.remote(5) for actor in actors]) == [0, 5, 10]


def test_a_class_in_the_globals_of_a_task_and_of_another_actor() -> None:
    @ray.remote
    def count() -> int:
        return int(ray.get(Counter.options(max_restarts=1).remote(4).add.remote()))

    assert ray.get(count.remote()) == 5
    assert ray.get(Box.remote().run.remote(lambda cls: ray.get(cls.remote(6).get.remote()), Counter)) == 6


def test_a_class_that_makes_more_of_itself() -> None:
    @ray.remote
    class Node:
        def __init__(self, depth: int) -> None:
            self.children = [Node.remote(depth - 1) for _ in range(2)] if depth else []

        def count(self) -> int:
            return 1 + sum(ray.get([child.count.remote() for child in self.children]))

    assert ray.get(Node.remote(2).count.remote(), timeout=PATIENCE_S) == 7


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_calling_directly_says_what_to_write() -> None:
    counter = Counter.remote()
    with pytest.raises(TypeError, match=r"use PlainCounter\.remote\(\.\.\.\)"):
        Counter()
    with pytest.raises(TypeError, match=r"use \.add\.remote\(\.\.\.\)"):
        counter.add()
    with pytest.raises(TypeError):
        counter()


def test_wrong_arguments_are_an_error_where_the_call_stands() -> None:
    counter: Any = Counter.remote()
    wrong_class: Any = Counter
    for make in (lambda: wrong_class.remote(1, 2), lambda: wrong_class.remote(stop=1), ray.remote(Odd).remote):
        with pytest.raises(TypeError, match=r"PlainCounter\(\)|Odd\(\)"):
            make()
    for call in (lambda: counter.add.remote(1, 2), lambda: counter.get.remote(1), lambda: counter.add.remote(time=1)):
        with pytest.raises(TypeError, match=r"PlainCounter\.(add|get)\(\)"):
            call()
    odd: Any = ray.remote(Odd).remote(1)
    for args, kwargs in (((), {"a": 1}), ((1, 2, 3, 4), {}), ((1, 2), {}), ((), {})):
        with pytest.raises(TypeError, match=r"Odd\.f\(\)"):
            odd.f.remote(*args, **kwargs)
    assert ray.get(odd.f.remote(1, 2, c=3)) == (1, 2, 3, {})
    assert ray.get(odd.f.remote(1, b=4, c=3, d=5)) == (1, 4, 3, {"d": 5})
    assert ray.get(counter.get.remote()) == 0


class Odd:
    def __init__(self, value: int, /) -> None:
        self.value = value

    def f(self, a: int, /, b: int = 2, *, c: int, **more: int) -> Any:
        return a, b, c, more


def test_arguments_that_can_not_be_sent() -> None:
    box = Box.remote()
    with pytest.raises(TypeError, match=r"argument 2 of Box\.same\(\): cannot serialize a generator"):
        box.same.remote(1, (i for i in range(3)))
    with pytest.raises(TypeError, match=r"argument key of Box\.same\(\)"):
        box.same.remote(key=(i for i in range(3)))
    with pytest.raises(TypeError, match=r"argument 1 of Box\(\)"):
        Box.remote(i for i in range(3))
    assert ray.get(box.same.remote(1)) == ((1,), {})


def test_names_that_are_no_methods() -> None:
    class Named(PlainCounter):
        constant = 5

        @property
        def double(self) -> int:
            return 2 * self.value

        def read(self, name: str) -> Any:
            return getattr(self, name)

    actor: Any = ray.remote(Named).remote(4)
    for name in ("nothing", "constant", "double", "value", "__len__", "_private"):
        with pytest.raises(AttributeError, match=f"Named has no method '{name}': its methods are add, get, pid, read"):
            getattr(actor, name)
        assert not hasattr(actor, name)
    assert ray.get([actor.read.remote("double"), actor.read.remote("constant")]) == [8, 5]


def test_an_actor_class_can_not_be_inherited_from() -> None:
    with pytest.raises(TypeError, match="can not be inherited from"):

        class Child(Counter):  # type: ignore[misc,valid-type]
            pass


OPTIONS: list[dict[str, Any]] = [
    {"max_restart": 1},
    {"num_returns": 2},
    {"max_retries": 2},
    {"max_restarts": -2},
    {"max_restarts": 1.5},
    {"max_task_retries": -2},
    {"max_pending_calls": -2},
    {"name": ""},
    {"name": 5},
    {"namespace": ""},
    {"lifetime": "for ever"},
    {"get_if_exists": 1, "name": "x"},
    {"get_if_exists": True},
    {"num_cpus": -1},
    {"num_cpus": "2"},
    {"num_gpus": -1},
    {"num_gpus": 1.5},
    {"memory": -1},
    {"resources": {"CPU": 1}},
    {"resources": {"licence": -1}},
    {"scheduling_strategy": "NOWHERE"},
]


@pytest.mark.parametrize("chosen", OPTIONS, ids=str)
def test_options_that_are_unknown_or_wrong(chosen: dict[str, Any]) -> None:
    (name, *_) = chosen
    with pytest.raises(ValueError, match=name):
        ray.remote(**chosen)(PlainCounter)
    with pytest.raises(ValueError, match=name):
        Counter.options(**chosen)


@pytest.mark.parametrize(
    "chosen",
    [{"num_return": 2}, {"num_returns": -1}, {"max_task_retries": -2}, {"num_cpus": 1}, {"concurrency_group": 1}],
    ids=str,
)
def test_options_of_methods_that_are_unknown_or_wrong(chosen: dict[str, Any]) -> None:
    (name,) = chosen
    with pytest.raises(ValueError, match=name):
        ray.method(**chosen)
    with pytest.raises(ValueError, match=name):
        Counter.remote().add.options(**chosen)


def test_method_as_a_decorator() -> None:
    method: Any = ray.method
    for args, chosen in (((), {}), ((5,), {}), ((len,), {"num_returns": 2})):
        with pytest.raises(TypeError, match="keyword options"):
            method(*args, **chosen)

    @ray.remote
    class Decorated:
        @ray.method
        def bare(self) -> int:
            return 1

        @ray.method(num_returns=2)
        def pair(self) -> tuple[int, int]:
            return 2, 3

        @staticmethod
        @ray.method(num_returns=2)
        def static_pair() -> list[int]:
            return [4, 5]

    actor: Any = Decorated.remote()
    assert ray.get([actor.bare.remote(), *actor.pair.remote(), *actor.static_pair.remote()]) == [1, 2, 3, 4, 5]


def test_a_class_that_can_not_be_sent_to_a_worker() -> None:
    lock = threading.Lock()

    @ray.remote
    class Locked:
        def f(self) -> bool:
            return bool(lock.locked())

    with pytest.raises(TypeError, match=r"cannot export (\S+\.)?Locked\(\) to the workers"):
        Locked.remote()


@pytest.mark.parametrize("given", [5, "counter", None, PlainCounter(), Counter])
def test_only_handles_can_be_killed(given: Any) -> None:
    with pytest.raises(TypeError, match="takes the handle of an actor"):
        ray.kill(given)


def test_exit_actor_elsewhere() -> None:
    with pytest.raises(TypeError, match="not an actor"):
        ray.actor.exit_actor()
    with pytest.raises(TypeError, match="not an actor"):
        ray.get(ray.remote(lambda: ray.actor.exit_actor()).remote())  # noqa: PLW0108 - it is found when it runs


# -- what it knows of itself --------------------------------------------------------------------------------------------


def test_an_actor_knows_itself() -> None:
    @ray.remote
    class Knowing:
        def __init__(self) -> None:
            self.born_as = self.know()

        def know(self) -> dict[str, Any]:
            context = ray.get_runtime_context()
            return {
                "actor": context.get_actor_id(),
                "name": context.get_actor_name(),
                "handle": context.current_actor,
                "restarted": context.was_current_actor_reconstructed,
                "namespace": context.namespace,
                "job": context.get_job_id(),
                "node": context.get_node_id(),
                "resources": context.get_assigned_resources(),
                "gpus": ray.get_gpu_ids(),
            }

        def at_birth(self) -> dict[str, Any]:
            return self.born_as

        def task(self) -> tuple[Any, ...]:
            context = ray.get_runtime_context()
            return context.get_task_id(), context.get_task_name(), context.get()["actor_id"], context.get_worker_id()

    here = ray.get_runtime_context()
    actor: Any = Knowing.options(name="knowing", resources={}).remote()
    expected = {
        "actor": actor._actor_id.hex(),
        "name": "knowing",
        "handle": actor,
        "restarted": False,
        "namespace": here.namespace,
        "job": here.get_job_id(),
        "node": here.get_node_id(),
        "resources": {},
        "gpus": [],
    }
    assert ray.get(actor.know.remote()) == expected
    assert ray.get(actor.at_birth.remote()) == expected
    ref = actor.task.remote()
    task_id, name, actor_id, worker_id = ray.get(ref)
    assert (task_id, name, actor_id) == (ref.task_id().hex(), "Knowing.task", actor._actor_id.hex())
    (row,) = [row for row in list_actors() if row["name"] == "knowing" and row["state"] != "DEAD"]
    assert row["worker_id"] == worker_id
    assert ray.get(Knowing.remote().know.remote())["name"] == ""


def test_who_is_no_actor_knows_that_too() -> None:
    def know() -> tuple[Any, ...]:
        context = ray.get_runtime_context()
        return context.get_actor_id(), context.get_actor_name(), context.was_current_actor_reconstructed

    assert know() == ray.get(ray.remote(know).remote()) == (None, None, False)
    with pytest.raises(RuntimeError, match="this is a task or a driver"):
        ray.get_runtime_context().current_actor


def test_resources_are_held_as_long_as_the_actor_lives() -> None:
    @ray.remote(num_cpus=1.5)
    class Holder:
        def resources(self) -> dict[str, float]:
            return ray.get_runtime_context().get_assigned_resources()

    def free() -> float:
        return ray.available_resources().get("CPU", 0.0)

    holder = Holder.remote()
    assert ray.get(holder.resources.remote()) == {"CPU": 1.5}
    eventually(lambda: free() == 0.5, "1.5 CPUs in use")
    nothing_held = [Counter.remote() for _ in range(3)]
    assert ray.get([counter.get.remote() for counter in nothing_held]) == [0, 0, 0]
    waiting = Holder.remote().resources.remote()
    assert ray.wait([waiting], timeout=0)[0] == []
    del holder
    assert ray.get(waiting, timeout=PATIENCE_S) == {"CPU": 1.5}
    eventually(lambda: free() == 2.0, "both CPUs free")


def test_gpus_are_assigned_to_an_actor(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(num_gpus=3)
        @ray.remote
        class Gpu:
            def __init__(self):
                self.born = os.environ.get("CUDA_VISIBLE_DEVICES")
            def ids(self):
                assert self.born == os.environ.get("CUDA_VISIBLE_DEVICES")
                return ray.get_gpu_ids(), self.born
        two, half, other_half = Gpu.options(num_gpus=2).remote(), *[Gpu.options(num_gpus=0.5).remote() for _ in range(2)]
        ids = [ray.get(actor.ids.remote()) for actor in (two, half, other_half)]
        assert sorted(ids[0][0] + ids[1][0]) == [0, 1, 2] and ids[1] == ids[2], ids
        assert all(text == ",".join(map(str, gpus)) for gpus, text in ids), ids
        assert ray.get(Gpu.remote().ids.remote())[0] == []
        waiting = Gpu.options(num_gpus=1).remote()
        ref = waiting.ids.remote()
        assert ray.wait([ref], timeout=0)[0] == []
        ray.kill(two)
        assert ray.get(ref)[0][0] in ids[0][0]
        say("works")
        """
    )
    program.until("works")
    assert program.finish()[::2] == (0, "")
