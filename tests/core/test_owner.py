"""Owner: entries, those who wait for them, and what follows from messages."""

from __future__ import annotations

import pickle

import pytest

from zray.base.ids import agent_id, process_id
from zray.base.wire import (
    ERROR,
    INLINE,
    STORED,
    Entry,
    FreeObjects,
    Push,
    Refs,
    RequestLease,
    ReturnLease,
)
from zray.core.effects import DIAL, RESOLVE, WARN
from zray.core.entries import contained_in, error_entry
from zray.core.owner import INFEASIBLE_TIMER
from zray.core.waiters import Waiter
from zray.exceptions import (
    InvariantError,
    ObjectLostError,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from zray.object_ref import ObjectRef

from .owner_bench import FRIEND, ME, NODE, WORKER, A, B, Bench
from .reading import AGENT, sent, timers, verbs

# -- values of one's own --------------------------------------------------------------------------------------------


def test_a_put_is_there_at_once_and_goes_with_its_last_reference() -> None:
    bench = Bench()
    ref = bench.put(b"1")
    waiter = Waiter(1)
    bench.owner.watch(waiter, [ref])
    assert verbs(bench.turn(), RESOLVE) == [(waiter,)]
    del ref
    bench.turn()
    assert bench.at_rest()


def test_a_stored_value_is_freed_in_the_store_with_its_last_reference() -> None:
    bench = Bench()
    bench.owner.put(A, (STORED, 1 << 20, NODE, ()))
    ref = bench.ref(A)
    assert bench.turn() == []
    del ref
    assert sent(bench.turn(), FreeObjects) == [(AGENT, FreeObjects([A]))]


def test_a_waiter_is_resolved_once_when_the_last_object_is_there() -> None:
    bench = Bench()
    one, effects = bench.call()
    lease, _ = bench.grant(effects)
    here = bench.put(b"1")
    waiter = Waiter(2)
    bench.owner.watch(waiter, [here, *one])
    assert verbs(bench.turn(), RESOLVE) == []
    assert verbs(bench.done(lease, one[0], (INLINE, b"2")), RESOLVE) == [(waiter,)]


def test_a_waiter_that_gave_up_is_not_resolved() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    waiter = Waiter(1)
    bench.owner.watch(waiter, refs)
    waiter.done = True
    bench.owner.watch(second := Waiter(2), refs)
    assert bench.owner.waiters.watchers[refs[0].binary()] == [second], "those that gave up do not pile up"
    assert verbs(bench.done(lease, refs[0], (INLINE, b"2")), RESOLVE) == []


def test_the_references_inside_an_entry() -> None:
    inner = ((A, ME),)
    assert contained_in((INLINE, b"")) == () == contained_in((ERROR, b"", True))
    assert contained_in((INLINE, b"", inner)) == inner == contained_in((STORED, 1, NODE, inner))


def test_a_waiter_that_fails_fast_is_resolved_by_the_first_error() -> None:
    bench = Bench()
    one, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    other, _ = bench.call(retries=0)
    waiter = Waiter(2)
    waiter.fail_fast = True
    bench.owner.watch(waiter, [*one, *other])
    assert verbs(bench.done(lease, one[0], (ERROR, b"oops")), RESOLVE) == [(waiter,)]
    assert verbs(bench.done(lease, other[0], (INLINE, b"2")), RESOLVE) == [], "and only once"


def test_a_listener_is_resolved_when_enough_has_arrived_since() -> None:
    bench = Bench()
    one, effects = bench.call()
    lease, _ = bench.grant(effects)
    two, _ = bench.call()
    since = bench.owner.waiters.arrivals
    bench.done(lease, one[0], (INLINE, b"1"))
    late, early = Waiter(2), Waiter(1)
    bench.owner.waiters.listen(late, since, 0)
    bench.owner.waiters.listen(early, since, 0)
    assert verbs(bench.turn(), RESOLVE) == [(early,)]
    assert verbs(bench.done(lease, two[0], (INLINE, b"2")), RESOLVE) == [(late,)]


def test_when_the_cluster_is_gone_nobody_waits_any_more() -> None:
    bench = Bench()
    refs, _ = bench.call()
    watcher, listener = Waiter(1), Waiter(1)
    bench.owner.watch(watcher, refs)
    bench.owner.waiters.listen(listener, bench.owner.waiters.arrivals, 0)
    bench.owner.abandon()
    assert verbs(bench.turn(), RESOLVE) == [(watcher,), (listener,)]
    late, later = Waiter(1), Waiter(1)  # they asked before they could know
    bench.owner.watch(late, refs)
    bench.owner.waiters.listen(later, bench.owner.waiters.arrivals, 0)
    assert verbs(bench.turn(), RESOLVE) == [(late,), (later,)]


# -- tasks ----------------------------------------------------------------------------------------------------------


def test_a_task_runs_and_its_result_goes_with_its_reference() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, effects = bench.grant(effects)
    [(peer, push)] = sent(effects, Push)
    assert peer == WORKER[0] and push.specs == [(refs[0].binary()[:16], b"f" * 16, b"p", (), 1, 1, "fun", None)]
    bench.done(lease, refs[0], (INLINE, b"42"))
    assert bench.owner.memory == {refs[0].binary(): (INLINE, b"42")}
    refs.clear()
    bench.turn()
    assert bench.at_rest()


def test_a_result_that_nobody_waits_for_any_more_is_not_kept() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    object_id = refs[0].binary()
    ghost = ObjectRef(object_id, ME, [].append)
    refs.clear()
    bench.turn()
    effects = bench.done(lease, ghost, (STORED, 5, NODE, ()))
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([object_id]))]
    assert bench.at_rest()


