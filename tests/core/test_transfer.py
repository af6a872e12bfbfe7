"""ObjectTransfer: copies of objects on several nodes: pulls, room for them, readers that leave, and frees."""

from __future__ import annotations

import pytest

from zray.base.wire_transfer import (
    CopiesDropped,
    CopyElsewhere,
    CopyEnded,
    FreeCopies,
    FreePrimaries,
    RequestCopy,
)
from zray.core.arena import PAGE
from zray.core.pulls import PullState
from zray.core.transfer import ARGUMENT, GET

from .reading import process
from .transfer_bench import OWNER, Net, pull_of

A, B, C, D, E = (bytes([n]) * 20 for n in range(1, 6))
OTHER = process("other")


# -- one copy -------------------------------------------------------------------------------------------------------


def test_a_pin_of_what_lies_elsewhere_is_answered_when_the_copy_is_here() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    assert r.ok(request) is None
    net.run()
    assert r.answers[request] == (process("reader"), True, (0, 3 * PAGE))
    assert net.chunks == 3 and r.has(A) and r.store.copies == {A: p.agent}
    assert p.served == {} and p.store.objects[A].pins == {}, "the source lets go of it"
    assert p.transfer.statistics()["copies_elsewhere"] == 1


def test_an_object_that_is_here_is_pinned_here() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    r.make(A)
    assert r.ok(r.pin(A, r)) and r.ok(r.pin(A, p)) and net.log == []
    lost = r.pin(B, r)
    assert r.ok(lost) is False


def test_many_readers_make_one_pull_and_later_ones_read_the_copy() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 4)
    requests = [r.pin(A, p, 4, peer=process(f"reader{n}")) for n in range(5)]
    net.step(0)
    requests.append(r.pin(A, p, 4))
    net.run()
    requests.append(r.pin(A, p, 4))
    assert all(r.ok(request) for request in requests) and net.chunks == 4
    assert net.sent(RequestCopy) == [("r", "p")]


def test_what_the_primary_does_not_have_is_lost_with_the_reason() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    request = r.pin(A, p)
    net.run()
    _, ok, (kind, text) = r.answers[request]
    assert not ok and kind == "lost" and A.hex() in text and "not in the store of the node that made it" in text
    assert r.store.objects == {} and r.transfer.pulls.pulls == {}


def test_a_size_that_is_not_what_the_owner_said_is_a_loss() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    request = r.pin(A, p, 3)
    net.run()
    assert not r.ok(request) and f"{3 * PAGE} bytes" in r.answers[request][2][1]
    net.wait(30)
    assert p.store.objects[A].pins == {} and p.served == {}


def test_what_lies_in_a_file_is_sent_from_there_without_room_in_memory() -> None:
    net = Net("p", "r", pages=2, directories=("/d0",))
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    p.make(B, 2)
    assert p.store.objects[A].state.name == "ON_DISK"
    p.pin(B, p)
    request = r.pin(A, p, 2)
    net.run()
    assert r.ok(request) and p.restores == [] and p.store.objects[A].state.name == "ON_DISK"


def test_what_lies_in_a_storage_elsewhere_comes_back_to_memory_first() -> None:
    net = Net("p", "r", pages=2, directories=("memory://x",))
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    p.make(B, 2)
    p.store.objects[A].copy.path = "memory://x/1"  # type: ignore[union-attr]
    p.store.files.live = {"memory://x/1": 1}
    request = r.pin(A, p, 2)
    net.run()
    assert r.ok(request) and p.store.objects[A].state.name == "IN_MEMORY"


def test_a_request_that_overtakes_the_seal_waits_for_it() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.store.create(0.0, OWNER, net.request(), A, PAGE)
    p.settle()
    request = r.pin(A, p)
    net.run()
    assert r.ok(request) is None
    p.store.seal(A, OWNER)
    p.settle()
    net.run()
    assert r.ok(request)


def test_a_creator_that_dies_while_a_node_waits_is_a_loss() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.store.create(0.0, OTHER, net.request(), A, PAGE)
    p.settle()
    request = r.pin(A, p)
    net.run()
    p.does("drop_client", OTHER)
    net.run()
    assert r.ok(request) is False and p.transfer.statistics()["tickets"] == 0


# -- admission and room ---------------------------------------------------------------------------------------------


def test_no_more_is_on_its_way_than_the_limit_and_the_urgent_come_first() -> None:
    net = Net("p", "r", pull_bytes_max=2 * PAGE)
    p, r = net.node("p"), net.node("r")
    for object_id in (A, B, C, D, E):
        p.make(object_id, 2)
    for object_id in (A, B):
        r.pin(object_id, p, 2, priority=ARGUMENT)
    assert [pull_of(net, "r", o).state.name for o in (A, B)] == ["ASKING", "WAITING"]
    r.pin(C, p, 2, priority=GET)
    assert pull_of(net, "r", C).state.name == "ASKING", "arguments do not delay a get"
    r.pin(D, p, 2, priority=ARGUMENT)
    r.pin(E, p, 2, priority=GET)
    assert [pull_of(net, "r", o).state.name for o in (D, E)] == ["WAITING", "WAITING"]
    net.run()
    assert r.fetched.index(E) < r.fetched.index(B) < r.fetched.index(D)


