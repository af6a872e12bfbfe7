"""The Executor keeps the promises of ``concurrent.futures``, with tasks and with processes of its own."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import RayTaskError, WorkerCrashedError
from zray.util import Executor

from .driving import PATIENCE_S, Script, eventually
from .gates import Gate, through
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster")

MOMENT_S = 0.01  # a time limit that a test wants to run out
KINDS: dict[str, dict[str, Any]] = {"tasks": {}, "processes": {"initializer": int}}


@pytest.fixture(params=KINDS)
def executor(request: Any) -> Iterator[Executor]:
    with Executor(**KINDS[request.param]) as executor:
        yield executor


@pytest.fixture(params=KINDS)
def single(request: Any) -> Iterator[Executor]:
    """Runs one call at a time."""
    with Executor(1, **KINDS[request.param]) as executor:
        yield executor
        executor.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def fail(error: BaseException) -> None:
    raise error


def double(value: int) -> int:
    return 2 * value


def touch(path: Path) -> None:
    path.touch()


class Thing:
    """Something that can be referred to weakly."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read(self) -> int:
        return self.value


class Exits:
    """Ends whoever reads it."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


# -- submit -----------------------------------------------------------------------------------------------------------


def test_submit_passes_all_kinds_of_arguments(executor: Executor) -> None:
    assert executor.submit(pow, 2, 10).result() == 1024
    assert executor.submit(capture, 1, self=2, fn=3, number=4).result() == ((1,), {"self": 2, "fn": 3, "number": 4})
    assert executor.submit(capture, ray.put([5])).result() == (([5],), {})
    with pytest.raises(TypeError):
        executor.submit(fn=capture)  # type: ignore[call-arg]


def test_any_callable_is_called(executor: Executor) -> None:
    amount = 3
    for _ in range(3):  # a function that comes again is sent once; so this takes both ways
        assert executor.submit(lambda value: value + amount, 1).result() == 4
        assert executor.submit(double, 4).result() == 8
        assert executor.submit(functools.partial(capture, 1), 2).result() == ((1, 2), {})
        assert executor.submit(Thing, 5).result().value == 5
    thing = Thing()
    for thing.value in range(3):  # a method has a state, which is that of the call
        assert executor.submit(thing.read).result() == thing.value


def test_functions_made_in_a_loop(executor: Executor) -> None:
    calls = [executor.submit(lambda i=i: i) for i in range(200)]
    assert [call.result() for call in calls] == list(range(200))


def test_an_exception_is_itself_and_its_cause_tells_where(executor: Executor) -> None:
    future = executor.submit(fail, ValueError("too much", 7))
    error = future.exception()
    assert type(error) is ValueError
    assert error.args == ("too much", 7)
    assert type(error.__cause__) is RayTaskError
    assert "in fail" in str(error.__cause__)
    with pytest.raises(ValueError, match="too much") as raised:
        future.result()
    assert raised.value is error


def test_what_can_not_be_sent_fails_in_the_future(executor: Executor) -> None:
    future = executor.submit(double, threading.Lock())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cannot serialize"):
        future.result()
    with pytest.raises(TypeError, match="cannot serialize"):
        executor.submit(threading.Lock).result()
    assert executor.submit(double, 1).result() == 2


def test_a_value_that_exits_when_it_is_read_ends_no_thread(executor: Executor) -> None:
    future = executor.submit(Exits)
    futures.wait([future], PATIENCE_S)  # nobody fetches it
    with pytest.raises(SystemExit):
        future.result(0)
    futures.wait([again := executor.submit(double, 1)], PATIENCE_S)
    assert again.result(0) == 2


@pytest.mark.processes("pytest sees the warning of a task that runs here")
def test_functions_that_return_what_can_not_be_sent(executor: Executor) -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def number() -> int:
        return 1

    for _ in range(3):
        with pytest.raises(TypeError, match="generator"):
            executor.submit(numbers).result()
        with pytest.raises(TypeError, match="coroutine"):
            executor.submit(number).result()


def test_a_result_that_is_late(executor: Executor, gate: Gate) -> None:
    future = executor.submit(through, gate, "value")
    for timeout in (MOMENT_S, 0, -1):
        with pytest.raises(futures.TimeoutError):
            future.result(timeout)
        with pytest.raises(futures.TimeoutError):
            future.exception(timeout)
    assert not future.done()
    gate.open()
    assert future.result(PATIENCE_S) == "value"
    assert future.exception() is None


def test_a_timeout_of_the_function_is_no_late_result(executor: Executor) -> None:
    future = executor.submit(fail, TimeoutError("its own"))
    with pytest.raises(TimeoutError, match="its own"):
        future.result(PATIENCE_S)


# -- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_in_this_process(executor: Executor, gate: Gate) -> None:
    called: list[Any] = []
    over = threading.Event()
    future = executor.submit(through, gate, 1)
    future.add_done_callback(lambda done: called.append((os.getpid(), done)))
    future.add_done_callback(lambda done: called.append(done.result()))
    future.add_done_callback(lambda done: over.set())
    gate.open()
    assert over.wait(PATIENCE_S)
    assert called == [(os.getpid(), future), 1]
    future.add_done_callback(lambda done: called.append("at once"))
    assert called[-1] == "at once"


def test_what_a_callback_raises_is_logged(executor: Executor, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    over = threading.Event()
    future = executor.submit(through, gate, 1)
    future.add_done_callback(lambda done: fail(ValueError("in a callback")))
    future.add_done_callback(lambda done: over.set())
    with caplog.at_level(logging.ERROR):
        gate.open()
        assert over.wait(PATIENCE_S)
    assert "in a callback" in caplog.text
    assert executor.submit(double, 1).result() == 2


def test_a_callback_may_submit(executor: Executor) -> None:
    last: futures.Future[int] = futures.Future()

    def more(done: futures.Future[int]) -> None:
        value = done.result()
        if value == 32:
            last.set_result(value)
        else:
            executor.submit(double, value).add_done_callback(more)

    executor.submit(double, 1).add_done_callback(more)
    assert last.result(PATIENCE_S) == 32


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_what_was_not_started_can_be_cancelled(single: Executor, gate: Gate, tmp_path: Path) -> None:
    called: list[Any] = []
    running = single.submit(through, gate, 1)
    waiting = single.submit(touch, tmp_path / "ran")
    waiting.add_done_callback(called.append)
    assert (running.running(), waiting.running()) == (True, False)
    assert (running.cancel(), waiting.cancel(), waiting.cancel()) == (False, True, True)
    assert (running.cancelled(), waiting.cancelled()) == (False, True)
    assert called == [waiting]
    with pytest.raises(futures.CancelledError):
        waiting.result(PATIENCE_S)
    gate.open()
    assert running.result(PATIENCE_S) == 1
    assert single.submit(double, 1).result(PATIENCE_S) == 2  # after what was cancelled
    assert not (tmp_path / "ran").exists()
    done, _ = futures.wait([waiting], PATIENCE_S)
    assert done == {waiting}


def test_most_of_a_long_queue_can_be_cancelled(executor: Executor, gate: Gate) -> None:
    all_of_them = [executor.submit(through, gate, i) for i in range(50)]
    cancelled = [future for future in reversed(all_of_them) if future.cancel()]
    assert len(cancelled) > 40, "no more are given to the cluster than keep it busy"
    gate.open()
    assert [f.result(PATIENCE_S) for f in all_of_them if not f.cancelled()] == list(range(50 - len(cancelled)))


# -- waiting for several ----------------------------------------------------------------------------------------------


def test_wait_and_as_completed(executor: Executor, gate: Gate) -> None:
    late = executor.submit(through, gate, "late")
    early = executor.submit(double, 1)
    done, rest = futures.wait([late, early], PATIENCE_S, futures.FIRST_COMPLETED)
    assert (done, rest) == ({early}, {late})
    wrong = executor.submit(fail, KeyError("wrong"))
    done, rest = futures.wait([late, wrong], PATIENCE_S, futures.FIRST_EXCEPTION)
    assert (done, rest) == ({wrong}, {late})
    done, rest = futures.wait([late, early], MOMENT_S)
    assert rest == {late}
    coming = futures.as_completed([late, early], PATIENCE_S)
    assert next(coming) is early
    gate.open()
    assert list(coming) == [late]


def test_a_long_call_does_not_hold_up_the_results_of_others(executor: Executor, gate: Gate) -> None:
    long = executor.submit(through, gate, 1)
    long.add_done_callback(lambda done: None)
    dispatcher = executor._dispatcher
    eventually(lambda: dispatcher._settled, "the thread that brings results sleeps, and for how long it does not know")
    for value in range(3):
        done, _ = futures.wait([executor.submit(double, value)], PATIENCE_S)
        assert [future.result() for future in done] == [2 * value]
        assert executor.submit(double, value).result(PATIENCE_S) == 2 * value
    assert not long.done()


def test_results_are_brought_where_nobody_fetches_them(executor: Executor) -> None:
    for future in [executor.submit(double, i) for i in range(20)]:
        eventually(future.done, "done() becomes true by itself")


def test_asyncio(executor: Executor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        one_by_one = [await loop.run_in_executor(executor, double, i) for i in range(20)]
        return one_by_one + await asyncio.gather(*[loop.run_in_executor(executor, double, i) for i in range(20)])

    assert asyncio.run(main()) == [2 * i for i in range(20)] * 2


# -- map --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3, 7, 100])
def test_map_gives_results_in_order(executor: Executor, chunksize: int) -> None:
    assert list(executor.map(pow, range(20), itertools.count(1), chunksize=chunksize)) == [i ** (i + 1) for i in range(20)]
    assert list(executor.map(double, [], chunksize=chunksize)) == []


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_raises_where_the_result_would_be(executor: Executor, chunksize: int) -> None:
    results = executor.map(divmod, [1, 1, 1, 1, 1, 1], [2, 3, 0, 5, 5, 5], chunksize=chunksize)
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_map_begins_at_once_and_reads_all(executor: Executor, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(10)]
    executor.map(touch, files)
    executor.shutdown()
    assert all(path.exists() for path in files)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_that_is_given_up_cancels_what_was_not_started(
    single: Executor, gate: Gate, tmp_path: Path, chunksize: int
) -> None:
    files = [tmp_path / str(number) for number in range(4)]
    single.submit(through, gate, 0)
    late = single.map(touch, files, timeout=MOMENT_S, chunksize=chunksize)
    with pytest.raises(futures.TimeoutError):
        next(late)
    gate.open()
    assert single.submit(double, 1).result(PATIENCE_S) == 2
    assert not any(path.exists() for path in files)


@pytest.mark.parametrize("chunksize", [1, 5])
def test_map_with_a_buffer_reads_as_results_are_taken(executor: Executor, chunksize: int) -> None:
    read = itertools.count()
    results = executor.map(double, read, chunksize=chunksize, buffersize=4)
    assert next(read) == 4 * chunksize
    assert [next(results) for _ in range(4)] == [0, 2, 4, 6]
    assert next(read) == 1 + (4 + (4 if chunksize == 1 else 1)) * chunksize
    results.close()  # type: ignore[attr-defined]


def test_results_and_arguments_are_not_kept(executor: Executor) -> None:
    seen = []
    for thing in executor.map(Thing, range(10)):
        seen.append(weakref.ref(thing))
        del thing
        eventually(lambda: seen[-1]() is None, "the result is gone before the next is taken")
    argument = Thing()
    seen.append(weakref.ref(argument))
    future = executor.submit(Thing.read, argument)
    del argument
    assert future.result() == 0
    eventually(lambda: seen[-1]() is None, "the argument is gone")


# -- the end ----------------------------------------------------------------------------------------------------------


def test_no_calls_after_shutdown(executor: Executor) -> None:
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(double, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(double, [1])
    executor.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_shutdown_waits_for_all(kind: str, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    with Executor(1, **KINDS[kind]) as executor:
        for path in files:
            executor.submit(touch, path)
    assert all(path.exists() for path in files)
    assert not executor._dispatcher._thread.is_alive()  # type: ignore[union-attr]


def test_shutdown_without_waiting(single: Executor, gate: Gate) -> None:
    calls = [single.submit(through, gate, i) for i in range(5)]
    single.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        single.submit(double, 1)
    assert not calls[0].done()
    gate.open()
    assert [call.result(PATIENCE_S) for call in calls] == list(range(5))


def test_shutdown_that_cancels(single: Executor, gate: Gate) -> None:
    calls = [single.submit(through, gate, i) for i in range(5)]
    single.shutdown(wait=False, cancel_futures=True)
    assert [call.cancelled() for call in calls] == [False] + [True] * 4
    done, _ = futures.wait(calls[1:], PATIENCE_S)  # none of them is waited for in vain
    assert len(done) == 4
    gate.open()
    single.shutdown()
    assert calls[0].result(PATIENCE_S) == 0


def test_shutdown_in_a_callback(executor: Executor) -> None:
    over = threading.Event()
    executor.submit(double, 1).add_done_callback(lambda done: (executor.shutdown(), over.set()))
    assert over.wait(PATIENCE_S)


def test_an_executor_that_is_forgotten_finishes_and_leaves_no_thread(gate: Gate) -> None:
    executor = Executor()
    future = executor.submit(through, gate, 1)
    thread = executor._dispatcher._thread
    assert thread is not None
    del executor
    gc.collect()
    gate.open()
    assert future.result(PATIENCE_S) == 1
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_program_ends_when_all_is_done(script: Callable[..., Script]) -> None:
    program = script(
        """
        import concurrent.futures
        from zray.util import Executor

        start()
        executor = Executor(1)
        for word in ("one", "two", "three"):
            executor.submit(lambda word: word, word).add_done_callback(lambda done: say(done.result()))
        executor.shutdown(wait=False)
        """
    )
    code, words, errors = program.finish()
    assert (code, errors) == (0, "")
    assert words.split()[-3:] == ["one", "two", "three"]


def test_what_is_not_done_when_the_cluster_ends_fails(script: Callable[..., Script]) -> None:
    program = script(
        """
        import concurrent.futures
        from zray.util import Executor

        start()
        executors = [Executor(1), Executor(1, initializer=int)]
        calls = [executor.submit(time.sleep, 1000) for executor in executors for _ in range(3)]
        ray.shutdown()
        say("types", *{type(call.exception(30)).__name__ for call in calls})
        for executor in executors:
            try:
                executor.submit(abs, 1)
            except RuntimeError as error:
                say("refused", error)
        say("running", ray.is_initialized())
        """
    )
    code, words, errors = program.finish()
    assert (code, errors) == (0, "")
    lines = words.splitlines()[1:]
    assert lines[0] == "types BrokenProcessPool"
    assert [line.startswith("refused the cluster is gone") for line in lines[1:3]] == [True, True]
    assert lines[3] == "running False"


def test_ctrl_c_ends_the_wait_and_not_the_call(script: Callable[..., Script]) -> None:
    program = script(
        """
        import fcntl
        from zray.util import Executor

        start()
        lock = open(__file__)
        fcntl.flock(lock, fcntl.LOCK_EX)
        def wait_for(path):
            fcntl.flock(open(path), fcntl.LOCK_SH)
            return "result"
        with Executor() as executor:
            future = executor.submit(wait_for, __file__)
            try:
                say("waiting")
                future.result()
            except KeyboardInterrupt:
                say("interrupted")
            lock.close()
            say(future.result())
        """
    )
    program.until("waiting")
    program.signal(signal.SIGINT)
    assert program.line() == "interrupted"
    assert program.line() == "result"
    assert program.finish()[0] == 0


# -- workers ----------------------------------------------------------------------------------------------------------


def test_no_more_calls_run_than_there_are_workers(single: Executor, gate: Gate) -> None:
    calls = [single.submit(through, gate, i) for i in range(3)]
    gate.wait_for(1)
    assert [call.running() for call in calls] == [True, False, False]
    gate.open()
    assert [call.result(PATIENCE_S) for call in calls] == [0, 1, 2]


@pytest.mark.parametrize("options", [{"num_cpus": 0}, {"initializer": int}])
def test_calls_that_only_wait_may_be_more_than_there_are_cpus(gate: Gate, options: dict[str, Any]) -> None:
    with Executor(4, **options) as executor:
        calls = [executor.submit(through, gate, i) for i in range(6)]
        gate.wait_for(4)
        assert sum(call.running() for call in calls) == 4
        gate.open()
        assert [call.result(PATIENCE_S) for call in calls] == list(range(6))


def die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        crash()
    return "alive"


def test_a_call_whose_worker_dies_is_run_again(executor: Executor, tmp_path: Path) -> None:
    others = [executor.submit(double, i) for i in range(50)]
    assert executor.submit(die_once, tmp_path / "died").result(PATIENCE_S) == "alive"
    assert [other.result(PATIENCE_S) for other in others] == [2 * i for i in range(50)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_must_not_be_run_again(kind: str, tmp_path: Path) -> None:
    expected = WorkerCrashedError if kind == "tasks" else ray.exceptions.ActorDiedError
    with Executor(max_retries=0, **KINDS[kind]) as executor:
        with pytest.raises(expected):
            executor.submit(die_once, tmp_path / "died").result(PATIENCE_S)
        assert executor.submit(double, 1).result(PATIENCE_S) == 2, "the executor is not broken by it"


def use_an_executor(count: int, how: str) -> int:
    """In a task: with all CPUs lent to those that wait here, their calls must run nevertheless."""
    with Executor(**KINDS[how]) as executor:
        calls = [executor.submit(double, i) for i in range(count)]
        mapped = sum(executor.map(double, range(count)))
        executor.submit(double, 1)
        return mapped + sum(call.result() for call in calls)


@pytest.mark.parametrize("how", KINDS)
def test_executors_in_calls_of_executors(executor: Executor, how: str) -> None:
    calls = [executor.submit(use_an_executor, 10, how) for _ in range(3)]
    assert [call.result(PATIENCE_S) for call in calls] == [180] * 3


@pytest.mark.processes("it counts threads")
def test_many_threads_and_many_calls(executor: Executor) -> None:
    sums: dict[int, int] = {}

    def use(number: int) -> None:
        calls = [executor.submit(double, i) for i in range(300)]
        sums[number] = sum(call.result(PATIENCE_S) for call in calls)

    before = threading.active_count()
    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    assert threading.active_count() <= before + len(threads) + 1, "there is one thread for all futures"
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sums == dict.fromkeys(range(4), 300 * 299)
