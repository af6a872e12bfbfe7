"""Cancelling calls of actors: plain, threaded and asynchronous ones, before they begin and while they run."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import ActorDiedError, TaskCancelledError

from .driving import eventually

pytestmark = pytest.mark.usefixtures("no_actor_left")

PATIENCE_S = 60


@ray.remote
class Plain:
    """Its calls run until there is a file, or until they are told to end."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def hold(self, begun: str, path: str) -> str:
        Path(begun).touch()
        context = ray.get_runtime_context()
        while not os.path.exists(path) and not context.is_canceled():
            time.sleep(0.005)
        self.log.append(f"{Path(begun).name} {context.is_canceled()}")
        return "held"

    def parent(self, begun: str, child: str, path: str) -> None:
        hold = ray.remote(num_cpus=0)(wait_for)
        refs = [hold.remote(child, path)]
        Path(begun).touch()
        while not ray.get_runtime_context().is_canceled():
            time.sleep(0.005)
        del refs

    def hold_for_ever(self, begun: str) -> None:
        if os.path.exists(begun):
            raise AssertionError("it was sent again")
        Path(begun).touch()
        time.sleep(PATIENCE_S * 10)

    def logged(self) -> list[str]:
        return self.log


@ray.remote
class Async:
    def __init__(self) -> None:
        self.log: list[str] = []

    async def hold(self, begun: str, how: str = "") -> str:
        Path(begun).touch()
        try:
            await asyncio.sleep(PATIENCE_S * 10)
        except asyncio.CancelledError:
            self.log.append(Path(begun).name)
            if how != "catches":
                raise
        return "held"

    async def waits(self, begun: str, refs: Any) -> Any:
        Path(begun).touch()
        return await refs[0]

    async def asks(self) -> None:
        ray.get_runtime_context().is_canceled()

    async def logged(self) -> list[str]:
        return self.log


def wait_for(begun: str, path: str) -> None:
    try:
        os.mkdir(begun)  # in one step: an interrupt between those of ``touch`` would leave the file open
        while not os.path.exists(path):
            time.sleep(0.005)
    finally:
        Path(f"{begun}-ended").touch()


def cancelled(ref: Any) -> TaskCancelledError:
    with pytest.raises(TaskCancelledError) as caught:
        ray.get(ref, timeout=PATIENCE_S)
    return caught.value


def begun(path: Path) -> None:
    eventually(path.exists, f"the begin of a call ({path.name})")


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_waits_for_its_turn_never_begins(tmp_path: Path, threads: int) -> None:
    actor = Plain.options(max_concurrency=threads).remote()
    running = [actor.hold.remote(str(tmp_path / f"running{n}"), str(tmp_path / "open")) for n in range(threads)]
    for n in range(threads):
        begun(tmp_path / f"running{n}")
    queued = [actor.hold.remote(str(tmp_path / f"queued{n}"), str(tmp_path / "open")) for n in range(4)]
    for ref in queued[:3]:
        ray.cancel(ref)
    for ref in queued[:3]:
        assert "Plain.hold() (task" in str(cancelled(ref)), "at once: the others run still"
    (tmp_path / "open").touch()
    assert ray.get([*running, queued[3]], timeout=PATIENCE_S) == ["held"] * (threads + 1)
    assert not list(tmp_path.glob("queued[0-2]"))


@pytest.mark.parametrize("threads", [1, 2])
def test_a_call_that_runs_is_told_and_its_result_is_dropped(tmp_path: Path, threads: int) -> None:
    actor = Plain.options(max_concurrency=threads).remote()
    ref = actor.hold.remote(str(tmp_path / "first"), str(tmp_path / "never"))
    begun(tmp_path / "first")
    ray.cancel(ref)
    cancelled(ref)
    second = actor.hold.remote(str(tmp_path / "second"), str(tmp_path / "open"))
    begun(tmp_path / "second")
    (tmp_path / "open").touch()
    assert ray.get(second, timeout=PATIENCE_S) == "held"
    assert ray.get(actor.logged.remote()) == ["first True", "second False"]


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_call_has_submitted_is_cancelled_too(tmp_path: Path, threads: int) -> None:
    actor = Plain.options(max_concurrency=threads).remote()
    ref = actor.parent.remote(str(tmp_path / "begun"), str(tmp_path / "child"), str(tmp_path / "never"))
    begun(tmp_path / "begun")
    begun(tmp_path / "child")
    ray.cancel(ref)
    cancelled(ref)
    begun(tmp_path / "child-ended")


def test_a_call_whose_actor_is_not_there_yet(tmp_path: Path) -> None:
    argument = ray.remote(num_cpus=0)(wait_for).remote(str(tmp_path / "begun"), str(tmp_path / "never"))
    late = Async.remote()
    ref = late.waits.remote("", argument)
    behind = late.logged.remote()
    ray.cancel(ref)
    cancelled(ref)
    assert ray.get(behind, timeout=PATIENCE_S) == []
    ray.cancel(argument)
    cancelled(argument)


