"""What local mode has of its own. All else is tested by the tests of the public API, which run in it too."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import ActorDiedError, GetTimeoutError, TaskCancelledError
from zray.util.state import list_actors, list_objects, list_workers

from . import modes
from .driving import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def local() -> Iterator[Any]:
    with ray.init(local_mode=True, num_cpus=2) as context:
        yield context


def script(program: str, said: str = "") -> str:
    """What a program prints that starts in local mode."""
    start = "import json, os, sys, threading\nimport zray as ray\nray.init(local_mode=True, num_cpus=2)\n"
    answer = subprocess.run(
        [sys.executable, "-c", start + program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


# -- one process --------------------------------------------------------------------------------------------------------

FOOTPRINT = """
@ray.remote
def double(x):
    return 2 * x
@ray.remote
class Counter:
    def add(self, x):
        return x
counter = Counter.remote()
assert ray.get([double.remote(2), counter.add.remote(3)]) == [4, 3]
links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")]
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
heavy = [name for name in ("zmq", "sqlite3", "psutil", "asyncio", "subprocess") if name in sys.modules]
print(json.dumps([[link for link in links if "socket" in link], children, heavy, ray.init(ignore_reinit_error=True).session_dir]))
"""


def test_there_is_no_socket_no_child_and_no_file() -> None:
    assert json.loads(script(FOOTPRINT)) == [[], [], [], ""]


def test_it_starts_and_ends_again_and_again() -> None:
    for number in range(5):
        with ray.init(local_mode=True, num_cpus=1):
            assert ray.get(ray.remote(lambda x: x).remote(number)) == number
    assert not ray.is_initialized()


def test_there_is_nothing_to_connect_to() -> None:
    with pytest.raises(ValueError, match="local_mode has no other processes"):
        ray.init("auto", local_mode=True)
    assert not ray.is_initialized()


def test_environment_variables_are_set_until_the_end() -> None:
    with ray.init(local_mode=True, runtime_env={"env_vars": {"ZRAY_TEST_LOCAL": "1"}}):
        assert ray.get(ray.remote(os.environ.get).remote("ZRAY_TEST_LOCAL")) == "1"
    assert "ZRAY_TEST_LOCAL" not in os.environ


def test_what_is_known_of_it(local: Any) -> None:
    assert local["address"] == "local"
    assert ray.cluster_resources() == {"CPU": 2.0}
    assert [node["Alive"] for node in ray.nodes()] == [True]
    assert {worker["pid"] for worker in list_workers()} == {os.getpid()}
    assert list_actors() == list_objects() == []
    ray.get(ray.remote(lambda: 1).options(name="seen").remote())
    assert [event["name"] for event in ray.timeline() or ()] == ["seen"]


# -- who runs a task ----------------------------------------------------------------------------------------------------


def test_a_task_that_is_waited_for_runs_in_the_thread_that_waits(local: Any) -> None:
    @ray.remote
    def thread() -> int:
        return threading.get_ident()

    @ray.remote
    def nested() -> tuple[int, Any]:
        return threading.get_ident(), ray.get(thread.remote())

    me = threading.get_ident()
    assert ray.get(nested.remote()) == (me, me)
    ref = thread.remote()
    assert ray.get(thread.remote()) and ray.get(ref)  # wherever those run


def test_tasks_that_wait_for_each_other_may_be_nested_deeply(local: Any) -> None:
    @ray.remote
    def down(n: int) -> int:
        return int(ray.get(down.remote(n - 1))) + 1 if n else 0

    assert ray.get(down.remote(150)) == 150


def test_nobody_need_wait_for_a_task(local: Any) -> None:
    modes.shared["done"] = threading.Event()

    @ray.remote
    def finish() -> None:
        modes.shared["done"].set()

    ref = finish.remote()
    assert modes.shared["done"].wait(PATIENCE_S)
    assert ray.get(ref) is None


def test_a_wait_with_a_limit_runs_nothing_itself(local: Any) -> None:
    opened = modes.shared["opened"] = threading.Event()
    ref = ray.remote(lambda: modes.shared["opened"].wait(PATIENCE_S)).remote()
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.01)
    assert ray.wait([ref], timeout=0) == ([], [ref])
    opened.set()
    assert ray.get(ref, timeout=PATIENCE_S)


def test_a_task_has_a_context_of_its_own(local: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    modes.shared["variable"] = variable
    variable.set(1)

    @ray.remote
    def change() -> int:
        before = int(modes.shared["variable"].get())
        modes.shared["variable"].set(2)
        return before

    assert ray.get(change.remote()) == 0
    assert variable.get() == 1
    assert ray.get_runtime_context().get_task_id() is None


@pytest.mark.parametrize("who", ["another", "itself"])
def test_a_task_is_cancelled_in_the_thread_that_waits_for_it(local: Any, who: str) -> None:
    """And whoever waits is not interrupted."""
    begun = modes.shared["begun"] = threading.Event()

    @ray.remote
    def task() -> bool:
        modes.shared["begun"].set()
        if who == "itself":
            ray.cancel(modes.shared["ref"])
        return modes.held()

    ref = modes.shared["ref"] = task.remote()
    canceller = threading.Thread(target=lambda: begun.wait(PATIENCE_S) and ray.cancel(ref))
    if who == "another":
        canceller.start()
    with pytest.raises(TaskCancelledError):
        ray.get(ref)
    if who == "another":
        canceller.join()
    del modes.shared["ref"]
    assert ray.get([ray.remote(lambda n: n).remote(n) for n in range(100)]) == list(range(100))


def test_a_task_that_uses_asyncio_is_not_run_inside_an_event_loop(local: Any) -> None:
    async def five() -> int:
        return 5

    task = ray.remote(lambda: asyncio.run(five()))

    async def main() -> int:
        return int(ray.get(task.remote()))

    assert asyncio.run(main()) == 5


def test_a_breakpoint_in_a_task() -> None:
    program = """
