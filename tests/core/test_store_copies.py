"""ObjectStore: secondary copies, the room for them, and objects that are lent to other nodes."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.wire_transfer import CopiesDropped
from zray.core.arena import PAGE
from zray.core.effects import ANSWER, DELETE_FILE, SPILL
from zray.core.store import ARGUMENT, CREATE, CREATE_TIMER, GET, PULLS, PUSHES
from zray.exceptions import InvariantError

from .reading import process, sent, verbs
from .store_bench import CLIENT, OTHER, OWNER, A, B, Bench, C, D, answers

PRIMARY, ELSEWHERE = process("primary"), process("elsewhere")


def room(bench: Bench, object_id: bytes, pages: int = 1, priority: int = GET, now: float = 0.0) -> list[Any]:
    bench.requests += 1
    effects = bench.does("create", now, PULLS, bench.requests, object_id, pages * PAGE, "a copy", priority)
    return verbs(effects, ANSWER)


def copied(bench: Bench, object_id: bytes, pages: int = 1, primary: bytes = PRIMARY) -> None:
    [(client, _, ok, _)] = room(bench, object_id, pages)
    assert client == PULLS and ok
    bench.does("seal", object_id, OWNER, 0, primary)


def lend(bench: Bench, object_id: bytes) -> list[Any]:
    bench.requests += 1
    return verbs(bench.does("lend", 0.0, bench.requests, object_id), ANSWER)


def dropped(effects: list[Any]) -> list[tuple[bytes, list[bytes]]]:
    return [(peer, message.object_ids) for peer, message in sent(effects, CopiesDropped)]


# -- copies ---------------------------------------------------------------------------------------------------------


def test_a_copy_is_read_like_any_object() -> None:
    bench = Bench()
    copied(bench, A, 2)
    assert answers(bench.pin(A)) == [(OTHER, 2, True, (0, 2 * PAGE))]
    assert bench.store.copies == {A: PRIMARY} and bench.store.statistics()["secondary"] == 1


def test_readers_that_wait_while_it_comes_have_it_before_it_can_be_dropped() -> None:
    bench = Bench(pages=2, directories=())
    room(bench, A, 2)
    bench.pin(A)
    bench.create(B, 2)
    effects = bench.does("seal", A, OWNER, 0, PRIMARY)
    assert answers(effects) == [(OTHER, 2, True, (0, 2 * PAGE))] and dropped(effects) == []
    effects = bench.does("unpin", OTHER, [A])
    assert dropped(effects) == [(PRIMARY, [A])] and answers(effects) == [(CLIENT, 3, True, (0, True))]


def test_a_copy_that_nobody_reads_is_dropped_for_room_and_never_written_to_disk() -> None:
    bench = Bench(pages=3)
    bench.sealed(A)
    copied(bench, B)
    copied(bench, C)
    effects = bench.create(D)
    assert dropped(effects) == [(PRIMARY, [B])], "the coldest"
    assert verbs(effects, SPILL) == [] and bench.state(A) == "IN_MEMORY" and C in bench.store.objects


def test_a_copy_that_is_read_stays() -> None:
    bench = Bench(pages=2, directories=())
    copied(bench, A, 2)
    bench.pin(A)
    effects = bench.create(B)
    assert dropped(effects) == [] and A in bench.store.objects and bench.store.statistics()["creations_waiting"] == 1


def test_copies_do_not_count_against_the_threshold_of_spilling() -> None:
    bench = Bench(pages=4, threshold=0.5)
    bench.sealed(A)
    copied(bench, B)
    copied(bench, C)
    assert bench.spills == []


def test_a_free_removes_a_copy_without_a_word_to_the_primary() -> None:
    bench = Bench()
    copied(bench, A)
    bench.pin(A)
    assert dropped(bench.does("free", [A])) == [] and A in bench.store.objects
    assert dropped(bench.does("unpin", OTHER, [A])) == [] and bench.store.copies == {}


def test_a_copy_goes_with_its_owner() -> None:
    bench = Bench()
    copied(bench, A)
    copied(bench, B, primary=ELSEWHERE)
    bench.pin(A)
    bench.does("drop_client", OWNER)
    assert B not in bench.store.objects and A in bench.store.objects
    bench.does("unpin", OTHER, [A])
    assert A not in bench.store.objects


def test_a_copy_whose_primary_is_lost_takes_its_place_when_it_is_adopted() -> None:
    bench = Bench()
    copied(bench, A)
    bench.does("drop_client", PRIMARY)
    assert A in bench.store.objects  # its owner may want it
    assert bench.store.adopt(A, OWNER) and not bench.store.copies
    assert bench.store.adopt(A, OWNER), "it is the primary now"
    assert not bench.store.adopt(A, PRIMARY) and not bench.store.adopt(B, OWNER)
    assert dropped(bench.does("free", [A])) == [] and A not in bench.store.objects


def test_a_copy_of_an_owner_that_is_dead_already_goes_when_it_was_read() -> None:
    bench = Bench()
    room(bench, A)
    bench.pin(A)
    bench.dead[OWNER] = None
    bench.does("seal", A, OWNER, 0, PRIMARY)
    assert A in bench.store.objects
    bench.does("unpin", OTHER, [A])
    assert bench.store.objects == {}


def test_what_a_task_makes_here_again_is_no_copy_any_more() -> None:
    bench = Bench(pages=2)
    copied(bench, A)
    effects = bench.create(A)
    assert answers(effects) == [(CLIENT, 2, True, "exists")] and dropped(effects) == [(PRIMARY, [A])]
    assert bench.store.copies == {}
    bench.create(B, 2)
    assert len(bench.spills) == 1, "now it is too good to be dropped"
    bench.does("drop_client", PRIMARY)
    assert A in bench.store.objects


# -- room for copies ------------------------------------------------------------------------------------------------


def test_room_for_a_copy_is_a_demand_with_a_priority() -> None:
    bench = Bench(pages=2, directories=())
    bench.sealed(A, 2)
    bench.pin(A)
    assert room(bench, B, 2, ARGUMENT) == []
    bench.create(C, 2)
    assert room(bench, D, 2, GET) == []
    bench.does("free", [A])
    assert verbs(bench.does("unpin", OTHER, [A]), ANSWER) == [(PULLS, 5, True, (0, True))]
    assert verbs(bench.does("abort", D), ANSWER) == [] and answers(bench.last)[0][1] == 4
    bench.does("abort", C)
    assert verbs(bench.last, ANSWER) == [(PULLS, 3, True, (0, False))]


def test_a_demand_can_be_withdrawn_until_it_is_answered() -> None:
    bench = Bench(pages=2, directories=())
    bench.sealed(A, 2)
    bench.pin(A)
    room(bench, B, 2)
    bench.create(C, 1)
    bench.does("free", [A])
    assert bench.store.withdraw(B) and not bench.store.withdraw(B) and not bench.store.withdraw(C)
    bench.does("unpin", OTHER, [A])
    assert verbs(bench.last, ANSWER) == [] and [a[1] for a in answers(bench.last)] == [4]


def test_a_demand_that_is_withdrawn_lets_the_next_one_through() -> None:
    bench = Bench(pages=2, directories=())
    bench.sealed(A)
    bench.pin(A)
    room(bench, B, 2)
    bench.create(C)
    assert answers(bench.last) == []
    bench.does("withdraw", B)
    assert [a[2] for a in answers(bench.last)] == [True]


def test_room_that_can_not_be_made_is_refused_with_what_fills_the_store() -> None:
    bench = Bench(pages=1, directories=(), grace_s=3.0)
    bench.sealed(A)
    bench.pin(A)
    room(bench, B)
    [(client, request_id, ok, (kind, text))] = verbs(bench.does("on_timer", 3.0, (CREATE_TIMER,)), ANSWER)
    assert (client, request_id, ok, kind) == (PULLS, 3, False, "full") and "being read" in text
    assert not next(iter(room(bench, C, 2)))[2], "it can never fit"


def test_an_object_that_is_here_is_not_brought_again() -> None:
    bench = Bench()
    bench.sealed(A)
    copied(bench, B)
    assert room(bench, A) == [(PULLS, 3, True, "exists")] and room(bench, B) == [(PULLS, 4, True, "exists")]
    assert bench.store.copies == {B: PRIMARY}, "that makes it nobody's own"


def test_a_copy_that_finds_no_room_is_used_in_a_file_and_goes_when_nobody_reads_it() -> None:
    bench = Bench(pages=2)
    path = f"/d0/{A.hex()}-1.object"
    assert room(bench, A, 3) == [(PULLS, 1, True, (path, False))]
    bench.pin(A)
    assert answers(bench.does("seal", A, OWNER, 99, PRIMARY)) == [(OTHER, 2, True, (path, 0, 3 * PAGE, 99))]
    assert answers(bench.pin(A, CLIENT)) == [(CLIENT, 3, True, (path, 0, 3 * PAGE, 99))]
    bench.does("unpin", OTHER, [A])
    assert A in bench.store.objects
    effects = bench.does("unpin", CLIENT, [A])
    assert bench.store.objects == {} and dropped(effects) == [(PRIMARY, [A])] and verbs(effects, DELETE_FILE) == [(path,)]


def test_a_copy_in_a_file_that_nobody_waited_for_goes_at_once() -> None:
    bench = Bench(pages=2)
    room(bench, A, 3)
    assert dropped(bench.does("seal", A, OWNER, 99, PRIMARY)) == [(PRIMARY, [A])] and bench.store.objects == {}


# -- lending --------------------------------------------------------------------------------------------------------


def test_what_is_lent_stays_where_it_is() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    assert lend(bench, A) == [(PUSHES, 2, True, (0, PAGE))]
    bench.create(B)
    bench.does("free", [A])
    assert bench.spills == [] and A in bench.store.objects
    bench.does("unpin", PUSHES, [A])
    assert A not in bench.store.objects


def test_what_lies_on_disk_is_lent_from_there() -> None:
    bench = Bench(pages=2)
    bench.on_disk(A)
    path = next(iter(bench.files))
    assert lend(bench, A)[0][3] == (path, 0, PAGE, 1000) and bench.restores == []
    assert answers(bench.pin(A))[0][3] == (path, 0, PAGE, 1000), "and read there meanwhile"


def test_what_is_lent_from_disk_can_come_back_to_memory() -> None:
    bench = Bench(pages=2, directories=("/d0",))
    bench.on_disk(A)
    bench.sealed(B, 2)
    bench.pin(B)
    bench.pin(A, CLIENT)
    lend(bench, A)
    bench.does("unpin", OTHER, [B])
    bench.does("free", [B])
    if bench.restores:
        bench.restored()
    assert answers(bench.last) or bench.state(A) in ("IN_MEMORY", "ON_DISK")
    bench.does("free", [A])
    assert A in bench.store.objects and bench.files
    for peer in (PUSHES, CLIENT):
        bench.does("unpin", peer, [A])
    assert bench.store.objects == {} and bench.files == {}


def test_what_lies_in_a_storage_elsewhere_is_brought_back_to_be_lent() -> None:
    bench = Bench(pages=2, directories=("memory://x",))
    bench.on_disk(A)
    assert lend(bench, A) == []
    assert verbs(bench.restored(), ANSWER)[0][2:] == (True, (0, PAGE))


def test_what_is_not_here_can_not_be_lent() -> None:
    bench = Bench()
    [(client, _, ok, (kind, _))] = lend(bench, A)
    assert (client, ok, kind) == (PUSHES, False, "lost")


def test_a_copy_that_would_be_spilled_is_an_error() -> None:
    bench = Bench()
    copied(bench, A)
    bench.store._spillable[A] = None
    with pytest.raises(InvariantError):
        bench.store.check()


def test_priorities_are_in_order() -> None:
    assert GET < CREATE < ARGUMENT
