"""NodeAgent: the joint work of scheduler, pool and store, and the witness of deaths."""

from __future__ import annotations

from typing import Any

from zray.base.ids import process_id
from zray.base.wire import (
    ExitWorker,
    Heartbeat,
    LeaseGranted,
    LeaseLost,
    LeaseReclaimed,
    LeaseRejected,
    ProcessDied,
    Reply,
    WorkerDied,
)
from zray.base.wire_actors import ActorLost
from zray.base.wire_nodes import JobEnded
from zray.core.agent import HEARTBEAT_TIMER, REAP_TIMER, RELIEF_TIMER, SIGN_TIMER
from zray.core.effects import HANG_UP, KILL_WORKER, LOOK, START_WORKER, STOP, WATCH
from zray.core.store import CREATE_TIMER
from zray.core.worker_starts import START_TIMER

from .agent_bench import ACTOR, DRIVER, JOB, NODE, OTHER_JOB, SECOND, A, Bench
from .reading import CONTROL, process, resident, sent, timers, verbs

# -- leases ---------------------------------------------------------------------------------------------------------


def test_a_request_gets_resources_and_then_a_worker() -> None:
    bench = Bench()
    effects = bench.request()
    [(worker,)] = verbs(effects, START_WORKER)
    assert sent(effects, LeaseGranted) == []
    assert sent(bench.ready(worker), LeaseGranted) == [
        (DRIVER, LeaseGranted(1, next(iter(bench.agent.scheduler.leases)), worker, "sim://"))
    ]


def test_the_pool_is_filled_when_the_node_starts() -> None:
    bench = Bench(prestart=2)
    bench.started(bench.does("start"))
    assert len(sent(bench.request(), LeaseGranted)) == 1, "no process has to be started for it"


def test_a_returned_lease_serves_the_next_request() -> None:
    bench = Bench(cpus=1)
    grant = bench.lease()
    assert sent(bench.request(), LeaseGranted) == []
    effects = bench.does("on_return_lease", DRIVER, grant.lease_id)
    assert [(peer, g.worker_id) for peer, g in sent(effects, LeaseGranted)] == [(DRIVER, grant.worker_id)]


def test_a_lease_can_only_be_returned_by_its_owner_and_once() -> None:
    bench = Bench()
    grant = bench.lease()
    bench.does("on_return_lease", SECOND, grant.lease_id)
    assert not bench.balanced()
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    assert bench.balanced()


def test_what_can_never_fit_is_rejected_with_the_reason() -> None:
    bench = Bench(cpus=2)
    [(peer, rejection)] = sent(bench.request(cpus=3), LeaseRejected)
    assert peer == DRIVER and rejection.kind == "infeasible" and "3 CPU" in rejection.reason


def test_a_request_can_be_cancelled_even_when_it_only_waits_for_its_worker() -> None:
    bench = Bench(cpus=1)
    effects = bench.request()
    bench.does("on_cancel_lease", DRIVER, 1)
    assert bench.balanced()
    assert sent(bench.started(effects), LeaseGranted) == []
    bench.request()
    bench.request()
    bench.does("on_cancel_lease", DRIVER, 3)
    assert bench.agent.scheduler.queue == {}


def test_a_cancel_that_crosses_the_grant_leaves_the_lease_to_its_owner() -> None:
    bench = Bench()
    grant = bench.lease()
    bench.does("on_cancel_lease", DRIVER, grant.request_id)
    assert not bench.balanced()
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    assert bench.balanced()


def test_leases_are_called_back_when_others_wait() -> None:
    bench = Bench(cpus=1)
    grant = bench.lease()
    effects = bench.request(SECOND, OTHER_JOB)
    assert sent(effects, LeaseReclaimed) == [(DRIVER, LeaseReclaimed(grant.lease_id))]
    effects = bench.started(bench.does("on_return_lease", DRIVER, grant.lease_id))
    assert [peer for peer, _ in sent(effects, LeaseGranted)] == [SECOND]


# -- blocked workers ------------------------------------------------------------------------------------------------


