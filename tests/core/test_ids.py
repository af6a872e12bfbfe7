"""Identifiers: widths, derivation, reading."""

from __future__ import annotations

import pickle

import pytest

from zray.base.ids import (
    FIRST_RETURN,
    OWNER_PREFIX_BYTES,
    PUT_INDEX,
    ActorID,
    JobID,
    NodeID,
    ObjectID,
    TaskID,
    TaskIDs,
    WorkerID,
    return_id,
)


@pytest.mark.parametrize(
    ("kind", "size"), [(JobID, 4), (NodeID, 16), (WorkerID, 16), (TaskID, 16), (ActorID, 12), (ObjectID, 20)]
)
def test_every_kind_has_its_fixed_width(kind: type, size: int) -> None:
    assert len(kind.from_random()) == size
    with pytest.raises(ValueError, match=f"{size} bytes, not {size + 1}"):
        kind(bytes(size + 1))


def test_an_id_reads_back_from_its_hexadecimal_text() -> None:
    made = WorkerID.from_random()
    assert WorkerID.from_hex(made.hex()) == made
    assert repr(made) == f"WorkerID({made.hex()})" == str(made)
    assert made.binary() == bytes(made) and type(made.binary()) is bytes


def test_nil_is_all_zeros_and_nothing_else_is() -> None:
    assert JobID(bytes(4)).is_nil()
    assert not JobID(b"\0\0\0\1").is_nil()


def test_an_id_equals_and_hashes_like_its_bytes() -> None:
    raw = bytes(range(16))
    assert TaskID(raw) == raw and {TaskID(raw): 1}[raw] == 1


def test_an_id_survives_pickling() -> None:
    made = ObjectID.from_random()
    again = pickle.loads(pickle.dumps(made, 5))
    assert again == made and type(again) is ObjectID


def test_an_object_id_tells_the_task_that_made_it_and_the_task_its_submitter() -> None:
    worker = WorkerID.from_random()
    task = TaskIDs(worker)()
    assert len(task) == 16 and task[:OWNER_PREFIX_BYTES] == worker[:OWNER_PREFIX_BYTES]
    made = ObjectID(return_id(task, 1))
    assert made.task_id() == task
    assert made[16:] == FIRST_RETURN != PUT_INDEX


def test_task_ids_never_repeat_within_a_process_nor_between_processes() -> None:
    one, other = TaskIDs(bytes(16)), TaskIDs(bytes([1]) * 16)
    made = [one() for _ in range(1000)] + [other() for _ in range(1000)]
    assert len(dict.fromkeys(made)) == 2000
    assert made[:1000] == sorted(made[:1000]), "they count up, so that logs sort by age"


def test_returns_of_one_task_are_all_different() -> None:
    task = TaskIDs(bytes(16))()
    assert len({return_id(task, i) for i in range(1, 400)} | {task + PUT_INDEX}) == 400