def test_an_ordered_call_that_waits_for_an_argument_keeps_nobody(tmp_path: Path) -> None:
    actor = Plain.remote()
    argument = ray.remote(num_cpus=0)(wait_for).remote(str(tmp_path / "begun"), str(tmp_path / "open"))
    ref = actor.hold.remote(argument, "")
    behind = actor.logged.remote()
    ray.cancel(ref)
    assert ray.get(behind, timeout=PATIENCE_S) == []
    cancelled(ref)
    (tmp_path / "open").touch()
    ray.get(argument)


def test_a_coroutine_is_cancelled(tmp_path: Path) -> None:
    actor = Async.remote()
    refs = [actor.hold.remote(str(tmp_path / f"{n}"), "catches" if n == 2 else "") for n in range(3)]
    for n in range(3):
        begun(tmp_path / f"{n}")
    for ref in refs:
        ray.cancel(ref)
        ray.cancel(ref)
    for ref in refs:
        cancelled(ref)
    assert sorted(ray.get(actor.logged.remote(), timeout=PATIENCE_S)) == ["0", "1", "2"]


def test_coroutines_that_wait_for_their_turn_never_begin(tmp_path: Path) -> None:
    actor = Async.options(max_concurrency=1).remote()
    running = actor.hold.remote(str(tmp_path / "running"))
    queued = [actor.hold.remote(str(tmp_path / f"queued{n}")) for n in range(3)]
    begun(tmp_path / "running")
    for ref in queued:
        ray.cancel(ref)
        cancelled(ref)
    ray.cancel(running)
    cancelled(running)
    assert ray.get(actor.logged.remote(), timeout=PATIENCE_S) == ["running"]
    assert not list(tmp_path.glob("queued*"))


def test_a_coroutine_that_awaits_a_reference(tmp_path: Path) -> None:
    actor = Async.remote()
    argument = ray.remote(num_cpus=0)(wait_for).remote(str(tmp_path / "argument"), str(tmp_path / "open"))
    ref = actor.waits.remote(str(tmp_path / "begun"), [argument])
    begun(tmp_path / "begun")
    ray.cancel(ref)
    cancelled(ref)
    (tmp_path / "open").touch()
    ray.get(argument)  # that was not cancelled: it is not a child


def test_many_coroutines_cancelled_at_any_time() -> None:
    @ray.remote
    class Sleeper:
        async def sleep(self, n: int) -> int:
            await asyncio.sleep(0.0005 * (n % 7))
            return n

    actor = Sleeper.options(max_concurrency=20).remote()
    for _ in range(5):
        refs = [actor.sleep.remote(n) for n in range(100)]
        for n, ref in enumerate(refs):
            if n % 2:
                ray.cancel(ref)
        for n, ref in enumerate(refs):
            try:
                assert ray.get(ref, timeout=PATIENCE_S) == n
            except TaskCancelledError:
                assert n % 2


def test_a_call_is_never_forced() -> None:
    actor = Plain.remote()
    ref = actor.logged.remote()
    with pytest.raises(ValueError, match=r"zray\.kill"):
        ray.cancel(actor.hold.remote(os.devnull, "/never"), force=True)
    assert ray.get(ref, timeout=PATIENCE_S) == []
    ray.kill(actor)


def test_calls_of_a_dead_actor(tmp_path: Path) -> None:
    actor = Plain.options(max_restarts=-1, max_task_retries=-1).remote()
    ref = actor.hold.remote(str(tmp_path / "begun"), str(tmp_path / "never"))
    begun(tmp_path / "begun")
    ray.kill(actor)
    with pytest.raises(ActorDiedError):
        ray.get(ref, timeout=PATIENCE_S)
    ray.cancel(ref)
    with pytest.raises(ActorDiedError):
        ray.get(ref)


@pytest.mark.processes("a thread that sleeps is not killed in local mode")
def test_a_call_that_was_cancelled_is_not_sent_again_when_its_actor_restarts(tmp_path: Path) -> None:
    actor = Plain.options(max_restarts=1, max_task_retries=-1).remote()
    ref = actor.hold_for_ever.remote(str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    ray.cancel(ref)
    ray.kill(actor, no_restart=False)
    cancelled(ref)
    assert ray.get(actor.logged.remote(), timeout=PATIENCE_S) == []


def test_is_canceled_is_not_for_asynchronous_actors() -> None:
    actor = Async.remote()
    with pytest.raises(RuntimeError, match="CancelledError"):
        ray.get(actor.asks.remote(), timeout=PATIENCE_S)
