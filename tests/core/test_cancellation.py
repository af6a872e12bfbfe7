"""TaskCancellation: whatever a task does when it is cancelled, its results are known, and it never runs again."""

from __future__ import annotations

import pickle
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.ids import agent_id, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import (
    ERROR,
    INLINE,
    STORED,
    CancelObject,
    CancelTask,
    FreeObjects,
    Push,
    RequestLease,
    ReturnLease,
)
from zray.base.wire_actors import Call
from zray.base.wire_state import ExplainLease
from zray.core.actors import ActorState
from zray.core.explain import of_object
from zray.core.tasks import Task, TaskTemplate
from zray.exceptions import TaskCancelledError, WorkerCrashedError

from .owner_bench import FRIEND, WORKER, A, Bench
from .reading import process, sent

VALUE = (INLINE, b"value")
ACTOR, HANDLE = b"actor-a-----", b"h" * 20
HOME = process("home")
FAR = process("far")


def cancel(bench: Bench, ref: Any, **how: Any) -> list[Any]:
    assert bench.owner.cancel(0.0, ref.binary(), **how)
    return bench.turn()


def is_cancelled(bench: Bench, *refs: Any) -> None:
    for ref in refs:
        error = bench.error(ref)
        assert isinstance(error, TaskCancelledError)
        assert error.task_id == ref.binary()[:16].hex() and error.task_id in str(error)


def running(bench: Bench, *, count: int = 1, retries: int = 3) -> tuple[int, list[Any]]:
    """A lease with so many tasks in the worker's queue."""
    [first], effects = bench.call(retries=retries)
    lease, _ = bench.grant(effects)
    if count == 1:
        return lease, [first]
    bench.done(lease, first, VALUE)
    refs = []
    for _ in range(count):
        refs += bench.call(retries=retries)[0]
    return lease, refs


def actor_call(bench: Bench, *slots: Any, retries: int = 0, ordered: bool = True) -> Any:
    template = TaskTemplate(b"method", "method", ResourceSet({}), 1, retries, None)
    template.actor = (ACTOR, HANDLE)
    template.ordered = ordered
    task_id = bench.ids()
    ref = bench.ref(return_id(task_id, 1))
    bench.owner.submit(0.0, Task(task_id, template, b"p", tuple(enumerate(slots)), (), (ref.binary(),), 0))
    return ref


def lives(bench: Bench, incarnation: int = 1) -> list[Any]:
    return bench.hears("actor_updated", ACTOR, ActorState.ALIVE.name, incarnation, HOME, "sim://home", b"")


def called_far_away(bench: Bench) -> tuple[Any, Any]:
    """A task that asks for a worker where its large argument lies; its result and the request."""
    object_id = bench.ids() + bytes(4)
    bench.owner.put(object_id, (STORED, 8 << 20, FAR, ()))
    [ref], effects = bench.call(bench.ref(object_id))
    [(_, request)] = sent(effects, RequestLease)
    assert request.locality == ((FAR, 8 << 20),)
    return ref, request


# -- before -----------------------------------------------------------------------------------------------------------


def test_a_queued_task_is_never_pushed() -> None:
    bench = Bench()
    [ref], effects = bench.call()
    assert not sent(cancel(bench, ref), CancelTask)
    is_cancelled(bench, ref)
    request = sent(effects, RequestLease)[0][1].request_id
    effects = bench.hears("lease_granted", request, 1, WORKER[0], WORKER[1])
    assert sent(effects, ReturnLease) and not sent(effects, Push)
    del ref
    bench.turn()
    assert bench.at_rest()


def test_a_task_that_waits_where_its_argument_lies_is_found() -> None:
    bench = Bench()
    ref, request = called_far_away(bench)
    finding = of_object(bench.owner, 0.0, ref.binary())
    assert finding.ask is not None and finding.ask[1:] == (ExplainLease, (request.request_id,))
    cancel(bench, ref)
    is_cancelled(bench, ref)
    effects = bench.hears("lease_granted", request.request_id, 1, WORKER[0], WORKER[1], peer=agent_id(FAR))
    assert sent(effects, ReturnLease) and not sent(effects, Push)


