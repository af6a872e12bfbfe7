"""The Pool keeps the promises of ``multiprocessing.Pool``."""

from __future__ import annotations

import functools
import gc
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import ActorDiedError, RayTaskError
from zray.util.multiprocessing import AsyncResult, Pool, TimeoutError

from .driving import PATIENCE_S, Script, eventually
from .gates import Gate, through
from .modes import crash

pytestmark = pytest.mark.usefixtures("cluster")

MOMENT_S = 0.01  # a time limit that a test wants to run out


@pytest.fixture(scope="module")
def pool(cluster: Any) -> Iterator[Pool]:
    """One pool of two processes for the tests that do not end it."""
    with Pool(2) as pool:
        pool.apply(int)
        yield pool
    pool.join()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()


class Wrong(Exception):
    """Raised by functions and inputs of these tests."""


def double(value: int) -> int:
    return 2 * value


def fail_at(bad: int, value: int) -> int:
    if value == bad:
        raise Wrong(value)
    return value


def broken_input(good: int) -> Iterator[int]:
    yield from range(good)
    raise Wrong("the input")


# -- one call ---------------------------------------------------------------------------------------------------------


def test_apply(pool: Pool) -> None:
    for _ in range(3):  # a function that comes again is sent once; so this takes both ways
        assert pool.apply(double, (2,)) == 4
        assert pool.apply(double, kwds={"value": 3}) == 6
        assert pool.apply(dict, [[("a", 1)]], {"b": 2}) == {"a": 1, "b": 2}
        assert pool.apply(lambda: "lambda") == "lambda"


def test_apply_raises_what_the_function_raised(pool: Pool) -> None:
    with pytest.raises(Wrong) as raised:
        pool.apply(fail_at, (1, 1))
    assert type(raised.value) is Wrong
    assert raised.value.args == (1,)
    assert type(raised.value.__cause__) is RayTaskError
    assert "in fail_at" in str(raised.value.__cause__)


def test_a_result_that_is_to_come(pool: Pool, gate: Gate) -> None:
    result = pool.apply_async(through, (gate, "value"))
    assert isinstance(result, AsyncResult)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(MOMENT_S)
    for timeout in (MOMENT_S, 0):
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(timeout)
    gate.open()
    assert result.get(PATIENCE_S) == "value"
    assert (result.ready(), result.successful()) == (True, True)
    failed = pool.apply_async(fail_at, (1, 1))
    failed.wait(PATIENCE_S)
    assert (failed.ready(), failed.successful()) == (True, False)
    assert TimeoutError is multiprocessing.TimeoutError


def test_callbacks_have_been_called_when_the_result_is_there(pool: Pool) -> None:
    called: list[Any] = []
    callbacks = {"callback": lambda value: called.append((os.getpid(), value)), "error_callback": called.append}
    assert pool.apply_async(double, (1,), **callbacks).get(PATIENCE_S) == 2
    assert called.pop() == (os.getpid(), 2)
    pool.apply_async(fail_at, (1, 1), **callbacks).wait(PATIENCE_S)
    assert type(called.pop()) is Wrong
    assert pool.map_async(double, [1, 2], **callbacks).get(PATIENCE_S) == [2, 4]
    assert called.pop() == (os.getpid(), [2, 4])
    pool.map_async(functools.partial(fail_at, 1), range(3), 1, **callbacks).wait(PATIENCE_S)
    assert type(called.pop()) is Wrong
    pool.starmap_async(pow, [(2, 3)], **callbacks).wait(PATIENCE_S)
    assert called.pop() == (os.getpid(), [8])
    assert called == []


