"""ObjectStore with directories: what goes to disk, what comes back, who is served first, and what failures change."""

from __future__ import annotations

import pytest

from zray.core.arena import PAGE
from zray.core.effects import COLLECT, DELETE_FILE
from zray.core.spilling import SPILL_TIMER
from zray.core.store import CREATE_TIMER, ObjectState
from zray.exceptions import InvariantError

from .reading import timers, verbs
from .store_bench import CLIENT, OTHER, OWNER, A, B, Bench, C, D, E, F, answers

# -- to disk --------------------------------------------------------------------------------------------------------


def test_without_room_the_coldest_goes_to_disk_and_the_create_waits_for_it() -> None:
    bench = Bench(pages=2)
    bench.sealed(A)
    bench.sealed(B)
    effects = bench.create(C)
    assert answers(effects) == [] and bench.spills == [(1, 0, [(0, PAGE)])]
    assert bench.state(A) == "SPILLING" and bench.state(B) == "IN_MEMORY"
    assert answers(bench.written()) == [(CLIENT, 3, True, (0, True))]
    assert bench.state(A) == "ON_DISK" and bench.store.files.live == {"/d0/1.spill": 1}


def test_who_was_read_last_is_the_warmest() -> None:
    bench = Bench(pages=3)
    for object_id in (A, B, C):
        bench.sealed(object_id)
    bench.pin(A)
    bench.does("unpin", OTHER, [A])
    bench.create(D, 2)
    assert bench.state(A) == "IN_MEMORY" and bench.state(B) == bench.state(C) == "SPILLING"


def test_a_demand_asks_clients_to_collect_only_when_it_has_to_wait() -> None:
    bench = Bench(pages=1)
    assert verbs(bench.create(A), COLLECT) == []
    bench.does("seal", A, OWNER)
    effects = bench.create(B, now=3.0)
    assert verbs(effects, COLLECT) == [()] and (13.0, (CREATE_TIMER,)) in timers(effects)


def test_copies_are_dropped_before_anything_is_written() -> None:
    bench = Bench(pages=2)
    bench.on_disk(A)
    bench.pin(A)
    bench.restored()
    bench.does("unpin", OTHER, [A])
    assert bench.state(A) == "IN_MEMORY"
    bench.sealed(B)
    assert [a[2] for a in answers(bench.create(C))] == [True]
    assert bench.spills == [] and bench.state(A) == "ON_DISK" and bench.state(B) == "IN_MEMORY"


def test_the_coldest_copy_is_dropped_first() -> None:
    bench = Bench(pages=3)
    bench.on_disk(A, B)
    for object_id in (B, A):
        bench.pin(object_id)
        bench.restored()
        bench.does("unpin", OTHER, [object_id])
    bench.sealed(C)
    bench.create(D)
    assert bench.state(B) == "ON_DISK" and bench.state(A) == "IN_MEMORY"


def test_small_objects_share_a_file_up_to_its_limit() -> None:
    bench = Bench(pages=6, file_pages=2)
    for object_id in (A, B, C, D, E, F):
        bench.sealed(object_id)
    bench.create(bytes([9]) * 20, 5)
    assert [len(rows) for _, _, rows in bench.spills] == [2, 2], "no more than two files at a time"
    bench.written()
    assert [len(rows) for _, _, rows in bench.spills] == [2, 2]


def test_an_object_larger_than_the_limit_of_a_file_has_one_of_its_own() -> None:
    bench = Bench(pages=4, file_pages=1)
    bench.sealed(A, 3)
    bench.create(B, 4)
    assert bench.spills == [(1, 0, [(0, 3 * PAGE)])]


def test_above_the_threshold_objects_go_to_disk_before_anybody_waits() -> None:
    bench = Bench(pages=4, threshold=0.5)
    bench.sealed(A)
    bench.sealed(B)
    assert bench.spills == []
    bench.sealed(C)
    assert bench.spills == [(1, 0, [(0, PAGE)])]
    bench.written()
    assert bench.state(A) == "IN_MEMORY", "it can be read at once, and be dropped at once"
    bench.sealed(D)
    assert answers(bench.create(E))[0][2] and bench.state(A) == "ON_DISK"


def test_spilling_above_the_threshold_asks_clients_to_collect() -> None:
    bench = Bench(pages=4, threshold=0.5)
    for object_id in (A, B):
        bench.sealed(object_id)
    bench.create(C)
    assert verbs(bench.last, COLLECT) == [()]