def test_of_a_long_queue_the_others_run_in_their_order() -> None:
    bench = Bench()
    refs, effects = [], []
    for _ in range(6):
        [ref], more = bench.call()
        refs.append(ref)
        effects += more
    for ref in refs[1:4]:
        cancel(bench, ref)
    is_cancelled(bench, *refs[1:4])
    request = sent(effects, RequestLease)[0][1].request_id
    pushed = []
    effects = bench.hears("lease_granted", request, 1, WORKER[0], WORKER[1])
    for _ in range(3):
        [(_, push)] = sent(effects, Push)
        pushed += [spec[0] for spec in push.specs]
        effects = bench.hears("done", 1, [(pushed[-1], [VALUE], 10_000, [])], peer=WORKER[0])
    assert pushed == [refs[n].binary()[:16] for n in (0, 4, 5)]


def test_a_task_that_waits_for_an_argument_lets_go_of_it() -> None:
    bench = Bench()
    [argument], _ = bench.call()
    [ref], _ = bench.call(argument, argument)
    [other], _ = bench.call(argument)
    cancel(bench, ref)
    is_cancelled(bench, ref)
    assert len(bench.owner.tasks.waiting[argument.binary()]) == 1
    cancel(bench, other)
    assert not bench.owner.tasks.waiting
    assert bench.owner.references.counts[argument.binary()] == 1


def test_who_waits_for_a_cancelled_task_is_told() -> None:
    bench = Bench()
    [ref], _ = bench.call()
    [after], _ = bench.call(ref)
    bench.hears("get_object", ref.binary(), peer=FRIEND[0])
    cancel(bench, ref)
    is_cancelled(bench, ref)
    assert isinstance(bench.error(after), TaskCancelledError)


# -- while ------------------------------------------------------------------------------------------------------------


def test_the_worker_is_told_once_and_its_answer_counts() -> None:
    bench = Bench()
    lease, [ref] = running(bench)
    assert sent(cancel(bench, ref), CancelTask) == [(WORKER[0], CancelTask(ref.binary()[:16], False, True))]
    assert not sent(cancel(bench, ref), CancelTask)
    bench.done(lease, ref, VALUE)
    assert bench.owner.memory[ref.binary()] == VALUE, "it was faster, or did not care"


@pytest.mark.parametrize("force", [False, True])
def test_the_worker_where_the_argument_lies_is_told(force: bool) -> None:
    bench = Bench()
    ref, request = called_far_away(bench)
    bench.hears("lease_granted", request.request_id, 1, WORKER[0], WORKER[1], peer=agent_id(FAR))
    told = [(WORKER[0], CancelTask(ref.binary()[:16], force, True))]
    assert sent(cancel(bench, ref, force=force), CancelTask) == told
    assert ref.binary()[:16] in bench.owner.tasks.pending


def test_force_comes_after_a_wish_that_was_not_heard() -> None:
    bench = Bench()
    _, [ref] = running(bench)
    cancel(bench, ref)
    assert sent(cancel(bench, ref, force=True), CancelTask) == [(WORKER[0], CancelTask(ref.binary()[:16], True, True))]
    assert not sent(cancel(bench, ref), CancelTask)


def test_what_a_worker_hands_back_is_not_pushed_again() -> None:
    bench = Bench()
    lease, refs = running(bench, count=4)
    cancel(bench, refs[2])
    effects = bench.hears("hand_back", lease, [refs[2].binary()[:16]], peer=WORKER[0])
    is_cancelled(bench, refs[2])
    assert not sent(effects, Push)
    assert not bench.owner.leases.leases[lease].stalled


def test_a_hand_back_of_many_that_meets_the_wish() -> None:
    bench = Bench()
    lease, refs = running(bench, count=4)
    cancel(bench, refs[2])
    bench.hears("hand_back", lease, [ref.binary()[:16] for ref in refs[1:]], peer=WORKER[0])
    is_cancelled(bench, refs[2])
    effects = bench.done(lease, refs[0], VALUE)
    [(_, push)] = sent(effects, Push)
    assert [spec[0] for spec in push.specs] == [refs[n].binary()[:16] for n in (1, 3)]


def test_an_error_that_is_to_be_tried_again_is_not() -> None:
    bench = Bench()
    lease, [ref] = running(bench)
    cancel(bench, ref)
    effects = bench.done(lease, ref, (ERROR, pickle.dumps(KeyError()), True))
    assert not sent(effects, Push)
    assert isinstance(bench.error(ref), KeyError)