def test_what_a_callback_raises_is_logged(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        assert pool.apply_async(double, (1,), callback=functools.partial(fail_at, 2)).get(PATIENCE_S) == 2
        assert pool.map_async(double, [1], callback=lambda values: fail_at(2, values[0])).get(PATIENCE_S) == [2]
        eventually(lambda: caplog.text.count("Wrong: 2") == 2, "both are logged")
    assert pool.apply(double, (2,)) == 4


def test_what_can_not_be_sent(pool: Pool) -> None:
    with pytest.raises(TypeError, match="cannot serialize"):
        pool.apply(double, (threading.Lock(),))
    with pytest.raises(TypeError, match="cannot serialize"):
        pool.map(double, [threading.Lock()] * 10)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="cannot serialize"):
        pool.apply(threading.Lock)
    assert pool.map(double, [1]) == [2]


# -- many calls -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 1, 3, 1000])
def test_maps(pool: Pool, chunksize: int | None) -> None:
    numbers = list(range(50))
    assert pool.map(double, numbers, chunksize) == [2 * i for i in numbers]
    assert pool.map(double, iter(numbers), chunksize) == [2 * i for i in numbers]
    assert pool.map(double, range(50), chunksize) == [2 * i for i in numbers]
    assert pool.map(double, set(numbers), chunksize) == [2 * i for i in numbers]
    assert pool.map_async(double, numbers, chunksize).get() == [2 * i for i in numbers]
    assert pool.starmap(pow, [(i, 2) for i in numbers], chunksize) == [i * i for i in numbers]
    assert pool.starmap_async(pow, zip(numbers, numbers), chunksize).get() == [i**i for i in numbers]
    assert pool.map(double, [], chunksize) == []
    assert pool.starmap(pow, [], chunksize) == []


