"""Many threads of a driver at once, forks of it, futures, and references in asyncio code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
import time
from typing import Any

import pytest

import zray as ray
from zray import object_ref
from zray.exceptions import GetTimeoutError, TaskCancelledError

pytestmark = pytest.mark.usefixtures("cluster")


def same(x: Any) -> Any:
    return x


def hold(path: str, value: Any) -> Any:
    while not os.path.exists(path):
        time.sleep(0.001)
    return value


def held(path: Any, value: Any = None) -> Any:
    """A reference to ``value``, ready when the file at ``path`` is there."""
    return ray.remote(num_cpus=0)(lambda: hold(str(path), value)).remote()


def in_threads(count: int, work: Any) -> list[Any]:
    """Results of ``work(index)`` in threads that start together."""
    barrier = threading.Barrier(count)

    def run(index: int) -> Any:
        barrier.wait()
        return work(index)

    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_gets_from_eight_threads_at_once() -> None:
    f = ray.remote(lambda x: x)
    refs = [f.remote(i) for i in range(400)]
    results = in_threads(8, lambda index: [ray.get(ref) for ref in refs[index::8]])
    assert results == [list(range(400))[index::8] for index in range(8)]


def test_the_same_objects_got_by_eight_threads() -> None:
    f = ray.remote(lambda x: b"x" * x)
    refs = [f.remote(200_000 + i) for i in range(10)]
    results = in_threads(8, lambda index: [len(value) for value in ray.get(refs)])
    assert results == [[200_000 + i for i in range(10)]] * 8


def test_submits_from_eight_threads_at_once() -> None:
    f = ray.remote(lambda x: x)
    results = in_threads(8, lambda index: ray.get([f.remote((index, i)) for i in range(200)]))
    assert results == [[(index, i) for i in range(200)] for index in range(8)]


def test_puts_and_waits_from_eight_threads_at_once() -> None:
    f = ray.remote(lambda x: x)

    def work(index: int) -> int:
        refs = [f.remote(ray.put(i)) for i in range(50)]
        total = 0
        while refs:
            ready, refs = ray.wait(refs, num_returns=min(3, len(refs)), timeout=30)
            total += sum(ray.get(ready))
        return total

    assert in_threads(8, work) == [sum(range(50))] * 8


def test_a_get_in_a_thread_while_the_main_thread_waits(tmp_path: Any) -> None:
    first, second = held(tmp_path / "first", 1), held(tmp_path / "second", 2)
    got = []

    def work() -> None:
        got.append(ray.get(second))
        (tmp_path / "first").touch()

    thread = threading.Thread(target=work)
    thread.start()
    (tmp_path / "second").touch()
    assert ray.get(first, timeout=30) == 1  # comes only after the other thread was served
    thread.join()
    assert got == [2]


def test_a_timeout_in_a_thread_while_another_waits_longer(tmp_path: Any) -> None:
    ref = held(tmp_path / "open", "value")

    too_early = threading.Barrier(3)

    def work(index: int) -> Any:
        if index % 2:
            with pytest.raises(GetTimeoutError):
                ray.get(ref, timeout=0.02)
            if too_early.wait() == 0:
                (tmp_path / "open").touch()
        return ray.get(ref)

    assert in_threads(6, work) == ["value"] * 6


def test_a_driver_that_computes_still_learns_of_results() -> None:
    """Nobody waits, and yet a task that depends on another gets its argument: the loop has a thread of its own."""
    f = ray.remote(lambda x: x + 1)
    ref = f.remote(f.remote(f.remote(0)))
    deadline = time.monotonic() + 30
    while ray.wait([ref], timeout=0)[1]:
        assert time.monotonic() < deadline
        sum(range(10_000))
    assert ray.get(ref) == 3


def test_references_dropped_in_other_threads() -> None:
    f = ray.remote(lambda x: x)
    refs = [f.remote(i) for i in range(400)]

    def work(index: int) -> None:
        for i in range(index, 400, 4):
            ray.get(refs[i])
            refs[i] = None  # type: ignore[call-overload]

    in_threads(4, work)
    assert refs == [None] * 400


def test_threads_inside_a_task() -> None:
    @ray.remote
    def f() -> Any:
        g = ray.remote(num_cpus=0)(lambda x: x)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda x: ray.get(g.remote(x)), range(20)))

    assert ray.get(f.remote()) == list(range(20))


def test_a_finalizer_that_gets_is_told_not_to_wait() -> None:
    """A ``__del__`` that runs inside the loop would wait for itself."""
    ref = ray.put(1)

    class Careless:
        def __del__(self) -> None:
            assert ray.get(ref) == 1  # what is here already needs no waiting

    careless = Careless()
    del careless
    assert ray.get(ref) == 1


# -- forks --------------------------------------------------------------------------------------------------------


def in_fork(work: Any) -> int:
    """The exit code of ``work()`` in a fork of this process."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_is_not_connected_and_disturbs_nobody() -> None:
    f = ray.remote(lambda x: x)
    refs = [f.remote(i) for i in range(50)]

    def child() -> bool:
        nonlocal refs
        connected = ray.is_initialized()
        refs = []
        ray.shutdown()
        return not connected

    assert in_fork(child) == 0
    assert ray.get(refs) == list(range(50))