def test_a_task_whose_worker_dies_was_cancelled() -> None:
    bench = Bench()
    lease, [ref] = running(bench)
    cancel(bench, ref)
    effects = bench.hears("lease_lost", lease, "killed")
    is_cancelled(bench, ref)
    assert not sent(effects, RequestLease)
    assert sent(effects, FreeObjects), "it may have left a result"


def test_nobody_is_charged_or_suspected_for_the_end_of_a_process_that_was_wished() -> None:
    bench = Bench()
    lease, refs = running(bench, count=4, retries=1)
    cancel(bench, refs[0], force=True)
    tasks = [bench.owner.tasks.pending[ref.binary()[:16]] for ref in refs[1:]]
    bench.hears("lease_lost", lease, "it exited with code 1")
    is_cancelled(bench, refs[0])
    assert [(task.retries_left, task.suspect, bool(task.tried)) for task in tasks] == [(1, False, True)] * 3
    assert bench.owner.statistics()["queued"] == 3


def test_an_unwished_end_charges_as_always() -> None:
    bench = Bench()
    lease, [ref] = running(bench, retries=0)
    bench.hears("lease_lost", lease, "killed")
    assert isinstance(bench.error(ref), WorkerCrashedError)


def test_all_results_are_cancelled() -> None:
    bench = Bench()
    refs, _ = bench.call(returns=3)
    cancel(bench, refs[1])
    is_cancelled(bench, *refs)


# -- after, elsewhere, children ---------------------------------------------------------------------------------------


def test_what_is_over_or_was_put_stays() -> None:
    bench = Bench()
    lease, [ref] = running(bench)
    bench.done(lease, ref, VALUE)
    put = bench.put(b"put")
    for each in (ref, put):
        for force in (False, True):
            assert not sent(cancel(bench, each, force=force), CancelTask)
    assert bench.owner.memory[ref.binary()] == VALUE


def test_a_borrowed_object_is_cancelled_by_its_owner() -> None:
    bench = Bench()
    ref = bench.adopt(A, FRIEND)
    assert sent(cancel(bench, ref, recursive=False), CancelObject) == [(FRIEND[0], CancelObject(A, False, False))]
    mine, _ = bench.call()
    bench.hears("cancel_object", mine[0].binary(), False, True, peer=FRIEND[0])
    is_cancelled(bench, mine[0])
    bench.hears("cancel_object", bytes(20), True, True, peer=FRIEND[0])


def test_children_are_those_of_one_parent() -> None:
    bench = Bench()
    refs = [bench.call()[0][0] for _ in range(4)]
    for n, ref in enumerate(refs):
        bench.owner.tasks.pending[ref.binary()[:16]].parent = b"parent" if n % 2 else b"other"
    bench.owner.cancel_children(0.0, b"parent", force=False)
    bench.turn()
    is_cancelled(bench, refs[1], refs[3])
    assert refs[0].binary() not in bench.owner.memory


# -- actors -----------------------------------------------------------------------------------------------------------


def test_a_call_in_the_queue_is_never_sent_and_holds_up_nobody() -> None:
    bench = Bench()
    [argument], _ = bench.call()
    refs = [actor_call(bench, argument), actor_call(bench), actor_call(bench)]
    cancel(bench, refs[0])
    cancel(bench, refs[1])
    is_cancelled(bench, *refs[:2])
    [(_, call)] = sent(lives(bench), Call)
    assert [spec[0] for spec in call.specs] == [refs[2].binary()[:16]]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_call_that_waits_for_an_argument(ordered: bool) -> None:
    bench = Bench()
    lives(bench)
    [argument], effects = bench.call()
    ref = actor_call(bench, argument, ordered=ordered)
    cancel(bench, ref)
    is_cancelled(bench, ref)
    lease, _ = bench.grant(effects)
    assert not sent(bench.done(lease, argument, VALUE), Call)


