"""Crew: calls in a fixed number of processes of their own, which are actors.

Theory of operation
-------------------
Each process runs one call at a time, in its main thread, and has more sent ahead as long as they are short (its ``Window``), so
that it need not wait for the way there and back. A short call can be stuck behind one that turns out long. So when a process
has nothing to do, the one with the most calls ahead is asked to give some back. Its answer comes from a thread of its own: what
it has not started by then it will not start, and another process gets it.

When a process dies, another takes its place. The call it was running is charged with that, and fails when it has ended more
processes than it may (``retries``); those behind it are merely sent again.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import zray as ray
from zray.exceptions import ActorUnschedulableError, RayActorError, RayTaskError
from zray.util.dispatch import Dispatcher, Outcome, Window, Work
from zray.util.functions import Initialized, Regulars

RETRIES = 3
_AHEAD_MAX = 256
_CONTROL = "control"


class GivenBack:
    """The result of a call that was given back: it did not run."""


class PoolProcess:
    """The actor: functions that it keeps, and calls."""

    def __init__(self, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._initialized = None if initializer is None else Initialized(initializer, initargs)
        self._functions: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._started = 0  # calls have numbers, which rise
        self._given_back: set[int] = set()

    def keep(self, slot: int, initializer: Any, function: Any) -> None:
        """Keep a function for many calls. The initializer comes with it for the sake of their global variables."""
        self._share(initializer)
        self._functions[slot] = function

    def forget(self, slot: int) -> None:
        del self._functions[slot]

    def run(self, number: int, slot: int, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function that is kept."""
        return self._functions[slot](*args, **kwargs) if self._start(number) else GivenBack()

    def run_once(self, number: int, initializer: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function that is not."""
        if not self._start(number):
            return GivenBack()
        self._share(initializer)
        return function(*args, **kwargs)

    @ray.method(concurrency_group=_CONTROL)
    def give_back(self, numbers: list[int]) -> list[int]:
        """Do not run these calls; which of them are not started, and will not be."""
        with self._lock:
            back = [number for number in numbers if number > self._started]
            self._given_back.update(back)
        return back

    def _start(self, number: int) -> bool:
        with self._lock:
            self._started = number
            if number in self._given_back:
                self._given_back.discard(number)
                return False
        return True

    def _share(self, initializer: Any) -> None:
        if self._initialized is not None:
            self._initialized.share_with(initializer)


class _Member:
    """A process as its crew sees it."""

    def __init__(self, actor: Any, initializer: Any, calls_max: int | None) -> None:
        self.actor = actor
        self.under_way: dict[int, Work] = {}  # by number, oldest first
        self.window = Window(1, _AHEAD_MAX)
        self.asked = False
        self._initializer = initializer
        self.calls_left = calls_max
        self._numbers = itertools.count(1)
        self._slots = itertools.count(1)
        self._kept: Regulars[int] = Regulars(self._keep, self.actor.forget.remote)
        self._run = self.actor.run.remote
        self._run_once = self.actor.run_once.remote

    @property
    def spent(self) -> bool:
        """Whether it may not start any more calls."""
        return self.calls_left == 0

    def start(self, work: Work) -> Any:
        assert work.call is not None
        function, args, kwargs = work.call
        slot = self._kept.get(function)
        number = next(self._numbers)
        if slot is None:
            ref = self._run_once(number, self._initializer, function, *args, **kwargs)
        else:
            ref = self._run(number, slot, *args, **kwargs)
        self.under_way[number] = work
        work.place = (self, number)
        if self.calls_left is not None:
            self.calls_left -= 1
        return ref

    def take_back(self, number: int) -> Work | None:
        """A call that was given back, if it was not over nevertheless."""
        work = self.under_way.pop(number, None)
        if work is not None and self.calls_left is not None:
            self.calls_left += 1
        return work

    def _keep(self, function: Any) -> int:
        slot = next(self._slots)
        self.actor.keep.remote(slot, self._initializer, function)
        return slot


class _Question:
    """Which calls a process gives back."""

    def __init__(self, member: _Member, ref: Any) -> None:
        self.member = member
        self.ref = ref


class Crew:
    """Calls in processes of their own: a lane of a Dispatcher.

    Args:
        size: how many processes; by default one for each CPU of the cluster.
        initializer, initargs: called in each of them when it starts.
        calls_max: how many calls a process serves before another takes its place.
        options: of the actors; ``max_task_retries`` is how many processes a call may end before it fails.
    """

    def __init__(
        self,
        size: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        calls_max: int | None,
        options: dict[str, Any],
    ) -> None:
        retries = options.get("max_task_retries")
        retries = options.get("max_retries") if retries is None else retries
        self._retries = RETRIES if retries is None else retries
        mine = {name: value for name, value in options.items() if name not in ("max_retries", "max_task_retries")}
        self._class: Any = ray.remote(PoolProcess).options(concurrency_groups={_CONTROL: 1}, **mine)
        self.size = size or 0
        self._initializer = initializer
        self._initargs = tuple(initargs)
        self._calls_max = calls_max
        self._members: list[_Member] = []
        self._charged: dict[Work, int] = {}  # how many processes ended in the middle of this work

    def open(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.size = self.size or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._members = [self._recruit() for _ in range(self.size)]

    def has_room(self) -> bool:
        return self._idlest() is not None

    def start(self, work: Work) -> Any:
        member = self._idlest()
        assert member is not None
        return member.start(work)

    def _idlest(self) -> _Member | None:
        """The process with the fewest calls, of those with room for another."""
        found = None
        fewest = 0
        for member in self._members:
            count = len(member.under_way)
            if count < member.window.size and member.calls_left != 0 and (found is None or count < fewest):
                found, fewest = member, count
        return found

    def steady(self, work: Work) -> bool:
        """The first of its process can not be given back; and if that dies, its reference is ready."""
        place = work.place
        return place is not None and next(iter(place[0].under_way), 0) == place[1]

    def ended(self, entry: Any, value: Any, error: BaseException | None) -> list[Outcome]:
        if isinstance(entry, _Question):
            self._answered(entry.member, value or [])
            return []
        member, number = entry.place
        if isinstance(error, RayActorError) and not isinstance(error, RayTaskError):
            return self._died(member, error)
        if isinstance(value, GivenBack):  # this came before the answer to the question
            member.take_back(number)
            self._dispatcher.again(entry)
            return []
        del member.under_way[number]
        self._charged.pop(entry, None)
        member.window.took(time.monotonic() - entry.started, wanted=bool(self._dispatcher.pending))
        if member.spent and not member.under_way:
            self._replace(member)
        return [(entry, value, error)]

    def rest(self) -> None:
        """If a process has nothing to do, ask for calls that another one has ahead."""
        if self._dispatcher.pending or len(self._members) < 2:
            return
        idlest = self._idlest()
        if idlest is None or idlest.under_way or any(member.asked for member in self._members):
            return
        busiest = max(self._members, key=lambda member: len(member.under_way))
        if len(busiest.under_way) > 1:
            numbers = list(busiest.under_way)
            busiest.asked = True
            ref = busiest.actor.give_back.remote(numbers[(len(numbers) + 1) // 2 :])
            self._dispatcher.watch(_Question(busiest, ref))

    def close(self) -> None:
        """The processes end when they have nothing to do, since nobody has their handles any more."""
        self._members.clear()

    def kill(self) -> None:
        """End the processes at once."""
        if ray.is_initialized():
            for member in self._members:
                ray.kill(member.actor)
        self._members.clear()

    def _recruit(self) -> _Member:
        actor = self._class.remote(self._initializer, self._initargs)
        return _Member(actor, self._initializer, self._calls_max)

    def _replace(self, member: _Member) -> None:
        self._members.remove(member)
        self._members.append(self._recruit())

    def _answered(self, member: _Member, numbers: list[int]) -> None:
        member.asked = False
        for number in reversed(numbers):
            work = member.take_back(number)
            if work is not None:
                self._dispatcher.again(work)

    def _died(self, member: _Member, error: RayActorError) -> list[Outcome]:
        """A process is gone. What it had is sent again, but for the call that it ran, if that has ended too many."""
        self._replace(member)
        over: list[Outcome] = []
        lost: list[Work] = []
        for work in member.under_way.values():
            value, problem = _result(work, error)
            if problem is error:
                lost.append(work)
            elif not isinstance(value, GivenBack):
                over.append((work, value, problem))
                self._dispatcher.running.pop(work.ref.binary(), None)
        member.under_way.clear()
        if error.cause is not None:
            self._dispatcher.doomed = f"its initializer raised {type(error.cause).__name__}: {error.cause}"
        elif isinstance(error, ActorUnschedulableError):
            self._dispatcher.doomed = f"its processes have no place in the cluster: {error}"
        elif lost:
            charges = self._charged.pop(lost[0], 0) + 1
            if charges > self._retries >= 0:
                over.append((lost.pop(0), None, error))
            else:
                self._charged[lost[0]] = charges
        for work in reversed(lost):
            self._dispatcher.again(work)
        return over


def _result(work: Work, lost: RayActorError) -> tuple[Any, Exception | None]:
    """What became of a call of a dead process: that it died, or what came before that."""
    ready, _ = ray.wait([work.ref], timeout=0)
    if not ready:
        return None, lost
    try:
        return ray.get(work.ref), None
    except RayTaskError as error:
        return None, error
    except RayActorError:
        return None, lost
