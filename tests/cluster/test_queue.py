"""Queues: order, bounds, waiting and its end, and every item exactly once however many put and get."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import queue as standard
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayActorError, RayTaskError
from zray.util.queue import Empty, Full, Queue

from .driving import PATIENCE_S, eventually

pytestmark = pytest.mark.usefixtures("cluster")

Make = Callable[..., Queue[Any]]
MOMENT_S = 0.01  # a timeout that a test wants to run out
END = "end"


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes queues, and ends them after the test."""
    made: list[Queue[Any]] = []

    def new(*args: Any, **kwargs: Any) -> Queue[Any]:
        made.append(Queue(*args, **kwargs))
        return made[-1]

    yield new
    for queue in made:
        queue.shutdown(force=True)


def blocked(queue: Queue[Any]) -> tuple[int, int]:
    """How many calls wait in the queue: for items, for room."""
    return tuple(ray.get(queue.actor.blocked.remote(), timeout=PATIENCE_S))


def until_blocked(queue: Queue[Any], getters: int, putters: int) -> None:
    eventually(lambda: blocked(queue) == (getters, putters), f"{getters} calls wait for items and {putters} for room")


@ray.remote(num_cpus=0)
def put_all(queue: Queue[Any], items: list[Any]) -> None:
    for item in items:
        queue.put(item)


@ray.remote(num_cpus=0)
def get_until_end(queue: Queue[Any]) -> list[Any]:
    """Items up to the end, which is left for the other consumers."""
    items = []
    while (item := queue.get()) != END:
        items.append(item)
    queue.put(END)
    return items


@ray.remote(num_cpus=0)
def get_one(queue: Queue[Any], **how: Any) -> Any:
    return queue.get(**how)


@ray.remote(num_cpus=0)
def error_of(method: str, queue: Queue[Any], *args: Any) -> tuple[str, str]:
    """The kind and text of the error a call raises."""
    try:
        getattr(queue, method)(*args)
    except RayActorError as error:
        return type(error).__name__, str(error)
    return "", "no error"


# -- items and sizes --------------------------------------------------------------------------------------------------


def test_items_come_out_in_the_order_in_which_they_went_in(make: Make) -> None:
    queue = make()
    for item in range(20):
        queue.put(item)
    assert [queue.get() for _ in range(20)] == list(range(20))


def test_sizes(make: Make) -> None:
    queue = make(maxsize=2)
    assert (queue.maxsize, queue.qsize(), queue.empty(), queue.full()) == (2, 0, True, False)
    queue.put("a")
    assert (queue.qsize(), queue.empty(), queue.full()) == (1, False, False)
    queue.put_nowait("b")
    assert (queue.size(), len(queue), queue.empty(), queue.full()) == (2, 2, False, True)
    assert queue.get_nowait() == "a"
    assert (queue.qsize(), queue.full()) == (1, False)


@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_queue_without_a_size_is_never_full(make: Make, maxsize: int) -> None:
    queue = make(maxsize)
    queue.put_nowait_batch(range(1000))
    queue.put_nowait(1000)
    assert not queue.full()
    assert queue.get_nowait_batch(1001) == list(range(1001))


def test_queues_are_apart(make: Make) -> None:
    first, second = make(), make()
    first.put(1)
    assert second.empty()
    assert first.get() == 1


@pytest.mark.parametrize("item", [None, False, (), "", {"a": [1, 2]}, b"x" * 300_000], ids=lambda item: repr(item)[:20])
def test_anything_can_be_an_item(make: Make, item: Any) -> None:
    queue = make()
    queue.put(item)
    assert queue.get() == item


def test_a_large_array_comes_through(make: Make) -> None:
    queue = make()
    array = np.arange(500_000)
    queue.put(array)
    assert np.array_equal(queue.get(), array)


def test_a_reference_is_put_as_its_value_and_one_in_a_list_as_itself(make: Make) -> None:
    queue = make()
    ref = ray.put("value")
    queue.put(ref)  # type: ignore[arg-type]
    queue.put([ref])
    assert queue.get() == "value"
    del ref
    (back,) = queue.get()
    assert ray.get(back, timeout=PATIENCE_S) == "value"


