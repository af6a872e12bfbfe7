"""NodeAgent: actors, their workers, and what they hold."""

from __future__ import annotations

import pytest

from zray.base.wire import ExitWorker, LeaseGranted, LeaseLost, LeaseReclaimed, LeaseRejected, ProcessDied
from zray.base.wire_actors import ActorLost, ActorPlaced, ActorRefused, StartActor
from zray.base.wire_placement import SubscribePlacementGroup
from zray.core.agent import REAP_TIMER, RELIEF_TIMER
from zray.core.effects import KILL_WORKER, START_WORKER

from .agent_bench import ACTOR, DRIVER, JOB, ONE, OTHER, SECOND, Bench
from .reading import CONTROL, process, sent, timers, verbs


def test_an_actor_gets_what_it_holds_and_a_worker_that_is_told_to_become_it() -> None:
    bench = Bench(cpus=2)
    effects = bench.place(holds=ONE)
    [(worker,)] = verbs(effects, START_WORKER)
    assert bench.agent.scheduler.resources.available["CPU"] == 10_000
    effects = bench.ready(worker)
    placed = ActorPlaced(ACTOR, 1, process("node"), worker, "sim://", 1)
    assert sent(effects, ActorPlaced) == [(CONTROL, placed)]
    assert sent(effects, StartActor) == [(worker, StartActor(ACTOR, 1, JOB, ONE, (), b"creation"))]


def test_an_actor_takes_a_worker_that_was_started_ahead_and_another_is_started_for_it() -> None:
    bench = Bench(prestart=1)
    bench.started(bench.does("start"))
    effects = bench.place()
    assert len(sent(effects, StartActor)) == 1 and len(verbs(effects, START_WORKER)) == 1


def test_what_a_node_must_have_for_an_actor_is_not_what_the_actor_takes() -> None:
    bench = Bench(cpus=1)
    bench.actor(ACTOR)
    bench.actor(OTHER)
    assert bench.agent.scheduler.resources.available["CPU"] == 10_000
    [(peer, refusal)] = sent(bench.place(b"third-actor-", needs={"CPU": 20_000}), ActorRefused)
    assert peer == CONTROL and refusal.kind == "infeasible" and "2 CPU" in refusal.reason
    [(_, refusal)] = sent(bench.place(b"third-actor-", holds={"GPU": 10_000}), ActorRefused)
    assert refusal.kind == "infeasible" and "1 GPU" in refusal.reason


def test_an_actor_waits_for_what_it_will_hold_and_leases_are_called_back_for_it() -> None:
    bench = Bench(cpus=1)
    grant = bench.lease()
    effects = bench.place(holds=ONE)
    assert sent(effects, LeaseReclaimed) == [(DRIVER, LeaseReclaimed(grant.lease_id))]
    effects = bench.started(bench.does("on_return_lease", DRIVER, grant.lease_id))
    assert len(sent(effects, StartActor)) == 1
    assert sent(bench.request(), LeaseReclaimed) == [], "an actor is never called back"


def test_the_actors_of_a_node_are_limited_and_those_that_wait_count() -> None:
    bench = Bench(cpus=1, actors_max=2)
    bench.actor(holds=ONE)
    assert sent(bench.place(OTHER, holds=ONE), ActorRefused) == [], "it waits"
    [(_, refusal)] = sent(bench.place(b"third-actor-"), ActorRefused)
    assert refusal.kind == "exhausted" and "ZRAY_ACTORS_MAX" in refusal.reason
    bench.end(force=False, actor=OTHER)
    assert sent(bench.place(b"third-actor-"), ActorRefused) == []


def test_the_end_of_an_actors_process_is_told_to_control_and_its_resources_are_free() -> None:
    bench = Bench()
    worker = bench.actor(holds=ONE, retriable=False)
    effects = bench.does("on_worker_exited", worker, "killed by signal 9")
    assert sent(effects, ActorLost) == [(CONTROL, ActorLost(ACTOR, 1, "killed by signal 9"))]
    assert sent(effects, LeaseLost) == [] and bench.balanced()
    assert sent(effects, ProcessDied) == [(CONTROL, ProcessDied(worker, "killed by signal 9"))]


