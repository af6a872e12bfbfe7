"""Lifecycles: the table decides which moves exist."""

from __future__ import annotations

from enum import Enum

import pytest

from zray.core.lifecycle import Lifecycle
from zray.core.workers import WORKER_LIFECYCLE, WorkerState
from zray.exceptions import InvariantError


class Door(Enum):
    OPEN = 1
    SHUT = 2


DOOR = Lifecycle(
    "door",
    {Door.OPEN: "One can walk through.", Door.SHUT: "One can not."},
    {Door.OPEN: {"closed": Door.SHUT}, Door.SHUT: {"opened": Door.OPEN}},
)


def test_a_move_of_the_table_leads_where_the_table_says() -> None:
    assert DOOR.next(Door.OPEN, "closed") is Door.SHUT


def test_a_move_that_the_table_lacks_is_a_bug_of_ours_and_names_the_state() -> None:
    with pytest.raises(InvariantError, match="a door that is OPEN can not be opened"):
        DOOR.next(Door.OPEN, "opened")


def test_the_drawing_has_every_move_and_every_sentence() -> None:
    drawing = DOOR.drawing()
    assert "OPEN --> SHUT: closed" in drawing and "SHUT --> OPEN: opened" in drawing
    assert "- **SHUT**: One can not." in drawing


@pytest.mark.parametrize("lifecycle", [WORKER_LIFECYCLE], ids=lambda c: c.name)
def test_every_state_has_a_sentence_and_a_row_and_can_be_reached(lifecycle: Lifecycle[WorkerState]) -> None:
    states = list(type(next(iter(lifecycle.sentences))))
    assert list(lifecycle.sentences) == states == list(lifecycle.moves)
    reached = [states[0]]
    for state in reached:
        reached += [s for s in lifecycle.moves[state].values() if s not in reached]
    assert len(reached) == len(states)
