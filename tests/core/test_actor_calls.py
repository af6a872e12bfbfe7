"""ActorTaskSubmitter and ActorTaskQueue: each call once, in its order, whatever becomes of the actor."""

from __future__ import annotations

import itertools
import pickle
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, ERROR
from zray.base.wire_actors import Call, SubscribeActor, UnsubscribeActor
from zray.core.actor_calls import CONTINUE_TIMER, SESSION, ActorTaskQueue, ActorTaskSubmitter
from zray.core.effects import DIAL
from zray.core.tasks import Task, TaskManager, TaskTemplate
from zray.exceptions import ActorUnavailableError, InvariantError

from .reading import drain, make_ref, process, sent, timers, verbs

A, B = b"actor-a-----", b"actor-b-----"
HANDLE_A, HANDLE_B = b"a" * 20, b"b" * 20
W1, W2, W3 = process("w1"), process("w2"), process("w3")
ARGUMENT = bytes([9]) * 20
WHY = pickle.dumps(ActorUnavailableError("it restarts"))


class Bench:
    """The calls of one process, and which results they got."""

    def __init__(self, **limits: Any) -> None:
        self.out: list[Any] = []
        self.tasks = TaskManager()
        self.held: dict[bytes, None] = {HANDLE_A: None, HANDLE_B: None}
        self.calls = ActorTaskSubmitter(
            Config(**limits), self.out, self.tasks, self._spec, self._fail, self.held.__contains__
        )
        self.told: dict[bytes, None] = {}  # processes of actors
        self.failed: list[tuple[bytes, bytes]] = []
        self.count = 0

    def _spec(self, task: Task) -> tuple[Any, ...]:
        return (task.id, b"method", task.payload, (), 1, 0, "method", None)

    def _fail(self, now: float, task: Task, entry: Any, worker: bytes = b"") -> None:
        assert entry[0] == ERROR and isinstance(pickle.loads(entry[1]), Exception)
        assert worker in (b"", *self.told), "only who had the call can have left something of it"
        if self.tasks.pending.pop(task.id, None) is not None:
            self.failed.append((task.id, entry[1]))

    def task(self, actor: bytes = A, retries: int = 0, missing: int = 0, payload: bytes | None = b"p") -> Task:
        template = TaskTemplate(b"method", "method", ResourceSet({}), 1, retries, None)
        template.actor = (actor, HANDLE_A if actor == A else HANDLE_B)
        self.count += 1
        task_id = self.count.to_bytes(16, "big")
        slots = tuple((n, make_ref(ARGUMENT, (W1, ""))) for n in range(missing))
        return Task(task_id, template, payload, slots, (), (return_id(task_id, 1),), 0)

    def submit(self, count: int = 1, **kind: Any) -> list[Task]:
        tasks = [self.task(**kind) for _ in range(count)]
        for task in tasks:
            self.tasks.submit(task, lambda _: False)
            self.calls.submit(task)
        self.turn()
        return tasks

    def turn(self) -> None:
        self.calls.pump(0.0)
        self.calls.check()
        self.tasks.check()

    def effects(self) -> list[Any]:
        self.turn()
        return drain(self.out)

    def sent(self) -> list[tuple[bytes, int, list[bytes]]]:
        """The calls that were sent: to whom, the number of the first, and which."""
        return [(peer, call.first, [spec[0] for spec in call.specs]) for peer, call in sent(self.effects(), Call)]

    def updated(self, state: str, incarnation: int = 1, worker: bytes = b"", error: bytes = b"", actor: bytes = A) -> None:
        if worker:
            self.told[worker] = None
        self.calls.on_updated(0.0, actor, state, incarnation, worker, f"sim://{worker.decode()}", error)
        self.turn()

    def alive(self, incarnation: int = 1, worker: bytes = W1, actor: bytes = A) -> None:
        self.updated("ALIVE", incarnation, worker, actor=actor)

    def done(self, tasks: list[Task], worker: bytes = W1) -> None:
        items = [(task.id, [], 1, []) for task in tasks]
        self.calls.on_done(worker, items)
        for task in tasks:
            self.tasks.pending.pop(task.id, None)
        self.turn()


def ids(tasks: list[Task]) -> list[bytes]:
    return [task.id for task in tasks]


# -- sending --------------------------------------------------------------------------------------------------------


