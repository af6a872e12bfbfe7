"""Actors of the simulated world: their handles, what users do with them, and the host that a worker has become."""

from __future__ import annotations

import functools
import hashlib
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from zray import object_ref
from zray.base import serialization
from zray.base.ids import return_id
from zray.base.resources import ResourceSet
from zray.base.wire import DONE, ERROR, INLINE, Address
from zray.base.wire_actors import ActorExiting, ActorStarted, GetActor, KillActor, RegisterActor
from zray.core.actor_calls import ActorTaskQueue
from zray.core.tasks import CallBudget, Task, TaskTemplate
from zray.object_ref import ObjectRef

from . import cancels
from .bodies import CONTROL, OwnerBody
from .cancels import Interrupted
from .threads import Steps, Thread

if TYPE_CHECKING:
    from .processes import WorkerBody
    from .workloads import Arguments

CONSTRUCTOR, METHOD = b"constructor-----", b"method----------"
NOTHING = ResourceSet({})


class Description(NamedTuple):
    """What a handle knows of its actor."""

    ordered: bool
    retries: int
    detached: bool


class Options(NamedTuple):
    """How an actor is created."""

    name: str
    get_if_exists: bool
    detached: bool
    restarts: int
    retries: int
    concurrency: int  # 1: its calls run in order
    resources: dict[str, float]
    strategy: tuple[Any, ...] = ("default",)


class ActorExit(Exception):
    """A method ends its actor."""


class Handle:
    """A handle of an actor; without a reference it does not keep the actor."""

    __slots__ = ("actor_id", "description", "found", "handle_id", "owner", "ref")

    def __init__(
        self,
        actor_id: bytes,
        handle_id: bytes,
        owner: Address,
        description: Description,
        ref: ObjectRef[Any] | None,
        found: bool,
    ) -> None:
        self.actor_id = actor_id
        self.handle_id = handle_id
        self.owner = owner
        self.description = description
        self.ref = ref
        self.found = found  # by a name, or made of one that does not count: it may come too late to keep the actor

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.actor_id, self.handle_id, self.owner, tuple(self.description), self.ref, self.found)
        return _received, fields


def _received(
    actor_id: bytes, handle_id: bytes, owner: Address, described: Any, ref: ObjectRef[Any] | None, found: bool
) -> Handle:
    """A handle came out of a value."""
    body = object_ref.connected
    assert isinstance(body, OwnerBody)
    description = Description(*described)
    if ref is None:
        found = True
        if not description.detached:
            ref = borrow(body, handle_id, owner)
    return Handle(actor_id, handle_id, owner, description, ref, found)


def borrow(body: OwnerBody, object_id: bytes, owner: Address) -> ObjectRef[Any]:
    """A reference that nobody handed on."""
    body.owner.borrow(object_id, owner)
    return ObjectRef(object_id, owner, body.inbox.append)


# -- what users do ----------------------------------------------------------------------------------------------------


def create(
    body: OwnerBody, tag: str, options: Options, arguments: Arguments, slots: list[ObjectRef[Any]], depth: int
) -> Steps:
    """Create an actor; its handle, that of the actor which has the name already, or None where the name is taken."""
    task_id = body.task_ids()
    handle_id = return_id(task_id, 1)
    actor_id = body.job_id + hashlib.blake2b(task_id, digest_size=8).digest()
    description = Description(options.concurrency == 1, options.retries, options.detached)
    extra = {
        "max_restarts": options.restarts,
        "concurrency": options.concurrency,
        "handle": (handle_id, body.address, tuple(description)),
    }
    template = TaskTemplate(body.export(CONSTRUCTOR), "constructor", NOTHING, 1, 0, extra)
    template.actor = (actor_id, handle_id)
    template.creates = True
    made = serialization.serialize(arguments)
    body.judge.actor_made(actor_id, body, options)
    what = (options.detached, options.get_if_exists, options.restarts, {"CPU": 10_000})
    registration: RegisterActor | None = RegisterActor(
        0,
        actor_id,
        body.job_id,
        body.address[1],
        handle_id,
        "Actor",
        options.name,
        "",
        *what,
        dict(ResourceSet.of(options.resources)),
        pickle.dumps(tuple(description)),
        options.strategy,
    )
    if options.name:
        assert registration is not None
        body.owner.references.own(handle_id)  # others may find the name before this process hears that it has it
        ref: ObjectRef[Any] = ObjectRef(handle_id, body.address, body.inbox.append)
        ok, known = yield ("ask", CONTROL, RegisterActor, tuple(registration)[1:])
        if not ok:
            return None
        if known is not None:
            return _found(body, known)
        registration = None
    task = Task(task_id, template, made.pickle, tuple(enumerate(slots)), tuple(made.refs), (handle_id,), depth)
    body.owner.create_actor(body.world.now, task, registration)
    if not options.name:
        ref = ObjectRef(handle_id, body.address, body.inbox.append)
    return Handle(actor_id, handle_id, body.address, description, ref, found=False)