def test_options_are_those_of_the_actor(make: Make) -> None:
    queue = make(actor_options={"name": "the queue of this test"})
    queue.put("x")
    assert ray.get(ray.get_actor("the queue of this test").qsize.remote()) == 1


# -- no room, nothing there -------------------------------------------------------------------------------------------


def test_getting_from_an_empty_queue_fails_as_long_as_it_is_empty(make: Make) -> None:
    queue = make()
    for get in (queue.get_nowait, lambda: queue.get(timeout=0), lambda: queue.get(timeout=MOMENT_S)):
        with pytest.raises(Empty, match="empty") as caught:
            get()
        assert type(caught.value) is Empty  # not the error of a task, with its traceback
        assert isinstance(caught.value, standard.Empty)
    assert blocked(queue) == (0, 0)  # nothing of those calls is left to take the item
    queue.put("x")
    assert queue.get(timeout=0) == "x"


def test_putting_into_a_full_queue_fails_as_long_as_it_is_full(make: Make) -> None:
    queue = make(1)
    queue.put("first", timeout=0)
    for how in ({"block": False}, {"timeout": 0}, {"timeout": MOMENT_S}):
        with pytest.raises(Full, match="maxsize=1") as caught:
            queue.put("x", **how)  # type: ignore[arg-type]
        assert type(caught.value) is Full
        assert isinstance(caught.value, standard.Full)
    assert blocked(queue) == (0, 0)
    assert queue.get() == "first"
    queue.put("second", timeout=0)
    assert queue.get() == "second"


def test_a_task_sees_the_same_errors(make: Make) -> None:
    with pytest.raises(Empty) as caught:
        ray.get(get_one.remote(make(), block=False))
    assert isinstance(caught.value, RayTaskError)


def test_batches_go_in_whole_or_not_at_all(make: Make) -> None:
    queue = make(5)
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Full, match="3 items do not fit: the queue holds 3 of 5"):
        queue.put_nowait_batch([4, 5, 6])
    assert queue.qsize() == 3
    queue.put_nowait_batch(item for item in (4, 5))
    queue.put_nowait_batch([])
    assert queue.get_nowait_batch(5) == [1, 2, 3, 4, 5]


def test_batches_come_out_whole_or_not_at_all(make: Make) -> None:
    queue = make()
    queue.put_nowait_batch([1, 2, 3])
    with pytest.raises(Empty, match="not 4 items: the queue holds 3"):
        queue.get_nowait_batch(4)
    assert queue.get_nowait_batch(0) == []
    assert queue.get_nowait_batch(2) == [1, 2]
    assert queue.get() == 3


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_who_waits_for_an_item_gets_the_next_one(make: Make) -> None:
    queue = make()
    answers = [get_one.remote(queue), get_one.remote(queue, timeout=PATIENCE_S)]
    until_blocked(queue, 2, 0)
    queue.put_nowait_batch(["a", "b"])
    assert sorted(ray.get(answers, timeout=PATIENCE_S)) == ["a", "b"]
    assert queue.empty()


def test_who_waits_for_room_goes_on_when_there_is_some(make: Make) -> None:
    queue = make(2)
    done = put_all.remote(queue, ["a", "b", "c", "d"])
    until_blocked(queue, 0, 1)
    assert queue.qsize() == 2
    assert [queue.get(timeout=PATIENCE_S) for _ in range(4)] == ["a", "b", "c", "d"]
    ray.get(done, timeout=PATIENCE_S)


def test_a_batch_taken_makes_room_for_all_who_wait(make: Make) -> None:
    queue = make(3)
    queue.put_nowait_batch([0, 0, 0])
    done = [put_all.remote(queue, [index]) for index in (1, 2, 3)]
    until_blocked(queue, 0, 3)
    assert queue.get_nowait_batch(3) == [0, 0, 0]
    ray.get(done, timeout=PATIENCE_S)
    assert sorted(queue.get_nowait_batch(3)) == [1, 2, 3]