def test_who_calls_an_actor_asks_where_it_is_once_and_its_calls_wait() -> None:
    bench = Bench()
    bench.submit(2)
    effects = bench.effects()
    assert sent(effects, SubscribeActor) == [(CONTROL, SubscribeActor(A))] and sent(effects, Call) == []


def test_who_registered_an_actor_needs_not_ask() -> None:
    bench = Bench()
    bench.calls.open(A, HANDLE_A, subscribed=True)
    tasks = bench.submit()
    assert bench.effects() == []
    bench.alive()
    assert bench.sent() == [(W1, 0, ids(tasks))]


def test_when_it_is_there_all_that_waited_is_sent_in_order_and_numbered() -> None:
    bench = Bench()
    tasks = bench.submit(3)
    bench.effects()
    bench.updated("PENDING_CREATION")
    assert bench.sent() == []
    bench.alive()
    effects = bench.effects()
    assert verbs(effects, DIAL) == [(W1, "sim://w1--------------")]
    assert [(p, c.first, [s[0] for s in c.specs]) for p, c in sent(effects, Call)] == [(W1, 0, ids(tasks))]
    more = bench.submit(2)
    assert bench.sent() == [(W1, 3, ids(more))]
    bench.alive()
    assert bench.effects() == [], "said twice"


def test_calls_of_different_actors_have_nothing_to_do_with_each_other() -> None:
    bench = Bench()
    first, second = bench.submit(actor=A), bench.submit(actor=B)
    bench.alive(worker=W2, actor=B)
    assert bench.sent() == [(W2, SESSION, ids(second))]
    bench.updated("DEAD", error=WHY)
    assert bench.failed == [(first[0].id, WHY)]
    bench.done(second, W2)
    assert bench.calls.statistics()["calls"] == 0


def test_a_call_whose_arguments_are_not_there_holds_back_those_behind_it() -> None:
    bench = Bench()
    bench.submit()
    bench.alive()
    bench.effects()
    [waits] = bench.submit(missing=1)
    behind = bench.submit(2)
    assert bench.sent() == []
    assert bench.tasks.on_object_ready(ARGUMENT) == [waits]
    bench.calls.on_arguments_ready(waits)
    assert bench.sent() == [(W1, 1, [waits.id, *ids(behind)])]


def test_a_call_that_has_its_result_already_is_not_sent() -> None:
    """An argument of it was an error."""
    bench = Bench()
    first, second = bench.submit(2)
    bench.tasks.pending.pop(first.id)
    bench.alive()
    assert bench.sent() == [(W1, 0, [second.id])]


def test_no_more_arguments_are_sent_at_once_than_the_limit_allows() -> None:
    bench = Bench(actor_calls_bytes_max=2_000, inline_bytes_max=1_000_000)
    bench.submit()
    bench.alive()
    bench.effects()
    tasks = bench.submit(5, payload=bytes(744))
    effects = bench.effects()
    assert [(c.first, [s[0] for s in c.specs]) for _, c in sent(effects, Call)] == [(1, ids(tasks[:2]))]
    sizes = []
    while True:
        [(at, key)] = timers(effects)
        assert (at, key) == (0.0, (CONTINUE_TIMER, A))
        bench.calls.on_timer(0.0, key)
        effects = bench.effects()
        sizes += [(c.first, len(c.specs)) for _, c in sent(effects, Call)]
        if not timers(effects):
            break
    assert sizes == [(3, 2), (5, 1)]
    bench.calls.on_timer(0.0, (CONTINUE_TIMER, B))
    assert bench.effects() == [], "an actor that is not called any more"


def test_calls_without_arguments_are_small() -> None:
    bench = Bench(actor_calls_bytes_max=256 * 100, inline_bytes_max=1_000_000)
    bench.submit()
    bench.alive()
    bench.effects()
    tasks = bench.submit(100, payload=None)
    assert bench.sent() == [(W1, 1, ids(tasks))]


# -- deaths ---------------------------------------------------------------------------------------------------------