def _found(body: OwnerBody, known: tuple[Any, ...]) -> Handle:
    """The handle of an actor that the control knows."""
    actor_id, handle_id, owner, blob, detached = known
    ref = None if detached else borrow(body, handle_id, owner)
    return Handle(actor_id, handle_id, owner, Description(*pickle.loads(blob)), ref, found=True)


def find(body: OwnerBody, name: str) -> Steps:
    """The handle of the actor of that name, or None."""
    ok, known = yield ("ask", CONTROL, GetActor, (name, ""))
    return _found(body, known) if ok else None


def kill(body: OwnerBody, handle: Handle, *, no_restart: bool) -> None:
    body.world.faults += 1
    body.judge.actor_killed(handle.actor_id, no_restart)
    body.send(CONTROL, KillActor(handle.actor_id, no_restart))


def call(
    body: OwnerBody, handle: Handle, tag: str, arguments: Arguments, slots: list[ObjectRef[Any]], returns: int = 1
) -> list[ObjectRef[Any]]:
    """Call a method; references to its results."""
    task_id = body.task_ids()
    template = TaskTemplate(METHOD, "method", NOTHING, returns, handle.description.retries, None)
    template.actor = (handle.actor_id, handle.handle_id)
    template.ordered = handle.description.ordered
    template.budget = CallBudget(1)
    assert template.budget.take()
    body.budgets.append(template.budget)
    made = serialization.serialize(arguments)
    ids = tuple(return_id(task_id, n + 1) for n in range(returns))
    for number, object_id in enumerate(ids):
        body.judge.expected[object_id] = f"{tag}/{number}"
        body.judge.touched(body.id, object_id)
    body.judge.call_made(task_id, body.id, handle, retried=arguments.retried)
    nested = tuple(made.refs) if handle.ref is None else (handle.ref, *made.refs)
    task = Task(task_id, template, made.pickle, tuple(enumerate(slots)), nested, ids, 0)
    body.adopt_task(task)
    body.owner.submit(body.world.now, task)
    return [ObjectRef(object_id, body.address, body.inbox.append) for object_id in ids]


# -- the actor's process ----------------------------------------------------------------------------------------------


