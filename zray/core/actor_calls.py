"""ActorTaskSubmitter and ActorTaskQueue: the calls of actors, at the caller and at the actor.

Theory of operation
-------------------
A caller sends its calls straight to the actor's process. Until it knows where that is, because the actor is not created yet or
restarts, calls wait in the actor's *queue* here, in the order in which they were made. Those of an ordered actor (one
that is not asynchronous) also wait for each other's arguments: what was called first is sent first.

Calls carry numbers, counted from the same start for each incarnation of the actor, and the receiver takes them in that order,
each once: what it has seen already is dropped, and what comes early waits for what is missing. A process that has lost its
last handle forgets the actor; when it meets it again it starts a *session*, whose numbers begin above all earlier ones.

When the process of the actor ends, the calls it had not answered may have run or not. Those with retries left
(``max_task_retries``) go back to the front of the queue, in their old order; the others get the error that came with the
news. When the actor is dead for good, all its calls get the reason, at once and for ever.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Container
from typing import Any

from zray.base.config import Config
from zray.base.wire import CONTROL, ERROR, Entry
from zray.base.wire_actors import CALL, KillActor, RegisterActor, SubscribeActor, UnsubscribeActor
from zray.core.actor import ActorState
from zray.core.effects import DIAL, SEND, TIMER, Effect
from zray.core.entries import task_cancelled
from zray.core.tasks import WORKER_DIED, Task, TaskManager, payload_bytes
from zray.exceptions import ActorUnavailableError, InvariantError

CONTINUE_TIMER = "calls.continue"
SESSION = 1 << 40  # the numbers of a session begin at a multiple of this


class CallQueue:
    """The calls of one actor that have no result yet."""

    __slots__ = (
        "actor_id",
        "cancelled",
        "continues",
        "dirty",
        "error",
        "handle_id",
        "incarnation",
        "inflight",
        "killed",
        "next",
        "registration",
        "session",
        "tasks",
        "worker",
    )

    def __init__(self, actor_id: bytes, handle_id: bytes, session: int) -> None:
        self.session = session
        self.actor_id = actor_id
        self.handle_id = handle_id
        self.tasks: deque[Task] = deque()
        self.cancelled: set[Task] = set()  # those that will be taken out together
        self.inflight: dict[bytes, Task] = {}  # in the order in which they were sent
        self.incarnation = 0
        self.worker = b""  # the process of the actor, while it is known
        self.next = session  # the number of the next call that is sent there
        self.error = b""  # why it is dead, if it is
        self.killed = False  # this process has it ended: the news will come
        self.registration: RegisterActor | None = None  # until the control has it on disk
        self.dirty = False
        self.continues = False  # there is more to send, at the next timer


class ActorTaskSubmitter:
    """The actors that one process calls.

    Args:
        config: limits.
        out: where effects go.
        tasks: the tasks of this process: what is not pending there any more has its result.
        make_spec: turns a task into the tuple that is sent; None if it must wait for its arguments after all.
        fail: gives a task an error as its result, if it has none; the last argument is the process that had it.
        held: whether a handle is counted in this process.
    """

    __slots__ = (
        "_config",
        "_dirty",
        "_fail",
        "_held",
        "_make_spec",
        "_out",
        "_session",
        "_tasks",
        "by_worker",
        "handles",
        "queues",
    )

    def __init__(
        self,
        config: Config,
        out: list[Effect],
        tasks: TaskManager,
        make_spec: Callable[[Task], tuple[Any, ...] | None],
        fail: Callable[[float, Task, Entry, bytes], None],
        held: Callable[[bytes], bool],
    ) -> None:
        self._config = config
        self._out = out
        self._tasks = tasks
        self._make_spec = make_spec
        self._fail = fail
        self._held = held
        self._session = 0
        self._dirty: list[CallQueue] = []
        self.queues: dict[bytes, CallQueue] = {}
        self.by_worker: dict[bytes, CallQueue] = {}
        self.handles: dict[bytes, bytes] = {}  # the object that stands for an actor's handles -> the actor

    # -- calls ----------------------------------------------------------------------------------------------------

    def open(self, actor_id: bytes, handle_id: bytes, *, subscribed: bool) -> CallQueue:
        """An actor is met for the first time; who registers one is told of it without asking.

        Another thread may have found it by its name, and called it, before the one that named it goes on to create it.
        """
        known = self.queues.get(actor_id)
        if known is not None:
            return known
        queue = self.queues[actor_id] = CallQueue(actor_id, handle_id, self._session)
        self._session += SESSION
        self.handles[handle_id] = actor_id
        if not subscribed:
            self._out.append((SEND, CONTROL, SubscribeActor(actor_id)))
        return queue

    def submit(self, task: Task) -> None:
        """A call was made; it may be sent when its arguments are there and its turn has come."""
        queue = self._queue_of(task)
        queue.tasks.append(task)
        self._touch(queue)

    def submit_again(self, task: Task) -> None:
        """A call raised an exception that is to be retried: those behind it may wait for its result."""
        queue = self._queue_of(task)
        queue.tasks.appendleft(task)
        self._touch(queue)

    def on_arguments_ready(self, task: Task) -> None:
        """The arguments of a call that waits in its queue are there."""
        actor = task.template.actor
        queue = self.queues.get(actor[0]) if actor is not None else None
        if queue is not None:
            self._touch(queue)

    def cancel(self, task: Task) -> bytes:
        """Take a call out of its queue, if it is there; if it was sent, the process that has it."""
        actor = task.template.actor
        queue = self.queues.get(actor[0]) if actor is not None else None
        if queue is None:
            return b""
        if task.id in queue.inflight:
            return queue.worker
        queue.cancelled.add(task)
        self._touch(queue)
        return b""

    def pump(self, now: float) -> None:
        """Send what can be sent, for every actor where something changed."""
        while self._dirty:
            dirty, self._dirty = self._dirty, []
            for queue in dirty:
                queue.dirty = False
                if queue.cancelled:
                    queue.tasks = deque(task for task in queue.tasks if task not in queue.cancelled)
                    queue.cancelled.clear()
                if queue.error:
                    self._fail_all(now, queue)
                    if self.queues.get(queue.actor_id) is queue and not self._held(queue.handle_id):
                        self._close(queue)
                elif queue.worker and not queue.killed:
                    self._send(now, queue)

    def on_done(self, peer: bytes, items: list[Any]) -> None:
        """An actor answered calls."""
        queue = self.by_worker.get(peer)
        if queue is not None:
            for item in items:
                queue.inflight.pop(item[0], None)

    # -- actors ---------------------------------------------------------------------------------------------------

    def on_updated(
        self, now: float, actor_id: bytes, state: str, incarnation: int, worker: bytes, endpoint: str, error: bytes
    ) -> None:
        """The control says where an actor is."""
        queue = self.queues.get(actor_id)
        if queue is None or queue.error or incarnation < queue.incarnation:
            return
        queue.incarnation = incarnation
        queue.registration = None
        if state == ActorState.DEAD.name:
            queue.error = error
        if queue.worker and queue.worker != worker:
            self._lose(now, queue, error)
        if state == ActorState.ALIVE.name and not queue.worker:
            queue.worker = worker
            queue.next = queue.session
            self.by_worker[worker] = queue
            self._out.append((DIAL, worker, endpoint))
        self._touch(queue)

    def kill(self, actor_id: bytes, no_restart: bool, handle_id: bytes) -> None:
        """Have an actor ended. Whether later calls of this process would still run is a matter of chance, so they do not."""
        queue = self.queues.get(actor_id)
        incarnation = 0 if queue is None else queue.incarnation
        if no_restart:
            queue = queue or self.open(actor_id, handle_id, subscribed=False)
            queue.killed = True
        self._out.append((SEND, CONTROL, KillActor(actor_id, no_restart, incarnation)))

    def own(self, borrowed: Container[bytes]) -> dict[bytes, bytes]:
        """The living actors that this process has made and has handles of, and their processes, as far as they are known."""
        return {
            queue.actor_id: queue.worker
            for queue in self.queues.values()
            if queue.handle_id not in borrowed and not queue.error and self._held(queue.handle_id)
        }

    def forget(self, handle_id: bytes) -> bytes:
        """No handle of an actor is counted in this process any more: the actor.

        There are handles that are not counted, of detached actors for example: their calls go on. Of one that was killed the
        news is waited for: the word may have to be said again.
        """
        actor_id = self.handles[handle_id]
        queue = self.queues[actor_id]
        if not queue.tasks and not queue.inflight and not queue.killed:
            self._close(queue)
        return actor_id

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        """There was more to send than fits into one turn."""
        queue = self.queues.get(key[1])
        if queue is not None:
            queue.continues = False
            self._touch(queue)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _queue_of(self, task: Task) -> CallQueue:
        actor = task.template.actor
        assert actor is not None
        return self.queues.get(actor[0]) or self.open(*actor, subscribed=False)

    def _touch(self, queue: CallQueue) -> None:
        if not queue.dirty:
            queue.dirty = True
            self._dirty.append(queue)

    def _close(self, queue: CallQueue) -> None:
        del self.handles[queue.handle_id]
        del self.queues[queue.actor_id]
        self.by_worker.pop(queue.worker, None)
        if not queue.error:
            self._out.append((SEND, CONTROL, UnsubscribeActor(queue.actor_id)))

    def _send(self, now: float, queue: CallQueue) -> None:
        tasks = queue.tasks
        pending = self._tasks.pending
        inflight = queue.inflight
        make_spec = self._make_spec
        room = self._config.actor_calls_bytes_max
        specs = []
        while tasks and not tasks[0].missing and room > 0:
            task = tasks.popleft()
            if task.id not in pending:  # an argument was an error, and that is its result
                continue
            spec = make_spec(task)
            if spec is None:  # it must wait for its arguments after all: an ordered one here
                if task.template.ordered and task.id in pending:
                    tasks.appendleft(task)
                continue
            inflight[task.id] = task
            specs.append(spec)
            room -= 256 + payload_bytes(task.payload)
        if specs:
            self._out.append((SEND, queue.worker, (CALL, queue.next, specs)))
            queue.next += len(specs)
        if tasks and not tasks[0].missing and not queue.continues:
            queue.continues = True
            self._out.append((TIMER, now, (CONTINUE_TIMER, queue.actor_id)))

    def _lose(self, now: float, queue: CallQueue, error: bytes) -> None:
        """The process that had the calls is gone."""
        worker, queue.worker = queue.worker, b""
        del self.by_worker[worker]
        lost, queue.inflight = queue.inflight, {}
        again = []
        for task in lost.values():
            task.tried_on(worker)
            wanted = task.id in self._tasks.pending  # else it ran once more after an answer that came late
            if wanted and not queue.error and self._tasks.may_retry(task, WORKER_DIED):
                again.append(task)
            else:
                gone: Entry = task_cancelled(task) if task.cancelled else (ERROR, error or _missed(queue.actor_id))
                self._fail(now, task, gone, worker)
        queue.tasks.extendleft(reversed(again))

    def _fail_all(self, now: float, queue: CallQueue) -> None:
        tasks, queue.tasks = queue.tasks, deque()
        for task in tasks:
            if task.id in self._tasks.pending:
                self._fail(now, task, (ERROR, queue.error), b"")

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants; true after ``pump``."""
        for queue in self.queues.values():
            if self.handles.get(queue.handle_id) != queue.actor_id:
                raise InvariantError(f"actor {queue.actor_id.hex()} has no handle")
            if queue.error and (queue.tasks or queue.inflight):
                raise InvariantError(f"actor {queue.actor_id.hex()} is dead and has calls")
            if queue.inflight and not queue.worker:
                raise InvariantError(f"calls are on their way to actor {queue.actor_id.hex()}, which is nowhere")
            ready = queue.worker and not queue.killed and queue.tasks and not queue.tasks[0].missing
            if ready and not queue.dirty and not queue.continues:
                raise InvariantError(f"a call of actor {queue.actor_id.hex()} could be sent, and was not")
        for worker, queue in self.by_worker.items():
            if queue.worker != worker or self.queues.get(queue.actor_id) is not queue:
                raise InvariantError(f"actor {queue.actor_id.hex()} and its process disagree")

    def statistics(self) -> dict[str, int]:
        return {
            "actors_called": len(self.queues),
            "calls": sum(len(queue.tasks) + len(queue.inflight) for queue in self.queues.values()),
        }