def test_a_blocked_worker_lends_its_cpu_to_its_child() -> None:
    bench = Bench(cpus=1)
    parent = bench.lease()
    effects = bench.request(parent.worker_id, depth=1)
    assert verbs(effects, START_WORKER) == []
    effects = bench.started(bench.does("on_worker_blocked", parent.worker_id, parent.worker_id))
    assert [peer for peer, _ in sent(effects, LeaseGranted)] == [parent.worker_id]


def test_when_a_worker_wakes_what_could_not_be_called_back_is_called_back() -> None:
    bench = Bench(cpus=1)
    grant = bench.lease()
    bench.does("on_worker_blocked", grant.worker_id, grant.worker_id)
    child = bench.lease(grant.worker_id)
    bench.does("on_worker_blocked", child.worker_id, child.worker_id)
    third = bench.lease(SECOND, OTHER_JOB)
    bench.does("on_worker_blocked", third.worker_id, third.worker_id)
    bench.does("on_worker_unblocked", grant.worker_id, grant.worker_id)
    effects = bench.request(SECOND, OTHER_JOB)
    assert sent(effects, LeaseReclaimed) == [(DRIVER, LeaseReclaimed(grant.lease_id))]
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    bench.request(SECOND, OTHER_JOB)
    bench.request(SECOND, OTHER_JOB)
    effects = bench.does("on_worker_unblocked", child.worker_id, child.worker_id)
    assert [peer for peer, _ in sent(effects, LeaseReclaimed)] == [grant.worker_id]


def exhausted_node() -> tuple[Bench, list[Any]]:
    """Two workers, one the child of the other, both blocked; a driver and the deeper one ask for more."""
    bench = Bench(cpus=1, workers_max=2, exhausted_grace_ms=100.0)
    one = bench.lease()
    bench.does("on_worker_blocked", one.worker_id, one.worker_id)
    two = bench.lease(one.worker_id)
    bench.request(SECOND)
    bench.request(two.worker_id, depth=2)
    effects = bench.does("on_worker_blocked", two.worker_id, two.worker_id, now=5.0)
    assert sent(effects, LeaseRejected) == [], "a result that wakes one of them may be on its way"
    assert (5.1, (RELIEF_TIMER,)) in timers(effects)
    return bench, [one, two]


def test_when_every_worker_waits_for_another_and_none_may_start_what_they_ask_for_is_refused() -> None:
    bench, (_, two) = exhausted_node()
    effects = bench.does("on_timer", (RELIEF_TIMER,), now=5.1)
    [(peer, rejection)] = sent(effects, LeaseRejected)
    assert peer == two.worker_id and rejection.kind == "exhausted" and "ZRAY_WORKERS_MAX" in rejection.reason
    bench.does("on_worker_unblocked", two.worker_id, two.worker_id, now=5.11)
    effects = bench.does("on_timer", (RELIEF_TIMER,), now=5.3)
    assert sent(effects, LeaseRejected) == [], "the driver's task can run when that one is done"


def test_when_that_wakes_nobody_everything_is_refused_and_nobody_waits_for_ever() -> None:
    bench, _ = exhausted_node()
    effects = bench.does("on_timer", (RELIEF_TIMER,), now=5.1)
    [at] = [at for at, key in timers(effects) if key == (RELIEF_TIMER,)]
    [(peer, _)] = sent(bench.does("on_timer", (RELIEF_TIMER,), now=at), LeaseRejected)
    assert peer == SECOND
    assert not bench.agent.pool.waiting and not bench.agent.scheduler.queue


def test_a_node_that_only_looked_exhausted_refuses_nobody() -> None:
    bench, (_, two) = exhausted_node()
    bench.does("on_worker_unblocked", two.worker_id, two.worker_id, now=5.05)
    bench.does("on_worker_blocked", two.worker_id, two.worker_id, now=5.06)
    assert sent(bench.does("on_timer", (RELIEF_TIMER,), now=5.1), LeaseRejected) == []


