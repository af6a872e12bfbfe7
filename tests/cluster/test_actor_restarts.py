"""Actors that are started again: how often, with what, and what becomes of the calls that were under way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from zray.util.state import list_actors

from .driving import PATIENCE_S, alive, eventually
from .modes import crash, in_local_mode

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@pytest.fixture(scope="module")
def cluster(local_mode: bool) -> Iterator[Any]:
    """One cluster for the file, where actors that die again and again are not waited for so long."""
    with ray.init(num_cpus=2, local_mode=local_mode, _system_config={"actor_restart_delay_ms": 10.0}) as context:
        yield context


def note(path: Any, text: str = "x") -> int:
    """Add a line to a file; how many there are now."""
    with open(path, "a+", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        file.seek(0)
        return len(file.readlines())


def lines(path: Any) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


@ray.remote
class Fragile:
    """Counts, and ends in many ways; notes each of its lives in a file."""

    def __init__(self, path: Any = None, kept: Any = None) -> None:
        self.count = 0
        self.path = path
        self.kept = kept
        if path is not None:
            self.life = note(path)

    def add(self) -> int:
        self.count += 1
        return self.count

    def get(self) -> Any:
        return self.kept

    def pid(self) -> int:
        return os.getpid()

    def lives(self) -> int:
        return self.life

    def restarted(self) -> bool:
        return ray.get_runtime_context().was_current_actor_reconstructed

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def die_until(self, life: int) -> int:
        if self.life < life:
            crash()
        return self.life

    def wait_for(self, path: str) -> str:
        """Wait until a file is there."""
        for _ in range(int(PATIENCE_S * 1000)):
            if os.path.exists(path):
                break
            threading.Event().wait(0.001)
        return path


def row(handle: Any) -> dict[str, Any]:
    (found,) = [row for row in list_actors() if row["actor_id"] == handle._actor_id.hex()]
    return found


def kill_process(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), "the end of a process")


# -- restarts -----------------------------------------------------------------------------------------------------------

CRASHES: dict[str, Any] = {
    "os._exit": lambda: os._exit(1),
    "os._exit(0)": lambda: os._exit(0),
    "sys.exit(1)": lambda: sys.exit(1),
    "sys.exit with words": lambda: sys.exit("words"),
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "abort": os.abort,
}


_ENDS_PROCESS = pytest.mark.processes("it ends a process")


@pytest.mark.parametrize(
    "way", [way if way.startswith("sys.") else pytest.param(way, marks=_ENDS_PROCESS) for way in CRASHES]
)
def test_an_actor_that_crashed_starts_again_from_the_beginning(way: str) -> None:
    actor = Fragile.options(max_restarts=1).remote(kept="the same argument")
    assert ray.get([actor.add.remote() for _ in range(3)]) == [1, 2, 3]
    first = ray.get(actor.pid.remote())
    assert ray.get(actor.restarted.remote()) is False
    with pytest.raises(ActorUnavailableError, match="is restarting because its process ended") as caught:
        ray.get(actor.run.remote(CRASHES[way]), timeout=PATIENCE_S)
    assert caught.value.actor_id == actor._actor_id.hex()
    assert ray.get([actor.add.remote(), actor.add.remote()], timeout=PATIENCE_S) == [1, 2]
    assert ray.get(actor.get.remote()) == "the same argument"
    assert ray.get(actor.restarted.remote()) is True
    assert (ray.get(actor.pid.remote()) == first) == in_local_mode()
    assert (row(actor)["restarts"], row(actor)["state"]) == (1, "ALIVE")


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_no_more_restarts_than_allowed(tmp_path: Any, restarts: int) -> None:
    actor = Fragile.options(max_restarts=restarts).remote(tmp_path / "lives")
    for _ in range(restarts):
        with pytest.raises(ActorUnavailableError):
            ray.get(actor.run.remote(crash), timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError, match="max_restarts allows more"):
        ray.get(actor.run.remote(crash), timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError, match=f"restarted {restarts} time" if restarts else "may not be restarted"):
        ray.get(actor.add.remote(), timeout=PATIENCE_S)
    assert len(lines(tmp_path / "lives")) == restarts + 1


def test_restarts_without_end(tmp_path: Any) -> None:
    actor = Fragile.options(max_restarts=-1, max_task_retries=-1).remote(tmp_path / "lives")
    assert ray.get(actor.die_until.remote(5), timeout=PATIENCE_S) == 5
    assert row(actor)["restarts"] == 4


@pytest.mark.processes("it ends a process")
def test_a_constructor_that_crashes_is_run_again(tmp_path: Any) -> None:
    @ray.remote(max_restarts=2)
    class Late:
        def __init__(self) -> None:
            if note(tmp_path / "lives") < 3:
                os._exit(1)

        def ok(self) -> str:
            return "at last"

    assert ray.get(Late.remote().ok.remote(), timeout=PATIENCE_S) == "at last"
    with pytest.raises(ActorDiedError, match="exited with code 1"):
        (tmp_path / "lives").unlink()
        ray.get(Late.options(max_restarts=1).remote().ok.remote(), timeout=PATIENCE_S)


@pytest.mark.processes("it ends a process")
def test_a_constructor_that_raises_when_it_is_run_again_ends_the_actor(tmp_path: Any) -> None:
    @ray.remote(max_restarts=5, max_task_retries=5)
    class OnlyOnce:
        def __init__(self) -> None:
            if note(tmp_path / "lives") > 1:
                raise LookupError("not again")

        def crash(self) -> None:
            os._exit(1)

    actor = OnlyOnce.remote()
    with pytest.raises(ActorDiedError, match="not again") as caught:
        ray.get(actor.crash.remote(), timeout=PATIENCE_S)
    assert isinstance(caught.value.cause, LookupError)
    assert len(lines(tmp_path / "lives")) == 2


@pytest.mark.parametrize("way", ["exit_actor", "sys.exit", "kill", "scope"])
def test_an_end_that_was_wanted_is_no_crash(tmp_path: Any, way: str) -> None:
    actor = Fragile.options(max_restarts=-1, max_task_retries=-1).remote(tmp_path / "lives")
    pid = ray.get(actor.pid.remote())
    if way == "kill":
        ray.kill(actor)
    elif way == "scope":
        del actor
    else:
        ref = actor.run.remote(ray.actor.exit_actor if way == "exit_actor" else sys.exit)
        with pytest.raises(ActorDiedError):
            ray.get(ref, timeout=PATIENCE_S)
    eventually(lambda: in_local_mode() or not alive(pid), "its end")
    if way != "scope":
        with pytest.raises(ActorDiedError):
            ray.get(actor.add.remote(), timeout=PATIENCE_S)
    assert len(lines(tmp_path / "lives")) == 1


def test_a_kill_that_allows_a_restart(tmp_path: Any) -> None:
    actor = Fragile.options(max_restarts=1).remote(tmp_path / "lives")
    assert ray.get(actor.lives.remote()) == 1
    ray.kill(actor, no_restart=False)
    eventually(lambda: len(lines(tmp_path / "lives")) == 2, "the second life")
    eventually(lambda: row(actor)["state"] == "ALIVE", "the end of the constructor")
    assert ray.get(actor.lives.remote(), timeout=PATIENCE_S) == 2
    ray.kill(actor, no_restart=False)
    eventually(lambda: row(actor)["state"] == "DEAD", "the end")
    with pytest.raises(ActorDiedError, match="restarted 1 time"):
        ray.get(actor.lives.remote(), timeout=PATIENCE_S)


@pytest.mark.processes("it ends a process")
def test_a_kill_while_it_restarts_is_final(tmp_path: Any) -> None:
    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Slow:
        def __init__(self) -> None:
            if note(tmp_path / "lives") > 1:
                threading.Event().wait(PATIENCE_S)

        def crash(self) -> None:
            os._exit(1)

    actor = Slow.remote()
    ref = actor.crash.remote()
    eventually(lambda: len(lines(tmp_path / "lives")) == 2, "the second life")
    ray.kill(actor)
    with pytest.raises(ActorDiedError, match="kill"):
        ray.get(ref, timeout=PATIENCE_S)


@pytest.mark.processes("it ends a process")
def test_children_are_made_again_by_the_constructor() -> None:
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Parent:
        def __init__(self) -> None:
            self.child = Fragile.remote()

        def pids(self) -> tuple[int, int]:
            return os.getpid(), ray.get(self.child.pid.remote())

    parent = Parent.remote()
    old = ray.get(parent.pids.remote())
    kill_process(old[0])
    new = ray.get(parent.pids.remote(), timeout=PATIENCE_S)
    assert not set(old) & set(new)
    eventually(lambda: not alive(old[1]), "the end of the first child")


@pytest.mark.processes("it ends a process")
@pytest.mark.parametrize("size", [1, 300_000])
@pytest.mark.parametrize("way", ["put", "task", "nested", "plain"])
def test_constructor_arguments_are_there_for_every_restart(size: int, way: str) -> None:
    argument: Any
    if way == "task":
        argument = ray.remote(np.ones).remote(size)
    elif way == "nested":
        argument = [ray.put(np.ones(size))]
    else:
        argument = np.ones(size) if way == "plain" else ray.put(np.ones(size))
    actor = Fragile.options(max_restarts=2, max_task_retries=2).remote(None, argument)
    del argument

    def total() -> Any:
        value = ray.get(actor.get.remote(), timeout=PATIENCE_S)
        return (ray.get(value[0]) if way == "nested" else value).sum()

    assert total() == size
    for _ in range(2):
        kill_process(ray.get(actor.pid.remote(), timeout=PATIENCE_S))
        others = [ray.put(np.zeros(300_000)) for _ in range(3)]  # what was freed is used again
        assert total() == size
        del others


@pytest.mark.processes("it ends a process")
def test_a_detached_actor_without_an_owner_restarts(tmp_path: Any) -> None:
    @ray.remote(max_calls=1)
    def make(path: Any) -> int:
        Fragile.options(name="survivor", lifetime="detached", max_restarts=1, max_task_retries=1).remote(path, "small")
        return os.getpid()

    maker = ray.get(make.remote(tmp_path / "lives"))
    eventually(lambda: not alive(maker), "the end of its owner")
    actor = ray.get_actor("survivor")
    kill_process(ray.get(actor.pid.remote(), timeout=PATIENCE_S))
    assert ray.get([actor.get.remote(), actor.lives.remote()], timeout=PATIENCE_S) == ["small", 2]
    ray.kill(actor)


@pytest.mark.processes("it ends a process")
def test_restarts_take_longer_when_it_keeps_dying(tmp_path: Any) -> None:
    """It does not burn the machine: while others work as usual, it dies a few times and not hundreds of times."""

    @ray.remote(max_restarts=-1)
    class Stillborn:
        def __init__(self) -> None:
            note(tmp_path / "lives")
            os._exit(1)

    actor = Stillborn.remote()
    eventually(lambda: len(lines(tmp_path / "lives")) >= 3, "a second restart")
    others = [Fragile.remote() for _ in range(20)]
    assert ray.get([other.add.remote() for other in others], timeout=PATIENCE_S) == [1] * 20
    assert len(lines(tmp_path / "lives")) < 20
    assert row(actor)["state"] == "RESTARTING"
    ray.kill(actor)


# -- retries ------------------------------------------------------------------------------------------------------------


def test_a_call_under_way_fails_and_those_behind_it_too() -> None:
    actor = Fragile.options(max_restarts=1).remote()
    ray.get(actor.add.remote())
    refs = [actor.run.remote(crash), *[actor.add.remote() for _ in range(5)]]
    for ref in refs:
        with pytest.raises(ActorUnavailableError, match="may have run or not"):
            ray.get(ref, timeout=PATIENCE_S)
    assert ray.get(actor.add.remote(), timeout=PATIENCE_S) == 1


def test_calls_made_while_it_restarts_wait_for_it(tmp_path: Any) -> None:
    @ray.remote(max_restarts=1)
    class Slow(Fragile.__wrapped__):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__(tmp_path / "lives")
            if self.life > 1:
                self.wait_for(str(tmp_path / "go on"))

    actor: Any = Slow.remote()
    with pytest.raises(ActorUnavailableError):
        ray.get(actor.run.remote(crash), timeout=PATIENCE_S)
    refs = [actor.add.remote() for _ in range(3)]
    assert ray.wait(refs, timeout=0)[0] == []
    assert row(actor)["state"] == "RESTARTING"
    (tmp_path / "go on").touch()
    assert ray.get(refs, timeout=PATIENCE_S) == [1, 2, 3]


@pytest.mark.parametrize("where", ["class", "method", "call"])
def test_calls_are_sent_again_as_often_as_allowed(tmp_path: Any, where: str) -> None:
    class Retried(Fragile.__wrapped__):  # type: ignore[misc,name-defined]
        @ray.method(max_task_retries=2 if where == "method" else 0)
        def marked(self, life: int) -> int:
            return self.die_until(life)

    cls = ray.remote(Retried).options(max_restarts=-1, max_task_retries=2 if where == "class" else 0)

    def call(life: int, path: Any) -> Any:
        actor: Any = cls.remote(path)
        if where == "method":
            return actor, actor.marked.remote(life)
        if where == "call":
            return actor, actor.die_until.options(max_task_retries=2).remote(life)
        return actor, actor.die_until.remote(life)

    enough = call(3, tmp_path / "enough")
    too_few = call(4, tmp_path / "too few")
    assert ray.get(enough[1], timeout=PATIENCE_S) == 3
    with pytest.raises(ActorUnavailableError):
        ray.get(too_few[1], timeout=PATIENCE_S)
    assert ray.get(too_few[0].lives.remote(), timeout=PATIENCE_S) == 4


def test_retries_end_with_the_restarts(tmp_path: Any) -> None:
    actor = Fragile.options(max_restarts=2, max_task_retries=-1).remote(tmp_path / "lives")
    with pytest.raises(ActorDiedError, match="restarted 2 time"):
        ray.get(actor.die_until.remote(100), timeout=PATIENCE_S)
    assert len(lines(tmp_path / "lives")) == 3


@pytest.mark.parametrize(
    ("retry", "attempts"),
    [(True, 3), ([ValueError], 3), ([KeyError, LookupError, ValueError], 3), ([KeyError], 1), ([], 1), (False, 1), (None, 1)],
)
@pytest.mark.parametrize("where", ["method", "call"])
def test_exceptions_are_retried_if_told(tmp_path: Any, retry: Any, attempts: int, where: str) -> None:
    class Raises:
        @ray.method(retry_exceptions=retry if where == "method" else False)
        def fail(self, path: Any) -> None:
            note(path)
            raise ValueError("again")

    actor: Any = ray.remote(Raises).options(max_task_retries=2).remote()
    call = actor.fail if where == "method" else actor.fail.options(retry_exceptions=retry)
    with pytest.raises(ValueError, match="again"):
        ray.get(call.remote(tmp_path / "attempts"), timeout=PATIENCE_S)
    assert len(lines(tmp_path / "attempts")) == attempts


def test_an_exception_that_goes_away_leaves_the_state(tmp_path: Any) -> None:
    @ray.remote
    class Flaky:
        def __init__(self) -> None:
            self.count = 0

        @ray.method(max_task_retries=-1, retry_exceptions=[OSError], num_returns=2)
        def work(self) -> tuple[int, bytes]:
            self.count += 1
            if self.count < 5:
                raise ConnectionError
            return self.count, bytes(300_000)

    count, data = Flaky.remote().work.remote()
    assert (ray.get(count, timeout=PATIENCE_S), len(ray.get(data))) == (5, 300_000)


def test_without_retries_an_exception_is_final() -> None:
    @ray.remote
    class Flaky:
        @ray.method(retry_exceptions=True)
        def work(self) -> None:
            raise OSError("once")

    with pytest.raises(RayTaskError, match="once"):
        ray.get(Flaky.remote().work.remote(), timeout=PATIENCE_S)


# -- under load ---------------------------------------------------------------------------------------------------------


class Journal:
    """Writes down what it does, for those who come after it."""

    def __init__(self, path: Any) -> None:
        self.life = note(f"{path}.lives")
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - as long as it lives

    def write(self, caller: int, number: int, filler: bytes = b"") -> tuple[int, int]:
        self.file.write(f"{os.getpid()} {self.life} {caller} {number}\n")
        return caller, number

    async def write_async(self, caller: int, number: int, filler: bytes = b"") -> tuple[int, int]:
        return self.write(caller, number)


class OrdinaryJournal:
    __init__ = Journal.__init__
    write = Journal.write


def call_often(journals: list[Any], method: str, caller: int, count: int) -> bool:
    big = bytes(200_000)
    write = getattr(journals[0], method)
    refs = [write.remote(caller, i, big if i % 40 == 0 else b"") for i in range(count)]
    return bool(ray.get(refs, timeout=PATIENCE_S) == [(caller, i) for i in range(count)])


def written(path: Any) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in lines(path) if line.count(" ") == 3]


@pytest.mark.processes("it ends a process")
@pytest.mark.parametrize("kind", ["ordered", "threads", "async"])
def test_four_callers_and_an_actor_that_is_killed_again_and_again(tmp_path: Any, kind: str) -> None:
    """Nothing is lost, nothing is done twice by the same process, and each process of a plain actor sees its callers' order."""
    path, count, deaths = str(tmp_path / "journal"), 300, 4
    cls = ray.remote(Journal if kind == "async" else OrdinaryJournal)
    method = "write_async" if kind == "async" else "write"
    more = {"max_concurrency": 4} if kind == "threads" else {}
    journal = cls.options(max_restarts=-1, max_task_retries=-1, **more).remote(path)
    callers = [ray.remote(num_cpus=0)(call_often).remote([journal], method, i, count) for i in range(3)]
    mine = [getattr(journal, method).remote(3, i) for i in range(count)]
    for death in range(deaths):
        target = (death + 1) * count // 2
        rows = eventually(lambda target=target: len(found := written(path)) >= target and found, "progress")
        try:
            os.kill(rows[-1][0], signal.SIGKILL)
        except ProcessLookupError:
            continue
    assert ray.get(mine, timeout=PATIENCE_S) == [(3, i) for i in range(count)]
    assert ray.get(callers, timeout=PATIENCE_S) == [True] * 3
    assert len(lines(f"{path}.lives")) > 1
    seen: dict[tuple[int, int], list[int]] = {}
    for _, life, caller, number in written(path):
        seen.setdefault((life, caller), []).append(number)
    for caller in range(4):
        everything = [numbers for (_, by), numbers in seen.items() if by == caller]
        assert set().union(*everything) == set(range(count))
        for numbers in everything:
            assert len(set(numbers)) == len(numbers)
            assert kind != "ordered" or numbers == sorted(numbers)


@pytest.mark.processes("it ends a process")
def test_calls_with_and_without_retries_under_load(tmp_path: Any) -> None:
    """Every call has a result or an error that says what happened; the ones with retries have results."""
    path = str(tmp_path / "journal")
    journal = ray.remote(OrdinaryJournal).options(max_restarts=-1).remote(path)
    refs = []
    for i in range(400):
        refs.append(journal.write.options(max_task_retries=-1 if i % 2 else 0).remote(0, i))
        if i % 100 == 50:
            rows = eventually(lambda: written(path), "progress")
            try:
                os.kill(rows[-1][0], signal.SIGKILL)
            except ProcessLookupError:
                continue
    failed = 0
    for i, ref in enumerate(refs):
        try:
            assert ray.get(ref, timeout=PATIENCE_S) == (0, i)
        except ActorUnavailableError:
            failed += 1
            assert i % 2 == 0
    numbers = {row[3] for row in written(path)}
    assert set(range(1, 400, 2)) <= numbers
    assert len(numbers) >= 400 - failed