class ActorHost:
    """The actor that a worker has become: its constructor runs, then its calls, so many at once as it allows.

    Args:
        body: the worker.
        start: the fields of StartActor.
    """

    def __init__(
        self,
        body: WorkerBody,
        actor_id: bytes,
        incarnation: int,
        job_id: bytes,
        resources: dict[str, int],
        gpu_ids: tuple[int, ...],
        creation: bytes,
    ) -> None:
        spec, self.owner = pickle.loads(creation)
        extra = spec[7]
        self.id = actor_id
        self.incarnation = incarnation
        self.depth: int = spec[5]
        self.limit: int = extra["concurrency"]
        self.order = ActorTaskQueue()
        self.closing = False
        self.ready = False
        self.started: ActorStarted | None = None  # what the control was told
        self._body = body
        self._handle: tuple[bytes, Address, Any] = extra["handle"]
        self._waiting: deque[tuple[bytes, Any]] = deque()
        self._active: dict[bytes, None] = {spec[0]: None}
        self._cancelled: dict[bytes, None] = {}
        body.job_id = job_id
        body.owner.enter_job(job_id)
        body.dial(self.owner[0])
        body.owner.meet(self.owner[0])
        body.judge.actor_started(actor_id, body)
        ended = functools.partial(self._constructed, spec, body.world.now)
        body.world.after(0.0, Thread(body, self._construct(spec), ended).step)

    @property
    def busy(self) -> bool:
        return bool(self._active or self._waiting)

    def handle(self) -> Handle:
        """A handle of itself, which does not keep it."""
        handle_id, owner, described = self._handle
        return Handle(self.id, handle_id, owner, Description(*described), None, found=True)

    def accept(self, peer: bytes, first: int, specs: list[Any]) -> None:
        for spec in self.order.accept(peer, first, specs):
            self._waiting.append((peer, spec))
        self._start_more()

    def cancel(self, task_id: bytes) -> bool:
        """A call is not wanted any more; whether it runs."""
        for peer, spec in self._waiting:
            if spec[0] == task_id:
                self._waiting.remove((peer, spec))
                error = cancels.outcome(Interrupted(), task_id)
                answer = (task_id, ((ERROR, pickle.dumps(error, 5)),) * spec[4], 0, ())
                self._body.send(peer, (DONE, 0, [answer]))
                return False
        if task_id in self._active and self.ready:
            self._cancelled[task_id] = None
            return True
        return False

    # -- inside ---------------------------------------------------------------------------------------------------

    def _construct(self, spec: Any) -> Steps:
        body = self._body
        body.world.note(body, f"becomes actor {self.id.hex()}, incarnation {self.incarnation}")
        yield from body.fetch(spec[1])
        arguments = yield from body.arguments(spec)
        yield from body.cluster.construct(body, arguments, self.depth)

    def _constructed(self, spec: Any, started: float, result: Any, error: BaseException | None) -> None:
        body = self._body
        del self._active[spec[0]]
        self.ready = error is None
        payload = b"" if error is None else pickle.dumps(error, 5)
        entry = (ERROR, payload) if payload else (INLINE, pickle.dumps(None))
        body.finished(self.owner[0], 0, spec[0], (entry,), started)
        if body.world.rng.random() < 0.5:
            body.flush()
        self.started = ActorStarted(self.id, self.incarnation, payload)
        body.send(CONTROL, self.started)
        body.flush()
        self._start_more()

    def _start_more(self) -> None:
        body = self._body
        while self.ready and self._waiting and len(self._active) < self.limit and not self.closing:
            peer, spec = self._waiting.popleft()
            self._active[spec[0]] = None
            ended = functools.partial(self._ended, peer, spec, body.world.now)
            thread = Thread(body, self._execute(peer, spec), ended)
            thread.task_id = spec[0]
            body.world.after(0.0, thread.step)

    def _execute(self, peer: bytes, spec: Any) -> Steps:
        body = self._body
        body.judge.call_started(body.id, peer, spec[0])
        body.world.note(body, f"runs call {spec[0].hex()}")
        arguments = yield from body.arguments(spec)
        values = yield from body.cluster.run_task(body, arguments, spec[4], self.depth)
        if spec[0] in self._cancelled:
            raise Interrupted
        return (yield from body.results(peer, spec[0], values))

    def _ended(self, peer: bytes, spec: Any, started: float, entries: Any, error: BaseException | None) -> None:
        body = self._body
        del self._active[spec[0]]
        self._cancelled.pop(spec[0], None)
        if isinstance(error, ActorExit):
            if not self.closing:
                self.closing = True
                body.judge.actor_exits(self.id)
                body.send(body.agent, ActorExiting(self.id, "it called exit_actor()"))
        else:
            if error is not None:
                entry: Any = (ERROR, pickle.dumps(cancels.outcome(error, spec[0]), 5))
                again = body.judge.calls[spec[0]].retried and not isinstance(error, Interrupted)
                entries = ((*entry, True) if again else entry,) * spec[4]
            body.finished(peer, 0, spec[0], entries, started)
        if self.closing or not self._waiting or body.world.rng.random() < 0.4:
            body.flush()
        if not self.closing:
            self._start_more()
        elif not self._active:
            body.finish()
            body.node.end_worker(body, "it called exit_actor()", politely=True)
