"""ObjectStore: room, seals, pins, frees, and who waits for room."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.wire import Reply
from zray.core.arena import PAGE
from zray.core.store import CREATE_TIMER, ObjectStore

from .reading import drain, process, sent, timers

CLIENT, OTHER, OWNER = process("client"), process("other"), process("owner")
A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))


class Bench:
    """A store, the list of the dead, and one call that checks after each event."""

    def __init__(self, pages: int = 4, grace_s: float = 10.0) -> None:
        self.dead: dict[bytes, None] = {}
        self.out: list[Any] = []
        self.store = ObjectStore(pages * PAGE, Config(store_full_grace_s=grace_s), self.out, self.dead.__contains__)
        self.requests = 0

    def does(self, event: str, *args: Any) -> list[Any]:
        getattr(self.store, event)(*args)
        self.store.check()
        return drain(self.out)

    def create(self, object_id: bytes, pages: int = 1, peer: bytes = CLIENT, now: float = 0.0) -> list[Any]:
        self.requests += 1
        return self.does("create", now, peer, self.requests, object_id, pages * PAGE)

    def sealed(self, object_id: bytes, pages: int = 1, owner: bytes = OWNER) -> None:
        self.create(object_id, pages)
        self.does("seal", object_id, owner)


def answers(effects: list[Any]) -> list[tuple[bytes, int, bool, Any]]:
    return [(peer, reply.request_id, reply.ok, reply.value) for peer, reply in sent(effects, Reply)]


def test_create_answers_with_a_place() -> None:
    bench = Bench()
    assert answers(bench.create(A)) == [(CLIENT, 1, True, (0, False))]
    assert answers(bench.create(B)) == [(CLIENT, 2, True, (PAGE, False))]


def test_a_pin_that_overtakes_the_seal_waits_for_it() -> None:
    """The owner hears of the object on another link than the agent does."""
    bench = Bench()
    bench.create(A)
    assert answers(bench.does("pin", OTHER, 9, A)) == []
    assert answers(bench.does("seal", A, OWNER)) == [(OTHER, 9, True, (0, PAGE))]
    bench.does("free", [A])
    assert A in bench.store.objects
    bench.does("unpin", OTHER, [A])
    assert A not in bench.store.objects


def test_who_waits_for_a_seal_that_never_comes_is_told() -> None:
    bench = Bench()
    bench.create(A)
    bench.does("pin", OTHER, 9, A)
    bench.does("pin", OWNER, 10, A)
    bench.does("drop_client", OWNER)
    [(peer, request_id, ok, text)] = answers(bench.does("drop_client", CLIENT))
    assert (peer, request_id, ok) == (OTHER, 9, False) and text[0] == "lost" and A.hex() in text[1]


def test_what_is_not_here_can_not_be_read() -> None:
    [(peer, request_id, ok, _)] = answers(Bench().does("pin", OTHER, 9, A))
    assert (peer, request_id, ok) == (OTHER, 9, False)


def test_an_object_that_is_here_already_is_not_made_again() -> None:
    bench = Bench()
    bench.sealed(A)
    assert answers(bench.create(A, peer=OTHER)) == [(OTHER, 2, True, "exists")]


def test_who_makes_what_another_is_writing_takes_what_that_one_wrote() -> None:
    """A task that was tried again may end while its first attempt still writes."""
    bench = Bench()
    bench.create(A)
    assert answers(bench.create(A, peer=OTHER)) == []
    assert answers(bench.does("seal", A, OWNER)) == [(OTHER, 2, True, "exists")]


@pytest.mark.parametrize("end", [("abort", A), ("drop_client", CLIENT)], ids=["gave up", "died"])
def test_who_makes_what_another_did_not_complete_writes_it(end: tuple[Any, ...]) -> None:
    bench = Bench()
    bench.create(A)
    bench.create(A, peer=OTHER)
    assert answers(bench.does(*end)) == [(OTHER, 2, True, (0, False))]
    bench.does("seal", A, OWNER)
    assert bench.store.statistics()["objects"] == 1


def test_who_waits_for_what_another_writes_and_dies_is_forgotten() -> None:
    bench = Bench()
    bench.create(A)
    bench.create(A, peer=OTHER)
    bench.does("drop_client", OTHER)
    assert answers(bench.does("abort", A)) == [] and bench.store.objects == {}


def test_what_the_first_did_not_complete_may_find_no_room() -> None:
    bench = Bench(pages=1)
    bench.create(A)
    bench.create(A, peer=OTHER)
    bench.create(B)
    bench.does("abort", A)
    bench.does("seal", B, OWNER)
    bench.does("pin", CLIENT, 9, B)
    [(peer, request, ok, _)] = answers(bench.does("on_timer", 10.0, (CREATE_TIMER,)))
    assert (peer, request, ok) == (OTHER, 2, False)


def test_what_is_made_again_after_it_was_freed_and_is_still_read_is_there() -> None:
    bench = Bench()
    bench.sealed(A)
    bench.does("pin", CLIENT, 9, A)
    bench.does("free", [A])
    assert answers(bench.create(A, peer=OTHER)) == [(OTHER, 2, True, "exists")]
    bench.does("unpin", CLIENT, [A])
    assert A in bench.store.objects
    bench.does("free", [A])
    assert bench.store.objects == {}


def test_a_free_gives_the_room_back_and_the_room_is_warm() -> None:
    bench = Bench()
    bench.sealed(A)
    bench.does("free", [A])
    assert bench.store.arena.used_bytes == 0
    assert answers(bench.create(B)) == [(CLIENT, 2, True, (0, True))]


def test_a_pinned_object_keeps_its_place_until_the_last_pin_goes() -> None:
    bench = Bench()
    bench.sealed(A)
    bench.does("pin", OTHER, 1, A)
    bench.does("pin", OTHER, 2, A)
    bench.does("free", [A])
    assert bench.store.arena.used_bytes == PAGE
    bench.does("unpin", OTHER, [A])
    assert bench.store.arena.used_bytes == PAGE
    bench.does("unpin", OTHER, [A])
    assert bench.store.arena.used_bytes == 0 and A not in bench.store.objects


def test_unpinning_what_one_has_not_pinned_changes_nothing() -> None:
    bench = Bench()
    bench.sealed(A)
    bench.does("pin", OTHER, 1, A)
    bench.does("unpin", CLIENT, [A, B])
    bench.does("free", [A])
    assert A in bench.store.objects


def test_a_free_that_overtakes_the_seal_is_not_forgotten() -> None:
    """The writer seals on its own link; the owner may hear of the object and free it before the seal is here."""
    bench = Bench()
    bench.create(A)
    bench.does("free", [A])
    bench.does("seal", A, OWNER)
    assert bench.store.arena.used_bytes == 0 and bench.store.objects == {}


def test_an_aborted_object_leaves_cold_room() -> None:
    bench = Bench(pages=1)
    bench.create(A)
    bench.does("abort", A)
    assert answers(bench.create(B)) == [(CLIENT, 2, True, (0, False))]
    bench.does("seal", B, OWNER)
    bench.does("abort", B)
    assert B in bench.store.objects, "what is sealed can not be aborted"


# -- waiting for room -----------------------------------------------------------------------------------------------


def test_without_room_a_create_waits_and_is_served_when_room_comes() -> None:
    bench = Bench(pages=2)
    bench.sealed(A, 2)
    effects = bench.create(B, now=5.0)
    assert answers(effects) == [] and timers(effects) == [(15.0, (CREATE_TIMER,))]
    assert answers(bench.does("free", [A])) == [(CLIENT, 2, True, (0, True))]


def test_those_who_wait_are_served_in_order_and_a_small_one_does_not_push_in() -> None:
    bench = Bench(pages=3)
    bench.sealed(A, 2)
    bench.create(B, 3)
    assert answers(bench.create(C, 1)) == [], "there is room for it, but B was first"
    assert [a[1] for a in answers(bench.does("free", [A]))] == [2]
    bench.does("seal", B, OWNER)
    assert [a[1] for a in answers(bench.does("free", [B]))] == [3]


def test_who_waited_for_too_long_is_refused_with_a_summary_and_the_next_is_served() -> None:
    bench = Bench(pages=3)
    bench.sealed(A, 2)
    bench.does("pin", OTHER, 77, A)
    bench.create(B, 3, now=0.0)
    bench.create(C, 1, now=4.0)
    refused, served = answers(bench.does("on_timer", 10.0))
    assert refused[1:3] == (2, False) and refused[3][0] == "full"
    assert f"{2 * PAGE} of {3 * PAGE} bytes" in refused[3][1] and "being read" in refused[3][1]
    assert served == (CLIENT, 3, True, (2 * PAGE, False))


def test_what_can_never_fit_is_refused_at_once() -> None:
    bench = Bench(pages=2)
    [(_, _, ok, text)] = answers(bench.create(A, 3))
    assert not ok and text[0] == "full" and "does not fit" in text[1]


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_the_death_of_a_client_undoes_its_pins_its_writing_and_its_waiting() -> None:
    bench = Bench(pages=3)
    bench.sealed(A)
    bench.does("pin", OTHER, 1, A)
    bench.does("free", [A])
    bench.create(B, peer=OTHER)
    bench.create(C, 3, peer=OTHER)
    bench.dead[OTHER] = None
    assert answers(bench.does("drop_client", OTHER)) == []
    assert bench.store.objects == {} and bench.store.statistics()["creations_waiting"] == 0


def test_the_death_of_an_owner_frees_what_it_owned_when_the_readers_are_done() -> None:
    bench = Bench()
    bench.sealed(A)
    bench.sealed(B)
    bench.does("pin", OTHER, 1, A)
    bench.dead[OWNER] = None
    bench.does("drop_client", OWNER)
    assert list(bench.store.objects) == [A]
    bench.does("unpin", OTHER, [A])
    assert bench.store.objects == {}


def test_what_is_sealed_for_an_owner_that_is_dead_already_is_freed() -> None:
    bench = Bench()
    bench.create(A)
    bench.dead[OWNER] = None
    bench.does("drop_client", OWNER)
    bench.does("seal", A, OWNER)
    assert bench.store.objects == {}


def test_the_room_of_the_dead_goes_to_those_who_wait() -> None:
    bench = Bench(pages=1)
    bench.create(A, peer=OTHER)
    bench.create(B)
    assert [a[0] for a in answers(bench.does("drop_client", OTHER))] == [CLIENT]


# -- random walk ----------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.sampled_from(["create", "seal", "abort", "pin", "unpin", "free", "die", "time"]),
        st.integers(0, 3),
        st.integers(0, 2),
        st.integers(1, 4),
    ),
    max_size=60,
)


@given(steps)
def test_random_walk_everything_comes_back_when_everybody_is_gone(walk: list[tuple[str, int, int, int]]) -> None:
    bench = Bench(pages=6, grace_s=3.0)
    peers = [process(f"peer{n}") for n in range(3)]
    owner = [OWNER, peers[0], peers[1]]
    now = 0.0
    asked: dict[int, bytes] = {}
    for what, number, who, amount in walk:
        object_id, peer = bytes([number]) * 20, peers[who]
        effects: list[Any] = []
        if what == "time":
            now += amount
            effects = bench.does("on_timer", now)
        elif what == "die":
            bench.dead[peer] = None
            effects = bench.does("drop_client", peer)
        elif peer in bench.dead:
            continue
        elif what == "create":
            asked[bench.requests + 1] = peer
            effects = bench.create(object_id, amount, peer, now)
        elif what == "pin":
            bench.requests += 1
            asked[bench.requests] = peer
            effects = bench.does("pin", peer, bench.requests, object_id)
        elif what == "unpin":
            effects = bench.does("unpin", peer, [object_id])
        else:
            argument = {"seal": (object_id, owner[who]), "abort": (object_id,), "free": ([object_id],)}[what]
            effects = bench.does(what, *argument)
        for receiver, request_id, ok, _ in answers(effects):
            assert ok or what != "seal"
            assert asked.pop(request_id) == receiver, "every request is answered once, to the one who asked"
    now += 100
    effects = bench.does("on_timer", now)
    for number in range(4):
        effects += bench.does("abort", bytes([number]) * 20)
    for receiver, request_id, _, _ in answers(effects):
        assert asked.pop(request_id) == receiver
    assert all(peer in bench.dead for peer in asked.values()), "nobody is left without an answer"
    for peer in [*peers, OWNER]:
        bench.dead[peer] = None
        bench.does("drop_client", peer)
    bench.does("free", [bytes([n]) * 20 for n in range(4)])
    assert bench.store.objects == {} and bench.store.arena.used_bytes == 0


@pytest.mark.parametrize("pinned", [True, False])
def test_statistics_count_what_is_there(pinned: bool) -> None:
    bench = Bench()
    bench.sealed(A)
    if pinned:
        bench.does("pin", OTHER, 1, A)
    statistics = bench.store.statistics()
    assert statistics["objects"] == 1 and statistics["pinned"] == int(pinned) and statistics["used_bytes"] == PAGE
