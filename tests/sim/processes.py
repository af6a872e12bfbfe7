"""Drivers and workers of the simulated world."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.base import serialization, wire
from zray.base.ids import return_id
from zray.base.wire import DONE, ERROR, Entry
from zray.core import effects as e
from zray.core.entries import contained_in
from zray.object_ref import ObjectRef

from . import cancels
from .actors import ActorHost
from .bodies import CONTROL, OwnerBody, Unreadable
from .checkers import TaskFailure
from .generators import Runner
from .threads import Steps, Thread

if TYPE_CHECKING:
    from .cluster import Cluster
    from .nodes import SimNode


class FunctionLost(TaskFailure):
    """The exporter of a function died before its export arrived."""


class DriverBody(OwnerBody):
    """A user's script."""

    def __init__(self, cluster: Cluster, node: SimNode, process_id: bytes, name: str) -> None:
        super().__init__(cluster, node, process_id, name, "driver")
        self.finished = False

    def run(self, program: Callable[[DriverBody], Steps]) -> None:
        self.world.after(0.0, Thread(self, self._script(program), self._ended).step)

    def _script(self, program: Callable[[DriverBody], Steps]) -> Steps:
        while not self.node.joined:  # only then it says how programs find it
            yield ("sleep", self.world.some(0.05))
        fields = (self.id, self.address[1], 1, "script.py", "", {})
        ok, answer = yield ("ask", CONTROL, wire.RegisterJob, fields)
        if not ok:  # the node will hear that only later
            assert "is dead: join again when it is back" in answer
            return
        self.job_id = answer["job_id"]
        self.owner.enter_job(self.job_id)
        yield from program(self)

    def _ended(self, result: Any, error: BaseException | None) -> None:
        if error is not None:
            raise error
        self.finished = True
        self.world.note(self, "program ends")

    def leave(self) -> None:
        """Say goodbye in good order."""

        if not self.job_id:
            return

        def goodbye() -> Steps:
            ok, _ = yield ("ask", CONTROL, wire.FinishJob, (self.job_id,))
            assert ok

        Thread(self, goodbye(), self._ended).step()


