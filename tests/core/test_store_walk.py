"""ObjectStore with directories: random walks over all events, disks that fail among them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.core.spilling import SPILL_TIMER

from .reading import process
from .store_bench import OWNER, Bench, answers

EVENTS = ["create", "create", "seal", "seal", "abort", "pin", "pin", "unpin", "free", "die", "time"]
EVENTS += ["written", "written", "not_written", "restored", "restored", "not_restored", "rested"]
steps = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 5), st.integers(0, 2), st.integers(1, 7)), max_size=90
)


@given(steps, st.sampled_from([("/d0",), ("/d0", "/d1"), ("memory://x",), ("memory://x", "/d1")]), st.sampled_from([0.5, 1.0]))
@settings(max_examples=400)
def test_random_walk_everybody_is_answered_once_and_everything_comes_back(
    walk: list[tuple[str, int, int, int]], directories: tuple[str, ...], threshold: float
) -> None:
    bench = Bench(6, directories, threshold, file_pages=2, grace_s=3.0)
    peers = [process(f"peer{n}") for n in range(3)]
    owners = [OWNER, peers[0], peers[1]]
    asked: dict[int, bytes] = {}
    now = 0.0

    def hear(effects: list[Any]) -> None:
        for receiver, request_id, _, _ in answers(effects):
            assert asked.pop(request_id) == receiver, "every request is answered once, to the one who asked"

    for what, number, who, amount in walk:
        object_id, peer = bytes([number]) * 20, peers[who]
        if what == "time":
            now += amount
            hear(bench.does("on_timer", now))
        elif what == "die":
            bench.dead[peer] = None
            hear(bench.does("drop_client", peer))
        elif what == "rested":
            hear(bench.does("on_timer", now, (SPILL_TIMER, number % len(directories))))
        elif what in ("written", "not_written"):
            if bench.spills:
                bench.spills.insert(0, bench.spills.pop(number % len(bench.spills)))
                hear(getattr(bench, what)())
        elif what in ("restored", "not_restored"):
            if bench.restores:
                bench.restores.insert(0, bench.restores.pop(number % len(bench.restores)))
                hear(getattr(bench, what)())
        elif peer in bench.dead:
            continue
        elif what == "create":
            asked[bench.requests + 1] = peer
            hear(bench.create(object_id, amount, peer, now))
        elif what == "pin":
            asked[bench.requests + 1] = peer
            hear(bench.pin(object_id, peer, urgent=amount > 3, now=now))
        elif what == "unpin":
            hear(bench.does("unpin", peer, [object_id]))
        else:
            argument = {"seal": (object_id, owners[who], amount), "abort": (object_id,), "free": ([object_id],)}[what]
            hear(bench.does(what, *argument))

    while bench.spills or bench.restores:
        hear(bench.written() if bench.spills else bench.restored())
    for number in range(6):
        hear(bench.does("abort", bytes([number]) * 20))
    for _ in range(9):  # a demand is not late as long as the disk works for it
        while bench.spills or bench.restores:
            hear(bench.written() if bench.spills else bench.restored())
        now += 100
        hear(bench.does("on_timer", now))
        for number in range(6):
            hear(bench.does("abort", bytes([number]) * 20))
    assert all(peer in bench.dead for peer in asked.values()), "nobody is left without an answer"
    for peer in [*peers, OWNER]:
        bench.dead[peer] = None
        bench.does("drop_client", peer)
    bench.does("free", [bytes([n]) * 20 for n in range(6)])
    while bench.spills or bench.restores:
        bench.written() if bench.spills else bench.restored()
    assert bench.store.objects == {} and bench.store.arena.used_bytes == 0
    assert bench.store.files.live == {} and bench.files == {}
    assert bench.store.spilling_bytes == 0 and bench.store.statistics()["creations_waiting"] == 0
