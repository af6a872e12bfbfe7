"""Actors with several threads, and concurrency groups: how many calls run at a time, where, and how they end."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError

from .driving import PATIENCE_S

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


class Barriers:
    """Calls that wait for each other: what should run at the same time must, or the test fails."""

    def __init__(self, parties: int = 2) -> None:
        self.parties = parties
        self.barrier = threading.Barrier(parties)
        self.opened = threading.Event()
        self.lock = threading.Lock()
        self.running = 0
        self.most = 0
        self.started: list[Any] = []

    def meet(self, number: int = 0) -> int:
        self.barrier.wait(PATIENCE_S)
        return number

    def crowd(self, number: int = 0) -> int:
        """Count those who are here; the first ones stay until there are as many as may be."""
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.started.append(number)
            if self.running == self.parties:
                self.opened.set()
        assert self.opened.wait(PATIENCE_S)
        with self.lock:
            self.running -= 1
        return number

    def peak(self) -> int:
        return self.most

    def order(self) -> list[Any]:
        return self.started

    def hold(self, value: Any = None) -> Any:
        assert self.opened.wait(PATIENCE_S)
        return value

    def open(self) -> None:
        self.opened.set()

    def thread(self) -> tuple[bool, int]:
        return threading.current_thread() is threading.main_thread(), threading.get_ident()

    def value(self, value: Any = None) -> Any:
        return value

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)


Crowd = ray.remote(Barriers)


# -- threads ------------------------------------------------------------------------------------------------------------


def test_calls_run_side_by_side() -> None:
    actor = Crowd.options(max_concurrency=4).remote(4)
    assert ray.get([actor.meet.remote(i) for i in range(8)], timeout=PATIENCE_S) == list(range(8))


def test_no_more_calls_than_threads() -> None:
    actor = Crowd.options(max_concurrency=3).remote(3)
    assert ray.get([actor.crowd.remote(i) for i in range(30)], timeout=PATIENCE_S) == list(range(30))
    assert ray.get(actor.peak.remote()) == 3


@pytest.mark.processes("the thread is not the main one")
def test_a_plain_actor_runs_one_call_at_a_time_in_the_main_thread() -> None:
    actor = Crowd.remote(1)
    ray.get([actor.crowd.remote() for _ in range(20)], timeout=PATIENCE_S)
    assert ray.get(actor.peak.remote()) == 1
    assert ray.get(actor.thread.remote())[0] is True


@pytest.mark.processes("the thread is not the main one")
def test_beside_groups_other_calls_run_one_at_a_time_in_the_main_thread() -> None:
    actor = Crowd.options(concurrency_groups={"io": 2}).remote(1)
    ray.get([actor.crowd.remote() for _ in range(20)], timeout=PATIENCE_S)
    assert ray.get(actor.peak.remote()) == 1
    assert ray.get(actor.thread.remote())[0] is True
    assert ray.get(actor.thread.options(concurrency_group="io").remote())[0] is False


def test_beside_groups_calls_that_wait_can_be_cancelled() -> None:
    actor = Crowd.options(concurrency_groups={"io": 1}).remote()
    running, waiting, last = actor.hold.remote(1), actor.value.remote(2), actor.value.remote(3)
    ray.cancel(waiting)
    with pytest.raises(TaskCancelledError):
        ray.get(waiting, timeout=PATIENCE_S)
    ray.get(actor.open.options(concurrency_group="io").remote(), timeout=PATIENCE_S)
    assert ray.get([running, last], timeout=PATIENCE_S) == [1, 3]


def test_one_caller_after_the_other_needs_one_thread_only() -> None:
    actor = Crowd.options(max_concurrency=50).remote()
    assert len({ray.get(actor.thread.remote()) for _ in range(5)}) <= 2
    assert ray.get(actor.run.remote(threading.active_count)) < 20


def test_a_thread_that_waits_in_get_holds_nobody_up() -> None:
    actor = Crowd.options(max_concurrency=2).remote()
    other = Crowd.options(max_concurrency=2).remote()
    blocked = actor.run.remote(lambda refs: ray.get(refs[0]), [other.hold.remote("late")])
    assert ray.get(actor.value.remote("early"), timeout=PATIENCE_S) == "early"
    ray.get(other.open.remote())
    assert ray.get(blocked, timeout=PATIENCE_S) == "late"


def test_every_thread_may_get_put_wait_and_call() -> None:
    @ray.remote
    def double(x: int) -> int:
        return 2 * x

    def work(number: int) -> int:
        ref = ray.put(bytes(200_000))
        ready, rest = ray.wait([double.remote(number), ref], num_returns=2)
        assert not rest and len(ray.get(ref)) == 200_000
        return int(ray.get(ready[0]))

    actor = Crowd.options(max_concurrency=4).remote()
    refs = [actor.run.remote(work, i) for i in range(20)]
    assert ray.get(refs, timeout=PATIENCE_S) == [2 * i for i in range(20)]


def test_an_actor_with_threads_waits_for_a_call_of_itself() -> None:
    @ray.remote(max_concurrency=4)
    class Recursive:
        def depth(self, n: int) -> int:
            me = ray.get_runtime_context().current_actor
            return 0 if n == 0 else 1 + int(ray.get(me.depth.remote(n - 1)))

    actor = Recursive.remote()
    assert ray.get(actor.depth.remote(3), timeout=PATIENCE_S) == 3


def test_each_thread_knows_its_own_task() -> None:
    @ray.remote(max_concurrency=4)
    class Named(Barriers):
        def identify(self) -> tuple[str | None, str | None, str | None]:
            self.barrier.wait(PATIENCE_S)
            context = ray.get_runtime_context()
            return context.get_task_id(), context.get_task_name(), context.get_actor_id()

    actor: Any = Named.remote(4)
    refs = [actor.identify.options(name=f"call {i}").remote() for i in range(4)]
    me = actor._actor_id.hex()
    assert ray.get(refs, timeout=PATIENCE_S) == [(ref.task_id().hex(), f"call {i}", me) for i, ref in enumerate(refs)]


@pytest.mark.parametrize("size", [1, 500_000])
def test_references_as_arguments_of_threads(size: int) -> None:
    actor = Crowd.options(max_concurrency=4).remote()
    refs = [actor.value.remote(ray.put(bytes([i]) * size)) for i in range(20)]
    assert ray.get([actor.value.remote(ref) for ref in refs]) == [bytes([i]) * size for i in range(20)]


@pytest.mark.parametrize(
    "options",
    [
        {"max_concurrency": 2},
        {"concurrency_groups": {"io": 1}},
        {"allow_out_of_order_execution": True},
        {"max_concurrency": 2, "allow_out_of_order_execution": True},
    ],
)
def test_a_call_that_waits_for_an_argument_holds_nobody_up(options: dict[str, Any]) -> None:
    gate = Crowd.options(max_concurrency=2).remote()
    actor = Crowd.options(**options).remote()
    late = actor.value.remote(gate.hold.remote(1))
    assert ray.get(actor.value.remote(2), timeout=PATIENCE_S) == 2
    ray.get(gate.open.remote())
    assert ray.get(late, timeout=PATIENCE_S) == 1


@pytest.mark.processes("order is kept for each calling process")
@pytest.mark.parametrize("options", [{}, {"allow_out_of_order_execution": False}])
def test_a_call_that_waits_for_an_argument_holds_up_its_caller_where_order_is_kept(options: dict[str, Any]) -> None:
    gate = Crowd.options(max_concurrency=2).remote()
    actor = Crowd.options(**options).remote(1)
    late = actor.run.remote(lambda one: one, gate.hold.remote(1))
    next_one = actor.value.remote(2)
    assert ray.get(ray.remote(lambda actor: ray.get(actor[0].value.remote(3))).remote([actor]), timeout=PATIENCE_S) == 3
    assert ray.wait([late, next_one], timeout=0)[0] == []
    ray.get(gate.open.remote())
    assert ray.get([late, next_one], timeout=PATIENCE_S) == [1, 2]


@pytest.mark.parametrize("options", [{"max_concurrency": 2}, {"concurrency_groups": {"io": 1}}])
def test_an_order_that_can_not_be_kept_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allow_out_of_order_execution"):
        Crowd.options(allow_out_of_order_execution=False, **options).remote()


# -- errors and ends ----------------------------------------------------------------------------------------------------


def test_exceptions_of_threads_are_those_of_their_calls() -> None:
    def fail(number: int) -> None:
        raise KeyError(number)

    def interrupt() -> None:
        raise KeyboardInterrupt

    actor = Crowd.options(max_concurrency=3).remote()
    for number, ref in enumerate([actor.run.remote(fail, i) for i in range(10)]):
        with pytest.raises(KeyError) as caught:
            ray.get(ref, timeout=PATIENCE_S)
        assert caught.value.args == (number,)
    with pytest.raises(TaskCancelledError):
        ray.get(actor.run.remote(interrupt), timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well")) == "well"


@pytest.mark.parametrize("leave", [ray.actor.exit_actor, sys.exit, lambda: sys.exit(0)])
def test_an_actor_that_ends_itself_finishes_what_was_submitted_before(leave: Any) -> None:
    @ray.remote(max_concurrency=3, max_restarts=1)
    class Leaver(Barriers):
        def leave(self) -> None:
            self.opened.set()
            leave()

    actor: Any = Leaver.remote()
    before = [actor.hold.remote(i) for i in range(2)]
    last = actor.leave.remote()
    assert ray.get(before, timeout=PATIENCE_S) == [0, 1]
    with pytest.raises(ActorDiedError, match=r"it called (exit_actor|sys\.exit)\(\)"):
        ray.get(last, timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError):
        ray.get(actor.value.remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize(("groups", "limit"), [({}, 2), ({"io": 1}, 1), ({"io": 2}, 2)])
def test_the_end_comes_after_what_waits_in_other_queues(groups: dict[str, int], limit: int) -> None:
    """Calls that came before the one that ends the actor are finished, even those that have not started."""

    @ray.remote(max_concurrency=limit, concurrency_groups=groups)
    class Leaver(Barriers):
        def leave(self) -> None:
            self.opened.set()
            ray.actor.exit_actor()

    actor: Any = Leaver.remote()
    other = actor.hold.options(concurrency_group="io") if groups else actor.hold
    before = [other.remote(i) for i in range(1 if not groups else 10)]
    last = actor.leave.remote()
    after = [actor.value.remote() for _ in range(10)] + [other.remote() for _ in range(10)]
    assert ray.get(before, timeout=PATIENCE_S) == list(range(len(before)))
    for ref in [last, *(after if limit == 1 else after[-1:])]:
        with pytest.raises(ActorDiedError, match="exit_actor"):
            ray.get(ref, timeout=PATIENCE_S)


def test_an_end_in_a_group_comes_after_what_waits_for_the_main_thread() -> None:
    @ray.remote(concurrency_groups={"io": 1})
    class Leaver(Barriers):
        @ray.method(concurrency_group="io")
        def leave(self) -> None:
            self.opened.set()
            ray.actor.exit_actor()

    actor: Any = Leaver.remote()
    before = [actor.hold.remote(i) for i in range(5)]
    last = actor.leave.remote()
    assert ray.get(before, timeout=PATIENCE_S) == list(range(5))
    for ref in (last, actor.value.remote()):
        with pytest.raises(ActorDiedError, match="exit_actor"):
            ray.get(ref, timeout=PATIENCE_S)


def test_sys_exit_with_a_code_in_a_thread_is_a_crash() -> None:
    actor = Crowd.options(max_concurrency=2, max_restarts=1).remote()
    with pytest.raises(ActorUnavailableError, match="code 3"):
        ray.get(actor.run.remote(sys.exit, 3), timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("again"), timeout=PATIENCE_S) == "again"


@pytest.mark.processes("it ends a process")
def test_a_crash_in_one_thread_is_the_end_of_all_calls() -> None:
    actor = Crowd.options(max_concurrency=3).remote()
    refs = [actor.hold.remote(), actor.hold.remote(), actor.run.remote(os._exit, 4)]
    for ref in refs:
        with pytest.raises(ActorDiedError, match="code 4"):
            ray.get(ref, timeout=PATIENCE_S)


# -- concurrency groups -------------------------------------------------------------------------------------------------


@ray.remote(concurrency_groups={"io": 2, "one": 1})
class Grouped(Barriers):
    @ray.method(concurrency_group="io")
    def io_meet(self) -> int:
        return self.meet(1)

    @ray.method(concurrency_group="io")
    def io_crowd(self, number: int) -> int:
        return self.crowd(number)

    @ray.method(concurrency_group="one")
    def one_hold(self, value: Any = None) -> Any:
        return self.hold(value)

    @ray.method(concurrency_group="one")
    def one_value(self, value: Any = None) -> Any:
        return value


def test_a_group_has_a_limit_of_its_own() -> None:
    actor: Any = Grouped.remote(2)
    assert ray.get([actor.io_crowd.remote(i) for i in range(20)], timeout=PATIENCE_S) == list(range(20))
    assert ray.get(actor.peak.remote()) == 2


def test_groups_do_not_wait_for_each_other() -> None:
    actor: Any = Grouped.remote(2)
    held = actor.one_hold.remote("held")
    behind = actor.one_value.remote("behind")
    assert ray.get([actor.io_meet.remote(), actor.io_meet.remote()], timeout=PATIENCE_S) == [1, 1]
    assert ray.get(actor.value.remote("default"), timeout=PATIENCE_S) == "default"
    assert ray.wait([held, behind], timeout=0)[0] == []
    ray.get(actor.open.remote(), timeout=PATIENCE_S)
    assert ray.get([held, behind], timeout=PATIENCE_S) == ["held", "behind"]


def test_methods_without_a_group_are_in_one_of_their_own() -> None:
    """Its limit is max_concurrency."""
    plain: Any = Grouped.remote(1)
    ray.get([plain.crowd.remote(i) for i in range(20)], timeout=PATIENCE_S)
    assert ray.get(plain.peak.remote()) == 1
    wide: Any = Grouped.options(max_concurrency=3).remote(3)
    ray.get([wide.crowd.remote(i) for i in range(20)], timeout=PATIENCE_S)
    assert ray.get(wide.peak.remote()) == 3


def test_a_group_of_one_keeps_the_order() -> None:
    actor: Any = Grouped.remote(1)
    crowd = actor.crowd.options(concurrency_group="one")
    ray.get([crowd.remote(i) for i in range(50)], timeout=PATIENCE_S)
    assert ray.get(actor.order.remote()) == list(range(50))


def test_the_group_of_one_call_is_chosen_by_options() -> None:
    actor: Any = Grouped.remote(2)
    held = actor.hold.remote("held")
    assert ray.get(actor.value.options(concurrency_group="io").remote("io"), timeout=PATIENCE_S) == "io"
    ray.get(actor.open.options(concurrency_group="one").remote(), timeout=PATIENCE_S)
    assert ray.get(held, timeout=PATIENCE_S) == "held"


def test_groups_may_be_given_by_options() -> None:
    actor = Crowd.options(concurrency_groups={"side": 1}).remote()
    held = actor.hold.remote(1)
    ray.get(actor.open.options(concurrency_group="side").remote(), timeout=PATIENCE_S)
    assert ray.get(held, timeout=PATIENCE_S) == 1


def test_groups_of_coroutines() -> None:
    import asyncio

    @ray.remote(concurrency_groups={"io": 2})
    class Coroutines:
        def __init__(self) -> None:
            self.running = self.most = 0
            self.opened = asyncio.Event()

        @ray.method(concurrency_group="io")
        async def crowd(self) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await self.opened.wait()
            self.running -= 1

        async def open(self) -> int:
            self.opened.set()
            return self.running

        async def peak(self) -> int:
            return self.most

    actor: Any = Coroutines.remote()
    waiting = [actor.crowd.remote() for _ in range(10)]
    assert ray.get(actor.open.remote(), timeout=PATIENCE_S) == 2
    ray.get(waiting, timeout=PATIENCE_S)
    assert ray.get(actor.peak.remote()) == 2


def test_a_group_that_the_class_does_not_have() -> None:
    class Undeclared:
        @ray.method(concurrency_group="nowhere")
        def f(self) -> None:
            pass

    with pytest.raises(ValueError, match=r"Undeclared\.f\(\) is in concurrency group 'nowhere'"):
        ray.remote(Undeclared).remote()
    actor: Any = ray.remote(Undeclared).options(concurrency_groups={"nowhere": 1}).remote()
    assert ray.get(actor.f.remote()) is None


@pytest.mark.parametrize("groups", [{}, {"io": 2, "one": 1}])
def test_a_group_that_the_actor_does_not_have(groups: dict[str, int]) -> None:
    actor = Crowd.options(concurrency_groups=groups).remote()
    for ref in actor.value.options(concurrency_group="nowhere", num_returns=2).remote():
        with pytest.raises(ValueError, match=r"no concurrency group 'nowhere'[\s\S]*" + ("'io', 'one'" if groups else "none")):
            ray.get(ref, timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well")) == "well"


@pytest.mark.parametrize("groups", [{"io": 0}, {"io": -1}, {"io": "2"}, {"io": True}, {"": 1}, {1: 1}, ["io"], "io", 3])
def test_bad_groups(groups: Any) -> None:
    with pytest.raises(ValueError, match="concurrency_groups"):
        ray.remote(concurrency_groups=groups)(Barriers)
    with pytest.raises(ValueError, match="concurrency_groups"):
        Crowd.options(concurrency_groups=groups)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2", True])
def test_bad_limits(limit: Any) -> None:
    with pytest.raises(ValueError, match="max_concurrency"):
        Crowd.options(max_concurrency=limit)
