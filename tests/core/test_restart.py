"""A control that was killed and started again: what it knows, what it waits for, and what it makes of what it hears."""

from __future__ import annotations

import pickle
import sqlite3
from typing import Any

import pytest

from zray.base.config import Config
from zray.base.wire import JobFinished, Reply
from zray.base.wire_actors import ActorUpdated, EndActor, PlaceActor
from zray.base.wire_nodes import NodeRefused
from zray.base.wire_placement import CommitBundles, PrepareBundles, ReturnBundles
from zray.base.wire_return import OwnerKnown
from zray.core.actor import ActorState
from zray.core.effects import PERSIST
from zray.core.gcs import Gcs
from zray.core.nodes import HEALTH_TIMER, NodeState
from zray.core.placement import GroupState
from zray.core.restart import EXPECTED_TIMER
from zray.exceptions import ActorDiedError
from zray.io.db import STATEMENTS, load, migrate, storable

from .reading import drain, process, sent, timers

NODE, EAST = (name.encode().ljust(6, b"-") + b"-" * 10 for name in ("home", "east"))
AGENT, EASTERN = process("home"), process("east")
DRIVER, WORKER, CALLER = b"home--driver----", b"home--worker----", b"east--caller----"
A, G, F = b"actor-a-----", process("group"), b"f" * 16
CPU = {"CPU": 40_000}


class Bench:
    """The control, with a database in memory that outlives it."""

    def __init__(self, **limits: Any) -> None:
        self.limits = limits
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.database)
        self.gcs = self._new(None)
        self.register(NODE, AGENT)

    def _new(self, saved: Any) -> Gcs:
        return Gcs(b"cluster", Config(**self.limits), saved=saved)

    def killed(self, now: float = 10.0) -> list[Any]:
        """The control is killed and started again; all it had asked to be written was."""
        self.gcs = self._new(load(self.database))
        self.gcs.start(now)
        return self.effects()

    def effects(self) -> list[Any]:
        self.gcs.check()
        effects = drain(self.gcs.out)
        for effect in effects:
            if effect[0] == PERSIST:
                self.database.execute(STATEMENTS[effect[1]], tuple(storable(value) for value in effect[2]))
        return effects

    def hears(self, event: str, *fields: Any, peer: bytes = DRIVER, now: float = 10.0) -> list[Any]:
        for machine in (self.gcs, self.gcs.actors, self.gcs.placement):
            handler = getattr(machine, "on_" + event, None)
            if handler is not None:
                handler(now, peer, *fields)
                return self.effects()
        raise AssertionError(event)

    def timer(self, now: float, *key: Any) -> list[Any]:
        self.gcs.on_timer(now, key)
        return self.effects()

    def register(self, node_id: bytes, agent: bytes, running: Any = None, now: float = 10.0) -> list[Any]:
        fields = (node_id, "tcp://1.2.3.4:5", "host", 7, CPU, {"zone": "a"}, "arena", 1 << 20)
        return self.hears("register_node", *fields, running or {}, peer=agent, now=now)

    def returns(self, node_id: bytes = NODE, agent: bytes = AGENT, number: int = 1, **running: Any) -> list[Any]:
        """A node registers again; what is not named does not run there."""
        nothing: dict[str, Any] = {"processes": [], "jobs": [], "actors": [], "ends": [], "bundles": []}
        return self.register(node_id, agent, {"number": number, "available": CPU, **nothing, **running})

    def job(self, driver: bytes = DRIVER, request: int = 1) -> bytes:
        effects = self.hears("register_job", request, driver, "tcp://d", 2, "script.py", "space", {"cwd": "/x"}, peer=driver)
        [(_, reply)] = sent(effects, Reply)
        return reply.value["job_id"]  # type: ignore[no-any-return]

    def actor(self, actor_id: bytes = A, name: str = "", *, detached: bool = False, restarts: int = 0) -> list[Any]:
        """An actor is registered and created."""
        what = ("Counter", name, "space", detached, False, restarts, {"CPU": 10_000}, {}, b"description", ("default",))
        self.hears("register_actor", 0, actor_id, b"\0\0\0\1", "tcp://d", b"handle" + actor_id[:10], *what)
        return self.hears("create_actor", actor_id, b"creation", b"")

    def alive(self, actor_id: bytes = A, **options: Any) -> None:
        self.actor(actor_id, **options)
        self.hears("actor_placed", actor_id, 1, NODE, WORKER, "tcp://w", 42, peer=AGENT)
        self.hears("actor_started", actor_id, 1, b"", peer=WORKER)

    def group(self, group_id: bytes = G, name: str = "") -> list[Any]:
        what = (b"\0\0\0\1", b"", name, "space", True, "PACK", [{"CPU": 10_000}], [])
        return self.hears("register_placement_group", 3, group_id, *what)

    def state(self, actor_id: bytes = A) -> ActorState:
        return self.gcs.actors.actors[actor_id].state


