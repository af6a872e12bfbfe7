"""What goes wrong with actors: constructors, things that do not travel, limits, actors that are dead or elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

import zray as ray
from zray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    GetTimeoutError,
    PendingCallsLimitExceeded,
    RayActorError,
    RayTaskError,
)
from zray.util.state import list_actors

from .actors import Gate
from .driving import PATIENCE_S, Script
from .modes import crash, held

pytestmark = pytest.mark.usefixtures("cluster", "no_actor_left")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors need not import pytest


@ray.remote
class Worker:
    """Does what a test asks for, when it is made and later."""

    def __init__(self, function: Any = None, *args: Any) -> None:
        self.made = function(*args) if function is not None else None

    def run(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def value(self, value: Any = None) -> Any:
        return value

    def pid(self) -> int:
        return os.getpid()


def throw(error: Any) -> None:
    raise error


class TwoArgumentsError(Exception):
    """Pickles, and can not be read back."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class LockedError(Exception):
    """Does not pickle."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class SilentError(Exception):
    """Raises when it is asked what it says."""

    def __str__(self) -> str:
        raise LookupError("I do not say")

    __repr__ = __str__


class EndingError(Exception):
    """Wants to end the process that pickles it."""

    def __reduce__(self) -> Any:
        raise SystemExit(5)


class InterruptingError(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


class HugeError(Exception):
    def __init__(self) -> None:
        super().__init__("x" * 5_000_000)


class RecursiveError(Exception):
    def __init__(self) -> None:
        super().__init__("round and round")
        self.me = self
        self.__context__ = KeyError("another")


# -- constructors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), ValueError),
        (LookupError(), LookupError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(0), SystemExit),
        (SystemExit(3), SystemExit),
        (BaseException("base"), BaseException),
        (GetTimeoutError("own"), GetTimeoutError),
        (StopIteration(), StopIteration),
    ],
    ids=repr,
)
def test_what_a_constructor_raises_is_the_error_of_all_calls(error: BaseException, kind: type[BaseException]) -> None:
    actor = Worker.options(max_restarts=3, max_task_retries=-1).remote(throw, error)
    refs = [actor.value.remote(i) for i in range(3)]
    for ref in refs:
        with pytest.raises(ActorDiedError, match=r"actor Worker \([0-9a-f]+\) is dead: its constructor raised") as caught:
            ray.get(ref, timeout=PATIENCE_S)
        assert "in throw" in str(caught.value)
        assert "zray/runtime" not in str(caught.value)
        assert type(caught.value.cause) is kind
        assert caught.value.actor_id == actor._actor_id.hex()
    with pytest.raises(ActorDiedError, match="its constructor raised"):
        ray.get(actor.value.remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize("kind", ["two arguments", "locked", "silent", "local"])
def test_constructors_that_raise_what_does_not_travel(kind: str) -> None:
    class LocalError(Exception):
        pass

    class Raises:
        def __init__(self) -> None:
            if kind == "two arguments":
                raise TwoArgumentsError(1, 2)
            if kind == "locked":
                raise LockedError("has a lock")
            raise SilentError if kind == "silent" else LocalError("own class")

        def f(self) -> None:
            pass

    with pytest.raises(ActorDiedError, match="its constructor raised an error") as caught:
        ray.get(ray.remote(Raises).remote().f.remote(), timeout=PATIENCE_S)
    expected = {"two arguments": "1 and 2", "locked": "has a lock", "silent": "SilentError", "local": "own class"}[kind]
    assert expected in str(caught.value)
    cause = {"two arguments": "NoneType", "locked": "NoneType", "silent": "SilentError", "local": "LocalError"}[kind]
    assert type(caught.value.cause).__name__ == cause


@pytest.mark.processes("it ends a process")
@pytest.mark.parametrize(
    ("die", "reason"),
    [
        (lambda: os._exit(5), "exited with code 5"),
        (lambda: os._exit(0), "exited with code 0"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (os.abort, "SIGABRT"),
    ],
)
def test_a_constructor_that_ends_its_process(die: Any, reason: str) -> None:
    actor = Worker.remote(die)
    refs = [actor.value.remote() for _ in range(3)]
    for ref in refs:
        with pytest.raises(ActorDiedError, match=reason):
            ray.get(ref, timeout=PATIENCE_S)


def test_exit_actor_in_a_constructor() -> None:
    with pytest.raises(ActorDiedError):
        ray.get(Worker.remote(ray.actor.exit_actor).value.remote(), timeout=PATIENCE_S)


def test_a_constructor_that_hangs_holds_nobody_else_up_and_can_be_killed() -> None:
    hanging = Worker.remote(held)
    ref = hanging.value.remote()
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.01)
    assert ray.get(Worker.remote().value.remote(1), timeout=PATIENCE_S) == 1
    ray.kill(hanging)
    with pytest.raises(ActorDiedError, match="kill"):
        ray.get(ref, timeout=PATIENCE_S)


@pytest.mark.parametrize("way", ["plain", "keyword", "dead worker", "dead actor"])
def test_an_argument_of_the_constructor_that_is_an_error(way: str) -> None:
    bad: Any
    if way == "dead worker":
        bad = ray.remote(max_retries=0)(crash).remote()
    elif way == "dead actor":
        bad = Worker.remote().run.remote(crash)
    else:
        bad = ray.remote(lambda: {}["missing"]).remote()

    @ray.remote(max_restarts=1)
    class Takes:
        def __init__(self, one: Any, two: Any = None) -> None:
            pass

        def f(self) -> None:
            pass

    actor = Takes.remote(1, two=bad) if way == "keyword" else Takes.remote(bad)
    refs = [actor.f.remote() for _ in range(2)]
    expected = {"dead worker": ray.exceptions.WorkerCrashedError, "dead actor": ActorDiedError}.get(way, KeyError)
    for ref in [*refs, actor.f.remote()]:
        with pytest.raises(expected):
            ray.get(ref, timeout=PATIENCE_S)
    (row,) = [row for row in list_actors() if row["actor_id"] == actor._actor_id.hex()]
    assert (row["state"], row["reason"]) == ("DEAD", "an argument of its constructor is an error")


def test_a_class_that_can_not_be_loaded_in_the_worker() -> None:
    class Unloadable:
        def __reduce__(self) -> Any:
            return throw, (ImportError("not there"),)

    class Holds:
        held = Unloadable()

        def f(self) -> None:
            pass

    with pytest.raises(ActorDiedError, match=r"can not be loaded in the worker[\s\S]*not there"):
        ray.get(ray.remote(Holds).remote().f.remote(), timeout=PATIENCE_S)


# -- calls --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 2}], ids=["plain", "threads"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (lambda: TwoArgumentsError(1, 2), "TwoArgumentsError: 1 and 2"),
        (lambda: LockedError("has a lock"), "LockedError: has a lock"),
        (SilentError, "SilentError"),
        (EndingError, "EndingError"),
        (InterruptingError, "InterruptingError"),
        (HugeError, "HugeError: xxxxx"),
        (RecursiveError, "RecursiveError: round and round"),
        (lambda: RecursionError("deep"), "RecursionError: deep"),
        (StopAsyncIteration, "StopAsyncIteration"),
    ],
)
def test_calls_that_raise_odd_things(kind: Any, text: str, options: dict[str, Any]) -> None:
    actor = Worker.options(**options).remote()

    def fail() -> None:
        raise kind()

    for _ in range(2):
        with pytest.raises(RayTaskError, match=text):
            ray.get(actor.run.remote(fail), timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well"), timeout=PATIENCE_S) == "well"


def test_results_that_do_not_travel() -> None:
    actor = Worker.remote()
    with pytest.raises(TypeError, match="cannot serialize a lock") as caught:
        ray.get(actor.run.remote(threading.Lock), timeout=PATIENCE_S)
    assert isinstance(caught.value, RayTaskError)
    one, two = actor.run.options(num_returns=2).remote(lambda: (1, threading.Lock()))
    for ref in (one, two):
        with pytest.raises(TypeError, match="lock"):
            ray.get(ref, timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well")) == "well"


class BadReader:
    """Can be sent, and raises where it is read."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> Any:
        return throw, ({"error": LookupError("unreadable"), "exit": SystemExit(3)}[self.kind],)


