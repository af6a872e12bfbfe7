"""The message schema: one table from which dispatch, checks and documents derive."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base import schema, wire


def test_ops_and_handlers_are_unique() -> None:
    handlers = [s.handler for s in wire.SCHEMA.values()]
    assert len(dict.fromkeys(handlers)) == len(handlers)
    assert {op: s.cls for op, s in wire.SCHEMA.items()} == {op: cls for cls, op in wire.OPS.items()}


def test_an_op_can_not_be_given_twice() -> None:
    class Twice(tuple):
        _fields = ()

    with pytest.raises(ValueError, match="op 1 is Hello already"):
        wire.message(1, "any", "any")(Twice)


def test_pack_makes_a_plain_tuple_and_leaves_one_alone() -> None:
    packed = wire.pack(wire.ReturnLease(7))
    assert packed == (wire.OPS[wire.ReturnLease], 7) and type(packed) is tuple
    assert wire.pack(packed) is packed
    assert wire.well_formed(packed)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        (),
        ("33", 7),
        (33,),
        (33, 7, 8),
        (33, "7"),
        (33, None),
        (999, 7),
        (True, 1),
        (wire.OPS[wire.UnpinObjects], (b"",)),
        (wire.OPS[wire.RequestLease], 1, b"job", {}, 1.5),
    ],
)
def test_malformed_messages_are_told_apart(message: Any) -> None:
    assert not wire.well_formed(message)


def test_whole_numbers_pass_where_a_float_is_asked_for_and_any_takes_all() -> None:
    assert schema._accepted(float) == (float, int)
    assert schema._accepted(int | None) == (int, type(None))
    assert wire.well_formed((wire.OPS[wire.Reply], 1, True, object()))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.binary(max_size=4) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(wire.SCHEMA)), st.lists(anything, max_size=8))
def test_no_message_whatever_breaks_the_check(op: int, fields: list[Any]) -> None:
    message = (op, *fields)
    known = wire.SCHEMA[op]
    fits = len(fields) == len(known.checks) and all(map(isinstance, fields, known.checks))
    assert wire.well_formed(message) == (fits and all(check(message) for check in known.contents))


@given(st.lists(st.tuples(st.integers(), st.binary(max_size=9), anything), max_size=5))
def test_a_batch_comes_back_as_it_was_sent(batch: list[Any]) -> None:
    assert wire.decode(wire.encode(batch)) == batch == wire.decode_plain(wire.encode(batch))


class _Bomb:
    def __reduce__(self) -> Any:
        return os.getenv, ("HOME",)


def test_control_and_agents_admit_no_classes_and_run_nothing() -> None:
    frame = wire.encode([(33, _Bomb())])
    with pytest.raises(pickle.UnpicklingError, match="not admitted"):
        wire.decode_plain(frame)


@given(st.binary(max_size=60))
def test_rubbish_never_decodes_into_anything_but_plain_data(frame: bytes) -> None:
    try:
        wire.decode_plain(frame)
    except Exception as error:
        assert not isinstance(error, (SystemExit, MemoryError))