def test_an_actor_that_is_to_end_at_once_is_killed_and_lost() -> None:
    bench = Bench()
    worker = bench.actor(holds=ONE)
    effects = bench.end(force=True)
    assert verbs(effects, KILL_WORKER) == [(worker,)] and not bench.balanced(), "its process holds them still"
    effects = bench.does("on_worker_exited", worker, "killed by signal 15")
    assert len(sent(effects, ActorLost)) == 1 and bench.balanced()
    assert bench.end(force=True) == [] == bench.end(force=True, actor=OTHER)


def test_an_actor_that_may_end_in_good_order_holds_nothing_any_more_and_its_worker_is_asked() -> None:
    bench = Bench(worker_idle_s=2.0)
    worker = bench.actor(holds=ONE)
    effects = bench.end(force=False)
    assert [peer for peer, _ in sent(effects, ExitWorker)] == [worker] and verbs(effects, KILL_WORKER) == []
    assert bench.balanced()
    effects = bench.does("on_worker_stays", worker, worker, now=1.0)
    assert sent(bench.request(), LeaseGranted) == [], "who was an actor runs nobody's tasks"
    effects = bench.does("on_timer", (REAP_TIMER,), now=3.0)
    assert [peer for peer, _ in sent(effects, ExitWorker)] == [worker], "it is asked again"
    assert sent(bench.does("on_worker_exited", worker, "it left"), ActorLost) == []


def test_words_about_an_earlier_incarnation_end_nobody() -> None:
    bench = Bench()
    worker = bench.actor()
    bench.does("on_worker_exited", worker, "gone")
    bench.actor(incarnation=2)
    assert bench.end(force=True, incarnation=1) == [] == bench.end(force=False, incarnation=1)


def test_an_actor_that_waits_can_be_ended_wherever_it_waits_and_control_hears_that_it_is_gone() -> None:
    """It may be one that is to be restarted: then control waits for this word."""
    lost = [(CONTROL, ActorLost(ACTOR, 1, "it was ended before it had a process"))]
    bench = Bench(cpus=1)
    bench.lease()
    bench.place(holds=ONE)
    assert sent(bench.end(force=True), ActorLost) == lost and bench.agent.scheduler.queue == {}

    bench = Bench()
    [(worker,)] = verbs(bench.place(holds=ONE), START_WORKER)
    effects = bench.end(force=True)
    assert sent(effects, ActorLost) == lost
    assert verbs(effects, KILL_WORKER) == [(worker,)] and bench.balanced()
    assert sent(bench.does("on_worker_exited", worker, "killed"), ActorLost) == []

    bench = Bench(actor_starts_max=0)
    bench.place(holds=ONE)
    assert sent(bench.end(force=True), ActorLost) == lost
    assert bench.balanced() and not bench.agent.pool.actors_waiting


def test_a_worker_that_dies_before_it_could_become_an_actor_is_replaced() -> None:
    bench = Bench()
    [(worker,)] = verbs(bench.place(holds=ONE), START_WORKER)
    effects = bench.does("on_worker_exited", worker, "gone")
    assert sent(effects, ActorLost) == []
    [(second,)] = verbs(effects, START_WORKER)
    assert [peer for peer, _ in sent(bench.ready(second), StartActor)] == [second]


@pytest.mark.parametrize("detached", [False, True])
def test_the_end_of_a_job_ends_the_workers_of_its_actors_but_not_of_detached_ones(detached: bool) -> None:
    bench = Bench()
    worker = bench.actor(detached=detached)
    effects = bench.does("on_job_finished", CONTROL, JOB, DRIVER)
    assert ((worker,) in verbs(effects, KILL_WORKER)) == (not detached)


