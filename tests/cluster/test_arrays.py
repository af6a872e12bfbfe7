"""Arrays: read-only, where they lie in shared memory, for as long as anybody looks at them."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

import zray as ray

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.usefixtures("cluster")

LARGE = 1 << 18


def mapped(array: Any) -> str:
    """The file that the memory of an array belongs to."""
    address = array.__array_interface__["data"][0]
    with open("/proc/self/maps", encoding="utf-8") as file:
        for line in file:
            start, _, end = line.split(maxsplit=1)[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return line.split()[-1]
    return ""


@pytest.mark.parametrize("count", [1, 1000, LARGE])
def test_arrays_come_back_read_only_and_equal(count: int) -> None:
    array = np.arange(count)
    back = ray.get(ray.put(array))
    assert np.array_equal(array, back)
    assert not back.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        back[0] = 1
    with pytest.raises(ValueError):
        back.flags.writeable = True


@pytest.mark.processes("there is no shared memory")
def test_a_large_array_is_not_copied() -> None:
    ref = ray.put(np.arange(LARGE))
    first, second = ray.get(ref), ray.get(ref)
    assert "zray-" in mapped(first)
    assert first.__array_interface__["data"] == second.__array_interface__["data"]


def test_an_array_in_a_task_is_read_only_and_in_shared_memory() -> None:
    @ray.remote
    def look(array: Any) -> Any:
        return array.flags.writeable, mapped(array)

    here = os.path.basename(mapped(ray.get(ray.put(np.zeros(LARGE)))))
    for argument in (ray.put(np.zeros(LARGE)), np.zeros(LARGE)):
        writeable, where = ray.get(look.remote(argument))
        assert not writeable
        assert os.path.basename(where) == here


def test_the_array_that_was_put_can_be_changed_without_changing_the_object() -> None:
    for count in (10, LARGE):
        array = np.zeros(count)
        ref = ray.put(array)
        array[:] = 1
        assert ray.get(ref).sum() == 0


def test_an_array_stays_valid_after_its_reference_is_gone() -> None:
    """Its place must not be given to another object while a view lives."""
    views = [ray.get(ray.put(np.full(LARGE, i))) for i in range(20)]
    gc.collect()
    for i in range(20):
        ray.put(np.full(LARGE, 100 + i))
    assert all((view == i).all() for i, view in enumerate(views))


def test_a_slice_keeps_the_memory_it_is_part_of() -> None:
    part = ray.get(ray.put(np.arange(LARGE)))[5:10]
    for _ in range(20):
        ray.put(np.zeros(LARGE))
    assert part.tolist() == [5, 6, 7, 8, 9]


def test_several_arrays_in_one_value() -> None:
    value = {"a": np.arange(LARGE), "b": [np.ones(3), np.zeros(LARGE, dtype="u1")], "c": "text"}
    back = ray.get(ray.put(value))
    del value
    a, b = back["a"], back["b"]
    del back
    gc.collect()
    ray.put(np.ones(LARGE))
    assert a.sum() == LARGE * (LARGE - 1) // 2
    assert (b[0] == 1).all()
    assert not b[1].any()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((0, 5)),
        np.array(5),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(100)[::3],
        np.array(["a", None, {"b": 1}], dtype=object),
        np.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
        np.array(["2020-01-01"], dtype="M8[D]"),
        np.arange(2 * LARGE).reshape(2, LARGE).T,
        np.arange(4 * LARGE)[::2],
        np.ma.masked_array([1, 2], mask=[0, 1]),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_of_every_kind(array: Any) -> None:
    @ray.remote
    def same(x: Any) -> Any:
        return x

    for back in (ray.get(ray.put(array)), ray.get(same.remote(array)), ray.get(same.remote(ray.put(array)))):
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert np.array_equal(back, array)


@pytest.mark.processes("there is no shared memory")
def test_arrays_returned_by_tasks_are_taken_from_shared_memory() -> None:
    @ray.remote(num_returns=2)
    def make() -> Any:
        return np.full(LARGE, 1), np.full(LARGE, 2)

    first, second = ray.get(make.remote())
    assert (first.sum(), second.sum()) == (LARGE, 2 * LARGE)
    assert "zray-" in mapped(first)


def test_arrays_stay_valid_after_shutdown(script: Any) -> None:
    program = script(
        """
        import numpy as np
        context = start()
        array = ray.get(ray.put(np.arange(1 << 18)))
        ray.shutdown()
        say("sum", array.sum(), os.path.exists(context.session_dir))
        ray.init(num_cpus=1, object_store_memory=1 << 24)
        other = ray.get(ray.put(np.zeros(1 << 18)))
        say("sums", array.sum(), other.sum())
        del other
        ray.shutdown()
        say("last", array.sum())
        """
    )
    total = (1 << 18) * ((1 << 18) - 1) // 2
    assert program.until("sum") == f"{total} False"
    assert program.until("sums") == f"{total} 0.0"
    assert program.until("last") == str(total)
    code, _, errors = program.finish()
    assert (code, errors) == (0, "")