THERE = (A, 1, WORKER, "tcp://w", 42)


def killed_bench(**options: Any) -> Bench:
    """A living actor of a driver that lives, and a control that was killed."""
    bench = Bench()
    bench.job()
    bench.alive(**options)
    bench.killed()
    return bench


# -- what it knows ----------------------------------------------------------------------------------------------------


def test_jobs_functions_keys_and_nodes_are_there() -> None:
    bench = Bench()
    job_id = bench.job()
    bench.hears("export_function", 2, job_id, F, "fun", b"body")
    bench.hears("kv_put", 3, b"", b"kept", b"value", True)
    bench.hears("kv_put", 4, b"", b"gone", b"value", True)
    bench.hears("kv_delete", 5, b"", b"gone")
    bench.killed()
    [(_, job)] = sent(bench.hears("fetch_job", 6, job_id), Reply)
    assert (job.value["environment"], job.value["namespace"], job.value["endpoint"]) == ({"cwd": "/x"}, "space", "tcp://d")
    assert sent(bench.hears("fetch_function", 7, F), Reply) == [(DRIVER, Reply(7, True, ("fun", b"body")))]
    assert sent(bench.hears("kv_get", 8, b"", b"kept"), Reply) == [(DRIVER, Reply(8, True, b"value"))]
    assert sent(bench.hears("kv_keys", 9, b"", b""), Reply) == [(DRIVER, Reply(9, True, [b"kept"]))]
    [(_, nodes)] = sent(bench.hears("list_nodes", 10), Reply)
    [node] = nodes.value
    assert (node["node_id"], node["agent"], node["total"], node["labels"]) == (NODE, AGENT, CPU, {"zone": "a"}) and node["alive"]


def test_an_actor_is_found_and_called_as_before() -> None:
    bench = killed_bench(name="counter", detached=True)
    assert sent(bench.returns(processes=[DRIVER], actors=[THERE]), PlaceActor) == []
    [(_, found)] = sent(bench.hears("get_actor", 5, "counter", "space"), Reply)
    assert found.value == (A, b"handle" + A[:10], (DRIVER, "tcp://d"), b"description", True)
    [(peer, update)] = sent(bench.hears("subscribe_actor", A, peer=CALLER), ActorUpdated)
    assert peer == CALLER and update == ActorUpdated(A, "ALIVE", 1, WORKER, "tcp://w", b"")


def test_a_dead_actor_stays_dead_and_its_name_is_free() -> None:
    bench = Bench()
    bench.job()
    bench.alive(name="counter")
    bench.hears("kill_actor", A, True)
    bench.killed()
    [(_, update)] = sent(bench.hears("subscribe_actor", A), ActorUpdated)
    assert update.state == "DEAD" and "zray.kill()" in str(pickle.loads(update.error))
    bench.returns(processes=[DRIVER])
    assert sent(bench.actor(b"actor-b-----", name="counter"), PlaceActor)


# -- questions that come again ----------------------------------------------------------------------------------------


def test_a_driver_that_registers_again_has_the_same_job() -> None:
    bench = Bench()
    job_id = bench.job()
    bench.killed()
    assert bench.job(request=1) == job_id and bench.job(CALLER) != job_id


