"""Spilling: objects written to files and read back.

A node has one ``SpillStorage`` over its directories. A directory is a path of this machine or, with the extra
``zray[fsspec]``, the address of any file system that fsspec knows (``s3://bucket/prefix``). The work is done by a few
threads of its own: the loop never waits for a disk. Each object has a checksum, so that a file that was damaged is an
error and never a wrong value.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from zray.io.session import Session
from zray.io.storage import Arena

_THREADS = 2
_PIECE_BYTES = 256 << 10


class Directory(Protocol):
    """Where spill files are made: all that another kind of storage has to do."""

    path: str
    read_bytes: int  # how much one call of ``read`` should ask for

    def write(self, name: str, parts: Iterable[memoryview]) -> str:
        """Make a file of ``parts`` and return its path."""

    def read(self, path: str, position: int, target: memoryview) -> int:
        """Fill ``target`` from a file; returns how many bytes there were."""

    def delete(self, path: str) -> None:
        """Remove a file; nothing happens if it is not there."""

    def close(self) -> None:
        """Remove all that was made."""


class LocalDirectory:
    """A directory of this machine.

    Args:
        path: the directory that is made, for this session alone.
    """

    read_bytes = 1 << 20  # what is checked while it is in the processor's cache still is checked sooner

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, name: str, parts: Iterable[memoryview]) -> str:
        os.makedirs(self.path, 0o700, exist_ok=True)  # again, in case somebody cleaned up
        path = os.path.join(self.path, name)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for part in parts:
                done = 0
                while done < part.nbytes:
                    done += os.write(fd, part[done:])
        except OSError:
            os.unlink(path)  # half a file is of no use, and its room is
            raise
        finally:
            os.close(fd)
        return path

    def read(self, path: str, position: int, target: memoryview) -> int:
        fd = os.open(path, os.O_RDONLY)
        try:
            done = 0
            while done < target.nbytes:
                count = os.preadv(fd, [target[done:]], position + done)
                if count == 0:
                    break
                done += count
            return done
        finally:
            os.close(fd)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


class FsspecDirectory:
    """A directory of any file system that fsspec knows.

    Args:
        address: for example ``s3://bucket/prefix``.
        name: of the part that is this session's own.
    """

    read_bytes = 64 << 20  # each is a request over the network, perhaps

    def __init__(self, address: str, name: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise ImportError(f"spilling to {address} needs fsspec: pip install 'zray[fsspec]'") from None
        self.path = f"{address.rstrip('/')}/{name}"
        self._files: Any
        self._root: str
        self._files, self._root = fsspec.core.url_to_fs(self.path)

    def write(self, name: str, parts: Iterable[memoryview]) -> str:
        self._files.makedirs(self._root, exist_ok=True)
        path = f"{self._root}/{name}"
        try:
            with self._files.open(path, "wb") as file:
                for part in parts:
                    file.write(part)
        except Exception:
            with contextlib.suppress(OSError):  # half a file is of no use, and its room is
                self._files.rm_file(path)
            raise
        return f"{self.path}/{name}"

    def read(self, path: str, position: int, target: memoryview) -> int:
        data = self._files.cat_file(self._strip(path), start=position, end=position + target.nbytes)
        target[: len(data)] = data
        return len(data)

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._strip(path))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._files.rm(self._root, recursive=True)

    def _strip(self, path: str) -> str:
        return self._root + path[len(self.path) :]


class SpillStorage:
    """The spill files of one node.

    Args:
        directories: where, each for this session alone.
        arena: the node's shared memory.
        prefix: starts the files' names.
        post: hands a call to the loop.
    """

    def __init__(
        self, directories: list[Directory], arena: Arena, prefix: str, post: Callable[[tuple[Any, ...]], None]
    ) -> None:
        self._directories = directories
        self._arena = arena
        self._prefix = prefix
        self._post = post
        self._pool: Any = None

    def spill(
        self,
        batch_id: int,
        directory: int,
        rows: list[tuple[int, int]],
        on_done: Callable[[int, str, list[tuple[int, int]]], None],
        on_failed: Callable[[int, str], None],
    ) -> None:
        """Write parts of the arena to a new file, in a thread; then call one of the two in the loop."""

        def work() -> None:
            try:
                places: list[tuple[int, int]] = []
                pieces = _pieces([self._window(offset, size) for offset, size in rows], places)
                path = self._directories[directory].write(f"{self._prefix}-{batch_id}.spill", pieces)
            except Exception as error:
                self._post((on_failed, batch_id, f"{type(error).__name__}: {error}"))
            else:
                self._post((on_done, batch_id, path, places))

        self._submit(work)

    def restore(
        self,
        object_id: bytes,
        place: tuple[str, int, int, int],
        target: int | str,
        on_done: Callable[[bytes], None],
        on_failed: Callable[[bytes, str], None],
        on_refused: Callable[[bytes, str], None],
    ) -> None:
        """Read ``place`` (path, position, size, checksum) back, in a thread; then call one of the three.

        Args:
            object_id: which object.
            place: where it lies.
            target: where it is to lie: an offset in the arena, or the path of a new file.
            on_done: called with the object.
            on_failed: called with the object and the reason, if it can not be read.
            on_refused: the same, if there is no room for the new file.
        """
        path, position, size, checksum = place

        def work() -> None:
            try:
                view = self._window(target, size) if isinstance(target, int) else _new_file(target, size)
            except OSError as error:
                self._post((on_refused, object_id, f"{error.strerror} ({target})"))
                return
            try:
                directory = self._of(path)
                count = found = 0
                while count < size:
                    piece = view[count : count + directory.read_bytes]
                    got = directory.read(path, position + count, piece)
                    found = zlib.crc32(piece[:got], found)
                    count += got
                    if got < piece.nbytes:
                        break
                if count != size or found != checksum:
                    raise ValueError(f"{count} of {size} bytes and not the checksum that was written")
            except Exception as error:
                reason = (
                    f"object {object_id.hex()} was moved to {path} and can not be read back: {type(error).__name__}: "
                    f"{error}. The file was removed, cut or changed by something other than zray"
                )
                self._post((on_failed, object_id, reason))
            else:
                self._post((on_done, object_id))

        self._submit(work)

    def delete(self, path: str) -> None:
        """Remove a file, in a thread."""

        def work() -> None:
            with contextlib.suppress(OSError):  # a file that can not be removed goes with its directory
                self._of(path).delete(path)

        self._submit(work)

    def close(self) -> None:
        """Finish what is under way and remove everything."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        for directory in self._directories:
            directory.close()

    def _submit(self, work: Callable[[], None]) -> None:
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # many clusters never spill

            self._pool = ThreadPoolExecutor(_THREADS, "zray-spill")
        self._pool.submit(work)

    def _window(self, offset: int, size: int) -> memoryview:
        view: Any = self._arena.buf
        window: memoryview = view[offset : offset + size]
        return window

    def _of(self, path: str) -> Directory:
        for directory in self._directories:
            if path.startswith(directory.path + "/"):
                return directory
        raise FileNotFoundError(path)


