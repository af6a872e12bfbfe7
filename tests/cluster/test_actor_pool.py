"""Pools of actors: order, errors and deaths, time limits, and that no actor and no result is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError
from zray.util import ActorPool

from .driving import PATIENCE_S
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster")

MOMENT_S = 0.01  # a time limit that a test wants to run out


@ray.remote(num_cpus=0)
class Gates:
    """Doors by name, all closed; who wants to pass waits until somebody opens."""

    def __init__(self) -> None:
        self.doors: dict[Any, asyncio.Event] = {}

    def door(self, name: Any) -> asyncio.Event:
        return self.doors.setdefault(name, asyncio.Event())

    async def open(self, *names: Any) -> None:
        for name in names:
            self.door(name).set()

    async def passed(self, name: Any) -> None:
        await self.door(name).wait()


@ray.remote(num_cpus=0)
class Worker:
    """Does what the tests want done."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def double(self, value: int) -> int:
        return 2 * value

    def who(self) -> str:
        return self.name

    def both(self, value: int) -> tuple[int, int]:
        return value, -value

    def fail(self, value: Any) -> None:
        raise KeyError(value)

    def die(self) -> None:
        crash()

    def ask(self, other: Any) -> Any:
        return ray.get(other.who.remote())

    def after(self, gates: Any, name: Any) -> Any:
        """Return the name of a door when it is open."""
        ray.get(gates.passed.remote(name))
        return name