def test_a_task_waits_for_its_arguments_and_carries_their_entries() -> None:
    bench = Bench()
    first, effects = bench.call()
    lease, _ = bench.grant(effects)
    second, effects = bench.call(first[0], bench.put(b"7"))
    assert effects == []
    put_id = next(iter(bench.owner.memory))
    bench.done(lease, first[0], (INLINE, b"1"))
    pushed = bench.owner.leases.leases[lease].inflight
    assert list(pushed) == [second[0].binary()[:16]]
    spec = bench.owner._make_spec(next(iter(pushed.values())))
    assert spec[3] == ((0, first[0].binary(), ME, (INLINE, b"1")), (1, put_id, ME, (INLINE, b"7")))


def test_arguments_are_kept_until_the_task_is_done() -> None:
    bench = Bench()
    refs, effects = bench.call(bench.put(b"7"), nested=(bench.put(b"8"),))
    assert len(bench.owner.memory) == 2
    lease, _ = bench.grant(effects)
    bench.done(lease, refs[0], (INLINE, b"1"))
    assert list(bench.owner.memory) == [refs[0].binary()]


def test_an_argument_that_is_an_error_is_the_result_too() -> None:
    bench = Bench()
    first, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    second, _ = bench.call(first[0])
    bench.done(lease, first[0], (ERROR, b"broken"))
    assert bench.owner.memory[second[0].binary()] == (ERROR, b"broken")
    assert bench.owner.tasks.pending == {}
    third, effects = bench.call(second[0])
    assert bench.owner.memory[third[0].binary()] == (ERROR, b"broken") and not sent(effects, RequestLease)


def test_an_error_that_may_be_retried_is_retried_as_often_as_allowed() -> None:
    bench = Bench()
    refs, effects = bench.call(retries=2)
    lease, _ = bench.grant(effects)
    for _ in range(2):
        effects = bench.done(lease, refs[0], (ERROR, b"oops", True))
        assert len(sent(effects, Push)) == 1
    bench.done(lease, refs[0], (ERROR, b"oops", True))
    assert bench.owner.memory[refs[0].binary()][:2] == (ERROR, b"oops")


def test_every_return_of_a_task_arrives() -> None:
    bench = Bench()
    refs, effects = bench.call(returns=3)
    lease, _ = bench.grant(effects)
    bench.done(lease, refs[0], *[(INLINE, b"%d" % n) for n in range(3)])
    assert [bench.owner.memory[r.binary()] for r in refs] == [(INLINE, b"%d" % n) for n in range(3)]


