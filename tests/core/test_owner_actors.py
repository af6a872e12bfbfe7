"""Owner: actors that it creates, calls, borrows and forgets."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, ERROR, INLINE, STORED, FreeObjects, Refs, WatchProcess
from zray.base.wire_actors import (
    ActorOutOfScope,
    Call,
    CreateActor,
    KillActor,
    RegisterActor,
    SubscribeActor,
    UnsubscribeActor,
)
from zray.core.actor_calls import CONTINUE_TIMER
from zray.core.effects import DIAL, RESOLVE
from zray.core.tasks import CallBudget, Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.exceptions import ActorDiedError
from zray.object_ref import ObjectRef

from .owner_bench import FRIEND, ME, NODE, WORKER, A, B, Bench
from .reading import AGENT, sent, timers, verbs

ACTOR, OTHER = b"actor-a-----", b"actor-b-----"
THEIRS = b"\7" * 16 + bytes(3) + b"\1"  # the handle of an actor of FRIEND
DEAD = pickle.dumps(ActorDiedError("it was killed", ACTOR.hex()))
NOTHING = ResourceSet({})


class ActorBench(Bench):
    """An owner that deals with actors."""

    def create(
        self,
        *args: Any,
        actor: bytes = ACTOR,
        nested: Any = (),
        restarts: int = 0,
        registered: bool = False,
        meanwhile: Any = (),
    ) -> tuple[ObjectRef[Any], list[Any]]:
        """Create an actor; its handle and the effects."""
        task_id = self.ids()
        handle_id = return_id(task_id, 1)
        template = TaskTemplate(b"c" * 16, "Counter.__init__", NOTHING, 1, 0, {"max_restarts": restarts})
        template.actor = (actor, handle_id)
        template.creates = True
        task = Task(task_id, template, b"p", tuple(enumerate(args)), tuple(nested), (handle_id,), 1)
        what = (handle_id, "Counter", "", "", False, False, restarts, {}, {}, b"")
        registration = None if registered else RegisterActor(0, actor, b"job1", "sim://me", *what)
        if registered:  # the handle is owned from the moment on when the name is asked for
            self.owner.references.own(handle_id)
        handle = self.ref(handle_id)
        for event in meanwhile:
            event(handle_id)
        self.owner.create_actor(0.0, task, registration)
        del task
        return handle, self.turn()

    def call_actor(
        self,
        handle: ObjectRef[Any],
        *args: Any,
        actor: bytes = ACTOR,
        retries: int = 0,
        ordered: bool = True,
        budget: CallBudget | None = None,
        counted: bool = True,
    ) -> tuple[ObjectRef[Any], list[Any]]:
        """Call a method; the reference to its result and the effects."""
        task_id = self.ids()
        template = TaskTemplate(b"add", "Counter.add", NOTHING, 1, retries, None)
        template.actor = (actor, handle.binary())
        template.ordered = ordered
        template.budget = budget
        nested = (handle,) if counted else ()
        task = Task(task_id, template, b"p", tuple(enumerate(args)), nested, (return_id(task_id, 1),), 0)
        result = self.ref(return_id(task_id, 1))
        self.owner.submit(0.0, task)
        del task
        return result, self.turn()

    def updated(
        self, state: str, incarnation: int = 1, worker: Any = (b"", ""), error: bytes = b"", actor: bytes = ACTOR
    ) -> list[Any]:
        return self.hears("actor_updated", actor, state, incarnation, *worker, error, peer=CONTROL)

    def alive(self, incarnation: int = 1, worker: Any = WORKER, actor: bytes = ACTOR) -> list[Any]:
        return self.updated("ALIVE", incarnation, worker, actor=actor)

    def living(self, **options: Any) -> ObjectRef[Any]:
        """An actor whose constructor has returned."""
        handle, _ = self.create(**options)
        self.alive()
        self.done(0, handle, (INLINE, b"None"))
        return handle


def called(effects: list[Any]) -> list[bytes]:
    """The tasks of the calls that were sent."""
    return [spec[0] for _, call in sent(effects, Call) for spec in call.specs]


def task_of(ref: ObjectRef[Any]) -> bytes:
    return ref.binary()[:16]


# -- creating -------------------------------------------------------------------------------------------------------


def test_an_actor_is_registered_and_then_its_constructors_call_sent() -> None:
    bench = ActorBench()
    argument = bench.put(b"7")
    handle, effects = bench.create(argument)
    messages = [message for _, message in (e[1:] for e in effects)]
    assert [type(m) for m in messages] == [RegisterActor, CreateActor]
    spec, owner = pickle.loads(messages[1].creation)
    assert owner == ME and spec[0] == task_of(handle)
    assert spec[3] == ((0, argument.binary(), ME, (INLINE, b"7")),)


def test_an_actor_is_not_created_before_the_arguments_of_its_constructor_are_there() -> None:
    bench = ActorBench()
    late, effects = bench.call()
    lease, _ = bench.grant(effects)
    _handle, effects = bench.create(late[0])
    assert len(sent(effects, RegisterActor)) == 1 and sent(effects, CreateActor) == []
    effects = bench.done(lease, late[0], (INLINE, b"7"))
    assert [m.actor_id for _, m in sent(effects, CreateActor)] == [ACTOR]


def test_an_argument_that_is_an_error_ends_an_actor_before_it_lives() -> None:
    bench = ActorBench()
    late, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    handle, _ = bench.create(late[0])
    result, _ = bench.call_actor(handle)
    error = pickle.dumps(ValueError("no"))
    effects = bench.done(lease, late[0], (ERROR, error))
    assert sent(effects, CreateActor) == [(CONTROL, CreateActor(ACTOR, b"", error))]
    assert isinstance(bench.error(handle), ValueError) and not bench.owner.creations
    bench.updated("DEAD", 0, error=error)
    assert isinstance(bench.error(result), ValueError)


def test_who_registered_a_name_before_asks_what_has_happened_since() -> None:
    """Whoever found the name may have killed the actor meanwhile, and that word met nobody here."""
    bench = ActorBench()
    bench.updated("DEAD", 0, error=DEAD)
    handle, effects = bench.create(registered=True)
    assert sent(effects, SubscribeActor) == [(CONTROL, SubscribeActor(ACTOR))]
    assert sent(effects, RegisterActor) == []
    bench.updated("DEAD", 0, error=DEAD)
    assert isinstance(bench.error(handle), ActorDiedError)
    assert isinstance(bench.error(bench.call_actor(handle)[0]), ActorDiedError)


def test_who_finds_a_name_before_its_owner_hears_that_it_is_taken_keeps_the_actor() -> None:
    bench = ActorBench()

    def found(handle_id: bytes) -> None:
        bench.owner.on_refs(0.0, FRIEND[0], [(handle_id, FRIEND[0], 1)])
        bench.owner.put(A, (INLINE, b"[handle]", ((handle_id, ME),)))

    handle, _ = bench.create(registered=True, meanwhile=[found])
    handle_id = handle.binary()
    value = bench.ref(A)
    del handle
    assert sent(bench.turn(), ActorOutOfScope) == []
    del value
    assert sent(bench.turn(), ActorOutOfScope) == [], "it has been lent"
    effects = bench.hears("refs", [(handle_id, FRIEND[0], -1)], peer=FRIEND[0])
    assert len(sent(effects, ActorOutOfScope)) == 1


@pytest.mark.parametrize("restarts", [0, 1])
def test_the_constructors_arguments_are_kept_for_as_long_as_it_may_run_again(restarts: int) -> None:
    bench = ActorBench()
    argument = bench.put(b"7")
    argument_id = argument.binary()
    handle, _ = bench.create(argument, restarts=restarts)
    del argument
    bench.alive()
    bench.done(0, handle, (INLINE, b"None"))
    assert (argument_id in bench.owner.memory) == bool(restarts)
    bench.updated("DEAD", 1, error=DEAD)
    assert argument_id not in bench.owner.memory and not bench.owner.creations
    del handle
    bench.turn()
    assert bench.at_rest()


def test_what_a_constructor_kept_of_its_arguments_is_registered_each_time_it_runs() -> None:
    bench = ActorBench()
    argument = bench.put(b"7")
    handle, _ = bench.create(nested=(argument,), restarts=1)
    bench.done(0, handle, (INLINE, b"None"), borrowed=[(argument.binary(), ME)])
    assert bench.owner.references.borrowers == {argument.binary(): {WORKER[0]: 1}}
    second = FRIEND
    items = [(task_of(handle), [(INLINE, b"None")], 1, [(argument.binary(), ME)])]
    bench.hears("done", 0, items, peer=second[0])
    assert bench.owner.references.borrowers == {argument.binary(): {WORKER[0]: 1, second[0]: 1}}


def test_the_end_of_an_actor_before_its_constructor_has_returned_is_the_handles_error() -> None:
    bench = ActorBench()
    late, _ = bench.call()
    handle, _ = bench.create(late[0])
    waiter = Waiter(1)
    bench.owner.watch(waiter, [handle])
    assert verbs(bench.updated("DEAD", 0, error=DEAD), RESOLVE) == [(waiter,)]
    assert isinstance(bench.error(handle), ActorDiedError)
    assert task_of(handle) not in bench.owner.tasks.pending


# -- calling --------------------------------------------------------------------------------------------------------


def test_a_call_waits_for_the_actor_and_its_result_arrives_once() -> None:
    bench = ActorBench()
    handle, _ = bench.create()
    result, effects = bench.call_actor(handle)
    assert called(effects) == [] and sent(effects, SubscribeActor) == [], "who registers an actor hears of it"
    effects = bench.alive()
    assert called(effects) == [task_of(result)] and verbs(effects, DIAL) == [WORKER]
    assert sent(effects, WatchProcess) == [(AGENT, WatchProcess(WORKER[0]))]
    bench.done(0, result, (INLINE, b"1"))
    assert bench.owner.memory[result.binary()] == (INLINE, b"1")
    bench.updated("DEAD", 1, error=DEAD)
    assert bench.owner.memory[result.binary()] == (INLINE, b"1")


def test_calls_of_an_ordered_actor_wait_for_each_others_arguments() -> None:
    bench = ActorBench()
    handle = bench.living()
    late, effects = bench.call()
    lease, _ = bench.grant(effects)
    first, effects = bench.call_actor(handle, late[0])
    second, more = bench.call_actor(handle)
    assert called(effects + more) == []
    assert called(bench.done(lease, late[0], (INLINE, b"7"))) == [task_of(first), task_of(second)]


def test_calls_of_an_unordered_actor_wait_for_their_own_only() -> None:
    bench = ActorBench()
    handle = bench.living()
    late, effects = bench.call()
    lease, _ = bench.grant(effects)
    first, _ = bench.call_actor(handle, late[0], ordered=False)
    second, effects = bench.call_actor(handle, ordered=False)
    assert called(effects) == [task_of(second)]
    assert called(bench.done(lease, late[0], (INLINE, b"7"))) == [task_of(first)]


def test_a_call_whose_argument_is_an_error_does_not_hold_back_those_behind_it() -> None:
    bench = ActorBench()
    handle = bench.living()
    late, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    first, _ = bench.call_actor(handle, late[0])
    second, _ = bench.call_actor(handle)
    effects = bench.done(lease, late[0], (ERROR, pickle.dumps(ValueError("no"))))
    assert isinstance(bench.error(first), ValueError)
    assert called(effects) == [task_of(second)]


def test_an_exception_that_is_to_be_retried_is_retried_as_often_as_allowed() -> None:
    bench = ActorBench()
    handle = bench.living()
    result, _ = bench.call_actor(handle, retries=1)
    assert called(bench.done(0, result, (ERROR, b"oops", True))) == [task_of(result)]
    bench.done(0, result, (ERROR, b"oops", True))
    assert bench.owner.memory[result.binary()][:2] == (ERROR, b"oops")


def test_a_call_that_is_retried_goes_before_those_that_wait_for_its_result() -> None:
    bench = ActorBench()
    handle = bench.living()
    first, _ = bench.call_actor(handle, retries=1)
    second, _ = bench.call_actor(handle, first)
    assert called(bench.done(0, first, (ERROR, b"oops", True))) == [task_of(first)]
    assert called(bench.done(0, first, (INLINE, b"1"))) == [task_of(second)]


def test_a_stored_result_of_an_attempt_that_was_given_up_is_freed() -> None:
    bench = ActorBench()
    handle = bench.living(restarts=1)
    result, _ = bench.call_actor(handle)
    bench.updated("RESTARTING", 1, error=DEAD)
    assert isinstance(bench.error(result), ActorDiedError)
    effects = bench.done(0, result, (STORED, 5, NODE, ()))
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([result.binary()]))]


def test_more_calls_than_fit_at_once_go_on_by_the_timer() -> None:
    bench = ActorBench(actor_calls_bytes_max=1)
    handle, _ = bench.create()
    results = [bench.call_actor(handle)[0] for _ in range(3)]
    effects = bench.alive()
    found = called(effects)
    while timers(effects):
        [(at, key)] = timers(effects)
        assert key == (CONTINUE_TIMER, ACTOR)
        effects = bench.does("on_timer", key, now=at)
        assert len(called(effects)) == 1
        found += called(effects)
    assert found == [task_of(result) for result in results]


def test_what_a_lost_call_may_have_left_in_the_store_is_freed() -> None:
    """Its process can end when its result was sealed already, and before the answer was sent."""
    bench = ActorBench()
    handle = bench.living(restarts=-1)
    lost, _ = bench.call_actor(handle)
    again, _ = bench.call_actor(handle, retries=1)
    effects = bench.updated("RESTARTING", 1, error=DEAD)
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([lost.binary()]))]
    effects = bench.updated("DEAD", 2, error=DEAD)
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([again.binary()]))], "the first attempt may have left some too"
    _late, effects = bench.call_actor(handle)
    assert sent(effects, FreeObjects) == [], "but not what was never sent"


def test_what_a_killed_actor_writes_until_its_end_is_freed_when_it_has_ended() -> None:
    """Its callers hear of its death before its process does."""
    bench = ActorBench()
    handle = bench.living()
    result, _ = bench.call_actor(handle)
    object_id = result.binary()
    effects = bench.updated("DEAD", 1, error=DEAD)
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([object_id]))]
    del result, handle
    bench.turn()
    effects = bench.hears("worker_died", WORKER[0], "killed")
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([object_id]))]
    assert sent(bench.hears("worker_died", WORKER[0], "killed"), FreeObjects) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_what_a_call_in_vain_may_have_left_in_the_store_is_freed_if_nobody_has_the_result(wanted: bool) -> None:
    bench = ActorBench()
    handle = bench.living(restarts=-1)
    result, _ = bench.call_actor(handle, retries=-1)
    object_id = result.binary()
    bench.updated("RESTARTING", 1, error=DEAD)
    assert called(bench.alive(2, FRIEND)) == [task_of(result)]
    bench.done(0, result, (STORED, 5, NODE, ()))  # the answer of the first process
    if not wanted:
        result = handle
        bench.turn()
    effects = bench.updated("RESTARTING", 2, error=DEAD)
    assert sent(effects, FreeObjects) == ([] if wanted else [(AGENT, FreeObjects([object_id]))])
    assert wanted == (object_id in bench.owner.memory)


def test_a_result_that_is_small_when_it_was_large_before_leaves_nothing_in_the_store() -> None:
    bench = ActorBench()
    handle = bench.living(restarts=-1)
    result, _ = bench.call_actor(handle, retries=-1)
    bench.updated("RESTARTING", 1, error=DEAD)
    bench.alive(2, FRIEND)
    items = [(task_of(result), [(INLINE, b"small")], 1, [])]
    effects = bench.hears("done", 0, items, peer=FRIEND[0])
    assert sent(effects, FreeObjects) == [(AGENT, FreeObjects([result.binary()]))]


# -- how many may be pending ----------------------------------------------------------------------------------------


def taken(budget: CallBudget) -> CallBudget:
    assert budget.take() and not budget.take()
    return budget


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("fate", ["done", "dead", "argument", "retried", "late"])
def test_a_call_that_has_its_result_gives_its_place_to_another_once(fate: str, ordered: bool) -> None:
    bench = ActorBench()
    handle = bench.living(restarts=-1)
    late, effects = bench.call(retries=0)
    lease, _ = bench.grant(effects)
    budget = taken(CallBudget(1))
    arguments = late if fate == "argument" else []
    result, _ = bench.call_actor(handle, *arguments, retries=1, ordered=ordered, budget=budget)
    if fate == "retried":
        bench.done(0, result, (ERROR, b"oops", True))
        assert not budget.take(), "it runs again"
    if fate == "late":
        bench.updated("RESTARTING", 1, error=DEAD)
    if fate in ("done", "retried", "late"):
        bench.done(0, result, (INLINE, b"1"))
    elif fate == "dead":
        bench.updated("DEAD", 1, error=DEAD)
    else:
        bench.done(lease, late[0], (ERROR, pickle.dumps(ValueError("no"))))
    bench.alive(2, FRIEND)
    assert result.binary() in bench.owner.memory
    taken(budget)


# -- handles --------------------------------------------------------------------------------------------------------


def test_an_actor_ends_with_the_last_handle_and_the_last_call() -> None:
    bench = ActorBench()
    handle = bench.living()
    result, _ = bench.call_actor(handle)
    del handle
    assert sent(bench.turn(), ActorOutOfScope) == [], "the call needs it"
    effects = bench.done(0, result, (INLINE, b"1"))
    assert sent(effects, ActorOutOfScope) == [(CONTROL, ActorOutOfScope(ACTOR))]
    bench.updated("DEAD", 1, error=DEAD)
    del result
    bench.turn()
    assert bench.at_rest() and bench.owner.statistics()["actors_called"] == 0


def test_an_actor_whose_handle_went_before_it_was_created_never_lives() -> None:
    bench = ActorBench()
    late, effects = bench.call()
    lease, _ = bench.grant(effects)
    handle, _ = bench.create(late[0])
    del handle
    assert sent(bench.turn(), ActorOutOfScope) == [(CONTROL, ActorOutOfScope(ACTOR))]
    bench.updated("DEAD", 0, error=DEAD)
    assert not bench.owner.creations
    assert sent(bench.done(lease, late[0], (INLINE, b"7")), CreateActor) == []
    late.clear()
    bench.turn()
    assert bench.at_rest()


def test_a_handle_of_another_process_is_given_back_when_its_calls_are_done() -> None:
    bench = ActorBench()
    handle = bench.adopt(THEIRS, FRIEND)
    bench.owner.references.received(THEIRS)
    result, effects = bench.call_actor(handle, actor=OTHER)
    assert sent(effects, SubscribeActor) == [(CONTROL, SubscribeActor(OTHER))]
    del handle
    assert called(bench.alive(actor=OTHER)) == [task_of(result)]
    effects = bench.done(0, result, (INLINE, b"1"))
    assert sent(effects, UnsubscribeActor) == [(CONTROL, UnsubscribeActor(OTHER))]
    assert sent(effects, Refs) == [(FRIEND[0], Refs([(THEIRS, ME[0], -1)]))]
    assert sent(effects, ActorOutOfScope) == []
    assert bench.owner.statistics()["actors_called"] == 0


def test_a_handle_that_was_found_by_name_registers_itself_and_gives_back_once() -> None:
    bench = ActorBench()
    bench.owner.borrow(THEIRS, FRIEND)
    handle = bench.ref(THEIRS, FRIEND)
    effects = bench.turn()
    assert verbs(effects, DIAL) == [FRIEND]
    assert sent(effects, Refs) == [(FRIEND[0], Refs([(THEIRS, ME[0], 1)]))]
    del handle
    assert sent(bench.turn(), Refs) == [(FRIEND[0], Refs([(THEIRS, ME[0], -1)]))]
    assert bench.at_rest()


def test_a_handle_dropped_and_found_again_in_one_turn_starts_anew() -> None:
    bench = ActorBench()
    bench.owner.borrow(THEIRS, FRIEND)
    handle = bench.ref(THEIRS, FRIEND)
    result, _ = bench.call_actor(handle, actor=OTHER)
    bench.alive(actor=OTHER)
    bench.done(0, result, (INLINE, b"1"))
    del handle
    bench.owner.references.release(bench.inbox.pop())
    bench.owner.borrow(THEIRS, FRIEND)
    again = bench.ref(THEIRS, FRIEND)
    _second, effects = bench.call_actor(again, actor=OTHER)
    assert sent(effects, UnsubscribeActor) == [(CONTROL, UnsubscribeActor(OTHER))]
    assert sent(effects, SubscribeActor) == [(CONTROL, SubscribeActor(OTHER))]
    assert len(called(bench.alive(actor=OTHER))) == 1


def test_a_handle_of_ones_own_actor_that_was_found_by_name_is_one_more() -> None:
    bench = ActorBench()
    handle = bench.living()
    bench.owner.borrow(handle.binary(), ME)
    second = bench.ref(handle.binary())
    assert sent(bench.turn(), Refs) == []
    del handle
    assert sent(bench.turn(), ActorOutOfScope) == []
    del second
    assert len(sent(bench.turn(), ActorOutOfScope)) == 1


def test_calls_by_handles_that_are_not_counted_survive_those_that_are() -> None:
    bench = ActorBench()
    handle = bench.living()
    late, effects = bench.call()
    lease, _ = bench.grant(effects)
    result, _ = bench.call_actor(handle, late[0], counted=False)
    del handle
    assert len(sent(bench.turn(), ActorOutOfScope)) == 1, "a detached actor does not mind"
    assert called(bench.done(lease, late[0], (INLINE, b"7"))) == [task_of(result)]
    bench.updated("DEAD", 1, error=DEAD)
    assert isinstance(bench.error(result), ActorDiedError)
    assert bench.owner.statistics()["actors_called"] == 0


def test_a_process_is_needed_while_others_have_handles_of_its_actors() -> None:
    bench = ActorBench()
    handle = bench.living()
    assert not bench.owner.needed()
    bench.owner.references.give(handle.binary(), ME, FRIEND[0])
    assert bench.owner.needed()
    result, _ = bench.call_actor(handle)
    bench.hears("worker_died", FRIEND[0], "gone")
    assert bench.owner.needed(), "a call of it is not done"
    bench.done(0, result, (INLINE, b"1"))
    assert not bench.owner.needed()


@pytest.mark.parametrize("wanted", [True, False])
def test_what_an_actor_answers_to_itself_is_kept_on_its_way(wanted: bool) -> None:
    """An owner that is given its own object needs no registration; but here the giver keeps it no longer either."""
    bench = ActorBench()
    bench.owner.borrow(THEIRS, FRIEND)
    myself = bench.ref(THEIRS, FRIEND)
    result, _ = bench.call_actor(myself, actor=OTHER)
    bench.alive(worker=ME, actor=OTHER)
    mine = bench.put(b"7")
    mine_id = mine.binary()
    bench.owner.references.give(mine_id, ME, ME[0])
    del mine
    bench.turn()
    assert mine_id in bench.owner.memory, "the answer is on its way"
    items = [(task_of(result), [(INLINE, b"[ref]", ((mine_id, ME),))], 1, [])]
    if not wanted:
        del result
    bench.hears("done", 0, items, peer=ME[0])
    assert (mine_id in bench.owner.memory) == wanted
    result = myself
    del myself
    bench.turn()
    assert mine_id not in bench.owner.memory


def test_the_answers_of_many_calls_come_together_and_those_of_strangers_change_nothing() -> None:
    bench = ActorBench()
    handle = bench.living()
    results = [bench.call_actor(handle)[0] for _ in range(3)]
    items = [(task_of(result), [(INLINE, b"%d" % n)], 1, []) for n, result in enumerate(results)]
    bench.hears("done", 0, [(b"?" * 16, [(INLINE, b"x", ((A, FRIEND),))], 1, []), *items], peer=WORKER[0])
    assert [bench.owner.memory[r.binary()] for r in results] == [(INLINE, b"%d" % n) for n in range(3)]
    assert B not in bench.owner.memory and bench.owner.statistics()["calls"] == 0


def test_an_actor_that_was_called_by_its_name_before_it_is_created_keeps_these_calls() -> None:
    """One thread has named it and goes on to create it; another has found it meanwhile."""
    bench = ActorBench()
    early: list[Any] = []

    def call(handle_id: bytes) -> None:
        early.append(bench.call_actor(bench.ref(handle_id), counted=False)[0])

    handle, _ = bench.create(registered=True, meanwhile=[call])
    late, _ = bench.call_actor(handle)
    assert called(bench.alive()) == [early[0].binary()[:16], late.binary()[:16]]


def test_a_kill_names_the_process_that_is_known() -> None:
    bench = ActorBench()
    handle = bench.living()
    bench.owner.kill_actor(ACTOR, False, handle.binary())
    assert sent(bench.turn(), KillActor) == [(CONTROL, KillActor(ACTOR, False, 1))]
    bench.owner.kill_actor(OTHER, False, THEIRS)
    assert sent(bench.turn(), KillActor) == [(CONTROL, KillActor(OTHER, False, 0))], "no news of it have come yet"
