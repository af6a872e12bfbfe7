"""How long actors live: as long as a handle of theirs does anywhere, until they are ended, and not a moment after their owner."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import ActorDiedError
from zray.util.state import list_actors

from .actors import Box, Gate
from .driving import PATIENCE_S, Script, alive, eventually, processes_of
from .modes import crash, held, in_local_mode

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


def gone(pid: int) -> None:
    """Wait for the end of an actor's process; in local mode the fixtures look for the ends of actors and threads."""
    eventually(lambda: in_local_mode() or not alive(pid), f"the end of process {pid}")


def wait_for(gate: Any, function: Any, *args: Any) -> Any:
    """In a task: wait until a gate is open, then call a function."""
    ray.get(gate.passed.remote())
    return function(*args)


later = ray.remote(num_cpus=0)(wait_for)


def ask_pid(handles: list[Any]) -> int:
    return int(ray.get(handles[0].pid.remote()))


# -- handles that travel ------------------------------------------------------------------------------------------------


def test_the_end_of_the_last_handle_is_the_end_of_the_process() -> None:
    keeper = Box.remote()
    copy = keeper
    pid = ray.get(keeper.pid.remote())
    del keeper
    assert ray.get(copy.pid.remote()) == pid
    del copy
    gone(pid)


def test_a_reference_to_a_result_does_not_keep_the_actor() -> None:
    keeper = Box.remote()
    ref = keeper.pid.remote()
    del keeper
    gone(ray.get(ref))
    assert ray.get(ref) > 0


def test_calls_that_were_submitted_are_finished() -> None:
    gate = Gate.remote()
    keeper = Box.remote()
    pid = keeper.pid.remote()
    refs = [keeper.run.remote(wait_for, gate, int, i) for i in range(20)]
    del keeper
    assert ray.wait(refs, timeout=0)[0] == []
    ray.get(gate.open.remote())
    assert ray.get(refs, timeout=PATIENCE_S) == list(range(20))
    gone(ray.get(pid))


def test_an_actor_for_one_call() -> None:
    gate = Gate.remote()
    ref = Box.remote(gate.passed.remote(5)).get.remote()
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == 5


def test_an_actor_dropped_before_its_constructor_could_run() -> None:
    gate = Gate.remote()
    keeper = Box.remote(gate.passed.remote())
    del keeper
    eventually(
        lambda: [row["state"] for row in list_actors() if row["class_name"] == "Box" and row["pid"] == 0][-1:] == ["DEAD"],
        "the end of an actor that never started",
    )
    ray.get(gate.open.remote())


@pytest.mark.parametrize("way", ["argument", "nested", "closure of a call"])
def test_a_handle_in_the_arguments_of_a_task(way: str) -> None:
    gate, keeper = Gate.remote(), Box.remote()
    pid = ray.get(keeper.pid.remote())
    if way == "argument":
        ref = later.remote(gate, lambda handle: ask_pid([handle]), keeper)
    elif way == "nested":
        ref = later.remote(gate, lambda value: ask_pid(value["handles"]), {"handles": (keeper, 1)})
    else:
        ref = later.remote(gate, lambda keeper=keeper: ask_pid([keeper]))
    del keeper
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == pid
    gone(pid)


def test_a_handle_in_the_arguments_of_a_call() -> None:
    gate, keeper = Gate.remote(), Box.remote()
    other = Box.remote()
    pid = ray.get(keeper.pid.remote())
    ref = other.run.remote(wait_for, gate, ask_pid, [keeper])
    del keeper
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == pid
    gone(pid)


def test_a_handle_kept_by_another_actor() -> None:
    keeper, other = Box.remote(), Box.remote()
    pid = ray.get(keeper.pid.remote())
    ray.get(other.set.remote([keeper]))
    del keeper
    returned = ray.get(other.get.remote())
    assert ask_pid(returned) == pid
    ray.get(other.set.remote(None))
    assert ask_pid(returned) == pid
    del returned
    gone(pid)


