"""DiskTraffic: the part of a store that moves objects between memory and files.

Objects leave memory in batches, several small ones in one file, and come back one by one. A batch that could not be written stays
where it is; an object that can not be read back is lost, and who waits for it is told why. What lies in a storage elsewhere can
also come into a file of this machine, where it is used when memory has no room.
"""

from __future__ import annotations

from zray.base.config import Config
from zray.base.wire import ObjectsSpilled
from zray.core.arena import Arena
from zray.core.effects import RESTORE, SEND, SPILL, Effect
from zray.core.spilling import Copy, SpillFiles
from zray.core.stored_object import ObjectState, StoredObject

_BATCHES_MAX = 2  # spill files written at the same time


class DiskTraffic:
    """What ``ObjectStore`` inherits; the fields are made there."""

    __slots__ = ("_moved", "_next_batch", "spilled_bytes", "spilling_bytes")

    _batches: dict[int, tuple[int, list[bytes]]]
    _config: Config
    _out: list[Effect]
    _spillable: dict[bytes, None]
    arena: Arena
    _moved: int  # how often something was written to disk or read back
    _next_batch: int
    files: SpillFiles
    objects: dict[bytes, StoredObject]
    spilled_bytes: int  # written to disk so far, in all
    spilling_bytes: int  # on the way to disk

    def _advance(self) -> None:
        """Serve those who wait for room."""
        raise NotImplementedError

    def _demand_back(self, now: float, object_id: bytes, stored: StoredObject, *, urgent: bool) -> None:
        """Somebody wants to read what is on disk."""
        raise NotImplementedError

    def _reply(self, peer: bytes, request_id: int, value: object, *, ok: bool = True) -> None:
        """Answer a client."""
        raise NotImplementedError

    def _serve_readers(self, object_id: bytes, stored: StoredObject) -> None:
        """Those who wait for an object can read it."""
        raise NotImplementedError

    def _settle(self, object_id: bytes, stored: StoredObject) -> None:
        """Something that held an object is gone."""
        raise NotImplementedError

    # -- what the disk says -------------------------------------------------------------------------------------------

    def on_spilled(self, batch_id: int, path: str, places: list[tuple[int, int]]) -> None:
        """A file is written; ``places`` are position and checksum of each of its objects."""
        _, object_ids = self._batches.pop(batch_id)
        self._moved += 1
        self.files.reason = ""
        for object_id, (position, checksum) in zip(object_ids, places, strict=True):
            stored = self.objects[object_id]
            stored.move("written")
            stored.copy = Copy(path, position, checksum)
            self.files.keep(path)
            self.spilling_bytes -= stored.size
            self.spilled_bytes += stored.size
        owners: dict[bytes, list[tuple[bytes, str, int, int]]] = {}
        for object_id, (position, checksum) in zip(object_ids, places, strict=True):
            stored = self.objects[object_id]
            if not stored.freed:
                owners.setdefault(stored.owner, []).append((object_id, path, position, checksum))
            self._settle(object_id, stored)
        for owner, rows in owners.items():
            self._out.append((SEND, owner, ObjectsSpilled(rows)))
        self._advance()

    def on_spill_failed(self, now: float, batch_id: int, reason: str) -> None:
        """A file could not be written: its objects stay where they are."""
        directory, object_ids = self._batches.pop(batch_id)
        self.files.on_failed(now, directory, reason)
        for object_id in object_ids:
            stored = self.objects[object_id]
            stored.move("failed")
            self.spilling_bytes -= stored.size
            self._settle(object_id, stored)
        self._advance()

    def on_restored(self, object_id: bytes) -> None:
        """An object is back in memory, or in a file of this machine."""
        stored = self.objects[object_id]
        stored.move("restored" if stored.near is None else "brought near")
        self._moved += 1
        self._serve_readers(object_id, stored)
        self._settle(object_id, stored)
        self._advance()

    def on_restore_failed(self, object_id: bytes, reason: str) -> None:
        """The copy on disk can not be read: whoever wants the object is told why."""
        stored = self._not_restored(object_id)
        readers, stored.readers = stored.readers, []
        for peer, request_id in readers:
            self._reply(peer, request_id, ("lost", reason), ok=False)
        self.on_damaged(object_id)

    def on_restore_refused(self, now: float, object_id: bytes, reason: str) -> None:
        """There is no room on the disk to which it was to be read: whoever wants the object waits for other room."""
        stored = self.objects[object_id]
        assert stored.near is not None
        self.files.refused(now, stored.near.path, reason)
        self._not_restored(object_id)
        if stored.readers and not stored.freed:
            self._demand_back(now, object_id, stored, urgent=True)
        else:
            self._settle(object_id, stored)
            self._advance()

    def on_damaged(self, object_id: bytes) -> None:
        """It can not be read here. Its owner hears that from those who tried, and may have it made anew."""
        stored = self.objects.get(object_id)
        if stored is not None and stored.state is ObjectState.ON_DISK:
            stored.freed = True
            self._settle(object_id, stored)
            self._advance()

    # -- what it is told ----------------------------------------------------------------------------------------------

    def _spill(self, wanted: int) -> bool:
        """Start to write cold objects to disk until ``wanted`` bytes are on their way; whether any was started."""
        started = False
        # A file for each small object would cost more than the bytes in it: whoever goes takes its neighbours along.
        least = min(self._config.spill_file_bytes_max, self.arena.capacity // 8)
        while wanted > self.spilling_bytes and self._spillable and len(self._batches) < _BATCHES_MAX:
            directory = self.files.choose()
            if directory is None:
                break
            rows: list[tuple[int, int]] = []
            chosen: list[bytes] = []
            total = 0
            for object_id in list(self._spillable):
                stored = self.objects[object_id]
                if chosen and total + stored.size > self._config.spill_file_bytes_max:
                    break
                del self._spillable[object_id]
                stored.move("chosen")
                chosen.append(object_id)
                rows.append((stored.offset, stored.size))
                total += stored.size
                if total >= max(wanted - self.spilling_bytes, least):
                    break
            self.spilling_bytes += total
            self._batches[self._next_batch] = (directory, chosen)
            self._out.append((SPILL, self._next_batch, directory, rows))
            self._next_batch += 1
            started = True
        return started

    def _restore(self, object_id: bytes, stored: StoredObject, place: int | str) -> None:
        copy = stored.copy
        assert copy is not None
        stored.move("wanted")
        self._out.append((RESTORE, object_id, copy.path, copy.position, stored.size, copy.checksum, place))

    def _not_restored(self, object_id: bytes) -> StoredObject:
        stored = self.objects[object_id]
        stored.move("failed")
        if stored.near is None:
            self.arena.free(stored.offset, warm=False)
            stored.offset = -1
        else:
            self._leave(stored)
        return stored

    def _leave(self, stored: StoredObject) -> None:
        """The file in which an object was used is not needed any more."""
        if stored.near is not None:
            self.files.drop(stored.near.path)
            stored.near = None