def test_when_its_process_ends_calls_with_retries_wait_for_the_next_in_their_old_order_and_others_fail() -> None:
    bench = Bench()
    sure, unsure = bench.task(retries=1), bench.task()
    for task in (sure, unsure):
        bench.tasks.submit(task, lambda _: True)
        bench.calls.submit(task)
    more = bench.submit(2, retries=-1)
    bench.alive()
    bench.effects()
    bench.updated("RESTARTING", error=WHY)
    assert bench.failed == [(unsure.id, WHY)]
    late = bench.submit()
    assert bench.sent() == []
    bench.alive(2, W2)
    assert bench.sent() == [(W2, 0, [sure.id, *ids(more), *ids(late)])], "numbers start again with each incarnation"
    bench.updated("RESTARTING", 2, error=WHY)
    assert bench.failed[1:] == [(sure.id, WHY), (late[0].id, WHY)], "its one retry is used up"


def test_calls_that_were_not_sent_cost_no_retry() -> None:
    bench = Bench()
    tasks = bench.submit(2)
    bench.updated("PENDING_CREATION", 1)
    bench.updated("RESTARTING", 1, error=WHY)
    bench.alive(2, W2)
    assert bench.sent() == [(W2, 0, ids(tasks))] and bench.failed == []


def test_when_it_is_dead_all_its_calls_fail_at_once_and_for_ever() -> None:
    bench = Bench()
    inflight = bench.submit(retries=-1)
    bench.alive()
    queued = bench.submit(missing=1)
    bench.updated("DEAD", error=WHY)
    assert bench.failed == [(inflight[0].id, WHY), (queued[0].id, WHY)]
    late = bench.submit()
    assert bench.failed[2:] == [(late[0].id, WHY)]
    bench.alive(2, W2)
    assert bench.sent() == [(W1, 0, ids(inflight))], "only what was sent before"


def test_news_of_an_earlier_incarnation_are_ignored() -> None:
    bench = Bench()
    bench.submit()
    bench.alive(2, W2)
    bench.effects()
    bench.updated("RESTARTING", 1, error=WHY)
    bench.alive(1, W1)
    assert bench.effects() == [] and bench.failed == []


def test_who_missed_the_end_of_a_process_learns_of_it_with_the_next() -> None:
    """Nothing was told while no handle was here; the calls of the first process are as lost as ever."""
    bench = Bench()
    [lost] = bench.submit()
    [again] = bench.submit(retries=1)
    bench.alive()
    bench.effects()
    bench.alive(2, W2)
    assert [i for i, _ in bench.failed] == [lost.id]
    assert isinstance(pickle.loads(bench.failed[0][1]), ActorUnavailableError)
    assert bench.sent() == [(W2, 0, [again.id])]


def test_an_answer_that_comes_after_the_death_counts_and_nothing_is_done_twice() -> None:
    bench = Bench()
    first, second = bench.submit(2, retries=-1)
    bench.alive()
    bench.effects()
    bench.updated("RESTARTING", error=WHY)
    bench.done([first])  # it had been on its way
    bench.alive(2, W2)
    assert bench.sent() == [(W2, 0, [second.id])]
    bench.done([second])  # and so had this: now it runs a second time, in vain
    bench.updated("DEAD", 2, error=WHY)
    assert bench.failed == [], "who has a result gets no error"


def test_answers_of_strangers_are_ignored() -> None:
    bench = Bench()
    tasks = bench.submit()
    bench.alive()
    bench.calls.on_done(W2, [(tasks[0].id, [], 1, [])])
    bench.calls.on_done(W1, [(bytes(16), [], 1, [])])
    assert bench.calls.statistics() == {"actors_called": 1, "calls": 1}


# -- handles --------------------------------------------------------------------------------------------------------


def test_without_a_handle_here_nothing_is_kept_of_an_actor() -> None:
    bench = Bench()
    bench.done(bench.submit())
    bench.alive()
    bench.effects()
    assert bench.calls.forget(HANDLE_A) == A
    assert sent(bench.effects(), UnsubscribeActor) == [(CONTROL, UnsubscribeActor(A))]
    assert bench.calls.statistics() == {"actors_called": 0, "calls": 0} and not bench.calls.by_worker
    bench.alive()
    assert bench.effects() == []


def test_a_dead_actor_needs_no_unsubscribing() -> None:
    bench = Bench()
    bench.submit()
    bench.updated("DEAD", error=WHY)
    bench.effects()
    bench.calls.forget(HANDLE_A)
    assert bench.effects() == []


