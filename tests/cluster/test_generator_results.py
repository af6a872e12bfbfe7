"""Generators that fail and are run again, and those whose number of results is said."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import WorkerCrashedError

from .driving import PATIENCE_S
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers need not import pytest


@ray.remote
def count(n: int, error: str = "") -> Iterator[int]:
    yield from range(n)
    if error:
        raise ValueError(error)


def values(generator: Any) -> list[Any]:
    return [ray.get(ref, timeout=PATIENCE_S) for ref in generator]


# -- failures -------------------------------------------------------------------------------------------------------


def attempts(path: Path) -> int:
    with open(path, "ab") as file:
        file.write(b"x")
        return file.tell()


@pytest.mark.parametrize("where", [0, 1, 3, 5])
def test_a_worker_that_dies_costs_no_item(where: int, tmp_path: Any) -> None:
    @ray.remote
    def mortal(path: Any) -> Iterator[Any]:
        first = attempts(path) == 1
        for number in range(5):
            if first and number == where:
                crash()
            yield np.full(50_000, number) if number % 2 else number
        if first and where == 5:
            crash()

    assert [int(np.max(value)) for value in values(mortal.remote(tmp_path / "attempts"))] == [0, 1, 2, 3, 4]


def test_a_task_that_dies_too_often_is_the_last_item() -> None:
    @ray.remote(max_retries=0)
    def mortal() -> Iterator[int]:
        yield 0
        while True:
            threading.Event().wait(0.01)
            if ray.get_runtime_context().get_task_id():
                crash()
            yield 1

    generator = mortal.remote()
    *_, last = generator
    with pytest.raises(WorkerCrashedError):
        ray.get(last)
    with pytest.raises(WorkerCrashedError):
        ray.get(generator.completed())


def test_an_exception_that_is_to_be_tried_again_is_no_item(tmp_path: Any) -> None:
    @ray.remote(retry_exceptions=[KeyError], max_retries=1)
    def moody(path: Any) -> Iterator[int]:
        attempt = attempts(path)
        yield 0
        yield 1
        if attempt == 1:
            raise KeyError("once")
        yield 2

    assert values(moody.remote(tmp_path / "attempts")) == [0, 1, 2]


@ray.remote(max_restarts=2, max_task_retries=2)
class Phoenix:
    def items(self, path: Any) -> Iterator[Any]:
        first = attempts(path) == 1
        for number in range(6):
            if first and number == 3:
                crash()
            yield np.full(50_000, number) if number % 2 else [ray.put(number)]


@ray.remote(max_restarts=2, max_task_retries=2)
class AsynchronousPhoenix:
    async def items(self, path: Any) -> Any:
        first = attempts(path) == 1
        for number in range(6):
            await asyncio.sleep(0)
            if first and number == 3:
                crash()
            yield np.full(50_000, number) if number % 2 else [ray.put(number)]


PHOENIXES = {"plain": Phoenix, "threaded": Phoenix.options(max_concurrency=3), "asynchronous": AsynchronousPhoenix}


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("kind", PHOENIXES)
def test_a_call_of_an_actor_that_restarts_goes_on(kind: str, window: int | None, tmp_path: Any) -> None:
    """Whatever waits of its items when it dies, each is given once; references that it put died with it, or are made again."""
    actor = PHOENIXES[kind].remote()
    generator = actor.items.options(_generator_backpressure_num_objects=window).remote(tmp_path / "attempts")
    found = []
    for ref in generator:
        item = ray.get(ref, timeout=PATIENCE_S)
        found.append(int(item[0]) if isinstance(item, np.ndarray) else len(item))
    assert found == [1, 1, 1, 3, 1, 5]
    assert attempts(tmp_path / "attempts") == 3, "it was called twice"


@pytest.mark.parametrize("kind", PHOENIXES)
def test_two_calls_of_an_actor_that_restarts_go_on_side_by_side(kind: str, tmp_path: Any) -> None:
    actor = PHOENIXES[kind].remote()
    both = [actor.items.remote(tmp_path / name) for name in ("one", "other")]  # each has its own first time
    assert [len(list(generator)) for generator in both] == [6, 6]
    assert ray.get([generator.completed() for generator in both], timeout=PATIENCE_S) == [None, None]


# -- other numbers of results ---------------------------------------------------------------------------------------


def test_a_dynamic_generator_gives_one_reference_to_all_references() -> None:
    ref = count.options(num_returns="dynamic").remote(3)
    assert isinstance(ref, ray.ObjectRef)
    found = ray.get(ref, timeout=PATIENCE_S)
    assert isinstance(found, ray.DynamicObjectRefGenerator) and len(found) == 3 and values(found) == [0, 1, 2]
    assert values(ray.get(ref)) == [0, 1, 2], "each time it is read"


def test_the_references_of_a_dynamic_generator_can_be_passed_on() -> None:
    @ray.remote
    def total(found: Any) -> int:
        return sum(ray.get(list(found)))

    @ray.remote
    def nested(boxed: list[Any]) -> int:
        return sum(ray.get(list(ray.get(boxed[0]))))

    ref = count.options(num_returns="dynamic").remote(4)
    assert ray.get([total.remote(ref), nested.remote([ref])], timeout=PATIENCE_S) == [6, 6]


def test_the_exception_of_a_dynamic_generator_is_its_last_item() -> None:
    *good, bad = ray.get(count.options(num_returns="dynamic").remote(2, "oops"), timeout=PATIENCE_S)
    assert ray.get(good) == [0, 1]
    with pytest.raises(ValueError, match="oops"):
        ray.get(bad)


def test_a_generator_with_a_fixed_number_of_results() -> None:
    assert ray.get(count.options(num_returns=2).remote(2)) == [0, 1]
    first, second, third = count.options(num_returns=3).remote(2, "no third")
    assert ray.get([first, second]) == [0, 1]
    with pytest.raises(ValueError, match="no third"):
        ray.get(third)
    with pytest.raises(ValueError, match="num_returns=2"):
        ray.get(count.options(num_returns=2).remote(3)[0])
    with pytest.raises(ValueError, match="returned 1 values"):
        ray.get(count.options(num_returns=2).remote(1)[0])
    with pytest.raises(TypeError, match="generator"):
        ray.get(count.options(num_returns=1).remote(1))
