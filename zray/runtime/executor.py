"""Executor: what runs tasks one after the other, or is an actor.

A worker process is one; in local mode a thread of the user's own process is. The body that mixes this class in says where the
loop, the brain and the values are, wakes whoever runs what is in the queue, and knows what the end of an executor is.

Results gather until the end of a turn of the loop. What waits behind a task that runs for long is handed back to its owners.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from zray.base import serialization, wire
from zray.base.config import Config
from zray.base.ids import END_INDEX, return_id
from zray.base.resources import from_units
from zray.base.serialization import Payload, Serialized
from zray.base.wire import CONTROL, DONE, ERROR, INLINE, STORED, Address, Entry
from zray.base.wire_actors import ActorExiting, ActorStarted, StartActor
from zray.core.actor_calls import ActorTaskQueue
from zray.core.entries import contained_in, error_entry
from zray.exceptions import ActorDiedError
from zray.runtime import failures
from zray.runtime.actor import Actor, ActorExit
from zray.runtime.cancellation import Cancellation
from zray.runtime.explainer import whereabouts
from zray.runtime.generator_runner import GeneratorRunner

if TYPE_CHECKING:
    from zray.core.owner import Owner
    from zray.core.waiters import Waiter
    from zray.io.loop import Loop
    from zray.object_ref import ObjectRef

ARGUMENTS = -1  # the slot of a reference to all arguments at once, when they are large
HANDBACK_TIMER = "worker.handback"
NO_LEASE = 0  # in the queue, in place of a lease: calls of the actor
_BECOME = -1  # ... become an actor
_RUN = -2  # ... have something run
_LEASES_KEPT = 16
_NOTHING: Entry = (INLINE, serialization.serialize(None).inline())

Slot = tuple[Any, bytes, Address, Entry]  # where an argument stood, its object, the owner of that, and what he knew
Item = tuple[bytes, int, Any]  # who wants it, its lease, and the task or call


class _Adopted(threading.local):
    """The references that came out of the arguments of the call that this thread runs."""

    refs: dict[bytes, Address] | None = None


class Executor:
    """What runs tasks, or is an actor. The body that mixes it in has what is declared here.

    Args:
        config: limits.
    """

    me: bytes
    agent: bytes
    node_id: bytes
    job_id: bytes
    loop: Loop
    owner: Owner
    send: Callable[[bytes, tuple[Any, ...]], None]  # in the loop
    tell: Callable[[bytes, tuple[Any, ...]], None]
    tell_control: Callable[[tuple[Any, ...]], None]
    call: Callable[..., Any]
    on_inbox: Callable[[float], None]
    entry: Callable[[bytes, Serialized, bytes], Entry]
    adopt: Callable[[bytes, Address], ObjectRef[Any]]
    block: Callable[[Waiter], None]
    config: Config

    def __init__(self, config: Config) -> None:
        self.config = config
        self.depth = 0
        self.placement_group: tuple[bytes, bool] | None = None
        self.thread = 0  # the one that runs what is in the queue
        self.task_id = b""
        self.task_name = ""
        self.lease_id = 0
        self.leases: dict[int, tuple[bytes, dict[str, int], tuple[int, ...]]] = {}
        self.event_loop_thread = 0  # of an asynchronous actor
        self.becoming: Actor | None = None  # while its constructor runs, and from then on
        self.actor: Actor | None = None
        self._events: deque[tuple[str, float, float]] = deque(maxlen=config.timeline_events_max)
        self.queue: deque[Item] = deque()
        self._functions: dict[bytes, Any] = {}
        self._calls: dict[bytes, int] = {}
        self._results: dict[tuple[bytes, int], list[Any]] = {}  # not sent yet; used in the loop only
        self._handback_s = config.handback_ms / 1000
        self._running_since = 0.0
        self._timer_set = False
        self._blocked = 0
        self._leaving = False
        self._adopted = _Adopted()
        self._order = ActorTaskQueue()
        self.runners: dict[bytes, GeneratorRunner] = {}  # of the generators that run, by task
        self.cancellation = Cancellation(self)
        self._pid = os.getpid()

    # -- the body's ------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """In the loop: have the queue looked at by whoever runs what is in it."""
        raise NotImplementedError

    def leave(self, code: int) -> None:
        """End as a process that exits; does not return."""
        raise NotImplementedError

    def end_now(self) -> None:
        """In the loop: end in the middle of a task, after all that is known of others was sent."""
        raise NotImplementedError

    def nudge(self) -> None:
        """In the loop: have the task that runs interrupted."""
        raise NotImplementedError

    def calm(self) -> None:
        """A task is over: what was to interrupt it and has not come does not come any more."""
        raise NotImplementedError

    def end_soon(self, error: SystemExit) -> None:
        """Have this executor end; safe in any thread."""
        raise NotImplementedError

    def end_if_forked(self, code: int = 0) -> None:
        """End a fork that the user's code made and that comes back to ours."""
        raise NotImplementedError

    def crash(self, error: BaseException) -> None:
        """A call can not be answered: its caller must hear of the end of the actor at least."""
        raise NotImplementedError

    def enter(self) -> None:
        """A thread or coroutine of the actor begins with a call."""

    def run_thread(self, work: Callable[[], None]) -> None:
        """The whole life of a thread of the actor."""
        work()

    def run_user_code(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function that calls what may take long, in a thread of the actor."""
        function(*args)

    def enter_lease(self, lease_id: int) -> None:
        """The first task of a lease: become a worker of its job."""
        raise NotImplementedError

    def read(self, slots: list[Slot]) -> list[Any]:
        """The values of large arguments."""
        raise NotImplementedError

    def read_lost(self, object_id: bytes, owner: Address) -> None:
        """Raise why an argument is lost that had been there, unless it comes back."""
        raise NotImplementedError

    def meet(self, owner: Address) -> None:
        """In the loop: the process that created the actor will be told how its constructor went."""
        raise NotImplementedError

    # -- messages (in the loop) -----------------------------------------------------------------------------------

    def on_open_lease(
        self,
        now: float,
        peer: bytes,
        lease_id: int,
        job_id: bytes,
        resources: dict[str, int],
        gpu_ids: tuple[int, ...],
    ) -> None:
        self.leases[lease_id] = (job_id, resources, gpu_ids)
        if len(self.leases) > _LEASES_KEPT:  # it serves one at a time; only a few can have tasks in the queue still
            del self.leases[next(iter(self.leases))]

    def on_items_taken(self, now: float, peer: bytes, task_id: bytes, taken: int) -> None:
        if task_id in self.runners:
            self.runners[task_id].on_taken(taken)

    def stop_generators(self, peer: bytes) -> None:
        """In the loop: who wanted the items is gone."""
        for runner in list(self.runners.values()):
            if runner.peer == peer:
                runner.stop()

    def on_list_events(self, now: float, peer: bytes, request_id: int) -> None:
        self.send(peer, wire.Reply(request_id, True, list(self._events)))

    def on_explain_task(self, now: float, peer: bytes, request_id: int, task_id: bytes) -> None:
        waiting = [spec[0] for _, _, spec in list(self.queue) if isinstance(spec, tuple)]
        self.send(peer, wire.Reply(request_id, True, whereabouts(self, task_id, waiting, now - (self._running_since or now))))

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        self.queue.extend([(peer, lease_id, spec) for spec in specs])
        if self._blocked or self._leaving:
            self.hand_back()
        elif self._running_since == 0.0:
            self.wake()

    def on_start_actor(
        self,
        now: float,
        peer: bytes,
        actor_id: bytes,
        incarnation: int,
        job_id: bytes,
        resources: dict[str, int],
        gpu_ids: tuple[int, ...],
        creation: bytes,
    ) -> None:
        if peer != self.agent:
            return  # nobody else lends workers out
        self.leases[NO_LEASE] = (job_id, resources, gpu_ids)
        self.queue.append((peer, _BECOME, StartActor(actor_id, incarnation, job_id, resources, gpu_ids, creation)))
        self.wake()

    def on_cancel_task(self, now: float, peer: bytes, task_id: bytes, force: bool, recursive: bool) -> None:
        self.cancellation.cancel(now, task_id, force, recursive)
        if task_id in self.runners and self.actor is not None:
            self.runners[task_id].cancel()

    def on_call(self, now: float, peer: bytes, first: int, specs: list[Any]) -> None:
        self.owner.meet(peer)
        if self.actor is not None:
            for spec in self._order.accept(peer, first, specs):
                self.actor.submit(peer, spec)

    def enqueue(self, peer: bytes, spec: Any) -> None:
        """In the loop: a call for the main thread."""
        self.queue.append((peer, NO_LEASE, spec))
        if self._running_since == 0.0:
            self.wake()

    def enqueue_run(self, peer: bytes, what: tuple[bytes, Callable[[Any], None], Any]) -> None:
        """In the loop: a call, by its id, that the main thread has to do in a way of its own."""
        self.queue.append((peer, _RUN, what))
        if self._running_since == 0.0:
            self.wake()

    def settle_results(self, now: float) -> None:
        """In the loop: send results, and hand back what has waited for too long."""
        if self._results:
            self._send_done()
        if self.queue and self._running_since and self.actor is None:
            due = self._running_since + self._handback_s
            if now >= due:
                self.hand_back()
            elif not self._timer_set:
                self._timer_set = True
                self.loop.add_timer(due, (HANDBACK_TIMER, self.me))

    def on_busy_timer(self, now: float, key: Any) -> None:
        self._timer_set = False  # settle, which follows, looks again

    def hand_back(self) -> None:
        """In the loop: give what is not started back to its owners."""
        back: dict[tuple[bytes, int], list[bytes]] = {}
        while True:
            try:
                peer, lease_id, spec = self.queue.pop()
            except IndexError:
                break
            back.setdefault((peer, lease_id), []).append(spec[0])
        for (peer, lease_id), task_ids in back.items():
            task_ids.reverse()
            self.send(peer, wire.HandBack(lease_id, task_ids))

    def on_blocking(self, begin: bool) -> None:
        """The main thread waits inside a task: lend the CPU out, and keep nobody waiting behind this task."""
        if begin:
            self._blocked += 1
            if self._blocked == 1:
                if self.actor is None:
                    self.loop.post((self.hand_back,))
                self.tell(self.agent, wire.WorkerBlocked(self.me))
        else:
            self._blocked -= 1
            if self._blocked == 0:
                self.tell(self.agent, wire.WorkerUnblocked(self.me))

    # -- running --------------------------------------------------------------------------------------------------

    def do(self, item: Item) -> None:
        """Run a task or call, or become an actor."""
        peer, lease_id, spec = item
        if lease_id == _BECOME:
            self._become(spec)
        elif lease_id == _RUN:
            self._running_since = time.monotonic()
            _, function, argument = spec
            function(argument)
        else:
            self._execute(peer, lease_id, spec)

    def finish(self, peer: bytes, lease_id: int, item: tuple[Any, ...]) -> None:
        """A task or call has its results; safe in any thread."""
        self.loop.post((self._finished, peer, lease_id, item))

    def _finished(self, peer: bytes, lease_id: int, item: tuple[Any, ...]) -> None:
        key = (peer, lease_id)
        items = self._results.get(key)
        if items is None:
            self._results[key] = [item]
        else:
            items.append(item)

    def _send_done(self) -> None:
        """In the loop: report finished tasks, and which of the references they brought are kept."""
        results, self._results = self._results, {}
        for (peer, lease_id), items in results.items():
            for index, item in enumerate(items):
                if item[3]:
                    items[index] = (item[0], item[1], item[2], self.owner.kept(item[3]))
            self.send(peer, (DONE, lease_id, items))

    def _execute(self, peer: bytes, lease_id: int, spec: Any) -> None:
        task_id, function_id, payload, slots, num_returns, depth, name, extra = spec
        if lease_id != self.lease_id:
            self.lease_id = lease_id
            self.enter_lease(lease_id)
        self.task_id = task_id
        self.task_name = name
        if depth:  # calls of an actor have none: it stays as deep as it was created, and where
            self.depth = depth
            self.placement_group = None if extra is None else extra.get("placement_group")
        self._adopted.refs = None
        function = self._functions.get(function_id)
        started = self._running_since = time.monotonic()
        cancellation = self.cancellation
        entries: Any
        try:
            if function is None:
                function = self._load_function(function_id, name)
                started = time.monotonic()
            cancellation.running = task_id
            if cancellation.cancelled:
                cancellation.look()
            if payload is None and not slots:
                result = function()
            else:
                args, kwargs = self.arguments(payload, slots)
                result = function(*args, **kwargs)
                del args, kwargs
            made = GeneratorRunner(self, peer, spec).run(result) if num_returns < 0 else None
            cancellation.running = b""
            if cancellation.cancelled or cancellation.interrupted:
                cancellation.over(task_id)
            ended = time.monotonic()
            entries = self.entries(peer, spec, result) if num_returns >= 0 else self.streamed(peer, spec, made)
        except SystemExit as error:
            cancellation.running = b""
            cancellation.forget()
            self._exit(error)
        except BaseException as error:
            cancellation.running = b""
            cancellation.forget()
            ended = time.monotonic()
            entries = (self.error_entry(error, name, extra, task_id),) * abs(num_returns)
        self._events.append((name, started, ended))
        # The result dies after this: its references may be the last ones, and their release must not overtake it.
        self.loop.post(
            (self._finished, peer, lease_id, (task_id, entries, int((ended - started) * 1e6), self._adopted.refs or ()))
        )
        if extra is not None and "max_calls" in extra:
            self._count_call(function_id, extra["max_calls"])

    def arguments(self, payload: Payload | None, slots: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a task: what came along, with the values of top-level references in their places."""
        self._adopted.refs = {}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if payload is not None:
            args, kwargs = serialization.deserialize(payload)
            args = list(args)
        stored = [slot for slot in slots if slot[3][0] == STORED]
        values: dict[Any, Any] = {}
        if stored:
            values = dict(zip([slot[0] for slot in stored], self.read(stored), strict=True))
        for where, object_id, owner, entry in slots:
            if entry[0] == ERROR:  # it was lost after it had been there
                self.read_lost(object_id, owner)
            value = values[where] if entry[0] == STORED else serialization.deserialize(entry[1])
            if where == ARGUMENTS:
                args, kwargs = list(value[0]), dict(value[1])
            elif isinstance(where, int):
                args[where] = value
            else:
                kwargs[where] = value
        return args, kwargs

    def adopted(self) -> dict[bytes, Address]:
        """The references that came with the arguments this thread has just read."""
        refs, self._adopted.refs = self._adopted.refs, None
        return refs or {}

    def entries(self, peer: bytes, spec: Any, result: Any) -> tuple[Entry, ...]:
        """What the owner will know of the results."""
        self.end_if_forked()
        task_id, num_returns = spec[0], spec[4]
        if num_returns == 1:
            return self._given(peer, (self._result(peer, return_id(task_id, 1), result),))
        if num_returns == 0:
            return ()
        values: Sequence[Any] | None
        missing: tuple[Entry, ...] = ()
        if type(result) is GeneratorType:
            values, missing = self._drawn(spec, result)
            if len(values) > num_returns:
                text = f"{spec[6]}() has num_returns={num_returns} but yielded more: num_returns='streaming' gives all"
                raise ValueError(f"{text} items, as they are made")
        else:
            try:
                values = tuple(result)
            except TypeError:
                values = None
        if values is None or len(values) + len(missing) != num_returns:
            got = f"{len(values)} values" if values is not None else f"a {type(result).__name__}"
            raise ValueError(f"{spec[6]}() has num_returns={num_returns} but returned {got}: return that many in a tuple")
        entries = tuple(self._result(peer, return_id(task_id, i + 1), value) for i, value in enumerate(values))
        return self._given(peer, entries) + missing

    def _drawn(self, spec: Any, generator: Iterator[Any]) -> tuple[list[Any], tuple[Entry, ...]]:
        """The values of a generator with a fixed number of results, and its exception in the place of those that are missing."""
        values = []
        try:
            for value in generator:
                values.append(value)
                if len(values) > spec[4]:
                    break
        except Exception as error:
            entry = self.error_entry(error, spec[6], spec[7], spec[0])
            if len(entry) > 2 or len(values) >= spec[4]:  # it is to be tried again, or there is no place for it
                raise
            return values, (entry,) * (spec[4] - len(values))
        return values, ()

    def streamed(self, peer: bytes, spec: Any, result: Any) -> tuple[Entry, ...]:
        """What the owner will know of a generator that is over."""
        return self._given(peer, (self._result(peer, spec[0] + END_INDEX, result),))

    def give(self, peer: bytes, entry: Entry) -> None:
        """In the loop: register the owner-to-be for the references inside an item of a generator."""
        self._give(contained_in(entry), peer)

    def send_items(self, peer: bytes, message: tuple[Any, ...]) -> None:
        """In the loop: send items of a generator to their owner."""
        self.send(peer, message)

    def _result(self, peer: bytes, object_id: bytes, value: Any) -> Entry:
        return self.entry(object_id, serialization.serialize(value), peer)

    def _given(self, peer: bytes, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Register the owner-to-be for the references inside the results, now that all of them have been made."""
        for entry in entries:
            if len(entry) > 2 and entry[-1]:  # before the values, and with them the last references here, go
                self.loop.post((self._give, entry[-1], peer))
        return entries

    def _give(self, contained: wire.Contained, receiver: bytes) -> None:
        for object_id, owner in contained:
            self.owner.references.give(object_id, owner, receiver)

    # -- what can go wrong ----------------------------------------------------------------------------------------

    def error_entry(self, error: BaseException, name: str, extra: dict[str, Any] | None, task_id: bytes) -> Entry:
        """An exception of a task or call as an entry."""
        self.end_if_forked()
        return failures.of_task(error, name, extra, self.node_id.hex(), task_id.hex())

    def _exit(self, error: SystemExit) -> None:
        """``sys.exit`` in a task ends the worker, as it would end any process. An actor may say that this was its will."""
        self.announce_exit(error)
        self.leave(exit_code(error))

    def announce_exit(self, error: SystemExit) -> None:
        """An actor ends by its own will, unless it says that something went wrong: it is not to be restarted."""
        self.end_if_forked(exit_code(error))
        if self.actor is not None and error.code in (None, 0):
            name = "exit_actor" if isinstance(error, ActorExit) else "sys.exit"
            self.tell(self.agent, ActorExiting(self.actor.id, f"it called {name}()"))

    def note(self, name: str, started: float, ended: float) -> None:
        """For the timeline: a call that did not run in the main thread."""
        self._events.append((name, started, ended))

    def _count_call(self, function_id: bytes, max_calls: int) -> None:
        self._calls[function_id] = calls = self._calls.get(function_id, 0) + 1
        if calls >= max_calls:
            self.leave(0)

    # -- what a task needs ----------------------------------------------------------------------------------------

    def _become(self, start: StartActor) -> None:
        """Become an actor: run its constructor, and say how that went."""
        try:
            spec, owner = serialization.deserialize(start.creation)
        except Exception as error:  # not from an owner of ours: there is nobody to tell but the control
            text = f"the call of its constructor can not be read: {type(error).__name__}: {error}"
            died = error_entry(ActorDiedError(text, start.actor_id.hex()))
            self.tell_control(ActorStarted(start.actor_id, start.incarnation, died[1]))
            return
        task_id, class_id, payload, slots, _, depth, name, extra = spec
        self.task_id, self.task_name, self.depth = task_id, name, depth
        self.placement_group = extra.get("placement_group")
        started = self._running_since = time.monotonic()
        self._adopted.refs = None
        entry: Entry = _NOTHING
        try:
            self.lease_id = NO_LEASE
            self.enter_lease(NO_LEASE)
            self.loop.post((self.meet, owner))
            cls = self._load_function(class_id, name)
            actor = self.becoming = Actor(self, cls, start.actor_id, owner, start.incarnation, extra)
            args, kwargs = self.arguments(payload, slots)
            actor.construct(args, kwargs)
            del args, kwargs
        except BaseException as error:
            entry = failures.of_constructor(error, start.actor_id, extra, self.node_id.hex())
        else:
            self._functions.clear()
            self.actor = actor
        finally:
            self.end_if_forked()
        run_us = int((time.monotonic() - started) * 1e6)
        error_payload = entry[1] if entry[0] == ERROR else b""
        self.tell_control(ActorStarted(start.actor_id, start.incarnation, error_payload))
        self.finish(owner[0], NO_LEASE, (task_id, (entry,), run_us, self._adopted.refs or {}))

    def _load_function(self, function_id: bytes, name: str) -> Callable[..., Any]:
        if self.actor is not None:
            method = self._functions[function_id] = self.actor.method(function_id)
            return method
        name, body = self.call(CONTROL, wire.FetchFunction, function_id)
        try:
            function = serialization.import_function(body)
        except Exception as error:
            advice = (
                f"{name}() can not be loaded in the worker: {type(error).__name__}: {error}. The worker searches the "
                "driver's sys.path and works in its directory. Put the module beside the script, install it, or have it "
                "sent along with cloudpickle.register_pickle_by_value(module)"
            )
            if isinstance(error, ImportError):
                raise ImportError(advice, name=error.name) from error
            raise RuntimeError(advice) from error
        self._functions[function_id] = function
        return function  # type: ignore[no-any-return]

    def gpu_ids(self) -> list[int]:
        """The GPUs of the running task."""
        return list(self.leases[self.lease_id][2])

    def assigned_resources(self) -> dict[str, float]:
        """What the running task was given."""
        _, resources, _ = self.leases[self.lease_id]
        return {name: from_units(units) for name, units in resources.items()}


def exit_code(error: SystemExit) -> int:
    """As of a program that ends with this error."""
    return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