def test_a_change_of_a_key_is_made_once_and_answered_as_the_first_time() -> None:
    bench = Bench()
    assert sent(bench.hears("kv_put", 7, b"", b"lock", b"mine", False), Reply) == [(DRIVER, Reply(7, True, False))]
    assert sent(bench.hears("kv_delete", 8, b"", b"lock"), Reply) == [(DRIVER, Reply(8, True, True))]
    bench.killed()
    assert sent(bench.hears("kv_put", 7, b"", b"lock", b"mine", False), Reply) == [(DRIVER, Reply(7, True, False))]
    assert sent(bench.hears("kv_delete", 8, b"", b"lock"), Reply) == [(DRIVER, Reply(8, True, True))]
    assert sent(bench.hears("kv_get", 9, b"", b"lock"), Reply) == [(DRIVER, Reply(9, True, None))], "it was not put again"
    assert sent(bench.hears("kv_put", 7, b"", b"lock", b"theirs", False, peer=CALLER), Reply) == [(CALLER, Reply(7, True, False))]


# -- nodes ------------------------------------------------------------------------------------------------------------


def test_nothing_is_placed_until_every_node_is_there_or_dead() -> None:
    bench = Bench(node_return_s=5.0)
    bench.job()
    bench.register(EAST, EASTERN)
    bench.killed()
    bench.returns(processes=[DRIVER])
    assert sent(bench.actor(), PlaceActor) == [] and sent(bench.group(), PrepareBundles) == []
    effects = bench.returns(EAST, EASTERN)
    assert len(sent(effects, PlaceActor)) == 1 and len(sent(effects, PrepareBundles)) == 1


def test_a_node_that_does_not_come_back_is_dead_and_the_others_go_on() -> None:
    bench = Bench(node_return_s=5.0, health_check_ms=1000.0)
    bench.job()
    bench.register(EAST, EASTERN)
    assert HEALTH_TIMER in [key[0] for _, key in timers(bench.killed())]
    bench.returns(processes=[DRIVER])
    bench.actor()
    for second in range(1, 5):
        bench.hears("heartbeat", NODE, CPU, peer=AGENT, now=10.0 + second)
        assert sent(bench.timer(10.0 + second, HEALTH_TIMER), PlaceActor) == []
    bench.hears("heartbeat", NODE, CPU, peer=AGENT, now=15.0)
    [(agent, _)] = sent(bench.timer(15.0, HEALTH_TIMER), PlaceActor)
    assert agent == AGENT and bench.gcs.members.nodes[EAST].state is NodeState.DEAD
    assert sent(bench.returns(EAST, EASTERN), NodeRefused)


def killed_in_the_middle(bench: Bench) -> None:
    """A node ends, and the control is killed when it has written that and nothing else."""
    bench.gcs.on_leave_cluster(10.0, EASTERN, EAST, "it is switched off")
    first = next(effect for effect in drain(bench.gcs.out) if effect[0] == PERSIST)
    assert first[1] == "save_node"
    bench.database.execute(STATEMENTS[first[1]], tuple(storable(value) for value in first[2]))
    bench.killed()


def with_another_node() -> Bench:
    """Two nodes, of which one is full, so that what comes has its place on the other."""
    bench = Bench()
    bench.job()
    bench.register(EAST, EASTERN)
    bench.hears("heartbeat", NODE, {"CPU": 0}, peer=AGENT)
    return bench


@pytest.mark.parametrize("restarts", [0, 1])
def test_an_actor_on_a_dead_node_was_lost_although_only_the_end_of_the_node_was_written(restarts: int) -> None:
    bench = with_another_node()
    assert [peer for peer, _ in sent(bench.actor(restarts=restarts), PlaceActor)] == [EASTERN]
    bench.hears("actor_placed", A, 1, EAST, CALLER, "tcp://w", 42, peer=EASTERN)
    bench.hears("actor_started", A, 1, b"", peer=CALLER)
    killed_in_the_middle(bench)
    effects = bench.returns(processes=[DRIVER])
    assert bench.state() is (ActorState.RESTARTING if restarts else ActorState.DEAD)
    assert [peer for peer, _ in sent(effects, PlaceActor)] == [AGENT] * restarts


def test_a_bundle_on_a_dead_node_gets_a_new_place_although_only_the_end_of_the_node_was_written() -> None:
    bench = with_another_node()
    [(_, prepare)] = sent(bench.group(), PrepareBundles)
    bench.hears("bundles_prepared", G, prepare.attempt, EAST, "", peer=EASTERN)
    killed_in_the_middle(bench)
    assert [peer for peer, _ in sent(bench.returns(processes=[DRIVER]), PrepareBundles)] == [AGENT]


