"""Borrowers tell the owner about many references at once."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray import object_ref
from zray.base.wire import REFS

COUNT = 10_000


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    ray.init(num_cpus=1)  # one worker, so that what a task keeps is there for the next
    yield
    ray.shutdown()


@ray.remote
def keep(box: list[Any]) -> int:
    builtins.kept = ray.get(box[0])  # type: ignore[attr-defined]
    return len(builtins.kept)  # type: ignore[attr-defined]


@ray.remote
def drop() -> int:
    count = len(builtins.kept)  # type: ignore[attr-defined]
    del builtins.kept  # type: ignore[attr-defined]
    return count


@ray.remote
def nothing() -> None: ...


def test_ten_thousand_borrowed_references_are_released_in_one_batch() -> None:
    driver: Any = object_ref.connected
    batches: list[int] = []
    handle = driver._handlers[REFS]

    def counted(now: float, peer: bytes, deltas: list[Any]) -> None:
        batches.append(len(deltas))
        handle(now, peer, deltas)

    driver._handlers[REFS] = counted
    refs = [ray.put(index) for index in range(COUNT)]
    assert ray.get(keep.remote([ray.put(refs)])) == COUNT
    assert driver.owner.references.statistics()["lent"] == COUNT
    assert ray.get(drop.remote()) == COUNT
    for _ in range(1000):  # the worker's news and its results come on one link, in order
        if not driver.owner.references.borrowers:
            break
        ray.get(nothing.remote())
    assert driver.owner.references.statistics()["lent"] == 0
    assert sum(batches) == COUNT
    assert len(batches) <= 3, f"{len(batches)} messages"
    driver._handlers[REFS] = handle
