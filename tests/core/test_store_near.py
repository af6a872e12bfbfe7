"""ObjectStore: what lies in a storage elsewhere and finds no room in memory is used in a file of this machine."""

from __future__ import annotations

from typing import Any

import pytest

from zray.core.arena import PAGE
from zray.core.effects import ANSWER
from zray.core.spilling import SPILL_TIMER
from zray.core.store import CREATE_TIMER, PUSHES
from zray.exceptions import InvariantError

from .reading import timers, verbs
from .store_bench import CLIENT, OTHER, OWNER, A, B, Bench, C, answers

ELSEWHERE = "memory://x"


def full(*more: str) -> Bench:
    """A store of two pages, all of them being read, with A in a storage elsewhere."""
    bench = Bench(pages=2, directories=(ELSEWHERE, *more))
    bench.on_disk(A)
    bench.sealed(B, 2)
    bench.pin(B)
    return bench


def target(bench: Bench) -> Any:
    """Where the latest restore puts the object."""
    return bench.restores[-1][5]


def test_it_is_read_into_a_file_for_as_long_as_somebody_uses_it() -> None:
    bench = full("/d1")
    assert answers(bench.pin(A, CLIENT)) == []
    path = target(bench)
    bench.files[path] = None
    assert path.startswith("/d1/") and bench.state(A) == "RESTORING"
    assert answers(bench.restored()) == [(CLIENT, bench.requests, True, (path, 0, PAGE, 1000))]
    assert answers(bench.pin(A))[0][3][0] == path, "others use it there too"
    bench.does("unpin", CLIENT, [A])
    assert path in bench.files
    bench.does("unpin", OTHER, [A])
    assert path not in bench.files and bench.state(A) == "ON_DISK"
    assert bench.store.objects[A].copy.path.startswith(ELSEWHERE)  # type: ignore[union-attr]
    bench.pin(A, CLIENT)
    assert target(bench) != path, "the file may still be on its way out"


def test_when_there_is_room_again_it_comes_back_to_memory() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    bench.restored()
    bench.does("unpin", CLIENT, [A])
    bench.does("unpin", OTHER, [B])
    bench.does("free", [B])
    bench.pin(A, CLIENT)
    assert isinstance(target(bench), int)
    assert answers(bench.restored())[0][3] == (0, PAGE)


def test_it_is_lent_from_there() -> None:
    bench = full("/d1")
    bench.does("lend", 0.0, 77, A)
    path = target(bench)
    assert verbs(bench.restored(), ANSWER) == [(PUSHES, 77, True, (path, 0, PAGE, 1000))]


@pytest.mark.parametrize("when", ["reading", "used"])
def test_what_is_freed_meanwhile_goes_with_its_files(when: str) -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    bench.files[target(bench)] = None
    if when == "used":
        bench.restored()
    bench.does("free", [A])
    if when == "reading":
        assert answers(bench.restored())[0][2]
    bench.does("unpin", CLIENT, [A])
    assert A not in bench.store.objects and bench.files == {}


def test_a_reader_that_died_meanwhile_leaves_no_file() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    bench.files[target(bench)] = None
    bench.does("drop_client", CLIENT)
    bench.restored()
    assert bench.state(A) == "ON_DISK" and len(bench.files) == 1


def test_what_can_not_be_read_there_is_lost() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    assert answers(bench.not_restored("gone")) == [(CLIENT, bench.requests, False, ("lost", "gone"))]
    assert A not in bench.store.objects and bench.files == {}


def test_without_room_for_the_file_the_next_directory_is_used() -> None:
    bench = full("/d1", "/d2")
    bench.pin(A, CLIENT)
    assert target(bench).startswith("/d1/")
    assert answers(bench.not_brought()) == []
    assert target(bench).startswith("/d2/")
    assert answers(bench.restored())[0][2]


def test_without_room_for_any_file_the_reader_waits_and_is_refused_and_nothing_is_lost() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    assert (2.0, (SPILL_TIMER, 1)) in timers(bench.not_brought()) and bench.restores == []
    [(peer, _, ok, (kind, text))] = answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))
    assert (peer, ok, kind) == (CLIENT, False, "disk") and "no space" in text and bench.state(A) == "ON_DISK"
    bench.does("on_timer", 12.0, (SPILL_TIMER, 1))
    bench.pin(A, CLIENT, now=12.0)
    assert answers(bench.restored())[0][2], "and it works again when space returns"


def test_who_left_before_there_was_no_room_for_the_file_is_forgotten() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    bench.does("drop_client", CLIENT)
    assert answers(bench.not_brought()) == [] and bench.restores == [] and bench.state(A) == "ON_DISK"


def test_a_file_that_nobody_uses_is_an_error() -> None:
    bench = full("/d1")
    bench.pin(A, CLIENT)
    bench.restored()
    bench.store.objects[A].pins.clear()
    with pytest.raises(InvariantError):
        bench.store.check()


def test_who_waits_behind_one_that_can_not_be_served_is_served_rather_than_refused() -> None:
    bench = Bench(pages=3, directories=(ELSEWHERE,))
    big = bytes([9]) * 20
    bench.sealed(big, 3)
    bench.create(C)
    bench.written()
    bench.does("seal", C, OWNER)
    bench.pin(C)
    bench.pin(big, CLIENT, now=1.0)
    assert answers(bench.create(A, now=0.5)) == [], "a reader comes first"
    [(_, request, ok, _)] = answers(bench.does("on_timer", 10.5, (CREATE_TIMER,)))
    assert (request, ok) == (bench.requests, True)
    [(peer, _, ok, _)] = answers(bench.does("on_timer", 11.0, (CREATE_TIMER,)))
    assert (peer, ok) == (CLIENT, False)


def test_for_whom_room_is_made_when_another_is_given_up_waits_for_it() -> None:
    bench = Bench(pages=2, directories=(ELSEWHERE,))
    bench.sealed(A)
    bench.sealed(B)
    bench.pin(B)
    bench.store.files.on_failed(0.0, 0, "no space")
    first = bench.create(C, 2)
    second = bench.create(bytes([9]) * 20)
    assert answers(first) == answers(second) == []
    bench.store.files.on_rested(0)
    effects = bench.does("on_timer", 10.0, (CREATE_TIMER,))
    assert [(a[1], a[2]) for a in answers(effects)] == [(bench.requests - 1, False)] and len(bench.spills) == 1
    assert answers(bench.written()) == [(CLIENT, bench.requests, True, (0, True))]
