"""ObjectTransfer: which of several nodes serves whom: broadcasts, turns, and holders that are none any more."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.wire_transfer import CopyElsewhere, CopyWaits, OpenCopy, RequestCopy
from zray.core.arena import PAGE

from .reading import process
from .transfer_bench import OWNER, Net

A, B = (bytes([n]) * 20 for n in (1, 2))


def test_a_broadcast_is_a_tree() -> None:
    names = ["p", *(f"r{n:02d}" for n in range(40))]
    net = Net(*names, copy_receivers_max=2)
    p = net.node("p")
    p.make(A, 8)
    requests = {name: net.node(name).pin(A, p, 8) for name in names[1:]}
    most: dict[str, int] = {}
    while net.tasks:
        net.step(0)
        for name in names:
            most[name] = max(most.get(name, 0), len(net.node(name).served))
    assert all(net.node(name).ok(request) for name, request in requests.items())
    assert max(most.values()) <= 2, "nobody serves more than two at once"
    served = net.sent(OpenCopy)
    assert len(served) >= 25, "most do not get it from the primary"
    assert len({to for _, to in served}) >= 10
    assert p.transfer.statistics()["copies_elsewhere"] == 40 and p.transfer.pushes.tickets == {}


def relayed(pages: int, *names: str, **limits: Any) -> tuple[Net, list[int]]:
    """A broadcast of a large object, and the requests of its readers."""
    net = Net(*names, transfer_chunk_bytes=PAGE, **limits)
    p = net.node(names[0])
    p.make(A, pages)
    return net, [net.node(name).pin(A, p, pages) for name in names[1:]]


def test_a_large_object_flows_through_a_chain() -> None:
    net, requests = relayed(16, "p", "a", "b", "c", "d")
    nodes = [net.node(name) for name in "abcd"]
    rounds = 0
    while not all(node.ok(request) for node, request in zip(nodes, requests, strict=True)):
        rounds += 1
        for _ in range(len(net.tasks)):  # everybody does one thing: takes a chunk, or hears a word
            net.step(0)
    assert [len(net.sent(kind)) for kind in (CopyElsewhere, OpenCopy)] == [3, 3], "one reads from the primary"
    assert rounds < 2 * 16 + 8, "four do not take four times as long"
    assert net.chunks == 4 * 16
    net.run()
    assert net.node("p").transfer.statistics()["copies_elsewhere"] == 4
    assert all(node.served == {} and node.partial == {} for node in nodes)


def test_a_small_object_is_not_passed_on_before_it_is_whole() -> None:
    net, requests = relayed(3, "p", "a", "b")
    net.run()
    assert net.node("b").ok(requests[1]) and net.sent(OpenCopy) == []


@pytest.mark.parametrize("steps", range(0, 120, 3))
@pytest.mark.parametrize("end", ["dies", "leaves", "is cut off"])
def test_one_of_the_chain_fails_at_any_moment_and_the_others_get_it_whole(steps: int, end: str) -> None:
    net, requests = relayed(12, "p", "a", "b", "c", transfer_attempts_max=2)
    for _ in range(steps):
        if net.tasks:
            net.step(0)
    a = net.node("a")
    if end == "dies":
        net.kill("a")
    elif end == "leaves":
        a.does("drop_client", process("reader"))
    else:
        net.cut.add(frozenset((a.agent, net.node("p").agent)))
    net.wait(300)
    assert net.node("b").ok(requests[1]) and net.node("c").ok(requests[2])
    for name in "pbc":
        assert net.node(name).served == {} and net.node(name).fetches == {}
    if end == "leaves" and steps < 20:
        assert A not in a.store.objects and a.store.arena.used_bytes == 0, "nobody wants it there"


def test_nobody_reads_from_who_reads_from_himself() -> None:
    """The first of a chain has lost its source. Those behind it go to the primary, and then it can read from them."""
    net, requests = relayed(16, "p", "a", "b", "c", transfer_attempts_max=1)
    while not all(A in net.node(name).fetches for name in "abc"):
        net.step(0)
    net.cut.add(frozenset((net.node("a").agent, net.node("p").agent)))
    net.wait(300)
    assert all(net.node(name).ok(request) for name, request in zip("abc", requests, strict=True))
    assert net.chunks < 3 * 16 + 3, "what has come is not brought twice"


def test_what_is_passed_on_while_it_comes_keeps_its_room_until_it_is_read() -> None:
    net, requests = relayed(16, "p", "a", "b")
    a, b = net.node("a"), net.node("b")
    while A not in b.fetches or not a.partial:
        net.step(0)
    a.does("drop_client", process("reader"))
    while not any(task[1] == "unserved" for task in net.tasks):
        net.step(0)
    assert a.store.objects[A].pins and a.store.arena.used_bytes == 16 * PAGE
    a.store.create(net.now, process("writer"), net.request(), A, 16 * PAGE)  # and who makes it now waits for that
    a.settle()
    net.run()
    assert a.store.objects[A].creator == process("writer")
    a.store.seal(A, OWNER)
    a.settle()
    net.run()
    assert b.ok(requests[1])


def test_those_who_wait_for_their_turn_are_told_so_and_do_not_give_up() -> None:
    net = Net("p", "a", "b", copy_receivers_max=1, transfer_attempts_max=2)
    p, a, b = (net.node(n) for n in "pab")
    p.make(A, 2)
    first = a.pin(A, p, 2)
    while A not in a.fetches:
        net.step(0)
    held = [task for task in net.tasks if task[1] == "chunk"]
    net.tasks = [task for task in net.tasks if task[1] != "chunk"]
    second = b.pin(A, p, 2)
    net.wait(100)
    assert b.ok(second) is None and ("p", "b") in net.sent(CopyWaits)
    net.tasks += held
    net.run()
    assert a.ok(first) and b.ok(second)
    assert net.sent(CopyElsewhere) == [("p", "b")] and net.sent(OpenCopy) == [("b", "a")]


def test_a_holder_that_dropped_its_copy_sends_the_asker_back() -> None:
    net = Net("p", "a", "b", copy_receivers_max=1)
    p, a, b = (net.node(n) for n in "pab")
    p.make(A)
    a.pin(A, p)
    net.run()
    a.unpin(A)
    a.store.free([A])  # and the word of it is lost
    request = b.pin(A, p)
    net.run()
    assert b.ok(request) and net.sent(RequestCopy)[-2:] == [("b", "p"), ("b", "p")]
    assert p.transfer.statistics()["copies_elsewhere"] == 1


def test_who_has_lost_its_copy_is_not_sent_to_itself() -> None:
    net = Net("p", "a", copy_receivers_max=1)
    p, a = net.node("p"), net.node("a")
    p.make(A)
    a.pin(A, p)
    net.run()
    a.unpin(A)
    a.store.free([A])  # and the word of it is lost
    request = a.pin(A, p)
    net.run()
    assert a.ok(request) and net.sent(CopyElsewhere) == []


def test_a_long_transfer_is_not_taken_for_a_dead_one() -> None:
    net = Net("p", "h", "r", "s", copy_receivers_max=1)
    p, h, r, s = (net.node(n) for n in "phrs")
    p.make(A, 4)
    h.pin(A, p, 4)
    net.run()
    requests = {node: node.pin(A, p, 4) for node in (r, s)}  # one reads from h, the other from p
    while not (r.fetches and s.fetches):
        net.step(next(i for i, task in enumerate(net.tasks) if task[1] != "chunk"))
    held = [task for task in net.tasks if task[1] == "chunk"]
    net.tasks = [task for task in net.tasks if task[1] != "chunk"]
    net.wait(100)
    assert len(h.served) == len(p.served) == 1
    net.tasks += held
    net.run()
    assert all(node.ok(request) for node, request in requests.items()) and len(net.sent(RequestCopy)) == 3


def test_who_says_nothing_for_long_makes_room_for_others() -> None:
    net = Net("p", "r", "h", copy_receivers_max=1)
    p, r, h = (net.node(n) for n in "prh")
    p.make(A)
    h.pin(A, p)
    net.run()
    for ghost in (process("ghost"), process("ghoul")):  # one is sent to h, the other is served here
        p.does("on_request_copy", ghost, A, [])
    request = r.pin(A, p)
    net.wait(14)
    assert r.ok(request) is None
    net.wait(10)
    assert r.ok(request) and p.served == {} and p.store.objects[A].pins == {}
    p.does("on_request_copy", process("ghost"), A, [])
    p.does("on_request_copy", process("ghoul"), A, [])
    net.wait(100)
    assert p.transfer.pushes._spreads[A].assigned == {} and net.timers


def test_a_source_that_can_not_read_its_own_copy_names_another() -> None:
    net = Net("p", "a", "k", "b", copy_receivers_max=1, pages=4, directories=("memory://x",))
    p, a, k, b = (net.node(n) for n in "pakb")
    p.make(A)
    a.pin(A, p)
    net.run()
    p.make(B, 4)  # A goes to a storage elsewhere
    p.store.objects[A].copy.path = "memory://x/1"  # type: ignore[union-attr]
    p.store.files.live = {"memory://x/1": 1}
    k.pin(A, p)
    net.step(0)  # k is sent to a
    request = b.pin(A, p)
    while not p.restores:
        net.step(0)
    net.tasks = [task for task in net.tasks if task[1] != "restored"]
    p.store.on_restore_failed(p.restores.pop()[0], "the bucket is gone")
    p.settle()
    net.run()
    assert b.ok(request) and ("b", "a") in net.sent(OpenCopy)