def _new_file(path: str, size: int) -> memoryview:
    """A new file of this machine, mapped.

    Raises:
        OSError: the disk is full, or the directory gone.
    """
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)  # a full disk is known before anything is written; through a mapping it would be a SIGBUS
        return memoryview(mmap.mmap(fd, size))
    finally:
        os.close(fd)


def read_copy(path: str, position: int, size: int, checksum: int) -> memoryview:
    """An object from the spill file of a node that is gone.

    Raises:
        OSError: the file can not be reached from here.
        ValueError: it is not what was written.
    """
    view = memoryview(bytearray(size))
    if "://" in path:
        root, _, name = path.rpartition("/")
        parent, _, session = root.rpartition("/")
        got = FsspecDirectory(parent, session).read(f"{root}/{name}", position, view)
    else:
        got = LocalDirectory(os.path.dirname(path)).read(path, position, view)
    if got != size or zlib.crc32(view) != checksum:
        raise ValueError(f"{path} was cut or changed by something other than zray")
    return view


def _pieces(views: list[memoryview], places: list[tuple[int, int]]) -> Iterator[memoryview]:
    """``views`` in pieces small enough to be in the processor's cache still when they are written after their checksum."""
    position = 0
    for view in views:
        checksum = 0
        for start in range(0, view.nbytes, _PIECE_BYTES):
            piece = view[start : start + _PIECE_BYTES]
            checksum = zlib.crc32(piece, checksum)
            yield piece
        places.append((position, checksum))
        position += view.nbytes


def open_directories(setting: str, session: Session) -> tuple[list[Directory], list[str]]:
    """The directories of a ``spill_directories`` setting, and their paths.

    Raises:
        OSError: one of them can not be made.
    """
    directories: list[Directory] = []
    name = session.arena_name()
    for part in [p.strip() for p in setting.split(",")] if "://" in setting else setting.split(os.pathsep):
        if "://" in part:
            directories.append(FsspecDirectory(part, name))
            continue
        path = os.path.join(os.path.abspath(part), name) if part else os.path.join(session.path, "spill")
        try:
            os.makedirs(path, 0o700, exist_ok=True)
        except OSError as error:
            place = part or session.path
            text = f"objects can not be spilled to {place}: {error.strerror}. Make it, or set ZRAY_SPILL_DIRECTORIES"
            raise type(error)(error.errno, text) from None
        directories.append(LocalDirectory(path))
    paths = [directory.path for directory in directories]
    session.note_directories([path for path in paths if "://" not in path])
    return directories, paths
