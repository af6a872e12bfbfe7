"""Serialization: round trips, out-of-band buffers, captured references, the layout in the store."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base import serialization as s

from .reading import address, make_ref

JOB = b"job1"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(values)
def test_plain_values_come_back_equal(value: Any) -> None:
    made = s.serialize(value)
    assert s.deserialize(made.inline()) == value
    assert type(s.deserialize(made.inline())) is type(value)


def _stored(value: Any) -> bytearray:
    made = s.serialize(value)
    place = bytearray(s.stored_size(made))
    for offset, part in s.stored_parts(made):
        flat = memoryview(part).cast("B")
        place[offset : offset + len(flat)] = flat
    return place


@given(st.lists(st.integers(0, 300), max_size=5))
def test_arrays_come_back_from_the_store_where_they_lie(lengths: list[int]) -> None:
    value = [np.arange(n, dtype=np.int64) for n in lengths]
    view = memoryview(_stored(value)).toreadonly()
    data, buffers = s.parse_stored(view)
    again = s.deserialize_parts(data, buffers)
    assert all((a == b).all() for a, b in zip(value, again, strict=True))
    for array in again:
        assert not array.flags.owndata and not array.flags.writeable


def test_parts_in_the_store_are_aligned_and_do_not_overlap() -> None:
    made = s.serialize([np.ones(3), np.zeros(100, dtype=np.uint8), np.ones((4, 5))])
    end = 0
    for offset, part in s.stored_parts(made):
        assert offset >= end and offset % 64 == 0
        end = offset + memoryview(part).nbytes
    assert end == s.stored_size(made)


def test_an_array_is_not_copied_into_the_pickle() -> None:
    made = s.serialize(np.zeros(100_000))
    assert len(made.pickle) < 1000 and made.size_bytes > 800_000
    assert isinstance(made.inline(), tuple)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_travel_out_of_band(kind: type) -> None:
    value = kind(b"x" * 100_000)
    made = s.serialize(value)
    assert len(made.pickle) < 1000
    again = s.deserialize(made.inline())
    assert again == value and type(again) is kind


def test_functions_without_an_importable_name_travel_by_value() -> None:
    factor = 3
    again = s.deserialize(s.serialize(lambda x: x * factor).inline())
    assert again(2) == 6


def test_references_inside_a_value_are_captured_in_order_however_deep() -> None:
    owner = address("owner")
    refs = [make_ref(bytes([i]) * 20, owner) for i in range(3)]
    made = s.serialize({"a": [refs[0]], "b": (refs[1], {"c": refs[2]})})
    assert [r.binary() for r in made.refs] == [r.binary() for r in refs]
    made = s.serialize([lambda: None, refs[1]])  # made again by cloudpickle: still captured once
    assert made.refs == [refs[1]]


def test_a_value_without_references_captures_none_and_other_threads_are_not_disturbed() -> None:
    ref = make_ref(bytes(20), address("owner"))
    seen: list[bool] = []

    class Probe:
        def __reduce__(self) -> Any:
            thread = threading.Thread(target=lambda: seen.append(s.capture(ref)))
            thread.start()
            thread.join()
            return int, ()

    assert s.serialize([Probe()]).refs == [] and seen == [False] * len(seen) and seen
    assert not s.capture(ref), "outside of serialize nothing is captured"


def test_what_cannot_be_pickled_is_refused_with_advice() -> None:
    with pytest.raises(TypeError, match="cannot serialize a lock.*inspect_serializability"):
        s.serialize(threading.Lock())
    assert not s.capture(None), "a failure leaves no capture behind"


def test_a_value_nested_too_deeply_is_refused_and_not_a_crash() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        s.serialize(deep)
    while deep:  # unwound by hand, so that the test does not depend on how lists are freed
        deep = deep[0]


def test_equal_functions_are_exported_under_one_id() -> None:
    def make(n: int) -> Any:
        return lambda x: x + n

    assert s.export_function(make(1), JOB)[0] == s.export_function(make(1), JOB)[0] != s.export_function(make(2), JOB)[0]
    assert s.export_function(make(1), JOB)[0] != s.export_function(make(1), b"job2")[0], "they are forgotten with their jobs"
    assert s.import_function(s.export_function(make(5), JOB)[1])(1) == 6


def test_a_function_that_closes_over_the_impossible_is_refused_by_name() -> None:
    lock = threading.Lock()

    def guilty() -> Any:
        return lock

    with pytest.raises(TypeError, match="cannot export .*guilty"):
        s.export_function(guilty, JOB)


class Celsius:
    def __init__(self, degrees: float) -> None:
        self.degrees = degrees


def test_a_registered_serializer_is_used_until_it_is_deregistered() -> None:
    s.register_serializer(Celsius, serializer=lambda c: c.degrees + 1, deserializer=Celsius)
    try:
        assert s.deserialize(s.serialize(Celsius(1)).inline()).degrees == 2
    finally:
        s.deregister_serializer(Celsius)
    s.deregister_serializer(Celsius)  # a second time is no error
    assert s.deserialize(s.serialize(Celsius(1)).inline()).degrees == 1


def test_plain_values_are_pickled_by_the_c_pickler_alone() -> None:
    assert s.serialize(7) == s.Serialized(pickle.dumps(7, 5), [], [])