# -- crashes --------------------------------------------------------------------------------------------------------


def test_a_task_whose_worker_died_is_tried_again_and_fails_when_its_retries_are_used_up() -> None:
    bench = Bench()
    refs, effects = bench.call(retries=1)
    lease, _ = bench.grant(effects)
    effects = bench.hears("lease_lost", lease, "killed")
    lease, _ = bench.grant(effects)
    assert refs[0].binary() not in bench.owner.memory
    bench.hears("lease_lost", lease, "killed by signal 9")
    error = bench.error(refs[0])
    assert isinstance(error, WorkerCrashedError) and "killed by signal 9" in str(error) and "2 time(s)" in str(error)


def test_the_answer_of_an_attempt_that_was_given_up_is_discarded() -> None:
    bench = Bench()
    refs, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    bench.hears("lease_lost", lease, "gone")
    effects = bench.done(lease, refs[0], (INLINE, b"late", ((A, FRIEND),)))
    assert isinstance(bench.error(refs[0]), WorkerCrashedError), "a task is never both lost and done"
    assert sent(effects, Refs) == [(FRIEND[0], Refs([(A, ME[0], -1)]))], "what it gave us is given back"


def test_the_answer_of_a_lost_worker_counts_when_it_still_arrives_in_time() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    effects = bench.hears("lease_lost", lease, "gone")
    bench.done(lease, refs[0], (STORED, 5, NODE, ()))
    assert bench.owner.memory[refs[0].binary()] == (STORED, 5, NODE, ())
    second, _ = bench.grant(effects)
    effects = bench.done(second, refs[0], (STORED, 5, NODE, ()))
    assert sent(effects, FreeObjects) == [], "the second answer must not free what the first one brought"


def test_a_lease_that_comes_late_from_a_node_that_is_dead_is_not_used() -> None:
    bench = Bench()
    refs, effects = bench.call()
    [(_, request)] = sent(effects, RequestLease)
    other = agent_id(bytes(range(16)))
    bench.hears("lease_redirected", request.request_id, other, "sim://other")
    effects = bench.hears("worker_died", other, "its node is dead")
    assert [peer for peer, _ in sent(effects, RequestLease)] == [AGENT], "it is asked for here again"
    late = process_id(bytes(range(16)), b"late")
    effects = bench.hears("lease_granted", request.request_id, 77, late, "sim://late", peer=other)
    assert sent(effects, ReturnLease) == [(other, ReturnLease(77))] and not sent(effects, Push)
    effects = bench.hears("lease_granted", request.request_id, 78, WORKER[0], WORKER[1])
    assert [peer for peer, _ in sent(effects, Push)] == [WORKER[0]] and refs


def test_a_second_result_on_another_node_than_the_first_is_freed_there() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    effects = bench.hears("lease_lost", lease, "gone")
    bench.done(lease, refs[0], (STORED, 5, NODE, ()))
    second, _ = bench.grant(effects)
    other = bytes(range(16))
    effects = bench.done(second, refs[0], (STORED, 5, other, ()))
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([refs[0].binary()], agent_id(other)))]
    assert bench.owner.memory[refs[0].binary()] == (STORED, 5, NODE, ())


@pytest.mark.parametrize("again", [(INLINE, b"small"), (STORED, 7, NODE, ())])
def test_a_result_that_is_small_when_it_was_large_before_leaves_nothing_in_the_store(again: Entry) -> None:
    """The first worker may have died between writing the result and saying so."""
    bench = Bench()
    refs, effects = bench.call(retries=-1)
    lease, _ = bench.grant(effects)
    lease, _ = bench.grant(bench.hears("lease_lost", lease, "gone", True))
    effects = bench.done(lease, refs[0], again)
    assert sent(effects, FreeObjects) == ([] if again[0] == STORED else [(AGENT, FreeObjects([refs[0].binary()]))])
    others, _ = bench.call(retries=-1)
    assert sent(bench.done(lease, others[0], (INLINE, b"small")), FreeObjects) == [], "a first attempt leaves nothing"


