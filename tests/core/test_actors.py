"""ActorManager: what becomes of each actor, who is told, and what is written down."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from zray.base.config import Config
from zray.base.wire import Reply
from zray.base.wire_actors import ActorUpdated, EndActor, Notice, PlaceActor
from zray.core.actor import ActorState
from zray.core.actor_places import WAITING, Place
from zray.core.actors import INFEASIBLE_TIMER, RESTART_TIMER, UNKNOWN_TIMER, ActorManager
from zray.core.effects import AFTER_PERSIST, PERSIST
from zray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError, InvariantError

from .reading import AGENT, drain, process, sent, timers, verbs

A, B, C = (b"actor-%s-----" % letter for letter in (b"a", b"b", b"c"))
JOB, OTHER_JOB = b"job1", b"job2"
OWNER, CALLER, SECOND = process("owner"), process("caller"), process("second")
WORKER, NEXT = process("worker"), process("next")
NODE = process("node")


class Bench:
    """The manager of actors; its node is always the same, or none."""

    def __init__(self, **limits: Any) -> None:
        self.out: list[Any] = []
        self.agent: bytes | None = AGENT
        self.demands: list[dict[str, int]] = []
        self.no_place = Place(b"", WAITING, "the cluster has no node")
        self.over: list[bytes] = []
        self.manager = ActorManager(Config(**limits), self.out, self._choose, lambda now, actor_id: self.over.append(actor_id))

    def _choose(self, demand: dict[str, int], strategy: tuple[Any, ...]) -> Place:
        self.demands.append(demand)
        return self.no_place if self.agent is None else Place(self.agent)

    def effects(self) -> list[Any]:
        self.manager.check()
        return drain(self.out)

    def hears(self, event: str, *fields: Any, peer: bytes = OWNER, now: float = 0.0) -> list[Any]:
        getattr(self.manager, "on_" + event)(now, peer, *fields)
        return self.effects()

    def timer(self, now: float, *key: Any) -> list[Any]:
        self.manager.on_timer(now, key)
        return self.effects()

    def register(
        self,
        actor_id: bytes = A,
        name: str = "",
        *,
        peer: bytes = OWNER,
        job: bytes = JOB,
        detached: bool = False,
        get_if_exists: bool = False,
        restarts: int = 0,
    ) -> list[Any]:
        handle = b"handle-%s-------" % actor_id[:8][-1:] + bytes(4)
        what = (handle, "Counter", name, "space", detached, get_if_exists, restarts, {"CPU": 10_000}, {"GPU": 5}, b"d")
        return self.hears("register_actor", 7, actor_id, job, "sim://owner", *what, peer=peer)

    def create(self, actor_id: bytes = A, peer: bytes = OWNER, now: float = 0.0) -> list[Any]:
        return self.hears("create_actor", actor_id, b"creation", b"", peer=peer, now=now)

    def placed(self, incarnation: int = 1, worker: bytes = WORKER, actor_id: bytes = A) -> list[Any]:
        endpoint = f"sim://{worker.decode()}"
        return self.hears("actor_placed", actor_id, incarnation, NODE, worker, endpoint, 42, peer=AGENT)

    def started(
        self, incarnation: int = 1, worker: bytes = WORKER, error: bytes = b"", actor_id: bytes = A, now: float = 0.0
    ) -> list[Any]:
        return self.hears("actor_started", actor_id, incarnation, error, peer=worker, now=now)

    def lost(
        self,
        incarnation: int = 1,
        reason: str = "killed by signal 9",
        actor_id: bytes = A,
        now: float = 0.0,
        *,
        willing: bool = False,
    ) -> list[Any]:
        return self.hears("actor_lost", actor_id, incarnation, reason, willing, peer=AGENT, now=now)

    def alive(self, actor_id: bytes = A, worker: bytes = WORKER, **options: Any) -> None:
        """An actor that takes calls."""
        self.register(actor_id, **options)
        self.create(actor_id)
        self.placed(1, worker, actor_id)
        self.started(1, worker, actor_id=actor_id)
        assert self.state(actor_id) is ActorState.ALIVE

    def state(self, actor_id: bytes = A) -> ActorState:
        return self.manager.actors[actor_id].state


def updates(effects: list[Any]) -> list[tuple[bytes, str, int, bytes]]:
    """Who was told what: state, incarnation, worker."""
    return [(peer, m.state, m.incarnation, m.worker_id) for peer, m in sent(effects, ActorUpdated)]


def told_error(effects: list[Any]) -> Any:
    """The error in the words to a subscriber; the same for each."""
    [payload] = {m.error for _, m in sent(effects, ActorUpdated)}
    return pickle.loads(payload)


def replies(effects: list[Any]) -> list[Reply]:
    return [m for _, m in sent(effects, Reply)]


def rows(effects: list[Any], statement: str) -> list[Any]:
    return [parameters for name, parameters in verbs(effects, PERSIST) if name == statement]


# -- from the registration to the first call ------------------------------------------------------------------------


def test_a_registration_is_acknowledged_when_it_is_on_disk_and_nothing_is_placed_yet() -> None:
    bench = Bench()
    effects = bench.register(name="counter")
    order = [e[0] for e in effects]
    assert order == [PERSIST, AFTER_PERSIST]
    assert verbs(effects, AFTER_PERSIST) == [(OWNER, Reply(7, True, None))]
    [row] = rows(effects, "save_actor")
    assert row[:-1] == (A, JOB, OWNER, "Counter", "counter", "space", False, 0, "DEPENDENCIES_UNREADY")
    effects = bench.register(name="counter")
    assert effects == [(AFTER_PERSIST, OWNER, Reply(7, True, None))], "who says it again has not heard the answer"


def test_when_its_arguments_are_there_an_actor_is_placed_with_what_it_needs() -> None:
    bench = Bench()
    bench.register(restarts=2, detached=True)
    effects = bench.create()
    place = PlaceActor(A, 1, JOB, True, {"CPU": 10_000}, {"GPU": 5}, True, b"creation")
    assert sent(effects, PlaceActor) == [(AGENT, place)]
    assert bench.demands == [{"CPU": 10_000}], "where it may be, not what it holds while it lives"
    assert bench.create() == [], "it is created once"


def test_callers_hear_where_it_is_when_its_constructor_has_returned_and_not_before() -> None:
    bench = Bench()
    bench.register()
    assert bench.hears("subscribe_actor", A, peer=CALLER) == []
    bench.create()
    assert updates(bench.placed()) == []
    effects = bench.started()
    assert updates(effects) == [(OWNER, "ALIVE", 1, WORKER), (CALLER, "ALIVE", 1, WORKER)]
    assert sent(effects, ActorUpdated)[0][1].endpoint == f"sim://{WORKER.decode()}"
    [row] = rows(effects, "update_actor")
    assert (*row[:6], row[-1]) == ("ALIVE", 0, NODE, WORKER, 42, "", A)
    assert bench.started() == [], "said twice"


def test_who_subscribes_later_is_told_at_once() -> None:
    bench = Bench()
    bench.register()
    bench.create()
    assert updates(bench.hears("subscribe_actor", A, peer=CALLER)) == [(CALLER, "PENDING_CREATION", 1, b"")]
    bench.placed()
    bench.started()
    assert updates(bench.hears("subscribe_actor", A, peer=SECOND)) == [(SECOND, "ALIVE", 1, WORKER)]


def test_the_word_of_the_worker_may_overtake_that_of_its_agent() -> None:
    """They come by different links; without both, nobody could be told where the actor is."""
    bench = Bench()
    bench.register()
    bench.create()
    assert updates(bench.started()) == []
    assert updates(bench.placed()) == [(OWNER, "ALIVE", 1, WORKER)]


def test_an_error_among_its_arguments_is_the_end_of_an_actor() -> None:
    bench = Bench()
    bench.register(name="counter")
    error = pickle.dumps(ValueError("the argument"))
    effects = bench.hears("create_actor", A, b"", error)
    assert [m.error for _, m in sent(effects, ActorUpdated)] == [error]
    assert bench.state() is ActorState.DEAD and bench.manager.names == {}
    assert sent(effects, PlaceActor) == [] == sent(effects, EndActor)


def test_a_constructor_that_raises_is_the_end_even_of_an_actor_that_may_be_restarted() -> None:
    bench = Bench()
    bench.register(restarts=-1)
    bench.create()
    bench.placed()
    error = pickle.dumps(ValueError("the constructor"))
    effects = bench.started(error=error)
    assert [m.error for _, m in sent(effects, ActorUpdated)] == [error]
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, False))], "its process may still have to say so to its owner"
    assert bench.lost() == []


def test_nothing_is_kept_of_the_creation_of_a_dead_actor() -> None:
    bench = Bench()
    bench.alive(restarts=5)
    assert bench.manager.actors[A].creation == b"creation"
    bench.hears("kill_actor", A, True)
    assert bench.manager.actors[A].creation == b""


# -- names ----------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_from_the_registration_on_and_free_again_after_the_death() -> None:
    bench = Bench()
    bench.register(A, "counter")
    [reply] = replies(bench.register(B, "counter", peer=SECOND))
    assert not reply.ok and "'counter'" in reply.value and A.hex() in reply.value
    assert B not in bench.manager.actors
    bench.hears("kill_actor", A, True)
    effects = bench.register(B, "counter", peer=SECOND)
    assert verbs(effects, AFTER_PERSIST) == [(SECOND, Reply(7, True, None))]


def test_who_wants_the_one_that_has_the_name_gets_it() -> None:
    bench = Bench()
    bench.register(A, "counter")
    [reply] = replies(bench.register(B, "counter", peer=SECOND, get_if_exists=True))
    assert reply.ok and reply.value == (A, bench.manager.actors[A].handle_id, (OWNER, "sim://owner"), b"d", False)
    [found] = replies(bench.hears("get_actor", 3, "counter", "space", peer=SECOND))
    assert found.ok and found.value == reply.value


def test_a_name_that_nobody_has_is_refused_with_those_that_are_there() -> None:
    bench = Bench()
    [reply] = replies(bench.hears("get_actor", 3, "counter", "space"))
    assert not reply.ok and "no named actors" in reply.value
    bench.register(A, "other")
    [reply] = replies(bench.hears("get_actor", 3, "counter", "space"))
    assert not reply.ok and "'other'" in reply.value
    [reply] = replies(bench.hears("get_actor", 3, "other", "elsewhere"))
    assert not reply.ok, "a name belongs to its namespace"


# -- restarts -------------------------------------------------------------------------------------------------------


def test_an_actor_that_may_not_be_restarted_dies_with_its_process() -> None:
    bench = Bench()
    bench.alive(name="counter")
    bench.hears("subscribe_actor", A, peer=CALLER)
    effects = bench.lost(reason="killed by signal 9")
    assert updates(effects) == [(OWNER, "DEAD", 1, b""), (CALLER, "DEAD", 1, b"")]
    error = told_error(effects)
    assert isinstance(error, ActorDiedError) and "killed by signal 9" in str(error) and "max_restarts" in str(error)
    assert "'counter'" in str(error) and "pid 42" in str(error) and error.actor_id == A.hex()
    assert sent(effects, EndActor) == [], "its process is gone already"
    assert bench.lost() == [] and bench.started() == [], "nothing more can happen to it"


def test_an_actor_with_restarts_left_is_placed_again_and_its_callers_wait() -> None:
    bench = Bench()
    bench.alive(restarts=1)
    effects = bench.lost()
    assert updates(effects) == [(OWNER, "RESTARTING", 1, b"")]
    assert isinstance(told_error(effects), ActorUnavailableError)
    [(_, place)] = sent(effects, PlaceActor)
    assert (place.incarnation, place.creation) == (2, b"creation")
    bench.placed(2, NEXT)
    effects = bench.started(2, NEXT)
    assert updates(effects) == [(OWNER, "ALIVE", 2, NEXT)]
    assert sent(effects, ActorUpdated)[0][1].error == b"", "nothing is wrong any more"
    error = told_error(bench.lost(2))
    assert isinstance(error, ActorDiedError) and "restarted 1 time" in str(error)


def test_words_of_an_earlier_incarnation_are_ignored() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    bench.lost()
    assert bench.lost(1) == [] and bench.started(1) == [] and bench.placed(1, WORKER) == []
    bench.placed(2, NEXT)
    bench.started(2, NEXT)
    assert updates(bench.lost(2)) == [(OWNER, "RESTARTING", 2, b"")], "the exit of the first is not that of the second"


def test_what_a_lost_process_had_said_before_means_nothing_while_its_successor_is_not_placed_yet() -> None:
    bench = Bench()
    bench.register(restarts=-1)
    bench.create()
    bench.placed()
    bench.lost()
    bench.placed(2, NEXT)
    bench.lost(2)  # the second death in a row: it waits
    assert updates(bench.started(2, NEXT)) == [] and bench.state() is ActorState.RESTARTING
    assert bench.placed(2, NEXT) == [] and bench.lost(2) == []
    [(_, place)] = sent(bench.timer(9.0, RESTART_TIMER, A, 2), PlaceActor)
    assert place.incarnation == 3
    bench.placed(3, SECOND)
    assert updates(bench.lost(3)) == [(OWNER, "RESTARTING", 3, b"")], "nobody wanted that one to end"


def test_one_that_keeps_dying_young_is_restarted_later_each_time() -> None:
    bench = Bench(actor_restart_delay_ms=100.0, actor_restart_delay_max_s=0.3)
    bench.alive(restarts=-1)
    delays = []
    for incarnation in range(1, 6):
        effects = bench.lost(incarnation, now=50.0)
        for at, key in timers(effects):
            assert key == (RESTART_TIMER, A, incarnation) and sent(effects, PlaceActor) == []
            delays.append(round(at - 50.0, 6))
            effects = bench.timer(at, *key)
        assert [m.incarnation for _, m in sent(effects, PlaceActor)] == [incarnation + 1]
        bench.placed(incarnation + 1)
        bench.started(incarnation + 1, now=50.0)
    assert delays == [0.1, 0.2, 0.3, 0.3], "at once, then doubled, up to the limit"
    effects = bench.lost(6, now=60.0)
    assert len(sent(effects, PlaceActor)) == 1, "it has lived for long: it starts again with no delay"


def test_an_actor_that_waits_to_be_restarted_can_be_killed() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    bench.lost()
    bench.placed(2, NEXT)
    [(at, key)] = timers(bench.lost(2))
    assert bench.hears("kill_actor", A, False) == [], "there is nothing to kill"
    effects = bench.hears("kill_actor", A, True)
    assert updates(effects) == [(OWNER, "DEAD", 2, b"")] and sent(effects, EndActor) == []
    assert bench.timer(at, *key) == []


# -- placing --------------------------------------------------------------------------------------------------------


def test_while_there_is_no_node_placing_is_tried_again_and_again() -> None:
    bench = Bench(infeasible_grace_s=3.0)
    bench.agent = None
    bench.register()
    effects = bench.create()
    assert timers(effects) == [(3.0, (RESTART_TIMER, A, 0))] and sent(effects, PlaceActor) == []
    [(at, key)] = timers(bench.timer(3.0, RESTART_TIMER, A, 0))
    assert at == 6.0
    bench.agent = AGENT
    assert [m.incarnation for _, m in sent(bench.timer(at, *key), PlaceActor)] == [1]


def refused(bench: Bench, kind: str = "infeasible", incarnation: int = 1) -> list[Any]:
    return bench.hears("actor_refused", A, incarnation, kind, "it asks for 9 GPU", peer=AGENT)


def test_an_actor_that_no_node_can_run_warns_its_owner_once_and_fails_after_the_grace() -> None:
    bench = Bench(infeasible_grace_s=3.0)
    bench.register()
    bench.create()
    effects = refused(bench)
    [(peer, notice)] = sent(effects, Notice)
    assert peer == OWNER and "9 GPU" in notice.text and "3 s" in notice.text
    assert timers(effects) == [(3.0, (INFEASIBLE_TIMER, A, 1))]
    error = told_error(bench.timer(3.0, INFEASIBLE_TIMER, A, 1))
    assert isinstance(error, ActorUnschedulableError) and "9 GPU" in str(error)


def test_an_infeasible_actor_may_wait_for_a_cluster_that_grows() -> None:
    bench = Bench(infeasible_grace_s=3.0, infeasible="wait")
    bench.register()
    bench.create()
    refused(bench)
    assert [m.incarnation for _, m in sent(bench.timer(3.0, INFEASIBLE_TIMER, A, 1), PlaceActor)] == [2]
    effects = refused(bench, incarnation=2)
    assert sent(effects, Notice) == [], "that was said already"
    bench.timer(6.0, INFEASIBLE_TIMER, A, 2)
    bench.placed(3)
    [row] = replies(bench.hears("list_actors", 1))[0].value
    assert row["reason"] == "", "it was possible after all"


def test_an_actor_for_which_a_node_has_no_process_left_dies_at_once() -> None:
    bench = Bench()
    bench.register()
    bench.create()
    error = told_error(refused(bench, "exhausted"))
    assert isinstance(error, ActorUnschedulableError) and "9 GPU" in str(error)


# -- ends -----------------------------------------------------------------------------------------------------------


def test_a_killed_actor_is_dead_at_once_and_its_process_is_ended() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    effects = bench.hears("kill_actor", A, True, peer=CALLER)
    assert updates(effects) == [(OWNER, "DEAD", 1, b"")] and "zray.kill()" in str(told_error(effects))
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, True))]
    assert bench.hears("kill_actor", A, True) == [] == bench.lost()


def test_an_actor_that_is_killed_with_restarts_comes_back() -> None:
    bench = Bench()
    bench.alive(restarts=1)
    effects = bench.hears("kill_actor", A, False, peer=CALLER)
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, True))] and updates(effects) == []
    assert updates(bench.lost()) == [(OWNER, "RESTARTING", 1, b"")]


def test_a_kill_that_is_heard_twice_ends_one_process() -> None:
    """A control that was started anew may hear what the one before had carried out already."""
    bench = Bench()
    bench.alive(restarts=-1)
    assert sent(bench.hears("kill_actor", A, False, 1, peer=CALLER), EndActor) == [(AGENT, EndActor(A, 1, True))]
    bench.lost()
    incarnation = bench.manager.actors[A].incarnation
    assert incarnation == 2 and bench.manager.actors[A].agent
    assert sent(bench.hears("kill_actor", A, False, 1, peer=CALLER), EndActor) == []
    assert sent(bench.hears("kill_actor", A, False, 2, peer=CALLER), EndActor) == [(AGENT, EndActor(A, 2, True))]


def test_a_kill_may_overtake_the_registration() -> None:
    """The handle travels faster than the word of its owner; what was killed must not live."""
    bench = Bench()
    bench.hears("kill_actor", A, True, peer=CALLER)
    effects = bench.register()
    assert updates(effects) == [(OWNER, "DEAD", 0, b"")]
    assert bench.create() == []


def test_an_actor_that_ended_by_its_own_will_is_not_restarted() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    effects = bench.lost(reason="it called exit_actor()", willing=True)
    assert updates(effects) == [(OWNER, "DEAD", 1, b"")] and "exit_actor()" in str(told_error(effects))


@pytest.mark.parametrize("detached", [False, True])
def test_an_actor_ends_with_its_last_handle_unless_it_is_detached(detached: bool) -> None:
    bench = Bench()
    bench.alive(detached=detached)
    effects = bench.hears("actor_out_of_scope", A)
    if detached:
        assert effects == []
        return
    assert updates(effects) == [(OWNER, "DEAD", 1, b"")] and "out of scope" in str(told_error(effects))
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, False))], "others may need what it owns"
    assert bench.hears("actor_out_of_scope", A) == []


@pytest.mark.parametrize("detached", [False, True])
def test_an_actor_ends_with_its_owner_unless_it_is_detached(detached: bool) -> None:
    bench = Bench()
    bench.alive(detached=detached)
    bench.hears("subscribe_actor", A, peer=CALLER)
    bench.hears("unsubscribe_actor", A, peer=OWNER)
    bench.manager.process_ended(0.0, OWNER)
    effects = bench.effects()
    if detached:
        assert effects == [] and bench.state() is ActorState.ALIVE
        return
    assert updates(effects) == [(CALLER, "DEAD", 1, b"")], "nothing is told to the dead"
    assert sent(effects, EndActor) == [(AGENT, EndActor(A, 1, True))]
    assert "created it ended" in str(told_error(effects))


def test_even_a_detached_actor_ends_with_an_owner_that_has_not_sent_its_arguments() -> None:
    """Nobody else could; its callers would wait for ever, and nobody could have its name."""
    bench = Bench()
    bench.register(name="counter", detached=True)
    bench.hears("subscribe_actor", A, peer=CALLER)
    bench.manager.process_ended(0.0, OWNER)
    assert updates(bench.effects()) == [(CALLER, "DEAD", 0, b"")] and bench.manager.names == {}
    bench.register(B, "counter", peer=OWNER, detached=True)
    assert bench.state(B) is ActorState.DEAD, "and so does one whose registration comes late"


@pytest.mark.parametrize("detached", [False, True])
def test_an_actor_ends_with_its_job_unless_it_is_detached(detached: bool) -> None:
    bench = Bench()
    bench.alive(detached=detached)
    bench.alive(B, SECOND, job=OTHER_JOB)
    bench.manager.job_finished(0.0, JOB)
    assert bench.over == ([] if detached else [A]), "its placement groups end with it"
    effects = bench.effects()
    assert updates(effects) == ([] if detached else [(OWNER, "DEAD", 1, b"")])
    assert bench.state(B) is ActorState.ALIVE


def test_the_registration_of_a_dead_process_comes_late_and_its_actor_does_not_live() -> None:
    bench = Bench()
    bench.manager.process_ended(0.0, OWNER)
    bench.hears("subscribe_actor", A, peer=CALLER)
    assert updates(bench.register()) == [(CALLER, "DEAD", 0, b"")]
    assert bench.create() == []


# -- subscriptions --------------------------------------------------------------------------------------------------


def test_who_has_no_handle_any_more_hears_nothing_but_an_owner_always_does() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    bench.hears("subscribe_actor", A, peer=CALLER)
    bench.hears("unsubscribe_actor", A, peer=CALLER)
    bench.hears("unsubscribe_actor", A, peer=OWNER)
    assert updates(bench.lost()) == [(OWNER, "RESTARTING", 1, b"")]


def test_who_asks_for_an_actor_before_its_registration_is_told_of_it() -> None:
    bench = Bench()
    assert timers(bench.hears("subscribe_actor", A, peer=CALLER)) == [(60.0, (UNKNOWN_TIMER, A))]
    assert timers(bench.hears("subscribe_actor", A, peer=SECOND)) == []
    bench.hears("unsubscribe_actor", A, peer=SECOND)
    bench.register()
    bench.create()
    bench.placed()
    assert updates(bench.started()) == [(OWNER, "ALIVE", 1, WORKER), (CALLER, "ALIVE", 1, WORKER)]
    assert bench.timer(60.0, UNKNOWN_TIMER, A) == []


def test_who_asks_for_an_actor_that_nobody_registers_is_told_so() -> None:
    bench = Bench()
    bench.hears("subscribe_actor", A, peer=CALLER)
    bench.hears("subscribe_actor", A, peer=SECOND)
    bench.manager.process_ended(0.0, SECOND)
    effects = bench.timer(60.0, UNKNOWN_TIMER, A)
    assert updates(effects) == [(CALLER, "DEAD", 0, b"")] and "unknown" in str(told_error(effects))
    assert bench.timer(60.0, UNKNOWN_TIMER, A) == [], "and nothing of it is kept"


def test_who_asks_for_a_dead_actor_is_told_once_and_not_remembered() -> None:
    bench = Bench()
    bench.alive()
    bench.hears("kill_actor", A, True)
    effects = bench.hears("subscribe_actor", A, peer=CALLER)
    assert updates(effects) == [(CALLER, "DEAD", 1, b"")] and isinstance(told_error(effects), ActorDiedError)
    assert not bench.manager.actors[A].subscribers


def test_a_process_that_ended_is_told_nothing_even_if_its_subscription_comes_late() -> None:
    bench = Bench()
    bench.alive(restarts=-1)
    bench.hears("subscribe_actor", A, peer=CALLER)
    bench.manager.process_ended(0.0, CALLER)
    assert bench.hears("subscribe_actor", A, peer=CALLER) == []
    assert updates(bench.lost()) == [(OWNER, "RESTARTING", 1, b"")]


# -- memory ---------------------------------------------------------------------------------------------------------


def test_of_the_oldest_dead_nothing_is_remembered() -> None:
    bench = Bench(dead_actors_max=1)
    bench.register(A, "one")
    bench.register(B)
    bench.hears("kill_actor", A, True)
    assert bench.manager.statistics() == {"actors": 1, "dead_actors": 1}
    effects = bench.hears("kill_actor", B, True)
    assert rows(effects, "forget_actor") == [(A,)] and list(bench.manager.actors) == [B]
    assert updates(bench.hears("subscribe_actor", A, peer=CALLER)) == [], "it is looked for like one that never was"
    assert updates(bench.timer(60.0, UNKNOWN_TIMER, A)) == [(CALLER, "DEAD", 0, b"")]


def test_the_actors_are_listed_with_the_reason_of_their_deaths() -> None:
    bench = Bench()
    bench.alive(A, name="counter")
    bench.register(B)
    bench.lost(reason="killed by signal 9")
    [reply] = replies(bench.hears("list_actors", 5))
    first, second = reply.value
    assert (first["actor_id"], first["state"], first["name"], first["pid"]) == (A, "DEAD", "counter", 42)
    assert "killed by signal 9" in first["reason"] and (second["actor_id"], second["state"]) == (B, "DEPENDENCIES_UNREADY")


def test_words_about_unknown_actors_change_nothing() -> None:
    bench = Bench()
    assert bench.lost() == bench.started() == bench.placed() == bench.create() == []
    assert bench.hears("actor_out_of_scope", A) == bench.hears("unsubscribe_actor", A) == []
    assert bench.hears("kill_actor", A, False) == refused(bench) == []
    assert not bench.manager.actors


def test_check_sees_a_name_without_a_living_actor_and_a_subscription_on_one_side() -> None:
    bench = Bench()
    bench.alive(name="counter")
    bench.manager.actors[A].subscribers[CALLER] = None
    with pytest.raises(InvariantError, match="one side only"):
        bench.manager.check()
    del bench.manager.actors[A].subscribers[CALLER]
    bench.manager.names["space", "other"] = bench.manager.actors[A]
    with pytest.raises(InvariantError, match="belongs to"):
        bench.manager.check()


def test_effects_of_one_event_are_told_to_all_subscribers_in_the_order_in_which_they_came() -> None:
    bench = Bench()
    bench.register()
    for peer in (SECOND, CALLER):
        bench.hears("subscribe_actor", A, peer=peer)
    effects = bench.hears("kill_actor", A, True)
    assert [peer for peer, *_ in updates(effects)] == [OWNER, SECOND, CALLER]
