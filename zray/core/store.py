"""ObjectStore: the index of a node's shared memory.

Theory of operation
-------------------
The store knows where each object lies, never what it says: clients write and read the bytes themselves. A client that has a
large value asks for room (CREATE), writes it, and SEALs; a sealed object never changes. A reader PINs the object for as
long as it has views of it, so its place is not given to another meanwhile; when the PIN overtakes the SEAL, which comes on
another link, it waits for it. The owner FREEs it when no reference is left; the room
comes back when the last pin goes. When there is no room a CREATE waits, first come, first served, for up to
``store_full_grace_s``, and is then refused with a summary of what fills the store.
"""

from __future__ import annotations

from collections.abc import Callable

from zray.base.config import Config
from zray.base.wire import Reply
from zray.core.arena import Arena
from zray.core.effects import SEND, TIMER, Effect
from zray.exceptions import InvariantError

CREATE_TIMER = "store.create"


class StoredObject:
    """One object in shared memory."""

    __slots__ = ("creator", "freed", "offset", "owner", "pins", "readers", "sealed", "size")

    def __init__(self, offset: int, size: int, creator: bytes) -> None:
        self.offset = offset
        self.size = size
        self.creator = creator
        self.owner = b""
        self.sealed = False
        self.freed = False
        self.pins: dict[bytes, int] = {}
        self.readers: list[tuple[bytes, int]] = []  # who wants to read it as soon as it is sealed: (peer, request id)


class _Creation:
    """A CREATE that waits for room."""

    __slots__ = ("deadline", "object_id", "peer", "request_id", "size")

    def __init__(self, peer: bytes, request_id: int, object_id: bytes, size: int, deadline: float) -> None:
        self.peer = peer
        self.request_id = request_id
        self.object_id = object_id
        self.size = size
        self.deadline = deadline