def test_those_who_wait_are_served_in_their_order(make: Make) -> None:
    queue = make(1)

    async def main() -> None:
        getters = []
        for count in (1, 2, 3):
            getters.append(asyncio.create_task(queue.get_async()))
            while await queue.actor.blocked.remote() != (count, 0):
                pass
        for item in ("a", "b", "c"):
            await queue.put_async(item)
        assert await asyncio.gather(*getters) == ["a", "b", "c"]
        putters = [asyncio.create_task(queue.put_async("room for one"))]
        for count, item in enumerate(("d", "e", "f"), start=1):
            putters.append(asyncio.create_task(queue.put_async(item)))
            while await queue.actor.blocked.remote() != (0, count):
                pass
        assert [await queue.get_async() for _ in range(4)] == ["room for one", "d", "e", "f"]
        await asyncio.gather(*putters)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_threads_of_the_driver_share_a_queue(make: Make) -> None:
    queue = make(3)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        getters = [threads.submit(lambda: [queue.get(timeout=PATIENCE_S) for _ in range(20)]) for _ in range(2)]
        putters = [threads.submit(lambda: [queue.put(item, timeout=PATIENCE_S) for item in range(20)]) for _ in range(2)]
        for putter in putters:
            putter.result()
        assert Counter(getters[0].result() + getters[1].result()) == Counter([*range(20)] * 2)


# -- between tasks and actors -----------------------------------------------------------------------------------------


@ray.remote(num_cpus=0)
class Squarer:
    """A stage of a pipeline: takes numbers from one queue and puts their squares into another."""

    def __init__(self, source: Queue[Any], sink: Queue[Any]) -> None:
        self.source, self.sink = source, sink

    def run(self) -> int:
        done = 0
        while (item := self.source.get()) != END:
            self.sink.put(item * item)
            done += 1
        self.source.put(END)
        return done


def test_a_pipeline_of_tasks_and_actors_through_bounded_queues(make: Make) -> None:
    numbers, squares = make(maxsize=2), make(maxsize=2)
    stages = [Squarer.remote(numbers, squares) for _ in range(2)]
    counts = [stage.run.remote() for stage in stages]
    fed = put_all.remote(numbers, [*range(60), END])
    results = sorted(squares.get(timeout=PATIENCE_S) for _ in range(60))
    assert results == [number * number for number in range(60)]
    assert sum(ray.get(counts, timeout=PATIENCE_S)) == 60
    ray.get(fed, timeout=PATIENCE_S)
    assert squares.empty()


@pytest.mark.parametrize("maxsize", [1, 7, 0])
def test_many_producers_and_consumers_pass_every_item_once(make: Make, maxsize: int) -> None:
    queue = make(maxsize)
    consumers = [get_until_end.remote(queue) for _ in range(3)]
    producers = [put_all.remote(queue, [(who, number) for number in range(50)]) for who in range(4)]
    ray.get(producers, timeout=PATIENCE_S)
    queue.put(END)
    taken = ray.get(consumers, timeout=PATIENCE_S)
    assert Counter(item for items in taken for item in items) == Counter((who, n) for who in range(4) for n in range(50))
    for items in taken:
        for who in range(4):
            numbers = [number for whose, number in items if whose == who]
            assert numbers == sorted(numbers), "items of one producer changed their order"


def test_a_queue_goes_wherever_values_go(make: Make) -> None:
    outer = make()
    inner = make()
    outer.put({"queue": inner})
    ray.get(ray.remote(lambda queue: queue.get()["queue"].put("hello")).remote(outer), timeout=PATIENCE_S)
    assert inner.get(timeout=PATIENCE_S) == "hello"
    assert ray.get(ray.put([inner]))[0].maxsize == 0


def test_a_queue_made_in_a_task_lives_as_long_as_somebody_has_it() -> None:
    @ray.remote
    def filled() -> Queue[str]:
        queue: Queue[str] = Queue(3)
        queue.put("from the task")
        return queue

    queue = ray.get(filled.remote(), timeout=PATIENCE_S)
    assert queue.get(timeout=PATIENCE_S) == "from the task"
    assert queue.maxsize == 3
    queue.shutdown()


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_a_driver_puts_and_gets_with_asyncio(make: Make) -> None:
    queue = make(2)

    async def produce() -> None:
        for number in range(20):
            await queue.put_async(number, timeout=PATIENCE_S)

    async def consume() -> list[int]:
        return [await queue.get_async() for _ in range(20)]

    async def main() -> None:
        _, numbers = await asyncio.gather(produce(), consume())
        assert numbers == list(range(20))
        with pytest.raises(Empty):
            await queue.get_async(block=False)
        with pytest.raises(Empty):
            await queue.get_async(timeout=MOMENT_S)
        await queue.put_async(0, block=False)
        await queue.put_async(0, block=False)
        with pytest.raises(Full):
            await queue.put_async(0, block=False)
        with pytest.raises(Full):
            await queue.put_async(0, timeout=MOMENT_S)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


