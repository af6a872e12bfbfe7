"""Bodies: processes of the simulated world. They carry out what the real brains ask for, and decide nothing.

User code runs as generators: whatever would block a thread is a ``yield``, and the world decides when it goes on. Here is
what all processes have in common, and what owners have; drivers and workers are in ``processes``, agents and the control in
``servers``.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from zlib import crc32

from zray.base import serialization, wire
from zray.base.ids import PUT_INDEX, TaskIDs, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import DONE, ERROR, INLINE, OBJECT_VALUE, PUSH, REFS, STORED, Address, Entry
from zray.base.wire_actors import CALL, StartActor
from zray.base.wire_generators import ITEMS
from zray.base.wire_transfer import CopiesHeld, FreePrimaries, RequestCopy
from zray.core import effects as e
from zray.core.entries import contained_in
from zray.core.owner import Owner
from zray.core.resync import Resync
from zray.core.tasks import CallBudget, Task, TaskTemplate
from zray.core.waiters import Waiter
from zray.exceptions import ObjectLostError, ObjectStoreFullError
from zray.object_ref import ObjectRef

from .cancels import Interrupted, check_wanted
from .threads import Steps, Thread
from .world import SimulationError

if TYPE_CHECKING:
    from .actors import Handle
    from .cluster import Cluster
    from .links import Connection
    from .nodes import SimNode

RECOVERIES_MAX = 10  # of one get, as in a real process
CONTROL = wire.CONTROL


class Body:
    """What all processes have in common: mail, turns, and effects."""

    def __init__(
        self, cluster: Cluster, process_id: bytes, name: str, role: str, machine: str, brain: Any, *receivers: str
    ) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.id = process_id
        self.name = name
        self.role = role
        self.machine = machine
        self.endpoint = f"sim://{name}"
        self.brain = brain
        self.alive = True
        self.frozen = False
        self.backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.links: dict[bytes, Connection] = {}
        self.accepted: dict[bytes, list[Connection]] = {}
        self._met: dict[bytes, None] = {}  # everybody with whom there was a connection
        self._mail: list[tuple[bytes, tuple[Any, ...]]] = []
        self._durable_at = 0.0
        self._handlers = {
            schema.op: getattr(receiver, schema.handler)
            for schema in wire.SCHEMA.values()
            for receiver in [r for r in (self, brain, *self.leaves()) if hasattr(r, schema.handler)][:1]
            if schema.receiver in receivers
        }
        self.world.processes[process_id] = self

    def leaves(self) -> list[Any]:
        """Machines inside the brain that take messages themselves."""
        return []

    def hello(self) -> tuple[Any, ...]:
        """What it introduces itself with."""
        hello = wire.Hello(wire.PROTOCOL_VERSION, "3.x", b"cluster", self.id, self.role, self.endpoint, 1)
        return tuple(wire.pack(hello))

    def dial(self, peer: bytes) -> None:
        self._met[peer] = None
        self.world.network.dial(self, peer)

    def hang_up(self, peer: bytes) -> None:
        self.world.network.hang_up(self, peer)

    def on_broken(self, peer: bytes) -> None:
        """There is another process in the place of one that was dialled."""

    def receive(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """Mail that arrives while the process is busy with a turn is taken together in the next."""
        self._met[peer] = None
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
            self.fire(key)
            self.after_event()
            self.finish()

    def fire(self, key: tuple[Any, ...]) -> None:
        self.brain.on_timer(self.world.now, key)

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
            self.dial(effect[1])
        elif verb == e.HANG_UP:
            self.hang_up(effect[1])
        elif verb == e.TIMER:
            self.world.at(effect[1], self.on_timer, effect[2])
        elif verb == e.PERSIST:
            self._durable_at = max(self._durable_at, self.world.now + self.world.some(0.002))
        elif verb == e.AFTER_PERSIST:
            self.world.at(self._durable_at, self.send, effect[1], effect[2])
        elif verb == e.WARN:
            self.world.note(self, f"says: {effect[1]}")
        else:
            raise SimulationError(f"{self.name} asks for an unknown effect: {effect}")

    def send(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if type(message) is tuple and message[0] in (PUSH, CALL):
            check_wanted(self, message[2])
            for spec in message[2]:
                self.cluster.judge.task_pushed(spec[0], peer)
        elif isinstance(message, StartActor):
            self.cluster.judge.actor_placed(message.actor_id, peer)
        if not self.alive:
            return
        if peer == self.id and self.role == "agent":
            self.handle(peer, tuple(wire.pack(message)))
        elif not self.world.send(self, peer, message) and not self._excused(peer, message):
            raise SimulationError(f"{self.name} says {message} to {self.world.name(peer)}, which it never dialled")

    def _excused(self, peer: bytes, message: tuple[Any, ...]) -> bool:
        """Whether something may be said to somebody who can not be reached: he is dead, or does not listen any more.

        Agents do not know where the owners of other nodes are, who hear of what was spilled only if they have dialled; and of
        what they say again until it is answered, the first word may come before they have heard of a new node.
        """
        again = (wire.ObjectsSpilled, FreePrimaries, RequestCopy, CopiesHeld)
        return peer in self.world.dead or peer in self._met or isinstance(message, again)

    def die(self) -> None:
        self.alive = False
        self._mail.clear()


class Unreadable(Exception):
    """An object can not be read where it is said to lie."""


class OwnerBody(Body):
    """A driver or worker: an Owner, and threads of user code."""

    def __init__(
        self, cluster: Cluster, node: SimNode, process_id: bytes, name: str, role: str, *receivers: str
    ) -> None:
        self.node = node
        self.agent = node.agent_id
        self.address: Address = (process_id, f"sim://{name}")
        self.owner = Owner(self.address, b"", node.id, self.agent, cluster.world.config, self._counted_ref)
        self._exported: dict[bytes, None] = {}
        self._requests: dict[int, tuple[Thread | None, bytes, Any]] = {}
        self.resync = Resync(self.owner, self.open_words)
        super().__init__(cluster, process_id, name, role, node.machine.name, self.owner, "owner", "any", *receivers)
        self.judge = cluster.judge
        self.inbox: list[bytes] = []
        self.threads: list[Thread] = []
        self.kept: list[ObjectRef[Any]] = []  # references that tasks left in this process
        self.kept_handles: list[Handle] = []
        self.budgets: list[CallBudget] = []
        self.task_ids = TaskIDs(process_id)
        self.current: Thread | None = None  # the thread that runs, or was the last to run
        self.job_id = b""
        self._asked: dict[int, str] = {}  # what those requests were, for the text of a failure
        self._next_request = 1
        self._templates: dict[Any, TaskTemplate] = {}
        self._fail_call = self.owner.calls._fail
        self.owner.calls._fail = self._judge_failed_call
        self.dial(self.agent)
        self.dial(CONTROL)

    def leaves(self) -> list[Any]:
        return [self.resync]

    def on_broken(self, peer: bytes) -> None:
        if peer == CONTROL:
            self.turn()  # what the one before had said came first
            self.resync.begin()
            self.finish()

    def open_words(self) -> list[Any]:
        """The questions to the control that have no answer yet."""
        return [message for _, peer, message in self._requests.values() if peer == CONTROL]

    def _counted_ref(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        return ObjectRef(object_id, owner, self.inbox.append)

    # -- the loop -------------------------------------------------------------------------------------------------

    def after_event(self) -> None:
        """An owner's invariants hold after ``settle``."""

    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        entries: Any = ()
        if message[0] == DONE:
            self.judge.answered.update(dict.fromkeys(item[0] for item in message[2]))
            entries = [entry for item in message[2] for entry in item[1]]
        elif message[0] == OBJECT_VALUE:
            entries = [message[2]]
        elif message[0] in (PUSH, CALL):
            entries = [slot[3] for spec in message[2] for slot in spec[3]]
        elif message[0] == ITEMS:
            entries = message[4]
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
        while self.alive:
            self.drain()
            self.owner.settle(self.world.now)
            super().finish()
            if not self.inbox:
                break
        if self.alive:
            self.owner.check()

    def send(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if type(message) is tuple and message[0] == REFS:
            for object_id, borrower, delta in message[1]:
                if delta > 0:
                    self.judge.registered(object_id, borrower, self.id)
        super().send(peer, message)

    def execute(self, effect: tuple[Any, ...]) -> None:
        if effect[0] == e.RESOLVE:
            waiter = effect[1]
            self.world.after(self.world.some(0.0005), waiter.signal.step, True)
        elif effect[0] == e.ADOPT_FILE:
            Thread(self, self.adopt_file(*effect[1:]), lambda result, error: None).step()
        else:
            super().execute(effect)

    def die(self) -> None:
        super().die()
        for thread in self.threads:
            thread.close()
        self.threads.clear()
        self.forget()

    def forget(self) -> None:
        """What tasks left behind in this process goes."""
        self.kept.clear()
        self.kept_handles.clear()

    def _judge_failed_call(self, now: float, task: Task, entry: Entry, worker: bytes) -> None:
        self.judge.call_failed(task, pickle.loads(entry[1]))
        self._fail_call(now, task, entry, worker)

    # -- messages of the body -------------------------------------------------------------------------------------

    def on_hello(self, now: float, peer: bytes, *fields: Any) -> None:
        """Only agents care who comes."""

    def on_collect_garbage(self, now: float, peer: bytes, reason: str) -> None:
        """There are no cycles here."""

    def on_refuse(self, now: float, peer: bytes, reason: str) -> None:
        raise SimulationError(f"{self.name} was refused: {reason}")

    def on_job_ended(self, now: float, peer: bytes, reason: str) -> None:
        self.world.note(self, f"its job has ended: {reason}")  # and so will its process, with that of its node

    def on_notice(self, now: float, peer: bytes, text: str) -> None:
        self.world.note(self, f"shows: {text}")

    def on_reply(self, now: float, peer: bytes, request_id: int, ok: bool, value: Any) -> None:
        if request_id == 0:
            return  # nobody waits for the registration of an actor without a name
        if request_id not in self._requests:
            return  # it was asked twice
        thread, *_ = self._requests.pop(request_id)
        del self._asked[request_id]
        if thread is not None:
            self.world.after(self.world.some(0.0002), thread.step, (ok, value))

    # -- what threads wait for ------------------------------------------------------------------------------------

    def perform(self, thread: Thread, request: tuple[Any, ...]) -> None:
        what = request[0]
        if what in ("sleep", "work"):
            self.world.after(request[1], thread.step)
        elif what == "ask":
            self._ask(thread, *request[1:])
        elif what == "item":
            _, waiter, stream, index = request
            waiter.signal = thread
            self.owner.await_item(waiter, stream, index)
        elif what == "wait":
            _, waiter, refs, timeout_s = request
            waiter.signal = thread
            self.owner.watch(waiter, refs)
            if timeout_s is not None:
                self.world.after(timeout_s, self._time_out, waiter)

    def _ask(self, thread: Thread | None, peer: bytes, message: Any, fields: tuple[Any, ...]) -> None:
        asked = message(self._next_request, *fields)
        self._requests[self._next_request] = (thread, peer, asked)
        self._asked[self._next_request] = f"{message.__name__} of {self.world.name(peer)}"
        self._next_request += 1
        self.send(peer, asked)

    def waits_for(self) -> str:
        """What it has asked for and not got, for the text of a failure."""
        objects = [object_id.hex() for object_id in self.owner.waiters.watchers]
        tasks = [task_id.hex() for task_id in self.owner.tasks.pending]
        return f"objects {objects}, tasks {tasks}, answers {self._asked}, {self.owner.statistics()}"

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
        borrowed = self.current.borrowed if self.current is not None else None
        if borrowed is not None and owner[0] != self.id:
            borrowed[object_id] = owner
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
        ok, place = yield ("ask", self.agent, wire.CreateObject, (object_id, size))
        if not ok:
            raise ObjectStoreFullError(place[1])
        if place != "exists":
            yield ("work", self.world.some(0.001))
            self._write(object_id, place, made.pickle, owner)
        return (STORED, size, self.node.id, contained)

    def _write(self, object_id: bytes, place: tuple[Any, ...], data: bytes, owner: bytes) -> None:
        if isinstance(place[0], str):
            checksum = self.node.disk.write(place[0], data)
        else:
            checksum = self.node.memory.write(place[0], object_id, data)
        self.send(self.agent, wire.SealObject(object_id, owner, checksum))

    def put(self, tag: str, value: Any) -> Steps:
        """Make an object; its reference."""
        object_id = self.task_ids() + PUT_INDEX
        self.judge.expected[object_id] = tag
        self.judge.touched(self.id, object_id)
        entry = yield from self.entry(object_id, value, self.id)
        self.owner.put(object_id, entry)
        return ObjectRef(object_id, self.address, self.inbox.append)

    def export(self, function: bytes) -> bytes:
        """Give a function to the cluster, once; its id: each job has its own."""
        function_id = self.job_id + function[:12]
        if function_id not in self._exported:
            self._exported[function_id] = None
            self._ask(None, CONTROL, wire.ExportFunction, (self.job_id, function_id, function.decode(), b"body"))
        return function_id

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
        strategy: tuple[Any, ...] = ("default",),
    ) -> list[ObjectRef[Any]]:
        """Submit a task; references to its results."""
        task_id = self.task_ids()
        key = (function, tuple(demand.items()), retries, returns, strategy)
        template = self._templates.get(key)
        if template is None:
            function_id = self.export(function)
            template = TaskTemplate(function_id, function.decode(), ResourceSet.of(demand), returns, retries, None, strategy)
            self._templates[key] = template
        made = serialization.serialize(arguments)
        ids = tuple(return_id(task_id, n + 1) for n in range(returns))
        for number, object_id in enumerate(ids):
            self.judge.expected[object_id] = f"{tag}/{number}"
            self.judge.touched(self.id, object_id)
        self.judge.retries[task_id] = retries
        if "GPU" in demand:
            self.judge.infeasible[task_id] = None
        self.judge.strategies[task_id] = (strategy, demand)
        task = Task(task_id, template, made.pickle, tuple(enumerate(slots)), tuple(made.refs), ids, depth)
        self.adopt_task(task)
        self.owner.submit(self.world.now, task)
        return [ObjectRef(object_id, self.address, self.inbox.append) for object_id in ids]

    def adopt_task(self, task: Task) -> None:
        """Whose child a task is."""
        if self.current is not None and self.role == "worker":
            task.parent = self.judge.parents[task.id] = self.current.task_id

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None = None) -> Steps:
        """The outcome of each reference, a value or an exception; None when the time ran out."""
        in_time = yield from self._await(refs, timeout_s)
        if not in_time:
            return None
        outcomes = []
        for ref in refs:
            outcome = yield from self._recovered(ref, timeout_s)
            if outcome is None:
                return None
            outcomes.append(outcome)
        return outcomes

    def _await(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> Steps:
        missing = [ref for ref in refs if ref.binary() not in self.owner.memory]
        if not missing:
            return True
        self.on_blocking(True)
        try:
            in_time = yield ("wait", Waiter(len(missing)), missing, timeout_s)
        except Interrupted:
            self.on_blocking(False)
            raise
        self.on_blocking(False)
        return in_time

    def _recovered(self, ref: ObjectRef[Any], timeout_s: float | None) -> Steps:
        """The value of an object, or the error; what can not be read is brought back."""
        object_id = ref.binary()
        for _ in range(RECOVERIES_MAX):
            entry = self.owner.memory.get(object_id)
            if entry is not None:
                outcome = yield from self.read(object_id, entry)
                if not isinstance(outcome, Unreadable):
                    return outcome
                self.owner.recover(object_id, entry[2], str(outcome))
            in_time = yield from self._await([ref], timeout_s)
            if not in_time:
                return None
        lost = ObjectLostError(f"{object_id.hex()} can not be read", object_id.hex())
        self.judge.error_seen(self.id, object_id, lost, read=True)
        return lost

    def read(self, object_id: bytes, entry: Entry) -> Steps:
        """The value or the error of an entry; ``Unreadable`` if its bytes can not be had."""
        if entry[0] == ERROR:
            error = pickle.loads(entry[1])
            self.judge.error_seen(self.id, object_id, error)
            return error
        if entry[0] == INLINE:
            value = serialization.deserialize(entry[1])
        else:
            urgent = self.current is None or not self.current.starting
            ok, place = yield ("ask", self.agent, wire.PinObject, (object_id, urgent, entry[2], entry[1]))
            if not ok and place[0] == "lost":
                return Unreadable(place[1])
            if not ok:
                full = ObjectStoreFullError(place[1])
                self.judge.error_seen(self.id, object_id, full, read=True)
                return full
            value = serialization.deserialize(self._bytes(place, object_id))
            self.world.after(self.world.some(0.01), self._unpin, place, object_id)
        self.judge.value_seen(self.id, object_id, value)
        return value

    def adopt_file(self, object_id: bytes, size: int, path: str, position: int, checksum: int) -> Steps:
        """Bring what a lost node has spilled into the store of this one."""
        yield ("work", self.world.some(0.005))
        problem, full = f"{path} can not be read from here", False
        if path in self.cluster.bucket:
            problem = ""
            data = self.cluster.bucket[path][position]
            assert (len(data), crc32(data)) == (size, checksum)
            ok, place = yield ("ask", self.agent, wire.CreateObject, (object_id, size))
            if not ok:
                problem, full = place[1], True
            elif place != "exists":
                self._write(object_id, place, data, self.id)
        self.owner.on_file_adopted(self.world.now, object_id, problem, full)

    def _bytes(self, place: tuple[Any, ...], object_id: bytes) -> bytes:
        if isinstance(place[0], str):
            return self.node.disk.read(place[0], place[1], place[3])
        return self.node.memory.read(place[0], object_id)

    def _unpin(self, place: tuple[Any, ...], object_id: bytes) -> None:
        """The last view of the object is gone; until now its bytes must have been left alone."""
        if self.alive:
            self._bytes(place, object_id)
            self.send(self.agent, wire.UnpinObjects([object_id]))