Make = Callable[..., list[Any]]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes workers, and ends them after the test."""
    made: list[Any] = []

    def new(count: int) -> list[Any]:
        workers = [Worker.remote(f"worker {index}") for index in range(count)]
        made.extend(workers)
        return workers

    yield new
    for worker in made:
        ray.kill(worker)


@pytest.fixture
def gates() -> Iterator[Any]:
    gates = Gates.remote()
    yield gates
    ray.kill(gates)


def double(actor: Any, value: int) -> Any:
    return actor.double.remote(value)


def fail(actor: Any, value: Any) -> Any:
    return actor.fail.remote(value)


def who(actor: Any, value: Any) -> Any:
    return actor.who.remote()


def after(gates: Any) -> Callable[[Any, Any], Any]:
    return lambda actor, name: actor.after.remote(gates, name)


def open_all(gates: Any, *names: Any) -> None:
    ray.get(gates.open.remote(*names), timeout=PATIENCE_S)


# -- many values ------------------------------------------------------------------------------------------------------


def test_map_gives_results_in_the_order_of_the_values(make: Make) -> None:
    pool = ActorPool(make(2))
    assert list(pool.map(double, range(10))) == [2 * value for value in range(10)]
    assert list(pool.map(double, (value for value in (5, 3)))) == [10, 6]
    assert list(pool.map(double, [])) == []


def test_map_waits_for_the_first_however_soon_the_second_is_done(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    results = pool.map(after(gates), ["a", "b"])
    open_all(gates, "b")
    with pytest.raises(TimeoutError):
        pool.get_next(timeout=MOMENT_S)
    open_all(gates, "a")
    assert list(results) == ["a", "b"]


def test_map_unordered_gives_results_as_they_come(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    results = pool.map_unordered(after(gates), ["a", "b", "c"])
    open_all(gates, "b")
    assert next(results) == "b"
    open_all(gates, "c")
    assert next(results) == "c"
    open_all(gates, "a")
    assert list(results) == ["a"]
    assert sorted(pool.map_unordered(double, range(10))) == [2 * value for value in range(10)]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_map_starts_at_once_and_keeps_each_actor_at_one_piece(make: Make, name: str) -> None:
    started = []

    def noted(actor: Any, value: int) -> Any:
        started.append(value)
        return actor.double.remote(value)

    pool = ActorPool(make(2))
    results = getattr(pool, name)(noted, range(5))
    assert started == [0, 1]
    for taken in range(1, 4):
        next(results)
        assert started == list(range(2 + taken)), "the actor whose result was taken, and no other, has the next value"
    assert len(list(results)) == 2
    assert started == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_map_gives_up_what_was_submitted_before(make: Make, gates: Any, name: str) -> None:
    pool = ActorPool(make(2))
    pool.submit(fail, "of the past")
    pool.submit(double, 1000)
    pool.submit(double, 2000)  # waits for an actor
    assert sorted(getattr(pool, name)(double, [1, 2, 3])) == [2, 4, 6]
    assert not pool.has_next()
    assert pool.has_free()


def test_map_goes_on_beside_an_earlier_task_that_does_not_end(make: Make, gates: Any) -> None:
    pool = ActorPool(make(1))
    pool.submit(after(gates), "never mind")
    pool.push(*make(1))
    pool.map(double, [1])
    assert pool.get_next(timeout=PATIENCE_S) == 2
    open_all(gates, "never mind")


def test_an_iterator_that_another_map_overtook_says_so(make: Make) -> None:
    pool = ActorPool(make(1))
    first = pool.map(double, [1, 2])
    assert next(first) == 2
    second = pool.map_unordered(double, [3])
    with pytest.raises(RuntimeError, match=r"results of this map\(\) were given up"):
        next(first)
    assert list(second) == [6]


def test_a_map_without_actors_does_not_pretend_to_be_done(make: Make) -> None:
    pool: ActorPool[Any] = ActorPool([])
    with pytest.raises(RuntimeError, match=r"no actor left for 2 values of this map\(\): give it one with push"):
        list(pool.map(double, [1, 2]))
    pool.push(*make(1))
    assert [pool.get_next(), pool.get_next()] == [2, 4]


# -- one value --------------------------------------------------------------------------------------------------------


def test_results_are_taken_in_the_order_of_submission(make: Make) -> None:
    pool = ActorPool(make(2))
    for value in range(5):
        pool.submit(double, value)
    results = []
    while pool.has_next():
        results.append(pool.get_next())
    assert results == [0, 2, 4, 6, 8]
    with pytest.raises(StopIteration, match="no more results"):
        pool.get_next()
    with pytest.raises(StopIteration, match="no more results"):
        pool.get_next_unordered()
    pool.submit(double, 7)
    assert pool.get_next_unordered() == 14


def test_what_is_free_and_what_is_to_come(make: Make) -> None:
    pool = ActorPool(make(1))
    assert (pool.has_free(), pool.has_next()) == (True, False)
    pool.submit(double, 1)
    assert (pool.has_free(), pool.has_next()) == (False, True)
    pool.submit(double, 2)
    assert pool.get_next() == 2
    assert (pool.has_free(), pool.has_next()) == (False, True)  # busy with the second
    assert pool.get_next_unordered() == 4
    assert (pool.has_free(), pool.has_next()) == (True, False)


def test_actors_leave_and_join(make: Make) -> None:
    first, second = make(2)
    pool = ActorPool([first])
    pool.submit(who, None)
    assert pool.pop_idle() is None
    pool.submit(who, None)  # waits
    pool.push(second)  # and starts
    assert pool.pop_idle() is None
    assert [pool.get_next(), pool.get_next()] == ["worker 0", "worker 1"]
    assert {pool.pop_idle(), pool.pop_idle()} == {first, second}
    assert pool.pop_idle() is None
    assert not pool.has_free()


def test_an_actor_is_in_a_pool_once(make: Make) -> None:
    (actor,) = make(1)
    pool = ActorPool([actor])
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(actor)
    pool.submit(double, 1)
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(actor)
    assert pool.get_next() == 2
    assert pool.pop_idle() == actor
    pool.push(actor)
    pool.submit(double, 2)
    assert pool.get_next() == 4


def test_order_is_lost_when_results_were_taken_as_they_came(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    pool.submit(after(gates), "a")
    pool.submit(after(gates), "b")
    open_all(gates, "b")
    assert pool.get_next_unordered() == "b"
    with pytest.raises(ValueError, match="after get_next_unordered"):
        pool.get_next()
    open_all(gates, "a")
    assert pool.get_next_unordered() == "a"
    pool.submit(double, 1)  # nothing is under way from before: order is possible again
    assert pool.get_next() == 2


def test_methods_with_several_results(make: Make) -> None:
    pool = ActorPool(make(2))

    def both(actor: Any, value: int) -> Any:
        return actor.both.options(num_returns=2).remote(value)

    assert list(pool.map(both, [1, 2, 3])) == [[1, -1], [2, -2], [3, -3]]
    assert sorted(pool.map_unordered(both, [1, 2, 3])) == [[1, -1], [2, -2], [3, -3]]
    pool.submit(both, 4)
    assert pool.get_next(timeout=PATIENCE_S) == [4, -4]


def test_work_of_several_references_is_ready_when_all_are(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    (other,) = make(1)
    parts = [other.double.remote(1), other.after.remote(gates, "late")]
    assert ray.get(parts[0], timeout=PATIENCE_S) == 2
    pool.submit(lambda actor, _: parts, None)
    for take in (pool.get_next_unordered, pool.get_next):
        with pytest.raises(TimeoutError):
            take(timeout=MOMENT_S)
    pool.submit(double, 3)
    assert pool.get_next_unordered(timeout=PATIENCE_S) == 6
    open_all(gates, "late")
    assert pool.get_next_unordered(timeout=PATIENCE_S) == [2, "late"]


def test_a_pool_in_a_task(make: Make) -> None:
    @ray.remote(num_cpus=0)
    def spread(actors: list[Any], values: list[int]) -> list[int]:
        return list(ActorPool(actors).map(double, values))

    assert ray.get(spread.remote(make(2), [1, 2, 3]), timeout=PATIENCE_S) == [2, 4, 6]


# -- errors and deaths ------------------------------------------------------------------------------------------------


def test_a_task_that_raises_gives_its_actor_back(make: Make) -> None:
    pool = ActorPool(make(1))
    for take in (pool.get_next, pool.get_next_unordered, lambda: pool.get_next(timeout=PATIENCE_S)):
        pool.submit(fail, "missing")
        pool.submit(double, 1)  # waits for the actor
        with pytest.raises(KeyError, match="missing"):
            take()
        assert pool.get_next() == 2
        assert pool.has_free()


def test_after_an_error_in_a_map_the_rest_can_be_taken(make: Make) -> None:
    pool = ActorPool(make(2))
    results = pool.map(lambda actor, value: (fail if value == 1 else double)(actor, value), range(4))
    assert next(results) == 0
    with pytest.raises(KeyError):
        next(results)
    assert [pool.get_next(), pool.get_next()] == [4, 6]
    assert list(pool.map(double, [1])) == [2]


def test_an_actor_that_died_leaves_and_the_others_go_on(make: Make) -> None:
    first, second = make(2)
    pool = ActorPool([first, second])
    pool.submit(lambda actor, _: second.die.remote(), None)  # the last of the list is the first to work
    with pytest.raises(ActorDiedError):
        pool.get_next()
    assert list(pool.map(who, range(4))) == ["worker 0"] * 4
    assert pool.pop_idle() == first
    assert pool.pop_idle() is None


def test_when_the_last_actor_died_values_wait_for_a_new_one(make: Make) -> None:
    pool = ActorPool(make(1))
    pool.submit(lambda actor, _: actor.die.remote(), None)
    pool.submit(double, 1)
    with pytest.raises(ActorDiedError):
        pool.get_next()
    assert not pool.has_next()
    with pytest.raises(StopIteration, match=r"push\(\) an actor for the 1 values that wait"):
        pool.get_next()
    pool.push(*make(1))
    assert pool.get_next() == 2


def test_an_actor_that_met_the_death_of_another_stays(make: Make) -> None:
    (dead,) = make(1)
    ray.kill(dead)
    pool = ActorPool(make(1))
    pool.submit(lambda actor, _: actor.ask.remote(dead), None)
    with pytest.raises(ActorDiedError) as caught:
        pool.get_next()
    assert isinstance(caught.value, RayTaskError)
    assert pool.has_free()
    assert list(pool.map(double, [1])) == [2]


def broken(actor: Any, value: Any) -> Any:
    raise LookupError(value)


def test_a_function_that_raises_loses_no_actor(make: Make) -> None:
    pool = ActorPool(make(1))
    with pytest.raises(LookupError):
        pool.submit(broken, "at once")
    assert pool.has_free()
    pool.submit(double, 1)
    pool.submit(broken, "in turn")
    pool.submit(double, 2)
    assert pool.get_next() == 2
    with pytest.raises(LookupError, match="in turn"):
        pool.get_next()
    assert pool.get_next_unordered() == 4
    pool.submit(double, 1)
    pool.submit(broken, "in turn")
    assert pool.get_next_unordered() == 2
    with pytest.raises(LookupError, match="in turn"):
        pool.get_next_unordered()
    assert pool.has_free()


@pytest.mark.parametrize("answer", [None, 1, [], [1], "ref"])
def test_a_function_that_returns_no_reference_is_refused(make: Make, answer: Any) -> None:
    pool = ActorPool(make(1))
    with pytest.raises(TypeError, match="must return an ObjectRef or a list of them"):
        pool.submit(lambda actor, value: answer, 1)
    assert list(pool.map(double, [1])) == [2]


def test_wrong_input_is_refused_before_anything_is_given_up(make: Make) -> None:
    pool = ActorPool(make(1))
    pool.submit(double, 1)
    for call in (pool.submit, pool.map, pool.map_unordered):
        with pytest.raises(TypeError, match="needs a function of an actor and a value"):
            call("double", [1])  # type: ignore[operator]
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(double, 1)  # type: ignore[arg-type]
    assert pool.get_next() == 2


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_result_that_is_late_can_still_be_taken(make: Make, gates: Any) -> None:
    pool = ActorPool(make(1))
    pool.submit(after(gates), "late")
    for take in (pool.get_next, pool.get_next_unordered):
        for timeout in (0, MOMENT_S):
            with pytest.raises(TimeoutError, match="not ready within"):
                take(timeout=timeout)
    assert not pool.has_free()
    open_all(gates, "late")
    assert pool.get_next(timeout=PATIENCE_S) == "late"


def test_a_result_that_is_late_can_be_given_up(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    pool.submit(after(gates), "late")
    pool.submit(double, 1)
    with pytest.raises(TimeoutError, match="given up"):
        pool.get_next(timeout=MOMENT_S, ignore_if_timedout=True)
    assert pool.get_next(timeout=PATIENCE_S, ignore_if_timedout=True) == 2
    assert not pool.has_next()
    # The actor that hangs is used only where no other is idle.
    assert pool.has_free()
    for value in range(3):
        pool.submit(double, value)
        assert pool.get_next(timeout=PATIENCE_S) == 2 * value
    open_all(gates, "late")
    assert list(pool.map(double, [1, 2])) == [2, 4]


def test_of_results_that_are_late_the_oldest_is_given_up(make: Make, gates: Any) -> None:
    pool = ActorPool(make(2))
    for name in ("a", "b", "c"):
        pool.submit(after(gates), name)
    with pytest.raises(TimeoutError, match="given up"):
        pool.get_next_unordered(timeout=MOMENT_S, ignore_if_timedout=True)
    open_all(gates, "a", "b", "c")
    assert {pool.get_next_unordered(), pool.get_next_unordered()} == {"b", "c"}
    assert not pool.has_next()


def test_ctrl_c_while_waiting_loses_nothing(make: Make, gates: Any) -> None:
    pool = ActorPool(make(1))
    for take in (pool.get_next, pool.get_next_unordered):
        pool.submit(after(gates), take.__name__)
        thread = threading.Timer(MOMENT_S, os.kill, [os.getpid(), signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            take()
        thread.join()
        open_all(gates, take.__name__)
        assert take() == take.__name__
    assert pool.has_free()