class ObjectStore:
    """The index of one node's store.

    Args:
        capacity: bytes of the arena.
        config: limits.
        out: where effects go.
    """

    __slots__ = ("_config", "_dead", "_out", "_waiting", "arena", "objects")

    def __init__(self, capacity: int, config: Config, out: list[Effect], dead: Callable[[bytes], bool]) -> None:
        self.arena = Arena(capacity)
        self.objects: dict[bytes, StoredObject] = {}
        self._config = config
        self._out = out
        self._dead = dead
        self._waiting: list[_Creation] = []

    def create(self, now: float, peer: bytes, request_id: int, object_id: bytes, size: int) -> None:
        """A client wants room; the reply is (offset, warm), or "exists" when the object is here already."""
        known = self.objects.get(object_id)
        if known is not None and known.sealed and not known.freed:
            self._reply(peer, request_id, "exists")
            return
        if known is not None or size > self.arena.capacity:
            self._refuse(peer, request_id, size)
            return
        creation = _Creation(peer, request_id, object_id, size, now + self._config.store_full_grace_s)
        if self._waiting or not self._place(creation):
            self._waiting.append(creation)
            self._out.append((TIMER, creation.deadline, (CREATE_TIMER,)))

    def seal(self, object_id: bytes, owner: bytes) -> None:
        """All bytes are written."""
        stored = self.objects.get(object_id)
        if stored is None:
            return
        stored.sealed = True
        stored.owner = owner
        readers, stored.readers = stored.readers, []
        for peer, request_id in readers:
            self.pin(peer, request_id, object_id)
        if stored.freed or self._dead(owner):
            self.free([object_id])

    def abort(self, object_id: bytes) -> None:
        """The creator could not write it."""
        stored = self.objects.get(object_id)
        if stored is not None and not stored.sealed:
            self._remove(object_id, stored)
            self._place_waiting()

    def pin(self, peer: bytes, request_id: int, object_id: bytes) -> None:
        """A client wants to read; the reply is (offset, size)."""
        stored = self.objects.get(object_id)
        if stored is None:
            self._miss(peer, request_id, object_id)
            return
        if not stored.sealed:
            stored.readers.append((peer, request_id))
            return
        stored.pins[peer] = stored.pins.get(peer, 0) + 1
        self._reply(peer, request_id, (stored.offset, stored.size))

    def unpin(self, peer: bytes, object_ids: list[bytes]) -> None:
        """A client's last views of objects are gone."""
        for object_id in object_ids:
            stored = self.objects.get(object_id)
            if stored is None or peer not in stored.pins:
                continue
            stored.pins[peer] -= 1
            if not stored.pins[peer]:
                del stored.pins[peer]
                self._remove_if_done(object_id, stored)
        self._place_waiting()

    def free(self, object_ids: list[bytes]) -> None:
        """The owner needs them no more."""
        for object_id in object_ids:
            stored = self.objects.get(object_id)
            if stored is not None:
                stored.freed = True  # and when the seal is still on its way, it goes when the seal arrives
                self._remove_if_done(object_id, stored)
        self._place_waiting()

    def drop_client(self, peer: bytes) -> None:
        """A process is gone: its pins, what it was writing, what it owned."""
        self._waiting = [c for c in self._waiting if c.peer != peer]
        for object_id, stored in list(self.objects.items()):
            stored.pins.pop(peer, None)
            stored.readers = [reader for reader in stored.readers if reader[0] != peer]
            if not stored.sealed:
                if stored.creator == peer:
                    self._remove(object_id, stored)
                continue
            if stored.owner == peer:
                stored.freed = True
            self._remove_if_done(object_id, stored)
        self._place_waiting()

    def on_timer(self, now: float) -> None:
        """Refuse those that waited for too long."""
        late = [c for c in self._waiting if c.deadline <= now + 1e-6]
        self._waiting = [c for c in self._waiting if c.deadline > now + 1e-6]
        for creation in late:
            self._refuse(creation.peer, creation.request_id, creation.size)
        self._place_waiting()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _place(self, creation: _Creation) -> bool:
        place = self.arena.allocate(creation.size)
        if place is None:
            return False
        self.objects[creation.object_id] = StoredObject(place[0], creation.size, creation.peer)
        self._reply(creation.peer, creation.request_id, place)
        return True

    def _place_waiting(self) -> None:
        while self._waiting and self._place(self._waiting[0]):
            del self._waiting[0]

    def _remove_if_done(self, object_id: bytes, stored: StoredObject) -> None:
        if stored.freed and stored.sealed and not stored.pins:
            self._remove(object_id, stored)

    def _remove(self, object_id: bytes, stored: StoredObject) -> None:
        del self.objects[object_id]
        self.arena.free(stored.offset, warm=stored.sealed)
        for peer, request_id in stored.readers:
            self._miss(peer, request_id, object_id)

    def _reply(self, peer: bytes, request_id: int, value: object) -> None:
        self._out.append((SEND, peer, Reply(request_id, True, value)))

    def _miss(self, peer: bytes, request_id: int, object_id: bytes) -> None:
        text = f"object {object_id.hex()} is not in this node's store"
        self._out.append((SEND, peer, Reply(request_id, False, text)))

    def _refuse(self, peer: bytes, request_id: int, size: int) -> None:
        pinned = sum(o.size for o in self.objects.values() if o.pins)
        statistics = self.arena.statistics()
        text = (
            f"an object of {size} bytes does not fit into the object store: {statistics['used_bytes']} of "
            f"{statistics['capacity_bytes']} bytes are used by {len(self.objects)} objects ({pinned} bytes of them "
            "being read). Drop references that are not needed, or give init() more object_store_memory"
        )
        self._out.append((SEND, peer, Reply(request_id, False, text)))

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        self.arena.check()
        for object_id, stored in self.objects.items():
            if stored.sealed and stored.readers:
                raise InvariantError(f"object {object_id.hex()} is sealed and still waited for")
            if stored.freed and stored.sealed and not stored.pins:
                raise InvariantError(f"object {object_id.hex()} is free and still here")

    def statistics(self) -> dict[str, int]:
        return {
            "objects": len(self.objects),
            "pinned": sum(1 for o in self.objects.values() if o.pins),
            "creations_waiting": len(self._waiting),
            **self.arena.statistics(),
        }