@pytest.mark.parametrize("name", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_imaps(pool: Pool, name: str, chunksize: int) -> None:
    imap = getattr(pool, name)
    for items in (list(range(50)), range(50), iter(range(50))):
        results = imap(double, items, chunksize)
        assert iter(results) is results
        found = list(results)
        assert (found if name == "imap" else sorted(found)) == [2 * i for i in range(50)]
        with pytest.raises(StopIteration):
            next(results)
    assert list(imap(double, [], chunksize)) == []
    assert list(imap(double, iter([]), chunksize)) == []


def test_imap_waits_for_the_first_and_imap_unordered_does_not(pool: Pool, gate: Gate) -> None:
    values = [gate, 1, 2]

    def slow(value: Any) -> Any:
        return through(value, 0) if not isinstance(value, int) else value

    ordered = pool.imap(slow, values)
    with pytest.raises(multiprocessing.TimeoutError):
        ordered.next(MOMENT_S)
    unordered = pool.imap_unordered(slow, values)  # both processes may be at the gate now
    gate.open()
    assert list(ordered) == [0, 1, 2]
    assert sorted(unordered) == [0, 1, 2]


def test_imap_unordered_gives_what_is_ready(pool: Pool, gate: Gate) -> None:
    results = pool.imap_unordered(lambda value: value if isinstance(value, int) else through(value, 0), [gate, 1, 2])
    assert sorted([results.next(PATIENCE_S), results.next(PATIENCE_S)]) == [1, 2]
    with pytest.raises(multiprocessing.TimeoutError):
        results.next(MOMENT_S)
    gate.open()
    assert results.next(PATIENCE_S) == 0


def test_imap_reads_an_endless_input_no_further_than_it_must(pool: Pool) -> None:
    with Pool(1) as own:
        results = own.imap(double, itertools.count(), 10)
        assert [next(results) for _ in range(25)] == [2 * i for i in range(25)]
        own.terminate()
    own.join()


@pytest.mark.parametrize("name", ["map", "map_async"])
def test_a_map_raises_the_first_error_when_all_is_done(pool: Pool, gate: Gate, name: str) -> None:
    values: list[Any] = [0, 1, gate, 3]

    def slow(value: Any) -> Any:
        return fail_at(1, value) if isinstance(value, int) else through(value, 0)

    result = pool.map_async(slow, values, 1)
    gate.wait_for(1)
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(MOMENT_S)
    gate.open()
    with pytest.raises(Wrong, match="1"):
        result.get(PATIENCE_S)


def test_imap_gives_an_error_its_place(pool: Pool) -> None:
    results = pool.imap(functools.partial(fail_at, 2), range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(Wrong, match="2"):
        next(results)
    assert list(results) == [3, 4]


@pytest.mark.parametrize("good", [0, 3, 7])
def test_an_input_that_raises(pool: Pool, good: int) -> None:
    with pytest.raises(Wrong, match="the input"):
        pool.map(double, broken_input(good), 2)
    for results in (pool.imap(double, broken_input(good)), pool.imap_unordered(double, broken_input(good))):
        assert sorted(next(results) for _ in range(good)) == [2 * i for i in range(good)]
        with pytest.raises(Wrong, match="the input"):
            next(results)
        with pytest.raises(StopIteration):
            next(results)
    with pytest.raises(TypeError, match="not iterable"):
        pool.map(double, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        pool.imap(double, 5)  # type: ignore[arg-type]


def test_calls_stuck_behind_a_long_one_go_to_another_process(pool: Pool, gate: Gate) -> None:
    def slow(value: Any) -> Any:
        return value if isinstance(value, int) else through(value, -1)

    numbers: list[Any] = list(range(400))
    result = pool.imap_unordered(slow, [*numbers, gate, *numbers])  # by now many are sent ahead
    found = [result.next(PATIENCE_S) for _ in range(800)]
    assert sorted(found) == sorted(numbers * 2)
    gate.open()
    assert result.next(PATIENCE_S) == -1


@pytest.mark.processes("there a worker is a thread")
def test_calls_run_in_the_main_thread(pool: Pool) -> None:
    """Signal handlers can be set there only."""
    handler = pool.apply(signal.signal, (signal.SIGUSR1, signal.SIG_IGN))
    assert pool.apply(signal.signal, (signal.SIGUSR1, handler)) in (handler, signal.SIG_IGN)


def test_large_values(pool: Pool) -> None:
    blocks = pool.map(bytes, [1_000_000] * 4, 1)
    assert blocks == [bytes(1_000_000)] * 4
    assert pool.map(len, blocks, 2) == [1_000_000] * 4


# -- processes --------------------------------------------------------------------------------------------------------


def test_as_many_processes_as_were_asked_for(gate: Gate) -> None:
    with Pool(5) as pool:
        calls = pool.map_async(functools.partial(through, gate), range(7), 1)
        gate.wait_for(5)
        gate.open()
        assert calls.get(PATIENCE_S) == list(range(7))
        assert len(set(pool.map(lambda _: os.getpid(), range(100), 1))) <= 5
    pool.join()


def test_one_process_for_each_cpu() -> None:
    with Pool() as pool:
        assert len({pool.apply(os.getpid) for _ in range(20)}) <= 2
        assert len(pool._crew._members) == 2
    pool.join()


_setting = "none"


def set_up(value: str) -> None:
    global _setting
    assert _setting == "none", "once in each process"
    _setting = value


def setting(_: int) -> str:
    return _setting


@pytest.mark.processes("a module has its global variables once")
def test_an_initializer_is_called_in_each_process() -> None:
    with Pool(2, set_up, ["set"]) as pool:
        assert set(pool.map(setting, range(100), 1)) == {"set"}
        assert set(pool.imap(lambda _: _setting, range(10))) == {"none"}, "a lambda of this module has its own globals"
    pool.join()


def test_functions_of_a_script_see_what_its_initializer_set(script: Callable[..., Script]) -> None:
    program = script(
        """
        from zray.util.multiprocessing import Pool

        table, calls = {}, 0

        def prepare(size):
            global table, calls
            table = {i: i * i for i in range(size)}
            calls += 1

        def look_up(i):
            return table[i], calls

        def count(i, j):
            return len(table), calls

        if __name__ == "__main__":
            start(num_cpus=2)
            with Pool(2, prepare, (10,)) as pool:
                say(pool.map(look_up, range(4), 1))
                say(pool.starmap(count, [(0, 0)] * 3, 1))
                say(pool.apply(look_up, (9,)), table, calls)
        """
    )
    code, words, errors = program.finish()
    assert (code, errors) == (0, "")
    assert words.splitlines()[1:] == [
        "[(0, 1), (1, 1), (4, 1), (9, 1)]",
        "[(10, 1), (10, 1), (10, 1)]",
        "(81, 1) {} 0",
    ]


def test_an_initializer_that_raises_breaks_the_pool() -> None:
    with Pool(2, fail_at, (1, 1)) as pool:
        result = pool.map_async(double, range(10), 1)
        with pytest.raises(BrokenProcessPool, match="its initializer raised Wrong: 1"):
            result.get(PATIENCE_S)
        with pytest.raises(BrokenProcessPool, match="its initializer raised"):
            pool.apply(double, (1,))
    pool.join()


@pytest.mark.processes("it compares processes")
def test_processes_are_replaced_after_so_many_tasks() -> None:
    with Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(os.getpid) for _ in range(6)]
        assert [pids.count(pid) for pid in pids] == [2] * 6
        pids = pool.map(lambda _: os.getpid(), range(12), 3)  # a chunk is a task
        assert [pids.count(pid) for pid in pids] == [6] * 12
        pool.close()
        pool.join()


def die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        crash()
    return "alive"


def test_a_call_whose_process_dies_is_made_again(pool: Pool, tmp_path: Path) -> None:
    others = pool.map_async(double, range(500), 1)
    assert pool.apply(die_once, (tmp_path / "died",)) == "alive"
    assert others.get(PATIENCE_S) == [2 * i for i in range(500)]


def test_a_call_that_ends_every_process_fails_in_the_end(tmp_path: Path) -> None:
    with Pool(2) as pool:
        others = pool.map_async(double, range(100), 1)
        with pytest.raises(ActorDiedError):
            pool.apply(crash)
        assert others.get(PATIENCE_S) == [2 * i for i in range(100)]
    pool.join()


def test_a_call_that_must_not_be_made_twice(tmp_path: Path) -> None:
    with Pool(1, ray_remote_args={"max_task_retries": 0}) as pool:
        with pytest.raises(ActorDiedError):
            pool.apply(die_once, (tmp_path / "died",))
        assert pool.apply(double, (1,)) == 2
    pool.join()


def use_a_pool(count: int) -> int:
    with Pool(2) as pool:
        return sum(pool.map(double, range(count))) + sum(pool.imap(double, range(count))) + pool.apply(double, (1,))


def test_pools_in_tasks() -> None:
    task = ray.remote(use_a_pool)
    assert ray.get([task.remote(10) for _ in range(3)], timeout=PATIENCE_S) == [182] * 3


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_and_join_finish_everything(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(30)]
    pool = Pool(2)
    pool.map_async(Path.touch, paths[:10], 1)
    pool.imap(Path.touch, iter(paths[10:20]))
    for path in paths[20:]:
        pool.apply_async(path.touch)
    with pytest.raises(ValueError, match="Pool is still running"):
        pool.join()
    pool.close()
    for use in (lambda: pool.apply(int), lambda: pool.map(int, [1]), lambda: pool.imap(int, [1])):
        with pytest.raises(ValueError, match="Pool not running: it was closed"):
            use()
    pool.join()
    assert all(path.exists() for path in paths)
    pool.close()
    pool.join()


def test_terminate_ends_what_runs_and_fails_what_waits(gate: Gate, tmp_path: Path) -> None:
    pool = Pool(2)
    results = [pool.apply_async(through, (gate, 1)) for _ in range(5)]
    mapped = pool.map_async(functools.partial(through, gate), range(10), 1)
    waiting = pool.map_async(double, range(100_000), 1)
    read = pool.imap(functools.partial(through, gate), itertools.count())
    gate.wait_for(2)
    pool.terminate()
    pool.join()
    for result in [*results, mapped, waiting]:
        with pytest.raises(BrokenProcessPool, match="the pool was terminated"):
            result.get(PATIENCE_S)
    with pytest.raises(BrokenProcessPool, match="the pool was terminated"):
        read.next(PATIENCE_S)
    with pytest.raises(ValueError, match="Pool not running: it was terminated"):
        pool.apply(int)
    assert gate.arrived() == 2
    pool.terminate()


def test_terminate_when_all_chunks_have_started(gate: Gate) -> None:
    pool = Pool(2)
    mapped = pool.map_async(functools.partial(through, gate), range(2), 1)
    gate.wait_for(2)
    pool.terminate()
    pool.join()
    with pytest.raises(BrokenProcessPool, match="the pool was terminated"):
        mapped.get(PATIENCE_S)


def test_a_context_terminates() -> None:
    with Pool(1) as pool:
        result = pool.apply_async(threading.Event().wait) if False else pool.apply_async(signal_wait)
        eventually(lambda: pool._crew._members[0].under_way, "it runs")
    with pytest.raises(BrokenProcessPool):
        result.get(PATIENCE_S)
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass
    pool.join()


def signal_wait() -> None:
    threading.Event().wait()


def test_a_pool_that_is_forgotten_finishes_and_leaves_no_thread() -> None:
    result = Pool(2).map_async(double, range(10), 1)
    gc.collect()
    assert result.get(PATIENCE_S) == [2 * i for i in range(10)]
    pool = Pool(1)
    thread = pool._dispatcher._thread
    assert thread is not None
    del pool
    gc.collect()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_program_may_end_without_ending_its_pool(script: Callable[..., Script]) -> None:
    program = script(
        """
        from zray.util.multiprocessing import Pool

        start()
        pool = Pool(2)
        say(pool.map(abs, [-1, 2]))
        pool.apply_async(time.sleep, (1000,))
        """
    )
    code, words, errors = program.finish()
    assert (code, errors) == (0, "")
    assert words.splitlines()[1:] == ["[1, 2]"]


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"processes": 0}, ValueError, "Number of processes must be at least 1"),
        ({"processes": -1}, ValueError, "Number of processes must be at least 1"),
        ({"maxtasksperchild": 0}, ValueError, "maxtasksperchild must be a positive int or None"),
        ({"maxtasksperchild": 2.5}, ValueError, "maxtasksperchild must be a positive int or None"),
        ({"initializer": 1}, TypeError, "initializer must be a callable"),
        ({"ray_remote_args": {"num_cpu": 2}}, ValueError, "num_cpu"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Pool(**options)


def test_a_context_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    with Pool(1, context=multiprocessing.get_context("spawn"), ray_address="not used here") as pool:
        assert pool.apply(abs, (-1,)) == 1
    assert "is not used: the cluster starts its processes" in caplog.text


def test_the_cluster_to_join(script: Callable[..., Script]) -> None:
    program = script(
        """
        from zray.util.multiprocessing import Pool

        try:
            Pool(1, ray_address="auto")
        except ConnectionError:
            say("none")
        with Pool(1, None, None, None, None, "local") as pool:
            say(pool.apply(abs, (-1,)))
        """
    )
    code, words, errors = program.finish()
    assert (code, words.split(), errors) == (0, ["none", "1"], "")


def test_wrong_arguments(pool: Pool) -> None:
    for use in (pool.map, pool.imap, pool.imap_unordered, pool.starmap, pool.map_async, pool.starmap_async):
        with pytest.raises(ValueError, match="Chunksize must be 1"):
            use(double, [1], 0)
    with pytest.raises(NotImplementedError, match="can ?not be passed between processes"):
        pickle.dumps(pool)
