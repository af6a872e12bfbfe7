"""Owner: objects that others own or borrow, and processes that end."""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.wire import (
    ERROR,
    INLINE,
    STORED,
    FreeObjects,
    GetObject,
    ObjectValue,
    Refs,
    RequestLease,
    WatchProcess,
)
from zray.core.effects import HANG_UP, RESOLVE
from zray.core.leases import IDLE_TIMER
from zray.core.waiters import Waiter
from zray.exceptions import (
    ObjectLostError,
    OwnerDiedError,
)
from zray.object_ref import ObjectRef

from .owner_bench import FRIEND, ME, NODE, WORKER, A, B, Bench, C
from .reading import AGENT, sent, verbs

# -- objects of others ----------------------------------------------------------------------------------------------


def borrowed_value(bench: Bench, entry: Any) -> ObjectRef[Any]:
    ref = bench.adopt(A, FRIEND)
    waiter = Waiter(1)
    bench.owner.watch(waiter, [ref])
    assert sent(bench.turn(), GetObject) == [(FRIEND[0], GetObject(A))]
    assert verbs(bench.hears("object_value", A, entry, peer=FRIEND[0]), RESOLVE) == [(waiter,)]
    return ref


def test_a_borrowed_value_is_asked_for_once_and_kept_while_a_reference_lives() -> None:
    bench = Bench()
    ref = borrowed_value(bench, (INLINE, b"9"))
    bench.owner.watch(Waiter(1), [ref])
    assert len(verbs(effects := bench.turn(), RESOLVE)) == 1 and sent(effects, GetObject) == []
    del ref
    bench.turn()
    assert bench.at_rest()


def test_a_stored_value_of_another_is_never_freed_by_a_borrower() -> None:
    bench = Bench()
    ref = borrowed_value(bench, (STORED, 5, NODE, ()))
    del ref
    assert sent(bench.turn(), FreeObjects) == []
    ref = bench.adopt(A, FRIEND)
    bench.owner.watch(Waiter(1), [ref])
    del ref
    bench.owner.references.release(bench.inbox.pop())
    effects = bench.hears("object_value", A, (STORED, 5, NODE, ()), peer=FRIEND[0])
    assert sent(effects, FreeObjects) == [], "not even when the answer meets a reference that was just dropped"


def test_a_reference_that_comes_back_after_a_wait_was_given_up_is_asked_for_again() -> None:
    bench = Bench()
    ref = bench.adopt(A, FRIEND)
    waiter = Waiter(1)
    bench.owner.watch(waiter, [ref])
    waiter.done = True  # the get timed out
    del ref
    bench.turn()
    again = bench.adopt(A, FRIEND)
    bench.owner.watch(Waiter(1), [again])
    assert len(sent(bench.turn(), GetObject)) == 1


def test_an_answer_that_nobody_waits_for_gives_its_registrations_back() -> None:
    bench = Bench()
    effects = bench.hears("object_value", A, (INLINE, b"", ((B, FRIEND),)), peer=FRIEND[0])
    assert sent(effects, Refs) == [(FRIEND[0], Refs([(B, ME[0], -1)]))]


def test_a_reference_dropped_and_adopted_again_in_one_turn_is_asked_for_again() -> None:
    """The entry belonged to the reference that is gone: what it contained is not held any more."""
    bench = Bench()
    ref = borrowed_value(bench, (INLINE, b"9", ((B, FRIEND),)))
    del ref
    bench.owner.references.release(bench.inbox.pop())
    again = bench.adopt(A, FRIEND)  # before the loop has drawn the consequences
    waiter = Waiter(1)
    bench.owner.watch(waiter, [again])
    effects = bench.turn()
    assert sent(effects, GetObject) == [(FRIEND[0], GetObject(A))] and verbs(effects, RESOLVE) == []
    assert verbs(bench.hears("object_value", A, (INLINE, b"9"), peer=FRIEND[0]), RESOLVE) == [(waiter,)]


def test_a_borrower_is_answered_at_once_or_when_the_value_arrives_or_that_it_is_lost() -> None:
    bench = Bench()
    inner = bench.put(b"inner")
    outer = bench.put(b"outer", ((inner.binary(), ME),))
    bench.owner.references.give(outer.binary(), ME, FRIEND[0])
    [(peer, value)] = sent(bench.hears("get_object", outer.binary(), peer=FRIEND[0]), ObjectValue)
    assert peer == FRIEND[0] and value.entry == (INLINE, b"outer", ((inner.binary(), ME),))
    assert bench.owner.references.borrowers[inner.binary()] == {FRIEND[0]: 1}, "the answer registers its receiver"

    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    assert bench.hears("get_object", refs[0].binary(), peer=FRIEND[0]) == []
    effects = bench.done(lease, refs[0], (INLINE, b"late"))
    assert sent(effects, ObjectValue) == [(FRIEND[0], ObjectValue(refs[0].binary(), (INLINE, b"late")))]

    [(_, value)] = sent(bench.hears("get_object", C, peer=FRIEND[0]), ObjectValue)
    assert value.entry[0] == ERROR and isinstance(pickle.loads(value.entry[1]), ObjectLostError)


def test_a_borrower_that_waits_for_a_result_nobody_keeps_is_told() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    bench.hears("get_object", refs[0].binary(), peer=FRIEND[0])
    ghost = ObjectRef(refs[0].binary(), ME, [].append)
    refs.clear()
    bench.turn()
    [(peer, value)] = sent(bench.done(lease, ghost, (INLINE, b"late")), ObjectValue)
    assert peer == FRIEND[0] and value.entry[0] == ERROR
    assert bench.owner._remote_gets == {}


