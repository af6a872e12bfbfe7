"""NormalTaskSubmitter: leases, pipelining, blame."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.base.wire import CancelLease, OpenLease, Push, RequestLease, ReturnLease
from zray.core.effects import DIAL
from zray.core.leases import IDLE_TIMER, NormalTaskSubmitter
from zray.core.tasks import Task, TaskTemplate
from zray.exceptions import InvariantError

from .reading import AGENT, drain, process, sent, timers, verbs

JOB = b"job1"
ONE = ResourceSet.of({"CPU": 1})
ANYWHERE = ("default",)
TWO = ResourceSet.of({"CPU": 2})


class Bench:
    def __init__(self, **limits: Any) -> None:
        self.out: list[Any] = []
        self.config = Config(**{"lease_idle_ms": 100.0, "lease_requests_max": 4, **limits})
        self.leases = NormalTaskSubmitter(
            JOB, AGENT, self.config, self.out, lambda task: (task.id, b"", None, (), 1, 1, "", None)
        )
        self.templates: dict[Any, TaskTemplate] = {}
        self.count = 0

    def task(
        self,
        resources: ResourceSet = ONE,
        retries: int = 3,
        function: bytes = b"f",
        depth: int = 0,
        payload: Any = b"payload",
    ) -> Task:
        key = (resources, retries, function)
        template = self.templates.get(key)
        if template is None:
            template = TaskTemplate(function, "f", resources, 1, retries, None)
            self.templates[key] = template
        self.count += 1
        task_id = self.count.to_bytes(16, "big")
        return Task(task_id, template, payload, (), (), (return_id(task_id, 1),), depth)

    def does(self, event: str, *args: Any, now: float = 0.0) -> Any:
        result = getattr(self.leases, event)(*args)
        self.leases.pump(now)
        self.leases.check()
        return result

    def submit(self, count: int = 1, **kind: Any) -> list[Task]:
        tasks = [self.task(**kind) for _ in range(count)]
        for task in tasks:
            self.leases.submit(task)
        self.leases.pump(0.0)
        self.leases.check()
        return tasks

    def effects(self) -> list[Any]:
        return drain(self.out)

    def requests(self) -> list[int]:
        return [m.request_id for peer, m in sent(self.effects(), RequestLease) if peer == AGENT]

    def pushed(self) -> list[tuple[int, list[bytes]]]:
        return [(m.lease_id, [spec[0] for spec in m.specs]) for _, m in sent(self.effects(), Push)]

    def granted(self, request_id: int, lease_id: int) -> None:
        self.does("on_granted", 0.0, AGENT, request_id, lease_id, process(f"w{lease_id}"), f"sim://w{lease_id}")

    def done(self, lease_id: int, tasks: list[Task], run_us: int = 10, now: float = 0.0) -> None:
        self.does("on_done", now, lease_id, [(t.id, [], run_us, []) for t in tasks], now=now)

    def fast(self, resources: ResourceSet = ONE, run_us: int = 10) -> None:
        """One task has run, so that the function is known to be fast; lease 1 is left idle."""
        [task] = self.submit(resources=resources)
        self.granted(self.requests()[0], 1)
        self.done(1, [task], run_us)
        self.effects()


# -- asking ---------------------------------------------------------------------------------------------------------


def test_a_task_asks_for_a_lease_and_is_pushed_when_it_is_granted() -> None:
    bench = Bench()
    [task] = bench.submit(depth=3)
    [(peer, request)] = sent(bench.effects(), RequestLease)
    assert peer == AGENT and request == RequestLease(1, JOB, {"CPU": 10_000}, 3)
    bench.granted(1, 7)
    effects = bench.effects()
    assert verbs(effects, DIAL) == [(process("w7"), "sim://w7")]
    assert sent(effects, OpenLease) == [(process("w7"), OpenLease(7, JOB, {"CPU": 10_000}))]
    [(peer, push)] = sent(effects, Push)
    assert (peer, push.lease_id, [spec[0] for spec in push.specs]) == (process("w7"), 7, [task.id])


def test_no_more_leases_are_asked_for_than_tasks_and_only_a_few_at_a_time() -> None:
    bench = Bench(lease_requests_max=4)
    bench.submit(3)
    assert bench.requests() == [1, 2, 3]
    bench.submit(9)
    assert bench.requests() == [4]
    bench.granted(1, 1)
    assert bench.requests() == [5]


def test_each_shape_of_resources_has_its_own_leases() -> None:
    bench = Bench()
    small, large = bench.submit(), bench.submit(resources=TWO)
    asked = [(m.request_id, m.resources) for _, m in sent(bench.effects(), RequestLease)]
    assert asked == [(1, {"CPU": 10_000}), (2, {"CPU": 20_000})]
    bench.granted(2, 5)
    assert bench.pushed() == [(5, [large[0].id])]
    bench.granted(1, 6)
    assert bench.pushed() == [(6, [small[0].id])]


def test_a_lease_that_comes_too_late_goes_back_at_once() -> None:
    bench = Bench()
    tasks = bench.submit(2)
    bench.granted(1, 1)
    bench.done(1, [tasks[0]])
    bench.effects()
    bench.granted(2, 2)
    assert sent(bench.effects(), ReturnLease) == [(AGENT, ReturnLease(2))]
    bench.granted(99, 3)
    assert sent(bench.effects(), ReturnLease) == [(AGENT, ReturnLease(3))], "it was cancelled, or never asked for"


# -- pipelining -----------------------------------------------------------------------------------------------------


def test_a_function_of_unknown_run_time_is_pushed_one_at_a_time() -> None:
    bench = Bench()
    tasks = bench.submit(3)
    bench.granted(1, 1)
    assert bench.pushed() == [(1, [tasks[0].id])]
    bench.done(1, [tasks[0]], run_us=1_000_000)
    assert bench.pushed() == [(1, [tasks[1].id])], "and so is a slow one"


def test_fast_tasks_are_pushed_ahead_as_many_as_fit_into_the_window() -> None:
    bench = Bench(pipeline_window_ms=1.0)
    bench.fast(run_us=99)
    tasks = bench.submit(30)
    assert bench.pushed() == [(1, [t.id for t in tasks[:10]])]


def test_the_depth_is_bounded_by_count_and_by_bytes() -> None:
    bench = Bench(pipeline_depth_max=3)
    bench.fast(run_us=0)
    tasks = bench.submit(9)
    assert bench.pushed() == [(1, [t.id for t in tasks[:3]])]
    bench = Bench(pipeline_bytes_max=600)
    bench.fast(run_us=0)
    tasks = bench.submit(9)
    assert bench.pushed() == [(1, [t.id for t in tasks[:2]])]


@pytest.mark.parametrize("payload", [bytes(10_000), (bytes(1_000), bytes(9_000))])
def test_the_bytes_of_all_tasks_count_and_not_those_of_the_first(payload: Any) -> None:
    bench = Bench(pipeline_bytes_max=50_000)
    bench.fast(run_us=0)
    small = [bench.task() for _ in range(2)]
    for task in [*small, *[bench.task(payload=payload) for _ in range(9)]]:
        bench.leases.submit(task)
    bench.leases.pump(0.0)
    [(_, pushed)] = bench.pushed()
    assert pushed[:2] == [task.id for task in small] and len(pushed) == 4, "four such tasks may be there"


def test_behind_a_fast_task_those_of_an_unknown_function_wait_for_their_turn() -> None:
    bench = Bench()
    bench.fast()
    tasks = [bench.task(function=function) for function in (b"f", b"g", b"g", b"f")]
    for task in tasks:
        bench.leases.submit(task)
    bench.leases.pump(0.0)
    assert bench.pushed() == [(1, [tasks[0].id])]
    bench.done(1, tasks[:1])
    assert bench.pushed() == [(1, [tasks[1].id])]
    bench.done(1, tasks[1:2])
    assert bench.pushed() == [(1, [tasks[2].id, tasks[3].id])], "by now both are known"


def test_the_queue_is_spread_evenly_over_the_leases() -> None:
    bench = Bench()
    bench.fast()
    first = bench.submit(2)
    request = bench.requests()[0]
    bench.granted(request, 2)
    assert bench.leases.leases.keys() == {1}, "both fitted on the first lease, so the second went back"
    bench.done(1, first)
    slow = bench.submit(2, function=b"g")
    [request] = [m.request_id for _, m in sent(bench.effects(), RequestLease)]
    bench.granted(request, 3)
    bench.done(1, slow[:1])
    bench.done(3, slow[1:])
    bench.effects()
    tasks = bench.submit(10)
    assert bench.pushed() == [(1, [t.id for t in tasks[:5]]), (3, [t.id for t in tasks[5:]])]


def test_a_run_time_is_learned_as_a_moving_average() -> None:
    bench = Bench()
    bench.fast(run_us=100)
    tasks = bench.submit(1)
    bench.done(1, tasks, run_us=200)
    assert bench.leases.run_us[b"f"] == pytest.approx(130)


def test_handed_back_tasks_go_to_the_front_in_their_order_and_the_lease_rests() -> None:
    bench = Bench()
    bench.fast()
    tasks = bench.submit(5)
    bench.effects()
    bench.does("on_handed_back", 1, [t.id for t in tasks[1:]])
    effects = bench.effects()
    assert sent(effects, Push) == [], "nothing more is pushed to a worker that is busy"
    assert len(bench.leases.queues[ONE, ANYWHERE].requests) == 4, "five tasks, one lease"
    bench.done(1, [tasks[0]])
    assert bench.pushed() == [(1, [t.id for t in tasks[1:]])]


def test_a_lease_whose_tasks_all_came_back_does_not_rest_for_ever() -> None:
    bench = Bench()
    bench.fast()
    tasks = bench.submit(1)
    bench.effects()
    bench.does("on_handed_back", 1, [tasks[0].id])
    assert bench.pushed() == [(1, [tasks[0].id])], "no DONE will ever wake it"


def test_unknown_tasks_and_leases_are_ignored() -> None:
    bench = Bench()
    bench.fast()
    bench.does("on_handed_back", 1, [bytes(16)])
    bench.does("on_handed_back", 42, [bytes(16)])
    bench.does("on_done", 0.0, 42, [(bytes(16), [], 1, [])])
    bench.does("on_reclaimed", 42)
    assert bench.does("on_lost", 42) == []
    assert bench.does("on_rejected", 42) is None


# -- giving back ----------------------------------------------------------------------------------------------------


def test_an_idle_lease_goes_back_after_its_time() -> None:
    bench = Bench(lease_idle_ms=100.0)
    [task] = bench.submit()
    bench.granted(1, 1)
    bench.effects()
    bench.done(1, [task], now=5.0)
    assert timers(bench.effects()) == [(5.1, (IDLE_TIMER,))]
    bench.does("on_idle_timer", 5.1, now=5.1)
    assert sent(bench.effects(), ReturnLease) == [(AGENT, ReturnLease(1))]
    assert bench.leases.leases == {}


def test_a_lease_that_was_used_meanwhile_stays_and_the_clock_runs_again() -> None:
    bench = Bench(lease_idle_ms=100.0)
    [task] = bench.submit()
    bench.granted(1, 1)
    bench.done(1, [task], now=5.0)
    again = bench.task()
    bench.does("submit", again, now=5.05)
    bench.done(1, [again], now=5.06)
    bench.effects()
    bench.does("on_idle_timer", 5.1, now=5.1)
    effects = bench.effects()
    assert sent(effects, ReturnLease) == [] and timers(effects) == [(pytest.approx(5.2), (IDLE_TIMER,))]


def test_the_clock_of_idle_leases_survives_a_timer_that_meets_waiting_tasks() -> None:
    bench = Bench()
    bench.fast()
    bench.leases.submit(bench.task())  # not pumped yet when the timer strikes
    bench.leases.on_idle_timer(0.1)
    assert timers(bench.effects()), "or a second idle lease would never go back"


def test_a_wanted_lease_goes_back_when_its_slice_is_over_and_it_is_empty_and_another_is_asked_for() -> None:
    bench = Bench(lease_slice_ms=20.0)
    tasks = bench.submit(4)
    bench.granted(1, 1)
    bench.effects()
    bench.does("on_reclaimed", 1)
    assert sent(bench.effects(), ReturnLease) == []
    bench.done(1, [tasks[0]], run_us=1_000_000, now=0.01)
    effects = bench.effects()
    assert sent(effects, ReturnLease) == [] and len(sent(effects, Push)) == 1, "it is used until the slice is over"
    bench.done(1, [tasks[1]], run_us=1_000_000, now=0.021)
    effects = bench.effects()
    assert sent(effects, ReturnLease) == [(AGENT, ReturnLease(1))] and sent(effects, Push) == []
    assert len(bench.leases.queues[ONE, ANYWHERE].requests) == 3, "one in the place of what went"


def test_a_wanted_lease_that_is_idle_goes_back_at_once() -> None:
    bench = Bench(lease_slice_ms=20.0)
    (task,) = bench.submit(1)
    bench.granted(1, 1)
    bench.done(1, [task])
    bench.effects()
    bench.does("on_reclaimed", 1)
    assert sent(bench.effects(), ReturnLease) == [(AGENT, ReturnLease(1))]


def test_requests_that_nobody_needs_any_more_are_cancelled() -> None:
    bench = Bench()
    tasks = bench.submit(2)
    bench.granted(1, 1)
    bench.done(1, tasks[:1])
    bench.done(1, tasks[1:])
    bench.effects()
    bench.does("on_idle_timer", 9.0, now=9.0)
    assert sent(bench.effects(), CancelLease) == [(AGENT, CancelLease(2))]
    assert bench.leases.statistics()["lease_requests"] == 0
    bench.granted(2, 2)
    assert sent(bench.effects(), ReturnLease) == [(AGENT, ReturnLease(2))], "the grant was on its way"


# -- blame ----------------------------------------------------------------------------------------------------------


def test_the_tasks_of_a_lost_lease_come_back_and_several_of_them_are_suspects() -> None:
    bench = Bench()
    bench.fast()
    tasks = bench.submit(4)
    bench.effects()
    assert bench.does("on_lost", 1) == tasks
    assert all(t.suspect for t in tasks)
    bench.does("requeue", tasks)
    [request] = list(bench.leases.queues[ONE, ANYWHERE].requests)[:1]
    bench.effects()
    bench.granted(request, 2)
    assert bench.pushed() == [(2, [tasks[0].id])], "a suspect runs alone"
    bench.done(2, [tasks[0]])
    assert bench.pushed() == [(2, [tasks[1].id])]


def test_the_only_task_of_a_lost_lease_is_no_suspect_but_the_culprit() -> None:
    bench = Bench()
    bench.fast()
    [task] = bench.submit(1)
    assert bench.does("on_lost", 1) == [task] and not task.suspect


def test_a_task_that_must_not_be_retried_is_never_queued_with_others() -> None:
    bench = Bench()
    bench.fast()
    bench.submit(1)
    [lonely] = bench.submit(1, retries=0)
    after = bench.submit(2)
    effects = bench.effects()
    assert len(sent(effects, Push)) == 1, "it does not go behind a task in flight, and nothing passes it"
    bench.done(1, list(bench.leases.leases[1].inflight.values()))
    assert bench.pushed() == [(1, [lonely.id])], "and nothing goes behind it"
    bench.done(1, [lonely])
    assert bench.pushed() == [(1, [t.id for t in after])]


def test_a_queue_can_be_given_up() -> None:
    bench = Bench()
    tasks = bench.submit(3)
    queue = bench.does("on_rejected", 1)
    assert queue is bench.leases.queues[ONE, ANYWHERE]
    assert bench.does("give_up", queue) == tasks and not queue.tasks


def test_an_infeasible_queue_asks_no_more_until_it_is_looked_at_again() -> None:
    bench = Bench()
    bench.submit(1)
    bench.effects()
    queue = bench.does("on_rejected", 1)
    queue.infeasible = "too large"
    bench.submit(1)
    assert bench.requests() == []
    queue.infeasible = ""
    bench.does("retry", queue)
    assert len(bench.requests()) == 2


def test_check_sees_a_lease_that_is_idle_with_work() -> None:
    bench = Bench()
    bench.submit(1)
    bench.granted(1, 1)
    bench.leases.leases[1].idle_since = 1.0
    with pytest.raises(InvariantError, match="idle with tasks in flight"):
        bench.leases.check()


# -- random walk ----------------------------------------------------------------------------------------------------

walks = st.lists(
    st.tuples(
        st.sampled_from(["submit", "submit", "grant", "grant", "done", "done", "back", "lost", "reclaim", "timer"]),
        st.integers(0, 7),
        st.sampled_from([10, 400, 100_000]),
    ),
    max_size=80,
)


class Walk:
    """An agent that always grants in the end, and workers that do their tasks in order."""

    def __init__(self) -> None:
        self.bench = Bench(pipeline_window_ms=1.0, lease_requests_max=3)
        self.now = 0.0
        self.asked: list[int] = []
        self.lent: dict[int, list[bytes]] = {}  # lease -> tasks at its worker
        self.done: dict[bytes, int] = {}
        self.starts: dict[bytes, int] = {}
        self.tasks: dict[bytes, Task] = {}
        self.next_lease = 1
        self.timer: float | None = None

    def absorb(self) -> None:
        for effect in self.bench.effects():
            for _, message in sent([effect], RequestLease):
                self.asked.append(message.request_id)
            for _, message in sent([effect], CancelLease):
                self.asked.remove(message.request_id)
            for _, message in sent([effect], ReturnLease):
                assert self.lent.pop(message.lease_id) == [], "no lease goes back with tasks at its worker"
            for _, message in sent([effect], Push):
                queue = self.lent[message.lease_id]
                queue += [spec[0] for spec in message.specs]
                alone = [i for i in queue if self.tasks[i].suspect or self.tasks[i].template.max_retries == 0]
                assert not alone or len(queue) == 1, "who must run alone runs alone"
            for at, _ in timers([effect]):
                assert self.timer is None, "one timer at a time"
                self.timer = at

    def step(self, what: str, index: int, run_us: int) -> None:
        bench = self.bench
        lease_id = list(self.lent)[index % len(self.lent)] if self.lent else None
        if what == "submit":
            kind = {"retries": 0 if index == 7 else 3, "resources": TWO if index % 2 else ONE}
            for task in bench.submit(1 + index, **kind):
                self.tasks[task.id] = task
        elif what == "grant" and self.asked:
            request_id = self.asked.pop(index % len(self.asked))
            self.lent[self.next_lease] = []
            self.next_lease += 1
            bench.granted(request_id, self.next_lease - 1)
        elif what == "timer" and self.timer is not None:
            self.now, self.timer = max(self.now, self.timer), None
            bench.does("on_idle_timer", self.now, now=self.now)
        elif lease_id is None:
            pass
        elif what == "done":
            finished = [self.tasks[self.lent[lease_id].pop(0)] for _ in range(min(1 + index % 2, len(self.lent[lease_id])))]
            for task in finished:
                self.done[task.id] = self.done.get(task.id, 0) + 1
            bench.done(lease_id, finished, run_us, now=self.now)
        elif what == "back" and len(self.lent[lease_id]) > 1:
            back, self.lent[lease_id] = self.lent[lease_id][1:], self.lent[lease_id][:1]
            bench.does("on_handed_back", lease_id, back, now=self.now)
        elif what == "lost":
            tasks = bench.does("on_lost", lease_id, now=self.now)
            assert [t.id for t in tasks] == self.lent.pop(lease_id)
            bench.does("requeue", tasks, now=self.now)
        elif what == "reclaim":
            bench.does("on_reclaimed", lease_id, now=self.now)
        self.absorb()


@given(walks)
def test_random_walk_every_task_is_done_once_and_every_lease_goes_back(walk: list[tuple[str, int, int]]) -> None:
    world = Walk()
    for what, index, run_us in walk:
        world.step(what, index, run_us)
    for _ in range(20 + 4 * len(world.tasks)):
        for _ in range(len(world.asked)):
            world.step("grant", 0, 10)
        for index in range(len(world.lent)):
            world.step("done", index, 10)
        if len(world.done) == len(world.tasks) and not world.lent and not world.asked:
            break
        world.step("timer", 0, 10)
    assert world.done == dict.fromkeys(world.tasks, 1)
    assert not world.lent and not world.asked and world.bench.leases.statistics() == {
        "queued": 0, "inflight": 0, "leases": 0, "lease_requests": 0
    }