def test_a_fork_can_end_like_any_program_and_may_start_a_cluster_of_its_own(script: Any) -> None:
    program = script(
        """
        import warnings
        warnings.simplefilter("ignore")
        start()
        ref = ray.put("parent")
        f = ray.remote(lambda x: x)
        say("before", ray.get(f.remote(1)))
        pid = os.fork()
        if pid == 0:
            say("child", ray.is_initialized())
            with ray.init(num_cpus=1, object_store_memory=1 << 24):
                say("own", ray.get(f.remote(2)))
            sys.exit(5)
        say("code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        say("after", ray.get(f.remote(3)), ray.get(ref))
        """
    )
    assert program.until("before") == "1"
    assert program.until("child") == "False"
    assert program.until("own") == "2"
    assert program.until("code") == "5"
    assert program.until("after") == "3 parent"
    assert program.finish()[::2] == (0, "")


# -- futures and asyncio ------------------------------------------------------------------------------------------


def test_a_future_of_a_reference() -> None:
    @ray.remote
    def fail() -> None:
        raise LookupError("in a future")

    assert ray.put(1).future().result(30) == 1
    assert ray.remote(lambda: 2).remote().future().result(30) == 2
    with pytest.raises(LookupError, match="in a future"):
        fail.remote().future().result(30)


