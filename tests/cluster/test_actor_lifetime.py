"""How long actors live: as long as a handle of theirs does anywhere, until they are ended, and not a moment after their owner."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, OwnerDiedError
from zray.util.state import list_actors

from .driving import PATIENCE_S, Script, alive, assert_nothing_remains, eventually, processes_of

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@ray.remote
class Keeper:
    """Keeps what it is given, and does what a test asks for."""

    def __init__(self, kept: Any = None) -> None:
        self.kept = kept

    def keep(self, kept: Any) -> None:
        self.kept = kept

    def keep_myself(self) -> None:
        self.kept = ray.get_runtime_context().current_actor

    def get(self) -> Any:
        return self.kept

    def pid(self) -> int:
        return os.getpid()

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)


@ray.remote(max_concurrency=3)
class Gate:
    def __init__(self) -> None:
        self.opened = threading.Event()

    def open(self) -> None:
        self.opened.set()

    def passed(self, value: Any = None) -> Any:
        assert self.opened.wait(PATIENCE_S)
        return value


def gone(pid: int) -> None:
    eventually(lambda: not alive(pid), f"the end of process {pid}")


def wait_for(gate: Any, function: Any, *args: Any) -> Any:
    """In a task: wait until a gate is open, then call a function."""
    ray.get(gate.passed.remote())
    return function(*args)


later = ray.remote(num_cpus=0)(wait_for)


def ask_pid(handles: list[Any]) -> int:
    return int(ray.get(handles[0].pid.remote()))


# -- handles that travel ------------------------------------------------------------------------------------------------


def test_the_end_of_the_last_handle_is_the_end_of_the_process() -> None:
    keeper = Keeper.remote()
    copy = keeper
    pid = ray.get(keeper.pid.remote())
    del keeper
    assert ray.get(copy.pid.remote()) == pid
    del copy
    gone(pid)


def test_a_reference_to_a_result_does_not_keep_the_actor() -> None:
    keeper = Keeper.remote()
    ref = keeper.pid.remote()
    del keeper
    gone(ray.get(ref))
    assert ray.get(ref) > 0


def test_calls_that_were_submitted_are_finished() -> None:
    gate = Gate.remote()
    keeper = Keeper.remote()
    pid = keeper.pid.remote()
    refs = [keeper.run.remote(wait_for, gate, int, i) for i in range(20)]
    del keeper
    assert ray.wait(refs, timeout=0)[0] == []
    ray.get(gate.open.remote())
    assert ray.get(refs, timeout=PATIENCE_S) == list(range(20))
    gone(ray.get(pid))


def test_an_actor_for_one_call() -> None:
    gate = Gate.remote()
    ref = Keeper.remote(gate.passed.remote(5)).get.remote()
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == 5


def test_an_actor_dropped_before_its_constructor_could_run() -> None:
    gate = Gate.remote()
    keeper = Keeper.remote(gate.passed.remote())
    del keeper
    eventually(
        lambda: [row["state"] for row in list_actors() if row["class_name"] == "Keeper" and row["pid"] == 0][-1:] == ["DEAD"],
        "the end of an actor that never started",
    )
    ray.get(gate.open.remote())


@pytest.mark.parametrize("way", ["argument", "nested", "closure of a call"])
def test_a_handle_in_the_arguments_of_a_task(way: str) -> None:
    gate, keeper = Gate.remote(), Keeper.remote()
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
    gate, keeper = Gate.remote(), Keeper.remote()
    other = Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    ref = other.run.remote(wait_for, gate, ask_pid, [keeper])
    del keeper
    ray.get(gate.open.remote())
    assert ray.get(ref, timeout=PATIENCE_S) == pid
    gone(pid)


def test_a_handle_kept_by_another_actor() -> None:
    keeper, other = Keeper.remote(), Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    ray.get(other.keep.remote([keeper]))
    del keeper
    returned = ray.get(other.get.remote())
    assert ask_pid(returned) == pid
    ray.get(other.keep.remote(None))
    assert ask_pid(returned) == pid
    del returned
    gone(pid)


def test_a_handle_kept_by_an_actor_that_is_killed() -> None:
    keeper, other = Keeper.remote(), Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    ray.get(other.keep.remote([keeper]))
    del keeper
    assert ask_pid(ray.get(other.get.remote())) == pid
    ray.kill(other)
    gone(pid)


def test_a_handle_inside_an_object() -> None:
    keeper = Keeper.remote()
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
        keeper = Keeper.remote(5)
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

    keeper = Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    ref = pass_on.remote([keeper], 5)
    del keeper
    result = ray.get(ref, timeout=PATIENCE_S)
    del ref
    assert ask_pid(result) == pid
    del result
    gone(pid)


def test_a_handle_of_itself_does_not_keep_an_actor() -> None:
    keeper = Keeper.remote()
    pid = ray.get(keeper.pid.remote())

    ray.get(keeper.keep_myself.remote())
    assert ray.get(keeper.get.remote()) == keeper
    del keeper
    gone(pid)


def test_a_handle_that_an_actor_gives_of_itself_is_a_handle() -> None:
    keeper = Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    myself = ray.get(keeper.run.remote(lambda: ray.get_runtime_context().current_actor))
    del keeper
    assert ray.get(myself.pid.remote()) == pid
    del myself
    gone(pid)


def test_two_actors_that_know_each_other_live_until_one_is_ended() -> None:
    """Cycles are not found; their owner's end is their end, or a kill."""
    one, two = Keeper.remote(), Keeper.remote()
    pids = ray.get([one.pid.remote(), two.pid.remote()])
    ray.get([one.keep.remote([two]), two.keep.remote([one])])
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
        class Keeper:
            def __init__(self, kept):
                self.kept = kept
            def get(self):
                return self.kept
        def descriptors():
            return len(os.listdir("/proc/self/fd"))
        ray.get(Keeper.remote(0).get.remote())
        before = descriptors()
        for _ in range(3):
            keepers = [Keeper.remote(i) for i in range(30)]
            assert ray.get([keeper.get.remote() for keeper in keepers]) == list(range(30))
            del keepers
        for i in range(30):
            assert ray.get(Keeper.remote(i).get.remote()) == i
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


