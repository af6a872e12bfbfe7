"""put, get and wait."""

from __future__ import annotations

import copy
import io
import os
import random
import time
from typing import Any

import pytest

import zray as ray
from zray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError

pytestmark = pytest.mark.usefixtures("cluster")


class Gate:
    """Holds tasks back until it is opened: they wait for a file. For results that arrive in an order of our choice."""

    def __init__(self, path: Any) -> None:
        self._path = str(path)

    def open(self, name: Any) -> None:
        with open(f"{self._path}-{name}", "x", encoding="utf-8"):
            pass

    def wait(self, name: Any) -> None:
        while not os.path.exists(f"{self._path}-{name}"):
            time.sleep(0.001)


@pytest.fixture
def gate(tmp_path: Any) -> Gate:
    return Gate(tmp_path / "gate")


def held(gate: Gate, name: Any, value: Any = None) -> Any:
    """A reference to ``value`` that becomes ready when the gate opens for ``name``."""

    def hold(gate: Gate, name: Any, value: Any) -> Any:
        gate.wait(name)
        return value

    return ray.remote(num_cpus=0)(hold).remote(gate, name, value)


VALUES = [None, True, 0, -1, 2**200, 1.5, "text", b"bytes", bytearray(b"x"), [1, [2]], {"a": (1,)}, {1, 2}, range(3), ...]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_put_and_get_of_any_value(value: Any) -> None:
    back = ray.get(ray.put(value))
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("size", [1, 100 * 1024, 100 * 1024 + 1, 1 << 20, 20 << 20])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_put_and_get_of_bytes_of_any_size(kind: Any, size: int) -> None:
    value = kind(os.urandom(1024) * (size // 1024 + 1))[:size]
    assert ray.get(ray.put(value)) == value


def test_get_of_a_list_is_in_order_and_may_name_a_reference_twice() -> None:
    refs = [ray.put(i) for i in range(100)]
    random.Random(1).shuffle(refs)
    values = ray.get(refs)
    assert sorted(values) == list(range(100))
    assert ray.get([refs[0], refs[1], refs[0]]) == [values[0], values[1], values[0]]
    assert ray.get([]) == []
    assert ray.get((refs[0],)) == [values[0]]


def test_each_get_gives_a_fresh_copy_of_what_can_be_changed() -> None:
    ref = ray.put([1])
    first = ray.get(ref)
    first.append(2)
    assert ray.get(ref) == [1]


def test_a_timeout_leaves_the_objects_intact(gate: Gate) -> None:
    ref = held(gate, "a", "value")
    with pytest.raises(GetTimeoutError, match=ref.hex()):
        ray.get(ref, timeout=0.01)
    with pytest.raises(TimeoutError, match="1 of 2"):
        ray.get([ray.put(1), ref], timeout=0.01)
    gate.open("a")
    assert ray.get(ref, timeout=30) == "value"


def test_a_timeout_of_zero_polls(gate: Gate) -> None:
    ref = held(gate, "a")
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0)
    assert ray.get(ray.put(1), timeout=0) == 1
    gate.open("a")
    ray.wait([ref])
    assert ray.get(ref, timeout=0) is None


def test_an_error_among_many_ends_the_get_at_once(gate: Gate) -> None:
    @ray.remote
    def fail() -> None:
        raise ValueError("at once")

    never = held(gate, "a")
    with pytest.raises(ValueError, match="at once"):
        ray.get([never, fail.remote()], timeout=30)
    gate.open("a")
    ray.get(never)


def test_an_object_can_be_got_many_times_and_in_tasks() -> None:
    @ray.remote
    def length(value: Any) -> int:
        return len(value)

    ref = ray.put("x" * 300_000)
    assert ray.get([length.remote(ref) for _ in range(10)]) == [300_000] * 10
    assert all(len(ray.get(ref)) == 300_000 for _ in range(10))


# -- wait ---------------------------------------------------------------------------------------------------------


def test_wait_keeps_the_order_of_its_input(gate: Gate) -> None:
    refs = [held(gate, i, i) for i in range(6)]
    for i in (4, 1, 3):
        gate.open(i)
    ray.get([refs[4], refs[1], refs[3]])
    ready, rest = ray.wait(refs, num_returns=6, timeout=0)
    assert ready == [refs[1], refs[3], refs[4]]
    assert rest == [refs[0], refs[2], refs[5]]
    ready, rest = ray.wait(refs, num_returns=2, timeout=0)
    assert ready == [refs[1], refs[3]]
    assert rest == [refs[0], refs[2], refs[4], refs[5]]
    for i in (0, 2, 5):
        gate.open(i)
    assert ray.wait(refs, num_returns=6) == (refs, [])


def test_wait_returns_no_more_than_was_asked_for() -> None:
    refs = [ray.put(i) for i in range(10)]
    ready, rest = ray.wait(refs, num_returns=3)
    assert (ready, rest) == (refs[:3], refs[3:])
    assert ray.wait(refs) == (refs[:1], refs[1:])


@pytest.mark.processes("it ends a process")
def test_wait_counts_errors_as_ready() -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    @ray.remote
    def fail() -> None:
        raise ValueError

    refs = [die.remote(), fail.remote()]
    assert ray.wait(refs, num_returns=2, timeout=30) == (refs, [])
    with pytest.raises(WorkerCrashedError):
        ray.get(refs[0])
    with pytest.raises(RayTaskError):
        ray.get(refs[1])


def test_wait_for_fewer_than_are_coming(gate: Gate) -> None:
    refs = [held(gate, i) for i in range(3)]
    gate.open(1)
    assert ray.wait(refs, num_returns=1) == ([refs[1]], [refs[0], refs[2]])
    ready, rest = ray.wait(refs, num_returns=2, timeout=0.02)
    assert (ready, rest) == ([refs[1]], [refs[0], refs[2]])
    gate.open(0)
    gate.open(2)
    assert ray.wait(refs, num_returns=3) == (refs, [])


@pytest.mark.parametrize(
    ("refs", "options", "kind", "text"),
    [
        ("one", {}, TypeError, "list"),
        (("a",), {}, TypeError, "list"),
        ([], {}, ValueError, "at least one"),
        (["a", "a"], {}, ValueError, "twice"),
        (["a", 1], {}, TypeError, "item 1"),
        (["a"], {"num_returns": 0}, ValueError, "between 1 and 1"),
        (["a"], {"num_returns": 2}, ValueError, "between 1 and 1"),
        (["a"], {"num_returns": -1}, ValueError, "between 1 and 1"),
        (["a"], {"num_returns": 1.0}, TypeError, "num_returns"),
        (["a"], {"num_returns": True}, TypeError, "num_returns"),
        (["a"], {"timeout": -2}, ValueError, "timeout"),
    ],
)
def test_bad_arguments_of_wait(refs: Any, options: Any, kind: Any, text: str) -> None:
    ref = ray.put(1)
    if not isinstance(refs, str):
        refs = type(refs)(ref if item == "a" else item for item in refs)
    with pytest.raises(kind, match=text):
        ray.wait(ref if refs == "one" else refs, **options)


def test_draining_thousands_of_references_one_by_one() -> None:
    @ray.remote
    def same(x: int) -> int:
        return x

    refs = [same.remote(i) for i in range(5000)]
    values = []
    while refs:
        (ready,), refs = ray.wait(refs)
        values.append(ray.get(ready))
    assert sorted(values) == list(range(5000))


def test_wait_in_a_task_for_references_of_the_driver() -> None:
    @ray.remote
    def same(x: int) -> int:
        return x

    @ray.remote
    def drain(refs: list[Any]) -> int:
        total = 0
        while refs:
            ready, refs = ray.wait(refs, timeout=30)
            total += sum(ray.get(ready))
        return total

    assert ray.get(drain.remote([same.remote(i) for i in range(50)])) == sum(range(50))


# -- references as values -----------------------------------------------------------------------------------------


def test_references_are_hashable_and_comparable_and_know_their_ids() -> None:
    a, b = ray.put(1), ray.put(1)
    assert a != b
    assert a == copy.copy(a) == copy.deepcopy([a])[0]
    assert {a: 1}[a] == 1
    assert a.binary().hex() == a.hex()
    assert a.hex() in repr(a)
    assert bytes(a.task_id()) == a.binary()[:16]
    assert a != a.hex()


def test_a_reference_in_a_value_is_the_same_reference_afterwards() -> None:
    inner = ray.put("inner")
    (back,) = ray.get(ray.put([inner]))
    assert back == inner
    assert ray.get(back) == "inner"


def test_a_file_can_not_be_put() -> None:
    with pytest.raises(TypeError, match="inside the task"):
        ray.put(io.TextIOWrapper(io.BytesIO()))