def test_a_get_of_ones_own_object_that_is_gone_is_an_error_and_not_a_hang() -> None:
    bench = Bench()
    ghost = bench.adopt(A, ME)
    waiter = Waiter(1)
    bench.owner.watch(waiter, [ghost])
    assert verbs(bench.turn(), RESOLVE) == [(waiter,)]
    assert isinstance(bench.error(ghost), ObjectLostError) and A.hex() in str(bench.error(ghost))


def test_a_process_is_needed_while_others_hold_what_it_owns_or_its_tasks_run() -> None:
    bench = Bench()
    borrowed = bench.adopt(A, FRIEND)
    ref = bench.put(b"7")
    assert not bench.owner.needed(), "what it holds itself is nobody else's business"
    bench.owner.references.give(ref.binary(), ME, FRIEND[0])
    assert bench.owner.needed()
    bench.hears("refs", [(ref.binary(), FRIEND[0], -1)], peer=FRIEND[0])
    assert not bench.owner.needed()
    refs, effects = bench.call(nested=(borrowed,))
    assert bench.owner.needed()
    lease, _ = bench.grant(effects)
    bench.done(lease, refs[0], (INLINE, b"0"))
    assert bench.owner.needed(), "the node would end the worker that is lent to it, and all that one owns"
    bench.does("on_timer", (IDLE_TIMER,), now=9.0)
    assert not bench.owner.needed()


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_the_death_of_an_owner_resolves_those_who_wait_for_its_objects() -> None:
    bench = Bench()
    ref = bench.adopt(A, FRIEND)
    waiter = Waiter(1)
    bench.owner.watch(waiter, [ref])
    bench.turn()
    assert verbs(bench.hears("worker_died", FRIEND[0], "it was killed"), RESOLVE) == [(waiter,)]
    assert isinstance(bench.error(ref), OwnerDiedError) and "it was killed" in str(bench.error(ref))
    effects = bench.hears("object_value", A, (INLINE, b"late", ((B, WORKER),)), peer=FRIEND[0])
    assert isinstance(bench.error(ref), OwnerDiedError)
    assert sent(effects, Refs) == [(WORKER[0], Refs([(B, ME[0], -1)]))]


def test_the_agent_is_asked_once_to_tell_when_an_owner_ends() -> None:
    """It may have ended already: then it would never answer."""
    bench = Bench()
    refs = [bench.adopt(o, FRIEND) for o in (A, B)]
    bench.owner.watch(Waiter(2), refs)
    effects = bench.turn()
    assert sent(effects, WatchProcess) == [(AGENT, WatchProcess(FRIEND[0]))]
    effects = bench.hears("worker_died", FRIEND[0], "it ended earlier")
    assert verbs(effects, HANG_UP) == [(FRIEND[0],)]
    assert all(isinstance(bench.error(ref), OwnerDiedError) for ref in refs)


def test_the_end_of_an_owner_is_asked_for_again_when_it_is_met_again() -> None:
    bench = Bench()
    bench.hears("worker_died", FRIEND[0], "gone")
    ref = bench.adopt(A, FRIEND)
    bench.owner.watch(waiter := Waiter(1), [ref])
    assert sent(bench.turn(), WatchProcess) == [(AGENT, WatchProcess(FRIEND[0]))]
    assert verbs(bench.hears("worker_died", FRIEND[0], "gone"), RESOLVE) == [(waiter,)]
    refs, effects = bench.call(ref)
    assert isinstance(bench.error(refs[0]), OwnerDiedError) and sent(effects, RequestLease) == []


def test_a_value_that_was_here_before_its_owner_died_stays() -> None:
    bench = Bench()
    ref = borrowed_value(bench, (INLINE, b"9"))
    bench.hears("worker_died", FRIEND[0], "gone")
    assert bench.owner.memory[ref.binary()] == (INLINE, b"9")


def test_nothing_is_kept_for_the_dead_whose_words_come_late() -> None:
    bench = Bench()
    ref = bench.put(b"7")
    bench.owner.references.give(ref.binary(), ME, FRIEND[0])
    theirs = bench.adopt(B, FRIEND)
    bench.owner.references.received(B)
    bench.turn()
    bench.hears("worker_died", FRIEND[0], "gone")
    effects = bench.hears("refs", [(ref.binary(), FRIEND[0], 1)], peer=WORKER[0])
    assert sent(effects, WatchProcess) == [(AGENT, WatchProcess(FRIEND[0]))]
    bench.hears("worker_died", FRIEND[0], "gone")
    assert bench.owner.references.borrowers == {}
    del ref, theirs
    bench.turn()
    assert bench.at_rest()


def test_a_result_whose_worker_is_dead_keeps_nothing_for_it() -> None:
    bench = Bench()
    mine = bench.put(b"7")
    refs, effects = bench.call(nested=(mine,))
    lease, _ = bench.grant(effects)
    bench.hears("worker_died", WORKER[0], "gone")
    bench.done(lease, refs[0], (INLINE, b"1"), borrowed=[(mine.binary(), ME)])
    bench.hears("worker_died", WORKER[0], "gone")  # the answer to being watched again
    refs.clear()
    del mine
    bench.turn()
    assert bench.at_rest()
