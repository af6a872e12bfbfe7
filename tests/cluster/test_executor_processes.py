"""The Executor with processes of its own: what runs before the calls, wrong input, and the parts it is made of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from zray.util import Executor
from zray.util.dispatch import Window
from zray.util.functions import Regulars

from .driving import PATIENCE_S, Script
from .gates import Gate

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


def fail(error: BaseException) -> None:
    raise error


def double(value: int) -> int:
    return 2 * value


class Thing:
    """Something that can be referred to weakly."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def read(self) -> int:
        return self.value


# -- initializers -----------------------------------------------------------------------------------------------------

_setting = "none"


def set_up(value: str) -> None:
    global _setting
    assert _setting == "none", "once in each process"
    _setting = value


def setting(_: int) -> tuple[str, int]:
    return _setting, os.getpid()


@pytest.mark.processes("a module has its global variables once")
def test_an_initializer_is_called_once_in_each_process() -> None:
    with Executor(2, initializer=set_up, initargs=("set",)) as executor:
        seen = list(executor.map(setting, range(100)))
    assert {value for value, _ in seen} == {"set"}
    assert len({pid for _, pid in seen}) <= 2
    assert _setting == "none"


def test_functions_of_a_script_see_what_its_initializer_set(script: Callable[..., Script]) -> None:
    program = script(
        """
        from zray.util import Executor

        connection, calls = None, 0

        def connect(name):
            global connection, calls
            connection = [name]
            calls += 1

        def first():
            return connection, calls

        def second():
            connection.append("more")
            return connection, calls

        start(num_cpus=2)
        with Executor(1, initializer=connect, initargs=("database",)) as executor:
            for function in (first, second, first, second, first):
                say(executor.submit(function).result())
        say(connection)
        """
    )
    code, words, errors = program.finish()
    assert (code, errors) == (0, "")
    assert words.splitlines()[1:] == [
        "(['database'], 1)",
        "(['database', 'more'], 1)",
        "(['database', 'more'], 1)",
        "(['database', 'more', 'more'], 1)",
        "(['database', 'more', 'more'], 1)",
        "None",
    ]


def test_an_initializer_that_raises_breaks_the_executor() -> None:
    with Executor(2, initializer=fail, initargs=(ValueError("not today"),)) as executor:
        calls = [executor.submit(double, i) for i in range(5)]
        for call in calls:
            with pytest.raises(BrokenProcessPool, match="its initializer raised ValueError: not today"):
                call.result(PATIENCE_S)
        with pytest.raises(BrokenProcessPool, match="its initializer raised"):
            executor.submit(double, 1)


@pytest.mark.processes("it compares processes")
def test_processes_are_replaced_after_so_many_calls() -> None:
    with Executor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result(PATIENCE_S) for _ in range(6)]
        assert [pids.count(pid) for pid in pids] == [2] * 6
        assert len({call.result(PATIENCE_S) for call in [executor.submit(os.getpid) for _ in range(10)]}) == 5


# -- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": 2.5}, TypeError, "max_workers must be an integer"),
        ({"max_workers": True}, TypeError, "max_workers must be an integer"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be greater than 0"),
        ({"initializer": 1}, TypeError, "initializer must be a callable"),
        ({"num_returns": 2}, ValueError, "num_returns must be 1"),
        ({"num_cpu": 2}, ValueError, "num_cpu"),
        ({"num_cpus": -2}, ValueError, "num_cpus"),
        ({"initializer": int, "num_cpu": 2}, ValueError, "num_cpu"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Executor(**options)


def test_wrong_arguments_of_map(executor: Executor) -> None:
    for chunksize in (0, -1):
        with pytest.raises(ValueError, match="chunksize must be >= 1"):
            executor.map(double, [1], chunksize=chunksize)
    with pytest.raises(ValueError, match="buffersize must be greater than 0"):
        executor.map(double, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize must be an integer"):
        executor.map(double, [1], buffersize="4")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not iterable"):
        executor.map(double, 1)  # type: ignore[arg-type]


# -- the parts --------------------------------------------------------------------------------------------------------


def test_regulars_are_those_that_come_again() -> None:
    made: list[Any] = []
    forgotten: list[Any] = []
    regulars: Regulars[int] = Regulars(lambda function: made.append(function) or len(made), forgotten.append)
    assert [regulars.get(double) for _ in range(3)] == [None, 1, 1]
    assert [regulars.get(Thing().read) for _ in range(3)] == [None] * 3
    assert [regulars.get(print) for _ in range(3)] == [None] * 3
    for _ in range(300):  # functions that are gone when the next one comes, perhaps to the same place in memory
        assert regulars.get(lambda: None) is None
    assert made == [double]
    many = [lambda: None for _ in range(130)]
    for function in many:
        assert regulars.get(function) is None
        assert regulars.get(function) is not None
    assert forgotten == [1, 2, 3]
    assert [regulars.get(double) for _ in range(2)] == [None, 132]


def test_a_window_grows_with_quick_work_and_shrinks_with_slow() -> None:
    window = Window(2, 5)
    window.took(0.001, wanted=False)
    assert window.size == 2, "nobody needs a larger one"
    for _ in range(10):
        window.took(0.001, wanted=True)
    assert window.size == 5
    window.took(0.02, wanted=True)
    assert window.size == 5
    for _ in range(10):
        window.took(1.0, wanted=True)
    assert window.size == 2
    window.took(0.001, wanted=True)
    window.reset()
    assert window.size == 2
