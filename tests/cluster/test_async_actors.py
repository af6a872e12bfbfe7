"""Actors with coroutines: many calls at a time in one event loop, awaiting references, cancelling, exceptions, ends."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError, TaskCancelledError

from .driving import PATIENCE_S, Script
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@ray.remote
class Meeting:
    """All wait until the last has come."""

    def __init__(self, guests: int) -> None:
        self.missing = guests
        self.here = 0
        self.most = 0
        self.order: list[int] = []
        self.complete = asyncio.Event()

    async def arrive(self, number: int = 0) -> int:
        self.order.append(number)
        self.here += 1
        self.most = max(self.most, self.here)
        self.missing -= 1
        if self.missing == 0:
            self.complete.set()
        await self.complete.wait()
        self.here -= 1
        return number

    async def peak(self) -> int:
        return self.most

    def order_of_start(self) -> list[int]:
        return self.order


@ray.remote
class Helper:
    """Does in coroutines what a test asks for."""

    async def run(self, function: Any, *args: Any) -> Any:
        return await function(*args)

    def call(self, function: Any, *args: Any) -> Any:
        return function(*args)

    async def same(self, value: Any) -> Any:
        return value


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def failing() -> None:
    raise LookupError("lost")


# -- many at a time ----------------------------------------------------------------------------------------------------


def test_coroutines_take_turns_where_they_await() -> None:
    meeting = Meeting.remote(3)
    assert ray.get([meeting.arrive.remote(i) for i in range(3)], timeout=PATIENCE_S) == [0, 1, 2]


def test_a_thousand_calls_at_once_is_the_default() -> None:
    meeting = Meeting.remote(1000)
    refs = [meeting.arrive.remote(i) for i in range(1200)]
    assert ray.get(refs, timeout=PATIENCE_S) == list(range(1200))
    assert ray.get(meeting.peak.remote()) == 1000


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_than_max_concurrency_at_a_time(limit: int) -> None:
    meeting = Meeting.options(max_concurrency=limit).remote(limit)
    assert ray.get([meeting.arrive.remote(i) for i in range(20)], timeout=PATIENCE_S) == list(range(20))
    assert ray.get(meeting.peak.remote()) == limit


def test_calls_are_started_in_the_order_of_submission() -> None:
    meeting = Meeting.remote(100)
    ray.get([meeting.arrive.remote(i) for i in range(100)], timeout=PATIENCE_S)
    assert ray.get(meeting.order_of_start.remote()) == list(range(100))


def test_a_call_that_waits_for_an_argument_holds_nobody_up() -> None:
    gate = Meeting.remote(2)
    late = gate.arrive.remote(1)
    helper = Helper.remote()
    waiting = helper.same.remote(late)
    assert ray.get(helper.same.remote("at once"), timeout=PATIENCE_S) == "at once"
    ray.get(gate.arrive.remote(2))
    assert ray.get(waiting, timeout=PATIENCE_S) == 1


def test_ordinary_methods_run_in_the_event_loop_too() -> None:
    async def thread() -> int:
        asyncio.get_running_loop()
        return threading.get_ident()

    helper = Helper.remote()
    assert ray.get(helper.run.remote(thread)) == ray.get(helper.call.remote(threading.get_ident))


def test_two_actors_await_each_other_back_and_forth() -> None:
    @ray.remote
    class Player:
        async def play(self, other: Any, rounds: int) -> int:
            me = ray.get_runtime_context().current_actor
            return 0 if rounds == 0 else 1 + await other.play.remote(me, rounds - 1)

    one, two = Player.remote(), Player.remote()
    assert ray.get(one.play.remote(two, 50), timeout=PATIENCE_S) == 50


def test_an_actor_awaits_a_call_of_itself() -> None:
    @ray.remote
    class Recursive:
        async def factorial(self, n: int) -> int:
            me = ray.get_runtime_context().current_actor
            return 1 if n == 0 else n * await me.factorial.remote(n - 1)

    actor = Recursive.remote()
    assert ray.get(actor.factorial.remote(10), timeout=PATIENCE_S) == 3628800


def test_each_coroutine_knows_its_own_task() -> None:
    @ray.remote
    class Named(Meeting.__wrapped__):  # type: ignore[misc,name-defined]
        async def identify(self) -> tuple[str, str]:
            context = ray.get_runtime_context()
            before = context.get_task_id(), context.get_task_name()
            await self.arrive()
            assert (context.get_task_id(), context.get_task_name()) == before
            return before

    actor = Named.remote(5)
    refs = [actor.identify.options(name=f"call {i}").remote() for i in range(5)]
    assert ray.get(refs) == [(ref.task_id().hex(), f"call {i}") for i, ref in enumerate(refs)]


# -- what is asynchronous ----------------------------------------------------------------------------------------------


def test_one_inherited_coroutine_makes_an_actor_asynchronous() -> None:
    class Base:
        async def wait(self) -> str:
            return "awaited"

    class Child(Base):
        def where(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    actor = ray.remote(Child).remote()
    assert ray.get(actor.wait.remote()) == "awaited"
    assert ray.get(actor.where.remote()) is False


def test_coroutines_of_all_kinds() -> None:
    @ray.remote
    class Kinds:
        @staticmethod
        async def static(x: int) -> int:
            return x

        @classmethod
        async def of_class(cls, x: int) -> tuple[str, int]:
            return cls.__name__, x

        async def __call__(self, *, x: int) -> int:
            return -x

        @ray.method(num_returns=2)
        async def pair(self) -> tuple[int, int]:
            return 1, 2

        def plain_that_returns_one(self) -> Any:
            return self(x=5)

    actor: Any = Kinds.remote()
    assert ray.get(actor.static.remote(1)) == 1
    assert ray.get(actor.of_class.remote(2)) == ("Kinds", 2)
    assert ray.get(actor.__call__.remote(x=3)) == -3
    assert ray.get(actor.pair.remote()) == [1, 2]
    assert ray.get(actor.plain_that_returns_one.remote()) == -5


def test_the_constructor_may_start_tasks_in_the_loop() -> None:
    @ray.remote
    class Clock:
        def __init__(self, until: int) -> None:
            self.ticks = 0
            self.enough = asyncio.Event()
            self.task = asyncio.create_task(self.tick(until))

        async def tick(self, until: int) -> None:
            while self.ticks < until:
                self.ticks += 1
                await asyncio.sleep(0)
            self.enough.set()

        async def seen(self) -> int:
            await self.enough.wait()
            return self.ticks

    assert ray.get(Clock.remote(20).seen.remote(), timeout=PATIENCE_S) == 20


@pytest.mark.processes("pytest sees the warning of a task that runs here")
def test_a_constructor_that_is_a_coroutine_is_an_error() -> None:
    @ray.remote
    class Wrong:
        async def __init__(self) -> None:  # type: ignore[misc]
            pass

        async def f(self) -> None:
            pass

    with pytest.raises(ActorDiedError, match="should return None"):
        ray.get(Wrong.remote().f.remote())


# -- references ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_references_are_awaited_inside(size: int) -> None:
    async def sum_up(refs: list[Any]) -> int:
        first = await refs[0]
        return len(first) + sum(len(value) for value in await asyncio.gather(*refs[1:]))

    refs = [ray.put(bytes(size)), identity.remote(bytes(size)), ray.put(bytes(size))]
    assert ray.get(Helper.remote().run.remote(sum_up, refs)) == 3 * size


@pytest.mark.parametrize("size", [1, 1_000_000])
def test_references_as_arguments_arrive_as_values(size: int) -> None:
    helper = Helper.remote()
    value = ray.get(helper.same.remote(helper.same.remote(ray.put(bytes(size)))))
    assert value == bytes(size)


def test_waiting_for_the_first_of_several() -> None:
    async def first(ready: list[Any], never: list[Any]) -> list[Any]:
        futures = [asyncio.wrap_future(ref.future()) for ref in ready + never]
        done, pending = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        for future in pending:
            future.cancel()
        return [future.result() for future in done]

    meeting = Meeting.remote(2)
    never = meeting.arrive.remote()
    assert ray.get(Helper.remote().run.remote(first, [ray.put("there")], [never]), timeout=PATIENCE_S) == ["there"]
    ray.get(meeting.arrive.remote())


def test_an_awaited_error_is_raised_where_it_is_awaited() -> None:
    async def careful(ref: list[Any]) -> str:
        try:
            await ref[0]
        except LookupError as error:
            return str(error.args[0])
        return "nothing was raised"

    async def careless(ref: list[Any]) -> None:
        await ref[0]

    helper = Helper.remote()
    assert ray.get(helper.run.remote(careful, [failing.remote()])) == "lost"
    with pytest.raises(LookupError, match="lost"):
        ray.get(helper.run.remote(careless, [failing.remote()]))


def test_the_death_of_an_awaited_actor_is_raised_where_it_is_awaited() -> None:
    async def wait_for(ref: list[Any]) -> str:
        try:
            await ref[0]
        except ActorDiedError:
            return "died"
        return "nothing was raised"

    meeting = Meeting.remote(2)
    waiting = Helper.remote().run.remote(wait_for, [meeting.arrive.remote()])
    ray.kill(meeting)
    assert ray.get(waiting, timeout=PATIENCE_S) == "died"


def test_a_driver_awaits_calls() -> None:
    meeting = Meeting.remote(50)

    async def main() -> list[int]:
        return await asyncio.gather(*[meeting.arrive.remote(i) for i in range(50)])

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) == list(range(50))


def test_blocking_in_another_thread_holds_nobody_up() -> None:
    async def block(ref: list[Any]) -> Any:
        return await asyncio.to_thread(ray.get, ref[0])

    helper, meeting = Helper.remote(), Meeting.remote(2)
    blocked = helper.run.remote(block, [meeting.arrive.remote(7)])
    assert ray.get(helper.same.remote(1), timeout=PATIENCE_S) == 1
    ray.get(meeting.arrive.remote())
    assert ray.get(blocked, timeout=PATIENCE_S) == 7


def test_blocking_in_a_coroutine_works_and_warns_once(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Blocks:
            async def get(self, refs):
                ray.wait(refs)
                return ray.get(refs[0])
        actor = Blocks.remote()
        refs = [ray.put(5)]
        say("got", [ray.get(actor.get.remote([ray.remote(lambda: 5).remote()])) for _ in range(3)])
        """
    )
    assert program.until("got") == "[5, 5, 5]"
    code, _, errors = program.finish()
    assert code == 0
    assert errors.count("await ref") == 1, errors
    assert errors.count("in a coroutine of an asynchronous actor") == 1


