"""Bodies: processes of the simulated world. They carry out what the real brains ask for, and decide nothing.

User code runs as generators: whatever would block a thread is a ``yield``, and the world decides when it goes on.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from zray import object_ref
from zray.base import serialization, wire
from zray.base.ids import PUT_INDEX, TaskIDs, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import DONE, ERROR, HELLO, INLINE, OBJECT_VALUE, PUSH, STORED, Address, Entry
from zray.core import effects as e
from zray.core.entries import contained_in
from zray.core.owner import Owner
from zray.core.tasks import Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.exceptions import ObjectLostError, ObjectStoreFullError
from zray.object_ref import ObjectRef

from .checkers import TaskFailure
from .world import SimulationError

if TYPE_CHECKING:
    from .cluster import Cluster

Steps = Generator[tuple[Any, ...], Any, Any]
CONTROL, AGENT, NODE = (name.ljust(16, b"-") for name in (b"control", b"agent", b"node"))


class FunctionLost(TaskFailure):
    """The exporter of a function died before its export arrived."""


class Body:
    """What all processes have in common: mail, turns, and effects."""

    def __init__(self, cluster: Cluster, process_id: bytes, name: str, role: str, brain: Any, *receivers: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = process_id
        self.name = name
        self.role = role
        self.brain = brain
        self.alive = True
        self.known: dict[bytes, None] = {AGENT: None, CONTROL: None}
        self._mail: list[tuple[bytes, tuple[Any, ...]]] = []
        self._durable_at = 0.0
        self._handlers = {
            schema.op: getattr(self if hasattr(self, schema.handler) else brain, schema.handler)
            for schema in wire.SCHEMA.values()
            if schema.receiver in receivers and (hasattr(self, schema.handler) or hasattr(brain, schema.handler))
        }
        self.world.processes[process_id] = self

    def receive(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """Mail that arrives while the process is busy with a turn is taken together in the next."""
        self.known[peer] = None
        self._mail.append((peer, message))
        if len(self._mail) == 1:
            self.world.after(self.world.rng.choice([0.0, 0.0, self.world.some(0.0005)]), self.turn)

    def turn(self) -> None:
        if not self.alive:
            return
        mail, self._mail = self._mail, []
        for peer, message in mail:
            self.handle(peer, message)
            self.after_event()
        self.finish()

    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        self._handlers[message[0]](self.world.now, peer, *message[1:])

    def after_event(self) -> None:
        self.brain.check()

    def on_timer(self, key: tuple[Any, ...]) -> None:
        if self.alive:
            self.world.note(self, f"timer {key[0]}")
            self.brain.on_timer(self.world.now, key)
            self.after_event()
            self.finish()

    def finish(self) -> None:
        """The end of a turn: carry out what the brain asked for."""
        while self.brain.out:
            effects, self.brain.out[:] = list(self.brain.out), []
            for effect in effects:
                self.execute(effect)

    def execute(self, effect: tuple[Any, ...]) -> None:
        verb = effect[0]
        if verb == e.SEND:
            self.send(effect[1], effect[2])
        elif verb == e.DIAL:
            self.known[effect[1]] = None
        elif verb == e.HANG_UP:
            self.known.pop(effect[1], None)
        elif verb == e.TIMER:
            self.world.at(effect[1], self.on_timer, effect[2])
        elif verb == e.PERSIST:
            self._durable_at = self.world.now + self.world.some(0.002)
        elif verb == e.AFTER_PERSIST:
            self.world.at(self._durable_at, self.send, effect[1], effect[2])
        elif verb == e.START_WORKER:
            self.cluster.start_worker(effect[1])
        elif verb == e.KILL_WORKER:
            self.world.after(self.world.some(0.002), self.cluster.end_told_worker, effect[1])
        elif verb in (e.WARN, e.STOP):
            self.world.note(self, f"says: {effect[1]}")
        elif verb == e.WATCH:
            self.cluster.watch(effect[1])
        else:
            raise SimulationError(f"{self.name} asks for an unknown effect: {effect}")

    def send(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if type(message) is tuple and message[0] == PUSH:
            for spec in message[2]:
                self.cluster.judge.task_pushed(spec[0], peer)
        if peer in self.known:
            self.world.send(self, peer, message)
        elif peer not in self.world.dead:
            raise SimulationError(f"{self.name} says {message} to {self.world.name(peer)}, which it never dialled")

    def die(self) -> None:
        self.alive = False
        self._mail.clear()


class AgentBody(Body):
    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if message[0] == HELLO:
            hello = wire.Hello(*message[1:])
            self.brain.on_peer_joined(self.world.now, hello.sender, hello.role, hello.pid)
        else:
            super().handle(peer, message)

    def execute(self, effect: tuple[Any, ...]) -> None:
        verb, world, disk = effect[0], self.world, self.cluster.disk
        if verb == e.SPILL:
            _, batch_id, directory, rows = effect
            event = disk.spill(self.brain.store, batch_id, directory, rows)
            world.after(world.some(0.01), self.report, event)
        elif verb == e.RESTORE:
            world.after(world.some(0.01), self.report, disk.restore(self.brain.store, *effect[1:]))
        elif verb == e.DELETE_FILE:
            disk.delete(effect[1])
        elif verb == e.COLLECT:
            self.brain.collect(world.now)
        elif verb == e.MEASURE:
            world.after(world.some(0.001), self._measure)
        else:
            super().execute(effect)

    def report(self, happen: Callable[[], tuple[Any, ...]]) -> None:
        """A file operation is over: only now it has happened."""
        event, *args = happen()
        self.world.note(self, event.__name__)
        event(*args)
        self.after_event()
        self.finish()

    def _measure(self) -> None:
        workers = [w.id for w in self.cluster.workers.values() if w.alive]
        used = self.cluster.memory_used()
        self.witness("on_memory_measured", used, 100, dict.fromkeys(workers, 30))

    def witness(self, event: str, *args: Any) -> None:
        """Something ended on this machine."""
        getattr(self.brain, event)(self.world.now, *args)
        self.after_event()
        self.finish()


class Thread:
    """User code of one process."""

    def __init__(self, body: OwnerBody, steps: Steps, on_end: Callable[[Any, BaseException | None], None]) -> None:
        self._body = body
        self._steps = steps
        self._on_end = on_end
        body.threads.append(self)

    def step(self, value: Any = None) -> None:
        """Go on until the code waits for something."""
        body = self._body
        if not body.alive:
            return
        object_ref.connected = body
        try:
            request = self._steps.send(value)
        except StopIteration as stop:
            body.threads.remove(self)
            self._on_end(stop.value, None)
        except (SimulationError, AssertionError, KeyError, AttributeError):
            raise
        except Exception as error:
            body.threads.remove(self)
            self._on_end(None, error.with_traceback(None))
        else:
            body.perform(self, request)
        body.finish()

    def close(self) -> None:
        self._steps.close()


class OwnerBody(Body):
    """A driver or worker: an Owner, and threads of user code."""

    def __init__(self, cluster: Cluster, process_id: bytes, name: str, role: str, *receivers: str) -> None:
        self.address: Address = (process_id, f"sim://{name}")
        self.owner = Owner(self.address, b"", NODE, AGENT, cluster.world.config)
        super().__init__(cluster, process_id, name, role, self.owner, "owner", "any", *receivers)
        self.judge = cluster.judge
        self.inbox: list[bytes] = []
        self.threads: list[Thread] = []
        self.kept: list[ObjectRef[Any]] = []  # references that tasks left in this process
        self.task_ids = TaskIDs(process_id)
        self.borrowed: dict[bytes, Address] | None = None
        self.starting = False  # the arguments of a task are being read
        self.job_id = b""
        self._requests: dict[int, Thread] = {}
        self._next_request = 1
        self._exported: dict[bytes, None] = {}
        self._templates: dict[Any, TaskTemplate] = {}
        self.send(AGENT, wire.Hello(wire.PROTOCOL_VERSION, "3.x", b"cluster", self.id, role, self.address[1], 1))

    # -- the loop -------------------------------------------------------------------------------------------------

    def after_event(self) -> None:
        """An owner's invariants hold after ``settle``."""

    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        entries: Any = ()
        if message[0] == DONE:
            entries = [entry for item in message[2] for entry in item[1]]
        elif message[0] == OBJECT_VALUE:
            entries = [message[2]]
        elif message[0] == PUSH:
            entries = [slot[3] for spec in message[2] for slot in spec[3]]
        for entry in entries:
            for object_id, _ in contained_in(entry):
                self.judge.touched(self.id, object_id)
        if self.world.rng.random() < 0.2:
            self.drain()  # releases come between messages as well as after them
        super().handle(peer, message)

    def drain(self) -> None:
        while self.inbox:
            self.owner.references.release(self.inbox.pop(0))

    def finish(self) -> None:
        while True:
            self.drain()
            self.owner.settle(self.world.now)
            super().finish()
            if not self.inbox:
                break
        self.owner.check()

    def execute(self, effect: tuple[Any, ...]) -> None:
        if effect[0] == e.RESOLVE:
            waiter = effect[1]
            self.world.after(self.world.some(0.0005), waiter.signal.step, True)
        else:
            super().execute(effect)

    def die(self) -> None:
        super().die()
        for thread in self.threads:
            thread.close()
        self.threads.clear()
        self.kept.clear()

    # -- messages of the body -------------------------------------------------------------------------------------

    def on_hello(self, now: float, peer: bytes, *fields: Any) -> None:
        """Only agents care who comes."""

    def on_collect_garbage(self, now: float, peer: bytes, reason: str) -> None:
        """There are no cycles here."""

    def on_refuse(self, now: float, peer: bytes, reason: str) -> None:
        raise SimulationError(f"{self.name} was refused: {reason}")

    def on_reply(self, now: float, peer: bytes, request_id: int, ok: bool, value: Any) -> None:
        thread = self._requests.pop(request_id)
        self.world.after(self.world.some(0.0002), thread.step, (ok, value))

    # -- what threads wait for ------------------------------------------------------------------------------------

    def perform(self, thread: Thread, request: tuple[Any, ...]) -> None:
        what = request[0]
        if what == "sleep":
            self.world.after(request[1], thread.step)
        elif what == "ask":
            _, peer, message, fields = request
            self._requests[self._next_request] = thread
            self.send(peer, message(self._next_request, *fields))
            self._next_request += 1
        elif what == "wait":
            _, waiter, refs, timeout_s = request
            waiter.signal = thread
            self.owner.watch(waiter, refs)
            if timeout_s is not None:
                self.world.after(timeout_s, self._time_out, waiter)

    def _time_out(self, waiter: Waiter) -> None:
        if self.alive and not waiter.done:
            waiter.done = True
            waiter.signal.step(False)

    def on_blocking(self, begin: bool) -> None:
        """A worker lends its CPU out."""

    # -- object_ref.Runtime ---------------------------------------------------------------------------------------

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        self.judge.touched(self.id, object_id)
        self.owner.adopt(object_id, owner)
        if self.borrowed is not None and owner[0] != self.id:
            self.borrowed[object_id] = owner
        return ObjectRef(object_id, owner, self.inbox.append)

    def keep_for_ever(self, ref: ObjectRef[Any]) -> None:
        raise SimulationError("a reference was pickled out of band")

    def future(self, ref: ObjectRef[Any]) -> Any:
        raise NotImplementedError

    # -- what user code calls -------------------------------------------------------------------------------------

    def entry(self, object_id: bytes, value: Any, owner: bytes) -> Steps:
        """A value as an entry: inline if it is small, else written to the store."""
        made = serialization.serialize(value)
        size = len(made.pickle)
        contained = tuple((ref.binary(), ref.owner) for ref in made.refs)
        if size <= self.world.config.inline_bytes_max:
            return (INLINE, made.pickle, contained) if contained else (INLINE, made.pickle)
        ok, place = yield ("ask", AGENT, wire.CreateObject, (object_id, size))
        if not ok:
            raise ObjectStoreFullError(place[1])
        if place != "exists":
            yield ("sleep", self.world.some(0.001))
            if isinstance(place[0], str):
                checksum = self.cluster.disk.write(place[0], made.pickle)
            else:
                checksum = self.cluster.memory.write(place[0], object_id, made.pickle)
            self.send(AGENT, wire.SealObject(object_id, owner, checksum))
        return (STORED, size, NODE, contained)

    def put(self, tag: str, value: Any) -> Steps:
        """Make an object; its reference."""
        object_id = self.task_ids() + PUT_INDEX
        self.judge.expected[object_id] = tag
        self.judge.touched(self.id, object_id)
        entry = yield from self.entry(object_id, value, self.id)
        self.owner.put(object_id, entry)
        return ObjectRef(object_id, self.address, self.inbox.append)

    def call(
        self,
        tag: str,
        arguments: Any,
        slots: list[ObjectRef[Any]],
        *,
        function: bytes,
        demand: dict[str, float],
        retries: int,
        returns: int,
        depth: int,
    ) -> list[ObjectRef[Any]]:
        """Submit a task; references to its results."""
        task_id = self.task_ids()
        key = (function, tuple(demand.items()), retries, returns)
        template = self._templates.get(key)
        if template is None:
            template = TaskTemplate(function, function.decode(), ResourceSet.of(demand), returns, retries, None)
            self._templates[key] = template
        if function not in self._exported:
            self._exported[function] = None
            self.send(CONTROL, wire.ExportFunction(self.job_id, function, function.decode(), b"body"))
        made = serialization.serialize(arguments)
        ids = tuple(return_id(task_id, n + 1) for n in range(returns))
        for number, object_id in enumerate(ids):
            self.judge.expected[object_id] = f"{tag}/{number}"
            self.judge.touched(self.id, object_id)
        self.judge.retries[task_id] = retries
        if "GPU" in demand:
            self.judge.infeasible[task_id] = None
        task = Task(task_id, template, made.pickle, tuple(enumerate(slots)), tuple(made.refs), ids, depth)
        self.owner.submit(self.world.now, task)
        return [ObjectRef(object_id, self.address, self.inbox.append) for object_id in ids]

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None = None) -> Steps:
        """The outcome of each reference, a value or an exception; None when the time ran out."""
        missing = [ref for ref in refs if ref.binary() not in self.owner.memory]
        if missing:
            self.on_blocking(True)
            in_time = yield ("wait", Waiter(len(missing)), missing, timeout_s)
            self.on_blocking(False)
            if not in_time:
                return None
        outcomes = []
        for ref in refs:
            outcome = yield from self.read(ref.binary(), self.owner.memory[ref.binary()])
            outcomes.append(outcome)
        return outcomes

    def read(self, object_id: bytes, entry: Entry) -> Steps:
        """The value or the error of an entry."""
        if entry[0] == ERROR:
            error = pickle.loads(entry[1])
            self.judge.error_seen(self.id, object_id, error)
            return error
        if entry[0] == INLINE:
            value = serialization.deserialize(entry[1])
        else:
            ok, place = yield ("ask", AGENT, wire.PinObject, (object_id, not self.starting))
            if not ok:
                lost: Exception = ObjectStoreFullError(place[1])
                if place[0] == "lost":
                    lost = ObjectLostError(place[1], object_id.hex())
                if object_id[:10] != self.id[:10]:  # at its owner the entry says that it was there once
                    self.judge.error_seen(self.id, object_id, lost)
                return lost
            value = serialization.deserialize(self._bytes(place, object_id))
            self.world.after(self.world.some(0.01), self._unpin, place, object_id)
        self.judge.value_seen(self.id, object_id, value)
        return value

    def _bytes(self, place: tuple[Any, ...], object_id: bytes) -> bytes:
        if isinstance(place[0], str):
            return self.cluster.disk.read(place[0], place[1], place[3])
        return self.cluster.memory.read(place[0], object_id)

    def _unpin(self, place: tuple[Any, ...], object_id: bytes) -> None:
        """The last view of the object is gone; until now its bytes must have been left alone."""
        if self.alive:
            self._bytes(place, object_id)
            self.send(AGENT, wire.UnpinObjects([object_id]))


