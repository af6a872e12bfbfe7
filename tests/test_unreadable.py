"""What can not be read where it is said to lie is tried again, but not for ever."""

from __future__ import annotations

from typing import Any

import pytest

from zray.exceptions import ObjectFetchTimedOutError, ObjectLostError
from zray.runtime.core_worker import CoreWorker
from zray.runtime.unreadable import RECOVERIES_MAX, STAYS_MAX, Unreadable

A = b"a" * 20
HERE, THERE, ELSEWHERE = b"h" * 16, b"t" * 16, b"e" * 16


class Reader:
    """A process that only reads: each of ``outcomes`` is the node where the object can not be read, or its value."""

    def __init__(self, *outcomes: bytes | str) -> None:
        self.node_id = HERE
        self.outcomes = list(outcomes)
        self.recovered: list[bytes] = []
        self.loop = self.owner = self

    def recover(self, object_id: bytes, node_id: bytes, reason: str) -> None:
        self.recovered.append(node_id)

    def post(self, call: Any) -> None:
        call[0](*call[1:])

    def wait(self, waiter: Any) -> None:
        assert waiter.done

    def _await_in_time(self, refs: Any, timeout_s: float | None) -> None:
        pass

    def _values(self, refs: Any) -> list[Any]:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, str):
            return [outcome]
        raise Unreadable(A, outcome, ObjectLostError("it does not answer", A.hex()))

    def read(self) -> Any:
        try:
            return self._values([])
        except Unreadable as error:
            return CoreWorker._recovered(self, [], None, error)  # type: ignore[arg-type]


def test_what_comes_back_is_read() -> None:
    reader = Reader(THERE, ELSEWHERE, "value")
    assert reader.read() == ["value"] and reader.recovered == [THERE, ELSEWHERE]


def test_a_link_that_works_again_in_time_is_no_loss() -> None:
    assert Reader(*[THERE] * STAYS_MAX, "value").read() == ["value"]


def test_a_link_that_does_not_is_named() -> None:
    reader = Reader(*[THERE] * 20)
    with pytest.raises(ObjectFetchTimedOutError) as raised:
        reader.read()
    assert len(reader.recovered) == STAYS_MAX and raised.value.object_id == A.hex()
    for part in ("it does not answer", THERE.hex()[:8], HERE.hex()[:8], "link"):
        assert part in str(raised.value)


@pytest.mark.parametrize("places", [[HERE], [THERE, ELSEWHERE], [b""]])
def test_what_is_lost_in_another_way_again_and_again_is_given_up_with_the_last_reason(places: list[bytes]) -> None:
    reader = Reader(*places * 20)
    with pytest.raises(ObjectLostError) as raised:
        reader.read()
    assert type(raised.value) is ObjectLostError and len(reader.recovered) <= RECOVERIES_MAX