class Exits:
    """Ends whoever reads it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


def test_a_future_of_a_value_that_exits_when_it_is_read() -> None:
    with pytest.raises(SystemExit):
        ray.put(Exits()).future().result(30)
    assert ray.put(1).future().result(30) == 1


def test_many_futures() -> None:
    f = ray.remote(lambda x: x)
    futures = [f.remote(i).future() for i in range(500)]
    done, _ = concurrent.futures.wait(futures, timeout=30)
    assert {future.result() for future in done} == set(range(500))


def test_a_callback_of_a_future_may_use_the_api() -> None:
    done = threading.Event()
    got: list[Any] = []

    def callback(future: Any) -> None:
        got.append(ray.get(ray.put(future.result() + 1)))
        done.set()

    ray.remote(lambda: 1).remote().future().add_done_callback(callback)
    assert done.wait(30)
    assert got == [2]


def test_await_and_gather() -> None:
    f = ray.remote(lambda x: x)

    async def main() -> Any:
        one = await f.remote(1)
        more = await asyncio.gather(*[f.remote(i) for i in range(50)])
        return one, more

    assert asyncio.run(main()) == (1, list(range(50)))


def test_an_awaited_error() -> None:
    @ray.remote
    def fail() -> None:
        raise LookupError("awaited")

    async def main() -> None:
        with pytest.raises(LookupError, match="awaited"):
            await fail.remote()
        results = await asyncio.gather(fail.remote(), ray.put(1), return_exceptions=True)
        assert isinstance(results[0], LookupError)
        assert results[1] == 1

    asyncio.run(main())


def test_wait_for_with_a_timeout_leaves_the_object_intact(tmp_path: Any) -> None:
    async def main() -> Any:
        ref = held(tmp_path / "open", "value")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ref, 0.02)
        (tmp_path / "open").touch()
        return await asyncio.wait_for(ref, 30)

    assert asyncio.run(main()) == "value"


def test_asyncio_wait_and_as_completed() -> None:
    f = ray.remote(lambda x: x)

    async def main() -> Any:
        pending = {asyncio.wrap_future(f.remote(i).future()) for i in range(10)}
        done, pending = await asyncio.wait(pending, timeout=30)
        values = [await each for each in asyncio.as_completed([f.remote(i) for i in range(10)])]
        return sorted(each.result() for each in done), sorted(values), pending

    assert asyncio.run(main()) == (list(range(10)), list(range(10)), set())


def test_the_event_loop_turns_while_a_reference_is_awaited(tmp_path: Any) -> None:
    async def main() -> Any:
        ref = held(tmp_path / "open", "value")

        async def opener() -> None:
            (tmp_path / "open").touch()

        value, _ = await asyncio.gather(ref, opener())
        return value

    assert asyncio.run(main()) == "value"


@pytest.mark.processes("in local mode tasks are threads")
def test_thousands_of_references_in_one_event_loop() -> None:
    f = ray.remote(lambda x: x)

    async def main() -> Any:
        threads = threading.active_count()
        values = await asyncio.gather(*[f.remote(i) for i in range(3000)])
        return values, threading.active_count() - threads

    assert asyncio.run(main()) == (list(range(3000)), 0)


def test_large_values_are_awaited_together() -> None:
    f = ray.remote(lambda x: bytes([x]) * 300_000)

    async def main() -> Any:
        return [len(value) for value in await asyncio.gather(*[f.remote(i) for i in range(12)], ray.put(bytes(400_000)))]

    assert asyncio.run(main()) == [300_000] * 12 + [400_000]


def test_a_coroutine_that_is_cancelled_leaves_the_task_alone_and_nothing_behind(tmp_path: Any) -> None:
    worker: Any = object_ref.connected

    async def main() -> Any:
        ref = held(tmp_path / "open", "value")
        waiting = asyncio.ensure_future(ref)
        for _ in range(20):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(ref, 0.001)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        left = [waiter for waiter in worker.owner.waiters.watchers.get(ref.binary(), ()) if waiter.callback is not None]
        (tmp_path / "open").touch()
        return await ref, left

    assert asyncio.run(main()) == ("value", [])


def test_an_event_loop_that_is_closed_before_its_references_are_ready(tmp_path: Any) -> None:
    refs = [held(tmp_path / "open", n) for n in range(3)]

    async def give_up() -> None:
        waiting = [asyncio.ensure_future(ref) for ref in refs]
        await asyncio.sleep(0.01)
        assert not any(future.done() for future in waiting)

    asyncio.run(give_up())
    (tmp_path / "open").touch()

    async def main() -> Any:
        return await asyncio.gather(*refs)

    assert asyncio.run(main()) == [0, 1, 2]


def test_event_loops_in_several_threads_await_the_same_references(tmp_path: Any) -> None:
    refs = [held(tmp_path / "open", n) for n in range(3)]

    async def main() -> Any:
        (tmp_path / "open").touch()
        return await asyncio.gather(*refs)

    assert in_threads(4, lambda index: asyncio.run(main())) == [[0, 1, 2]] * 4


def test_a_task_that_is_awaited_is_cancelled(tmp_path: Any) -> None:
    async def main() -> None:
        ref = held(tmp_path / "never")
        waiting = asyncio.ensure_future(ref)
        await asyncio.sleep(0.01)
        ray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            await waiting

    asyncio.run(main())


def test_a_shutdown_ends_what_is_awaited(script: Any) -> None:
    program = script(
        """
        import asyncio, threading
        start()
        f = ray.remote(lambda: time.sleep(1000))

        async def main():
            waiting = asyncio.ensure_future(f.remote())
            await asyncio.sleep(0.05)
            threading.Thread(target=ray.shutdown).start()
            try:
                await waiting
            except Exception as error:
                say("ended", f"{type(error).__name__}: {error}")

        asyncio.run(main())
        """
    )
    assert program.until("ended") == "RaySystemError: zray.shutdown() was called while this waited"
    assert program.finish()[::2] == (0, "")