def test_a_call_that_was_sent_is_the_actors_to_stop() -> None:
    bench = Bench()
    ref = actor_call(bench, retries=-1)
    lives(bench)
    assert bench.owner.cancel(0.0, ref.binary(), force=True) is False
    assert sent(cancel(bench, ref), CancelTask) == [(HOME, CancelTask(ref.binary()[:16], False, True))]
    effects = bench.hears("actor_updated", ACTOR, ActorState.RESTARTING.name, 2, b"", "", pickle.dumps(KeyError()))
    is_cancelled(bench, ref)
    assert not sent(effects + lives(bench, 2), Call)


# -- a random walk ----------------------------------------------------------------------------------------------------


class Walk:
    """Tasks, and a worker that does with what was pushed whatever a worker may do."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.bench = Bench(pipeline_window_ms=self.dice.choice([0.0, 5.0]))
        self.refs: dict[bytes, Any] = {}
        self.cancelled: dict[bytes, None] = {}
        self.pushed: dict[int, list[bytes]] = {}  # by lease
        self.requests: list[int] = []
        self.leases = 0

    def took(self, effects: list[Any]) -> None:
        self.requests += [request.request_id for _, request in sent(effects, RequestLease)]
        for _, push in sent(effects, Push):
            for spec in push.specs:
                assert spec[0] not in self.cancelled, "a task was pushed after it had been cancelled"
                self.pushed.setdefault(push.lease_id, []).append(spec[0])
        for _, gone in sent(effects, ReturnLease):
            assert not self.pushed.pop(gone.lease_id, [])

    def step(self, what: str) -> None:
        bench, dice = self.bench, self.dice
        busy = [lease for lease, tasks in self.pushed.items() if tasks]
        if what == "call":
            waits = [ref for ref in self.refs.values() if dice.random() < 0.2][:1]
            refs, effects = bench.call(*waits, retries=dice.choice([0, 1, 3]), returns=dice.choice([1, 1, 2]))
            self.refs.update({ref.binary(): ref for ref in refs})
            self.took(effects)
        elif what == "grant" and self.requests:
            self.leases += 1
            request = self.requests.pop(dice.randrange(len(self.requests)))
            self.took(bench.hears("lease_granted", request, self.leases, WORKER[0], WORKER[1]))
        elif what == "cancel" and self.refs:
            ref = dice.choice(list(self.refs.values()))
            pending = ref.binary()[:16] in bench.owner.tasks.pending
            self.took(cancel(bench, ref, force=dice.random() < 0.2))
            if pending:
                self.cancelled[ref.binary()[:16]] = None
        elif what == "done" and busy:
            lease = dice.choice(busy)
            task = self.pushed[lease].pop(0)
            entry = dice.choice([VALUE, VALUE, (ERROR, pickle.dumps(KeyError()), True)])
            count = sum(1 for object_id in self.refs if object_id[:16] == task)
            self.took(bench.hears("done", lease, [(task, [entry] * count, dice.choice([10, 9000]), [])], peer=WORKER[0]))
        elif what == "back" and busy:
            lease = dice.choice(busy)
            tasks = [task for task in self.pushed[lease][1:] if dice.random() < 0.5]
            self.pushed[lease] = [task for task in self.pushed[lease] if task not in tasks]
            if tasks:
                self.took(bench.hears("hand_back", lease, tasks, peer=WORKER[0]))
        elif what == "die" and self.pushed:
            lease = dice.choice(list(self.pushed))
            del self.pushed[lease]
            self.took(bench.hears("lease_lost", lease, "killed"))


WALKS = st.lists(st.sampled_from(["call", "call", "grant", "cancel", "done", "done", "back", "die"]), min_size=5, max_size=80)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 30), WALKS)
def test_random_walk_each_result_is_known_and_no_cancelled_task_runs_again(seed: int, steps: list[str]) -> None:
    walk = Walk(seed)
    for step in [*steps, *["cancel"] * 3]:
        walk.step(step)
    for _ in range(500):
        if not walk.bench.owner.tasks.pending:
            break
        walk.step(walk.dice.choice(["grant", "done"]))
    assert not walk.bench.owner.tasks.pending, "something waits for ever"
    assert all(object_id in walk.bench.owner.memory for object_id in walk.refs)
    for ref in list(walk.refs):
        del walk.refs[ref]
    walk.bench.turn()
    assert walk.bench.at_rest()
    assert not walk.bench.owner.tasks.waiting
