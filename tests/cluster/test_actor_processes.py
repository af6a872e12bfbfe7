"""The process of an actor and what users do to it: forks, children of its own, signals, output, its directory and environment."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import ActorDiedError

from .driving import PATIENCE_S, Script, alive, eventually

pytestmark = [pytest.mark.usefixtures("cluster", "no_actor_left"), pytest.mark.processes("signals, forks and children")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


class Plain:
    """Does what a test asks for."""

    def __init__(self, function: Any = None, *args: Any) -> None:
        self.made = function(*args) if function is not None else None

    def get_made(self) -> Any:
        return self.made

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def value(self, value: Any = None) -> Any:
        return value


class Asynchronous(Plain):
    async def run_async(self, function: Any, *args: Any) -> Any:
        await asyncio.sleep(0)
        result = function(*args)
        await asyncio.sleep(0)
        return result


KINDS: dict[str, Any] = {
    "plain": ray.remote(Plain),
    "threads": ray.remote(max_concurrency=3)(Plain),
    "async": ray.remote(Asynchronous),
    "coroutine": ray.remote(Asynchronous),
}


def method(actor: Any, kind: str) -> Any:
    return actor.run_async if kind == "coroutine" else actor.run


# -- forks --------------------------------------------------------------------------------------------------------------


def fork_and_return(path: str, result: Any) -> Any:
    """The child comes back where only the parent belongs; each says who it is."""
    pid = os.fork()
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()} {'parent' if pid else 'child'}\n")
    if result == "exception":
        raise LookupError("child" if pid == 0 else "parent")
    if result == "sys.exit" and pid == 0:
        sys.exit(3)
    if result == "large":
        return bytes(300_000) if pid else bytearray(300_000)
    return "parent" if pid else "child"


def said(path: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {"parent": [], "child": []}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file.read().splitlines():
                pid, who = line.split()
                found[who].append(int(pid))
    return found


@pytest.mark.parametrize("result", ["value", "large", "exception", "sys.exit"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_child_of_a_fork_does_not_answer_in_the_actors_name(tmp_path: Any, kind: str, result: str) -> None:
    """It ends when it comes back from the method, and the actor goes on as if nothing had been."""
    path = tmp_path / "said"
    actor = KINDS[kind].remote()
    for _ in range(3):
        ref = method(actor, kind).remote(fork_and_return, str(path), result)
        if result == "exception":
            with pytest.raises(LookupError, match="parent"):
                ray.get(ref, timeout=PATIENCE_S)
        else:
            assert ray.get(ref, timeout=PATIENCE_S) == (bytes(300_000) if result == "large" else "parent")
        assert ray.get([actor.value.remote(i) for i in range(100)], timeout=PATIENCE_S) == list(range(100))
        for i in range(30):
            assert ray.get(actor.value.remote(i), timeout=PATIENCE_S) == i
    children = eventually(lambda: len(said(path)["child"]) == 3 and said(path)["child"], "three children")
    for child in children:
        eventually(lambda child=child: not alive(child), "the end of a child")


def test_a_fork_in_a_task(tmp_path: Any) -> None:
    f = ray.remote(fork_and_return)
    path = tmp_path / "said"
    assert ray.get([f.remote(str(path), "value") for _ in range(4)], timeout=PATIENCE_S) == ["parent"] * 4
    for child in eventually(lambda: len(said(path)["child"]) == 4 and said(path)["child"], "four children"):
        eventually(lambda child=child: not alive(child), "the end of a child")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_in_a_constructor(tmp_path: Any, kind: str) -> None:
    path = tmp_path / "said"
    actor = KINDS[kind].remote(fork_and_return, str(path), "value")
    assert ray.get(actor.get_made.remote(), timeout=PATIENCE_S) == "parent"
    assert [ray.get(actor.value.remote(i), timeout=PATIENCE_S) for i in range(30)] == list(range(30))
    (child,) = eventually(lambda: said(path)["child"], "a child")
    eventually(lambda: not alive(child), "the end of the child")


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_goes_on_by_itself_is_left_alone(tmp_path: Any, kind: str) -> None:
    def fork(path: str) -> int:
        pid = os.fork()
        if pid == 0:
            while not os.path.exists(path):
                threading.Event().wait(0.001)
            os._exit(5)
        return pid

    actor = KINDS[kind].remote()
    child = ray.get(method(actor, kind).remote(fork, str(tmp_path / "end")), timeout=PATIENCE_S)
    assert [ray.get(actor.value.remote(i), timeout=PATIENCE_S) for i in range(30)] == list(range(30))
    assert alive(child)
    (tmp_path / "end").touch()
    _, status = ray.get(actor.run.remote(os.waitpid, child, 0), timeout=PATIENCE_S)
    assert os.waitstatus_to_exitcode(status) == 5


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["plain", "threads", "coroutine"])
def test_pools_of_processes_inside(kind: str, start: str) -> None:
    def pool(start: str) -> list[int]:
        import multiprocessing

        with multiprocessing.get_context(start).Pool(2) as processes:
            return processes.map(abs, range(-5, 0))

    actor = KINDS[kind].remote()
    assert ray.get(method(actor, kind).remote(pool, start), timeout=PATIENCE_S) == [5, 4, 3, 2, 1]
    assert ray.get(actor.value.remote("well"), timeout=PATIENCE_S) == "well"


# -- children and signals -----------------------------------------------------------------------------------------------


def start_sleeper() -> int:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid


@pytest.mark.parametrize("end", ["scope", "kill", "crash", "exit"])
def test_what_an_actor_started_ends_with_it(end: str) -> None:
    actor = KINDS["plain"].remote()
    child = ray.get(actor.run.remote(start_sleeper))
    assert alive(child)
    if end == "kill":
        ray.kill(actor)
    elif end == "crash":
        actor.run.remote(os._exit, 1)
    elif end == "exit":
        actor.run.remote(sys.exit)
    del actor
    eventually(lambda: not alive(child), "the end of the actor's own child")


def test_signals_that_the_actor_handles() -> None:
    class Handles:
        def __init__(self) -> None:
            self.seen: list[int] = []
            signal.signal(signal.SIGUSR1, lambda number, frame: self.seen.append(number))

        def pid(self) -> int:
            return os.getpid()

        def seen_signals(self) -> list[int]:
            return self.seen

    actor = ray.remote(Handles).remote()
    os.kill(ray.get(actor.pid.remote()), signal.SIGUSR1)
    assert eventually(lambda: ray.get(actor.seen_signals.remote()), "the signal") == [signal.SIGUSR1]


@pytest.mark.parametrize("kind", ["plain", "threads", "async"])
def test_an_actor_that_is_stopped_goes_on_when_it_may(kind: str) -> None:
    actor = KINDS[kind].remote()
    pid = ray.get(actor.run.remote(os.getpid))
    os.kill(pid, signal.SIGSTOP)
    refs = [actor.value.remote(i) for i in range(50)]
    assert ray.wait(refs, timeout=0.02)[0] == []
    os.kill(pid, signal.SIGCONT)
    assert ray.get(refs, timeout=PATIENCE_S) == list(range(50))


def test_an_actor_that_closes_its_streams() -> None:
    actor = KINDS["plain"].remote()
    ray.get(actor.run.remote(lambda: (os.close(0), os.close(1), os.close(2), sys.stdout.close())))
    assert ray.get(actor.run.remote(lambda: print("nowhere") if False else 5), timeout=PATIENCE_S) == 5
    actor.run.remote(sys.exit)
    with pytest.raises(ActorDiedError):
        ray.get(actor.value.remote(), timeout=PATIENCE_S)


# -- output and environment ---------------------------------------------------------------------------------------------


def test_output_comes_out_where_the_driver_runs(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Talks:
            def __init__(self):
                print("from the constructor", flush=True)
            def talk(self, text, n=1):
                print(text * n)
                print("to the other stream", file=sys.stderr)
                os.write(1, b"raw bytes \\xff\\n")
                return n
            async def later(self):
                print("from a coroutine")
            def leave(self):
                print("last words", end="")
                ray.actor.exit_actor()
        actor = Talks.remote()
        ray.get([actor.talk.remote("short line"), actor.talk.remote("\\u00e4\\u20ac", 3), actor.talk.remote("x", 100_000)])
        ray.get(actor.later.remote())
        ray.wait([actor.leave.remote()])
        print("the end")
        """,
        PYTHONIOENCODING="utf-8:backslashreplace",
    )
    process: Any = program._process
    out, errors = process.communicate(timeout=PATIENCE_S)
    text = out.decode("utf-8", "replace")
    assert process.returncode == 0, errors
    for line in ("from the constructor", "short line", "ä€ä€ä€", "x" * 100_000, "from a coroutine", "last words", "the end"):
        assert line in text
    assert errors.decode().count("to the other stream") == 3


