"""Tasks whose worker ends under them: retries, and a defined result when these are used up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray.exceptions import RayTaskError, TaskCancelledError, WorkerCrashedError

from .driving import alive, eventually

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.processes("it ends processes")]


@pytest.fixture(autouse=True)
def the_next_call_works(cluster: Any) -> Iterator[None]:
    """Whatever a test did to it, the cluster goes on."""
    yield
    assert ray.get(ray.remote(lambda: "works").remote(), timeout=30) == "works"


def count_attempt(path: Any) -> int:
    """Note one attempt in a file; how many there were before."""
    with open(path, "ab") as file:
        file.write(b"x")
        return file.tell() - 1


WAYS: dict[str, tuple[Any, str]] = {
    "exit": (lambda: os._exit(7), "code 7"),
    "sys.exit": (lambda: sys.exit(3), "code 3"),
    "sys.exit with words": (lambda: sys.exit("some words"), "code 1"),
    "SystemExit": (lambda: (_ for _ in ()).throw(SystemExit), "code 0"),
    "kill": (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    "segmentation fault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
    "abort": (os.abort, "SIGABRT"),
    "terminate": (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_worker_that_ends_is_an_error_that_names_task_and_reason(way: str) -> None:
    die, reason = WAYS[way]

    @ray.remote(max_retries=0)
    def f() -> None:
        die()

    with pytest.raises(WorkerCrashedError, match=rf"f\(\)[\s\S]*{reason}[\s\S]*max_retries"):
        ray.get(f.remote())


def test_a_dying_task_is_tried_again_as_often_as_allowed(tmp_path: Any) -> None:
    path = tmp_path / "attempts"

    @ray.remote(max_retries=2)
    def always() -> None:
        count_attempt(path)
        os._exit(1)

    with pytest.raises(WorkerCrashedError, match=r"tried 3 time"):
        ray.get(always.remote())
    assert path.stat().st_size == 3


def test_deaths_and_exceptions_share_the_retries_and_the_error_says_what_there_was(tmp_path: Any) -> None:
    path = tmp_path / "attempts"

    @ray.remote(max_retries=2, retry_exceptions=True)
    def raises_and_dies() -> None:
        if count_attempt(path) == 0:
            raise ValueError("the first time")
        os._exit(1)

    text = r"tried 3 time\(s\): 1 time\(s\) it raised an exception, 2 time\(s\) its worker died"
    with pytest.raises(WorkerCrashedError, match=text):
        ray.get(raises_and_dies.remote())
    assert path.stat().st_size == 3


def test_a_task_that_dies_once_succeeds(tmp_path: Any) -> None:
    @ray.remote
    def once(path: Any) -> str:
        if count_attempt(path) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return "second"

    assert ray.get(once.remote(tmp_path / "attempts")) == "second"


def test_retries_without_end(tmp_path: Any) -> None:
    @ray.remote(max_retries=-1)
    def stubborn(path: Any) -> int:
        tried = count_attempt(path)
        if tried < 6:
            os._exit(1)
        return tried

    assert ray.get(stubborn.remote(tmp_path / "attempts")) == 6


def test_the_default_is_three_retries(tmp_path: Any) -> None:
    path = tmp_path / "attempts"

    @ray.remote
    def f() -> None:
        count_attempt(path)
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        ray.get(f.remote())
    assert path.stat().st_size == 4


def test_application_errors_are_not_tried_again_unless_told(tmp_path: Any) -> None:
    path = tmp_path / "attempts"

    @ray.remote(max_retries=3)
    def f() -> None:
        count_attempt(path)
        raise ValueError

    with pytest.raises(ValueError):
        ray.get(f.remote())
    assert path.stat().st_size == 1


@pytest.mark.parametrize(
    ("retry", "attempts"), [(True, 4), ([ValueError], 4), ([LookupError, ValueError], 4), ([LookupError], 1), ([], 1)]
)
def test_application_errors_are_tried_again_if_told(tmp_path: Any, retry: Any, attempts: int) -> None:
    path = tmp_path / "attempts"

    @ray.remote(max_retries=3, retry_exceptions=retry)
    def f() -> None:
        count_attempt(path)
        raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        ray.get(f.remote())
    assert path.stat().st_size == attempts


@pytest.mark.processes("the driver has a module that its workers have not")
def test_types_to_try_again_for_that_the_worker_can_not_read(monkeypatch: Any) -> None:
    module = types.ModuleType("only_here")
    error = type("LocalError", (Exception,), {"__module__": "only_here"})
    module.LocalError = error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", module)

    @ray.remote(retry_exceptions=[error])
    def f() -> None:
        raise ValueError("what went wrong")

    with pytest.raises(ValueError, match=r"(?s)what went wrong.*retry_exceptions can not be read here.*only_here"):
        ray.get(f.remote())


def test_an_error_tried_again_that_goes_away(tmp_path: Any) -> None:
    @ray.remote(retry_exceptions=True, num_returns=2)
    def f(path: Any) -> Any:
        if count_attempt(path) < 2:
            raise OSError
        return 1, 2

    assert ray.get(f.remote(tmp_path / "attempts")) == [1, 2]


def test_innocent_tasks_behind_a_dying_one_are_done() -> None:
    """Short tasks are pushed ahead to the same worker: none of them is lost or blamed."""

    @ray.remote
    def fast(x: int) -> int:
        return x

    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    assert ray.get([fast.remote(i) for i in range(100)]) == list(range(100))
    refs, dying = [], []
    for i in range(200):
        refs.append(fast.remote(i))
        if i % 50 == 25:
            dying.append(die.remote())
    assert ray.get(refs) == list(range(200))
    for ref in dying:
        with pytest.raises(WorkerCrashedError):
            ray.get(ref)


def test_the_death_reaches_dependent_tasks() -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    @ray.remote
    def use(x: Any) -> Any:
        return x

    with pytest.raises(WorkerCrashedError):
        ray.get(use.remote(die.remote()))


def test_the_death_of_a_child_is_an_error_inside_its_parent() -> None:
    @ray.remote(max_retries=0)
    def die() -> None:
        os._exit(1)

    @ray.remote
    def parent() -> str:
        try:
            ray.get(die.remote())
        except WorkerCrashedError as error:
            return str(error)
        return "no error"

    assert "die()" in ray.get(parent.remote())

    @ray.remote
    def careless() -> None:
        ray.get(die.remote())

    with pytest.raises(WorkerCrashedError) as caught:
        ray.get(careless.remote())
    assert isinstance(caught.value, RayTaskError)


def test_all_results_of_a_dying_task_fail() -> None:
    @ray.remote(max_retries=0, num_returns=3)
    def die() -> None:
        os._exit(1)

    for ref in die.remote():
        with pytest.raises(WorkerCrashedError):
            ray.get(ref)


def test_sigint_in_a_task_is_a_cancelled_task_and_the_worker_lives() -> None:
    @ray.remote
    def f() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass

    with pytest.raises(TaskCancelledError):
        ray.get(f.remote())


def test_an_idle_worker_that_is_killed_is_replaced() -> None:
    @ray.remote
    def pid() -> int:
        return os.getpid()

    victim = ray.get(pid.remote())
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: not alive(victim), "the end of the worker")
    assert ray.get(pid.remote()) != victim


def test_workers_killed_while_many_tasks_run() -> None:
    @ray.remote(max_retries=-1)
    def work(x: int) -> int:
        return sum(range(20_000)) + x

    @ray.remote
    def pid() -> int:
        return os.getpid()

    victims = set(ray.get([pid.remote() for _ in range(20)]))
    refs = [work.remote(i) for i in range(400)]
    ray.wait(refs, num_returns=50)
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert ray.get(refs) == [sum(range(20_000)) + i for i in range(400)]


def test_what_a_task_started_ends_with_its_worker() -> None:
    @ray.remote(max_retries=0)
    def f(path: str) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        ray.get(ray.put(0))
        with open(path, "w", encoding="utf-8") as file:
            file.write(str(child.pid))
        os._exit(0)

    import tempfile

    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as file:
        with pytest.raises(WorkerCrashedError):
            ray.get(f.remote(file.name))
        child = int(file.read())
    eventually(lambda: not alive(child), "the end of the task's own child")


def test_a_task_that_closes_its_standard_streams() -> None:
    @ray.remote
    def f() -> int:
        os.close(1)
        os.close(2)
        return 1

    assert ray.get(f.options(max_calls=1).remote()) == 1


def test_a_task_that_forks() -> None:
    """The child must not answer in the worker's name."""

    @ray.remote
    def f() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return pid

    assert ray.get(f.remote()) > 0


def test_a_fork_in_a_task_that_returns_does_not_answer_twice() -> None:
    @ray.remote
    def f() -> bool:
        return os.fork() == 0

    assert ray.get([f.remote() for _ in range(3)]) == [False] * 3
