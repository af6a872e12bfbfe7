"""ObjectStore: the index of a node's object store.

Theory of operation
-------------------
The store knows where each object lies, never what it says: clients write and read the bytes themselves. A client that has a
large value asks for room (CREATE), writes it, and SEALs; a sealed object never changes. A reader PINs the object for as
long as it has views of it, so its place is not given to another meanwhile. The owner FREEs it when no reference is left; the
room comes back when the last pin goes.

*Room.* A demand for room, for a new object or to bring one back from disk, is met from free space; else by dropping objects
that nobody reads and that have a copy on disk; else by writing the coldest of the others to disk first, several small ones
into one file. Demands are served in order: readers in ``get`` before new objects, and these before the arguments of tasks that
have not started; a small one never overtakes a large one of its own kind, which would wait for ever. Where nothing can be
moved because everything is being read, or the object is larger than the whole store, it lives in a file of its own and is
used there through a mapping; what lies in a storage elsewhere is read into such a file for as long as somebody uses it. Only when
that is impossible too, a demand waits for ``store_full_grace_s`` and is refused, with the reason; who waits behind one that can
not be served is served then, if there is room. When a demand has to wait at all, clients are asked to collect their garbage:
cycles can hold references.

*Copies.* A copy on disk stays valid after the object was brought back, so the object can be dropped again for nothing. The same
is true of a *secondary* copy, which was brought from the node that has the primary: it is never written to disk, it is forgotten
when memory is short and nobody reads it, and it goes with its primary. ``PULLS`` and ``PUSHES`` are clients of the store too:
machines of the same agent (``transfer``), which are answered by effects.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.base.config import Config
from zray.base.wire import Reply
from zray.base.wire_transfer import CopiesDropped
from zray.core.arena import Arena
from zray.core.demand import Demand
from zray.core.disk_traffic import DiskTraffic
from zray.core.effects import ANSWER, COLLECT, SEND, TIMER, Effect
from zray.core.refusal import refusal
from zray.core.spilling import SPILL_TIMER, Copy, SpillFiles
from zray.core.stored_object import ObjectState, StoredObject
from zray.exceptions import InvariantError

CREATE_TIMER = "store.create"
PULLS, PUSHES = b"pulls", b"pushes"
GET, CREATE, ARGUMENT = 0, 1, 2  # priorities of demands


class ObjectStore(DiskTraffic):
    """The index of one node's store.

    Args:
        capacity: bytes of the arena.
        config: limits.
        out: where effects go.
        dead: tells whether a process is known to have ended.
        directories: where objects are spilled to.
    """

    __slots__ = (
        "_batches",
        "_config",
        "_dead",
        "_demands",
        "_droppable",
        "_droppable_bytes",
        "_out",
        "_spillable",
        "arena",
        "copies",
        "files",
        "objects",
    )

    def __init__(
        self,
        capacity: int,
        config: Config,
        out: list[Effect],
        dead: Callable[[bytes], bool],
        directories: list[str] | None = None,
    ) -> None:
        self.arena = Arena(capacity)
        self.files = SpillFiles(directories or [], config.spill_rest_s, out)
        self.objects: dict[bytes, StoredObject] = {}
        self.copies: dict[bytes, bytes] = {}  # secondary ones, and the agent that has the primary
        self.spilling_bytes = 0  # on the way to disk
        self.spilled_bytes = 0  # written to disk so far, in all
        self._config = config
        self._dead = dead
        self._out = out
        self._demands: list[Demand] = []
        self._spillable: dict[bytes, None] = {}  # in memory, unread, without a copy; the coldest first
        self._droppable: dict[bytes, None] = {}  # in memory, unread, with a copy; the coldest first
        self._droppable_bytes = 0
        self._moved = 0  # how often something was written to disk or read back
        self._batches: dict[int, tuple[int, list[bytes]]] = {}  # being written: directory, objects
        self._next_batch = 1

    # -- clients --------------------------------------------------------------------------------------------------

    def create(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        object_id: bytes,
        size: int,
        call_site: str = "",
        priority: int = CREATE,
    ) -> None:
        """A client wants room; the reply is (offset, warm), (path, False), or "exists" when the object is here already."""
        deadline = now + self._config.store_full_grace_s
        demand = Demand(priority, peer, request_id, object_id, size, deadline, call_site)
        known = self.objects.get(object_id)
        if known is not None:
            self._answer_second(demand, known)
        elif size > self.arena.capacity and not self.files.has_local():
            self._reply(peer, request_id, self._refusal(size), ok=False)
        else:
            self._demand(demand)

    def withdraw(self, object_id: bytes) -> bool:
        """PULLS does not want room for this object any more; False: it has been answered."""
        stored = self.objects.get(object_id)
        for waiting in (self._demands, stored.makers if stored is not None else []):
            for demand in waiting:
                if demand.peer == PULLS and demand.object_id == object_id:
                    waiting.remove(demand)
                    self._advance()
                    return True
        return False

    def seal(self, object_id: bytes, owner: bytes, checksum: int = 0, primary: bytes = b"") -> None:
        """All bytes are written; ``checksum`` is of those written to a file. ``primary``: the agent that has the primary copy."""
        stored = self.objects.get(object_id)
        if stored is None or stored.sealed or not stored.creator:
            return
        stored.owner = owner
        if primary:
            self.copies[object_id] = primary
        if stored.copy is not None:
            stored.copy.checksum = checksum
            stored.move("sealed on disk")
        else:
            stored.move("sealed")
        self._serve_readers(object_id, stored)
        makers, stored.makers = stored.makers, []
        for demand in makers:
            self._answer_second(demand, stored)
        if stored.freed or self._dead(owner):
            self.free([object_id])
        else:
            self._settle(object_id, stored)
            self._advance()

    def abort(self, object_id: bytes, reason: str = "", now: float = 0.0) -> None:
        """The creator could not write it; ``reason``: what the file system said."""
        stored = self.objects.get(object_id)
        if stored is not None and not stored.sealed:
            if reason and stored.copy is not None:
                self.files.avoid(now, stored.copy.path, reason)
            stored.creator, stored.freed = b"", True
            self._settle(object_id, stored)  # when the nodes that read what is here of it have let go
            self._advance()

    def pin(self, peer: bytes, request_id: int, object_id: bytes, *, now: float = 0.0, urgent: bool = True) -> None:
        """A client wants to read; the reply is (offset, size), or (path, position, size, checksum)."""
        stored = self.objects.get(object_id)
        if stored is None:
            self._miss(peer, request_id, object_id)
        elif stored.state in (ObjectState.IN_MEMORY, ObjectState.SPILLING):
            self._pin(peer, request_id, object_id, stored)
        elif stored.state is ObjectState.ON_DISK and stored.pins:
            self._pin(peer, request_id, object_id, stored)  # somebody uses it there: so can this one
        else:
            stored.readers.append((peer, request_id))
            if stored.state is ObjectState.ON_DISK:
                priority = GET if urgent else ARGUMENT
                known = [d for d in self._demands if d.object_id == object_id and d.request_id < 0]
                if not any(d.priority <= priority for d in known):
                    self._demands = [d for d in self._demands if d not in known]
                    self._demand_back(now, object_id, stored, urgent=urgent)

    def lend(self, now: float, request_id: int, object_id: bytes) -> None:
        """PUSHES wants to send the object: a file of this machine will do as well as memory, and what is coming too."""
        stored = self.objects.get(object_id)
        if stored is not None and (stored.in_local_file or (stored.comes_to_memory and stored.creator == PULLS)):
            self._pin(PUSHES, request_id, object_id, stored)
        else:
            self.pin(PUSHES, request_id, object_id, now=now, urgent=False)

    def unpin(self, peer: bytes, object_ids: list[bytes]) -> None:
        """A client's last views of objects are gone."""
        for object_id in object_ids:
            stored = self.objects.get(object_id)
            if stored is None or peer not in stored.pins:
                continue
            stored.pins[peer] -= 1
            if not stored.pins[peer]:
                del stored.pins[peer]
                self._settle(object_id, stored)
        self._advance()

    def free(self, object_ids: list[bytes]) -> None:
        """The owner needs them no more."""
        for object_id in object_ids:
            stored = self.objects.get(object_id)
            if stored is not None:
                stored.freed = True  # and when the seal is still on its way, it goes when the seal arrives
                self._settle(object_id, stored)
        self._advance()

    def drop_client(self, peer: bytes) -> None:
        """A process is gone: its pins, what it was writing, and what it owned."""
        for stored in self.objects.values():
            if stored.readers or stored.makers:
                stored.readers = [reader for reader in stored.readers if reader[0] != peer]
                stored.makers = [demand for demand in stored.makers if demand.peer != peer]
        self._demands = [
            d for d in self._demands if (d.peer != peer if d.request_id >= 0 else self.objects[d.object_id].readers)
        ]
        held = [(i, o) for i, o in self.objects.items() if peer in o.pins or peer in (o.owner, o.creator)]
        for object_id, stored in held:
            stored.pins.pop(peer, None)
            if stored.sealed:
                stored.freed = stored.freed or peer == stored.owner
                self._settle(object_id, stored)
            elif stored.creator == peer:
                self._remove(object_id, stored)
        self._advance()

    # -- room -----------------------------------------------------------------------------------------------------

    def on_timer(self, now: float, key: tuple[object, ...] = (CREATE_TIMER,)) -> None:
        """Refuse those that waited for too long; try a directory again."""
        if key[0] == SPILL_TIMER:
            self.files.on_rested(key[1])  # type: ignore[arg-type]
        else:
            begun = self._next_batch
            for demand in [d for d in self._demands if d.deadline <= now + 1e-6]:
                if demand not in self._demands:
                    continue  # it was served when one before it was given up
                if demand.seen != self._moved or self._next_batch != begun:  # a slow disk is no reason to refuse anybody
                    demand.seen = self._moved
                    demand.deadline = now + self._config.store_full_grace_s
                    self._out.append((TIMER, demand.deadline, (CREATE_TIMER,)))
                    continue
                self._demands.remove(demand)
                if not self._grant(demand) and (self._batches or not self._grant_on_disk(demand)):
                    self._give_up(demand)
                self._advance()
        self._advance()

    def _demand_back(self, now: float, object_id: bytes, stored: StoredObject, *, urgent: bool) -> None:
        deadline = now + self._config.store_full_grace_s
        self._demand(Demand(GET if urgent else ARGUMENT, b"", -1, object_id, stored.size, deadline))

    def _demand(self, demand: Demand) -> None:
        self._enqueue(demand)
        self._advance()
        if demand in self._demands:
            self._out.append((TIMER, demand.deadline, (CREATE_TIMER,)))
            self._out.append((COLLECT,))

    def _enqueue(self, demand: Demand) -> None:
        demand.seen = self._moved
        index = len(self._demands)
        while index and self._demands[index - 1].priority > demand.priority:
            index -= 1
        self._demands.insert(index, demand)

    def _advance(self) -> None:
        """Serve demands in order; start to spill for the first that can not be served, or above the threshold."""
        while self._demands:
            demand = self._demands.pop(0)
            if self._grant(demand):
                continue
            coming = demand.size <= self.arena.capacity and (self._spill(demand.size) or bool(self._batches))
            if coming or not self._grant_on_disk(demand):
                self._demands.insert(0, demand)
                return
        threshold = int(self.arena.capacity * self._config.spill_threshold)
        excess = self.arena.used_bytes - self._droppable_bytes - threshold
        if excess > self.spilling_bytes and self._spillable and self._spill(excess):
            self._out.append((COLLECT,))

    def _allocate(self, size: int) -> tuple[int, bool] | None:
        place = self.arena.allocate(size)
        while place is None and self._droppable:
            object_id, offset = next((o, self.objects[o].offset) for o in self._droppable)
            self._drop(object_id, self.objects[object_id])
            place = self.arena.allocate(size) if self.arena.reaches(offset, size) else None
        return place

    def _grant(self, demand: Demand) -> bool:
        """Meet a demand with room in memory, if there is any."""
        if demand.request_id >= 0 and demand.object_id in self.objects:  # another was asked for the same, and was first
            self._answer_second(demand, self.objects[demand.object_id])
            return True
        place = self._allocate(demand.size) if demand.size <= self.arena.capacity else None
        if place is None:
            return False
        if demand.request_id >= 0:
            stored = self.objects[demand.object_id] = StoredObject(place[0], demand.size, demand.peer)
            stored.call_site = demand.call_site
            self._reply(demand.peer, demand.request_id, place)
        else:
            stored = self.objects[demand.object_id]
            stored.offset = place[0]
            self._restore(demand.object_id, stored, stored.offset)
        return True

    def _grant_on_disk(self, demand: Demand) -> bool:
        """No room in memory can be made: the object is used in a file of this machine, if it may have one."""
        object_id = demand.object_id
        if demand.request_id < 0 and self.objects[object_id].in_local_file:
            self._serve_readers(object_id, self.objects[object_id])
            return True
        directory = self.files.local()
        if directory is None:
            return False
        self._out.append((COLLECT,))  # what fills the store may be garbage
        if demand.request_id < 0:
            stored = self.objects[object_id]
            assert stored.copy is not None
            path = f"{directory}/{object_id.hex()}-{self._next_batch}.object"  # that of an earlier reader may not be deleted yet
            self._next_batch += 1
            stored.near = Copy(path, 0, stored.copy.checksum)
            self.files.keep(path)
            self._restore(object_id, stored, path)
            return True
        stored = self.objects[object_id] = StoredObject(-1, demand.size, demand.peer)
        stored.call_site = demand.call_site
        # The file of an earlier copy may not be deleted yet.
        suffix = f"-{demand.request_id}" if demand.peer == PULLS else ""
        path = f"{directory}/{object_id.hex()}{suffix}.object"
        stored.copy = Copy(path, 0, 0)
        self.files.keep(path)
        self._reply(demand.peer, demand.request_id, (path, False))
        return True

    def _answer_second(self, demand: Demand, stored: StoredObject) -> None:
        """Two make the same object, or one makes it while it is brought here: the second takes what the first has written."""
        if not stored.sealed:
            stored.makers.append(demand)
            return
        if demand.peer != PULLS:
            stored.freed = False  # it is needed after all
            if demand.object_id in self.copies:
                self._out.append((SEND, self.copies[demand.object_id], CopiesDropped([demand.object_id])))
                self.adopt(demand.object_id, stored.owner)
        self._reply(demand.peer, demand.request_id, "exists")

    # -- inside ---------------------------------------------------------------------------------------------------

    def _pin(self, peer: bytes, request_id: int, object_id: bytes, stored: StoredObject) -> None:
        stored.pins[peer] = stored.pins.get(peer, 0) + 1
        self._unlist(object_id, stored)
        if stored.offset >= 0:
            self._reply(peer, request_id, (stored.offset, stored.size))
        else:
            copy = stored.near or stored.copy
            assert copy is not None
            self._reply(peer, request_id, (copy.path, copy.position, stored.size, copy.checksum))

    def _serve_readers(self, object_id: bytes, stored: StoredObject) -> None:
        readers, stored.readers = stored.readers, []
        for peer, request_id in readers:
            self._pin(peer, request_id, object_id, stored)

    def _sort(self, object_id: bytes, stored: StoredObject) -> None:
        """An object in memory that nobody reads is the warmest of those that can be moved."""
        if stored.state is ObjectState.IN_MEMORY and not stored.pins:
            if stored.copy is None and object_id not in self.copies:
                self._spillable[object_id] = None
            elif object_id not in self._droppable:
                self._droppable[object_id] = None
                self._droppable_bytes += stored.size

    def _unlist(self, object_id: bytes, stored: StoredObject) -> None:
        """An object can not be moved any more."""
        self._spillable.pop(object_id, None)
        if self._droppable.pop(object_id, 0) is None:
            self._droppable_bytes -= stored.size

    def _settle(self, object_id: bytes, stored: StoredObject) -> None:
        """Something that held an object is gone: remove it if that was the last, else see whether it can be moved now."""
        busy = bool(stored.creator) if not stored.sealed else stored.state in (ObjectState.SPILLING, ObjectState.RESTORING)
        useless = stored.freed or (stored.offset < 0 and object_id in self.copies)  # a file is no faster than the other node is
        if useless and not busy and not stored.pins:
            self._remove(object_id, stored)
            return
        if not busy and not stored.pins:
            self._leave(stored)
        self._sort(object_id, stored)

    def adopt(self, object_id: bytes, owner: bytes) -> bool:
        """The primary is lost, and the copy here takes its place; whether there is one."""
        stored = self.objects.get(object_id)
        if stored is None or stored.freed or self.copies.pop(object_id, None) is None:
            return False
        stored.owner = owner
        self._unlist(object_id, stored)
        self._sort(object_id, stored)
        if self._dead(owner):
            self.free([object_id])
        return True

    def _drop(self, object_id: bytes, stored: StoredObject) -> None:
        """Forget the place in memory of an object that has another copy, on disk or on its primary's node."""
        if object_id in self.copies:
            self._remove(object_id, stored)
            return
        self._unlist(object_id, stored)
        stored.move("dropped")
        self.arena.free(stored.offset, warm=True)
        stored.offset = -1

    def _remove(self, object_id: bytes, stored: StoredObject) -> None:
        del self.objects[object_id]
        self._unlist(object_id, stored)
        self._demands = [d for d in self._demands if d.object_id != object_id or d.request_id >= 0]
        if stored.offset >= 0:
            self.arena.free(stored.offset, warm=stored.sealed)
        self._leave(stored)
        if stored.copy is not None:
            self.files.drop(stored.copy.path)
        primary = self.copies.pop(object_id, b"")
        if primary and not stored.freed:
            self._out.append((SEND, primary, CopiesDropped([object_id])))
        for peer, request_id in stored.readers:
            self._miss(peer, request_id, object_id)
        for demand in stored.makers:  # what the first one wrote will never be complete
            self._enqueue(demand)
            self._out.append((TIMER, demand.deadline, (CREATE_TIMER,)))

    def _reply(self, peer: bytes, request_id: int, value: object, *, ok: bool = True) -> None:
        if peer in (PULLS, PUSHES):
            self._out.append((ANSWER, peer, request_id, ok, value))
        else:
            self._out.append((SEND, peer, Reply(request_id, ok, value)))

    def _miss(self, peer: bytes, request_id: int, object_id: bytes) -> None:
        text = f"object {object_id.hex()} is not in this node's store"
        self._reply(peer, request_id, ("lost", text), ok=False)

    def _give_up(self, demand: Demand) -> None:
        refusal = self._refusal(demand.size)
        if demand.request_id >= 0:
            self._reply(demand.peer, demand.request_id, refusal, ok=False)
            return
        stored = self.objects[demand.object_id]
        readers, stored.readers = stored.readers, []
        for peer, request_id in readers:
            self._reply(peer, request_id, refusal, ok=False)

    def _refusal(self, size: int) -> tuple[str, str]:
        return refusal(size, self.objects.values(), self.arena, self.files.reason)

    def rows(self) -> list[tuple[object, ...]]:
        """(id, size, state, owner, pins, path, call site) of each object."""
        return [(object_id, *stored.row()) for object_id, stored in self.objects.items()]

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        self.arena.check()
        self.files.check()
        copies: dict[str, int] = {}
        for object_id, stored in self.objects.items():
            name = object_id.hex()
            busy = stored.state in (ObjectState.SPILLING, ObjectState.RESTORING) or (not stored.sealed and stored.creator)
            if stored.freed and not busy and not stored.pins:
                raise InvariantError(f"object {name} is free and still here")
            if stored.readers and stored.state in (ObjectState.IN_MEMORY, ObjectState.SPILLING):
                raise InvariantError(f"object {name} can be read and is still waited for")
            if stored.makers and stored.sealed:
                raise InvariantError(f"object {name} is complete, and some wait to make it")
            for copy in (stored.copy, stored.near):
                if copy is not None:
                    copies[copy.path] = copies.get(copy.path, 0) + 1
            if stored.near is not None and not stored.pins and stored.state is not ObjectState.RESTORING:
                raise InvariantError(f"object {name} has a file that nobody uses")
            if object_id in self.copies and (stored.state is ObjectState.SPILLING or object_id in self._spillable):
                raise InvariantError(f"object {name} is a copy and is written to disk")
            if stored.offset < 0 and stored.copy is None:
                raise InvariantError(f"object {name} is nowhere")
            movable = object_id in self._spillable or object_id in self._droppable
            if movable != (stored.state is ObjectState.IN_MEMORY and not stored.pins):
                raise InvariantError(f"object {name} is {stored.state.name} and wrongly listed as movable: {movable}")
        if copies != self.files.live or not self.objects.keys() >= self.copies.keys():
            raise InvariantError(f"copies are counted wrongly: {self.files.live} for {copies}, {self.copies}")

    def statistics(self) -> dict[str, int]:
        return {
            "objects": len(self.objects),
            "pinned": sum(1 for o in self.objects.values() if o.pins),
            "secondary": len(self.copies),
            "on_disk": sum(1 for o in self.objects.values() if o.state is ObjectState.ON_DISK),
            "creations_waiting": len(self._demands),
            "spilled_bytes": self.spilled_bytes,
            **self.arena.statistics(),
        }
