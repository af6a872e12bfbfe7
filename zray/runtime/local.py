"""LocalRuntime: local mode, the whole cluster in the user's own process.

Theory of operation
-------------------
The brains are those of a cluster: an owner, the control, and an agent with its scheduler. They live in one process and one loop,
as control and agent do in a head; what they send is handed over (``deliver``). So everything that is decided, from retries and
placement groups to the texts of errors, is decided by the same code as in a cluster. Different are three things: a worker is a
thread (``runtime/local_worker.py``), every value lies with its owner, pickled, and nothing is written to disk.

All objects have one owner. Workers hold references as everybody in the process does, so that nobody has to be told.

A thread that calls ``get`` for one object, without a timeout, and finds that its task has not begun, runs it itself: it would
only wait. So a debugger that looks at the main thread sees the task, with its caller below it, and Ctrl-C reaches it. It says so
in ``claims`` before it waits; the first worker to which that task is pushed is lent to it.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import NodeID, agent_id, driver_id
from zray.base.resources import ResourceSet
from zray.base.serialization import Serialized
from zray.base.wire import CONTROL, INLINE, Entry, pack
from zray.core import effects as e
from zray.core.agent import NodeAgent
from zray.core.gcs import Gcs
from zray.core.tasks import Task
from zray.core.waiters import Waiter
from zray.exceptions import RaySystemError
from zray.object_ref import ObjectRef
from zray.runtime.client import finish
from zray.runtime.core_worker import CoreWorker
from zray.runtime.local_worker import INTERRUPT_TIMER, LocalWorker, current_worker
from zray.runtime.screen import Screen

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey
    from zray.runtime.executor import Executor, Item

_GUESTS_MAX = 5  # tasks that one thread runs inside one another: each takes some fifteen frames of its stack


class _Nesting(threading.local):
    """How many tasks this thread runs inside one another because it waits for them."""

    level = 0


class NoLinks:
    """Stands where others have sockets: there is nobody else to talk to."""

    def __init__(self) -> None:
        self.endpoint = "local"
        self.counts: dict[str, int] = {}
        self.on_refused: Callable[[bytes, str], None] = lambda peer, reason: None
        self.on_lost: Callable[[bytes], None] = lambda peer: None
        self.on_broken: Callable[[bytes], None] = lambda peer: None

    def dial(self, peer: bytes, endpoint: str, watched: bool = False) -> None:
        """Everybody is here."""

    def reach(self, peer: bytes, endpoint: str) -> None:
        """Everybody is here."""

    def alias(self, name: bytes, peer: bytes) -> None:
        """Everybody is here."""

    def hang_up(self, peer: bytes) -> None:
        """Who is gone says nothing."""

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> bool:
        return False

    def peers(self) -> list[bytes]:
        return []

    def flush(self) -> None:
        """Nothing is on its way."""

    def pending(self) -> bool:
        return False

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        """There is no door."""

    def close(self, linger_ms: int = 0) -> None:
        """There is nothing to close."""


class Claim:
    """A thread that waits for one task, and would rather run it."""

    __slots__ = ("given", "waiter")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.given: tuple[LocalWorker, Item] | None = None


class LocalRuntime(CoreWorker):
    """The runtime of a process in local mode.

    Args:
        config: limits.
        resources: what the one node offers, by name.
        namespace: of the job.
        env_vars: set in this process until ``shutdown``.
        labels: of the node.
    """

    def __init__(
        self,
        config: Config,
        resources: dict[str, float],
        namespace: str,
        env_vars: dict[str, str],
        labels: dict[str, str],
    ) -> None:
        node_id = bytes(NodeID.from_random())
        super().__init__("driver", driver_id(node_id), "", b"", config)
        self.running = {"address": "local", "session": ""}
        self.claims: dict[bytes, Claim] = {}
        self.workers: dict[bytes, LocalWorker] = {}
        self._nesting = _Nesting()
        self._stirred: dict[LocalWorker, None] = {}
        self._speaker = self.me
        self._screen = Screen()
        self._previous_env: dict[str, str | None] = {}
        agent = agent_id(node_id)
        self._gcs = Gcs(b"local", config, embedded=True, home=agent, rng=random.Random())
        total = ResourceSet.of(resources)
        cpus = int(resources.get("CPU", 0))
        self._node = NodeAgent(node_id, total, 0, cpus, CONTROL, config, rng=random.Random(), labels=labels)
        self._route_cluster(agent)
        self.join(b"", {"node_id": node_id, "agent": agent, "endpoint": "local"})
        self._voices = {id(self.owner): self.me, id(self._gcs): CONTROL, id(self._node): agent}
        self._here = {self.me, CONTROL, agent}
        now = time.monotonic()
        self._gcs.on_register_node(
            now, agent, node_id, "local", os.uname().nodename, os.getpid(), dict(total), labels, "", 0
        )
        self._node.on_peer_joined(now, self.me, "driver", os.getpid())
        self._node.start(now)
        self._start(namespace, env_vars)

    def _route_cluster(self, agent: bytes) -> None:
        """Have the brains of the cluster heard, and do what they ask for."""
        gcs, node = self._gcs, self._node
        self.add_brain(gcs, "control")
        self.add_handlers(gcs.actors, "control")
        self.add_handlers(gcs.placement, "control")
        self.add_brain(node, "agent")
        self.add_handlers(node.bundles, "agent")
        self.add_handlers(node.transfer, "agent")
        self.add_handlers(node.transfer.search, "agent")
        for name, target in (
            ("gcs", gcs.on_timer),
            ("nodes", gcs.on_timer),
            ("actors", gcs.actors.on_timer),
            ("placement", gcs.placement.on_timer),
            ("agent", node.on_timer),
            ("store", node.on_timer),
            ("transfer", node.transfer.on_timer),
            ("worker", self._on_worker_timer),
        ):
            self.on_timers(name, target)
        self.on_effect(e.PERSIST, lambda statement, parameters: None)
        self.on_effect(e.AFTER_PERSIST, self.send)
        self.on_effect(e.START_WORKER, self._start_worker)
        self.on_effect(e.KILL_WORKER, self._kill_worker)
        self.on_effect(e.WATCH, lambda peer, pid: None)  # who ends takes all with it
        self.on_effect(e.STOP, lambda reason: None)  # shutdown() does that
        self.on_effect(e.MEASURE, lambda: None)  # nobody's memory can be told from that of the others
        self.on_effect(e.COLLECT, lambda: None)

    def _start(self, namespace: str, env_vars: dict[str, str]) -> None:
        """Run the loop, and register the one job."""
        self.namespace = namespace
        self.env_vars = env_vars
        for name, value in env_vars.items():
            self._previous_env[name] = os.environ.get(name)
            os.environ[name] = value
        self.loop.run_in_thread("zray-loop", self._on_loop_error)
        entrypoint = " ".join(sys.argv) or "python"
        answer = self.call(
            CONTROL, wire.RegisterJob, self.me, self.address[1], os.getpid(), entrypoint, namespace, {"env_vars": env_vars}
        )
        self.job_id = answer["job_id"]
        joined = Waiter(1)
        self.loop.post((self.owner.enter_job, self.job_id))
        self.loop.post((finish, joined))
        self.loop.wait(joined)
        self.loop.catch_interrupts()

    def open_links(
        self,
        role: str,
        endpoint: str,
        cluster: bytes,
        decode: Callable[[bytes], Any],
        message_bytes_max: int,
        tcp: tuple[str, int, str] | None,
        key: ClusterKey | None,
    ) -> NoLinks:
        return NoLinks()

    # -- tasks and values -----------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        if task.depth > 1 and task.template.actor is None:
            task.template = task.template.at_depth(task.depth)
        executor = self.executor()
        if executor is not None:
            task.parent = executor.cancellation.current()
        super().submit(task)

    def show_bar(self, state: str) -> None:
        """A progress bar has moved."""
        self._screen.show(bars=[(b"", json.loads(state))])

    def open_store(self, node: dict[str, Any]) -> None:
        """There is none."""

    def close_store(self) -> None:
        """There is none."""

    def entry(self, object_id: bytes, value: Serialized, owner: bytes) -> Entry:
        if not value.refs:
            return (INLINE, value.inline())
        self.check_ours(value.refs)
        return (INLINE, value.inline(), tuple((ref.binary(), ref.owner) for ref in value.refs))

    # -- messages (in the loop) -----------------------------------------------------------------------------------

    def execute(self, brain: Any) -> None:
        before, self._speaker = self._speaker, self._voices[id(brain)]
        super().execute(brain)
        self._speaker = before

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> None:
        self.deliver(self._speaker, peer, msg)

    def deliver(self, sender: bytes, peer: bytes, message: tuple[Any, ...]) -> None:
        """Hand a message over; those of the control plane as a copy, so that no two brains share what can change."""
        if type(message) is not tuple:
            [message] = wire.decode(wire.encode([pack(message)]))
        worker = self.workers.get(peer)
        if worker is not None:
            worker.receive(time.monotonic(), sender, message)
            self.stir(worker)
        elif peer in self._here:
            before, self._speaker = self._speaker, peer
            self._handlers[message[0]](time.monotonic(), sender, *message[1:])
            self._speaker = before

    def settle(self, now: float) -> None:
        while True:
            super().settle(now)
            if not self._stirred:
                return
            stirred, self._stirred = self._stirred, {}
            for worker in stirred:
                worker.settle(now)

    # -- workers (in the loop) ------------------------------------------------------------------------------------

    def stir(self, worker: LocalWorker) -> None:
        """Something happened to a worker: it is looked at, at the end of this turn."""
        if not worker.gone:
            self._stirred[worker] = None

    def end_worker(self, worker: LocalWorker, reason: str) -> None:
        """A worker is over, by its own will or not."""
        if worker.gone:
            return
        worker.settle_results(time.monotonic())
        worker.hand_back()
        self.workers.pop(worker.me, None)
        worker.stop()
        self._node.on_worker_exited(time.monotonic(), worker.me, f"its thread {reason}")

    def _start_worker(self, worker_id: bytes) -> None:
        self.workers[worker_id] = LocalWorker(self, worker_id, self.config)
        self.loop.post((self._started, worker_id))

    def _started(self, worker_id: bytes) -> None:
        if worker_id in self.workers:
            now = time.monotonic()
            self._node.on_peer_joined(now, worker_id, "worker", os.getpid())
            self._node.on_worker_ready(now, worker_id, worker_id, "local", os.getpid())

    def _kill_worker(self, worker_id: bytes) -> None:
        worker = self.workers.get(worker_id)
        if worker is not None:
            self.loop.post((self.end_worker, worker, "was killed"))

    def _on_worker_timer(self, now: float, key: tuple[Any, ...]) -> None:
        worker = self.workers.get(key[1])
        if worker is None:
            return
        if key[0] == INTERRUPT_TIMER:
            worker.nudge()
        else:
            worker.on_busy_timer(now, key)
            self.stir(worker)

    # -- who runs and who waits -----------------------------------------------------------------------------------

    def executor(self) -> Executor | None:
        return current_worker.get()

    @property
    def depth(self) -> int:
        """How deep the running task is nested."""
        worker = current_worker.get()
        return 0 if worker is None else worker.depth

    @depth.setter
    def depth(self, value: int) -> None:
        assert value == 0, "the depth is that of the running task"

    @property
    def placement_group(self) -> tuple[bytes, bool] | None:
        """That of the running task or actor, and whether it captures."""
        worker = current_worker.get()
        return None if worker is None else worker.placement_group

    @placement_group.setter
    def placement_group(self, value: tuple[bytes, bool] | None) -> None:
        assert value is None, "the group is that of the running task"

    def _block(self, waiter: Waiter, timeout_s: float | None, wanted: Sequence[ObjectRef[Any]] = ()) -> bool:
        """Wait in this thread, or do what it would wait for."""
        worker = current_worker.get()
        if worker is None:
            return self._wait_or_run(waiter, timeout_s, wanted)
        thread = threading.get_ident()
        if worker.event_loop_thread == thread:
            self._warn_of_blocking()
        lends = worker.thread == thread
        if lends:
            worker.on_blocking(True)
        try:
            with worker.waits(waiter):
                return self._wait_or_run(waiter, timeout_s, wanted)
        finally:
            if lends:
                worker.on_blocking(False)

    def _wait_or_run(self, waiter: Waiter, timeout_s: float | None, wanted: Sequence[ObjectRef[Any]]) -> bool:
        nesting = self._nesting
        if timeout_s is not None or len(wanted) != 1 or nesting.level >= _GUESTS_MAX or _in_event_loop():
            try:
                return self.loop.wait(waiter, timeout_s)
            finally:
                waiter.done = True
        task_id = wanted[0].binary()[:16]
        claim = self.claims[task_id] = Claim(waiter)
        try:
            done = self.loop.wait(waiter)
        except BaseException:
            if claim.given is not None:
                claim.given[0].give_back(claim.given[1])
            raise
        finally:
            waiter.done = True
            if self.claims.get(task_id) is claim:
                self.claims.pop(task_id, None)
        if claim.given is not None:
            interrupts = self.loop.interrupts
            worker, item = claim.given
            nesting.level += 1
            try:
                worker.run_given(item)
            finally:
                nesting.level -= 1
            if interrupts != self.loop.interrupts:  # it was meant for the one who waits, whatever the task made of it
                raise KeyboardInterrupt
        return done

    # -- the end --------------------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """Finish the job; tasks and actors end, and their threads as soon as they can. An interrupt ends one of the waits."""
        try:
            if self.broken is None:
                self._finish_job()
        finally:
            try:
                if self.broken is None:
                    self._end_workers()
            finally:
                for name, value in self._previous_env.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value
                self.loop.release_interrupts()
                self.close()

    def _finish_job(self) -> None:
        self.call(CONTROL, wire.FinishJob, self.job_id)

    def _end_workers(self) -> None:
        done = Waiter(1)
        ended: list[LocalWorker] = []
        self.loop.post((self._end_all, ended, done))
        self.loop.wait(done)
        deadline = time.monotonic() + self.config.worker_exit_grace_s
        for worker in ended:
            worker.join(deadline)

    def _end_all(self, ended: list[LocalWorker], done: Waiter) -> None:
        ended += self.workers.values()
        for worker in ended:
            self.end_worker(worker, "was ended")
        self.workers.clear()
        finish(done)

    def _on_loop_error(self, error: BaseException) -> None:
        self.fail(RaySystemError(f"zray's event loop failed: {type(error).__name__}: {error}"))
        sys.excepthook(type(error), error, error.__traceback__)
        self.loop.stop()


def _in_event_loop() -> bool:
    """Whether coroutines run in this thread: they would meet a task that uses asyncio itself."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)  # another thread may be importing it just now
    return running is not None and running() is not None