# -- cancelling ---------------------------------------------------------------------------------------------------------


def test_an_await_that_runs_out_of_time_leaves_the_call_alone() -> None:
    async def impatient(ref: list[Any]) -> str:
        try:
            await asyncio.wait_for(ref[0], 0.01)
        except asyncio.TimeoutError:
            return "too late"
        return "in time"

    meeting = Meeting.remote(2)
    arriving = meeting.arrive.remote(7)
    assert ray.get(Helper.remote().run.remote(impatient, [arriving])) == "too late"
    ray.get(meeting.arrive.remote())
    assert ray.get(arriving, timeout=PATIENCE_S) == 7


def test_a_cancelled_task_of_the_actors_own_stops_waiting() -> None:
    @ray.remote
    class Canceller:
        async def wait_for(self, ref: list[Any]) -> str:
            self.task = asyncio.create_task(self.forward(ref))
            try:
                return str(await self.task)
            except asyncio.CancelledError:
                return "cancelled"

        async def forward(self, ref: list[Any]) -> Any:
            return await ref[0]

        async def cancel(self) -> bool:
            return self.task.cancel()

    meeting, actor = Meeting.remote(2), Canceller.remote()
    arriving = meeting.arrive.remote(1)
    waiting = actor.wait_for.remote([arriving])
    assert ray.get(actor.cancel.remote())
    assert ray.get(waiting, timeout=PATIENCE_S) == "cancelled"
    ray.get(meeting.arrive.remote())
    assert ray.get(actor.wait_for.remote([arriving])) == "1"


