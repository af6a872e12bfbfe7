"""Worker: the process that runs tasks.

The main thread takes pushed tasks one after the other; between tasks it turns the loop itself, so that an idle worker
answers a push without a hand-over between threads. Results gather for up to ``flush_ms`` while there is more to run. A
task that runs for longer leaves the loop to the loop thread, which hands the tasks waiting behind it back to their
owners.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from zray import object_ref
from zray.base import serialization, wire
from zray.base.config import Config
from zray.base.ids import return_id
from zray.base.resources import from_units
from zray.base.serialization import Payload
from zray.base.wire import CONTROL, DONE, ERROR, STORED, Address, Entry
from zray.exceptions import RayError, RayTaskError, TaskCancelledError
from zray.io.spawn import redirect_output, set_title
from zray.object_ref import ObjectRef
from zray.runtime.core_worker import CoreWorker

ARGUMENTS = -1  # the slot of a reference to all arguments at once, when they are large
_LEASES_KEPT = 16
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
    ) -> None:
        self.session_path = session_path
        self.cluster = cluster
        self.config = config
        self.node = node
        self.endpoint_prefix = endpoint_prefix
        self.log_to_driver = log_to_driver


class TaskExecutor(CoreWorker):
    """A worker process."""

    def __init__(self, settings: WorkerSettings, worker_id: bytes) -> None:
        endpoint = f"{settings.endpoint_prefix}{worker_id[6:10].hex()}"
        super().__init__("worker", worker_id, endpoint, settings.cluster, settings.config)
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
        self._results: dict[tuple[bytes, int], list[Any]] = {}
        self._flush_s = settings.config.flush_ms / 1000
        self._handback_s = settings.config.handback_ms / 1000
        self._flush_at = 0.0
        self._running_since = 0.0
        self._timer_set = False
        self._blocked = 0
        self._leaving = False
        self._visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._borrowed: dict[bytes, Address] | None = None
        self.transport.dial(self.agent, settings.node["endpoint"])
        if settings.node["with_control"]:  # one process hosts both
            self.transport.alias(CONTROL, self.agent)

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

    def on_push(self, now: float, peer: bytes, lease_id: int, specs: list[Any]) -> None:
        self._queue.extend([(peer, lease_id, spec) for spec in specs])
        if self._blocked or self._leaving:
            self._hand_back()
        elif self._running_since == 0.0 and self.signal is not None:
            self._wake_main()

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        """The node has no use for this worker: it ends, unless others need what it owns."""
        if self.owner.needed() or self._queue or self._running_since:
            self.send(peer, wire.WorkerStays(self.me))
            return
        self._leaving = True
        self._wake_main()

    def settle(self, now: float) -> None:
        if self._queue and self._running_since:
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
                self._flush()
                self.loop.post((self._hand_back,))
                self.tell(self.agent, wire.WorkerBlocked(self.me))
        else:
            self._blocked -= 1
            if self._blocked == 0:
                self.tell(self.agent, wire.WorkerUnblocked(self.me))

    # -- the main thread ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run tasks until told to end."""
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
            self._execute(peer, lease_id, spec)
            if queue and monotonic() >= self._flush_at:
                self._flush()
        self._flush()

    def _flush(self) -> None:
        """Hand results to the loop; turn it if nobody does."""
        self._flush_at = time.monotonic() + self._flush_s
        if self._results:
            results, self._results = self._results, {}
            self.loop.post((self._send_done, results))
        self.loop.turn_if_free()

    def _send_done(self, results: dict[tuple[bytes, int], list[Any]]) -> None:
        """In the loop: report finished tasks, and which of the references they brought are kept."""
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
        self.depth = depth
        self._borrowed = None
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
                args, kwargs = self._arguments(payload, slots)
                result = function(*args, **kwargs)
                del args, kwargs
            ended = time.monotonic()
            entries = self._entries(peer, task_id, result, num_returns, name)
            del result
        except SystemExit as error:
            self._exit(error)
        except BaseException as error:
            ended = time.monotonic()
            entries = (self._error(error, name, extra),) * num_returns
        self._events.append((name, started, ended))
        item = (task_id, entries, int((ended - started) * 1e6), self._borrowed or ())
        key = (peer, lease_id)
        items = self._results.get(key)
        if items is None:
            self._results[key] = [item]
        else:
            items.append(item)
        if extra is not None and "max_calls" in extra:
            self._count_call(function_id, extra["max_calls"])

    def _arguments(self, payload: Payload | None, slots: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a task: what came along, with the values of top-level references in their places."""
        self._borrowed = {}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        if payload is not None:
            args, kwargs = serialization.deserialize(payload)
            args = list(args)
        stored = [(where, object_id) for where, object_id, _, entry in slots if entry[0] == STORED]
        values: dict[Any, Any] = {}
        if stored:
            read = self.store.read([object_id for _, object_id in stored], urgent=False)
            values = dict(zip([where for where, _ in stored], read, strict=True))
        for where, _, _, entry in slots:
            value = values[where] if entry[0] == STORED else serialization.deserialize(entry[1])
            if where == ARGUMENTS:
                args, kwargs = list(value[0]), dict(value[1])
            elif isinstance(where, int):
                args[where] = value
            else:
                kwargs[where] = value
        return args, kwargs

    def _entries(self, peer: bytes, task_id: bytes, result: Any, num_returns: int, name: str) -> tuple[Entry, ...]:
        """What the owner will know of the results."""
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
        if self._borrowed is not None and owner[0] != self.me:
            self._borrowed[object_id] = owner
        return super().adopt(object_id, owner)

    # -- what can go wrong ----------------------------------------------------------------------------------------

    def _error(self, error: BaseException, name: str, extra: dict[str, Any] | None) -> Entry:
        """An exception of the task as an entry; anything that can not travel is replaced by its text."""
        cause: BaseException = error
        if isinstance(error, RayTaskError) and error.cause is not None:
            cause = error.cause  # came through get: the same error goes on
        text = "".join(traceback.format_exception(type(error), error, _user_frames(error)))
        if isinstance(error, KeyboardInterrupt):
            return self._pickled(TaskCancelledError(f"{name}() was interrupted"))
        if isinstance(error, RayError) and not isinstance(error, RayTaskError):
            wrapped: RayError = RayTaskError(name, text, error, os.getpid(), self.node_id.hex())
        else:
            wrapped = RayTaskError(name, text, cause, os.getpid(), self.node_id.hex())
        entry = self._pickled(wrapped)
        retry = extra.get("retry_exceptions") if extra else None
        if retry is not None and (retry is True or isinstance(cause, serialization.deserialize(retry))):
            return (*entry, True)
        return entry

    def _pickled(self, error: RayError) -> Entry:
        """The entry of an error. The cause of a task's error is pickled apart: who can not read it has the text still."""
        if not isinstance(error, RayTaskError):
            return (ERROR, serialization.serialize(error).inline())
        text, cause = error.traceback_str, None
        try:
            cause = serialization.serialize(error.cause).inline()
            serialization.deserialize(cause)  # many exceptions pickle and can not be read back
        except Exception as problem:
            text += f"\n(the exception itself could not be pickled: {problem})"
            cause = None
        bare = RayTaskError(error.function_name, text, None, error.pid, error.node)
        return (ERROR, serialization.serialize((bare, cause)).inline())

    def _exit(self, error: SystemExit) -> None:
        """``sys.exit`` in a task ends the worker, as it would end any process."""
        self._leave(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)

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

    def _load_function(self, function_id: bytes, name: str) -> Callable[..., Any]:
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


def _user_frames(error: BaseException) -> Any:
    """The traceback without the frames of the worker itself."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames or error.__traceback__


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