def test_directories_are_used_in_turn() -> None:
    bench = Bench(pages=1, directories=("/d0", "/d1", "/d2"))
    bench.sealed(A)
    for object_id in (B, C, D, E):
        bench.create(object_id)
        bench.written()
        bench.does("seal", object_id, OWNER)
    assert sorted(bench.store.files.live) == ["/d0/1.spill", "/d0/4.spill", "/d1/2.spill", "/d2/3.spill"]


def test_what_is_being_written_can_still_be_read() -> None:
    bench = Bench(pages=2)
    bench.sealed(A)
    bench.sealed(B)
    bench.create(C)
    assert answers(bench.pin(A)) == [(OTHER, 4, True, (0, PAGE))]
    assert bench.written() and bench.state(A) == "IN_MEMORY"
    assert bench.state(B) == "SPILLING", "the one that is being read can not be moved after all"
    assert answers(bench.written()) == [(CLIENT, 3, True, (PAGE, True))]
    bench.does("unpin", OTHER, [A])
    assert answers(bench.create(D)) != [] or bench.state(A) == "ON_DISK"


def test_what_is_freed_while_it_is_written_goes_with_its_file() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    bench.does("free", [A])
    assert bench.state(A) == "SPILLING", "its bytes are being read by a thread"
    effects = bench.written()
    assert A not in bench.store.objects and bench.files == {} and bench.store.files.live == {}
    assert answers(effects) == [(CLIENT, 2, True, (0, True))]


def test_a_file_is_deleted_with_its_last_object() -> None:
    bench = Bench(pages=3)
    bench.on_disk(A, B)
    [path] = bench.files
    bench.does("free", [A])
    assert bench.files == {path: None}
    bench.does("free", [B])
    assert bench.files == {}


def test_an_object_in_memory_takes_its_copy_along_when_it_is_freed() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.pin(A)
    bench.restored()
    bench.does("free", [A])
    assert len(bench.files) == 1, "it is read still"
    bench.does("unpin", OTHER, [A])
    assert bench.files == {} and bench.store.arena.used_bytes == 0


# -- back to memory -------------------------------------------------------------------------------------------------


def test_a_reader_brings_an_object_back() -> None:
    bench = Bench(pages=2)
    bench.on_disk(A, B)
    assert answers(bench.pin(B)) == [] and bench.state(B) == "RESTORING"
    [(object_id, path, position, size, checksum, offset)] = bench.restores
    assert (object_id, path, position, size, checksum) == (B, "/d0/1.spill", PAGE, PAGE, 1000 + PAGE)
    assert answers(bench.restored()) == [(OTHER, bench.requests, True, (offset, PAGE))]


def test_several_readers_bring_it_back_once() -> None:
    bench = Bench(pages=2)
    bench.on_disk(A)
    for peer in (CLIENT, OTHER, CLIENT):
        bench.pin(A, peer)
    assert len(bench.restores) == 1
    assert [a[0] for a in answers(bench.restored())] == [CLIENT, OTHER, CLIENT]
    bench.does("unpin", CLIENT, [A, A])
    assert bench.store.objects[A].pins == {OTHER: 1}


def test_what_is_freed_while_it_is_read_back_goes_when_its_reader_is_done() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.pin(A)
    bench.does("free", [A])
    assert bench.state(A) == "RESTORING"
    assert [a[2] for a in answers(bench.restored())] == [True]
    bench.does("unpin", OTHER, [A])
    assert bench.store.objects == {} and bench.files == {} and bench.store.arena.used_bytes == 0


def test_what_is_freed_while_its_reader_waits_for_room_is_gone() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    bench.on_disk(A)
    bench.sealed(B)
    bench.pin(B)
    assert answers(bench.pin(A)) == []
    [(_, _, ok, text)] = answers(bench.does("free", [A]))
    assert not ok and text[0] == "lost"
    assert bench.store.statistics()["creations_waiting"] == 0 and bench.files == {}


def test_a_restore_that_fails_says_why_and_gives_the_room_back() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.pin(A)
    bench.pin(A, CLIENT)
    replies = answers(bench.not_restored("the file was cut"))
    assert [(a[0], a[2], a[3]) for a in replies] == [
        (OTHER, False, ("lost", "the file was cut")),
        (CLIENT, False, ("lost", "the file was cut")),
    ]
    assert A not in bench.store.objects and bench.store.arena.used_bytes == 0, "it may be made anew, under the same name"
    bench.store.check()


def test_what_a_reader_found_damaged_in_its_file_is_dropped_when_nobody_uses_it_there() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.does("on_damaged", A)
    assert A not in bench.store.objects
    bench.sealed(B)
    bench.does("on_damaged", B)
    assert B in bench.store.objects, "that lies in memory"