def test_the_number_of_pulls_is_limited_too_and_one_is_always_admitted() -> None:
    net = Net("p", "r", pulls_max=2, pull_bytes_max=PAGE)
    p, r = net.node("p"), net.node("r")
    p.make(A, 5)
    r.pin(A, p, 5)
    assert pull_of(net, "r", A).state is PullState.ASKING
    net = Net("p", "r", pulls_max=2)
    p, r = net.node("p"), net.node("r")
    for object_id in (A, B, C):
        p.make(object_id)
    requests = [r.pin(object_id, p) for object_id in (A, B, C)]
    assert r.transfer.statistics()["pulls_waiting"] == 1
    net.run()
    assert all(map(r.ok, requests))
    net = Net("p", "r", pulls_max=1)
    p, r = net.node("p"), net.node("r")
    argument, get = [(ARGUMENT, "ASKING"), (ARGUMENT, "WAITING")], [(GET, "ASKING"), (GET, "WAITING")]
    for object_id, (priority, state) in zip((A, B, C, D), argument + get, strict=True):
        r.pin(object_id, p, priority=priority)
        assert pull_of(net, "r", object_id).state.name == state


def test_a_reader_in_get_hurries_what_was_wanted_as_an_argument() -> None:
    net = Net("p", "r", pull_bytes_max=PAGE)
    p, r = net.node("p"), net.node("r")
    for object_id in (A, B, C):
        p.make(object_id)
    for object_id in (A, B, C):
        r.pin(object_id, p, priority=ARGUMENT)
    r.pin(C, p, priority=GET)
    net.run()
    assert r.fetched.index(C) < r.fetched.index(B)


def test_one_that_waits_for_room_is_hurried_past_others() -> None:
    net = Net("p", "r", pages=2)
    p, r = net.node("p"), net.node("r")
    p.make(A)
    p.make(B)
    r.make(D, 2)
    local = r.pin(D, r)
    waiting = [r.pin(A, p, priority=ARGUMENT), r.pin(B, p, priority=ARGUMENT)]
    assert [pull_of(net, "r", o).state.name for o in (A, B)] == ["NEEDS_ROOM"] * 2
    r.pin(B, p, priority=GET)
    r.unpin(D)
    r.transfer.free(0.0, [D])
    r.settle()
    net.run()
    assert r.fetched == [B, A] and all(map(r.ok, [local, *waiting]))


def test_room_is_made_by_dropping_copies_and_the_primary_hears_of_it() -> None:
    net = Net("p", "r", pages=4)
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    p.make(B, 2)
    r.make(C, 2)
    r.pin(A, p, 2)
    net.run()
    r.unpin(A)
    request = r.pin(B, p, 2)
    net.run()
    assert r.ok(request) and not r.has(A) and net.sent(CopiesDropped) == [("r", "p")]
    assert r.spills == [] and r.has(C)
    assert p.transfer.statistics()["copies_elsewhere"] == 1


def test_without_room_the_readers_are_told_what_fills_the_store() -> None:
    net = Net("p", "r", pages=2)
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    r.make(B, 2)
    r.pin(B, r)
    request = r.pin(A, p, 2)
    net.wait(30)
    _, ok, (kind, text) = r.answers[request]
    assert not ok and kind == "full" and "does not fit" in text
    assert r.transfer.pulls.pulls == {}


def test_what_is_larger_than_the_store_lives_in_a_file_while_it_is_read() -> None:
    net = Net("p", "r", pages=4, directories=("/d0",))
    p, r = net.node("p"), net.node("r")
    r.store.arena.capacity = 2 * PAGE
    r.store.arena._free = [(0, 2 * PAGE, False)]
    p.make(A, 4)
    request = r.pin(A, p, 4)
    net.run()
    _, ok, place = r.answers[request]
    assert ok and place == (f"/d0/{A.hex()}-1.object", 0, 4 * PAGE, 7)
    r.unpin(A)
    net.run()
    assert not r.has(A) and r.store.files.live == {} and p.transfer.statistics()["copies_elsewhere"] == 0


def test_a_write_that_fails_here_is_told_and_the_room_is_given_back() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    while A not in r.fetches:
        net.step(0)
    net.tasks.clear()
    del r.fetches[A]
    r.does("on_fetch_failed", A, 0, "full", "No space left on device")
    assert r.answers[request][2][0] == "full" and "No space left" in r.answers[request][2][1]
    net.run()
    assert r.store.objects == {} and p.store.objects[A].pins == {}


