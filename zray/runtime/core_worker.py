"""CoreWorker: the part of zray that lives in every driver and worker process.

It joins the Owner brain with its loop, its sockets and the node's shared memory, and gives the public API what it needs: submit,
put, get, wait. User threads never touch the brain: they append to the inbox (submissions, releases) or wait for it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from zray.base import serialization, wire
from zray.base.config import Config
from zray.base.ids import PUT_INDEX, TaskIDs
from zray.base.serialization import Serialized
from zray.base.wire import CONTROL, ERROR, INLINE, STORED, Address, Entry
from zray.base.wire_actors import RegisterActor
from zray.core import effects as e
from zray.core.owner import Owner
from zray.core.resync import Resync
from zray.core.tasks import Task
from zray.core.waiters import Waiter
from zray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    RayError,
    RaySystemError,
)
from zray.object_ref import ObjectRef
from zray.runtime import failures
from zray.runtime.client import Client, Request, finish, resolve, shut_down
from zray.runtime.explainer import Explainer
from zray.runtime.futures import Futures
from zray.runtime.process import log

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey
    from zray.runtime.executor import Executor
    from zray.runtime.store_client import StoreClient


_RECOVERIES_MAX = 10  # of one get: more often nothing is read that way


class _Unreadable(Exception):
    """An object can not be read where it is said to lie."""

    def __init__(self, object_id: bytes, node_id: bytes, cause: ObjectLostError) -> None:
        super().__init__(str(cause))
        self.object_id = object_id
        self.node_id = node_id
        self.cause = cause


class _Cancelling:
    """A wish to cancel, until it is known whether it can be."""

    def __init__(self) -> None:
        self.done = False
        self.possible = True
        self.signal: Any = None


class CoreWorker(Client):
    """The runtime of one driver or worker.

    Args:
        role: "driver" or "worker".
        me: id of this process.
        endpoint: where it can be reached.
        cluster: identity of the cluster.
        config: limits.
        host: where other machines reach this one, in a cluster of several.
        key: what proves that a process belongs to the cluster.
    """

    def __init__(
        self,
        role: str,
        me: bytes,
        endpoint: str,
        cluster: bytes,
        config: Config,
        host: str = "",
        key: ClusterKey | None = None,
    ) -> None:
        lazy_s = config.lazy_handover_ms / 1000
        tcp = (host, 0, host) if host else None
        super().__init__(
            me, role, endpoint, cluster, wire.decode, lazy_s, config.message_bytes_max, tcp=tcp, key=key
        )
        self.role = role
        self.address: Address = (me, self.transport.endpoint)
        self.config = config
        self.job_id = b""
        self.node_id = b""
        self.node_endpoint = ""
        self.namespace = ""
        self.env_vars: dict[str, str] = {}
        self.depth = 0
        self.placement_group: tuple[bytes, bool] | None = None  # of the running task or actor, and whether it captures
        self.event_loop_thread = 0  # of an asynchronous actor
        self.blocking: Callable[[bool], None] | None = None  # told when the main thread starts and ends to wait
        self.task_ids = TaskIDs(me)
        self.release: Callable[[bytes], None] = self.loop.post  # what an ObjectRef calls when it dies
        self.exported: dict[bytes, None] = {}
        self.checked: tuple[Any, ...] = ()  # marks the list that the last wait left over
        self.explainer = Explainer(self)
        self.owner: Owner
        self.resync: Resync
        self.store: StoreClient
        self.futures = Futures(self)
        self._adoptions: deque[tuple[bytes, tuple[str, int, int, int]]] = deque()
        self._main = threading.main_thread().ident
        self._pid = os.getpid()
        self._warned = False
        self.on_effect(e.RESOLVE, resolve)
        self.on_effect(e.WARN, lambda text: log.warning("%s", text))
        self.add_handlers(self, "owner", "any")

    def join(self, job_id: bytes, node: dict[str, Any]) -> None:
        """Become part of a job on a node: from now on objects and tasks can be made."""
        self.job_id = job_id
        self.node_id = node["node_id"]
        self.agent = node["agent"]
        self.node_endpoint = node["endpoint"]
        self.open_store(node)
        self.owner = Owner(self.address, job_id, self.node_id, self.agent, self.config, self._counted_ref)
        self.add_brain(self.owner, "owner")
        self.resync = Resync(self.owner, self.open_words)
        self.add_handlers(self.resync, "owner")
        self.transport.on_broken = self.resync.on_broken
        self.on_timers("leases", self.owner.on_timer)
        self.on_timers("owner", self.owner.on_timer)
        self.on_timers("calls", self.owner.on_timer)
        self.on_effect(e.ADOPT_FILE, self._adopt_file)
        self.add_handlers(self.explainer, "owner")
        self.on_timers("explain", self.explainer.on_timer)
        self.loop.on_inbox = self.on_inbox

    def open_store(self, node: dict[str, Any]) -> None:
        """Use the shared memory of the node."""
        from zray.runtime.store_client import StoreClient

        self.store = StoreClient(self, node["store_name"], self.free_first, self.call_site)

    def close_store(self) -> None:
        self.store.close()

    def executor(self) -> Executor | None:
        """What runs the code that asks this; None in a driver."""
        return None

    def control_endpoint(self) -> str:
        """Where the control can be reached, or the agent that knows."""
        return self.node_endpoint

    # -- the loop's calls -----------------------------------------------------------------------------------------

    def on_inbox(self, now: float) -> None:
        """Take everything that user threads left.

        Releases are bare ids, submissions are tasks, references that came out of values are (id, owner), the rest are calls.
        """
        inbox = self.loop.inbox
        take = inbox.popleft
        owner = self.owner
        submit = owner.submit
        release = owner.references.release
        adopt = owner.adopt
        while inbox:
            entry = take()
            kind = type(entry)
            if kind is bytes:
                release(entry)
            elif kind is Task:
                submit(now, entry)
            else:
                first = entry[0]
                if type(first) is bytes:
                    adopt(first, entry[1])
                else:
                    first(*entry[1:])

    def settle(self, now: float) -> None:
        if self._brains:
            self.owner.settle(now)
        super().settle(now)

    def on_collect_garbage(self, now: float, peer: bytes, reason: str) -> None:
        """The store is full: cycles in this process may hold references."""
        gc.collect()

    def on_notice(self, now: float, peer: bytes, text: str) -> None:
        log.warning("%s", text)

    def on_refuse(self, now: float, peer: bytes, reason: str) -> None:
        self.fail(RaySystemError(f"the cluster refused this process: {reason}"))

    def on_job_ended(self, now: float, peer: bytes, reason: str) -> None:
        """The cluster has given this process up: it was stopped for too long, or its node could not be reached."""
        self.fail(RaySystemError(f"this job has ended: {reason}. Call zray.shutdown() and zray.init() to join again"))

    def fail(self, error: RayError) -> None:
        """Nothing can be done any more: everybody who waits is told, and everybody who comes."""
        if self.broken is None:
            super().fail(error)
            if self._brains:
                self.owner.abandon()

    def ask(self, peer: bytes, message: type, *fields: Any) -> Request:
        """As of any client, and after what was done before: who kills an actor finds its name free."""
        request = Request()
        self.loop.post((self._ask_in_order, request, peer, message, fields))
        return request

    def _ask_in_order(self, request: Request, peer: bytes, message: type, fields: tuple[Any, ...]) -> None:
        if self._brains:
            self.execute(self.owner)
        self._ask(request, peer, message, fields)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Hand a task to the brain."""
        self.loop.post(task)
        self.loop.maybe_turn()

    def cancel(self, ref: ObjectRef[Any], *, force: bool, recursive: bool) -> None:
        """Have the task cancelled that makes an object.

        Raises:
            ValueError: a call of an actor was to be forced.
        """
        self.check_ours([ref])
        outcome = _Cancelling()
        self.loop.post((self._cancel, ref, force, recursive, outcome))
        self.loop.maybe_turn()
        if force:
            self.loop.wait(outcome)
            if not outcome.possible:
                raise ValueError("force=True is not for calls of actors, which share their process: use zray.kill(actor)")

    def _cancel(self, ref: ObjectRef[Any], force: bool, recursive: bool, outcome: _Cancelling) -> None:
        outcome.possible = self.owner.cancel(time.monotonic(), ref._id, force=force, recursive=recursive)
        resolve(outcome)

    def block(self, waiter: Waiter) -> None:
        """Wait in this thread, as in ``get``."""
        if self.broken is None:
            self._block(waiter, None)
        if self.broken is not None:
            raise self.broken

    def create_actor(self, task: Task, registration: RegisterActor | None) -> None:
        """Have an actor created; one with a name is registered already."""
        self.loop.post((self._create_actor, task, registration))
        self.loop.maybe_turn()

    def _create_actor(self, task: Task, registration: RegisterActor | None) -> None:
        self.owner.create_actor(time.monotonic(), task, registration)

    def borrow(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        """A reference that nobody handed on, as that of an actor that was found by its name."""
        self.loop.post((self.owner.borrow, object_id, owner))
        return ObjectRef(object_id, owner, self.release)

    def export(self, function_id: bytes, name: str, body: bytes) -> None:
        """Give a function to the cluster, once."""
        if function_id not in self.exported:
            self.exported[function_id] = None
            self.ask(CONTROL, wire.ExportFunction, self.job_id, function_id, name, body)

    def check_ours(self, refs: Sequence[ObjectRef[Any]]) -> None:
        """Refuse references that were made before ``shutdown``: nobody would ever answer for them.

        Raises:
            OwnerDiedError: one of them belongs to a cluster that is gone.
        """
        release = self.release
        for ref in refs:
            if ref._release is not release:
                text = (
                    f"object {ref.hex()} belongs to a cluster that this process has left (zray.shutdown(), or a fork): "
                    "what is needed after that must be got before"
                )
                raise OwnerDiedError(text, ref.hex())

    def _counted_ref(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        return ObjectRef(object_id, owner, self.release)

    def new_ref(self, object_id: bytes) -> ObjectRef[Any]:
        return ObjectRef(object_id, self.address, self.release)

    # -- objects --------------------------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """Make an object of a value."""
        return self.put_serialized(serialization.serialize(value))

    def put_serialized(self, value: Serialized) -> ObjectRef[Any]:
        object_id = self.task_ids() + PUT_INDEX
        entry = self.entry(object_id, value, self.me)
        self.owner.memory[object_id] = entry  # at once, so that a get needs no turn of the loop
        self.loop.post((self.owner.put, object_id, entry))
        self.loop.maybe_turn()
        return ObjectRef(object_id, self.address, self.release)

    def entry(self, object_id: bytes, value: Serialized, owner: bytes) -> Entry:
        """A value as an entry: inline if it is small, else written to the store.

        Raises:
            ObjectStoreFullError: there is no room for it.
        """
        if value.refs:
            self.check_ours(value.refs)
        contained = tuple((ref.binary(), ref.owner) for ref in value.refs) if value.refs else ()
        if not value.buffers and len(value.pickle) <= self.config.inline_bytes_max:
            return (INLINE, value.pickle, contained) if contained else (INLINE, value.pickle)
        if value.size_bytes <= self.config.inline_bytes_max:
            return (INLINE, value.inline(), contained) if contained else (INLINE, value.inline())
        size = self.store.write(object_id, value, owner)
        return (STORED, size, self.node_id, contained)

    def call_site(self) -> str:
        """The line of the user's program that is being run, as ``file:line``."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("zray."):
            frame = frame.f_back
        return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"

    def free_first(self) -> None:
        """In the loop: what was released before a put is free, and warm, when the put asks for room."""
        self.owner.settle(time.monotonic())
        self.execute(self.owner)

    def get(self, refs: list[ObjectRef[Any]], timeout_s: float | None = None) -> list[Any]:
        """The values of ``refs``, in order.

        Raises:
            GetTimeoutError: not all were there in time.
        """
        memory = self.owner.memory
        for ref in refs:
            if ref._id not in memory:
                self._await_in_time(refs, timeout_s)
                break
        try:
            return self._values(refs)
        except _Unreadable as error:
            return self._recovered(refs, timeout_s, error)

    def _await_in_time(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> None:
        missing = self._await_all(refs, timeout_s)
        if missing:
            raise GetTimeoutError(
                f"{len(missing)} of {len(refs)} objects were not ready within {timeout_s:g} s; the first is "
                f"{missing[0].hex()}. They are intact: get them again, or wait longer"
            )

    def _recovered(self, refs: list[ObjectRef[Any]], timeout_s: float | None, error: _Unreadable) -> list[Any]:
        """The values of ``refs``, after one of them could not be read: what is lost is brought back, or given up."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        for _ in range(_RECOVERIES_MAX):
            taken = Waiter(1)
            self.loop.post((self.owner.recover, error.object_id, error.node_id, str(error.cause)))
            self.loop.post((finish, taken))
            self.loop.wait(taken)
            self._await_in_time(refs, None if deadline is None else max(0.0, deadline - time.monotonic()))
            try:
                return self._values(refs)
            except _Unreadable as again:
                error = again
        raise error.cause

    def _await_all(self, refs: list[ObjectRef[Any]], timeout_s: float | None) -> list[ObjectRef[Any]]:
        """Wait until all ``refs`` are there, or one of them is an error; returns those that were not there in time."""
        owner = self.owner
        memory = owner.memory
        waiters = owner.waiters
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        sought = False
        while True:
            arrivals, failures = waiters.arrivals, waiters.failures
            missing = list({ref._id: ref for ref in refs if ref._id not in memory}.values())
            if not missing or (failures and _any_error(refs, memory)):
                return []
            if self.broken is not None:
                raise self.broken
            if not sought:
                sought = True
                self.check_ours(missing)
                self.loop.post((owner.seek, missing))
            waiter = Waiter(len(missing))
            waiter.fail_fast = True
            self.loop.post((waiters.listen, waiter, arrivals, failures))
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._block(waiter, left, missing):
                if self.broken is not None:
                    raise self.broken  # nobody turns the loop any more
                return [ref for ref in missing if ref._id not in memory]

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split ``refs`` into at most ``num_returns`` ready ones and the others, each in the order given."""
        ready = self._ready(refs, num_returns, timeout_s)
        chosen: list[ObjectRef[Any]] = []
        others: list[ObjectRef[Any]] = []
        start = 0
        for index in ready:  # slices, so that a call costs little more than the copy of a list
            others += refs[start:index]
            chosen.append(refs[index])
            start = index + 1
        others += refs[start:]
        return chosen, others

    def fetch(self, refs: Sequence[Any]) -> None:
        """Have those that lie on other nodes brought to this one; nobody waits for that."""
        memory, here = self.owner.memory, self.node_id
        for ref in refs:
            entry = memory.get(ref._id)
            if entry is not None and entry[0] == STORED and entry[2] != here:
                self.loop.post((self.store.fetch, ref._id, entry, ref.owner[0]))

    def _ready(self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None) -> list[int]:
        """Positions of the first ``num_returns`` ready references; waits for as many."""
        memory = self.owner.memory
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        arrivals = self.owner.waiters.arrivals
        ready = _first_ready(refs, memory, num_returns)
        sought = False
        while len(ready) < num_returns:
            if self.broken is not None:
                raise self.broken
            if not sought:
                sought = True
                self.loop.post((self.owner.seek, refs))
            waiter = Waiter(num_returns - len(ready))
            self.loop.post((self.owner.waiters.listen, waiter, arrivals, 0))
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            in_time = self._block(waiter, left)
            arrivals = self.owner.waiters.arrivals
            ready = _first_ready(refs, memory, num_returns)
            if not in_time:
                if self.broken is not None:
                    raise self.broken
                break
        return ready

    def _block(self, waiter: Waiter, timeout_s: float | None, wanted: Sequence[ObjectRef[Any]] = ()) -> bool:
        """Wait in this thread, for the values of ``wanted`` if it says which; a worker's main thread lends its CPU meanwhile."""
        if self.event_loop_thread == threading.get_ident():
            self._warn_of_blocking()
        hook = self.blocking if threading.get_ident() == self._main else None
        if hook is not None:
            hook(True)
        done = False
        try:
            done = self.loop.wait(waiter, timeout_s, spin=hook is None and waiter.remaining == 1)
        finally:
            if hook is not None:
                hook(False)
            waiter.done = True  # whatever still arrives for it is nobody's business
        return done

    def _warn_of_blocking(self) -> None:
        """A coroutine of an asynchronous actor blocks all others: said once."""
        if not self._warned:
            self._warned = True
            log.warning(
                "%s: get() or wait() was called in a coroutine of an asynchronous actor: no other call of it can go on "
                "meanwhile. Use `await ref`, or asyncio.wait() on the references",
                self.call_site(),
            )

    def _values(self, refs: list[ObjectRef[Any]]) -> list[Any]:
        memory = self.owner.memory
        deserialize = serialization.deserialize
        values: list[Any] = []
        stored: list[tuple[int, bytes]] = []
        entries: list[Entry] = []
        owners: list[bytes] = []
        gone = b""
        for index, ref in enumerate(refs):
            entry = memory.get(ref._id)
            if entry is None:  # an error further on ended the waiting; or it was lost while others were read
                gone = ref._id
                values.append(None)
            elif entry[0] == INLINE:
                values.append(deserialize(entry[1]))
            elif entry[0] == STORED:
                stored.append((index, ref._id))
                entries.append(entry)
                owners.append(ref.owner[0])
                values.append(None)
            else:
                raise failures.as_raised(entry)
        if gone:
            raise _Unreadable(gone, b"", ObjectLostError(f"object {gone.hex()} is lost again and again", gone.hex()))
        if stored:
            try:
                read = self.store.read([object_id for _, object_id in stored], entries, owners)
            except ObjectLostError as error:
                if self.broken is not None:
                    raise
                lost = bytes.fromhex(error.object_id)
                node_id = next(entry[2] for (_, object_id), entry in zip(stored, entries, strict=True) if object_id == lost)
                raise _Unreadable(lost, node_id, error) from None
            for (index, _), value in zip(stored, read, strict=True):
                values[index] = value
        return values

    def _adopt_file(self, object_id: bytes, size: int, path: str, position: int, checksum: int) -> None:
        """In the loop: have a thread bring what a lost node had spilled into this node's store."""
        self._adoptions.append((object_id, (path, position, size, checksum)))
        if len(self._adoptions) == 1:
            threading.Thread(target=self._adopt_files, name="zray-adoptions", daemon=True).start()

    def _adopt_files(self) -> None:
        from zray.io.spill import read_copy  # for those who have lost a node

        while self._adoptions and self.broken is None:
            object_id, place = self._adoptions[0]
            problem, full = "", False
            try:
                value = serialization.stored_again(read_copy(*place))
                self.store.write(object_id, value, self.me)
            except Exception as error:  # whatever it is, the object is not there
                problem = f"its file {place[0]} can not be read from here: {type(error).__name__}: {error}"
                full = isinstance(error, (ObjectStoreFullError, OutOfDiskError))
            self.loop.post((self.owner.on_file_adopted, time.monotonic(), object_id, problem, full))
            self._adoptions.popleft()  # who adds one to an empty list starts the next thread

    # -- references (object_ref.Runtime) --------------------------------------------------------------------------

    def adopt(self, object_id: bytes, owner: Address) -> ObjectRef[Any]:
        self.loop.post((object_id, owner))
        return ObjectRef(object_id, owner, self.release)

    def keep_for_ever(self, ref: ObjectRef[Any]) -> None:
        self.loop.post((self.owner.adopt, ref._id, ref.owner))

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        return self.futures.future(ref)

    def awaited(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
        return self.futures.awaited(ref)

    # -- end ------------------------------------------------------------------------------------------------------

    def close(self, linger_ms: int = 0) -> None:
        """Stop the loop and close what it owned."""
        if os.getpid() != self._pid:
            return  # a fork of the user's: none of this is its own
        self.broken = self.broken or shut_down()
        self.loop.stop()
        if self.loop.acquire(5.0):
            if self._brains:  # futures, and threads that wait, learn of it
                self.owner.abandon()
                self.execute(self.owner)
            self.transport.close(linger_ms)
            self.loop.close()
        self.futures.close()
        if self._brains:
            self.close_store()


def _first_ready(refs: list[ObjectRef[Any]], memory: dict[bytes, Entry], limit: int) -> list[int]:
    found = []
    for index, ref in enumerate(refs):
        if ref._id in memory:
            found.append(index)
            if len(found) == limit:
                break
    return found


def _any_error(refs: list[ObjectRef[Any]], memory: dict[bytes, Entry]) -> bool:
    return any(memory.get(ref._id, (None,))[0] == ERROR for ref in refs)
