"""ObjectRecovery: large objects of one owner that are lost, and how they come back.

Theory of operation
-------------------
An object is lost when its node is, or when somebody could not read it there. What its owner knew of it is put aside, so that
whoever needs it waits as for an object that was never there. In this order:

- a *copy* on another node becomes the primary (``copy_search`` in the agents);
- the *file* to which it was spilled is read, if it can be reached from here; if the store has no room for it, again;
- the *task* that made it is run again (``lineage``). That is done only when somebody waits for the object. Arguments that were
  lost or freed meanwhile are made again in the same way, each by its own task, as often as ``max_retries`` of those allow.

Else it is given up, and the reason becomes its value. Of a task with several results only those are taken that are missing.

An object that this process has borrowed is its owner's to recover: it is asked for there again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

from zray.base.ids import agent_id, agent_of
from zray.base.wire import ERROR, STORED, Address, Entry
from zray.base.wire_transfer import FindCopies, RecoverObject
from zray.core.actor_calls import ActorTaskSubmitter
from zray.core.directory import ObjectDirectory
from zray.core.effects import ADOPT_FILE, DIAL, SEND, Effect
from zray.core.entries import contained_in, irrecoverable
from zray.core.lifecycle import Lifecycle
from zray.core.lineage import Lineage, Origin
from zray.core.references import ReferenceCounter
from zray.core.tasks import Task, TaskManager
from zray.exceptions import InvariantError

_READINGS_MAX = 10  # of one file, each of which waits for room


class LostState(Enum):
    SEARCHING = 1
    READING = 2
    RESTING = 3
    REBUILDING = 4
    ASKED = 5


LOST_LIFECYCLE = Lifecycle(
    "lost object",
    {
        LostState.SEARCHING: "The agents are asked for a copy.",
        LostState.READING: "The file to which it was spilled is read.",
        LostState.RESTING: "The task that made it can be run again, and will be when somebody needs the object.",
        LostState.REBUILDING: "That task runs.",
        LostState.ASKED: "It is borrowed; its owner was asked for it again.",
    },
    {
        LostState.SEARCHING: {"no copy": LostState.READING, "nowhere": LostState.RESTING},
        LostState.READING: {"no room": LostState.READING, "nowhere": LostState.RESTING},
        LostState.RESTING: {"wanted": LostState.REBUILDING},
        LostState.REBUILDING: {"missed": LostState.RESTING},
        LostState.ASKED: {},
    },
)


class LostObject:
    """One object that is lost."""

    __slots__ = ("asked", "entry", "file", "reason", "refused", "state", "wanted")

    def __init__(self, entry: Entry | None, reason: str, state: LostState) -> None:
        self.entry = entry  # what was known of it; nothing if its value had been freed
        self.reason = reason
        self.state = state
        self.wanted = False
        self.file: tuple[Any, ...] = ()  # path, position and checksum of what is read
        self.refused = 0  # how often there was no room for that
        self.asked = False  # a generator that runs again was told to bring it

    def move(self, event: str) -> None:
        self.state = LOST_LIFECYCLE.next(self.state, event)


class ObjectRecovery:
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    _agent: bytes
    _make_ref: Callable[[bytes, Address], Any]
    _me: bytes
    _node_id: bytes
    _remote_gets: dict[bytes, list[bytes]]
    calls: ActorTaskSubmitter
    directory: ObjectDirectory
    fetching: dict[bytes, None]
    lineage: Lineage
    lost: dict[bytes, LostObject]
    memory: dict[bytes, Entry]
    out: list[Effect]
    rebuilds: deque[bytes]  # lost objects whose tasks are to be run again
    references: ReferenceCounter
    streams: dict[bytes, Any]
    tasks: TaskManager

    def hurry(self, stream: Any) -> None:
        """There is room for all items of a generator."""
        raise NotImplementedError

    def _answer(self, peer: bytes, object_id: bytes) -> None:
        """Tell a borrower what an object is."""
        raise NotImplementedError

    def _answer_lost(self, peer: bytes, object_id: bytes) -> None:
        """Tell a borrower that there is no such object."""
        raise NotImplementedError

    def _arrive(self, now: float, object_id: bytes, entry: Entry) -> None:
        """The fate of an object is known."""
        raise NotImplementedError

    def _free_at(self, node_id: bytes, object_ids: list[bytes]) -> None:
        """Have a node drop objects."""
        raise NotImplementedError

    def _serve(self, now: float, object_id: bytes, entry: Entry) -> None:
        """An object is there."""
        raise NotImplementedError

    def _ready(self, now: float, task: Task) -> None:
        """All arguments of a task are there."""
        raise NotImplementedError

    def _seek(self, object_id: bytes, owner: Address) -> None:
        """Somebody here waits for an object."""
        raise NotImplementedError

    def borrow(self, object_id: bytes, owner: Address) -> None:
        """Count a new reference."""
        raise NotImplementedError

    def meet(self, process: bytes) -> None:
        """Have the end of a process told."""
        raise NotImplementedError

    # -- what tasks have made --------------------------------------------------------------------------------------

    def _remember(self, task: Task) -> None:
        """A task has made large objects: it may have to do so again."""
        memory = self.memory
        if task.template.max_retries != 0:
            stored = [o for o in task.returns if memory.get(o, (ERROR,))[0] == STORED]
            if stored:
                self.lineage.record(task, stored)

    def _arrive_again(self, now: float, object_id: bytes, entry: Entry) -> None:
        """A task was run again for another of its results, or for this one: the first value that is there counts."""
        known = self.memory.get(object_id)
        if known is None:
            self._arrive(now, object_id, entry)
            return
        self.references.decline(contained_in(entry))
        if entry[0] == STORED and (known[0] != STORED or known[2] != entry[2]):
            self._free_at(entry[2], [object_id])

    # -- how it becomes known -------------------------------------------------------------------------------------

    def recover(self, object_id: bytes, node_id: bytes, reason: str) -> None:
        """Somebody here could not read an object on that node."""
        entry = self.memory.get(object_id)
        if entry is None or entry[0] != STORED or entry[2] != node_id:
            return  # that is known, or news has come
        owner = self.references.owners.get(object_id)
        if owner is None:
            self._lose([object_id], reason)
            self._want(object_id)
            return
        del self.memory[object_id]
        self.lost[object_id] = LostObject(entry, reason, LostState.ASKED)
        self.fetching[object_id] = None
        self.meet(owner[0])
        self.out.append((DIAL, owner[0], owner[1]))
        self.out.append((SEND, owner[0], RecoverObject(object_id, node_id)))

    def on_recover_object(self, now: float, peer: bytes, object_id: bytes, node_id: bytes) -> None:
        """A borrower could not read an object on that node."""
        self.meet(peer)
        entry = self.memory.get(object_id)
        if entry is not None and (entry[0] != STORED or entry[2] != node_id):
            self._answer(peer, object_id)
            return
        if entry is not None:
            self._lose([object_id], f"it can not be read on node {node_id.hex()[:8]}")
        if object_id in self.lost:
            self._want(object_id)
        elif object_id[:16] not in self.tasks.pending:
            self._answer_lost(peer, object_id)
            return
        self._remote_gets.setdefault(object_id, []).append(peer)

    def lose_node(self, agent: bytes, reason: str) -> None:
        """A process is gone; if it was an agent, so is its node, with all that lay there."""
        if agent_of(agent) != agent:
            return
        owners = self.references.owners
        lost = [
            object_id
            for object_id, entry in self.memory.copy().items()  # other threads put meanwhile
            if entry[0] == STORED and agent_id(entry[2]) == agent and object_id not in owners
        ]
        if lost:
            self._lose(lost, reason)

    # -- how it comes back ----------------------------------------------------------------------------------------

    def on_copies_found(self, now: float, peer: bytes, rows: list[Any]) -> None:
        for object_id, found, node_id, endpoint in rows:
            node = node_id or self._node_id
            lost = self.lost.get(object_id)
            if lost is None or lost.state is not LostState.SEARCHING or lost.entry is None:
                known = self.memory.get(object_id)
                if found and (known is None or known[0] != STORED or known[2] != node):
                    self._free_at(node, [object_id])
            elif found:
                if endpoint:
                    self.out.append((DIAL, agent_id(node), endpoint))
                self._found(now, object_id, lost.entry, node)
            else:
                place = self.directory.spilled.pop(object_id, None)
                if place is None:
                    self._rest(now, object_id, lost)
                else:
                    lost.move("no copy")
                    lost.file = place
                    self.out.append((ADOPT_FILE, object_id, lost.entry[1], *place))

    def on_file_adopted(self, now: float, object_id: bytes, problem: str, full: bool = False) -> None:
        """The end of an ADOPT_FILE: the object lies in the store of this node, or there was a problem; ``full``: no room."""
        lost = self.lost.get(object_id)
        if lost is None or lost.state is not LostState.READING or lost.entry is None:
            if not problem:
                self._free_at(self._node_id, [object_id])
        elif full and lost.refused < _READINGS_MAX:
            lost.move("no room")
            lost.refused += 1
            self.out.append((ADOPT_FILE, object_id, lost.entry[1], *lost.file))
        elif problem:
            lost.reason += f"; {problem}"
            self._rest(now, object_id, lost)
        else:
            self._found(now, object_id, lost.entry, self._node_id)

    def settle_rebuilds(self, now: float) -> None:
        """Run tasks again for the lost objects that somebody waits for."""
        while self.rebuilds:
            object_id = self.rebuilds.popleft()
            lost = self.lost.get(object_id)
            if lost is not None and lost.state is LostState.RESTING:
                self._rebuild(now, object_id, lost)

    def _lose(self, object_ids: list[bytes], reason: str) -> None:
        for object_id in object_ids:
            self.lost[object_id] = LostObject(self.memory.pop(object_id), reason, LostState.SEARCHING)
        self.out.append((SEND, self._agent, FindCopies(object_ids)))

    def _want(self, object_id: bytes) -> None:
        """Somebody waits for a lost object."""
        lost = self.lost[object_id]
        if not lost.wanted:
            lost.wanted = True
            if lost.state is LostState.RESTING:
                self.rebuilds.append(object_id)

    def _revive(self, object_id: bytes) -> bool:
        """An object whose value was freed is needed for a task that runs again; whether it can be made."""
        if self.lineage.origin_of(object_id) is None:
            return False
        lost = self.lost[object_id] = LostObject(None, "its value was freed", LostState.RESTING)
        lost.wanted = True
        self.rebuilds.append(object_id)
        return True

    def _found(self, now: float, object_id: bytes, entry: Entry, node_id: bytes) -> None:
        del self.lost[object_id]
        self.directory.forget(object_id)
        if node_id != entry[2]:
            self._free_at(entry[2], [object_id])  # that node may live, and have what can not be read from here
        if node_id != self._node_id:
            self.meet(agent_id(node_id))
        self._serve(now, object_id, (STORED, entry[1], node_id, contained_in(entry)))

    def _replaced(self, object_id: bytes, entry: Entry) -> None:
        """A lost object has a new value, or an error for one."""
        known = self.lost.pop(object_id).entry
        self.references.uncontain(object_id)
        owned = object_id not in self.references.owners
        if known is not None and owned and (entry[0] != STORED or entry[2] != known[2]):
            self._free_at(known[2], [object_id])  # the node may live, and it was the way there that was broken

    def _rest(self, now: float, object_id: bytes, lost: LostObject) -> None:
        """There is no copy: only the task that made it could make it again."""
        lost.move("nowhere")
        problem = self._irreparable(object_id)
        if problem:
            self._arrive(now, object_id, irrecoverable(object_id, lost.reason, problem))
        elif lost.wanted:
            self.rebuilds.append(object_id)

    def _rebuild(self, now: float, object_id: bytes, lost: LostObject) -> None:
        problem = self._irreparable(object_id)
        if problem:
            self._arrive(now, object_id, irrecoverable(object_id, lost.reason, problem))
            return
        lost.move("wanted")
        origin = self.lineage.origins[object_id[:16]]
        if origin.id not in self.tasks.pending:  # it may run for another of its results
            origin.rebuilds_left -= origin.rebuilds_left > 0
            self._resubmit(now, origin)
        elif origin.id in self.streams:  # an item that has passed: when the generator is over it can run again
            self.hurry(self.streams[origin.id])

    def _resubmit(self, now: float, origin: Origin) -> None:
        """Run a task again."""
        task = Task(
            origin.id,
            origin.template,
            origin.payload,
            tuple((where, self._hold(object_id, owner)) for where, object_id, owner in origin.slots),
            tuple(self._hold(object_id, owner) for object_id, owner in origin.nested),
            origin.returns,
            origin.depth,
        )
        if task.template.budget is not None:
            task.template.budget.take()
        missing = self.tasks.submit(task, self.memory.__contains__)
        if task.template.actor is not None and task.template.ordered:
            self.calls.submit_again(task)
        for ref in missing:
            self._seek(ref.binary(), ref.owner)
        if not missing:
            self._ready(now, task)

    def _hold(self, object_id: bytes, owner: Address) -> Any:
        """A new reference."""
        self.borrow(object_id, owner)
        return self._make_ref(object_id, owner)

    def _irreparable(self, object_id: bytes) -> str:
        """Why an object can not be made again, if that is so."""
        if object_id[16:] == bytes(4):
            return "it was put, and what is put can not be made again: keep what it was made of"
        origin = self.lineage.origin_of(object_id)
        if origin is None:
            return (
                "the task that made it may not run again (max_retries, for calls of actors max_task_retries) or is not "
                "remembered any more (ZRAY_LINEAGE_BYTES_MAX)"
            )
        name = origin.template.name
        if origin.id in self.tasks.pending:
            return ""
        actor = origin.template.actor
        queue = self.calls.queues.get(actor[0]) if actor is not None and origin.template.ordered else None
        if queue is not None and queue.worker in self._remote_gets.get(object_id, ()):
            return f"{name}(), which made it, is a call of the actor that waits for it"
        if origin.rebuilds_left == 0:
            return f"{name}(), which made it, has been run again as often as max_retries allows"
        for _, argument, owner in origin.slots:
            there = argument in self.memory or argument in self.lost or argument[:16] in self.tasks.pending
            if owner[0] == self._me and not there and self.lineage.origin_of(argument) is None:
                return f"{name}(), which made it, needs object {argument.hex()}, which was put and is freed: keep its reference"
        return ""

    # -- checks ---------------------------------------------------------------------------------------------------

    def check_recovery(self) -> None:
        """Assert the invariants; true after ``settle``."""
        for object_id, lost in self.lost.items():
            if object_id in self.memory:
                raise InvariantError(f"object {object_id.hex()} is lost and here")
            if not self.references.needed(object_id):
                raise InvariantError(f"object {object_id.hex()} is lost and nobody needs it")
            if lost.state is LostState.RESTING and lost.wanted:
                raise InvariantError(f"object {object_id.hex()} is waited for and not made again")
            if lost.state is LostState.REBUILDING and object_id[:16] not in self.tasks.pending:
                raise InvariantError(f"object {object_id.hex()} is not being made")
