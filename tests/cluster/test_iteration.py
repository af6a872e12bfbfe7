"""Results as they come: each once, as soon as it is ready, with no more under way than was asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import GetTimeoutError
from zray.util import as_completed, iteration, map_unordered

from .driving import PATIENCE_S
from .gates import Gate, through

pytestmark = pytest.mark.usefixtures("cluster")

MOMENT_S = 0.01  # a time limit that a test wants to run out
pass_through: Any = ray.remote(num_cpus=0)(through)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()


@ray.remote(num_cpus=0)
def double(value: int) -> int:
    return 2 * value


@ray.remote(num_cpus=0)
def fail(value: int) -> None:
    raise KeyError(value)


@ray.remote(num_cpus=0)
class Doubler:
    def double(self, value: int) -> int:
        return 2 * value


def check_not_none(value: Any) -> int:
    if value is None:
        raise ValueError("nothing")
    return int(value)


# -- as_completed -----------------------------------------------------------------------------------------------------


def test_every_value_once() -> None:
    refs = [double.remote(i) for i in range(50)]
    assert sorted(as_completed(refs)) == [2 * i for i in range(50)]
    assert list(as_completed(refs)) == [2 * i for i in range(50)], "what is ready comes in the order given"
    assert list(as_completed(iter(refs[:2] * 3))) == [0, 2]
    assert list(as_completed([])) == []


def test_references_instead_of_values() -> None:
    refs = [double.remote(1), fail.remote(2), ray.put(3)]
    found = list(as_completed(refs, yield_obj_refs=True))
    assert set(found) == set(refs)
    assert all(ray.wait([ref], timeout=0)[0] for ref in found)


def test_what_is_ready_does_not_wait_for_what_is_not(gate: Gate) -> None:
    late = [pass_through.remote(gate, "late")]
    results = as_completed(late + [double.remote(i) for i in range(10)], timeout=PATIENCE_S)
    assert sorted(next(results) for _ in range(10)) == [2 * i for i in range(10)]
    gate.open()
    assert list(results) == ["late"]


def test_a_long_list_with_its_front_stuck(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iteration, "_FRONT", 4)
    monkeypatch.setattr(iteration, "_STUCK_S", MOMENT_S)
    late = [pass_through.remote(gate, -i) for i in range(1, 7)]
    refs = late[:5] + [double.remote(i) for i in range(20)] + late[5:] + [double.remote(i) for i in range(20, 25)]
    results = as_completed(refs, timeout=PATIENCE_S)
    assert sorted(next(results) for _ in range(25)) == [2 * i for i in range(25)]
    gate.open()
    assert sorted(results) == [-6, -5, -4, -3, -2, -1]


def test_an_error_is_raised_in_its_place() -> None:
    refs = [double.remote(1), fail.remote(2), double.remote(3)]
    ray.wait(refs, num_returns=3)
    results = as_completed(refs)
    assert next(results) == 2
    with pytest.raises(KeyError, match="2"):
        next(results)
    assert next(results) == 6
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("front", [2, 128])
def test_time_that_runs_out(gate: Gate, monkeypatch: pytest.MonkeyPatch, front: int) -> None:
    monkeypatch.setattr(iteration, "_FRONT", front)
    late = [pass_through.remote(gate, i) for i in range(4)]
    ready = ray.put("ready")
    results = as_completed([ready, *late], timeout=MOMENT_S)
    assert next(results) == "ready"
    with pytest.raises(GetTimeoutError, match=r"4 of the references were not ready within 0.01 s"):
        next(results)
    assert list(as_completed([ready], timeout=0)) == ["ready"]
    with pytest.raises(TimeoutError):
        next(as_completed(late, timeout=0))
    gate.open()
    assert sorted(as_completed(late, timeout=PATIENCE_S)) == [0, 1, 2, 3], "they are intact"


def test_in_chunks(gate: Gate) -> None:
    refs = [pass_through.remote(gate, -1), *[double.remote(i) for i in range(5)]]
    results = as_completed(refs, chunk_size=5, timeout=PATIENCE_S)
    assert sorted(next(results) for _ in range(5)) == [0, 2, 4, 6, 8]
    gate.open()
    assert list(results) == [-1]
    assert sorted(as_completed(refs, chunk_size=100)) == [-1, 0, 2, 4, 6, 8]


def test_wrong_arguments_of_as_completed() -> None:
    with pytest.raises(TypeError, match=r"as_completed\(\) takes ObjectRefs: item 1 is a int: 5"):
        as_completed([ray.put(1), 5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not iterable"):
        as_completed(ray.put(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk_size must be 1 or more, not 0"):
        as_completed([], chunk_size=0)
    with pytest.raises(TypeError, match="chunk_size must be a number of references"):
        as_completed([], chunk_size=None)  # type: ignore[arg-type]


# -- map_unordered ----------------------------------------------------------------------------------------------------


def test_every_item_once() -> None:
    assert sorted(map_unordered(double, range(300))) == [2 * i for i in range(300)]
    assert sorted(map_unordered(double, range(30), backpressure_size=1)) == [2 * i for i in range(30)]
    assert sorted(map_unordered(double, range(30), backpressure_size=None)) == [2 * i for i in range(30)]
    assert sorted(map_unordered(double, range(30), chunk_size=7)) == [2 * i for i in range(30)]
    assert list(map_unordered(double, [])) == []
    assert {ray.get(ref) for ref in map_unordered(double, range(9), yield_obj_refs=True)} == {2 * i for i in range(9)}


def test_methods_of_actors_and_plain_functions() -> None:
    doubler = Doubler.remote()
    assert sorted(map_unordered(doubler.double, range(9))) == [2 * i for i in range(9)]
    assert sorted(map_unordered(lambda value: -value, range(3))) == [-2, -1, 0]
    assert sorted(map_unordered(check_not_none, "123")) == [1, 2, 3]


def test_items_are_read_as_results_are_taken(gate: Gate) -> None:
    read = []

    def items() -> Iterator[int]:
        for i in itertools.count():
            read.append(i)
            yield i

    results = map_unordered(double, items(), backpressure_size=5)
    assert read == []
    for taken in range(1, 11):
        next(results)
        assert len(read) == 5 + taken, "so many are under way while this one is used"


def test_results_come_as_they_are_ready(gate: Gate) -> None:
    def slow(value: Any) -> Any:
        return value if isinstance(value, int) else through(value, -1)

    results = map_unordered(ray.remote(num_cpus=0)(slow), [gate, *range(10)], backpressure_size=3)
    assert sorted(next(results) for _ in range(10)) == list(range(10))
    gate.open()
    assert list(results) == [-1]


def test_a_call_that_raises() -> None:
    results = map_unordered(ray.remote(check_not_none), [None, 1, None, 2], backpressure_size=1)
    with pytest.raises(ValueError, match="nothing"):
        next(results)
    assert next(results) == 1
    with pytest.raises(ValueError, match="nothing"):
        next(results)
    assert list(results) == [2]


@pytest.mark.parametrize("how", [{"max_in_flight": 3}, {"backpressure_size": None}])
@pytest.mark.processes("in local mode a call that waits for a gate can not be interrupted")
def test_what_is_under_way_is_cancelled_when_nobody_wants_it(gate: Gate, how: dict[str, Any]) -> None:
    others = Gate(gate.path + "-others")
    results = map_unordered(lambda gate: through(gate, 1), [gate, *[others] * 9], **how)
    gate.open()
    assert next(results) == 1
    others.wait_for(1)
    del results
    assert ray.get(double.options(num_cpus=2).remote(1), timeout=PATIENCE_S) == 2
    others.open()


def test_so_many_in_flight() -> None:
    read = iter(range(100))
    results = map_unordered(double, read, 5)
    assert next(results) % 2 == 0
    assert next(read) == 6
    for wrong, error in ((0, ValueError), ("5", TypeError)):
        with pytest.raises(error, match="max_in_flight"):
            map_unordered(double, read, wrong)  # type: ignore[call-overload]


def test_items_that_raise() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("the input")

    with pytest.raises(KeyError, match="the input"):
        list(map_unordered(double, items()))


def test_wrong_arguments_of_map_unordered() -> None:
    for wrong in (5, Doubler, int):
        with pytest.raises(TypeError, match=r"map_unordered\(\) takes a remote function or a method of an actor"):
            map_unordered(wrong, [1])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not iterable"):
        map_unordered(double, 5)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="backpressure_size must be 1 or more, not 0"):
        map_unordered(double, [1], backpressure_size=0)
    with pytest.raises(ValueError, match=r"backpressure_size \(2\) must not be less than chunk_size \(3\)"):
        map_unordered(double, [1], backpressure_size=2, chunk_size=3)
