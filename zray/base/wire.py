"""The messages: one schema for all that processes say to each other.

A message on the wire is a plain tuple ``(op, *fields)``; frames carry lists of them. What is true of all messages stands in
``schema``; those about actors, generators, nodes, transfer and placement in modules of their own. *Control* messages are written
and read through the NamedTuples below, and their fields are checked on arrival. *Hot* messages (tasks, results, reference counts)
are built as plain tuples where they are made: their classes here document the positions and fix the op.

What the sender calls *bytes* stays bytes for control and agents: they decode with an unpickler that admits no classes.
"""

import io
import pickle
from typing import Any, NamedTuple

from zray.base import (  # noqa: F401 - their messages belong to the schema
    wire_actors,
    wire_generators,
    wire_nodes,
    wire_output,
    wire_placement,
    wire_return,
    wire_state,
    wire_transfer,
)
from zray.base.schema import OPS as OPS
from zray.base.schema import SCHEMA as SCHEMA
from zray.base.schema import message
from zray.base.schema import pack as pack
from zray.base.schema import well_formed as well_formed

PROTOCOL_VERSION = 1
CONTROL = b"control"  # the name under which every process knows the control process

# Entries: what an owner knows of an object's value. (kind, ...), with the references inside as the last field.
INLINE = 0  # (INLINE, payload) or (INLINE, payload, contained)
ERROR = 1  # (ERROR, payload): the pickled exception
STORED = 2  # (STORED, size_bytes, node_id, contained)

Entry = tuple[Any, ...]
Address = tuple[bytes, str]  # (process id, endpoint)
Contained = tuple[tuple[bytes, Address], ...]  # references inside a value: (object id, owner)


# ---------------------------------------------------------------------------------------------------------- links


@message(1, "any", "any")
class Hello(NamedTuple):
    """The first message on every connection, sent by the side that connects."""

    version: int
    python: str  # "3.11": both sides must agree on major and minor
    cluster: bytes  # identity of the cluster
    sender: bytes  # process id, new in every incarnation
    role: str  # driver, worker, agent, control
    endpoint: str  # where the sender can be reached
    pid: int
    conversation: int = 0  # over tcp: which one this connection goes on with, counted by the sender
    heard: int = -1  # over tcp: how many frames of it the sender has heard; -1: not a word


@message(2, "any", "any")
class Refuse(NamedTuple):
    """The answer to a Hello that does not fit; the connection is dead."""

    reason: str


@message(3, "any", "any")
class Reply(NamedTuple):
    """The answer to any message with a request id."""

    request_id: int
    ok: bool
    value: Any


# -------------------------------------------------------------------------------------------------- to the control


@message(10, "owner", "control")
class RegisterJob(NamedTuple):
    """A driver starts; the reply holds all it must know of its cluster."""

    request_id: int
    driver: bytes
    endpoint: str
    pid: int
    entrypoint: str
    namespace: str
    environment: dict[str, Any]  # sys_path and cwd for the job's workers


@message(11, "owner", "control")
class FinishJob(NamedTuple):
    """A driver ends in good order; the reply is sent when its job is cleaned up."""

    request_id: int
    job_id: bytes


@message(12, "owner", "control")
class FetchJob(NamedTuple):
    """A worker was taken into a job: the reply is what it must know of it."""

    request_id: int
    job_id: bytes


@message(13, "owner", "control")
class ExportFunction(NamedTuple):
    """A function, before the first task that calls it; the reply is None when it is written down."""

    request_id: int
    job_id: bytes
    function_id: bytes
    name: str
    body: bytes


@message(14, "owner", "control")
class FetchFunction(NamedTuple):
    """The reply waits until the function has been exported."""

    request_id: int
    function_id: bytes


@message(15, "owner", "control")
class KvPut(NamedTuple):
    """The reply: whether the key existed."""

    request_id: int
    namespace: bytes
    key: bytes
    value: bytes
    overwrite: bool


@message(16, "owner", "control")
class KvGet(NamedTuple):
    """The reply: the value, or None."""

    request_id: int
    namespace: bytes
    key: bytes


@message(17, "owner", "control")
class KvDelete(NamedTuple):
    """The reply: whether the key existed."""

    request_id: int
    namespace: bytes
    key: bytes


@message(18, "owner", "control")
class KvKeys(NamedTuple):
    """The reply: the keys that start so."""

    request_id: int
    namespace: bytes
    prefix: bytes


@message(19, "owner", "control")
class ListNodes(NamedTuple):
    """The reply: a dict for each node."""

    request_id: int


@message(47, "owner", "control")
class ControlStatistics(NamedTuple):
    """The reply: the control's numbers by name, with how many messages of each kind it has heard (``heard_<kind>``)."""

    request_id: int