def test_what_is_freed_while_a_restore_fails_is_gone() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.pin(A)
    bench.does("free", [A])
    assert answers(bench.not_restored())[0][2] is False
    assert bench.store.objects == {} and bench.files == {} and bench.store.arena.used_bytes == 0


# -- who is first ---------------------------------------------------------------------------------------------------


def full_with_waiting(bench: Bench) -> list[int]:
    """A full store of one page that is being read; an argument, a create and a get wait, in this order."""
    bench.sealed(C)
    bench.pin(C, CLIENT)
    assert answers(bench.pin(A, urgent=False)) == []
    argument = bench.requests
    assert answers(bench.create(D, 1, OTHER)) == []
    create = bench.requests
    assert answers(bench.pin(B)) == []
    return [argument, create, bench.requests]


def test_readers_are_served_before_creates_and_these_before_arguments() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    bench.on_disk(A)
    bench.on_disk(B)
    argument, create, get = full_with_waiting(bench)
    bench.does("free", [C])
    bench.does("unpin", CLIENT, [C])
    assert [row[0] for row in bench.restores] == [B]
    assert [a[1] for a in answers(bench.restored())] == [get]
    assert [a[1] for a in answers(bench.does("unpin", OTHER, [B]))] == [create]
    bench.does("abort", D)
    assert [row[0] for row in bench.restores] == [A]
    assert [a[1] for a in answers(bench.restored())] == [argument]


def test_an_argument_becomes_urgent_when_somebody_gets_it() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    bench.on_disk(A)
    bench.on_disk(B)
    argument, *_ = full_with_waiting(bench)
    bench.pin(A)
    assert bench.store.statistics()["creations_waiting"] == 3
    bench.does("free", [C])
    bench.does("unpin", CLIENT, [C])
    bench.restored()
    bench.does("unpin", OTHER, [B])
    assert bench.restores[0][0] == A, "before the create"
    assert [a[1] for a in answers(bench.restored())] == [argument, bench.requests]


def test_a_small_one_does_not_overtake_a_large_one_of_its_kind() -> None:
    bench = Bench(pages=4)
    bench.sealed(A, 3)
    assert answers(bench.create(B, 4)) == []
    assert answers(bench.create(C, 1)) == [], "there is room, but B was first"
    first, second = answers(bench.written())
    assert first == (CLIENT, 2, True, (0, False)) and second[:3] == (CLIENT, 3, True)


def test_two_who_ask_for_room_for_the_same_object() -> None:
    """A second attempt of a task may start before the first one's end is known."""
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.pin(A, CLIENT)
    bench.does("on_timer", 0.0)
    bench.store.files.on_failed(0.0, 0, "no space")
    bench.create(B)
    bench.create(B, peer=OTHER)
    bench.does("free", [A])
    [first] = answers(bench.does("unpin", CLIENT, [A]))
    assert first[:3] == (CLIENT, 3, True)
    assert answers(bench.does("seal", B, OWNER)) == [(OTHER, 4, True, "exists")]
    bench.does("free", [B])
    assert bench.store.arena.used_bytes == 0 and bench.store.objects == {}


def test_the_second_who_waited_for_the_same_object_hears_that_it_exists() -> None:
    bench = Bench(pages=2)
    bench.sealed(A, 2)
    bench.pin(A, CLIENT)
    bench.store.files.on_failed(0.0, 0, "no space")
    bench.create(B, 1)
    bench.create(C, 2)
    bench.create(B, 2, OTHER)
    bench.does("free", [A])
    bench.does("unpin", CLIENT, [A])
    bench.does("seal", B, OWNER)
    bench.does("on_timer", 1.0, (SPILL_TIMER, 0))
    create, second = answers(bench.written())
    assert create[:3] == (CLIENT, 4, True) and second == (OTHER, 5, True, "exists")


# -- objects that live on disk --------------------------------------------------------------------------------------


def test_larger_than_the_store_lives_in_a_file_of_its_own() -> None:
    bench = Bench(pages=2)
    [(_, _, ok, (path, _))] = answers(bench.create(A, 5))
    assert ok and path == f"/d0/{A.hex()}.object"
    bench.does("seal", A, OWNER, 77)
    assert bench.state(A) == "ON_DISK" and bench.store.arena.used_bytes == 0
    assert answers(bench.pin(A)) == [(OTHER, 2, True, (path, 0, 5 * PAGE, 77))]
    bench.does("free", [A])
    assert A in bench.store.objects
    bench.files[path] = None
    bench.does("unpin", OTHER, [A])
    assert bench.files == {} and bench.store.objects == {}