def test_what_a_task_makes_here_while_it_waits_to_be_brought_is_read_here() -> None:
    net = Net("p", "r", pulls_max=1)
    p, r = net.node("p"), net.node("r")
    p.make(A)
    p.make(B)
    requests = [r.pin(A, p), r.pin(B, p)]
    r.store.create(0.0, OTHER, net.request(), B, PAGE)
    r.store.seal(B, OTHER)
    r.settle()
    net.run()
    assert all(map(r.ok, requests)) and r.fetched == [A] and r.store.copies == {A: p.agent}


def test_what_a_task_makes_here_while_its_bytes_come_is_this_nodes_own() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    while not r.fetches:
        net.step(0)
    again = net.request()
    r.store.create(0.0, OTHER, again, A, 3 * PAGE)
    r.settle()
    assert r.ok(again) is None
    net.run()
    assert r.answers[again] == (OTHER, True, "exists") and r.ok(request)
    assert r.store.copies == {} and p.transfer.statistics()["copies_elsewhere"] == 0


def test_what_a_task_makes_here_while_its_bytes_come_is_written_by_it_if_they_do_not_arrive() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    while not r.fetches:
        net.step(0)
    again = net.request()
    r.store.create(0.0, OTHER, again, A, 3 * PAGE)
    net.kill("p")
    net.run()
    assert r.ok(request) is False and r.answers[again] == (OTHER, True, (0, False))


@pytest.mark.parametrize("sealed", [True, False])
def test_who_reads_what_a_task_is_writing_here_gets_that_or_else_the_copy(sealed: bool) -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    again = net.request()
    r.store.create(0.0, OTHER, again, A, PAGE)
    r.settle()
    request = r.pin(A, p)
    net.run()
    assert r.ok(again) and r.ok(request) is None and r.fetched == []
    if sealed:
        r.store.seal(A, OWNER)
    else:
        r.store.drop_client(OTHER)
    r.settle()
    net.run()
    assert r.ok(request) and (r.fetched == []) == sealed


def test_who_reads_what_a_task_is_writing_here_and_leaves_is_forgotten() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.store.create(0.0, OTHER, net.request(), A, PAGE)
    r.pin(A, p)
    r.does("drop_client", process("reader"))
    r.store.drop_client(OTHER)
    r.settle()
    net.run()
    assert r.store.objects == {} and r.fetched == [] and r.transfer.statistics()["pulls"] == 0


# -- readers that leave, frees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(12))
def test_a_reader_that_dies_at_any_moment_leaves_nothing_behind(steps: int) -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    r.pin(A, p, 3)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    r.does("drop_client", process("reader"))
    net.run()
    assert r.transfer.pulls.pulls == {} and p.served == {} and p.store.objects[A].pins == {}
    assert A not in r.store.objects or r.store.copies == {A: p.agent}


def test_room_whose_answer_is_on_its_way_when_the_reader_dies_is_given_back() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.transfer.pin(0.0, OTHER, 900, A, size=PAGE, primary=p.agent, owner=OWNER)
    assert r.store.arena.used_bytes == PAGE
    r.transfer.drop_client(0.0, OTHER)
    request = r.pin(A, p)
    net.run()
    assert r.ok(request) and r.store.arena.used_bytes == PAGE and r.fetched == [A]


def test_an_offer_that_comes_too_late_is_declined_at_once() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    p.does("on_request_copy", r.agent, A, [])
    net.run()
    assert p.served == {} and p.store.objects[A].pins == {} and net.sent(CopyEnded) == [("r", "p")]


def test_who_leaves_the_queue_is_not_served_any_more() -> None:
    net = Net("p", "a", "b", copy_receivers_max=1)
    p, a, b = (net.node(n) for n in "pab")
    p.make(A)
    a.pin(A, p)
    b.pin(A, p)
    net.step(0)
    net.step(0)
    b.does("drop_client", process("reader"))
    net.run()
    assert a.has(A) and ("p", "b") not in net.sent(CopyElsewhere) and p.transfer.statistics()["spread_objects"] == 1


def test_who_waits_in_the_queue_hears_of_a_free() -> None:
    net = Net("p", "a", "b", copy_receivers_max=1)
    p, a, b = (net.node(n) for n in "pab")
    p.make(A, 3)
    requests = {node: node.pin(A, p, 3) for node in (a, b)}
    while not a.fetches:
        net.step(0)
    p.does("free", [A])
    net.run()
    assert [node.ok(request) for node, request in requests.items()] == [False, False]
    assert "freed" in b.answers[requests[b]][2][1] and p.store.objects == {}


def test_a_free_by_the_owner_tells_those_who_wait_on_its_own_node_at_once() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    request = r.pin(A, p)
    r.does("free", [A], p.agent)
    assert r.ok(request) is False