def test_a_call_that_is_cancelled_inside_is_a_cancelled_call() -> None:
    @ray.remote
    class Suicidal:
        async def cancel(self) -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(PATIENCE_S)

        async def fine(self) -> str:
            return "fine"

    actor = Suicidal.remote()
    with pytest.raises(TaskCancelledError, match=r"Suicidal\.cancel\(\)"):
        ray.get(actor.cancel.remote(), timeout=PATIENCE_S)

    async def main() -> str:
        try:
            await actor.cancel.remote()
        except TaskCancelledError:  # it is not this coroutine that was cancelled
            return await actor.fine.remote()
        return "nothing was raised"

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) == "fine"


def test_a_call_that_cancels_all_that_the_loop_has_to_do() -> None:
    """Every call has an answer, those included that had not begun."""

    async def cancel_all() -> int:
        others: set[Any] = set()
        while not others:  # they have come, and not begun
            await asyncio.sleep(0)
            others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        return len(others)

    actor = Helper.options(max_concurrency=20).remote()
    first = actor.run.remote(cancel_all)
    others: list[Any] = []
    while not ray.wait([first], timeout=0)[0]:
        others += [actor.same.remote(len(others) + i) for i in range(10)]
    assert ray.get(first, timeout=PATIENCE_S) > 0
    cancelled = 0
    for number, ref in enumerate(others):
        try:
            assert ray.get(ref, timeout=PATIENCE_S) == number
        except TaskCancelledError:
            cancelled += 1
    assert cancelled > 0
    assert ray.get(actor.same.remote("well"), timeout=PATIENCE_S) == "well"
    actor.call.remote(ray.actor.exit_actor)
    with pytest.raises(ActorDiedError):
        ray.get(actor.same.remote(1), timeout=PATIENCE_S)


