"""Storage: the bytes of the object store.

The arena of a node is one ``multiprocessing.shared_memory`` segment, created by the agent, sparse: a page takes memory
once it is written. Cold space is written with ``pwrite``, which answers ENOSPC when /dev/shm is full; a write through a
mapping would be a SIGBUS. Warm space is written through the mapping, at the speed of memory. Readers get read-only
views of the mapping, and are told when the last view of an object is gone.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
import zlib
from collections.abc import Callable
from multiprocessing import shared_memory
from typing import Any, cast

from zray.base import serialization
from zray.base.serialization import Serialized
from zray.exceptions import ObjectStoreFullError
from zray.io.session import SHM_DIRECTORY, remove_segment

_opening = threading.Lock()


class _NoTracker:
    """Stands in for the resource tracker while a segment is opened: the agent alone creates and unlinks arenas."""

    @staticmethod
    def register(name: str, kind: str) -> None: ...

    @staticmethod
    def unregister(name: str, kind: str) -> None: ...


class Arena(shared_memory.SharedMemory):
    """The mapping of a node's arena.

    Args:
        name: name of the segment.
        create_bytes: create it with this size; 0 attaches.
    """

    def __init__(self, name: str, create_bytes: int = 0) -> None:
        # Before Python 3.13 opening a segment starts a tracker process that unlinks the segment when *any* user of it ends.
        module: Any = shared_memory
        with _opening:
            tracker = module.resource_tracker
            module.resource_tracker = _NoTracker
            try:
                super().__init__(name, create=create_bytes > 0, size=create_bytes)
            finally:
                module.resource_tracker = tracker

    @property
    def descriptor(self) -> int:
        """The segment as a file, which can be written without a mapping."""
        return int(self._fd)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Unmap, unless somebody still has a view: then the mapping goes with the last of them."""
        try:
            super().close()
        except BufferError:  # an array of the user's lives in it, and holds the mapping; nothing else needs to
            me: Any = self
            os.close(me._fd)
            me._fd, me._buf, me._mmap = -1, None, None

    def unlink(self) -> None:
        """Remove the name; the memory goes with the last mapping."""
        remove_segment(self.name)

    def write(self, offset: int, value: Serialized, *, warm: bool) -> None:
        """Lay a value down at ``offset``.

        Raises:
            ObjectStoreFullError: /dev/shm itself has no room left.
        """
        parts = serialization.stored_parts(value)
        if warm:
            view: Any = self.buf
            for start, part in parts:
                raw = memoryview(part)
                view[offset + start : offset + start + raw.nbytes] = raw.cast("B") if raw.nbytes else b""
            return
        fd = self._fd  # type: ignore[attr-defined]
        try:
            for start, part in parts:
                raw = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
                done = 0
                while done < raw.nbytes:
                    done += os.pwrite(fd, raw[done:], offset + start + done)
        except OSError as error:
            text = (
                f"the shared memory of this machine ({SHM_DIRECTORY}) is full: {error.strerror}. Free some of it, give the "
                "container a larger --shm-size, or start zray with less object_store_memory"
            )
            raise ObjectStoreFullError(text) from error

    def view(self, offset: int, size: int, on_unused: Callable[[], None]) -> memoryview:
        """Read-only view of an object; ``on_unused`` is called, in any thread, when nothing refers to it any more."""
        import ctypes  # only for programs that read large objects

        # A ctypes array, unlike a memoryview, tells when it dies; each slice and array made of the view keeps it alive.
        window = (ctypes.c_char * size).from_buffer(cast("memoryview", self.buf), offset)
        weakref.finalize(window, on_unused).atexit = False
        return memoryview(window).cast("B").toreadonly()


def write_file(path: str, value: Serialized) -> int:
    """Lay a value down in a file of its own; returns the checksum of the file.

    Raises:
        OSError: the disk is full, or the directory gone.
    """
    checksum = 0
    end = 0
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)  # again, in case somebody cleaned up
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(fd, 0, serialization.stored_size(value))  # a full disk is known before anything is copied
        for start, part in serialization.stored_parts(value):
            raw = memoryview(part).cast("B") if memoryview(part).nbytes else memoryview(b"")
            checksum = zlib.crc32(raw, zlib.crc32(bytes(start - end), checksum))
            done = 0
            while done < raw.nbytes:
                done += os.pwrite(fd, raw[done:], start + done)
            end = start + raw.nbytes
    finally:
        os.close(fd)
    return checksum


def map_file(path: str, position: int, size: int, checksum: int, on_unused: Callable[[], None]) -> memoryview:
    """Read-only view of an object in a file; ``on_unused`` is called when nothing refers to it any more.

    Raises:
        OSError: the file is gone.
        ValueError: it is not what was written.
    """
    first = position // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    fd = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(fd).st_size < position + size:
            raise ValueError(f"{path} was cut short")
        window = mmap.mmap(fd, position - first + size, access=mmap.ACCESS_READ, offset=first)
    finally:
        os.close(fd)
    view = memoryview(window)[position - first :]
    if zlib.crc32(view) != checksum:
        raise ValueError(f"{path} was changed by something other than zray")
    weakref.finalize(window, on_unused).atexit = False
    return view


def shared_memory_free_bytes() -> int:
    """What /dev/shm has room for."""
    try:
        status = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return 1 << 62  # a system without a mount for it sets no limit of its own
    return status.f_bavail * status.f_frsize