def test_while_one_worker_still_runs_nobody_is_refused() -> None:
    bench = Bench(cpus=2, workers_max=2)
    one, two = bench.lease(), bench.lease()
    bench.request(two.worker_id)
    effects = bench.does("on_worker_blocked", two.worker_id, two.worker_id)
    assert sent(effects, LeaseRejected) == []
    effects = bench.does("on_return_lease", DRIVER, one.lease_id)
    assert [peer for peer, _ in sent(effects, LeaseGranted)] == [two.worker_id]


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_the_death_of_a_worker_is_told_to_the_owner_of_its_lease_and_to_those_who_wanted_to_know() -> None:
    bench = Bench()
    grant = bench.lease()
    assert bench.does("on_watch_process", SECOND, grant.worker_id) == []
    effects = bench.does("on_worker_exited", grant.worker_id, "killed by signal 9")
    assert sent(effects, LeaseLost) == [(DRIVER, LeaseLost(grant.lease_id, "killed by signal 9"))]
    died = WorkerDied(grant.worker_id, "killed by signal 9")
    assert sent(effects, WorkerDied) == [(SECOND, died)]
    assert verbs(effects, HANG_UP) == [(grant.worker_id,)]
    assert bench.balanced()
    assert bench.does("on_worker_exited", grant.worker_id, "again") == []


def test_a_prestarted_worker_that_dies_is_replaced() -> None:
    bench = Bench(prestart=1)
    effects = bench.does("start")
    [(worker,)] = verbs(effects, START_WORKER)
    bench.started(effects)
    assert len(verbs(bench.does("on_worker_exited", worker, "gone"), START_WORKER)) == 1


def test_the_end_of_a_driver_ends_its_requests_its_leases_and_their_workers_and_control_is_told() -> None:
    bench = Bench(cpus=1)
    grant = bench.lease()
    bench.request()
    bench.does("on_watch_process", grant.worker_id, DRIVER)
    effects = bench.does("on_process_ended", DRIVER)
    assert sent(effects, ProcessDied) == [(CONTROL, ProcessDied(DRIVER, "the driver ended"))]
    assert verbs(effects, KILL_WORKER) == [(grant.worker_id,)]
    assert {peer for peer, _ in sent(effects, WorkerDied)} == {grant.worker_id}
    assert bench.balanced() and bench.agent.scheduler.queue == {}
    assert sent(bench.does("on_worker_exited", grant.worker_id, "ended"), LeaseLost) == []


def test_the_children_of_a_dead_worker_are_ended_with_their_workers() -> None:
    bench = Bench()
    parent = bench.lease()
    child = bench.lease(parent.worker_id)
    effects = bench.does("on_worker_exited", parent.worker_id, "gone")
    assert verbs(effects, KILL_WORKER) == [(child.worker_id,)]
    assert bench.balanced()


def test_the_end_of_a_job_ends_its_workers_and_frees_what_its_driver_owned() -> None:
    bench = Bench()
    grant = bench.lease()
    other = bench.lease(SECOND, OTHER_JOB)
    bench.does("on_create_object", DRIVER, 50, A, 100)
    bench.does("on_seal_object", DRIVER, A, DRIVER)
    effects = bench.does("on_job_finished", CONTROL, JOB, DRIVER)
    assert (grant.worker_id,) in verbs(effects, KILL_WORKER) and (other.worker_id,) not in verbs(effects, KILL_WORKER)
    assert bench.agent.store.arena.used_bytes == 0
    assert list(bench.agent.scheduler.leases) == [other.lease_id]
    bench.does("on_worker_exited", grant.worker_id, "ended")
    bench.does("on_process_ended", DRIVER)  # its process ends too, later


def test_nothing_is_given_to_the_dead_whose_words_arrive_late() -> None:
    bench = Bench()
    bench.does("on_create_object", SECOND, 50, A, 100)
    bench.does("on_seal_object", SECOND, A, SECOND)
    bench.does("on_process_ended", DRIVER)
    assert sent(bench.request(), LeaseGranted) == [] and bench.agent.scheduler.queue == {} and bench.balanced()
    assert bench.does("on_create_object", DRIVER, 51, b"2" * 20, 100) == []
    assert bench.does("on_pin_object", DRIVER, 52, A) == []
    assert bench.agent.store.statistics()["objects"] == 1 and bench.agent.store.statistics()["pinned"] == 0