class DriverBody(OwnerBody):
    """A user's script."""

    def __init__(self, cluster: Cluster, process_id: bytes, name: str) -> None:
        super().__init__(cluster, process_id, name, "driver")
        self.finished = False

    def run(self, program: Callable[[DriverBody], Steps]) -> None:
        self.world.after(0.0, Thread(self, self._script(program), self._ended).step)

    def _script(self, program: Callable[[DriverBody], Steps]) -> Steps:
        fields = (self.id, self.address[1], 1, "script.py", "", {})
        ok, answer = yield ("ask", CONTROL, wire.RegisterJob, fields)
        assert ok
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

        def goodbye() -> Steps:
            ok, _ = yield ("ask", CONTROL, wire.FinishJob, (self.job_id,))
            assert ok

        Thread(self, goodbye(), self._ended).step()


class WorkerBody(OwnerBody):
    """A worker: runs what is pushed to it, one after the other."""

    def __init__(self, cluster: Cluster, process_id: bytes, name: str) -> None:
        super().__init__(cluster, process_id, name, "worker", "worker")
        self.running: bytes | None = None
        self.blocked = False
        self._queue: deque[tuple[bytes, int, Any]] = deque()
        self._functions: dict[bytes, None] = {}
        self._results: dict[tuple[bytes, int], list[Any]] = {}
        self._busy_since = 0.0
        self.send(AGENT, wire.WorkerReady(self.id, self.address[1], 1))

    def on_open_lease(self, now: float, peer: bytes, lease_id: int, job_id: bytes, *rest: Any) -> None:
        self.job_id = job_id
        self.owner.enter_job(job_id)

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        if self.owner.needed():
            self.send(AGENT, wire.WorkerStays(self.id))
        else:
            self.cluster.end_worker(self, reason, politely=True)

    def on_list_events(self, now: float, peer: bytes, request_id: int) -> None:
        raise NotImplementedError

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        for spec in specs:
            self._queue.append((peer, lease_id, spec))
        if self.running is None:
            self._start()
        elif self.blocked or now >= self._busy_since + self.world.config.handback_ms / 1000:
            self._hand_back()

    def _hand_back(self) -> None:
        back: dict[tuple[bytes, int], list[bytes]] = {}
        while self._queue:
            peer, lease_id, spec = self._queue.popleft()
            back.setdefault((peer, lease_id), []).append(spec[0])
        for (peer, lease_id), task_ids in back.items():
            self.send(peer, wire.HandBack(lease_id, task_ids))

    def _start(self) -> None:
        peer, lease_id, spec = self._queue.popleft()
        self.running = spec[0]
        self._busy_since = self.world.now
        self.world.after(self.world.config.handback_ms / 1000, self._on_busy, spec[0])

        def end(entries: Any, error: BaseException | None) -> None:
            if error is not None:
                entries = ((ERROR, pickle.dumps(error, 5)),) * spec[4]
            run_us = int((self.world.now - self._busy_since) * 1e6)
            borrowed, self.borrowed = self.borrowed, None
            self._results.setdefault((peer, lease_id), []).append((spec[0], entries, run_us, borrowed or {}))
            self.running = None
            if not self._queue or self.world.rng.random() < 0.4:
                self._flush()
            if self._queue:
                self._start()

        self.world.after(0.0, Thread(self, self._execute(peer, spec), end).step)

    def _on_busy(self, task_id: bytes) -> None:
        if self.alive and self.running == task_id and self._queue:
            self._hand_back()

    def _flush(self) -> None:
        """Report results, and which of the references that came with the arguments are kept."""
        self.drain()
        results, self._results = self._results, {}
        for (peer, lease_id), items in results.items():
            named = [(task_id, entries, run_us, self.owner.kept(kept)) for task_id, entries, run_us, kept in items]
            self.send(peer, (DONE, lease_id, named))

    def on_blocking(self, begin: bool) -> None:
        self.blocked = begin
        if begin:
            self._flush()
            self._hand_back()
        self.send(AGENT, (wire.WorkerBlocked if begin else wire.WorkerUnblocked)(self.id))

    def _execute(self, peer: bytes, spec: Any) -> Steps:
        task_id, function_id, payload, slots, num_returns, depth, _, _ = spec
        self.judge.task_started(task_id)
        self.world.note(self, f"runs {task_id.hex()}")
        self.borrowed = {}
        if function_id not in self._functions:
            ok, text = yield ("ask", CONTROL, wire.FetchFunction, (function_id,))
            if not ok:
                raise FunctionLost(text)
            self._functions[function_id] = None
        arguments = serialization.deserialize(payload)
        self.starting = True
        for _, object_id, _, entry in slots:
            self.judge.touched(self.id, object_id)
            value = yield from self.read(object_id, entry)
            if isinstance(value, BaseException):
                self.starting = False
                raise value
            arguments.refs.extend(value[2])
            del value
        self.starting = False
        values = yield from self.cluster.run_task(self, arguments, num_returns, depth)
        entries = []
        for number, value in enumerate(values):
            object_id = return_id(task_id, number + 1)
            self.judge.touched(self.id, object_id)
            entry = yield from self.entry(object_id, value, peer)
            entries.append(entry)
        for entry in entries:  # not before all are made: when there is no room for one of them, none will arrive
            for inner, owner in contained_in(entry):
                self.owner.references.give(inner, owner, peer)
        return tuple(entries)
