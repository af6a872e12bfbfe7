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
from typing import TYPE_CHECKING, Any

from zray import object_ref
from zray.base import wire
from zray.base.config import Config
from zray.base.wire import CONTROL, Address
from zray.core import effects as e
from zray.core.tasks import Task
from zray.exceptions import ObjectLostError
from zray.io.loop import NUDGE
from zray.io.spawn import set_title
from zray.object_ref import ObjectRef
from zray.runtime.core_worker import CoreWorker
from zray.runtime.executor import NO_LEASE, Executor, Slot, exit_code
from zray.runtime.voice import Voice, say

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey


class WorkerSettings:
    """What a node tells each of its workers; passed on by fork."""

    def __init__(
        self,
        session_path: str,
        cluster: bytes,
        config: Config,
        node: dict[str, Any],
        endpoint_prefix: str,
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


class TaskExecutor(Executor, CoreWorker):
    """A worker process."""

    def __init__(self, settings: WorkerSettings, worker_id: bytes) -> None:
        endpoint = f"{settings.endpoint_prefix}{worker_id[6:10].hex()}"
        CoreWorker.__init__(
            self, "worker", worker_id, endpoint, settings.cluster, settings.config, settings.host, settings.key
        )
        Executor.__init__(self, settings.config)
        self.add_handlers(self, "worker")
        self.on_timers("worker", self.on_busy_timer)
        self.join(b"", settings.node)
        self.voice = Voice(self)
        self.signal: Any = None  # a Waitable: the main thread waits for tasks
        self.blocking = self.on_blocking
        self.thread = threading.main_thread().ident or 0
        self.loop.user_frame = Executor._execute.__code__
        self._flush_s = settings.config.flush_ms / 1000
        self._flush_at = 0.0
        self._exiting: SystemExit | None = None
        self._visible_gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.on_effect(e.HANG_UP, self._hang_up)
        self.transport.dial(self.agent, settings.node["endpoint"])
        if settings.node["with_control"]:  # one process hosts both
            self.transport.alias(CONTROL, self.agent)
        else:
            self.transport.dial(CONTROL, settings.node["control"])

    def executor(self) -> Executor | None:
        return self

    # -- in the loop ----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether the main thread has something to do."""
        return bool(self.queue) or self._leaving

    def _hang_up(self, peer: bytes) -> None:
        self.stop_generators(peer)
        self._order.forget(peer)
        self.transport.hang_up(peer)

    def on_exit_worker(self, now: float, peer: bytes, reason: str) -> None:
        """The node has no use for this worker: it ends, unless others need what it owns.

        What an actor without handles still does, and what its own actors do for it, is done for nobody: if it takes long, the
        node ends it.
        """
        owner = self.owner
        own = owner.calls.own(owner.references.owners)
        if NO_LEASE in self.leases:
            needed = owner.references.lent_beyond(own.values())
        else:
            needed = owner.needed() or bool(own or self.queue or self._running_since)
        if needed:
            self.send(peer, wire.WorkerStays(self.me))
            return
        self._leaving = True
        self.wake()

    def nudge(self) -> None:
        signal.pthread_kill(self.thread, NUDGE)

    def calm(self) -> None:
        self.loop.interrupted = False

    def end_now(self) -> None:
        self.settle(time.monotonic())
        self.transport.close(linger_ms=1000)
        os._exit(1)

    def settle(self, now: float) -> None:
        self.settle_results(now)
        super().settle(now)

    def wake(self) -> None:
        if self.signal is not None:
            try:
                self.signal.release()
            except RuntimeError:
                pass  # it is awake already

    def submit(self, task: Task) -> None:
        task.parent = self.cancellation.current()
        super().submit(task)

    # -- the main thread ------------------------------------------------------------------------------------------

    def on_interrupt(self, signum: int, frame: Any) -> None:
        """Signal handler: somebody sent SIGINT to this process."""
        if self.cancellation.running:
            self.loop.on_interrupt(signum, frame)

    def on_nudge(self, signum: int, frame: Any) -> None:
        """Signal handler: there is something to look at."""
        if self.cancellation.wants_interrupt():
            self.loop.interrupted = True
        self.loop.on_nudge(signum, frame)

    def run(self) -> None:
        """Run tasks, or the calls of an actor, until told to end."""
        queue = self.queue
        monotonic = time.monotonic
        while not self._leaving and self.broken is None:
            try:
                item = queue.popleft()
            except IndexError:
                self._running_since = 0.0
                self.voice.rest()
                self._flush()
                self.loop.wait(self)
                continue
            self.do(item)
            if queue and monotonic() >= self._flush_at:
                self._flush()
        self._flush()
        if self._exiting is not None:
            self.leave(exit_code(self._exiting))

    def _flush(self) -> None:
        """Have results sent: turn the loop if nobody does."""
        self._flush_at = time.monotonic() + self._flush_s
        self.loop.turn_if_free()

    def read(self, slots: list[Slot]) -> list[Any]:
        _, object_ids, owners, entries = zip(*slots, strict=True)
        try:
            return self.store.read(object_ids, entries, [owner[0] for owner in owners], urgent=False)
        except ObjectLostError:  # their owners may know better by now, or can have them made again
            return self.get([self.borrow(*whose) for whose in zip(object_ids, owners, strict=True)])

    def read_lost(self, object_id: bytes, owner: Address) -> None:
        self.get([self.borrow(object_id, owner)])

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        refs = self._adopted.refs
        if refs is not None and owner[0] != self.me:
            refs[object_id] = owner
        return super().adopt(object_id, owner)

    # -- the end --------------------------------------------------------------------------------------------------

    def end_if_forked(self, code: int = 0) -> None:
        """End a fork that the user's code made and that comes back to ours.

        It has none of this process's threads, and must not touch its sockets. What it was to do there is done.
        """
        if os.getpid() != self._pid:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def end_soon(self, error: SystemExit) -> None:
        self._exiting = error
        self._leaving = True
        self.loop.post((self.wake,))

    def leave(self, code: int) -> None:
        self._flush()
        self._leaving = True
        self.loop.post((self.hand_back,))
        self.drain()
        self.close(linger_ms=1000)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def crash(self, error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(70)

    # -- what a task needs ----------------------------------------------------------------------------------------

    def show_bar(self, state: str) -> None:
        """A progress bar of this worker has moved: the driver draws it."""
        say("bar", state)

    def enter_lease(self, lease_id: int) -> None:
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

    def meet(self, owner: Address) -> None:
        self.transport.dial(*owner)
        self.owner.meet(owner[0])

    def call_site(self) -> str:
        site = super().call_site()
        return f"{self.task_name}()" if site.startswith(("spawn.py:", "<string>:")) else f"{site} in {self.task_name}()"


def run_worker(settings: WorkerSettings, worker_id: bytes) -> None:
    """The whole life of a worker process, from the fork on."""
    set_title("zray-worker")
    gc.set_threshold(50_000, 20, 50)  # tasks make many short-lived tuples; the default looks at them far too often
    executor = TaskExecutor(settings, worker_id)
    signal.signal(signal.SIGINT, executor.on_interrupt)
    signal.signal(NUDGE, executor.on_nudge)
    executor.loop.nudges = True
    object_ref.connected = executor

    def on_error(error: BaseException) -> None:
        traceback.print_exception(error)
        os._exit(70)

    executor.loop.run_in_thread("zray-loop", on_error)
    executor.tell(executor.agent, wire.WorkerReady(worker_id, executor.address[1], os.getpid()))
    executor.run()
    executor.drain()
    executor.close(linger_ms=200)