def test_the_greeting_of_a_dead_worker_makes_it_no_client() -> None:
    bench = Bench(prestart=1)
    [(worker,)] = verbs(bench.does("start"), START_WORKER)
    bench.does("on_worker_exited", worker, "gone")
    bench.does("on_peer_joined", worker, "worker", 5)
    assert worker not in bench.agent.clients


def test_who_wants_to_know_of_the_end_of_a_process_that_is_gone_already_is_told_at_once() -> None:
    bench = Bench()
    grant = bench.lease()
    bench.does("on_worker_exited", grant.worker_id, "killed by signal 9")
    effects = bench.does("on_watch_process", SECOND, grant.worker_id)
    assert sent(effects, WorkerDied) == [(SECOND, WorkerDied(grant.worker_id, "killed by signal 9"))]
    never = process_id(NODE, b"gone")
    assert sent(bench.does("on_watch_process", SECOND, never), WorkerDied)[0][1].worker_id == never


def test_a_watcher_that_ends_is_told_nothing() -> None:
    bench = Bench()
    grant = bench.lease()
    bench.does("on_watch_process", SECOND, grant.worker_id)
    bench.does("on_process_ended", SECOND)
    assert sent(bench.does("on_worker_exited", grant.worker_id, "gone"), WorkerDied) == []


# -- objects and time -----------------------------------------------------------------------------------------------


def test_objects_are_created_sealed_pinned_unpinned_and_freed() -> None:
    bench = Bench()
    [(_, reply)] = sent(bench.does("on_create_object", DRIVER, 5, A, 100), Reply)
    assert reply == Reply(5, True, (0, False))
    bench.does("on_seal_object", DRIVER, A, DRIVER)
    [(_, reply)] = sent(bench.does("on_pin_object", SECOND, 6, A), Reply)
    assert reply == Reply(6, True, (0, 100))
    bench.does("on_free_objects", DRIVER, [A])
    assert bench.agent.statistics()["store_objects"] == 1
    bench.does("on_unpin_objects", SECOND, [A])
    assert bench.agent.statistics()["store_objects"] == 0
    bench.does("on_create_object", DRIVER, 7, A, 100)
    bench.does("on_abort_object", DRIVER, A)
    assert bench.agent.statistics()["store_objects"] == 0


def test_a_create_that_waits_is_refused_by_the_timer() -> None:
    bench = Bench(store_full_grace_s=1.0)
    bench.does("on_create_object", DRIVER, 5, A, 1 << 20)
    effects = bench.does("on_create_object", DRIVER, 6, b"2" * 20, 100, now=3.0)
    assert timers(effects) == [(4.0, (CREATE_TIMER,))]
    [(_, reply)] = sent(bench.does("on_timer", (CREATE_TIMER,), now=4.0), Reply)
    assert reply.request_id == 6 and not reply.ok


def test_control_hears_of_resources_when_they_changed_and_not_more_often_than_it_must() -> None:
    bench = Bench(cpus=2, heartbeat_ms=100.0)
    effects = bench.request()
    assert (0.1, (HEARTBEAT_TIMER,)) in timers(effects)
    assert (0.1, (HEARTBEAT_TIMER,)) not in timers(bench.request())
    effects = bench.does("on_timer", (HEARTBEAT_TIMER,), now=0.1)
    assert sent(effects, Heartbeat) == [(CONTROL, Heartbeat(process("node"), {"CPU": 0}))]
    bench.does("on_cancel_lease", DRIVER, 1)
    bench.request()
    assert sent(bench.does("on_timer", (HEARTBEAT_TIMER,), now=0.2), Heartbeat) == [], "nothing is new"


