"""ObjectTransfer: links that break, sources and receivers that die, messages that get lost."""

from __future__ import annotations

import pytest

from zray.base.wire_transfer import OpenCopy
from zray.core.arena import PAGE
from zray.core.pulls import PullState
from zray.exceptions import InvariantError

from .reading import process
from .transfer_bench import Net, pull_of

A, B = bytes([1]) * 20, bytes([2]) * 20


def test_after_a_broken_link_the_rest_comes_and_not_the_whole() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 10)
    request = r.pin(A, p, 10)
    while net.chunks < 6:
        net.step(0)
    net.cut.add(frozenset((p.agent, r.agent)))
    net.run()
    assert pull_of(net, "r", A).state is PullState.RESTING and pull_of(net, "r", A).received == 6 * PAGE
    net.cut.clear()
    net.wait(1)
    assert r.ok(request) and net.chunks == 10


def test_a_source_that_fails_again_and_again_is_replaced_by_another_with_a_copy() -> None:
    net = Net("p", "h", "r", copy_receivers_max=1)
    p, h, r = net.node("p"), net.node("h"), net.node("r")
    p.make(A, 6)
    h.pin(A, p, 6)
    net.run()
    net.cut.add(frozenset((h.agent, r.agent)))
    request = r.pin(A, p, 6)
    while not net.tasks or r.ok(request) is None:
        if not net.tasks:
            net.fire()
        net.step(0)
        assert not (h.served and p.served), "who failed does not go on serving"
    net.run()
    assert r.ok(request) and net.chunks == 12
    assert net.sent(OpenCopy)[0] == ("r", "h")
    net.cut = {frozenset((p.agent, r.agent))}
    other = Net("p", "h", "r")
    p, h, r = other.node("p"), other.node("h"), other.node("r")
    p.make(A, 6)
    other.cut = {frozenset((p.agent, r.agent))}
    request = r.pin(A, p, 6)
    other.wait(0.1)
    h.pin(A, p, 6)
    while r.ok(request) is None:
        if not other.tasks:
            other.fire()
        other.step(0)
        assert not (h.served and p.served), "who failed does not go on serving"


def test_without_another_source_the_readers_hear_the_reason() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 6)
    net.cut = {frozenset((p.agent, r.agent))}
    request = r.pin(A, p, 6)
    net.wait(60)
    _, ok, (kind, text) = r.answers[request]
    assert not ok and kind == "lost" and "no other node has a copy" in text
    assert r.store.objects == {} and p.store.objects[A].pins == {} and p.served == {}


def test_the_death_of_the_source_in_the_middle_and_another_goes_on_where_it_stopped() -> None:
    net = Net("p", "h", "k", "r", copy_receivers_max=1)
    p, h, k, r = (net.node(n) for n in "phkr")
    p.make(A, 10)
    for node in (h, k):
        node.pin(A, p, 10)
        net.run()
    assert k.has(A) and h.has(A)
    before = net.chunks
    request = r.pin(A, p, 10)
    while net.chunks < before + 4:
        net.step(0)
    source = r.fetches[A][0].removeprefix("tcp://")
    assert source in ("h", "k")
    net.kill(source)
    net.run()
    net.wait(10)
    assert r.ok(request) and net.chunks == before + 10


def test_the_death_of_the_primary_does_not_stop_what_comes_from_another() -> None:
    net = Net("p", "h", "r", copy_receivers_max=1)
    p, h, r = (net.node(n) for n in "phr")
    p.make(A, 10)
    h.pin(A, p, 10)
    net.run()
    h.unpin(A)
    request = r.pin(A, p, 10)
    while not h.served:
        net.step(0)
    net.kill("p")
    net.run()
    assert r.ok(request), "it was being read there, so it stayed"
    r.unpin(A)
    net.wait(100)
    assert not r.has(A) and not h.has(A), "copies go with their primary"