def _missed(actor_id: bytes) -> bytes:
    """The error of a call whose actor was restarted while nobody here was told."""
    text = f"actor {actor_id.hex()} was restarted. The call may have run or not; max_task_retries has such calls sent again"
    return pickle.dumps(ActorUnavailableError(text, actor_id.hex()), 5)


class ActorTaskQueue:
    """At the actor: the calls of each caller in their order, each once."""

    __slots__ = ("_early", "_next")

    def __init__(self) -> None:
        self._next: dict[bytes, int] = {}
        self._early: dict[bytes, dict[int, Any]] = {}

    def accept(self, caller: bytes, first: int, specs: list[Any]) -> list[Any]:
        """Calls arrived; those that may be taken now."""
        expected = self._next.get(caller, 0)
        session = first - first % SESSION
        if session > expected:  # it forgot this actor, and has met it again
            expected = session
            self._early.pop(caller, None)
        early = self._early.get(caller)
        if first == expected and early is None:
            self._next[caller] = expected + len(specs)
            return specs
        if early is None:
            early = self._early[caller] = {}
        for number, spec in enumerate(specs, first):
            if number >= expected:
                early.setdefault(number, spec)
        taken = []
        while expected in early:
            taken.append(early.pop(expected))
            expected += 1
        self._next[caller] = expected
        if not early:
            del self._early[caller]
        return taken

    def forget(self, caller: bytes) -> None:
        """A caller ended."""
        self._next.pop(caller, None)
        self._early.pop(caller, None)

    def check(self) -> None:
        """Assert the invariants."""
        for caller, early in self._early.items():
            if not early or min(early) <= self._next.get(caller, 0):
                raise InvariantError(f"calls of {caller.hex()} wait although it is their turn")