def test_when_everything_is_being_read_an_object_lives_on_disk_and_is_used_there() -> None:
    bench = Bench(pages=2)
    bench.sealed(A, 2)
    bench.pin(A)
    effects = bench.create(B)
    [(_, _, ok, (path, _))] = answers(effects)
    assert ok and path.endswith(".object") and verbs(effects, COLLECT) == [()]
    bench.does("seal", B, OWNER, 5)
    assert answers(bench.pin(B, CLIENT)) == [(CLIENT, 4, True, (path, 0, PAGE, 5))]
    bench.does("unpin", CLIENT, [B])
    bench.does("free", [A])
    bench.does("unpin", OTHER, [A])
    assert answers(bench.pin(B)) == [] and bench.state(B) == "RESTORING", "there is room now"
    bench.restored()
    assert bench.store.objects[B].offset >= 0


def test_where_nothing_can_be_moved_a_spilled_object_is_read_in_its_file() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.sealed(B)
    bench.pin(B)
    assert answers(bench.pin(A)) == [(OTHER, bench.requests, True, ("/d0/1.spill", 0, PAGE, 1000))]
    bench.does("unpin", OTHER, [B])
    assert answers(bench.pin(A, CLIENT))[0][3][0] == "/d0/1.spill", "others use it there as long as somebody does"


def test_a_reader_who_comes_before_the_seal_of_a_file_is_served_by_the_seal() -> None:
    bench = Bench(pages=1)
    bench.create(A, 3)
    assert answers(bench.pin(A)) == []
    assert answers(bench.does("seal", A, OWNER, 9)) == [(OTHER, 2, True, (f"/d0/{A.hex()}.object", 0, 3 * PAGE, 9))]


def test_a_file_that_was_given_up_is_deleted() -> None:
    bench = Bench(pages=1)
    bench.create(A, 3)
    assert verbs(bench.does("abort", A), DELETE_FILE) == [(f"/d0/{A.hex()}.object",)]
    bench.create(A, 3)
    assert verbs(bench.does("drop_client", CLIENT), DELETE_FILE) == [(f"/d0/{A.hex()}.object",)]


def test_a_file_that_can_not_be_written_in_one_directory_goes_to_another() -> None:
    bench = Bench(pages=1, directories=("/d0", "/d1"))
    [(_, _, _, (first, _))] = answers(bench.create(A, 3))
    effects = bench.does("abort", A, "no space", 1.0)
    assert timers(effects) == [(3.0, (SPILL_TIMER, 0))]
    [(_, _, _, (second, _))] = answers(bench.create(A, 3))
    assert (first[:3], second[:3]) == ("/d0", "/d1")
    bench.does("abort", A, "no space there", 1.0)
    [(_, _, ok, (kind, text))] = answers(bench.create(A, 3))
    assert not ok and kind == "disk" and "no space there" in text


def test_with_storage_elsewhere_only_what_is_larger_than_the_store_is_refused() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    [(_, _, ok, (kind, _))] = answers(bench.create(A, 2))
    assert not ok and kind == "full"


# -- failures of the disk -------------------------------------------------------------------------------------------


def test_after_a_failure_the_next_directory_is_used() -> None:
    bench = Bench(pages=1, directories=("/d0", "/d1"))
    bench.sealed(A)
    bench.create(B)
    effects = bench.not_written(now=4.0)
    assert (6.0, (SPILL_TIMER, 0)) in timers(effects)
    assert bench.spills == [(2, 1, [(0, PAGE)])] and bench.state(A) == "SPILLING"
    assert answers(bench.written())[0][2]


def test_when_all_directories_failed_a_demand_waits_and_the_timer_tries_again() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    assert answers(bench.not_written(now=1.0)) == [] and bench.state(A) == "IN_MEMORY" and bench.spills == []
    bench.does("on_timer", 3.0, (SPILL_TIMER, 0))
    assert len(bench.spills) == 1
    assert answers(bench.written()) == [(CLIENT, 2, True, (0, True))]


def test_when_all_directories_failed_for_long_a_demand_is_refused_with_the_reason() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    bench.not_written("OSError: no space left", now=9.5)
    [(_, _, ok, (kind, text))] = answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))
    assert not ok and kind == "disk" and "no space left" in text
    assert answers(bench.pin(A))[0][2], "everything else is intact"
    bench.does("unpin", OTHER, [A])
    bench.does("on_timer", 11.5, (SPILL_TIMER, 0))
    bench.create(C)
    assert answers(bench.written())[0][2], "and it works again when space returns"


