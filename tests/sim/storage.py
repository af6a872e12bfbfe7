"""Shared memory and disks of the simulated machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from zray.core.arena import PAGE

from .world import SimulationError, World

Bucket = dict[str, dict[int, bytes]]  # path -> position -> bytes


class Memory:
    """The shared memory of a node: which object's bytes lie in each page."""

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self._bytes: dict[int, bytes] = {}  # by offset

    def write(self, offset: int, object_id: bytes, data: bytes) -> int:
        for page in range(offset // PAGE, (offset + len(data) + PAGE - 1) // PAGE):
            self._pages[page] = object_id
        self._bytes[offset] = data
        return crc32(data)

    def append(self, offset: int, object_id: bytes, received: int, chunk: bytes, size: int) -> None:
        """More of an object that comes from elsewhere."""
        before = self._bytes.get(offset, b"")[:received] if received else b""
        if len(before) != received:
            raise SimulationError(f"{received} bytes of {object_id.hex()} are said to be here, and {len(before)} are")
        if received:
            self._check(offset, object_id, size)
        self.write(offset, object_id, before + chunk)
        for page in range(offset // PAGE, (offset + size + PAGE - 1) // PAGE):
            self._pages[page] = object_id

    def read(self, offset: int, object_id: bytes) -> bytes:
        data = self._bytes[offset]
        self._check(offset, object_id, len(data))
        return data

    def at(self, offset: int) -> tuple[bytes, bytes]:
        """What lies at an offset: whose bytes, and the bytes."""
        object_id = self._pages[offset // PAGE]
        return object_id, self.read(offset, object_id)

    def _check(self, offset: int, object_id: bytes, size: int) -> None:
        for page in range(offset // PAGE, (offset + size + PAGE - 1) // PAGE):
            if self._pages.get(page) != object_id:
                raise SimulationError(f"the bytes of {object_id.hex()} were overwritten while somebody uses them")


class Disk:
    """The spill files of a node. Operations return what will have happened when they are over."""

    def __init__(self, world: World, memory: Memory, name: str, directories: list[str], bucket: Bucket) -> None:
        self._world = world
        self._memory = memory
        self._name = name
        self._directories = directories
        self._bucket = bucket
        self._serial = 0
        self.files: Bucket = {}
        self.fails = 0.0  # how likely a file can not be written

    def spill(self, store: Any, batch_id: int, directory: int, rows: list[tuple[int, int]]) -> Callable[[], Any]:
        if self._world.rng.random() < self.fails:
            return lambda: (store.on_spill_failed, self._world.now, batch_id, "no space left on device")
        self._serial += 1
        path = f"{self._directories[directory]}/{self._name}-{self._serial}"
        before = [self._memory.at(offset) for offset, _ in rows]

        def happen() -> Any:
            places, position, content = [], 0, {}
            for (offset, size), (object_id, data) in zip(rows, before, strict=True):
                if self._memory.read(offset, object_id) != data:
                    raise SimulationError(f"{object_id.hex()} changed while it was written to disk")
                content[position] = data
                places.append((position, crc32(data)))
                position += size
            self._place(path)[path] = content
            return store.on_spilled, batch_id, path, places

        return happen

    def restore(
        self, store: Any, object_id: bytes, path: str, position: int, size: int, checksum: int, target: int | str
    ) -> Callable[[], Any]:
        if isinstance(target, str) and self._world.rng.random() < self.fails:
            return lambda: (store.on_restore_refused, self._world.now, object_id, "no space left on device")

        def happen() -> Any:
            data = self.read(path, position, checksum)
            if isinstance(target, int):
                self._memory.write(target, object_id, data)
            else:
                self.write(target, data)
            return store.on_restored, object_id

        return happen

    def write(self, path: str, data: bytes) -> int:
        self.files[path] = {0: data}
        return crc32(data)

    def append(self, path: str, received: int, chunk: bytes) -> None:
        """More of an object that comes from elsewhere."""
        before = self.files.get(path, {0: b""})[0][:received]
        if len(before) != received:
            raise SimulationError(f"{path} is said to have {received} bytes, and has {len(before)}")
        self.files[path] = {0: before + chunk}

    def read(self, path: str, position: int, checksum: int) -> bytes:
        files = self._place(path)
        if path not in files:
            raise SimulationError(f"{path} was deleted while somebody needs it")
        data = files[path][position]
        if crc32(data) != checksum:
            raise SimulationError(f"{path} at {position} has another checksum than was noted")
        return data

    def delete(self, path: str) -> None:
        self._place(path).pop(path, None)  # a writer may have died before it made the file

    def _place(self, path: str) -> Bucket:
        return self._bucket if "://" in path else self.files