def test_arguments_that_can_not_be_read() -> None:
    actor = Worker.remote()
    with pytest.raises(LookupError, match="unreadable"):
        ray.get(actor.value.remote(BadReader("error")), timeout=PATIENCE_S)
    with pytest.raises(LookupError, match="unreadable"):
        ray.get(actor.value.remote([BadReader("error"), bytes(300_000)]), timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well")) == "well"
    with pytest.raises(LookupError, match="unreadable"):
        ray.get(actor.run.remote(lambda: BadReader("error")), timeout=PATIENCE_S)
    assert ray.get(actor.value.remote("well")) == "well"


def test_an_argument_that_is_an_error_is_the_result_of_the_call() -> None:
    actor, gate = Worker.remote(), Gate.remote()
    bad = gate.passed.remote(1)
    failing = actor.run.remote(lambda x: 1 // 0, bad)
    dependent = actor.value.remote(failing)
    behind = actor.value.remote("behind")
    ray.get(gate.open.remote())
    for ref in (failing, dependent):
        with pytest.raises(ZeroDivisionError):
            ray.get(ref, timeout=PATIENCE_S)
    assert ray.get(behind, timeout=PATIENCE_S) == "behind"


def test_errors_go_through_several_actors() -> None:
    first, second, third = [Worker.remote() for _ in range(3)]

    def ask(handles: list[Any]) -> Any:
        if not handles:
            raise KeyError("the origin")
        return ray.get(handles[0].run.remote(ask, handles[1:]))

    with pytest.raises(KeyError) as caught:
        ray.get(first.run.remote(ask, [second, third]), timeout=PATIENCE_S)
    assert caught.value.args == ("the origin",)
    assert isinstance(caught.value, RayTaskError)


def test_time_limits_leave_the_call_alone() -> None:
    gate = Gate.remote()
    refs = [gate.passed.remote(i) for i in range(3)]
    for timeout in (0, 0.01):
        with pytest.raises(GetTimeoutError):
            ray.get(refs, timeout=timeout)
        assert ray.wait(refs, timeout=timeout) == ([], refs)
    ray.get(gate.open.remote())
    ready, rest = ray.wait(refs, num_returns=3, timeout=PATIENCE_S)
    assert (ray.get(ready), rest) == ([0, 1, 2], [])


def test_wait_counts_errors_as_ready() -> None:
    gate, actor = Gate.remote(), Worker.remote()
    refs = [gate.passed.remote(), actor.run.remote(throw, KeyError("x")), actor.value.remote(1)]
    ready, rest = ray.wait(refs, num_returns=2, timeout=PATIENCE_S)
    assert (ready, rest) == (refs[1:], refs[:1])
    ray.kill(gate)
    assert ray.wait(rest, timeout=PATIENCE_S) == (rest, [])
    with pytest.raises(ActorDiedError):
        ray.get(rest)


def test_one_dead_actor_does_not_hide_the_results_of_others() -> None:
    well, ill = Worker.remote(), Worker.remote()
    good, bad = well.value.remote(5), ill.run.remote(crash)
    with pytest.raises(RayActorError):
        ray.get([good, bad], timeout=PATIENCE_S)
    assert ray.get(good) == 5


# -- limits -------------------------------------------------------------------------------------------------------------


def test_max_pending_calls_is_an_error_at_the_call() -> None:
    gate, actor = Gate.remote(), Worker.options(max_pending_calls=3).remote()
    held = gate.passed.remote(1)
    refs = [actor.value.remote(held) for _ in range(3)]
    with pytest.raises(PendingCallsLimitExceeded, match=r"Worker\.value\(\) was not called: 3 calls"):
        actor.value.remote()
    with pytest.raises(TypeError):
        actor.value.remote(i for i in range(3))  # it takes no place
    ray.get(gate.open.remote())
    assert ray.get(refs, timeout=PATIENCE_S) == [1, 1, 1]
    for i in range(20):
        assert ray.get(actor.value.remote(i)) == i
    failing = [actor.run.remote(throw, KeyError()) for _ in range(3)]
    ray.wait(failing, num_returns=3)
    assert ray.get(actor.value.remote("well")) == "well"


def test_pending_calls_that_fail_with_their_actor_are_not_pending() -> None:
    actor = Worker.options(max_pending_calls=2, max_restarts=-1).remote()
    for _ in range(3):
        refs = [actor.run.remote(crash), actor.value.remote()]
        ray.wait(refs, num_returns=2, timeout=PATIENCE_S)
    ray.kill(actor)
    for _ in range(5):
        with pytest.raises(ActorDiedError):
            ray.get(actor.value.remote(), timeout=PATIENCE_S)


INFEASIBLE = """
        start(num_cpus=2)
        @ray.remote
        class Greedy:
            def f(self):
                return 1
        def errors(*refs):
            for ref in refs:
                try:
                    say("value", ray.get(ref, timeout=30))
                except ray.exceptions.RayError as error:
                    say(type(error).__name__, str(error).replace(chr(10), " "))
"""


def test_an_actor_that_no_node_can_run(script: Callable[..., Script]) -> None:
    program = script(
        f"""
        {INFEASIBLE}
        greedy = Greedy.options(num_cpus=50, name="greedy").remote()
        errors(greedy.f.remote(), greedy.f.remote(), Greedy.options(resources={{"licence": 1}}).remote().f.remote())
        try:
            ray.get_actor("greedy")
        except ValueError:
            say("free")
        errors(Greedy.remote().f.remote())
        """,
        ZRAY_INFEASIBLE_GRACE_S="0.05",
    )
    for demand in ("50 CPU", "50 CPU", "1 licence"):
        text = program.until("ActorUnschedulableError")
        assert f"no node can run it: it asks for {demand} where the best node" in text
    program.until("free")
    assert program.until("value") == "1"
    code, _, errors = program.finish()
    assert code == 0
    assert "no node can run actor Greedy 'greedy'" in errors
    assert issubclass(ActorUnschedulableError, RayActorError)


def test_an_actor_that_no_node_can_run_may_wait(script: Callable[..., Script]) -> None:
    program = script(
        f"""
        {INFEASIBLE}
        greedy = Greedy.options(num_cpus=50).remote()
        ref = greedy.f.remote()
        errors(Greedy.remote().f.remote())
        from zray.util.state import list_actors
        deadline = time.monotonic() + 30
        while not [row for row in list_actors() if "50 CPU" in row["reason"]] and time.monotonic() < deadline:
            time.sleep(0.01)
        say("waits", ray.wait([ref], timeout=0.2)[0])
        ray.kill(greedy)
        errors(ref)
        """,
        ZRAY_INFEASIBLE_GRACE_S="0.05",
        ZRAY_INFEASIBLE="wait",
    )
    assert program.until("value") == "1"
    assert program.until("waits") == "[]"
    assert "kill" in program.until("ActorDiedError")
    assert program.finish()[0] == 0


def test_no_more_actors_than_a_node_may_have(script: Callable[..., Script]) -> None:
    program = script(
        f"""
        {INFEASIBLE}
        actors = [Greedy.remote() for _ in range(3)]
        ray.get([actor.f.remote() for actor in actors])
        errors(Greedy.remote().f.remote())
        ray.get([actor.f.remote() for actor in actors])
        assert ray.get(ray.remote(lambda: 5).remote()) == 5
        ray.kill(actors.pop())
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            another = Greedy.remote()
            try:
                ray.get(another.f.remote())
                break
            except ray.exceptions.ActorUnschedulableError:
                time.sleep(0.01)
        errors(another.f.remote())
        """,
        ZRAY_ACTORS_MAX="3",
    )
    assert "its node runs 3 actors already, which is its limit (ZRAY_ACTORS_MAX)" in program.until("ActorUnschedulableError")
    assert program.until("value") == "1"
    assert program.finish()[0] == 0


def test_an_actor_that_makes_itself_without_an_end(script: Callable[..., Script]) -> None:
    program = script(
        """
        start()
        @ray.remote
        class Endless:
            def __init__(self):
                self.next = Endless.remote()
            def f(self):
                return ray.get(self.next.f.remote())
        endless = Endless.remote()
        try:
            ray.get(endless.f.remote(), timeout=30)
        except ray.exceptions.ActorDiedError as error:
            say("refused", "RecursionError" in str(error), "ZRAY_TASK_DEPTH_MAX=10" in str(error))
        del endless
        """,
        ZRAY_TASK_DEPTH_MAX="10",
    )
    assert program.until("refused") == "True True"
    assert program.finish()[0] == 0


# -- handles that are of no use -----------------------------------------------------------------------------------------


def test_handles_of_a_cluster_that_was_left(script: Callable[..., Script]) -> None:
    program = script(
        """
        @ray.remote
        class Counter:
            def f(self, x=0):
                return x
        start()
        old = Counter.remote()
        method = old.f
        ref = old.f.remote()
        ray.get(ref)
        pickled = __import__("cloudpickle").dumps(old)
        ray.shutdown()
        def try_it(what, use):
            try:
                say(what, "worked", use())
            except Exception as error:
                say(what, type(error).__name__)
        try_it("call", lambda: old.f.remote())
        start()
        new = Counter.remote()
        try_it("call", lambda: old.f.remote())
        try_it("method", lambda: method.remote())
        try_it("options", lambda: method.options(num_returns=2).remote())
        try_it("kill", lambda: ray.kill(old))
        try_it("argument", lambda: new.f.remote(old))
        try_it("nested", lambda: ray.get(ray.put([old])))
        try_it("unpickled", lambda: ray.get(__import__("pickle").loads(pickled).f.remote(), timeout=30))
        say("new", ray.get(new.f.remote(5)))
        """,
        ZRAY_FUNCTION_FETCH_TIMEOUT_S="0.2",
    )
    for what in ("call", "call", "method", "options", "kill"):
        assert program.until(what) == "ActorDiedError"
    for what in ("argument", "nested"):
        assert program.until(what) == "OwnerDiedError"
    assert program.until("unpickled") == "ActorDiedError"
    assert program.until("new") == "5"
    assert program.finish()[0] == 0


def test_a_handle_that_is_read_where_there_is_no_cluster(script: Callable[..., Script]) -> None:
    program = script(
        """
        @ray.remote
        class Counter:
            def f(self):
                return 1
        start()
        pickled = __import__("cloudpickle").dumps(Counter.remote())
        ray.shutdown()
        try:
            __import__("pickle").loads(pickled)
        except RuntimeError as error:
            say("refused", "zray is initialized" in str(error))
        """
    )
    assert program.until("refused") == "True"
    assert program.finish()[0] == 0


@pytest.mark.processes("it forks the driver")
def test_a_fork_of_the_driver_has_no_use_of_its_handles() -> None:
    actor = Worker.remote()
    assert ray.get(actor.value.remote(1)) == 1
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            actor.value.remote(2)
            os.write(write, b"worked")
        except ActorDiedError:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 100) == b"refused"
    os.close(read)
    assert ray.get(actor.value.remote(3)) == 3