def test_the_environment_and_directory_of_the_driver(script: Callable[..., Script], tmp_path: Any) -> None:
    program = script(
        f"""
        os.chdir({str(tmp_path)!r})
        ray.init(num_cpus=1, runtime_env={{"env_vars": {{"FOR_WORKERS": "yes"}}}})
        @ray.remote
        class Looks:
            def __init__(self):
                self.seen = os.getcwd(), os.environ.get("FOR_WORKERS"), os.environ.get("FROM_OUTSIDE")
            def look(self):
                return self.seen
        say("seen", *ray.get(Looks.remote().look.remote()))
        """,
        FROM_OUTSIDE="too",
    )
    assert program.until("seen") == f"{tmp_path} yes too"
    assert program.finish()[::2] == (0, "")


def test_a_node_that_may_open_no_more_files_starts_no_more_and_goes_on(script: Callable[..., Script]) -> None:
    program = script(
        """
        import resource

        @ray.remote(num_cpus=0)
        class Actor:
            def pid(self):
                return os.getpid()

        resource.setrlimit(resource.RLIMIT_NOFILE, (180, 180))  # each process of the node takes three files of its agent
        start(log_to_driver=False)
        first = Actor.remote()
        pid = ray.get(first.pid.remote())
        others = [Actor.remote() for _ in range(60)]
        calls = [other.pid.remote() for other in others]
        ready, rest = ray.wait(calls, num_returns=5)
        assert ray.get(first.pid.remote()) == pid and len(ready) == 5
        say("alive")
        """
    )
    program.until("alive")
    assert program.finish()[0] == 0