@ray.remote
def broken(x):
    y = x + 1
    breakpoint()
    return y
print("result", ray.get(broken.remote(41)))
"""
    printed = script(program, "p 'y is', y\nup\nc\n")
    assert "('y is', 42)" in printed
    assert "result 42" in printed


def test_ctrl_c_reaches_the_task_and_the_one_who_waits(local: Any) -> None:
    @ray.remote
    def interrupted() -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(PATIENCE_S)
        except KeyboardInterrupt:
            return "heard"
        return "not heard"

    with pytest.raises(KeyboardInterrupt):
        ray.get(interrupted.remote())
    assert ray.get(ray.remote(lambda: "well").remote()) == "well"


# -- values ---------------------------------------------------------------------------------------------------------------


def test_values_are_copies(local: Any) -> None:
    numpy = pytest.importorskip("numpy")

    @ray.remote
    def change(values: list[int]) -> list[int]:
        values.append(4)
        return values

    mine = [1, 2, 3]
    assert ray.get(change.remote(mine)) == [1, 2, 3, 4]
    assert mine == [1, 2, 3]
    ref = ray.put(mine)
    assert ray.get(change.remote(ref)) == [1, 2, 3, 4]
    assert ray.get(ref) == [1, 2, 3]
    array = ray.get(ray.put(numpy.zeros(10)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


# -- ends -----------------------------------------------------------------------------------------------------------------


def _busy() -> None:
    modes.shared["busy"].set()
    while True:
        pass


@ray.remote
class Busy:
    def busy(self) -> None:
        _busy()

    def wait(self, refs: list[Any]) -> Any:
        modes.shared["busy"].set()
        return ray.get(refs[0])


@pytest.mark.parametrize("way", ["computing", "waiting"])
def test_an_actor_that_is_killed_leaves_what_it_does(local: Any, way: str) -> None:
    modes.shared["busy"] = threading.Event()
    before = threading.active_count()
    actor = Busy.remote()
    ref = actor.busy.remote() if way == "computing" else actor.wait.remote([Busy.remote().wait.remote([actor.busy.remote()])])
    assert modes.shared["busy"].wait(PATIENCE_S)
    ray.kill(actor)
    with pytest.raises(ActorDiedError, match="kill"):
        ray.get(ref, timeout=PATIENCE_S)
    eventually(lambda: threading.active_count() <= before, "the end of its thread")


def test_an_actor_that_ends_itself_begins_nothing_more(local: Any) -> None:
    log: list[int] = []
    modes.shared["log"] = log

    @ray.remote
    class Mortal:
        def call(self, number: int) -> None:
            if number == 2:
                sys.exit(1)
            modes.shared["log"].append(number)

    for _ in range(10):
        actor = Mortal.remote()
        calls = [actor.call.remote(number) for number in range(20)]
        with pytest.raises(ActorDiedError):
            ray.get(calls[-1], timeout=PATIENCE_S)
    assert log == [0, 1] * 10


def test_shutdown_ends_what_still_runs() -> None:
    modes.shared["busy"] = threading.Event()
    before = threading.active_count()
    with ray.init(local_mode=True, num_cpus=2):
        kept = [ray.remote(_busy).remote(), Busy.remote()]
        assert modes.shared["busy"].wait(PATIENCE_S)
    eventually(lambda: threading.active_count() <= before, "the end of all threads")
    assert kept


def test_a_thread_that_waits_hears_of_the_end() -> None:
    modes.shared["busy"] = threading.Event()
    heard: list[BaseException] = []

    def wait(ref: Any) -> None:
        try:
            ray.get([ref, ref])
        except Exception as error:
            heard.append(error)

    with ray.init(local_mode=True, num_cpus=2):
        thread = threading.Thread(target=wait, args=(ray.remote(_busy).remote(),))
        thread.start()
        assert modes.shared["busy"].wait(PATIENCE_S)
    thread.join(PATIENCE_S)
    assert heard


def test_a_task_can_not_shut_down_what_it_runs_in(local: Any) -> None:
    assert ray.get(ray.remote(ray.shutdown).remote()) is None
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
