"""Cancelling tasks: before they begin, while they run, after they are over; with their children, by force, and by borrowers."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.exceptions import RayTaskError, TaskCancelledError

from .driving import eventually

pytestmark = pytest.mark.usefixtures("cluster")

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    """A test that leaves a task running would have the next one wait for its CPU."""
    yield
    eventually(lambda: ray.available_resources().get("CPU") == 2.0, "all CPUs free")


def hold(path: str, begun: str = "", value: Any = None) -> Any:
    """Run until there is a file at ``path``."""
    if begun:
        os.mkdir(begun)  # in one step: an interrupt between those of ``touch`` would leave the file open
    while not os.path.exists(path):
        time.sleep(0.005)
    return value


def cancelled(ref: Any) -> TaskCancelledError:
    """The error of a cancelled task."""
    with pytest.raises(TaskCancelledError) as caught:
        ray.get(ref, timeout=PATIENCE_S)
    return caught.value


def begun(path: Path) -> None:
    eventually(path.exists, f"the begin of a task ({path.name})")


task: Any = ray.remote(hold)
pid: Any = ray.remote(os.getpid)


# -- before -----------------------------------------------------------------------------------------------------------


def test_a_queued_task_never_begins(tmp_path: Path) -> None:
    busy = [task.remote(str(tmp_path / "open")) for _ in range(2)]
    queued = [task.options(name="late").remote(str(tmp_path / "open"), str(tmp_path / f"begun{n}")) for n in range(5)]
    for ref in queued:
        ray.cancel(ref)
    errors = [cancelled(ref) for ref in queued]
    assert f"late() (task {queued[0].task_id().hex()}) was cancelled" in str(errors[0])
    assert errors[0].task_id == queued[0].task_id().hex()
    (tmp_path / "open").touch()
    ray.get(busy)
    assert not list(tmp_path.glob("begun*"))


def test_a_task_that_waits_for_its_arguments(tmp_path: Path) -> None:
    argument = task.remote(str(tmp_path / "open"), "", 1)
    f = ray.remote(lambda x: x)
    waiting, behind = f.remote(argument), f.remote(argument)
    after = f.remote(waiting)
    ray.cancel(waiting)
    cancelled(waiting)
    cancelled(after)
    (tmp_path / "open").touch()
    assert ray.get([argument, behind]) == [1, 1]


def test_a_task_that_no_node_can_run() -> None:
    ref = task.options(num_gpus=3).remote("")
    ray.cancel(ref)
    cancelled(ref)


def test_tasks_that_were_pushed_ahead_never_begin(tmp_path: Path) -> None:
    """Short tasks are sent to a worker before it has time for them."""

    @ray.remote(num_cpus=2)
    def f(name: str = "") -> str:
        if name:
            hold(str(tmp_path / "open"), str(tmp_path / name))
        return name

    for _ in range(3):
        ray.get([f.remote() for _ in range(200)])
    first = f.remote("first")
    others = [f.remote(f"other{n}") for n in range(20)]
    begun(tmp_path / "first")
    for ref in others[:-1]:
        ray.cancel(ref)
    (tmp_path / "open").touch()
    for ref in others[:-1]:
        cancelled(ref)
    assert ray.get([first, others[-1]]) == ["first", "other19"]
    assert not list(tmp_path.glob("other[0-8]"))


# -- while ------------------------------------------------------------------------------------------------------------


def test_a_running_task_is_interrupted_and_ends_in_good_order(tmp_path: Path) -> None:
    @ray.remote(num_cpus=2)
    def f() -> None:
        try:
            hold(str(tmp_path / "never"), str(tmp_path / "begun"))
        finally:
            (tmp_path / "finally").touch()

    before = ray.get(pid.options(num_cpus=2).remote())
    ref = f.remote()
    begun(tmp_path / "begun")
    ray.cancel(ref)
    ray.cancel(ref)
    assert ref.task_id().hex() in str(cancelled(ref))
    assert (tmp_path / "finally").exists()
    assert ray.get(pid.options(num_cpus=2).remote()) == before, "the worker lives"


@pytest.mark.processes("a thread in foreign code can not be reached")
def test_a_function_written_in_c() -> None:
    ref = ray.remote(num_cpus=2)(time.sleep).remote(PATIENCE_S * 10)
    eventually(lambda: ray.available_resources().get("CPU", 0.0) == 0.0, "its begin")
    ray.cancel(ref)
    cancelled(ref)


def test_a_task_that_catches_the_interrupt_has_its_value(tmp_path: Path) -> None:
    @ray.remote
    def f() -> str:
        with contextlib.suppress(KeyboardInterrupt):
            hold(str(tmp_path / "never"), str(tmp_path / "begun"))
        time.sleep(0.05)  # it comes once
        return "stubborn"

    ref = f.remote()
    begun(tmp_path / "begun")
    ray.cancel(ref)
    assert ray.get(ref, timeout=PATIENCE_S) == "stubborn"


def test_a_task_that_waits_for_another_wakes_up(tmp_path: Path) -> None:
    @ray.remote
    def f(kind: str) -> None:
        child = task.options(num_cpus=0).remote(str(tmp_path / "never"))
        try:
            os.mkdir(tmp_path / kind)
            if kind == "get":
                ray.get(child, timeout=PATIENCE_S)  # with a limit, or a thread of local mode would run it itself
            else:
                ray.wait([child])
        except KeyboardInterrupt:
            (tmp_path / f"{kind}-interrupted").touch()
            raise

    for kind in ("get", "wait"):
        ref = f.remote(kind)
        begun(tmp_path / kind)
        ray.cancel(ref, recursive=False)
        cancelled(ref)
        assert (tmp_path / f"{kind}-interrupted").exists()
    (tmp_path / "never").touch()


def test_an_interrupted_task_is_not_tried_again(tmp_path: Path) -> None:
    @ray.remote(max_retries=-1, retry_exceptions=True)
    def f() -> None:
        with open(tmp_path / "tries", "a") as file:
            file.write("x")
        hold(str(tmp_path / "never"))

    ref = f.remote()
    begun(tmp_path / "tries")
    ray.cancel(ref)
    cancelled(ref)
    assert (tmp_path / "tries").read_text() == "x"


def test_a_task_that_raises_something_else_when_it_is_interrupted(tmp_path: Path) -> None:
    @ray.remote(max_retries=-1, retry_exceptions=True)
    def f() -> None:
        try:
            hold(str(tmp_path / "never"), str(tmp_path / "begun"))
        except KeyboardInterrupt:
            raise LookupError("instead") from None

    ref = f.remote()
    begun(tmp_path / "begun")
    ray.cancel(ref)
    with pytest.raises(LookupError, match="instead"):
        ray.get(ref, timeout=PATIENCE_S)


def test_is_canceled_tells_a_task_that_goes_on(tmp_path: Path) -> None:
    @ray.remote
    def f() -> list[bool]:
        context = ray.get_runtime_context()
        said = [context.is_canceled()]
        try:
            hold(str(tmp_path / "never"), str(tmp_path / "begun"))
        except KeyboardInterrupt:
            said.append(context.is_canceled())
        return said

    ref = f.remote()
    begun(tmp_path / "begun")
    ray.cancel(ref)
    assert ray.get(ref, timeout=PATIENCE_S) == [False, True]
    assert ray.get(ray.remote(lambda: ray.get_runtime_context().is_canceled()).remote()) is False
    with pytest.raises(RuntimeError, match="driver"):
        ray.get_runtime_context().is_canceled()


# -- after ------------------------------------------------------------------------------------------------------------


def test_what_is_over_stays_as_it_is() -> None:
    @ray.remote
    def fail() -> None:
        raise LookupError

    ref, failed, put = pid.remote(), fail.remote(), ray.put("put")
    value = ray.get(ref)
    ray.wait([failed])
    for each in (ref, failed, put):
        ray.cancel(each)
        ray.cancel(each, force=True)
    assert ray.get([ref, put]) == [value, "put"]
    with pytest.raises(LookupError):
        ray.get(failed)


def test_cancels_at_any_time_do_not_hit_the_next_task() -> None:
    """Each of many short tasks is cancelled at some moment: it ends in its value or is cancelled, and no other is touched."""

    @ray.remote(num_cpus=1)
    def f(n: int) -> int:
        total = 0
        for i in range(n % 7 * 300):
            total += i
        return n

    ends = {"value": 0, "cancelled": 0}
    for round_ in range(15):
        refs = [f.remote(n) for n in range(60)]
        others = [f.remote(-n) for n in range(60)]
        for n, ref in enumerate(refs):
            if n % 3 == round_ % 3:
                time.sleep(0.0002 * (n % 5))
            ray.cancel(ref)
        for n, ref in enumerate(refs):
            try:
                assert ray.get(ref, timeout=PATIENCE_S) == n
                ends["value"] += 1
            except TaskCancelledError:
                ends["cancelled"] += 1
        assert ray.get(others, timeout=PATIENCE_S) == [-n for n in range(60)]
    assert sum(ends.values()) == 15 * 60


def test_cancels_of_tasks_that_use_zray_all_the_time() -> None:
    """An interrupt meets a task in any line of zray itself: the process is as good as before."""

    @ray.remote
    def busy() -> None:
        g = ray.remote(num_cpus=0)(lambda x: x)
        while True:
            refs = [g.remote(ray.put(n)) for n in range(3)]
            ray.wait(refs, num_returns=2)
            ray.get(refs)
            ray.get(ray.put(bytes(300_000)))

    for n in range(25):
        ref = busy.remote()
        time.sleep(0.01 * (n % 6))
        ray.cancel(ref)
        cancelled(ref)
    assert len(ray.get([pid.remote() for _ in range(20)], timeout=PATIENCE_S)) == 20


# -- children, force, borrowers ---------------------------------------------------------------------------------------


def family(tmp_path: Path, *, waits: bool = True) -> Any:
    @ray.remote(num_cpus=0)
    def parent() -> None:
        child = task.options(num_cpus=0).remote(str(tmp_path / "never"), str(tmp_path / "child"))
        (tmp_path / "ref").write_bytes(ray.get_runtime_context().get_task_id().encode())
        if waits:
            ray.get(child)

    return parent.remote()


def test_children_are_cancelled_too(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def child() -> None:
        try:
            hold(str(tmp_path / "never"), str(tmp_path / "begun"))
        finally:
            (tmp_path / "finally").touch()

    @ray.remote(num_cpus=0)
    def parent(depth: int) -> None:
        ray.get(child.remote() if depth == 0 else parent.remote(depth - 1))

    ref = parent.remote(2)
    begun(tmp_path / "begun")
    ray.cancel(ref)
    cancelled(ref)
    eventually((tmp_path / "finally").exists, "the end of the child")


def test_children_are_spared_if_that_is_wished(tmp_path: Path) -> None:
    @ray.remote(num_cpus=0)
    def parent(box: Any) -> None:
        child = task.options(num_cpus=0).remote(str(tmp_path / "open"), str(tmp_path / "begun"), "spared")
        ray.get(box[0].keep.remote([child]))
        (tmp_path / "kept").touch()
        ray.get(child)

    @ray.remote
    class Box:
        def keep(self, refs: Any) -> None:
            self.refs = refs

        def value(self) -> Any:
            return ray.get(self.refs[0])

    box = Box.remote()
    ref = parent.remote([box])
    begun(tmp_path / "kept")
    ray.cancel(ref, recursive=False)
    cancelled(ref)
    (tmp_path / "open").touch()
    assert ray.get(box.value.remote(), timeout=PATIENCE_S) == "spared"
    ray.kill(box)


@pytest.mark.processes("a thread that catches everything can not be ended")
def test_force_ends_the_process_and_spares_what_was_queued_there(tmp_path: Path) -> None:
    @ray.remote(num_cpus=2, max_retries=1)
    def f(name: str = "") -> int:
        if name:
            with contextlib.suppress(BaseException):
                hold(str(tmp_path / "never"), str(tmp_path / name))
            hold(str(tmp_path / "never"))
        return os.getpid()

    for _ in range(3):
        before = set(ray.get([f.remote() for _ in range(200)]))
    stubborn = f.remote("stubborn")
    others = [f.remote() for _ in range(20)]
    begun(tmp_path / "stubborn")
    ray.cancel(stubborn)
    ray.cancel(stubborn, force=True)
    cancelled(stubborn)
    after = set(ray.get(others, timeout=PATIENCE_S))
    assert not after & before


def test_a_borrower_cancels(tmp_path: Path) -> None:
    ref = task.options(num_cpus=0).remote(str(tmp_path / "never"), str(tmp_path / "begun"))
    begun(tmp_path / "begun")

    @ray.remote
    def canceller(refs: Any) -> str:
        ray.cancel(refs[0])
        try:
            ray.get(refs[0])
        except TaskCancelledError:
            return "cancelled"
        return "value"

    assert ray.get(canceller.remote([ref]), timeout=PATIENCE_S) == "cancelled"
    cancelled(ref)


def test_a_task_that_gets_a_cancelled_object_raises_it(tmp_path: Path) -> None:
    ref = task.remote(str(tmp_path / "never"), str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    getter = ray.remote(lambda refs: ray.get(refs[0])).remote([ref])
    ray.cancel(ref)
    assert isinstance(cancelled(getter), RayTaskError)


def test_all_results_of_a_task_are_cancelled(tmp_path: Path) -> None:
    refs = task.options(num_returns=3).remote(str(tmp_path / "never"), str(tmp_path / "begun"))
    begun(tmp_path / "begun")
    ray.cancel(refs[1])
    for ref in refs:
        cancelled(ref)


def test_what_cannot_be_cancelled_is_refused() -> None:
    @ray.remote
    class A:
        pass

    a = A.remote()
    with pytest.raises(TypeError, match=r"zray\.kill"):
        ray.cancel(a)
    with pytest.raises(TypeError, match="list"):
        ray.cancel([ray.put(1)])  # type: ignore[arg-type]
    ray.kill(a)


def test_a_generator_is_cancelled_and_what_it_has_yielded_stays(tmp_path: Path) -> None:
    @ray.remote
    def count() -> Iterator[int]:
        yield 1
        yield hold(str(tmp_path / "never"), str(tmp_path / "begun"))

    generator = count.remote()
    first = next(generator)
    begun(tmp_path / "begun")
    ray.cancel(generator)
    assert ray.get(first) == 1
    cancelled(next(generator))
    assert list(generator) == []
    cancelled(generator.completed())