def test_a_handle_kept_by_an_actor_that_is_killed() -> None:
    keeper, other = Box.remote(), Box.remote()
    pid = ray.get(keeper.pid.remote())
    ray.get(other.set.remote([keeper]))
    del keeper
    assert ask_pid(ray.get(other.get.remote())) == pid
    ray.kill(other)
    gone(pid)


def test_a_handle_inside_an_object() -> None:
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    small, large = ray.put([keeper]), ray.put([keeper, bytes(300_000)])
    del keeper
    assert ask_pid(ray.get(small)) == pid
    del small
    assert ask_pid(ray.get(large)) == pid
    box = ray.put([large])
    del large
    assert ray.get(ray.remote(lambda box: ask_pid(ray.get(box[0]))).remote(box)) == pid
    del box
    gone(pid)


def test_a_handle_returned_by_a_task() -> None:
    @ray.remote
    def make() -> Any:
        keeper = Box.remote(5)
        return keeper, keeper.pid.remote()

    keeper, pid_ref = ray.get(make.remote())
    pid = ray.get(pid_ref)
    assert ray.get(keeper.get.remote()) == 5
    again = ray.get(ray.remote(lambda handle: [handle]).remote(keeper))
    del keeper
    assert ask_pid(again) == pid
    del again
    gone(pid)


def test_a_handle_passed_along_many_hands() -> None:
    @ray.remote
    def pass_on(handles: list[Any], hands: int) -> Any:
        return ray.get(pass_on.remote(handles, hands - 1)) if hands else handles

    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    ref = pass_on.remote([keeper], 5)
    del keeper
    result = ray.get(ref, timeout=PATIENCE_S)
    del ref
    assert ask_pid(result) == pid
    del result
    gone(pid)


def test_a_handle_of_itself_does_not_keep_an_actor() -> None:
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())

    ray.get(keeper.set_myself.remote())
    assert ray.get(keeper.get.remote()) == keeper
    del keeper
    gone(pid)


def test_a_handle_that_an_actor_gives_of_itself_is_a_handle() -> None:
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    myself = ray.get(keeper.run.remote(lambda: ray.get_runtime_context().current_actor))
    del keeper
    assert ray.get(myself.pid.remote()) == pid
    del myself
    gone(pid)


@pytest.mark.parametrize("kind", ["plain", "threads", "async", "constructor"])
def test_what_an_actor_does_for_nobody_does_not_keep_it(script: Callable[..., Script], kind: str) -> None:
    """A method that it called itself and that never returns, or a constructor."""
    program = script(
        f"""
        start()
        class Loops:
            def __init__(self, path):
                with open(path, "w") as file:
                    print(os.getpid(), file=file)
                if {kind!r} == "constructor":
                    time.sleep(1000)
            def begin(self):
                ray.get_runtime_context().current_actor.for_ever.remote()
            def for_ever(self):
                while True:
                    time.sleep(0.001)
        if {kind!r} == "async":
            async def nothing(self):
                pass
            Loops.nothing = nothing
        path = os.path.join(os.environ["ZRAY_TMPDIR"], "pid")
        actor = ray.remote(Loops).options(max_concurrency={3 if kind == "threads" else 1}).remote(path)
        if {kind!r} != "constructor":
            ray.get(actor.begin.remote())
        while not os.path.exists(path) or not open(path).read().endswith("\\n"):
            time.sleep(0.001)
        say("pid", open(path).read())
        del actor
        sys.stdin.read()
        """,
        ZRAY_WORKER_IDLE_S="0.3",
    )
    gone(int(program.until("pid")))
    assert program.finish()[0] == 0


def test_two_actors_that_know_each_other_live_until_one_is_ended() -> None:
    """Cycles are not found; their owner's end is their end, or a kill."""
    one, two = Box.remote(), Box.remote()
    pids = ray.get([one.pid.remote(), two.pid.remote()])
    ray.get([one.set.remote([two]), two.set.remote([one])])
    del one
    ray.kill(two)
    del two
    for pid in pids:
        gone(pid)