@ray.remote(num_cpus=0)
class Relay:
    """An async actor that takes from one queue and puts into another, with several hands."""

    async def hand(self, source: Queue[Any], sink: Queue[Any]) -> int:
        done = 0
        while (item := await source.get_async()) != END:
            await sink.put_async(item)
            done += 1
        await source.put_async(END)
        return done


def test_an_async_actor_puts_and_gets_with_many_calls_at_once(make: Make) -> None:
    source, sink = make(3), make(3)
    relay = Relay.remote()
    hands = [relay.hand.remote(source, sink) for _ in range(4)]
    fed = put_all.remote(source, [*range(40), END])
    assert sorted(sink.get(timeout=PATIENCE_S) for _ in range(40)) == list(range(40))
    assert sum(ray.get(hands, timeout=PATIENCE_S)) == 40
    ray.get(fed, timeout=PATIENCE_S)


# -- giving up --------------------------------------------------------------------------------------------------------


def test_a_get_that_is_cancelled_takes_nothing(make: Make) -> None:
    queue = make()

    async def main() -> None:
        with pytest.raises((asyncio.TimeoutError, TimeoutError)):
            await asyncio.wait_for(queue.get_async(), MOMENT_S)

    asyncio.run(main())
    queue.put("kept")
    assert queue.get(timeout=PATIENCE_S) == "kept"
    assert blocked(queue) == (0, 0)


def test_an_item_handed_to_a_get_that_is_cancelled_comes_back(make: Make) -> None:
    queue = make()

    async def main() -> None:
        getter = asyncio.create_task(queue.get_async())
        while await queue.actor.blocked.remote() != (1, 0):
            pass
        queue.put("kept")
        assert queue.empty()  # it is the getter's, who can not know, since the loop here does not turn
        getter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getter

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert queue.get(timeout=PATIENCE_S) == "kept"


def test_an_item_taken_without_waiting_by_a_get_that_is_cancelled_comes_back(make: Make) -> None:
    queue = make()
    queue.put_nowait_batch(["first", "second"])

    async def main() -> None:
        getter = asyncio.create_task(queue.get_async(block=False))
        await asyncio.sleep(0)  # the call is made
        assert queue.size() == 1
        getter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getter

    asyncio.run(main())
    eventually(lambda: queue.size() == 2, "the item comes back")
    assert queue.get_nowait_batch(2) == ["first", "second"]


def test_a_put_that_is_cancelled_adds_nothing(make: Make) -> None:
    queue = make(1)
    queue.put("first")

    async def main() -> None:
        putter = asyncio.create_task(queue.put_async("never"))
        while await queue.actor.blocked.remote() != (0, 1):
            pass
        putter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putter

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    until_blocked(queue, 0, 0)
    assert queue.get() == "first"
    assert queue.empty()


def test_ctrl_c_during_a_get_loses_no_item(make: Make) -> None:
    queue = make()

    def interrupt() -> None:
        until_blocked(queue, 1, 0)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        queue.get(timeout=PATIENCE_S)
    thread.join()
    until_blocked(queue, 0, 0)
    queue.put("kept")
    assert queue.get(timeout=PATIENCE_S) == "kept"


# -- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, {"grace_period_s": PATIENCE_S}, {"grace_period_s": 0}, {"force": True}], ids=str)
def test_shutdown_ends_the_waiting_of_all(make: Make, how: dict[str, Any]) -> None:
    empty, full = make(), make(1)
    full.put(0)
    waiting = [error_of.remote("get", empty), error_of.remote("get", empty), error_of.remote("put", full, 1)]
    until_blocked(empty, 2, 0)
    until_blocked(full, 0, 1)
    empty.shutdown(**how)
    full.shutdown(**how)
    assert [kind for kind, _ in ray.get(waiting, timeout=PATIENCE_S)] == ["ActorDiedError"] * 3