def test_idle_workers_are_ended_by_the_timer() -> None:
    bench = Bench(worker_idle_s=2.0)
    grant = bench.lease()
    effects = bench.does("on_return_lease", DRIVER, grant.lease_id, now=5.0)
    assert (7.0, (REAP_TIMER,)) in timers(effects)
    effects = bench.does("on_timer", (REAP_TIMER,), now=7.0)
    assert [peer for peer, _ in sent(effects, ExitWorker)] == [grant.worker_id]


def test_an_idle_worker_that_holds_leases_is_not_asked_to_leave() -> None:
    """What it lent would be taken for the work of a dead owner, and ended with all it owns."""
    bench = Bench(worker_idle_s=2.0)
    grant = bench.lease()
    child = bench.lease(grant.worker_id)
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    assert sent(bench.does("on_timer", (REAP_TIMER,), now=9.0), ExitWorker) == []
    bench.does("on_return_lease", grant.worker_id, child.lease_id, now=10.0)
    effects = bench.does("on_timer", (REAP_TIMER,), now=19.0)
    assert [peer for peer, _ in sent(effects, ExitWorker)] == [grant.worker_id, child.worker_id]


def test_an_idle_worker_that_others_need_stays() -> None:
    bench = Bench(cpus=1, workers_max=1)
    grant = bench.lease()
    bench.does("on_return_lease", DRIVER, grant.lease_id)
    effects = bench.request(SECOND, OTHER_JOB)
    assert [peer for peer, _ in sent(effects, ExitWorker)] == [grant.worker_id]
    effects = bench.does("on_worker_stays", grant.worker_id, grant.worker_id, now=5.0)
    assert sent(effects, ExitWorker) == []
    [at] = [at for at, key in timers(effects) if key == (RELIEF_TIMER,)]
    [(peer, _)] = sent(bench.does("on_timer", (RELIEF_TIMER,), now=at), LeaseRejected)
    assert peer == SECOND, "no place will become free for the other job: better an error than to wait for ever"




def test_a_worker_that_does_not_start_in_time_is_ended_and_another_started() -> None:
    bench = Bench()
    [(worker,)] = verbs(bench.request(), START_WORKER)
    assert verbs(bench.does("on_worker_late", worker, now=30.0), KILL_WORKER) == [(worker,)]
    effects = bench.does("on_worker_exited", worker, "killed", now=30.1)
    assert len(verbs(effects, START_WORKER)) == 1
    bench.started(effects)
    assert (DRIVER, 1) in bench.granted


def test_a_worker_that_has_started_is_not_late() -> None:
    bench = Bench()
    worker = bench.lease().worker_id
    assert verbs(bench.does("on_worker_late", worker, now=30.0), KILL_WORKER) == []


def test_the_statistics_of_a_node_have_those_of_all_its_machines() -> None:
    bench = Bench()
    bench.does("on_watch_process", DRIVER, SECOND)
    numbers = bench.agent.statistics()
    assert numbers["processes_watched"] == 1
    assert not {"clients", "leases", "workers", "bundles", "pulls", "tickets", "searches", "store_objects"} - numbers.keys()


# -- drivers ----------------------------------------------------------------------------------------------------------


def test_a_driver_that_ends_before_its_first_word_is_noticed() -> None:
    bench = Bench()
    young = resident("yung")[0]
    assert verbs(bench.does("on_driver_started", CONTROL, young, 78), WATCH) == [(young, 78)]
    assert sent(bench.does("on_process_ended", young), ProcessDied) == [(CONTROL, ProcessDied(young, "the driver ended"))]


def test_a_driver_whose_end_was_seen_before_the_control_knew_of_it_is_told_again() -> None:
    bench = Bench()
    bench.does("on_process_ended", DRIVER)
    effects = bench.does("on_driver_started", CONTROL, DRIVER, 77)
    assert sent(effects, ProcessDied) == [(CONTROL, ProcessDied(DRIVER, "the driver ended"))]
    assert verbs(effects, WATCH) == []


def looked(bench: Bench, *stopped: bytes) -> list[Any]:
    """The agent's timer, and what it sees then."""
    assert verbs(bench.does("on_timer", (SIGN_TIMER,)), LOOK) == [()]
    return bench.does("on_drivers_seen", list(stopped))