def test_many_actors_made_and_dropped_leave_nothing(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Box:
            def __init__(self, kept):
                self.kept = kept
            def get(self):
                return self.kept
        def descriptors():
            return len(os.listdir("/proc/self/fd"))
        ray.get(Box.remote(0).get.remote())
        before = descriptors()
        for _ in range(3):
            keepers = [Box.remote(i) for i in range(30)]
            assert ray.get([keeper.get.remote() for keeper in keepers]) == list(range(30))
            del keepers
        for i in range(30):
            assert ray.get(Box.remote(i).get.remote()) == i
        say("dropped")
        deadline = time.monotonic() + 30
        while descriptors() > before + 2 and time.monotonic() < deadline:
            ray.wait([ray.put(0)])  # the loop is turned, and hears of the ends
        say("descriptors", before, descriptors())
        sys.stdin.read()
        """,
        ZRAY_WORKER_IDLE_S="0.1",
    )
    session = program.session
    program.until("dropped")
    eventually(lambda: len(processes_of(session)) == 3, "head, zygote and one worker")
    before, after = map(int, program.until("descriptors").split())
    assert after <= before + 2
    assert program.finish()[::2] == (0, "")


# -- being ended --------------------------------------------------------------------------------------------------------


def test_kill_ends_it_whatever_it_does() -> None:
    gate = Gate.remote()
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    refs = [keeper.run.remote(wait_for, gate, int), keeper.get.remote(), *[keeper.pid.remote() for _ in range(10)]]
    ray.kill(keeper)
    for ref in [*refs, keeper.get.remote()]:
        with pytest.raises(ActorDiedError, match=rf"zray\.kill\(\) was called on it \(pid {pid} on node") as caught:
            ray.get(ref, timeout=PATIENCE_S)
    assert caught.value.actor_id == keeper._actor_id.hex()
    gone(pid)
    ray.kill(keeper)  # it is dead already: nothing happens


def test_kill_right_after_making_it() -> None:
    for _ in range(10):
        keeper = Box.remote()
        ref = keeper.get.remote()
        ray.kill(keeper)
        with pytest.raises(ActorDiedError, match="kill"):
            ray.get(ref, timeout=PATIENCE_S)


@pytest.mark.processes("it stops a process")
def test_kill_of_an_actor_that_is_stopped() -> None:
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    ref = keeper.get.remote()
    assert ray.wait([ref], timeout=0.01)[0] == []
    ray.kill(keeper)
    with pytest.raises(ActorDiedError):
        ray.get(ref, timeout=PATIENCE_S)
    gone(pid)


def test_a_task_kills_an_actor_of_the_driver() -> None:
    keeper = Box.remote()
    ray.get(ray.remote(lambda handles: ray.kill(handles[0])).remote([keeper]))
    with pytest.raises(ActorDiedError):
        ray.get([keeper.get.remote() for _ in range(3)], timeout=PATIENCE_S)


def test_an_actor_kills_itself() -> None:
    keeper = Box.options(max_restarts=1).remote()

    def kill_myself() -> None:
        ray.kill(ray.get_runtime_context().current_actor)
        held()

    with pytest.raises(ActorDiedError, match="kill"):
        ray.get(keeper.run.remote(kill_myself), timeout=PATIENCE_S)


ENDS: list[tuple[Any, str]] = [
    (ray.actor.exit_actor, r"it called exit_actor\(\)"),
    (sys.exit, r"it called sys\.exit\(\)"),
    (lambda: sys.exit(0), r"it called sys\.exit\(\)"),
    (lambda: sys.exit(1), "exited with code 1; it may not be restarted, max_restarts allows more"),
    (lambda: sys.exit("some words"), "exited with code 1"),
]
ABRUPT_ENDS: list[tuple[Any, str]] = [
    (lambda: os._exit(7), "exited with code 7"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM"),
    (os.abort, "SIGABRT"),
]
_ENDS_PROCESS = pytest.mark.processes("it ends a process")


@pytest.mark.parametrize(("leave", "reason"), [*ENDS, *[pytest.param(*end, marks=_ENDS_PROCESS) for end in ABRUPT_ENDS]])
def test_whatever_ends_an_actor_is_the_reason_that_its_calls_get(leave: Any, reason: str) -> None:
    keeper = Box.remote()
    pid = ray.get(keeper.pid.remote())
    for ref in [keeper.run.remote(leave), *[keeper.get.remote() for _ in range(5)]]:
        with pytest.raises(ActorDiedError, match=rf"{reason}[\s\S]*pid {pid}"):
            ray.get(ref, timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError, match=reason):
        ray.get(keeper.get.remote(), timeout=PATIENCE_S)
    (row,) = [row for row in list_actors() if row["actor_id"] == keeper._actor_id.hex()]
    assert row["state"] == "DEAD" and row["reason"]
    gone(pid)


@pytest.mark.parametrize("way", ["exit_actor", "sys.exit", "terminate"])
def test_what_was_submitted_before_an_actor_ends_itself_is_done(way: str) -> None:
    keeper = Box.remote()
    sizes = [300_000 if i % 3 else i for i in range(20)]
    before = [keeper.run.remote(bytes, size) for size in sizes]
    if way == "terminate":
        keeper.__ray_terminate__.remote()
    else:
        keeper.run.remote(ray.actor.exit_actor if way == "exit_actor" else sys.exit)
    after = [keeper.get.remote() for _ in range(5)]
    assert [len(value) for value in ray.get(before, timeout=PATIENCE_S)] == sizes
    for ref in after:
        with pytest.raises(ActorDiedError, match="it called"):
            ray.get(ref, timeout=PATIENCE_S)


# -- ending itself in a coroutine --------------------------------------------------------------------------------------


@ray.remote(max_restarts=1)
class Leaver:
    """Ends itself in several ways while calls of it wait."""

    def __init__(self) -> None:
        self.leaving = asyncio.Event()

    async def wait(self) -> str:
        await self.leaving.wait()
        await asyncio.sleep(0)
        return "finished"

    async def exit_actor(self) -> None:
        self.leaving.set()
        ray.actor.exit_actor()

    async def sys_exit(self) -> None:
        self.leaving.set()
        sys.exit()

    async def exit_in_a_task(self) -> None:
        async def leave() -> None:
            self.leaving.set()
            ray.actor.exit_actor()

        self.task = asyncio.create_task(leave())

    def plain(self) -> None:
        self.leaving.set()
        ray.actor.exit_actor()

    async def crash(self) -> None:
        crash()


@pytest.mark.parametrize("way", ["exit_actor", "sys_exit", "exit_in_a_task", "plain"])
def test_an_actor_that_ends_itself_finishes_what_runs(way: str) -> None:
    actor = Leaver.remote()
    waiting = [actor.wait.remote() for _ in range(20)]
    last = getattr(actor, way).remote()
    assert ray.get(waiting, timeout=PATIENCE_S) == ["finished"] * 20
    if way != "exit_in_a_task":
        with pytest.raises(ActorDiedError, match=r"it called (exit_actor|sys\.exit)\(\)"):
            ray.get(last, timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError, match=r"it called (exit_actor|sys\.exit)\(\)"):
        ray.get([actor.wait.remote() for _ in range(3)], timeout=PATIENCE_S)


@pytest.mark.processes("it ends a process")
def test_a_crash_fails_all_that_wait() -> None:
    actor = Leaver.options(max_restarts=0).remote()
    waiting = [actor.wait.remote() for _ in range(20)]
    crash = actor.crash.remote()
    for ref in [*waiting, crash]:
        with pytest.raises(ActorDiedError, match="exited with code 1"):
            ray.get(ref, timeout=PATIENCE_S)