# -- what it owns -------------------------------------------------------------------------------------------------------


def dead(handle: Any) -> None:
    actor_id = handle._actor_id.hex()
    eventually(lambda: "DEAD" in [r["state"] for r in list_actors() if r["actor_id"] == actor_id], "the end of the actor")


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_an_actor_put_outlives_its_handles(size: int) -> None:
    keeper = Keeper.remote()
    refs = ray.get(keeper.run.remote(lambda: [ray.put(np.ones(size)) for _ in range(3)]))
    copy = [keeper._actor_id]
    del keeper
    eventually(lambda: "DEAD" in [r["state"] for r in list_actors() if r["actor_id"] == copy[0].hex()], "its end")
    assert [ray.get(ref).sum() for ref in refs] == [size] * 3
    assert ray.get(ray.remote(lambda refs: ray.get(refs[0]).sum()).remote(refs)) == size


def test_an_actor_that_owns_what_others_need_ends_when_they_need_it_no_more(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Maker:
            def make(self):
                return os.getpid(), [ray.put(bytes(300_000)), ray.put(5)]
        pid, refs = ray.get(Maker.remote().make.remote())
        say("made", pid)
        sys.stdin.readline()
        say("still", len(ray.get(refs[0])), ray.get(refs[1]))
        del refs
        sys.stdin.read()
        """,
        ZRAY_WORKER_IDLE_S="0.05",
    )
    program.until("made")
    session = program.session
    eventually(lambda: len(processes_of(session)) == 4, "head, zygote, one worker and the actor")
    program.say("")
    assert program.until("still") == "300000 5"
    eventually(lambda: len(processes_of(session)) == 3, "the end of the actor")
    assert program.finish()[::2] == (0, "")


def test_what_an_actor_put_ends_with_it_when_it_is_killed() -> None:
    keeper = Keeper.remote()
    (ref,) = ray.get(keeper.run.remote(lambda: [ray.put(np.ones(300_000))]))
    pid = ray.get(keeper.pid.remote())
    ray.kill(keeper)
    gone(pid)
    with pytest.raises(OwnerDiedError):
        ray.get(ref, timeout=PATIENCE_S)


def test_no_call_runs_after_a_kill_of_ones_own() -> None:
    """The kill takes another way than the calls, and might be overtaken."""
    for _ in range(5):
        keeper = Keeper.remote()
        ray.get(keeper.pid.remote())
        ray.kill(keeper)
        refs = [keeper.pid.remote() for _ in range(3)]
        for ref in refs:
            with pytest.raises(ActorDiedError, match="kill"):
                ray.get(ref, timeout=PATIENCE_S)


def test_what_an_actor_returned_does_not_end_with_it() -> None:
    keeper = Keeper.remote()
    small, large = keeper.run.remote(int, 5), keeper.run.remote(np.ones, 300_000)
    ray.wait([small, large], num_returns=2)
    ray.kill(keeper)
    with pytest.raises(ActorDiedError):
        ray.get(keeper.pid.remote())
    assert ray.get(small) == 5
    assert ray.get(large).sum() == 300_000


# -- being ended --------------------------------------------------------------------------------------------------------


def test_kill_ends_it_whatever_it_does() -> None:
    gate = Gate.remote()
    keeper = Keeper.remote()
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
        keeper = Keeper.remote()
        ref = keeper.get.remote()
        ray.kill(keeper)
        with pytest.raises(ActorDiedError, match="kill"):
            ray.get(ref, timeout=PATIENCE_S)


def test_kill_of_an_actor_that_is_stopped() -> None:
    keeper = Keeper.remote()
    pid = ray.get(keeper.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    ref = keeper.get.remote()
    assert ray.wait([ref], timeout=0.01)[0] == []
    ray.kill(keeper)
    with pytest.raises(ActorDiedError):
        ray.get(ref, timeout=PATIENCE_S)
    gone(pid)


def test_a_task_kills_an_actor_of_the_driver() -> None:
    keeper = Keeper.remote()
    ray.get(ray.remote(lambda handles: ray.kill(handles[0])).remote([keeper]))
    with pytest.raises(ActorDiedError):
        ray.get([keeper.get.remote() for _ in range(3)], timeout=PATIENCE_S)


def test_an_actor_kills_itself() -> None:
    keeper = Keeper.options(max_restarts=1).remote()

    def kill_myself() -> None:
        ray.kill(ray.get_runtime_context().current_actor)
        threading.Event().wait(PATIENCE_S)

    with pytest.raises(ActorDiedError, match="kill"):
        ray.get(keeper.run.remote(kill_myself), timeout=PATIENCE_S)


ENDS: list[tuple[Any, str]] = [
    (ray.actor.exit_actor, r"it called exit_actor\(\)"),
    (sys.exit, r"it called sys\.exit\(\)"),
    (lambda: sys.exit(0), r"it called sys\.exit\(\)"),
    (lambda: sys.exit(1), "exited with code 1; it may not be restarted, max_restarts allows more"),
    (lambda: sys.exit("some words"), "exited with code 1"),
    (lambda: os._exit(7), "exited with code 7"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
    (lambda: os.kill(os.getpid(), signal.SIGTERM), "SIGTERM"),
    (os.abort, "SIGABRT"),
]


@pytest.mark.parametrize(("leave", "reason"), ENDS)
def test_whatever_ends_an_actor_is_the_reason_that_its_calls_get(leave: Any, reason: str) -> None:
    keeper = Keeper.remote()
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
    keeper = Keeper.remote()
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


# -- owners -------------------------------------------------------------------------------------------------------------


@ray.remote
class Supervisor:
    """A tree of actors."""

    def __init__(self, depth: int) -> None:
        self.children = [Supervisor.remote(depth - 1) for _ in range(2)] if depth else []

    def pids(self) -> list[int]:
        below = ray.get([child.pids.remote() for child in self.children])
        return [os.getpid(), *[pid for pids in below for pid in pids]]

    def handles(self) -> list[Any]:
        return self.children


@pytest.mark.parametrize("end", ["kill", "crash", "drop"])
def test_a_tree_of_actors_ends_with_its_root(end: str) -> None:
    root = Supervisor.remote(2)
    pids = ray.get(root.pids.remote(), timeout=PATIENCE_S)
    assert len(set(pids)) == 7
    if end == "kill":
        ray.kill(root)
    elif end == "crash":
        os.kill(pids[0], signal.SIGKILL)
    del root
    for pid in pids:
        gone(pid)


def test_children_end_with_their_owner_even_if_others_have_handles() -> None:
    root = Supervisor.remote(1)
    children = ray.get(root.handles.remote())
    assert ray.get(children[0].handles.remote()) == []
    ray.kill(root)
    for child in children:
        with pytest.raises(ActorDiedError, match="the process that created it ended"):
            eventually(lambda child=child: ray.get(child.handles.remote()), "the end of the child")


def test_an_actor_made_by_a_task_ends_with_the_worker_of_that_task() -> None:
    @ray.remote(max_calls=1)
    def make() -> Any:
        keeper = Keeper.remote()
        ray.get(keeper.get.remote())
        return [keeper]

    (keeper,) = ray.get(make.remote())
    with pytest.raises(ActorDiedError, match="the process that created it ended"):
        eventually(lambda: ray.get(keeper.get.remote()), "the end of the actor")


def test_a_caller_that_dies_leaves_the_actor_alone() -> None:
    gate, keeper = Gate.remote(), Keeper.remote()

    @ray.remote
    class Caller:
        def call(self, handle: Any, gate: Any) -> None:
            self.refs = [handle.run.remote(wait_for, gate, int) for _ in range(20)]
            self.refs += [handle.run.remote(np.ones, 300_000) for _ in range(3)]

        def die(self) -> None:
            os._exit(1)

    caller = Caller.remote()
    ray.get(caller.call.remote(keeper, gate))
    caller.die.remote()
    dead(caller)
    ray.get(gate.open.remote())
    assert ray.get(keeper.run.remote(int, 7), timeout=PATIENCE_S) == 7


@pytest.mark.parametrize("end", ["ray.shutdown()", "pass", "os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_the_end_of_the_job_is_the_end_of_its_actors(script: Callable[..., Script], end: str) -> None:
    program = script(
        f"""
        start()
        @ray.remote
        class Child:
            async def wait(self, refs):
                await refs[0]
            def pid(self):
                return os.getpid()
        @ray.remote(max_restarts=-1, max_task_retries=-1)
        class Parent:
            def __init__(self):
                self.child = Child.remote()
            def pids(self):
                return [os.getpid(), ray.get(self.child.pid.remote())]
            def busy(self):
                time.sleep(1000)
        parents = [Parent.remote(), Parent.options(max_concurrency=3).remote(), Parent.options(num_cpus=1).remote()]
        child = Child.remote()
        say("pids", *sum(ray.get([parent.pids.remote() for parent in parents]), []))
        busy = [parent.busy.remote() for parent in parents]
        waits = child.wait.remote(busy)
        waits_for_ever = Parent.options(num_cpus=1).remote()
        {end}
        """
    )
    session = program.session
    pids = [int(pid) for pid in program.until("pids").split()]
    program.finish()
    assert_nothing_remains(session)
    for pid in pids:
        gone(pid)