def test_a_driver_that_is_stopped_keeps_its_work_for_a_while_and_no_longer() -> None:
    bench = Bench(remote=True, driver_death_s=2.0, health_check_ms=500.0)
    grant = bench.lease()
    for _ in range(4):
        assert sent(looked(bench, DRIVER), ProcessDied) == []
    assert sent(looked(bench), ProcessDied) == [], "it goes on: its time begins anew"
    for _ in range(4):
        assert sent(looked(bench, DRIVER), ProcessDied) == []
    effects = looked(bench, DRIVER)
    reason = "the driver was stopped for 2 s (ZRAY_DRIVER_DEATH_S)"
    assert sent(effects, ProcessDied) == [(CONTROL, ProcessDied(DRIVER, reason))]
    assert sent(effects, JobEnded) == [(DRIVER, JobEnded(reason))]
    assert verbs(effects, KILL_WORKER) == [(grant.worker_id,)]
    assert verbs(effects, HANG_UP) == [], "it has to hear that first"
    assert sent(looked(bench, DRIVER), ProcessDied) == []
    assert sent(looked(bench, SECOND), ProcessDied) == [], "others are not concerned"


def test_the_drivers_of_a_node_that_was_given_up_hear_of_it() -> None:
    bench = Bench(remote=True)
    effects = bench.does("on_node_refused", CONTROL, "too long", True)
    assert sent(effects, JobEnded) == [(driver, JobEnded("too long")) for driver in (DRIVER, SECOND)]
    assert effects[-1] == (STOP, "too long")


def test_an_agent_of_one_driver_alone_does_not_look_after_it() -> None:
    assert verbs(Bench(driver_death_s=0.1).does("start"), LOOK) == []


# -- workers that can not be started ---------------------------------------------------------------------------------


def fail_starts(bench: Bench, effects: list[Any]) -> list[Any]:
    """Every worker that is started ends before it is ready; the effects of the last end."""
    for _ in range(10):
        started = verbs(effects, START_WORKER)
        if not started:
            return effects
        for (worker_id,) in started:
            effects = bench.does("on_worker_exited", worker_id, WORDS)
        if timers(effects) and not (sent(effects, LeaseRejected) or sent(effects, ActorLost)):
            effects = bench.does("on_timer", (START_TIMER,))
    raise AssertionError("workers are started for ever")


WORDS = "pid 9 exited with code 7; its last words: no room"
REASON = f"can not start workers: 3 attempts in a row failed; the last one: {WORDS}"


def test_what_waits_for_a_worker_that_can_not_be_started_is_refused_with_the_cause() -> None:
    bench = Bench(worker_start_failures_max=3)
    [(peer, refused)] = sent(fail_starts(bench, bench.request()), LeaseRejected)
    assert peer == DRIVER and refused.kind == "unstartable" and refused.reason.endswith(REASON)
    assert bench.balanced()
    [(_, again)] = sent(fail_starts(bench, bench.request() + bench.does("on_timer", (START_TIMER,))), LeaseRejected)
    assert again.reason.endswith(REASON.replace("3 attempts", "4 attempts")), "who comes later has one attempt"


def test_an_actor_that_waits_for_a_worker_that_can_not_be_started_is_lost_with_the_cause() -> None:
    bench = Bench(worker_start_failures_max=3)
    [(_, lost)] = sent(fail_starts(bench, bench.place()), ActorLost)
    assert lost.actor_id == ACTOR and lost.reason.endswith(REASON) and not lost.willing
    assert bench.balanced()


def test_what_a_worker_that_is_there_may_serve_waits_for_it() -> None:
    bench = Bench(worker_start_failures_max=1)
    grant = bench.lease()
    effects = bench.request()
    for (worker_id,) in verbs(effects, START_WORKER):
        assert sent(bench.does("on_worker_exited", worker_id, "no room"), LeaseRejected) == []
    effects = bench.does("on_return_lease", DRIVER, grant.lease_id)
    assert [granted.worker_id for _, granted in sent(effects, LeaseGranted)] == [grant.worker_id]