def test_a_result_that_came_late_is_not_replaced_by_an_error() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    [(_, request)] = sent(bench.hears("lease_lost", lease, "gone"), RequestLease)
    bench.done(lease, refs[0], (INLINE, b"late"))
    bench.hears("lease_rejected", request.request_id, "exhausted", "all workers wait")
    assert bench.owner.memory[refs[0].binary()] == (INLINE, b"late")


@pytest.mark.parametrize("wanted", [True, False])
def test_what_an_attempt_in_vain_may_have_left_in_the_store_is_freed_if_nobody_has_the_result(wanted: bool) -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    effects = bench.hears("lease_lost", lease, "gone")
    second, _ = bench.grant(effects)
    bench.done(lease, refs[0], (STORED, 5, NODE, ()))  # it had been on its way
    object_id = refs[0].binary()
    if not wanted:
        refs.clear()
        bench.turn()
    effects = bench.hears("lease_lost", second, "gone")
    assert sent(effects, FreeObjects) == ([] if wanted else [(AGENT, FreeObjects([object_id]))])


def test_what_a_failed_task_may_have_left_in_the_store_is_freed() -> None:
    """A worker can die, or run out of room for its second result, after the first one was sealed."""
    bench = Bench()
    refs, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    effects = bench.hears("lease_lost", lease, "gone")
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([refs[0].binary()]))]
    effects = bench.done(lease, refs[0], (STORED, 5, NODE, ()))
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([refs[0].binary()]))], "and so is what came too late"

    refs, effects = bench.call(returns=2)
    lease, _ = bench.grant(effects)
    effects = bench.done(lease, refs[0], (ERROR, b"full"), (ERROR, b"full"))
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([r.binary() for r in refs]))]


def test_that_the_result_of_a_failed_task_was_spilled_is_of_no_interest() -> None:
    bench = Bench()
    refs, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    bench.hears("lease_lost", lease, "gone")
    bench.hears("objects_spilled", [(refs[0].binary(), "file")])
    refs.clear()
    bench.turn()
    assert bench.owner.statistics()["spilled"] == 0


# -- references -----------------------------------------------------------------------------------------------------


def test_references_inside_a_result_are_held_while_it_is_kept() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    bench.done(lease, refs[0], (INLINE, b"[ref]", ((A, WORKER),)))
    assert bench.owner.references.owners == {A: WORKER}
    refs.clear()
    effects = bench.turn()
    assert verbs(effects, DIAL) == [WORKER]
    assert sent(effects, Refs) == [(WORKER[0], Refs([(A, ME[0], -1)]))]
    assert bench.at_rest()


def test_a_worker_that_kept_an_argument_is_registered_before_the_task_lets_go() -> None:
    bench = Bench()
    mine = bench.put(b"7")
    mine_id = mine.binary()
    theirs = bench.adopt(A, FRIEND)
    bench.owner.references.received(A)
    refs, effects = bench.call(nested=(mine, theirs))
    lease, _ = bench.grant(effects)
    del mine, theirs
    effects = bench.done(lease, refs[0], (INLINE, b""), borrowed=[(mine_id, ME), (A, FRIEND)])
    assert bench.owner.references.borrowers == {mine_id: {WORKER[0]: 1}}
    assert sent(effects, Refs) == [(FRIEND[0], Refs([(A, WORKER[0], 1), (A, ME[0], -1)]))]
    assert mine_id in bench.owner.memory
    refs.clear()
    bench.hears("refs", [(mine_id, WORKER[0], -1)], peer=WORKER[0])
    assert bench.at_rest()


def test_what_a_task_kept_is_named_and_counts_as_registered() -> None:
    bench = Bench()
    kept = bench.adopt(A, FRIEND)
    gone = bench.adopt(B, FRIEND)
    del gone
    bench.turn()
    assert bench.owner.kept({A: FRIEND, B: FRIEND}) == [(A, FRIEND)]
    del kept
    assert sent(bench.turn(), Refs) == [(FRIEND[0], Refs([(A, ME[0], -1)]))]