def test_the_death_of_the_primary_in_the_middle_sends_the_reader_to_one_that_reads_its_own_copy() -> None:
    net = Net("p", "h", "k", "r", copy_receivers_max=1)
    p, h, k, r = (net.node(n) for n in "phkr")
    p.make(A, 10)
    h.pin(A, p, 10)
    net.run()
    k.pin(A, p, 10)
    net.step(0)  # k is sent to h
    request = r.pin(A, p, 10)
    while A not in r.fetches or r.fetches[A][3] < 4 * PAGE:
        net.step(0)
    assert r.fetches[A][0] == "tcp://p"
    net.kill("p")
    net.run()
    assert r.ok(request) and r.transfer.pulls.pulls == {} and net.chunks == 30, "h still has it because it is reading it"


@pytest.mark.parametrize("steps", range(12))
def test_the_death_of_the_only_source_at_any_moment_is_a_loss_or_none(steps: int) -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A, 3)
    request = r.pin(A, p, 3)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    net.kill("p")
    net.run()
    net.wait(60)
    assert r.ok(request) is not None
    if not r.ok(request):
        assert "p died" in r.answers[request][2][1]
    r.unpin(A)
    assert r.store.objects == {} and r.transfer.pulls.pulls == {}
    later = r.pin(A, p, 3)
    assert r.ok(later) is False and "p died" in r.answers[later][2][1]


def test_the_death_of_the_receiver_gives_back_what_it_read() -> None:
    net = Net("p", "r", "s", copy_receivers_max=1)
    p, r, s = (net.node(n) for n in "prs")
    p.make(A, 5)
    r.pin(A, p, 5)
    request = s.pin(A, p, 5)
    while not r.fetches:
        net.step(0)
    net.kill("r")
    net.run()
    assert s.ok(request) and p.served == {} and p.store.objects[A].pins == {}


def two_primaries() -> tuple[Net, int, int]:
    """A reader has half of an object when another comes that has heard of a second primary, made anew."""
    net = Net("p", "q", "r")
    p, q, r = (net.node(name) for name in "pqr")
    p.make(A, 10)
    q.make(A, 10)
    first = r.pin(A, p, 10)
    while net.chunks < 6:
        net.step(0)
    second = r.pin(A, q, 10, peer=process("second"))
    return net, first, second


def test_who_has_heard_of_another_primary_is_served_from_there_when_the_first_is_lost() -> None:
    net, first, second = two_primaries()
    net.kill("p")
    net.run()
    r = net.node("r")
    assert r.ok(first) is False and r.ok(second) and r.store.copies == {A: net.node("q").agent}
    assert net.chunks == 16, "nothing of the first is in the second"


def test_who_has_heard_of_another_primary_is_content_with_the_copy_that_comes() -> None:
    net, first, second = two_primaries()
    net.run()
    r = net.node("r")
    assert r.ok(first) and r.ok(second) and net.chunks == 10 and not r.transfer.pulls.pulls


def test_who_has_heard_of_another_primary_is_served_from_there_when_the_others_leave() -> None:
    net, first, second = two_primaries()
    r = net.node("r")
    r.does("drop_client", process("reader"))
    net.run()
    assert r.ok(first) is None and r.ok(second) and r.store.copies == {A: net.node("q").agent}


def test_who_has_heard_of_another_primary_may_leave_too() -> None:
    net, first, second = two_primaries()
    r = net.node("r")
    r.does("drop_client", process("second"))
    net.kill("p")
    net.run()
    assert r.ok(first) is False and r.ok(second) is None and not r.store.objects and not r.transfer.pulls.pulls


def test_a_primary_that_says_nothing_is_given_up_after_a_while() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    request = r.pin(A, p)
    net.lose = 1000
    net.wait(15)
    assert r.ok(request) is None
    net.wait(60)
    assert r.ok(request) is False and "does not answer" in r.answers[request][2][1]


def test_a_lost_question_is_asked_again() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    request = r.pin(A, p)
    net.lose = 1
    net.wait(1)
    assert r.ok(request) is None
    net.wait(10)
    assert r.ok(request) and net.chunks == 1