@message(20, "agent", "control")
class RegisterNode(NamedTuple):
    """A node joins the cluster."""

    node_id: bytes
    endpoint: str
    hostname: str
    pid: int
    resources: dict[str, int]
    labels: dict[str, str]
    store_name: str  # of the shared-memory arena
    store_bytes: int
    running: dict[str, Any] = {}  # noqa: RUF012 - what runs there, if it registers again: see ControlDesk.inventory


@message(21, "agent", "control", rows=3)
class Heartbeat(NamedTuple):
    """What is free on a node, when it changed, and in the bundles there: ``(placement group, index, units by name)`` each."""

    node_id: bytes
    available: dict[str, int]
    bundles: tuple[Any, ...] = ()


@message(22, "agent", "control")
class ProcessDied(NamedTuple):
    """An agent saw the process of a driver or worker on its machine end."""

    process: bytes
    reason: str


# ---------------------------------------------------------------------------------------------------- to the agent


@message(30, "worker", "agent")
class WorkerReady(NamedTuple):
    """A worker has started and can be leased."""

    worker_id: bytes
    endpoint: str
    pid: int


@message(31, "owner", "agent")
class RequestLease(NamedTuple):
    """A worker is wanted; LeaseGranted or LeaseRejected is the answer, whenever it comes."""

    request_id: int
    job_id: bytes
    resources: dict[str, int]
    depth: int  # of the tasks waiting: the deepest go first
    retriable: bool = True  # whether the tasks can be run again: those are ended first when memory is short
    strategy: tuple[Any, ...] = ("default",)  # which node is wanted
    hops: int = 0  # how often the request was sent on
    locality: tuple[Any, ...] = ()  # where large arguments lie: (node, bytes) each


@message(32, "owner", "agent")
class CancelLease(NamedTuple):
    """The request is not wanted any more."""

    request_id: int


@message(33, "owner", "agent")
class ReturnLease(NamedTuple):
    """The owner is done with the worker."""

    lease_id: int


@message(34, "worker", "agent")
class WorkerBlocked(NamedTuple):
    """The worker's task waits in get or wait: its CPU can be lent out."""

    worker_id: bytes


@message(35, "worker", "agent")
class WorkerUnblocked(NamedTuple):
    """The worker's task goes on, and takes its CPU back."""

    worker_id: bytes


@message(45, "worker", "agent")
class WorkerStays(NamedTuple):
    """The worker was asked to end, and others need what it owns."""

    worker_id: bytes


@message(36, "owner", "agent")
class CreateObject(NamedTuple):
    """Ask for room; the reply is (offset, warm), (path, False) to write it to a file, or "exists" if it is here already."""

    request_id: int
    object_id: bytes
    size_bytes: int
    call_site: str = ""  # the line that put it, or the task that returned it


@message(37, "owner", "agent")
class SealObject(NamedTuple):
    """The bytes are written: the object is complete and belongs to ``owner``."""

    object_id: bytes
    owner: bytes
    checksum: int = 0  # of the bytes, where they were written to a file


@message(38, "owner", "agent")
class AbortObject(NamedTuple):
    """The bytes could not be written: the room is free again."""

    object_id: bytes
    reason: str = ""  # why a file could not be written


@message(39, "owner", "agent")
class PinObject(NamedTuple):
    """Keep the object while the asker reads; the reply is (offset, size), or (path, position, size, checksum) of a file."""

    request_id: int
    object_id: bytes
    urgent: bool = True  # somebody waits in get; else it is an argument of a task that has not started
    node_id: bytes = b""  # where its primary copy lies
    size_bytes: int = 0
    owner: bytes = b""


@message(40, "owner", "agent")
class UnpinObjects(NamedTuple):
    """The asker's last views of these objects are gone."""

    object_ids: list[bytes]


@message(41, "owner", "agent")
class FreeObjects(NamedTuple):
    """No reference is left anywhere: forget the objects, which lie on this node or another."""

    object_ids: list[bytes]
    agent: bytes = b""  # of that other node


@message(46, "owner", "agent")
class ListObjects(NamedTuple):
    """The reply: (id, size, state, owner, pins, path, call site) of each object of the node's store."""

    request_id: int


@message(49, "owner", "agent")
class NodeStatistics(NamedTuple):
    """The reply: the agent's numbers by name: clients, leases, workers, its store and arena."""

    request_id: int


@message(43, "owner", "agent")
class ListWorkers(NamedTuple):
    """The reply: (worker id, endpoint, pid, state) of each worker of the node."""

    request_id: int


@message(42, "control", "agent")
class JobFinished(NamedTuple):
    """End the workers of this job, give back its leases, free what its driver owned."""

    job_id: bytes
    driver: bytes


@message(44, "owner", "agent")
class WatchProcess(NamedTuple):
    """Tell the sender, with WorkerDied, when this process ends; at once if it has ended already."""

    process: bytes


# ---------------------------------------------------------------------------------------------------- to an owner