class WorkerBody(OwnerBody):
    """A worker: runs what is pushed to it, one after the other, or becomes an actor."""

    def __init__(self, cluster: Cluster, node: SimNode, process_id: bytes, name: str) -> None:
        super().__init__(cluster, node, process_id, name, "worker", "worker")
        self.running: bytes | None = None
        self.blocked = False
        self.actor: ActorHost | None = None
        self.queue: deque[tuple[bytes, int, Any]] = deque()
        self._functions: dict[bytes, None] = {}
        self._results: dict[tuple[bytes, int], list[Any]] = {}
        self._busy_since = 0.0
        self.runners: dict[bytes, Runner] = {}
        self.send(self.agent, wire.WorkerReady(self.id, self.address[1], 1))

    @property
    def busy(self) -> bool:
        """Whether it runs user code, or will."""
        return self.running is not None or (self.actor is not None and self.actor.busy)

    def open_words(self) -> list[Any]:
        started = self.actor.started if self.actor is not None else None
        return [*super().open_words(), *([started] if started is not None else [])]

    def on_open_lease(self, now: float, peer: bytes, lease_id: int, job_id: bytes, *rest: Any) -> None:
        self.job_id = job_id
        self.owner.enter_job(job_id)

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        if self.actor is not None and not self.busy:
            self.forget()  # nobody can call it any more, so nobody needs its state
            self.finish()
        if self.owner.needed() or self.busy:
            self.send(self.agent, wire.WorkerStays(self.id))
        else:
            self.node.end_worker(self, reason, politely=True)

    def on_list_events(self, now: float, peer: bytes, request_id: int) -> None:
        raise NotImplementedError

    # -- tasks ----------------------------------------------------------------------------------------------------

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        for spec in specs:
            self.queue.append((peer, lease_id, spec))
        if self.running is None:
            self._start()
        elif self.blocked or now >= self._busy_since + self.world.config.handback_ms / 1000:
            self._hand_back()

    def on_cancel_task(self, now: float, peer: bytes, task_id: bytes, force: bool, recursive: bool) -> None:
        cancels.on_cancel_task(self, task_id, force, recursive)
        if task_id in self.runners:
            self.runners[task_id].stop()

    def _hand_back(self) -> None:
        back: dict[tuple[bytes, int], list[bytes]] = {}
        while self.queue:
            peer, lease_id, spec = self.queue.popleft()
            back.setdefault((peer, lease_id), []).append(spec[0])
        for (peer, lease_id), task_ids in back.items():
            self.send(peer, wire.HandBack(lease_id, task_ids))

    def _start(self) -> None:
        peer, lease_id, spec = self.queue.popleft()
        self.running = spec[0]
        self._busy_since = started = self.world.now
        self.world.after(self.world.config.handback_ms / 1000, self._on_busy, spec[0])

        def end(entries: Any, error: BaseException | None) -> None:
            if error is not None:
                entries = ((ERROR, pickle.dumps(cancels.outcome(error, spec[0]), 5)),) * abs(spec[4])
            self.running = None
            self.finished(peer, lease_id, spec[0], entries, started)
            if not self.queue or self.world.rng.random() < 0.4:
                self.flush()
            if self.queue:
                self._start()

        thread = Thread(self, self._execute(peer, spec), end)
        thread.task_id = spec[0]
        self.world.after(0.0, thread.step)

    def _on_busy(self, task_id: bytes) -> None:
        if self.alive and self.running == task_id and self.queue:
            self._hand_back()

    def finished(self, peer: bytes, lease_id: int, task_id: bytes, entries: Any, started: float) -> None:
        """The thread that runs now has done a task."""
        run_us = int((self.world.now - started) * 1e6)
        borrowed = self.current.borrowed if self.current is not None else None
        self._results.setdefault((peer, lease_id), []).append((task_id, entries, run_us, borrowed or {}))

    def flush(self) -> None:
        """Report results, and which of the references that came with the arguments are kept."""
        self.drain()
        results, self._results = self._results, {}
        for (peer, lease_id), items in results.items():
            named = [(task_id, entries, run_us, self.owner.kept(kept)) for task_id, entries, run_us, kept in items]
            self.send(peer, (DONE, lease_id, named))

    def on_blocking(self, begin: bool) -> None:
        if self.actor is not None and self.actor.limit > 1:
            return  # others go on meanwhile
        self.blocked = begin
        if begin:
            self.flush()
            self._hand_back()
        self.send(self.agent, (wire.WorkerBlocked if begin else wire.WorkerUnblocked)(self.id))

    def _execute(self, peer: bytes, spec: Any) -> Steps:
        self.judge.task_started(spec[0])
        self.world.note(self, f"runs {spec[0].hex()}")
        yield from self.fetch(spec[1])
        arguments = yield from self.arguments(spec)
        thread = self.current
        assert thread is not None
        if spec[4] < 0:
            thread.in_code = True
            try:
                return (yield from self.generate(peer, spec, arguments))
            finally:
                thread.in_code = False
        thread.in_code = True
        values = yield from self.cluster.run_task(self, arguments, spec[4], spec[5])
        thread.in_code = False
        return (yield from self.results(peer, spec[0], values))

    def generate(self, peer: bytes, spec: Any, arguments: Any) -> Steps:
        """Make the items of a generator."""
        runner = self.runners[spec[0]] = Runner(self, peer, spec)
        try:
            return (yield from runner.run(arguments))
        finally:
            del self.runners[spec[0]]

    def on_items_taken(self, now: float, peer: bytes, task_id: bytes, taken: int) -> None:
        if task_id in self.runners:
            self.runners[task_id].on_taken(taken)

    # -- what tasks and calls have in common ----------------------------------------------------------------------

    def fetch(self, function_id: bytes) -> Steps:
        if function_id not in self._functions:
            ok, text = yield ("ask", CONTROL, wire.FetchFunction, (function_id,))
            if not ok:
                raise FunctionLost(text)
            self._functions[function_id] = None

    def arguments(self, spec: Any) -> Steps:
        """The arguments of a task, with what is inside the values of its slots."""
        thread = self.current
        assert thread is not None
        thread.borrowed = {}
        arguments = serialization.deserialize(spec[2])
        thread.starting = True
        try:
            for _, object_id, owner, entry in spec[3]:
                self.judge.touched(self.id, object_id)
                value = yield from self.read(object_id, entry)
                if isinstance(value, Unreadable) or entry[0] == ERROR:  # its owner may know better by now
                    self.owner.borrow(object_id, owner)
                    ref: ObjectRef[Any] = ObjectRef(object_id, owner, self.inbox.append)
                    [value] = yield from self.get([ref])
                    del ref
                if isinstance(value, BaseException):
                    raise value
                arguments.refs.extend(value[2])
                arguments.handles.extend(value[4])
                del value
        finally:
            thread.starting = False
        return arguments

    def results(self, peer: bytes, task_id: bytes, values: list[Any]) -> Steps:
        """The entries of a task's results."""
        entries: list[Entry] = []
        for number, value in enumerate(values):
            object_id = return_id(task_id, number + 1)
            self.judge.touched(self.id, object_id)
            entry = yield from self.entry(object_id, value, peer)
            entries.append(entry)
        for entry in entries:  # not before all are made: when there is no room for one of them, none will arrive
            for inner, owner in contained_in(entry):
                self.owner.references.give(inner, owner, peer)
        return tuple(entries)

    # -- actors ---------------------------------------------------------------------------------------------------

    def on_start_actor(self, now: float, peer: bytes, *start: Any) -> None:
        self.actor = ActorHost(self, *start)

    def on_call(self, now: float, peer: bytes, first: int, specs: list[Any]) -> None:
        self.owner.meet(peer)
        if self.actor is not None:
            self.actor.accept(peer, first, specs)

    def execute(self, effect: tuple[Any, ...]) -> None:
        if effect[0] == e.HANG_UP and self.actor is not None:
            self.actor.order.forget(effect[1])
        super().execute(effect)

    def after_event(self) -> None:
        if self.actor is not None:
            self.actor.order.check()