# -- no room on any node --------------------------------------------------------------------------------------------


def test_an_infeasible_task_warns_once_and_fails_after_its_grace() -> None:
    bench = Bench(infeasible_grace_s=3.0)
    refs, effects = bench.call()
    [(_, request)] = sent(effects, RequestLease)
    effects = bench.hears("lease_rejected", request.request_id, "infeasible", "it asks for 9 CPU")
    [(text,)] = verbs(effects, WARN)
    assert "fun()" in text and "9 CPU" in text and "3 s" in text
    [(at, key)] = timers(effects)
    assert at == 0.5 and key[0] == INFEASIBLE_TIMER
    [(_, request)] = sent(bench.does("on_timer", key, now=0.5), RequestLease)  # a node may have come
    effects = bench.hears("lease_rejected", request.request_id, "infeasible", "it asks for 9 CPU", now=2.8)
    assert verbs(effects, WARN) == []
    [(at, key)] = timers(effects)
    assert at == 3.0
    bench.does("on_timer", key, now=3.0)
    assert isinstance(bench.error(refs[0]), TaskUnschedulableError)
    _again, effects = bench.call()
    assert len(sent(effects, RequestLease)) == 1, "the next one asks again"


def test_an_infeasible_task_may_wait_for_a_cluster_that_grows() -> None:
    bench = Bench(infeasible="wait")
    refs, effects = bench.call()
    [(_, request)] = sent(effects, RequestLease)
    effects = bench.hears("lease_rejected", request.request_id, "infeasible", "it asks for 9 CPU")
    [(_, key)] = timers(effects)
    effects = bench.does("on_timer", key, now=10.0)
    assert refs[0].binary() not in bench.owner.memory and len(sent(effects, RequestLease)) == 1


def test_when_no_further_worker_may_start_the_waiting_tasks_fail() -> None:
    bench = Bench()
    refs, effects = bench.call()
    [(_, request)] = sent(effects, RequestLease)
    bench.hears("lease_rejected", request.request_id, "exhausted", "all 3 workers wait")
    assert isinstance(bench.error(refs[0]), TaskUnschedulableError) and "all 3 workers" in str(bench.error(refs[0]))
    bench.hears("lease_rejected", 99, "exhausted", "")


def test_leases_that_are_called_back_go_back() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    bench.hears("lease_reclaimed", lease)
    effects = bench.done(lease, refs[0], (INLINE, b"1"))
    assert sent(effects, ReturnLease) == [(AGENT, ReturnLease(lease))]


def test_check_sees_a_value_that_nobody_needs_and_a_wait_for_what_is_here() -> None:
    bench = Bench()
    bench.owner.memory[A] = (INLINE, b"")
    with pytest.raises(InvariantError, match="nobody needs"):
        bench.owner.check()
    bench = Bench()
    ref = bench.put(b"")
    bench.owner.waiters.watchers[ref.binary()] = [Waiter(1)]
    with pytest.raises(InvariantError, match="which is here"):
        bench.owner.check()


def test_an_error_entry_holds_the_error() -> None:
    kind, payload = error_entry(ObjectLostError("gone", "abc"))
    error = pickle.loads(payload)
    assert kind == ERROR and error.object_id == "abc" and str(error) == "gone"


def test_what_a_worker_left_in_the_store_goes_when_its_task_can_not_be_run_again() -> None:
    bench = Bench()
    refs, effects = bench.call()
    lease, _ = bench.grant(effects)
    [(_, again)] = sent(bench.hears("lease_lost", lease, "it was killed"), RequestLease)
    effects = bench.hears("lease_rejected", again.request_id, "exhausted", "its placement group was removed")
    assert [refs[0].binary()] in [message.object_ids for _, message in sent(effects, FreeObjects)]
    assert isinstance(bench.error(refs[0]), TaskUnschedulableError)
