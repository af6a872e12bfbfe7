"""What drivers, workers and agents say to a control that was started again."""

from __future__ import annotations

import pickle
from typing import Any

from zray.base.wire import CONTROL as CONTROL_NAME
from zray.base.wire import RegisterNode
from zray.base.wire_actors import (
    ActorLost,
    ActorOutOfScope,
    CreateActor,
    KillActor,
    RegisterActor,
    SubscribeActor,
    UnsubscribeActor,
)
from zray.base.wire_placement import SubscribePlacementGroup
from zray.base.wire_return import OwnerReturned
from zray.core.effects import KILL_WORKER
from zray.core.entries import error_entry
from zray.core.resync import Resync

from . import agent_bench
from .agent_bench import DRIVER, JOB, SECOND
from .reading import CONTROL, process, sent
from .test_owner_actors import ACTOR, OTHER, ActorBench


class Returning(ActorBench):
    """An owner that finds another control."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[Any] = []
        self.resync = Resync(self.owner, lambda: self.words)

    def begins(self) -> list[Any]:
        self.resync.begin()
        return self.turn()

    def known(self, *rows: Any) -> list[Any]:
        """The control says which actors of this owner it knows."""
        self.resync.on_owner_known(0.0, CONTROL_NAME, list(rows))
        return self.turn()


# -- owners -----------------------------------------------------------------------------------------------------------


def test_open_questions_come_first_and_actors_are_subscribed_to() -> None:
    bench = Returning()
    handle = bench.living()
    bench.words = [KillActor(OTHER, False)]
    effects = bench.begins()
    assert sent(effects, KillActor) == [(CONTROL_NAME, KillActor(OTHER, False))]
    assert sent(effects, SubscribeActor) == [(CONTROL_NAME, SubscribeActor(ACTOR))]
    assert [type(effect[2]) for effect in effects][:2] == [KillActor, OwnerReturned]
    assert bench.known((ACTOR, handle.binary(), "ALIVE")) == [], "all is as it should be"


def test_what_the_control_does_not_know_is_registered_and_created_again() -> None:
    bench = Returning()
    handle, first = bench.create()
    effects = bench.known()
    assert sent(effects, RegisterActor) == sent(first, RegisterActor)
    assert sent(effects, CreateActor) == sent(first, CreateActor)
    effects = bench.known((ACTOR, handle.binary(), "DEPENDENCIES_UNREADY"))
    assert sent(effects, RegisterActor) == [] and sent(effects, CreateActor) == sent(first, CreateActor)
    assert bench.known((ACTOR, handle.binary(), "PENDING_CREATION")) == []


def test_who_has_heard_where_its_actor_is_does_not_register_it_again() -> None:
    bench = Returning()
    handle, _ = bench.create()
    bench.alive()
    assert sent(bench.known(), RegisterActor) == [], "the control has it on disk: it is dead, and that will be told"
    del handle


def test_a_constructor_whose_arguments_are_missing_waits_on() -> None:
    bench = Returning()
    [argument], _ = bench.call()
    handle, _ = bench.create(argument)
    assert sent(bench.known((ACTOR, handle.binary(), "DEPENDENCIES_UNREADY")), CreateActor) == []


def test_an_argument_that_is_an_error_is_told_again() -> None:
    bench = Returning()
    [argument], effects = bench.call()
    handle, _ = bench.create(argument)
    lease, _ = bench.grant(effects)
    bench.done(lease, argument, error_entry(ValueError("bad")))
    [(_, creation)] = sent(bench.known((ACTOR, handle.binary(), "DEPENDENCIES_UNREADY")), CreateActor)
    assert creation.creation == b"" and isinstance(pickle.loads(creation.error), ValueError)


def test_an_actor_that_nobody_needs_any_more_is_given_up() -> None:
    bench = Returning()
    handle = bench.living()
    handle_id = handle.binary()
    del handle
    assert sent(bench.turn(), ActorOutOfScope)
    assert sent(bench.known((ACTOR, handle_id, "ALIVE")), ActorOutOfScope) == [(CONTROL_NAME, ActorOutOfScope(ACTOR))]


def test_an_actor_without_a_handle_that_the_control_does_not_know_is_not_waited_for() -> None:
    bench = Returning()
    handle, _ = bench.create()
    handle_id = handle.binary()
    del handle
    bench.turn()
    assert sent(bench.known((ACTOR, handle_id, "PENDING_CREATION")), ActorOutOfScope) and bench.owner.tasks.pending
    assert sent(bench.known(), RegisterActor) == [] and not bench.owner.tasks.pending


def test_who_was_to_be_killed_is_named_again_until_the_news_has_come() -> None:
    bench = Returning()
    handle = bench.living()
    bench.owner.kill_actor(ACTOR, True, handle.binary())
    handle_id = handle.binary()
    del handle
    assert sent(bench.turn(), UnsubscribeActor) == [], "the news is waited for"
    assert sent(bench.begins(), KillActor) == [(CONTROL_NAME, KillActor(ACTOR, True))]
    bench.updated("DEAD", 1, error=error_entry(ValueError("killed"))[1])
    assert sent(bench.begins(), KillActor) == [] and handle_id not in bench.owner.calls.handles


# -- agents -----------------------------------------------------------------------------------------------------------


def registered(effects: list[Any]) -> Any:
    [(peer, registration)] = sent(effects, RegisterNode)
    assert peer == CONTROL
    return registration.running


def joined(**limits: Any) -> agent_bench.Bench:
    """An agent that has registered."""
    bench = agent_bench.Bench(**limits)
    bench.agent.register((process("node"), "tcp://n", "host", 1, {"CPU": 20_000}, {}, "arena", 1 << 20))
    return bench


def test_an_agent_says_what_runs_on_its_node() -> None:
    bench = joined(cpus=2)
    assert registered(bench.does("start")) == {}
    worker = bench.actor(holds={"CPU": 5_000})
    bench.place(b"waits-------", holds={"CPU": 20_000})
    bench.agent.bundles.learn(b"group")
    bench.request(SECOND, b"job2", cpus=2)
    bench.agent.bundles.on_prepare_bundles(0.0, CONTROL, b"group", 4, [(0, {"CPU": 10_000})])
    effects = bench.does("on_control_broken")
    running = registered(effects)
    assert running["number"] == 1 and running["available"]["CPU"] == 5_000
    assert running["processes"] == [DRIVER, SECOND, worker] and set(running["jobs"]) == {JOB, b"job2"}
    assert running["actors"] == [(b"waits-------", 1, b"", "", 0), (agent_bench.ACTOR, 1, worker, "sim://", 1)]
    assert running["bundles"] == [(b"group", 0, 4, False)]
    assert [m.group_id for _, m in sent(effects, SubscribePlacementGroup)] == [b"group"]
    assert registered(bench.does("on_control_broken"))["number"] == 2


def test_an_agent_remembers_how_actors_ended_and_whether_they_wanted_to() -> None:
    bench = joined()
    worker = bench.actor()
    bench.does("on_actor_exiting", DRIVER, agent_bench.ACTOR, "somebody else says so")
    bench.does("on_actor_exiting", worker, agent_bench.ACTOR, "it called exit_actor()")
    effects = bench.does("on_worker_exited", worker, "exited with code 0")
    assert sent(effects, ActorLost) == [(CONTROL, ActorLost(agent_bench.ACTOR, 1, "it called exit_actor()", True))]
    other = bench.actor(agent_bench.OTHER)
    bench.end(force=True, actor=agent_bench.OTHER)
    bench.does("on_worker_exited", other, "killed by signal 9")
    assert registered(bench.does("on_control_broken"))["ends"] == [
        (agent_bench.ACTOR, 1, "it called exit_actor()", True),
        (agent_bench.OTHER, 1, "killed by signal 9", False),
    ]


def test_an_actor_that_the_control_does_not_want_is_ended_as_any_other() -> None:
    bench = agent_bench.Bench()
    worker = bench.actor()
    assert (KILL_WORKER, worker) in bench.end(force=True)