def test_an_older_registration_that_is_said_again_changes_nothing() -> None:
    bench = killed_bench()
    bench.returns(number=2, processes=[DRIVER], actors=[THERE])
    assert bench.returns(number=1) == [], "there was no actor yet when that was said"
    assert bench.state() is ActorState.ALIVE


def test_a_finished_job_is_told_to_a_node_that_still_works_for_it() -> None:
    bench = Bench()
    job_id = bench.job()
    bench.hears("finish_job", 2, job_id)
    bench.killed()
    assert sent(bench.returns(jobs=[job_id, b"none"]), JobFinished) == [(AGENT, JobFinished(job_id, DRIVER))]


# -- drivers and workers ----------------------------------------------------------------------------------------------


def test_who_is_not_seen_in_time_has_ended_with_all_it_owned() -> None:
    bench = killed_bench()
    bench.returns(actors=[THERE])
    effects = bench.timer(15.0, EXPECTED_TIMER)
    assert bench.state() is ActorState.DEAD and sent(effects, EndActor) == [(AGENT, EndActor(A, 1, True))]
    [job] = bench.gcs.jobs.values()
    assert job["state"] == "DIED" and sent(effects, JobFinished)


def test_who_is_shown_by_its_agent_or_comes_itself_lives() -> None:
    bench = killed_bench()
    bench.returns(processes=[DRIVER], actors=[THERE])
    assert bench.timer(15.0, EXPECTED_TIMER) == []
    bench = killed_bench()
    effects = bench.hears("owner_returned")
    assert sent(effects, OwnerKnown) == [(DRIVER, OwnerKnown([(A, b"handle" + A[:10], "ALIVE")]))]
    bench.returns(actors=[THERE])
    assert bench.timer(15.0, EXPECTED_TIMER) == [] and bench.state() is ActorState.ALIVE


def test_what_follows_from_the_end_of_a_job_is_done_although_only_the_end_was_written() -> None:
    bench = Bench()
    job_id = bench.job()
    bench.alive()
    bench.alive(b"actor-d-----", detached=True)
    bench.database.execute(STATEMENTS["finish_job"], ("FINISHED", job_id))
    bench.killed()
    assert bench.state() is ActorState.DEAD and bench.state(b"actor-d-----") is ActorState.ALIVE


# -- actors -----------------------------------------------------------------------------------------------------------


def test_an_actor_that_is_not_there_any_more_was_lost() -> None:
    bench = killed_bench(restarts=1)
    [(agent, place)] = sent(bench.returns(processes=[DRIVER]), PlaceActor)
    assert (agent, place.incarnation) == (AGENT, 2) and bench.state() is ActorState.RESTARTING
    bench = killed_bench()
    bench.returns(processes=[DRIVER], ends=[(A, 1, "killed by signal 11", False)])
    [(_, update)] = sent(bench.hears("subscribe_actor", A), ActorUpdated)
    error = pickle.loads(update.error)
    assert isinstance(error, ActorDiedError) and "killed by signal 11" in str(error)


def test_an_actor_that_ended_by_its_own_will_meanwhile_is_not_restarted() -> None:
    bench = killed_bench(restarts=-1)
    assert sent(bench.returns(processes=[DRIVER], ends=[(A, 1, "it called exit_actor()", True)]), PlaceActor) == []
    assert bench.state() is ActorState.DEAD


def test_an_actor_whose_node_never_heard_of_it_is_placed_again() -> None:
    bench = Bench()
    bench.job()
    bench.actor()
    bench.killed()
    effects = bench.returns(processes=[DRIVER])
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, True))], "if it did hear of it, that is over"
    [(_, place)] = sent(effects, PlaceActor)
    assert (place.incarnation, place.creation) == (2, b"creation")
    assert bench.gcs.actors.actors[A].restarts == 0


def test_an_actor_that_waits_on_its_node_or_starts_there_is_left_alone() -> None:
    for there, started in (((A, 1, b"", "", 0), False), (THERE, True)):
        bench = Bench()
        bench.job()
        bench.actor()
        bench.killed()
        assert sent(bench.returns(processes=[DRIVER], actors=[there]), PlaceActor) == []
        effects = bench.hears("actor_started", A, 1, b"", peer=WORKER)
        assert (sent(effects, ActorUpdated) != []) is started, "who waits hears of its place first"


