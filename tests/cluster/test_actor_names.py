"""Names of actors: finding them from anywhere, namespaces, names that are taken, detached actors, and the lists."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import ActorAlreadyExistsError, ActorDiedError
from zray.util import list_named_actors
from zray.util.state import list_actors

from .driving import PATIENCE_S, Script, assert_nothing_remains, eventually
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@ray.remote
class Counter:
    def __init__(self, start: int = 0) -> None:
        self.value = start

    def add(self, amount: int = 1) -> int:
        self.value += amount
        return self.value

    def pid(self) -> int:
        return os.getpid()


def forgotten(name: str) -> bool:
    """Whether nobody has the name any more."""
    return name not in list_named_actors()


# -- finding ------------------------------------------------------------------------------------------------------------


def test_an_actor_is_found_by_its_name() -> None:
    counter = Counter.options(name="found").remote(5)
    found = ray.get_actor("found")
    assert found == counter
    assert ray.get(found.add.remote()) == 6
    assert ray.get(counter.add.remote()) == 7


def test_an_actor_is_found_before_it_is_there() -> None:
    """The name is taken when ``remote`` returns, whatever the constructor waits for."""
    gate = ray.remote(Gate).options(max_concurrency=2).remote()
    counter = Counter.options(name="early").remote(gate.passed.remote(3))
    ref = ray.get_actor("early").add.remote()
    assert ray.wait([ref], timeout=0)[0] == []
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == 4
    del counter


class Gate:
    def __init__(self) -> None:
        import threading

        self.opened = threading.Event()

    def passed(self, value: Any) -> Any:
        assert self.opened.wait(PATIENCE_S)
        return value

    def open(self) -> None:
        self.opened.set()


def test_tasks_and_actors_find_it_too() -> None:
    @ray.remote
    def find(name: str) -> int:
        return int(ray.get(ray.get_actor(name).add.remote()))

    @ray.remote
    class Finder:
        def __init__(self, name: str) -> None:
            self.counter = ray.get_actor(name)

        async def add(self) -> int:
            return int(await self.counter.add.remote())

    counter = Counter.options(name="shared").remote()
    finder = Finder.remote("shared")
    refs = [find.remote("shared"), find.remote("shared"), finder.add.remote(), counter.add.remote()]
    assert sorted(ray.get(refs)) == [1, 2, 3, 4]


def test_an_actor_named_in_a_task_is_found_by_the_driver() -> None:
    @ray.remote
    class Maker:
        def make(self, name: str) -> None:
            self.counter = Counter.options(name=name).remote(7)

    maker = Maker.remote()
    ray.get(maker.make.remote("made elsewhere"))
    assert ray.get(ray.get_actor("made elsewhere").add.remote()) == 8
    del maker
    eventually(lambda: forgotten("made elsewhere"), "the end of an actor whose owner has ended")


def test_a_handle_that_was_found_keeps_the_actor() -> None:
    counter = Counter.options(name="kept").remote(1)
    found = ray.get_actor("kept")
    pid = ray.get(counter.pid.remote())
    del counter
    elsewhere = ray.remote(lambda: ray.get_actor("kept")).remote()
    ray.wait([elsewhere])
    del found
    found = ray.get(elsewhere)
    del elsewhere
    assert ray.get([found.add.remote(), found.pid.remote()]) == [2, pid]
    del found
    eventually(lambda: forgotten("kept"), "the end of the actor")


@pytest.mark.parametrize("name", ["nobody", "x" * 1000, "a b/ü"])
def test_a_name_that_nobody_has(name: str) -> None:
    with pytest.raises(ValueError, match=f"there is no actor named '{name}'"):
        ray.get_actor(name)
    with pytest.raises(ValueError, match="there is no actor named"):
        ray.get(ray.remote(lambda: ray.get_actor(name)).remote())
    counter = Counter.options(name=name).remote()
    assert ray.get_actor(name) == counter


def test_the_error_names_those_that_there_are() -> None:
    counter = Counter.options(name="the only one").remote()
    with pytest.raises(ValueError, match="its actors are 'the only one'"):
        ray.get_actor("another")
    del counter


@pytest.mark.parametrize(("name", "namespace"), [("", None), (None, None), (5, None), ("x", ""), ("x", 5)])
def test_what_is_no_name(name: Any, namespace: Any) -> None:
    with pytest.raises(ValueError, match="must be a string that is not empty"):
        ray.get_actor(name, namespace)


# -- taken names --------------------------------------------------------------------------------------------------------


def test_a_name_is_given_once() -> None:
    first = Counter.options(name="taken").remote(1)
    with pytest.raises(ActorAlreadyExistsError, match=r"'taken' is taken[\s\S]*get_if_exists=True") as caught:
        Counter.options(name="taken").remote(2)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ActorAlreadyExistsError):
        ray.get(ray.remote(lambda: Counter.options(name="taken").remote(3)).remote())
    assert ray.get(ray.get_actor("taken").add.remote()) == 2
    del first


def test_a_name_is_free_again_after_the_end() -> None:
    """For the one who killed it, at once."""
    for value in range(10):
        counter = Counter.options(name="again").remote(value)
        assert value % 2 or ray.get(counter.add.remote(0)) == value
        ray.kill(counter)
        assert forgotten("again")
        with pytest.raises(ValueError, match="no actor named 'again'"):
            ray.get_actor("again")
    with pytest.raises(ActorDiedError, match=r"actor Counter 'again' \([0-9a-f]+\) is dead"):
        ray.get(counter.add.remote())


@pytest.mark.parametrize("way", ["constructor", "exit", "crash", "scope"])
def test_however_it_ends_its_name_is_free(way: str) -> None:
    @ray.remote
    class Ends:
        def __init__(self) -> None:
            if way == "constructor":
                raise LookupError

        def end(self) -> None:
            if way == "exit":
                ray.actor.exit_actor()
            if way == "crash":
                crash()

    actor = Ends.options(name=way).remote()
    actor.end.remote()
    if way == "scope":
        del actor
    eventually(lambda: forgotten(way), "the end of the actor")
    assert ray.get(Counter.options(name=way).remote(3).add.remote()) == 4


def test_a_restarted_actor_keeps_its_name() -> None:
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Fragile:
        def crash(self) -> int:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                crash()
            return 1

    actor = Fragile.options(name="fragile").remote()
    assert ray.get(actor.crash.remote(), timeout=PATIENCE_S) == 1
    assert ray.get_actor("fragile") == actor
    with pytest.raises(ActorAlreadyExistsError):
        Fragile.options(name="fragile").remote()


def test_get_if_exists_gives_the_first() -> None:
    get = Counter.options(name="shared once", get_if_exists=True)
    first = get.remote(10)
    second = get.remote(20)
    assert first == second
    assert ray.get([first.add.remote(), second.add.remote()]) == [11, 12]
    pid = ray.get(first.pid.remote())
    del first
    assert ray.get(second.pid.remote()) == pid
    ray.kill(second)
    assert ray.get(get.remote(30).add.remote()) == 31


def test_many_tasks_want_the_same_actor_at_once() -> None:
    @ray.remote(num_cpus=0)
    def visit() -> tuple[Any, int]:
        counter = Counter.options(name="visited", get_if_exists=True).remote()
        return counter, ray.get(counter.add.remote())

    visits = ray.get([visit.remote() for _ in range(12)], timeout=PATIENCE_S)
    assert len({handle for handle, _ in visits}) == 1
    assert sorted(count for _, count in visits) == list(range(1, 13))
    assert ray.get(ray.get_actor("visited").add.remote()) == 13


def test_a_name_wanted_by_many_at_once_is_given_to_one() -> None:
    @ray.remote(num_cpus=0)
    def claim(number: int) -> Any:
        try:
            return [Counter.options(name="claimed", lifetime="detached").remote(number)]
        except ActorAlreadyExistsError:
            return None

    winners = [claimed for claimed in ray.get([claim.remote(i) for i in range(12)], timeout=PATIENCE_S) if claimed]
    assert len(winners) == 1
    assert winners[0][0] == ray.get_actor("claimed")
    ray.kill(winners[0][0])


# -- namespaces ---------------------------------------------------------------------------------------------------------


def test_namespaces_keep_names_apart() -> None:
    here = Counter.options(name="twin").remote(1)
    there = Counter.options(name="twin", namespace="elsewhere").remote(2)
    assert here != there
    assert ray.get_actor("twin") == here
    assert ray.get_actor("twin", namespace="elsewhere") == there
    with pytest.raises(ValueError, match="in namespace 'nowhere': it has no named actors"):
        ray.get_actor("twin", namespace="nowhere")
    with pytest.raises(ActorAlreadyExistsError, match="in namespace 'elsewhere'"):
        Counter.options(name="twin", namespace="elsewhere").remote()


def test_the_namespace_of_the_job_is_that_of_its_actors(script: Callable[..., Script]) -> None:
    program = script(
        """
        start(namespace="ours")
        @ray.remote
        class Named:
            def who(self):
                context = ray.get_runtime_context()
                return context.namespace, ray.get_actor("named") == context.current_actor
        actor = Named.options(name="named").remote()
        assert ray.get(actor.who.remote()) == ("ours", True)
        assert ray.get_runtime_context().namespace == "ours"
        assert ray.get_actor("named", namespace="ours") == actor
        assert ray.util.list_named_actors(all_namespaces=True) == [{"name": "named", "namespace": "ours"}]
        say("works")
        """
    )
    program.until("works")
    assert program.finish()[::2] == (0, "")


# -- lists --------------------------------------------------------------------------------------------------------------


def test_named_actors_are_listed_while_they_live() -> None:
    assert list_named_actors() == []
    counters = [Counter.options(name=f"number {i}").remote() for i in range(3)]
    unnamed = Counter.remote()
    other = Counter.options(name="other", namespace="elsewhere").remote()
    ray.get([counter.add.remote() for counter in [*counters, unnamed, other]])
    assert sorted(list_named_actors()) == ["number 0", "number 1", "number 2"]
    everywhere = list_named_actors(all_namespaces=True)
    assert {"name": "other", "namespace": "elsewhere"} in everywhere
    assert len(everywhere) == 4
    assert ray.get(ray.remote(lambda: sorted(list_named_actors())).remote()) == sorted(list_named_actors())
    ray.kill(counters[1])
    assert sorted(list_named_actors()) == ["number 0", "number 2"]


def test_all_actors_are_listed_with_what_is_known_of_them() -> None:
    counter = Counter.options(name="listed", max_restarts=3, num_cpus=0.5).remote()
    pid = ray.get(counter.pid.remote())

    def row() -> dict[str, Any]:
        (found,) = [row for row in list_actors() if row["actor_id"] == counter._actor_id.hex()]
        return found

    context = ray.get_runtime_context()
    expected = {
        "class_name": "Counter",
        "state": "ALIVE",
        "job_id": context.get_job_id(),
        "name": "listed",
        "ray_namespace": context.namespace,
        "detached": False,
        "node_id": context.get_node_id(),
        "pid": pid,
        "restarts": 0,
        "max_restarts": 3,
        "resources": {"CPU": 0.5},
        "reason": "",
    }
    assert expected.items() <= row().items()
    ray.kill(counter)
    assert row()["state"] == "DEAD"
    assert "zray.kill()" in row()["reason"]


def test_an_actor_is_listed_as_soon_as_it_is_made() -> None:
    for _ in range(10):
        counter = Counter.remote()
        assert counter._actor_id.hex() in [row["actor_id"] for row in list_actors()]


# -- detached -----------------------------------------------------------------------------------------------------------


def test_a_detached_actor_needs_no_handle_and_no_owner() -> None:
    @ray.remote
    class Maker:
        def make(self) -> int:
            return int(ray.get(Counter.options(name="detached", lifetime="detached").remote(1).add.remote()))

    maker = Maker.remote()
    assert ray.get(maker.make.remote()) == 2
    ray.kill(maker)
    eventually(lambda: all(a["state"] == "DEAD" for a in list_actors() if a["class_name"] == "Maker"), "the end of its owner")
    found = ray.get_actor("detached")
    assert ray.get(found.add.remote()) == 3
    del found
    assert ray.get([ray.remote(lambda: ray.get(ray.get_actor("detached").add.remote())).remote() for _ in range(2)])
    assert ray.get(ray.get_actor("detached").add.remote()) == 6
    ray.kill(ray.get_actor("detached"))
    assert forgotten("detached")


def test_a_detached_actor_outlives_the_task_that_made_it() -> None:
    @ray.remote(max_calls=1)
    def make(number: bytes) -> None:
        Counter.options(name="left alone", lifetime="detached", max_restarts=1).remote(len(number))

    ray.get(make.remote(bytes(300_000)))
    found = eventually(lambda: not forgotten("left alone") and ray.get_actor("left alone"), "the actor")
    assert ray.get(found.add.remote(0), timeout=PATIENCE_S) == 300_000
    ray.kill(found)


def test_a_detached_actor_without_a_name() -> None:
    counter = Counter.options(lifetime="detached").remote(3)
    ref = ray.remote(lambda handles: ray.get(handles[0].add.remote())).remote([counter])
    assert ray.get(ref) == 4
    ray.kill(counter)


def test_detached_actors_end_with_the_cluster(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Stays:
            def pid(self):
                return os.getpid()
        actors = [Stays.options(name=str(i), lifetime="detached").remote() for i in range(3)]
        say("pids", *ray.get([actor.pid.remote() for actor in actors]))
        ray.shutdown()
        start()
        say("left", ray.util.list_named_actors(all_namespaces=True))
        """
    )
    session = program.session
    pids = program.until("pids").split()
    assert len(pids) == 3
    assert program.until("left") == "[]"
    assert program.finish()[::2] == (0, "")
    assert_nothing_remains(session)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
