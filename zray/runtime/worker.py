"""Worker: the process that runs tasks, or is an actor.

The main thread takes pushed tasks one after the other; between tasks it turns the loop itself, so that an idle worker
answers a push without a hand-over between threads. Results gather for up to ``flush_ms`` while there is more to run. A
task that runs for longer leaves the loop to the loop thread, which sends the results so far and hands the tasks waiting
behind it back to their owners.

A worker that is told to become an actor runs the constructor in the main thread and then that actor's calls, there or
where ``runtime/actor.py`` says, until its process ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray import object_ref
from zray.base import serialization, wire
from zray.base.config import Config
from zray.base.ids import return_id
from zray.base.resources import from_units
from zray.base.serialization import Payload
from zray.base.wire import CONTROL, DONE, ERROR, INLINE, STORED, Address, Entry
from zray.base.wire_actors import ActorExiting, ActorStarted, StartActor
from zray.core import effects as e
from zray.core.actor_calls import ActorTaskQueue
from zray.core.entries import error_entry
from zray.exceptions import ActorDiedError, ObjectLostError
from zray.io.spawn import redirect_output, set_title
from zray.object_ref import ObjectRef
from zray.runtime import failures
from zray.runtime.actor import Actor, ActorExit
from zray.runtime.core_worker import CoreWorker
from zray.runtime.explainer import whereabouts

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

ARGUMENTS = -1  # the slot of a reference to all arguments at once, when they are large
_LEASES_KEPT = 16
_BECOME = -1  # in the queue, in place of a lease: become an actor
_NO_LEASE = 0  # ... calls of the actor
_NOTHING: Entry = (INLINE, serialization.serialize(None).inline())
HANDBACK_TIMER = "worker.handback"


class WorkerSettings:
    """What a node tells each of its workers; passed on by fork."""

    def __init__(
        self,
        session_path: str,
        cluster: bytes,
        config: Config,
        node: dict[str, Any],
        endpoint_prefix: str,
        log_to_driver: bool,
        host: str = "",
        key: ClusterKey | None = None,
    ) -> None:
        self.host = host  # where other machines reach this one; nothing if there are none
        self.key = key
        self.session_path = session_path
        self.cluster = cluster
        self.config = config
        self.node = node
        self.endpoint_prefix = endpoint_prefix
        self.log_to_driver = log_to_driver


class _Adopted(threading.local):
    """The references that came out of the arguments of the call that this thread runs."""

    refs: dict[bytes, Address] | None = None


class TaskExecutor(CoreWorker):
    """A worker process."""

    def __init__(self, settings: WorkerSettings, worker_id: bytes) -> None:
        endpoint = f"{settings.endpoint_prefix}{worker_id[6:10].hex()}"
        super().__init__("worker", worker_id, endpoint, settings.cluster, settings.config, settings.host, settings.key)
        self.add_handlers(self, "worker")
        self.on_timers("worker", self._on_busy_timer)
        self.join(b"", settings.node)
        self.signal: Any = None  # a Waitable: the main thread waits for tasks
        self.blocking = self._on_blocking
        self.task_id = b""
        self.task_name = ""
        self.lease_id = 0
        self.leases: dict[int, tuple[bytes, dict[str, int], tuple[int, ...]]] = {}
        self._events: deque[tuple[str, float, float]] = deque(maxlen=settings.config.timeline_events_max)
        self._queue: deque[tuple[bytes, int, Any]] = deque()
        self._functions: dict[bytes, Any] = {}
        self._calls: dict[bytes, int] = {}
        self._results: dict[tuple[bytes, int], list[Any]] = {}  # not sent yet; used in the loop only
        self._flush_s = settings.config.flush_ms / 1000
        self._handback_s = settings.config.handback_ms / 1000
        self._flush_at = 0.0
        self._running_since = 0.0
        self._timer_set = False
        self._blocked = 0
        self._leaving = False
        self._exiting: SystemExit | None = None
        self._visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._adopted = _Adopted()
        self.becoming: Actor | None = None  # while its constructor runs, and from then on
        self.actor: Actor | None = None
        self._order = ActorTaskQueue()
        self.on_effect(e.HANG_UP, self._hang_up)
        self.transport.dial(self.agent, settings.node["endpoint"])
        if settings.node["with_control"]:  # one process hosts both
            self.transport.alias(CONTROL, self.agent)
        else:
            self.transport.dial(CONTROL, settings.node["control"])

    # -- messages (in the loop) -----------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the main thread has something to do."""
        return bool(self._queue) or self._leaving

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

    def on_list_events(self, now: float, peer: bytes, request_id: int) -> None:
        self.send(peer, wire.Reply(request_id, True, list(self._events)))

    def on_explain_task(self, now: float, peer: bytes, request_id: int, task_id: bytes) -> None:
        waiting = [spec[0] for _, _, spec in self._queue if isinstance(spec, tuple)]
        self.send(peer, wire.Reply(request_id, True, whereabouts(self, task_id, waiting, now - (self._running_since or now))))

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        self._queue.extend([(peer, lease_id, spec) for spec in specs])
        if self._blocked or self._leaving:
            self._hand_back()
        elif self._running_since == 0.0 and self.signal is not None:
            self._wake_main()

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
        self.leases[_NO_LEASE] = (job_id, resources, gpu_ids)
        self._queue.append((peer, _BECOME, StartActor(actor_id, incarnation, job_id, resources, gpu_ids, creation)))
        self._wake_main()

    def on_call(self, now: float, peer: bytes, first: int, specs: list[Any]) -> None:
        self.owner.meet(peer)
        if self.actor is not None:
            for spec in self._order.accept(peer, first, specs):
                self.actor.submit(peer, spec)

    def enqueue(self, peer: bytes, spec: Any) -> None:
        """In the loop: a call for the main thread."""
        self._queue.append((peer, _NO_LEASE, spec))
        if self._running_since == 0.0 and self.signal is not None:
            self._wake_main()

    def _hang_up(self, peer: bytes) -> None:
        self._order.forget(peer)
        self.transport.hang_up(peer)

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        """The node has no use for this worker: it ends, unless others need what it owns.

        What an actor without handles still does, and what its own actors do for it, is done for nobody: if it takes long, the
        node ends it.
        """
        owner = self.owner
        own = owner.calls.own(owner.references.owners)
        if _NO_LEASE in self.leases:
            needed = owner.references.lent_beyond(own.values())
        else:
            needed = owner.needed() or bool(own or self._queue or self._running_since)
        if needed:
            self.send(peer, wire.WorkerStays(self.me))
            return
        self._leaving = True
        self._wake_main()

    def settle(self, now: float) -> None:
        if self._results:
            self._send_done()
        if self._queue and self._running_since and self.actor is None:
            due = self._running_since + self._handback_s
            if now >= due:
                self._hand_back()
            elif not self._timer_set:
                self._timer_set = True
                self.loop.add_timer(due, (HANDBACK_TIMER,))
        super().settle(now)

    def _on_busy_timer(self, now: float, key: Any) -> None:
        self._timer_set = False  # settle, which follows, looks again

    def _wake_main(self) -> None:
        if self.signal is not None:
            try:
                self.signal.release()
            except RuntimeError:
                pass  # it is awake already

    def _hand_back(self) -> None:
        """Give what is not started back to its owners."""
        back: dict[tuple[bytes, int], list[bytes]] = {}
        while True:
            try:
                peer, lease_id, spec = self._queue.pop()
            except IndexError:
                break
            back.setdefault((peer, lease_id), []).append(spec[0])
        for (peer, lease_id), task_ids in back.items():
            task_ids.reverse()
            self.send(peer, wire.HandBack(lease_id, task_ids))

    def _on_blocking(self, begin: bool) -> None:
        """The main thread waits inside a task: lend the CPU out, and keep nobody waiting behind this task."""
        if begin:
            self._blocked += 1
            if self._blocked == 1:
                if self.actor is None:
                    self.loop.post((self._hand_back,))
                self.tell(self.agent, wire.WorkerBlocked(self.me))
        else:
            self._blocked -= 1
            if self._blocked == 0:
                self.tell(self.agent, wire.WorkerUnblocked(self.me))

    # -- the main thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run tasks, or the calls of an actor, until told to end."""
        queue = self._queue
        monotonic = time.monotonic
        while not self._leaving and self.broken is None:
            try:
                peer, lease_id, spec = queue.popleft()
            except IndexError:
                self._running_since = 0.0
                self._flush()
                self.loop.wait(self)
                continue
            if lease_id == _BECOME:
                self._become(spec)
            else:
                self._execute(peer, lease_id, spec)
            if queue and monotonic() >= self._flush_at:
                self._flush()
        self._flush()
        if self._exiting is not None:
            self._leave(_exit_code(self._exiting))

    def _flush(self) -> None:
        """Have results sent: turn the loop if nobody does."""
        self._flush_at = time.monotonic() + self._flush_s
        self.loop.turn_if_free()

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
            self._enter(lease_id)
        self.task_id = task_id
        self.task_name = name
        if depth:  # calls of an actor have none: it stays as deep as it was created, and where
            self.depth = depth
            self.placement_group = None if extra is None else extra.get("placement_group")
        self._adopted.refs = None
        function = self._functions.get(function_id)
        started = self._running_since = time.monotonic()
        entries: Any
        try:
            if function is None:
                function = self._load_function(function_id, name)
                started = time.monotonic()
            if payload is None and not slots:
                result = function()
            else:
                args, kwargs = self.arguments(payload, slots)
                result = function(*args, **kwargs)
                del args, kwargs
            ended = time.monotonic()
            entries = self.entries(peer, task_id, result, num_returns, name)
        except SystemExit as error:
            self.exit(error)
        except BaseException as error:
            ended = time.monotonic()
            entries = (self.error_entry(error, name, extra),) * num_returns
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
            places, object_ids, owners, entries = zip(*stored, strict=True)
            try:
                read = self.store.read(object_ids, entries, [owner[0] for owner in owners], urgent=False)
            except ObjectLostError:  # their owners may know better by now, or can have them made again
                read = self.get([self.borrow(*whose) for whose in zip(object_ids, owners, strict=True)])
            values = dict(zip(places, read, strict=True))
        for where, object_id, owner, entry in slots:
            if entry[0] == ERROR:  # it was lost after it had been there
                self.get([self.borrow(object_id, owner)])
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

    def entries(self, peer: bytes, task_id: bytes, result: Any, num_returns: int, name: str) -> tuple[Entry, ...]:
        """What the owner will know of the results."""
        self.end_if_forked()
        if num_returns == 1:
            return self._given(peer, (self._result(peer, return_id(task_id, 1), result),))
        if num_returns == 0:
            return ()
        try:
            values: tuple[Any, ...] | None = tuple(result)
        except TypeError:
            values = None
        if values is None or len(values) != num_returns:
            got = f"{len(values)} values" if values is not None else f"a {type(result).__name__}"
            raise ValueError(f"{name}() has num_returns={num_returns} but returned {got}: return that many in a tuple")
        entries = tuple(self._result(peer, return_id(task_id, i + 1), value) for i, value in enumerate(values))
        return self._given(peer, entries)

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

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        refs = self._adopted.refs
        if refs is not None and owner[0] != self.me:
            refs[object_id] = owner
        return super().adopt(object_id, owner)

    # -- what can go wrong ----------------------------------------------------------------------------------------

    def error_entry(self, error: BaseException, name: str, extra: dict[str, Any] | None) -> Entry:
        """An exception of a task or call as an entry."""
        self.end_if_forked()
        return failures.of_task(error, name, extra, self.node_id.hex())

    def exit(self, error: SystemExit) -> None:
        """``sys.exit`` in a task ends the worker, as it would end any process. An actor may say that this was its will."""
        self.announce_exit(error)
        self._leave(_exit_code(error))

    def end_if_forked(self, code: int = 0) -> None:
        """End a fork that the user's code made and that comes back to ours.

        It has none of this process's threads, and must not touch its sockets. What it was to do there is done.
        """
        if os.getpid() != self._pid:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def announce_exit(self, error: SystemExit) -> None:
        """An actor ends by its own will, unless it says that something went wrong: it is not to be restarted."""
        self.end_if_forked(_exit_code(error))
        if self.actor is not None and error.code in (None, 0):
            name = "exit_actor" if isinstance(error, ActorExit) else "sys.exit"
            self.tell(self.agent, ActorExiting(self.actor.id, self.actor.incarnation, f"it called {name}()"))

    def end_soon(self, error: SystemExit) -> None:
        """Have the main thread end this process; safe in any thread."""
        self._exiting = error
        self._leaving = True
        self.loop.post((self._wake_main,))

    def note(self, name: str, started: float, ended: float) -> None:
        """For the timeline: a call that did not run in the main thread."""
        self._events.append((name, started, ended))

    def _leave(self, code: int) -> None:
        self._flush()
        self._leaving = True
        self.loop.post((self._hand_back,))
        self.drain()
        self.close(linger_ms=1000)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def _count_call(self, function_id: bytes, max_calls: int) -> None:
        self._calls[function_id] = calls = self._calls.get(function_id, 0) + 1
        if calls >= max_calls:
            self._leave(0)

    # -- what a task needs ----------------------------------------------------------------------------------------

    def _enter(self, lease_id: int) -> None:
        """The first task of a lease: become a worker of its job."""
        self.lease_id = lease_id
        job_id, _, gpu_ids = self.leases[lease_id]
        if gpu_ids:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(str(i) for i in gpu_ids)
        elif self._visible_gpus is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:  # as it was before a task that had GPUs
            os.environ["CUDA_VISIBLE_DEVICES"] = self._visible_gpus
        if job_id == self.job_id:
            return
        job = self.call(CONTROL, wire.FetchJob, job_id)
        self.job_id = job_id
        self.namespace = job["namespace"]
        environment = job["environment"]
        for path in environment.get("sys_path", ()):
            if path not in sys.path:
                sys.path.append(path)
        self.env_vars = environment.get("env_vars") or {}
        os.environ.update(self.env_vars)
        try:
            os.chdir(environment["cwd"])
        except OSError:
            pass  # the directory of the driver may not exist on this machine
        self.loop.post((self.owner.enter_job, job_id))

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
            self._enter(_NO_LEASE)
            self.loop.post((self._meet, owner))
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
        self.finish(owner[0], _NO_LEASE, (task_id, (entry,), run_us, self._adopted.refs or {}))

    def _meet(self, owner: Address) -> None:
        """In the loop: the process that created the actor will be told how its constructor went."""
        self.transport.dial(*owner)
        self.owner.meet(owner[0])

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

    def call_site(self) -> str:
        site = super().call_site()
        return f"{self.task_name}()" if site.startswith(("spawn.py:", "<string>:")) else f"{site} in {self.task_name}()"

    def gpu_ids(self) -> list[int]:
        """The GPUs of the running task."""
        return list(self.leases[self.lease_id][2])

    def assigned_resources(self) -> dict[str, float]:
        """What the running task was given."""
        _, resources, _ = self.leases[self.lease_id]
        return {name: from_units(units) for name, units in resources.items()}


def _exit_code(error: SystemExit) -> int:
    """As of a program that ends with this error."""
    return error.code if isinstance(error.code, int) else 0 if error.code is None else 1


def run_worker(settings: WorkerSettings, worker_id: bytes) -> None:
    """The whole life of a worker process, from the fork on."""
    set_title("zray-worker")
    if not settings.log_to_driver:
        redirect_output(os.path.join(settings.session_path, "logs", f"worker-{worker_id[6:10].hex()}.log"))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    gc.set_threshold(50_000, 20, 50)  # tasks make many short-lived tuples; the default looks at them far too often
    executor = TaskExecutor(settings, worker_id)
    signal.signal(signal.SIGINT, executor.loop.on_interrupt)
    object_ref.connected = executor

    def on_error(error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(70)

    executor.loop.run_in_thread("zray-loop", on_error)
    executor.tell(executor.agent, wire.WorkerReady(worker_id, executor.address[1], os.getpid()))
    executor.run()
    executor.drain()
    executor.close(linger_ms=200)