def test_actors_that_should_not_be_there_are_ended() -> None:
    bench = killed_bench()
    effects = bench.returns(processes=[DRIVER], actors=[THERE, (b"actor-x-----", 3, WORKER, "tcp://w", 43)])
    assert sent(effects, EndActor) == [(AGENT, EndActor(b"actor-x-----", 3, True))]


def test_an_actor_that_waited_for_its_next_try_gets_it() -> None:
    bench = Bench(actor_restart_delay_ms=60_000.0)
    bench.job()
    bench.alive(restarts=-1)
    bench.hears("actor_lost", A, 1, "killed", peer=AGENT)
    bench.hears("actor_lost", A, 2, "killed", peer=AGENT)
    bench.killed()
    [(_, place)] = sent(bench.returns(processes=[DRIVER]), PlaceActor)
    assert place.incarnation == 3


# -- placement groups -------------------------------------------------------------------------------------------------


def test_a_placement_group_has_its_places_and_its_name() -> None:
    bench = Bench()
    bench.job()
    [(_, prepare)] = sent(bench.group(name="mine"), PrepareBundles)
    bench.hears("bundles_prepared", G, prepare.attempt, NODE, "", peer=AGENT)
    bench.killed()
    effects = bench.returns(processes=[DRIVER], bundles=[(G, 0, prepare.attempt, True)])
    assert sent(effects, PrepareBundles) == sent(effects, CommitBundles) == sent(effects, ReturnBundles) == []
    assert sent(bench.hears("wait_placement_group", 5, G, 1.0), Reply) == [(DRIVER, Reply(5, True, True))]
    assert sent(bench.hears("get_placement_group", 6, "mine", "space"), Reply) == [
        (DRIVER, Reply(6, True, (G, [{"CPU": 10_000}])))
    ]


def test_bundles_that_were_not_committed_are_and_those_that_are_not_wanted_are_returned() -> None:
    bench = Bench()
    bench.job()
    [(_, prepare)] = sent(bench.group(), PrepareBundles)
    bench.hears("bundles_prepared", G, prepare.attempt, NODE, "", peer=AGENT)
    bench.killed()
    rows = [(G, 0, prepare.attempt, False), (G, 1, 1, True), (process("other"), 0, 1, True)]
    effects = bench.returns(processes=[DRIVER], bundles=rows)
    assert sent(effects, CommitBundles) == [(AGENT, CommitBundles(G, prepare.attempt))]
    assert [(m.group_id, m.indexes) for _, m in sent(effects, ReturnBundles)] == [(G, [1]), (process("other"), [0])]


def test_a_bundle_that_a_node_has_lost_gets_a_new_place() -> None:
    bench = Bench()
    bench.job()
    [(_, prepare)] = sent(bench.group(), PrepareBundles)
    bench.hears("bundles_prepared", G, prepare.attempt, NODE, "", peer=AGENT)
    bench.killed()
    [(_, again)] = sent(bench.returns(processes=[DRIVER]), PrepareBundles)
    assert bench.gcs.placement.groups[G].state is GroupState.RESCHEDULING and again.attempt > prepare.attempt


def test_a_round_that_was_under_way_begins_anew_and_answers_to_the_old_one_count_for_nothing() -> None:
    bench = Bench()
    bench.job()
    [(_, prepare)] = sent(bench.group(), PrepareBundles)
    bench.killed()
    effects = bench.returns(processes=[DRIVER], bundles=[(G, 0, prepare.attempt, False)])
    assert [m.indexes for _, m in sent(effects, ReturnBundles)] == [[0]]
    [(_, again)] = sent(effects, PrepareBundles)
    bench.hears("bundles_prepared", G, prepare.attempt, NODE, "", peer=AGENT)
    assert bench.gcs.placement.groups[G].state is GroupState.PENDING
    bench.hears("bundles_prepared", G, again.attempt, NODE, "", peer=AGENT)
    assert bench.gcs.placement.groups[G].state is GroupState.CREATED