def test_calls_by_a_handle_that_went_and_came_back_are_no_repetitions() -> None:
    """The actor would take calls that start from zero again for repetitions, and drop them."""
    bench = Bench()
    queue = ActorTaskQueue()
    taken = []
    for incarnation, worker in ((1, W1), (1, W1), (2, W2)):
        if incarnation == 2:
            queue = ActorTaskQueue()
        tasks = bench.submit(3)
        assert sent(bench.effects(), SubscribeActor) == [(CONTROL, SubscribeActor(A))]
        bench.alive(incarnation, worker)
        [(peer, first, sent_ids)] = bench.sent()
        taken += queue.accept(process("me"), first, sent_ids)
        assert (peer, taken[-3:]) == (worker, ids(tasks))
        bench.done(tasks, worker)
        bench.calls.forget(HANDLE_A)
        bench.effects()


def test_calls_outlive_the_handle_when_another_that_does_not_count_made_them() -> None:
    """Handles of detached actors, and an actor's of itself, are not counted."""
    bench = Bench()
    sent_one = bench.submit(retries=-1)
    bench.alive()
    waiting = bench.submit(missing=1)
    bench.effects()
    del bench.held[HANDLE_A]
    bench.calls.forget(HANDLE_A)
    assert bench.effects() == []
    bench.updated("DEAD", error=WHY)
    assert [i for i, _ in bench.failed] == ids(sent_one + waiting)
    assert bench.calls.statistics() == {"actors_called": 0, "calls": 0}, "and with its death it is forgotten"


def test_check_sees_calls_that_should_have_been_sent_and_calls_of_the_dead() -> None:
    bench = Bench()
    bench.submit()
    queue = bench.calls.queues[A]
    queue.worker = W1
    with pytest.raises(InvariantError, match="could be sent"):
        bench.calls.check()
    queue.error = WHY
    with pytest.raises(InvariantError, match="is dead and has calls"):
        bench.calls.check()


# -- random walk ----------------------------------------------------------------------------------------------------