def test_a_spill_file_that_is_damaged_is_a_loss_and_not_a_wrong_value() -> None:
    net = Net("p", "r", pages=4, directories=("/d0",))
    p, r = net.node("p"), net.node("r")
    p.make(A, 8)  # larger than the memory: it is in a file
    request = r.pin(A, p, 8)
    while A not in r.fetches:
        net.step(0)
    net.tasks = [task for task in net.tasks if task[1] != "chunk"]
    del r.fetches[A]
    r.does("on_fetch_failed", A, 0, "source", "the bytes do not have the checksum")
    net.run()
    assert r.ok(request) is False
    assert not p.store.objects, "nobody else is sent there"


def full_disk(net: Net) -> str:
    """The disk to which r brings A is full; which it is."""
    r = net.node("r")
    while A not in r.fetches:
        net.step(0)
    net.tasks = [task for task in net.tasks if task[:2] != (r, "chunk")]
    path = str(r.fetches.pop(A)[4][0])
    r.does("on_fetch_failed", A, 0, "disk", "No space left on device")
    return path.rpartition("/")[0]


def test_a_copy_that_finds_its_disk_full_goes_to_another() -> None:
    net = Net("p", "r", directories=("/d0", "/d1"), pages=2)
    p, r = net.node("p"), net.node("r")
    p.make(A, 5)
    request = r.pin(A, p, 5)
    first = full_disk(net)
    assert r.ok(request) is None
    net.run()
    assert r.ok(request) and not r.answers[request][2][0].startswith(first)
    r.unpin(A)
    net.run()
    assert r.store.objects == {} and p.store.objects[A].pins == {}


def test_where_all_disks_are_full_the_readers_hear_that() -> None:
    net = Net("p", "r", directories=("/d0",), pages=2)
    p, r = net.node("p"), net.node("r")
    p.make(A, 5)
    request = r.pin(A, p, 5)
    times = 0
    while r.ok(request) is None:
        full_disk(net)
        times += 1
    assert times > 1 and r.answers[request][2][0] == "disk"
    net.run()
    assert r.store.objects == {} and p.store.objects[A].pins == {}


def test_without_room_to_read_it_at_the_source_the_readers_are_told_so_and_nothing_is_lost() -> None:
    net = Net("p", "r", pages=2, directories=("memory://x",))
    p, r = net.node("p"), net.node("r")
    p.make(A, 2)
    p.make(B, 2)
    p.store.objects[A].copy.path = "memory://x/1"  # type: ignore[union-attr]
    p.store.files.live = {"memory://x/1": 1}
    p.pin(B, p, 2)
    request = r.pin(A, p, 2)
    net.wait(60)
    _, ok, (kind, text) = r.answers[request]
    assert not ok and kind == "full" and "does not fit into the object store" in text and p.has(A)
    p.unpin(B)
    request = r.pin(A, p, 2)
    net.run()
    assert r.ok(request)


@pytest.mark.parametrize("steps", range(12))
def test_a_free_of_what_was_lost_leaves_alone_what_was_made_again_elsewhere(steps: int) -> None:
    net = Net("p", "q", "r")
    p, q, r = net.node("p"), net.node("q"), net.node("r")
    p.make(A, 3)
    q.make(A, 3)
    request = r.pin(A, q, 3)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    r.does("free", [A], p.agent)  # its owner does not know whether that node can be reached
    r.does("free", [A])
    p.does("on_free_primaries", r.agent, [A])
    q.does("on_free_copies", p.agent, [A])
    net.run()
    assert r.ok(request) and q.has(A) and not p.store.objects


def test_checks_see_what_is_wrong() -> None:
    net = Net("p", "r")
    p, r = net.node("p"), net.node("r")
    p.make(A)
    r.pin(A, p)
    pull_of(net, "r", A).received = 99 * PAGE
    with pytest.raises(InvariantError, match="bytes"):
        r.transfer.check()
    pull_of(net, "r", A).received = 0
    r.transfer.pulls._bytes[0] += 1
    with pytest.raises(InvariantError, match="admitted"):
        r.transfer.check()
    r.transfer.pulls._bytes[0] -= 1
    pull_of(net, "r", A).readers.clear()
    with pytest.raises(InvariantError, match="for nobody"):
        r.transfer.check()
