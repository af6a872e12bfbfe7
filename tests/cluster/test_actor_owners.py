"""Actors as owners: of objects that others need, of other actors, and what becomes of these when the owner ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

import zray as ray
from zray.exceptions import ActorDiedError, OwnerDiedError
from zray.util.state import list_actors

from .actors import Box, Gate
from .driving import PATIENCE_S, Script, alive, assert_nothing_remains, eventually, processes_of

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """One cluster for the file, where a process that others needed ends soon after they do not."""
    with ray.init(num_cpus=2, _system_config={"worker_idle_s": 0.5}) as context:
        yield context


def gone(pid: int) -> None:
    eventually(lambda: not alive(pid), f"the end of process {pid}")


def wait_for(gate: Any, function: Any, *args: Any) -> Any:
    """In a task: wait until a gate is open, then call a function."""
    ray.get(gate.passed.remote())
    return function(*args)


later = ray.remote(num_cpus=0)(wait_for)


# -- what it owns -------------------------------------------------------------------------------------------------------


def dead(handle: Any) -> None:
    actor_id = handle._actor_id.hex()
    eventually(lambda: "DEAD" in [r["state"] for r in list_actors() if r["actor_id"] == actor_id], "the end of the actor")


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_an_actor_put_outlives_its_handles(size: int) -> None:
    keeper = Box.remote()
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
    keeper = Box.remote()
    (ref,) = ray.get(keeper.run.remote(lambda: [ray.put(np.ones(300_000))]))
    pid = ray.get(keeper.pid.remote())
    ray.kill(keeper)
    gone(pid)
    with pytest.raises(OwnerDiedError):
        ray.get(ref, timeout=PATIENCE_S)


def test_no_call_runs_after_a_kill_of_ones_own() -> None:
    """The kill takes another way than the calls, and might be overtaken."""
    for _ in range(5):
        keeper = Box.remote()
        ray.get(keeper.pid.remote())
        ray.kill(keeper)
        refs = [keeper.pid.remote() for _ in range(3)]
        for ref in refs:
            with pytest.raises(ActorDiedError, match="kill"):
                ray.get(ref, timeout=PATIENCE_S)


def test_what_an_actor_returned_does_not_end_with_it() -> None:
    keeper = Box.remote()
    small, large = keeper.run.remote(int, 5), keeper.run.remote(np.ones, 300_000)
    ray.wait([small, large], num_returns=2)
    ray.kill(keeper)
    with pytest.raises(ActorDiedError):
        ray.get(keeper.pid.remote())
    assert ray.get(small) == 5
    assert ray.get(large).sum() == 300_000


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


@ray.remote
class Parent:
    """Its children know what it owns, and work for ever, if they are told to."""

    def __init__(self, known: bool, busy: bool) -> None:
        shared = ray.put("shared")
        self.children = [Box.remote([shared] if known else None) for _ in range(2)]
        self.pids = [os.getpid(), *ray.get([child.pid.remote() for child in self.children])]
        if busy:
            self.busy = [child.run.remote(sleep_for_ever) for child in self.children]

    def get_pids(self) -> list[int]:
        return self.pids

    def promise(self, gate: Any) -> list[Any]:
        return [child.run.remote(wait_for, gate, int, 5) for child in self.children]


def sleep_for_ever() -> None:
    while True:
        threading.Event().wait(1.0)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_a_parent_that_nobody_has_a_handle_of_ends_with_its_children(known: bool, busy: bool) -> None:
    """Neither what the children do for it nor what they keep of it keeps it alive."""
    parent = Parent.remote(known, busy)
    pids = ray.get(parent.get_pids.remote())
    assert all(alive(pid) for pid in pids)
    del parent
    for pid in pids:
        gone(pid)


def test_what_the_children_were_to_do_for_others_is_done() -> None:
    gate = Gate.remote()
    parent = Parent.remote(False, False)
    pids = ray.get(parent.get_pids.remote())
    refs = ray.get(parent.promise.remote(gate))
    parent_id = parent._actor_id
    del parent
    eventually(lambda: "DEAD" in [r["state"] for r in list_actors() if r["actor_id"] == parent_id.hex()], "its end")
    ray.get(gate.open.remote())
    assert ray.get(refs, timeout=PATIENCE_S) == [5, 5]
    assert pids


def test_a_worker_that_made_an_actor_does_not_end_for_being_idle(script: Callable[..., Script]) -> None:
    """The handle is in a global variable there, and nobody else has one."""
    program = script(
        """
        start()
        @ray.remote
        class Kept:
            def f(self):
                return os.getpid()
        @ray.remote(num_cpus=0)
        def make(number, count):
            import builtins
            builtins.kept = Kept.options(name=f"kept {number}").remote()
            ref = make.remote(number + 1, count) if number < count else ray.put(None)
            return [ray.get(builtins.kept.f.remote()), *(ray.get(ref) or [])]
        pids = ray.get(make.remote(0, 3))
        say("made", len(pids))
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            assert len(ray.util.list_named_actors()) == 4
        assert [ray.get(ray.get_actor(f"kept {i}").f.remote()) for i in range(4)] == pids
        say("works")
        """,
        ZRAY_WORKER_IDLE_S="0.1",
    )
    assert program.until("made") == "4"
    program.until("works")
    assert program.finish()[::2] == (0, "")


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
        keeper = Box.remote()
        ray.get(keeper.get.remote())
        return [keeper]

    (keeper,) = ray.get(make.remote())
    with pytest.raises(ActorDiedError, match="the process that created it ended"):
        eventually(lambda: ray.get(keeper.get.remote()), "the end of the actor")


def test_a_caller_that_dies_leaves_the_actor_alone() -> None:
    gate, keeper = Gate.remote(), Box.remote()

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