def test_those_who_wait_are_told_that_it_was_a_shutdown(make: Make) -> None:
    queue = make()
    waiting = error_of.remote("get", queue)
    until_blocked(queue, 1, 0)
    queue.shutdown(grace_period_s=PATIENCE_S)
    assert ray.get(waiting, timeout=PATIENCE_S) == ("ActorDiedError", "the queue was ended by shutdown(): make a new Queue")


def test_a_queue_that_was_shut_down_says_so(make: Make) -> None:
    queue = make()
    actor = queue.actor
    queue.put("lost")
    queue.shutdown()
    assert queue.actor is None
    queue.shutdown()
    queue.shutdown(force=True)
    for call in (queue.size, queue.empty, queue.full, queue.get, queue.get_nowait, lambda: queue.put(1), queue.qsize):
        with pytest.raises(ActorDiedError, match=r"shutdown\(\): make a new Queue"):
            call()
    with pytest.raises(ActorDiedError):
        asyncio.run(queue.get_async())
    with pytest.raises(RayActorError):
        ray.get(actor.qsize.remote(), timeout=PATIENCE_S)


def test_a_copy_of_a_queue_that_was_shut_down_fails_too(make: Make) -> None:
    queue = make()
    copy = ray.get(ray.put(queue))
    queue.shutdown()
    for method in ("size", "get", "get_nowait"):
        assert ray.get(error_of.remote(method, copy), timeout=PATIENCE_S)[0] == "ActorDiedError"
    copy.shutdown()


def test_a_queue_whose_actor_is_killed_fails(make: Make) -> None:
    queue = make()
    waiting = error_of.remote("get", queue)
    until_blocked(queue, 1, 0)
    ray.kill(queue.actor)
    assert ray.get(waiting, timeout=PATIENCE_S)[0] == "ActorDiedError"
    with pytest.raises(RayActorError):
        queue.put(1)


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_timeout_that_is_none_is_refused(make: Make, timeout: float) -> None:
    queue = make()
    with pytest.raises(ValueError, match="timeout must not be negative"):
        queue.get(timeout=timeout)
    with pytest.raises(ValueError, match="timeout must not be negative"):
        queue.put(1, timeout=timeout)
    with pytest.raises(ValueError, match="timeout must not be negative"):
        asyncio.run(queue.get_async(timeout=timeout))
    with pytest.raises(ValueError, match="timeout must not be negative"):
        asyncio.run(queue.put_async(1, timeout=timeout))
    with pytest.raises(ValueError, match="grace_period_s must not be negative"):
        queue.shutdown(grace_period_s=timeout)
    assert queue.qsize() == 0  # and the queue lives


@pytest.mark.parametrize("timeout", ["1", True, [1]])
def test_a_timeout_of_the_wrong_kind_is_refused(make: Make, timeout: Any) -> None:
    queue = make()
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        queue.get(timeout=timeout)
    with pytest.raises(TypeError, match="grace_period_s must be a number of seconds"):
        queue.shutdown(grace_period_s=timeout)


@pytest.mark.parametrize("maxsize", ["1", 1.5, None, True])
def test_a_size_of_the_wrong_kind_is_refused(maxsize: Any) -> None:
    with pytest.raises(TypeError, match="maxsize"):
        Queue(maxsize)


def test_batches_of_the_wrong_kind_are_refused(make: Make) -> None:
    queue = make()
    with pytest.raises(TypeError, match="put_nowait_batch"):
        queue.put_nowait_batch(1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="num_items"):
        queue.get_nowait_batch("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_items must not be negative"):
        queue.get_nowait_batch(-1)


def test_options_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="no_such_option"):
        Queue(actor_options={"no_such_option": 1})


def test_an_item_that_does_not_pickle_is_refused_and_the_queue_goes_on(make: Make) -> None:
    queue = make()
    with pytest.raises(TypeError):
        queue.put(threading.Lock())
    queue.put("x")
    assert queue.get() == "x"