def test_a_blocked_actor_lends_its_cpu_out() -> None:
    bench = Bench(cpus=1)
    worker = bench.actor(holds=ONE)
    assert sent(bench.started(bench.request(worker)), LeaseGranted) == []
    effects = bench.started(bench.does("on_worker_blocked", worker, worker))
    assert [peer for peer, _ in sent(effects, LeaseGranted)] == [worker]


def test_what_is_refused_on_an_exhausted_node_are_tasks_and_not_actors() -> None:
    """They need none of the processes that are missing, only what the tasks that wait for one have taken already."""
    bench = Bench(cpus=1, workers_max=1)
    grant = bench.lease()
    bench.does("on_worker_blocked", grant.worker_id, grant.worker_id, now=5.0)
    effects = bench.request(SECOND)
    bench.place(holds=ONE)
    [at] = [at for at, key in timers(effects) if key == (RELIEF_TIMER,)]
    effects = bench.does("on_timer", (RELIEF_TIMER,), now=at)
    assert [peer for peer, _ in sent(effects, LeaseRejected)] == [SECOND]
    assert len(sent(bench.started(effects), StartActor)) == 1


def test_the_last_words_of_an_actor_that_is_ended_meanwhile_are_not_kept() -> None:
    bench = Bench()
    worker = bench.actor(holds=ONE)
    bench.does("on_actor_exiting", worker, ACTOR, "it called exit_actor()")
    bench.end(force=False)
    bench.does("on_worker_exited", worker, "exit code 0")
    assert not bench.agent._exiting and bench.balanced()


# -- placement groups -------------------------------------------------------------------------------------------------


GROUP = b"group-group-grou"
WITHIN = ("bundle", GROUP, 0)


def with_bundle(bench: Bench) -> None:
    """The node has the one bundle of a group, with one CPU."""
    bench.hears_of_bundles("prepare_bundles", GROUP, 1, [(0, ONE)])
    bench.hears_of_bundles("commit_bundles", GROUP, 1)


def test_the_control_is_asked_what_becomes_of_the_group_of_an_actor() -> None:
    bench = Bench(cpus=2)
    with_bundle(bench)
    assert sent(bench.place(holds=ONE, strategy=WITHIN), SubscribePlacementGroup) == [(CONTROL, SubscribePlacementGroup(GROUP))]
    assert sent(bench.place(OTHER, holds=ONE, strategy=WITHIN), SubscribePlacementGroup) == []


def test_actors_without_a_process_go_back_to_the_control_when_their_bundle_goes() -> None:
    bench = Bench(cpus=2)
    with_bundle(bench)
    bench.place(ACTOR, holds=ONE, strategy=WITHIN)  # it has its lease, and waits for a worker
    bench.place(OTHER, holds=ONE, strategy=WITHIN)  # it waits for that
    effects = bench.hears_of_bundles("placement_group_updated", GROUP, "REMOVED", [ONE], [b""], "its job ended")
    [(peer, refusal)] = sent(effects, ActorRefused)
    assert (peer, *refusal[:3]) == (CONTROL, OTHER, 1, "elsewhere") and "its job ended" in refusal.reason
    effects = bench.hears_of_bundles("return_bundles", GROUP, [0], "its job ended")
    assert sent(effects, ActorRefused) == [(CONTROL, ActorRefused(ACTOR, 1, "elsewhere", "its job ended"))]
    assert bench.balanced() and sent(bench.end(force=True), ActorLost) == []


def test_an_actor_with_a_process_is_killed_when_its_bundle_goes() -> None:
    bench = Bench(cpus=2)
    with_bundle(bench)
    worker = bench.actor(holds=ONE, strategy=WITHIN)
    effects = bench.hears_of_bundles("return_bundles", GROUP, [0], "it was removed")
    assert verbs(effects, KILL_WORKER) == [(worker,)] and sent(effects, ActorRefused) == []
    effects = bench.does("on_worker_exited", worker, "killed by signal 9")
    assert len(sent(effects, ActorLost)) == 1 and bench.balanced()