class Walk:
    """One caller, and an actor that answers, dies and comes back; answers and news overtake each other."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.bench = Bench(actor_calls_bytes_max=600)
        self.incarnation = 1
        self.alive = True
        self.order = ActorTaskQueue()
        self.taken: list[bytes] = []  # by this incarnation
        self.calls: list[tuple[int, int, list[Any]]] = []  # on their way: incarnation, first, specs
        self.answers: list[tuple[bytes, bytes]] = []  # on their way: worker, task
        self.news: list[tuple[Any, ...]] = [("ALIVE", 1, b"w%015d" % 1)]
        self.results: dict[bytes, int] = {}
        self.tasks: dict[bytes, Task] = {}
        self.spoiled: dict[bytes, None] = {}  # calls with an argument that is an error
        self.timers = 0

    def absorb(self) -> None:
        effects = self.bench.effects()
        for _, message in sent(effects, Call):
            self.calls.append((self.bench.calls.queues[A].incarnation, message.first, message.specs))
        self.timers += len(timers(effects))
        for task_id, _ in drain(self.bench.failed):
            self.results[task_id] = self.results.get(task_id, 0) + 1
            lasting = self.tasks[task_id].template.max_retries < 0 and task_id not in self.spoiled
            assert not lasting, "a call that may be sent for ever is never lost"

    def step(self, what: str) -> None:
        bench, rng = self.bench, self.rng
        if what == "submit":
            for task in bench.submit(rng.randint(1, 4), retries=rng.choice([0, 1, -1]), missing=rng.random() < 0.2):
                self.tasks[task.id] = task
        elif what == "argument":
            for task in bench.tasks.on_object_ready(ARGUMENT):
                if rng.random() < 0.2:
                    self.spoiled[task.id] = None
                    bench._fail(0.0, task, (ERROR, WHY))  # that argument is an error
                bench.calls.on_arguments_ready(task)
        elif what == "call" and self.calls:
            incarnation, first, specs = self.calls.pop(0)
            if self.alive and incarnation == self.incarnation:
                taken = [spec[0] for spec in self.order.accept(b"me", first, specs)]
                self.taken += taken
                assert self.taken == sorted(dict.fromkeys(self.taken)), "each once, in the order in which they were made"
                self.answers += [(b"w%015d" % incarnation, task_id) for task_id in taken if rng.random() < 0.8]
        elif what == "answer" and self.answers:
            worker, task_id = self.answers.pop(rng.randrange(len(self.answers)))
            if task_id in bench.tasks.pending:
                self.results[task_id] = self.results.get(task_id, 0) + 1
            bench.done([self.tasks[task_id]], worker)
        elif what == "die" and self.alive:
            self.alive = False
            self.news.append(("RESTARTING", self.incarnation, b"", WHY))
        elif what == "return" and not self.alive:
            self.alive = True
            self.incarnation += 1
            self.order = ActorTaskQueue()
            self.taken = []
            self.news.append(("ALIVE", self.incarnation, b"w%015d" % self.incarnation))
        elif what == "news" and self.news and self.tasks:
            bench.updated(*self.news.pop(0))
        elif what == "timer" and self.timers:
            self.timers -= 1
            bench.calls.on_timer(0.0, (CONTINUE_TIMER, A))
        self.order.check()
        self.absorb()

    def settle(self) -> None:
        self.step("return")
        for _ in range(300):
            for what in ("news", "argument", "timer", "call", "answer"):
                self.step(what)
            missing = [task_id for task_id in self.taken if task_id in self.bench.calls.queues[A].inflight]
            self.answers += [(b"w%015d" % self.incarnation, task_id) for task_id in missing]


@settings(max_examples=100)
@given(st.integers(0, 1 << 30), st.integers(10, 150))
def test_random_walk_every_call_gets_one_result(seed: int, steps: int) -> None:
    world = Walk(random.Random(seed))
    kinds = ["submit", "submit", "call", "call", "answer", "answer", "news", "news", "timer", "argument", "die", "return"]
    for _ in range(steps):
        world.step(world.rng.choice(kinds))
    world.settle()
    assert world.results == dict.fromkeys(world.tasks, 1)
    assert world.bench.calls.statistics()["calls"] == 0


# -- at the actor ---------------------------------------------------------------------------------------------------


def batches(total: int, cuts: list[int]) -> Iterator[tuple[int, list[int]]]:
    """The calls 0 .. total, cut into batches."""
    edges = sorted({0, total, *(cut % (total + 1) for cut in cuts)})
    for first, end in itertools.pairwise(edges):
        yield first, list(range(first, end))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(0, 12), max_size=4)), min_size=1, max_size=3),
    st.integers(0, 1 << 30),
)
def test_each_callers_calls_are_taken_once_and_in_order(callers: list[tuple[int, list[int]]], seed: int) -> None:
    rng = random.Random(seed)
    mail = [(bytes([n]), *batch) for n, (total, cuts) in enumerate(callers) for batch in batches(total, cuts)]
    mail += [rng.choice(mail) for _ in range(rng.randint(0, 4))]  # what is said twice
    mail += [  # and what is said twice in other batches
        (caller, first + n, [spec])
        for caller, first, specs in mail[: rng.randint(0, 2)]
        for n, spec in enumerate(specs)
    ]
    rng.shuffle(mail)
    queue = ActorTaskQueue()
    taken: dict[bytes, list[int]] = {}
    for caller, first, specs in mail:
        taken.setdefault(caller, []).extend(queue.accept(caller, first, list(specs)))
        queue.check()
        assert taken[caller] == list(range(len(taken[caller])))
    assert taken == {bytes([n]): list(range(total)) for n, (total, _) in enumerate(callers)}


def test_what_comes_early_waits_for_what_is_missing() -> None:
    queue = ActorTaskQueue()
    assert queue.accept(W1, 2, ["c"]) == [] and queue.accept(W1, 0, ["a"]) == ["a"]
    assert queue.accept(W2, 0, ["x"]) == ["x"], "others do not wait for it"
    assert queue.accept(W1, 1, ["b"]) == ["b", "c"]
    assert queue.accept(W1, 3, ["d"]) == ["d"]


def test_nothing_is_kept_of_a_caller_that_ended() -> None:
    queue = ActorTaskQueue()
    queue.accept(W1, 0, ["a"])
    queue.accept(W1, 5, ["f"])
    queue.forget(W1)
    queue.forget(W1)
    queue.check()
    assert queue.accept(W1, 0, ["a"]) == ["a"], "as if it had never been there"


def test_check_sees_a_call_that_waits_although_it_is_its_turn() -> None:
    queue = ActorTaskQueue()
    queue.accept(W1, 1, ["b"])
    queue._next[W1] = 1
    with pytest.raises(InvariantError, match="it is their turn"):
        queue.check()