@message(50, "agent", "owner")
class LeaseGranted(NamedTuple):
    """A worker is lent to the owner."""

    request_id: int
    lease_id: int
    worker_id: bytes
    endpoint: str
    gpu_ids: tuple[int, ...] = ()


@message(51, "agent", "owner")
class LeaseRejected(NamedTuple):
    """``infeasible``: no node can ever fit it. ``exhausted``: no further worker may be started, or what it asks for is gone: its
    placement group was removed, or the node where it had to run has died. ``unstartable``: no worker can be started.
    """

    request_id: int
    kind: str
    reason: str


@message(52, "agent", "owner")
class LeaseReclaimed(NamedTuple):
    """Others wait: give the lease back when it is idle, or when its slice is over and what was pushed is done."""

    lease_id: int


@message(53, "agent", "owner")
class LeaseLost(NamedTuple):
    """The worker of a lease died."""

    lease_id: int
    reason: str
    out_of_memory: bool = False  # the agent ended the worker because the node was short of memory


@message(54, "agent", "owner")
class WorkerDied(NamedTuple):
    """A process that the receiver wanted to be watched is gone."""

    worker_id: bytes
    reason: str


@message(55, "worker", "owner", hot=True, rows=4)
class Done(NamedTuple):
    """Tasks are finished: ``(task_id, entries, run_us, borrowed)`` each."""

    lease_id: int
    items: list[Any]


@message(56, "worker", "owner")
class HandBack(NamedTuple):
    """The worker is busy or blocked: it gives unstarted tasks back."""

    lease_id: int
    task_ids: list[bytes]


@message(57, "owner", "owner", hot=True, rows=3)
class Refs(NamedTuple):
    """Changes of borrower counts: ``(object_id, borrower, delta)`` each."""

    deltas: list[Any]


@message(58, "owner", "owner")
class GetObject(NamedTuple):
    """A borrower wants the value; the answer waits until there is one."""

    object_id: bytes


@message(59, "owner", "owner", hot=True)
class ObjectValue(NamedTuple):
    """The answer to GetObject."""

    object_id: bytes
    entry: tuple[Any, ...]


# ---------------------------------------------------------------------------------------------------- to a worker


@message(70, "owner", "worker")
class OpenLease(NamedTuple):
    """Precedes the first push on a lease."""

    lease_id: int
    job_id: bytes
    resources: dict[str, int]
    gpu_ids: tuple[int, ...] = ()


@message(71, "owner", "worker", hot=True, rows=8)
class Push(NamedTuple):
    """Tasks to run: ``(task_id, function_id, payload, slots, num_returns, depth, name, extra)`` each."""

    lease_id: int
    specs: list[Any]


@message(74, "owner", "worker")
class CancelTask(NamedTuple):
    """Stop a task or call that was sent before: hand it back, interrupt it, or (``force``) end the process that runs it."""

    task_id: bytes
    force: bool
    recursive: bool  # what it has submitted is cancelled too


@message(73, "owner", "worker")
class ListEvents(NamedTuple):
    """The reply: (name, started_s, ended_s) of the tasks this worker ran lately, on the machine's monotonic clock."""

    request_id: int


@message(62, "owner", "agent")
class ObjectDamaged(NamedTuple):
    """The sender found that an object's file here is not what was written: nobody shall be sent to it any more."""

    object_id: bytes


@message(61, "agent", "owner", rows=4)
class ObjectsSpilled(NamedTuple):
    """Objects were written to disk: ``(object_id, path, position, checksum)`` each."""

    rows: list[Any]


@message(68, "owner", "owner")
class CancelObject(NamedTuple):
    """A borrower cancels the task that makes an object."""

    object_id: bytes
    force: bool
    recursive: bool


@message(60, "agent", "any")
class CollectGarbage(NamedTuple):
    """The store is full: cycles of garbage may hold references."""

    reason: str


@message(72, "agent", "worker")
class ExitWorker(NamedTuple):
    """End, unless others need what this worker owns; then WorkerStays is the answer."""

    reason: str


DONE = OPS[Done]
PUSH = OPS[Push]
REFS = OPS[Refs]
OBJECT_VALUE = OPS[ObjectValue]
HELLO = OPS[Hello]


def encode(batch: list[tuple[Any, ...]]) -> bytes:
    """A batch of messages as one frame."""
    return pickle.dumps(batch, 5)


def decode(frame: bytes) -> Any:
    """The batch in a frame, from a peer whose code this process runs anyway (an owner or worker of the same job)."""
    return pickle.loads(frame)


class _NoGlobals(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"classes are not admitted here: {module}.{name}")


def decode_plain(frame: bytes) -> Any:
    """The batch in a frame, admitting nothing but plain data: for control and agents, which run nobody's code."""
    return _NoGlobals(io.BytesIO(frame)).load()
