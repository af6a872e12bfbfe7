"""StoreClient: how a driver or worker writes large objects to its node's store, and reads them.

The bytes never travel through the agent: it only says where. Places that are pinned here are shared by all views in this
process; the agent hears when the last of them is gone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from zray.base import serialization, wire
from zray.base.serialization import Serialized
from zray.base.wire import Entry
from zray.core.waiters import Waiter
from zray.exceptions import ObjectLostError, ObjectStoreFullError, OutOfDiskError, RayError
from zray.io.storage import Arena, map_file, write_file
from zray.runtime.client import Client, Request

Place = tuple[Any, ...]  # (offset, size) in the arena, or (path, position, size, checksum) of a file


class StoreClient:
    """The store as one process sees it.

    Args:
        worker: the process.
        arena_name: the node's shared memory.
        free_first: called in the loop before room is asked for, so that what was released before is free then.
        call_site: the line of the user's program that is being run.
    """

    def __init__(
        self, worker: Client, arena_name: str, free_first: Callable[[], None], call_site: Callable[[], str]
    ) -> None:
        self._worker = worker
        self._free_first = free_first
        self._call_site = call_site
        self._arena_name = arena_name
        self._arena: Arena | None = None
        self._places: dict[bytes, Place] = {}  # of the objects pinned here
        self._views: dict[bytes, int] = {}  # ... and how many views of each there are
        self._fetching: set[bytes] = set()

    def write(self, object_id: bytes, value: Serialized, owner: bytes) -> int:
        """Make an object of a value; returns the bytes it takes.

        Raises:
            ObjectStoreFullError: there is no room for it in memory, and it can not live on disk.
            OutOfDiskError: room could not be made because the disks are full.
        """
        worker = self._worker
        size = serialization.stored_size(value)
        worker.loop.post((self._free_first,))
        tried: list[str] = []
        while True:
            request = worker.ask(worker.agent, wire.CreateObject, object_id, size, self._call_site())
            try:
                worker.loop.wait(request)
            except BaseException:  # an interrupt: the room that was asked for comes nevertheless
                worker.loop.post((self._decline, request, object_id))
                raise
            if not request.ok:
                raise worker.broken or _refusal(request.value)
            if request.value == "exists":
                return size
            place, warm = request.value
            checksum = 0
            try:
                if isinstance(place, int):
                    self._mapping().write(place, value, warm=warm)
                else:
                    checksum = write_file(place, value)
            except OSError as error:
                worker.tell(worker.agent, wire.AbortObject(object_id, f"{error.strerror} ({place})"))
                if os.path.dirname(str(place)) in tried:
                    text = f"an object of {size} bytes fits neither into the object store nor on disk: {error.strerror}"
                    raise OutOfDiskError(f"{text} ({place})") from error
                tried.append(os.path.dirname(str(place)))  # another directory may have room
            except BaseException:
                worker.tell(worker.agent, wire.AbortObject(object_id))
                raise
            else:
                worker.tell(worker.agent, wire.SealObject(object_id, owner, checksum))
                return size

    def read(
        self, object_ids: Sequence[bytes], entries: Sequence[Entry], owners: Sequence[bytes], *, urgent: bool = True
    ) -> list[Any]:
        """Values of objects, as views of where they lie.

        Args:
            object_ids: which.
            entries: what their owners know of each: its size, and its node.
            owners: the process that owns each.
            urgent: whether somebody waits in ``get``; the arguments of tasks come second.

        Raises:
            ObjectLostError: one of them can not be read any more.
            ObjectStoreFullError: one of them lies in a storage elsewhere, and there is no room for it here.
        """
        loop = self._worker.loop
        wanted = dict(zip(object_ids, zip(entries, owners, strict=True), strict=True))
        waiter = Waiter(len(wanted))
        refusals: dict[bytes, Any] = {}
        loop.post((self._pin, waiter, wanted, urgent, refusals))
        try:
            loop.wait(waiter)
        except BaseException:  # Ctrl-C: the pins that were asked for come nevertheless
            loop.post((self._abandon, waiter, list(wanted), refusals))
            raise
        values: dict[bytes, Any] = {}
        try:
            for object_id in wanted:
                place = self._places.get(object_id) if object_id not in refusals else None
                if place is None:
                    raise self._worker.broken or _unreadable(object_id, refusals.get(object_id))
                view = self._view(object_id, place)
                values[object_id] = None  # from here on the view gives the pin back
                data, buffers = serialization.parse_stored(view)
                values[object_id] = serialization.deserialize_parts(data, buffers)
        finally:
            for object_id in wanted:
                if object_id not in values and object_id not in refusals and object_id in self._places:
                    loop.post((self._unpin, object_id))
        return [values[object_id] for object_id in object_ids]

    def fetch(self, object_id: bytes, entry: Entry, owner: bytes) -> None:
        """In the loop: have an object brought to this node, for whoever reads it next; behind what is waited for."""
        if object_id in self._places or object_id in self._fetching:
            return
        self._fetching.add(object_id)

        def came(ok: bool, value: Any) -> None:
            self._fetching.discard(object_id)
            if ok:  # the copy stays, as long as there is room
                self._worker.send(self._worker.agent, wire.UnpinObjects([object_id]))

        self._worker.ask_then(came, wire.PinObject, object_id, False, entry[2], entry[1], owner)

    def close(self) -> None:
        """Unmap the arena, unless the user still has views of it."""
        if self._arena is not None:
            self._arena.close()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _view(self, object_id: bytes, place: Place) -> memoryview:
        unused = self._unused(object_id)
        if isinstance(place[0], int):
            return self._mapping().view(place[0], place[1], unused)
        try:
            path, position, size, checksum = place
            return map_file(path, position, size, checksum, unused)
        except (OSError, ValueError) as error:
            text = f"object {object_id.hex()} was moved to disk and can not be read back: {error}"
            self._worker.tell(self._worker.agent, wire.ObjectDamaged(object_id))
            raise ObjectLostError(text, object_id.hex()) from error

    def _unused(self, object_id: bytes) -> Callable[[], None]:
        return lambda: self._worker.loop.post((self._unpin, object_id))

    def _pin(
        self, waiter: Waiter, wanted: dict[bytes, tuple[Entry, bytes]], urgent: bool, refusals: dict[bytes, Any]
    ) -> None:
        """In the loop: pin what is not pinned here yet; each view counts once."""
        for object_id, ((_, size, node_id, _), owner) in wanted.items():
            if object_id in self._places:
                self._views[object_id] += 1
                self._worker.count_down(waiter)
            else:
                pinned = self._pinned(waiter, object_id, refusals)
                self._worker.ask_then(pinned, wire.PinObject, object_id, urgent, node_id, size, owner)

    def _pinned(
        self, waiter: Waiter, object_id: bytes, refusals: dict[bytes, Any]
    ) -> Callable[[bool, Any], None]:
        def answered(ok: bool, value: Any) -> None:
            if not ok:
                refusals[object_id] = value
            elif object_id in self._places:  # two threads asked at once: one pin is enough
                self._views[object_id] += 1
                self._worker.send(self._worker.agent, wire.UnpinObjects([object_id]))
            else:
                self._places[object_id] = value
                self._views[object_id] = 1
            self._worker.count_down(waiter)

        return answered

    def _abandon(self, waiter: Waiter, object_ids: list[bytes], refusals: dict[bytes, Any]) -> None:
        """In the loop: nobody takes what was pinned; give it back when all of it is here."""

        def give_back() -> None:
            for object_id in object_ids:
                if object_id not in refusals:
                    self._unpin(object_id)

        if waiter.remaining > 0:
            waiter.callback = give_back
        else:
            give_back()

    def _decline(self, request: Request, object_id: bytes) -> None:
        """In the loop: nobody writes what room was asked for; give it back when it is there."""

        def give_back(ok: bool, value: Any) -> None:
            if ok and value != "exists":
                self._worker.send(self._worker.agent, wire.AbortObject(object_id))

        if request.done:
            give_back(request.ok, request.value)
        else:
            request.then = give_back

    def _unpin(self, object_id: bytes) -> None:
        self._views[object_id] -= 1
        if not self._views[object_id]:
            del self._views[object_id], self._places[object_id]
            self._worker.send(self._worker.agent, wire.UnpinObjects([object_id]))

    def _mapping(self) -> Arena:
        if self._arena is None:
            self._arena = Arena(self._arena_name)
        return self._arena


def _unreadable(object_id: bytes, refusal: Any) -> RayError:
    """The error of a refused PIN: (kind, text)."""
    if isinstance(refusal, tuple) and refusal[0] != "lost":
        return _refusal(refusal)
    text = refusal[1] if refusal else f"object {object_id.hex()} is not in the store of this node any more"
    return ObjectLostError(text, object_id.hex())


def _refusal(value: Any) -> RayError:
    """The error of a refused CREATE: (kind, text)."""
    kind, text = value
    return OutOfDiskError(text) if kind == "disk" else ObjectStoreFullError(text)