@pytest.mark.parametrize("steps", range(12))
def test_a_reader_that_comes_while_the_last_one_leaves_gets_it(steps: int) -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    r.pin(A, p, 3)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    r.does("drop_client", process("reader"))
    request = r.pin(A, p, 3, peer=OTHER)
    net.run()
    assert r.ok(request) and net.chunks <= 2 * 3


@pytest.mark.parametrize("steps", range(14))
def test_a_free_at_any_moment_reaches_all_copies(steps: int) -> None:
    net = Net("p", "r", "o")
    p, r, o = net.node("p"), net.node("r"), net.node("o")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    o.does("free", [A], p.agent)
    net.run()
    r.unpin(A)
    net.wait(100)
    assert r.ok(request) is not None
    for node in (p, r, o):
        assert node.store.objects == {} and node.served == {} and node.transfer.statistics()["frees_unconfirmed"] == 0


def test_a_free_from_a_node_that_has_a_copy_itself() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.pin(A, p)
    net.run()
    r.unpin(A)
    r.does("free", [A], p.agent)
    assert r.store.objects == {}
    net.run()
    assert p.store.objects == {}


def test_a_free_is_said_until_it_is_confirmed() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    net.lose = 1
    r.does("free", [A], p.agent)
    net.wait(1)
    assert p.has(A)
    net.lose = 0
    net.wait(10)
    assert not p.has(A) and net.sent(FreePrimaries) == [("r", "p")] and r.transfer.statistics()["frees_unconfirmed"] == 0


def test_a_free_for_an_agent_that_nobody_knows_is_given_up_at_last() -> None:
    net = Net("p", "r")
    r = net.node("r")
    r.does("free", [A], process("never"))
    net.wait(400)
    assert r.transfer.statistics()["frees_unconfirmed"] == 1
    net.wait(200)
    assert r.transfer.statistics()["frees_unconfirmed"] == 0 and net.timers == []


def test_what_the_dead_have_said_is_not_heard() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    net.kill("r")
    p.does("on_request_copy", r.agent, A, [])
    p.does("on_open_copy", r.agent, A)
    p.does("on_copy_ended", r.agent, A, True)
    p.does("on_copies_held", r.agent, [(A, True)])
    assert p.served == {} and p.transfer.statistics()["copies_elsewhere"] == 0
    p.does("free", [A], r.agent)
    assert p.transfer.statistics()["frees_unconfirmed"] == 0


def test_the_death_of_the_owner_frees_the_copies_too() -> None:
    net = Net("p", "r", "s")
    p, r, s = (net.node(n) for n in "prs")
    p.make(A)
    for node in (r, s):
        node.pin(A, p)
    net.run()
    for node in (r, s):
        node.unpin(A)
    p.does("drop_client", OWNER)
    net.run()
    assert not p.has(A) and not r.has(A) and not s.has(A)
    assert sorted(net.sent(FreeCopies)) == [("p", "r"), ("p", "s")]


def test_a_free_of_copies_by_one_that_has_no_primary_of_them_is_ignored() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.pin(A, p)
    net.run()
    r.unpin(A)
    r.does("on_free_copies", OTHER, [A, B])
    assert r.has(A)
    r.does("on_free_copies", p.agent, [A, B])
    assert not r.has(A)


def test_a_copy_whose_end_was_lost_is_announced_later_or_freed() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    p.make(B)
    for object_id in (A, B):
        r.pin(object_id, p)
    for _ in range(2000):
        if not net.tasks:
            break
        ended = [task for task in net.tasks if task[1] == "message" and task[2][1][0] == 116]
        net.tasks = [task for task in net.tasks if task not in ended]
        if net.tasks:
            net.step(0)
    r.unpin(A)
    r.unpin(B)
    assert p.store.objects[A].pins and p.transfer.statistics()["copies_elsewhere"] == 0
    p.does("free", [B])
    net.wait(100)
    assert p.store.objects[A].pins == {} and p.transfer.statistics()["copies_elsewhere"] == 1
    assert r.has(A) and not r.has(B) and p.served == {} and list(p.store.objects) == [A]


def test_what_was_freed_while_it_came_is_freed_when_it_is_here() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.pin(A, p)
    while not r.fetches:
        net.step(0)
    p.does("free", [A])
    net.tasks = [task for task in net.tasks if task[1] != "message"]
    net.run()
    r.unpin(A)
    assert r.store.objects == {} and net.sent(FreeCopies) == [("p", "r")]


def test_a_free_of_copies_that_was_lost_is_said_again_when_the_copy_is_announced() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.pin(A, p)
    net.run()
    r.unpin(A)
    net.lose = 1
    p.does("free", [A])
    net.run()
    assert r.has(A)
    net.wait(100)
    assert not r.has(A) and net.timers == []