# -- exceptions ---------------------------------------------------------------------------------------------------------


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def throw(error: Any) -> None:
    raise error if isinstance(error, BaseException) else error()


@pytest.mark.parametrize(
    "kind", [ValueError, GeneratorExit, StopAsyncIteration, asyncio.TimeoutError, BaseException, lambda: OddError(1, 2)]
)
def test_an_exception_comes_out_of_get_and_the_actor_lives_on(kind: Any) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        throw(kind)

    actor = Helper.remote()
    for ref in (actor.run.remote(fail), actor.call.remote(throw, kind)):
        with pytest.raises(RayTaskError) as caught:
            ray.get(ref)
        assert type(kind()).__name__ in str(caught.value)
        assert caught.value.cause is None or type(caught.value.cause) is type(kind())
    assert ray.get(actor.same.remote("well")) == "well"


def test_a_stop_iteration_is_an_error_for_who_awaits_it() -> None:
    """It must not look like the end of the coroutine that awaits."""
    actor = Helper.remote()

    async def main() -> Any:
        return await actor.call.remote(throw, StopIteration)

    with pytest.raises(StopIteration):
        ray.get(actor.call.remote(throw, StopIteration))
    with pytest.raises(RayTaskError, match="StopIteration"):
        asyncio.run(main())


def test_a_keyboard_interrupt_is_a_cancelled_call() -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt

    actor = Helper.remote()
    with pytest.raises(TaskCancelledError):
        ray.get(actor.run.remote(interrupt))
    assert ray.get(actor.same.remote("well")) == "well"


def test_a_keyboard_interrupt_in_a_task_of_the_actors_own_does_not_stop_the_loop() -> None:
    async def spawn() -> str:
        async def interrupt() -> None:
            raise KeyboardInterrupt

        task = asyncio.create_task(interrupt())
        await asyncio.wait([task])
        return type(task.exception()).__name__

    assert ray.get(Helper.remote().run.remote(spawn), timeout=PATIENCE_S) == "KeyboardInterrupt"


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(1), KeyboardInterrupt(), ZeroDivisionError(), GeneratorExit()])
def test_whatever_a_constructor_raises_reaches_its_calls(error: BaseException) -> None:
    @ray.remote
    class Unborn:
        def __init__(self) -> None:
            raise error

        async def f(self) -> None:
            pass

    with pytest.raises(ActorDiedError, match=type(error).__name__) as caught:
        ray.get(Unborn.remote().f.remote(), timeout=PATIENCE_S)
    assert type(caught.value.cause) is type(error)


# -- crashes ------------------------------------------------------------------------------------------------------------


def test_calls_that_wait_are_sent_again_after_a_crash(tmp_path: Any) -> None:
    path = str(tmp_path / "crashed")

    async def crash_once() -> str:
        if not os.path.exists(path):
            open(path, "x").close()
            crash()
        return "survived"

    actor = Helper.options(max_restarts=1, max_task_retries=1).remote()
    refs = [actor.run.remote(asyncio.sleep, 0, i) for i in range(10)] + [actor.run.remote(crash_once)]
    refs += [actor.same.remote(i) for i in range(10)]
    assert ray.get(refs, timeout=PATIENCE_S) == [*range(10), "survived", *range(10)]
