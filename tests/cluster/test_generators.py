"""Generators: references to items as they are made, errors in place, room, the end, and actors of each kind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError, WorkerCrashedError

from .driving import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import pytest


@ray.remote
def count(n: int, error: str = "") -> Iterator[int]:
    yield from range(n)
    if error:
        raise ValueError(error)


@ray.remote
def logged(path: Any, n: int) -> Iterator[int]:
    """A generator that notes each item which it makes, and its end."""
    try:
        for number in range(n):
            with open(path, "a") as file:
                file.write("i")
            yield number
    finally:
        with open(path, "a") as file:
            file.write("E")


def noted(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@ray.remote
class Plain:
    def count(self, n: int, error: str = "") -> Iterator[int]:
        yield from range(n)
        if error:
            raise ValueError(error)

    def logged(self, path: Any, n: int) -> Iterator[int]:
        yield from logged._function(path, n)

    def ping(self) -> str:
        return "pong"


@ray.remote
class Asynchronous:
    async def count(self, n: int, error: str = "") -> Any:
        for number in range(n):
            await asyncio.sleep(0)
            yield number
        if error:
            raise ValueError(error)

    async def logged(self, path: Any, n: int) -> Any:
        for number in logged._function(path, n):
            yield number

    def plain(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def ping(self) -> str:
        return "pong"


ACTORS = {
    "plain": Plain,
    "threaded": Plain.options(max_concurrency=3),
    "asynchronous": Asynchronous,
}
EACH_ACTOR = pytest.mark.parametrize("kind", ACTORS)


def values(generator: Any) -> list[Any]:
    return [ray.get(ref, timeout=PATIENCE_S) for ref in generator]


# -- tasks ----------------------------------------------------------------------------------------------------------


def test_a_generator_gives_references_to_its_items_in_their_order() -> None:
    generator = count.remote(5)
    assert isinstance(generator, ray.ObjectRefGenerator) and values(generator) == [0, 1, 2, 3, 4]
    assert generator.is_finished() and list(generator) == [], "and no more"
    assert ray.get(generator.completed(), timeout=PATIENCE_S) is None
    assert values(count.remote(0)) == []


def test_items_are_there_before_the_generator_is_over(tmp_path: Any) -> None:
    @ray.remote
    def until(path: Any) -> Iterator[str]:
        yield "first"
        yield "second"
        while not path.exists():
            threading.Event().wait(0.01)

    generator = until.remote(tmp_path / "go on")
    assert [ray.get(next(generator), timeout=PATIENCE_S) for _ in range(2)] == ["first", "second"]
    assert not generator.next_ready() and not generator.is_finished()
    (tmp_path / "go on").touch()
    assert list(generator) == []


def test_an_exception_is_the_last_item() -> None:
    *good, bad = count.remote(2, "no third")
    assert ray.get(good) == [0, 1]
    with pytest.raises(ValueError, match="no third") as caught:
        ray.get(bad)
    assert isinstance(caught.value, RayTaskError)


def test_the_reference_to_the_end_does_not_tell_of_exceptions() -> None:
    assert ray.get(count.remote(2, "oops").completed(), timeout=PATIENCE_S) is None


def test_large_items_are_read_where_they_lie() -> None:
    @ray.remote
    def arrays(n: int) -> Iterator[Any]:
        for number in range(n):
            yield np.full(100_000, number)

    assert [int(array[-1]) for array in values(arrays.remote(5))] == [0, 1, 2, 3, 4]


def test_items_may_have_references_inside_and_be_arguments() -> None:
    @ray.remote
    def boxes(refs: list[Any]) -> Iterator[list[Any]]:
        for ref in refs:
            yield [ref, ray.put("made there")]

    @ray.remote
    def opened(box: list[Any]) -> list[Any]:
        return ray.get(box)

    generator = boxes.remote([ray.put(1), ray.put(2)])
    assert ray.get([opened.remote(ref) for ref in generator], timeout=PATIENCE_S) == [[1, "made there"], [2, "made there"]]


def test_a_task_may_call_a_generator() -> None:
    @ray.remote
    def total() -> int:
        return sum(ray.get(ref) for ref in count.remote(100))

    assert ray.get(total.remote(), timeout=PATIENCE_S) == 4950


def test_several_generators_run_side_by_side() -> None:
    generators = [count.remote(50) for _ in range(4)]
    pairs = zip(*generators, strict=True)
    assert [ray.get(list(refs)) for refs in pairs] == [[n] * 4 for n in range(50)]


def test_an_item_that_does_not_pickle_is_an_error_in_its_place() -> None:
    @ray.remote
    def locks() -> Iterator[Any]:
        yield 1
        yield threading.Lock()
        yield 3

    one, bad = locks.remote()
    assert ray.get(one) == 1
    with pytest.raises(TypeError, match="lock"):
        ray.get(bad)


def test_threads_share_a_generator() -> None:
    generator = count.remote(2000)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.extend(values(generator))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(seen) == list(range(2000))


# -- room -----------------------------------------------------------------------------------------------------------


def test_a_generator_pauses_while_items_wait_to_be_taken(tmp_path: Path) -> None:
    log = tmp_path / "log"
    generator = logged.options(_generator_backpressure_num_objects=2).remote(log, 5)
    eventually(lambda: noted(log) == "ii", "two items")
    ray.get(count.options(num_cpus=2).remote(1).completed(), timeout=PATIENCE_S)  # it lends its CPU meanwhile
    assert noted(log) == "ii"
    next(generator)
    eventually(lambda: noted(log) == "iii", "the third item")
    assert values(generator) == [1, 2, 3, 4] and noted(log) == "iiiiiE"


def test_by_default_some_items_may_wait_and_not_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    most = 4096
    generator = logged.remote(log, most + 100)
    eventually(lambda: len(noted(log)) == most, "as many items as may wait")
    assert len(values(generator)) == most + 100


@pytest.mark.parametrize("limit", [None, -1])
def test_a_generator_without_limit_does_not_pause(limit: Any) -> None:
    generator = count.options(_generator_backpressure_num_objects=limit).remote(6000)
    eventually(lambda: generator._stream.ended, "its end")
    assert len(list(generator)) == 6000


def test_who_waits_for_the_end_has_it_come() -> None:
    generator = count.options(_generator_backpressure_num_objects=1).remote(100)
    assert ray.get(generator.completed(), timeout=PATIENCE_S) is None
    assert len(list(generator)) == 100


def test_large_items_wait_too(tmp_path: Path) -> None:
    log = tmp_path / "log"

    @ray.remote
    def large(n: int) -> Iterator[Any]:
        for _ in range(n):
            with open(log, "a") as file:
                file.write("i")
            yield np.zeros(3_000_000)

    generator = large.remote(5)
    eventually(lambda: noted(log) == "iii", "72 MB")
    ray.get([ray.remote(lambda: None).remote() for _ in range(100)])
    assert noted(log) == "iii", "and no more meanwhile"
    next(generator)
    eventually(lambda: len(noted(log)) > 3, "room for another")
    assert len(list(generator)) == 4


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_generator_that_is_dropped_stops(tmp_path: Path) -> None:
    log = tmp_path / "log"
    generator = logged.options(_generator_backpressure_num_objects=1).remote(log, 1000)
    assert ray.get(next(generator)) == 0
    del generator
    eventually(lambda: noted(log).endswith("E"), "its end")
    assert len(noted(log)) < 10
    eventually(lambda: ray.available_resources().get("CPU") == 2.0, "its CPU is free")


def test_who_keeps_the_reference_to_the_end_has_it_go_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    completed = logged.options(_generator_backpressure_num_objects=1).remote(log, 20).completed()
    assert ray.get(completed, timeout=PATIENCE_S) is None
    assert noted(log) == "i" * 20 + "E"


def test_nothing_of_a_generator_is_left() -> None:
    generator = count.remote(10)
    held = [next(generator), next(generator)]
    ray.get(generator.completed(), timeout=PATIENCE_S)
    owner, task_id = generator._worker.owner, generator._stream.task_id
    del generator
    eventually(lambda: task_id not in owner.streams, "it is forgotten")
    assert ray.get(held) == [0, 1]
    held.clear()
    eventually(lambda: not [o for o in list(owner.memory) if o[:16] == task_id], "its items are forgotten")


# -- waiting --------------------------------------------------------------------------------------------------------


def test_wait_takes_generators(tmp_path: Any) -> None:
    @ray.remote
    def after(path: Any) -> Iterator[int]:
        while not path.exists():
            threading.Event().wait(0.01)
        yield 1

    quick, slow, ref = count.remote(2), after.remote(tmp_path / "now"), ray.put(0)
    assert ray.wait([slow], timeout=0) == ([], [slow])
    ready, rest = ray.wait([slow, quick, ref], num_returns=2, timeout=PATIENCE_S)
    assert ready == [quick, ref] and rest == [slow]
    (tmp_path / "now").touch()
    assert ray.wait([slow], timeout=PATIENCE_S) == ([slow], [])
    assert ray.get(next(slow)) == 1 and values(quick) == [0, 1]
    assert ray.wait([quick, slow], num_returns=2, timeout=PATIENCE_S) == ([quick, slow], []), "there is nothing to wait for"


def test_generators_are_drained_with_wait() -> None:
    waiting: list[Any] = [count.options(_generator_backpressure_num_objects=1).remote(20) for _ in range(3)]
    seen = []
    while waiting:
        [generator], _ = ray.wait(waiting, timeout=PATIENCE_S)
        seen += [ray.get(ref) for ref in itertools.islice(generator, 1)]
        if generator.is_finished():
            waiting.remove(generator)
    assert sorted(seen) == sorted([*range(20)] * 3)


def test_wait_refuses_what_is_no_reference_beside_a_generator() -> None:
    generator = count.remote(1)
    with pytest.raises(ValueError, match="twice"):
        ray.wait([generator, generator])
    with pytest.raises(TypeError, match="int"):
        ray.wait([generator, 1])


def test_async_for() -> None:
    async def read(n: int) -> list[int]:
        return [await ref async for ref in count.options(_generator_backpressure_num_objects=2).remote(n)]

    async def main() -> list[list[int]]:
        return await asyncio.wait_for(asyncio.gather(*[read(n) for n in (0, 5, 50)]), PATIENCE_S)

    assert asyncio.run(main()) == [[*range(n)] for n in (0, 5, 50)]


def test_who_gives_up_waiting_in_a_coroutine_loses_nothing(tmp_path: Any) -> None:
    @ray.remote
    def after(path: Any) -> Iterator[int]:
        while not path.exists():
            threading.Event().wait(0.01)
        yield 7

    async def main() -> int:
        generator = after.remote(tmp_path / "now")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(generator.__anext__(), 0.01)
        (tmp_path / "now").touch()
        return await (await asyncio.wait_for(generator.__anext__(), PATIENCE_S))

    assert asyncio.run(main()) == 7


def test_ctrl_c_while_waiting_loses_nothing(tmp_path: Any) -> None:
    @ray.remote
    def after(path: Any) -> Iterator[int]:
        yield 1
        while not path.exists():
            threading.Event().wait(0.01)
        yield 2

    generator = after.remote(tmp_path / "now")
    assert ray.get(next(generator), timeout=PATIENCE_S) == 1
    thread = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        next(generator)
    thread.join()
    (tmp_path / "now").touch()
    assert ray.get(next(generator), timeout=PATIENCE_S) == 2


# -- actors ---------------------------------------------------------------------------------------------------------


@EACH_ACTOR
def test_methods_of_actors_yield(kind: str) -> None:
    actor = ACTORS[kind].remote()
    assert values(actor.count.remote(20)) == [*range(20)]
    *good, bad = actor.count.remote(2, "no third")
    assert ray.get(good) == [0, 1]
    with pytest.raises(ValueError, match="no third"):
        ray.get(bad)
    assert ray.get(actor.ping.remote(), timeout=PATIENCE_S) == "pong"


@EACH_ACTOR
def test_generators_of_actors_pause_and_stop(kind: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    actor = ACTORS[kind].remote()
    generator = actor.logged.options(_generator_backpressure_num_objects=3).remote(log, 1000)
    eventually(lambda: noted(log) == "iii", "as many items as may wait")
    if kind != "plain":
        assert ray.get(actor.ping.remote(), timeout=PATIENCE_S) == "pong", "others go on meanwhile"
    next(generator)
    eventually(lambda: noted(log) == "iiii", "another item")
    del generator
    eventually(lambda: noted(log).endswith("E"), "its end")
    assert ray.get(actor.ping.remote(), timeout=PATIENCE_S) == "pong"


def test_an_ordinary_generator_of_an_asynchronous_actor() -> None:
    assert values(Asynchronous.remote().plain.remote(3)) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["threaded", "asynchronous"])
def test_several_generators_of_one_actor_run_side_by_side(kind: str) -> None:
    actor = ACTORS[kind].remote()
    generators = [actor.count.options(_generator_backpressure_num_objects=1).remote(10) for _ in range(3)]
    assert [ray.get(list(refs), timeout=PATIENCE_S) for refs in zip(*generators, strict=True)] == [[n] * 3 for n in range(10)]


def test_calls_of_a_plain_actor_keep_their_order() -> None:
    actor = Plain.remote()
    generators = [actor.count.remote(3) for _ in range(3)]
    pong = actor.ping.remote()
    assert ray.get(pong, timeout=PATIENCE_S) == "pong"
    assert [values(generator) for generator in generators] == [[0, 1, 2]] * 3


def test_an_actor_that_dies_is_the_last_item() -> None:
    @ray.remote
    class Mortal:
        def items(self) -> Iterator[int]:
            yield 0
            while True:
                threading.Event().wait(0.01)
                yield 1

    actor = Mortal.remote()
    generator = actor.items.remote()
    assert ray.get(next(generator), timeout=PATIENCE_S) == 0
    ray.kill(actor)
    with pytest.raises(ActorDiedError):
        values(generator)
    assert list(generator) == []
    with pytest.raises(ActorDiedError):
        ray.get(generator.completed())


@pytest.mark.processes("it ends processes")
def test_the_callers_end_stops_the_generators_of_an_actor(tmp_path: Path) -> None:
    log = tmp_path / "log"
    actor = Plain.remote()

    @ray.remote(max_retries=0)
    def caller(actor: Any) -> None:
        generator = actor.logged.options(_generator_backpressure_num_objects=1).remote(log, 1000)
        next(generator)
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        ray.get(caller.remote(actor), timeout=PATIENCE_S)
    eventually(lambda: noted(log).endswith("E"), "its end")
    assert ray.get(actor.ping.remote(), timeout=PATIENCE_S) == "pong"


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_generator_can_not_be_passed_on() -> None:
    generator = count.remote(1)
    for attempt in (lambda: count.remote(generator), lambda: ray.put(generator), lambda: ray.put([generator])):
        with pytest.raises(TypeError, match="can not be passed to a task"):
            attempt()
    assert ray.get(generator) is generator


@pytest.mark.parametrize("number", [0, -2, 1.5])
def test_a_limit_that_makes_no_sense_is_refused(number: Any) -> None:
    with pytest.raises(ValueError, match="_generator_backpressure_num_objects"):
        count.options(_generator_backpressure_num_objects=number)


@pytest.mark.parametrize("returns", ["streaming", "dynamic"])
def test_only_generators_can_be_streamed(returns: str) -> None:
    with pytest.raises(ValueError, match="no yield"):
        ray.remote(num_returns=returns)(lambda: 1)
    actor = Plain.remote()
    with pytest.raises(ValueError, match="no yield"):
        actor.ping.options(num_returns=returns)


def test_what_other_generators_can_do_this_one_can_not() -> None:
    generator = count.remote(1)
    for name, arguments in (("send", (1,)), ("throw", (ValueError(),)), ("close", ())):
        with pytest.raises(NotImplementedError, match=name):
            getattr(generator, name)(*arguments)
        with pytest.raises(NotImplementedError, match=name):
            asyncio.run(getattr(generator, f"a{name}")(*arguments))


def test_an_asynchronous_generator_is_no_task() -> None:
    async def items() -> Any:
        yield 1

    with pytest.raises(ValueError, match="coroutine"):
        ray.remote(items)