def test_what_is_freed_while_its_write_fails_is_gone() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    bench.does("free", [A])
    assert answers(bench.not_written()) == [(CLIENT, 2, True, (0, True))]
    assert A not in bench.store.objects and bench.store.files.live == {}


def test_a_slow_disk_is_no_reason_to_refuse_anybody() -> None:
    bench = Bench(pages=2, file_pages=1)
    for object_id in (A, B):
        bench.sealed(object_id)
    bench.create(C, 2)
    bench.written()
    effects = bench.does("on_timer", 10.0, (CREATE_TIMER,))
    assert answers(effects) == [] and timers(effects) == [(20.0, (CREATE_TIMER,))]
    assert answers(bench.written())[0][2]


def test_a_disk_that_stands_still_is() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    assert [a[2] for a in answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))] == [False]
    assert answers(bench.written()) == [] and bench.store.statistics()["creations_waiting"] == 0


def test_a_reader_for_whom_no_room_can_be_made_is_refused_and_the_object_stays() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    bench.on_disk(A)
    bench.sealed(B)
    bench.pin(B)
    bench.pin(A, CLIENT)
    [(peer, _, ok, (kind, _))] = answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))
    assert (peer, ok, kind) == (CLIENT, False, "full") and bench.state(A) == "ON_DISK"


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_the_death_of_an_owner_in_each_state() -> None:
    bench = Bench(pages=4, directories=("memory://x",))
    bench.on_disk(A, B)
    bench.pin(B)  # restoring
    bench.sealed(C, 2)
    bench.sealed(D)
    bench.create(E, 2)  # C is being written
    assert [bench.state(o) for o in (A, B, C, D)] == ["ON_DISK", "RESTORING", "SPILLING", "IN_MEMORY"]
    bench.dead[OWNER] = None
    bench.does("drop_client", OWNER)
    assert [o for o in (A, B, C, D) if o in bench.store.objects] == [B, C]
    while bench.spills:
        bench.written()
    assert C not in bench.store.objects
    bench.restored()
    bench.does("unpin", OTHER, [B])
    bench.does("abort", E)
    assert bench.store.objects == {} and bench.files == {} and bench.store.arena.used_bytes == 0


def test_the_death_of_a_reader_in_each_state() -> None:
    bench = Bench(pages=4)
    bench.on_disk(A)
    bench.pin(A)  # waits for the restore
    bench.sealed(B)
    bench.pin(B)  # in memory
    bench.sealed(C)
    bench.sealed(D)
    bench.create(E, 1)
    assert bench.state(C) == "SPILLING"
    bench.pin(C)
    bench.dead[OTHER] = None
    assert [a for a in answers(bench.does("drop_client", OTHER)) if a[0] == OTHER] == []
    assert OTHER not in [a[0] for a in answers(bench.restored())]
    bench.written()
    assert not any(stored.pins for stored in bench.store.objects.values())
    bench.does("free", [A, B, C, D])
    bench.does("abort", E)
    assert bench.store.objects == {} and bench.files == {} and bench.store.arena.used_bytes == 0


def test_nothing_is_brought_back_for_a_reader_that_died_while_it_waited_for_room() -> None:
    bench = Bench(pages=1, directories=("memory://x",))
    bench.on_disk(A)
    bench.sealed(B)
    bench.pin(B, CLIENT)
    bench.pin(A)
    bench.create(C)
    bench.dead[OTHER] = None
    bench.does("drop_client", OTHER)
    assert bench.store.statistics()["creations_waiting"] == 1
    bench.does("unpin", CLIENT, [B])
    assert answers(bench.written())[0][2] and bench.restores == []


def test_check_finds_what_does_not_add_up() -> None:
    bench = Bench(pages=1)
    bench.on_disk(A)
    bench.store.files.live["/d0/1.spill"] = 2
    with pytest.raises(InvariantError, match="counted wrongly"):
        bench.store.check()
    bench.store.files.live["/d0/1.spill"] = 1
    bench.store.objects[A].state = ObjectState.IN_MEMORY
    with pytest.raises(InvariantError):
        bench.store.check()


def test_while_a_directory_is_tried_again_the_reason_is_the_disk_still() -> None:
    bench = Bench(pages=1)
    bench.sealed(A)
    bench.create(B)
    bench.not_written("no space", now=1.0)
    bench.does("on_timer", 3.0, (SPILL_TIMER, 0))
    [(_, _, ok, (kind, _))] = answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))
    assert not ok and kind == "disk"
    bench.written()
    assert bench.store.files.reason == "", "it is over"
