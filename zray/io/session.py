"""Session: the directory of one running cluster on one machine.

All sessions of a user lie in one 0700 directory; names are short because the path of an ipc socket is limited to 107 bytes.
A session is alive as long as any of its processes is: they hold a shared descriptor on which the file ``lock`` is locked. A
start removes every session whose lock is free, with its shared memory: what a power cut or ``kill -9`` of everything left.

The session of a head that listened on a port of its operator's choice is another matter: the next head on that port takes it up
(``take_up``), with the database of the cluster. Who does not come back within a week is not waited for.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import shutil
import stat
import tempfile
import time
from typing import Any

SHM_DIRECTORY = "/dev/shm"
_LOCK = "lock"
_DIRECTORIES = "directories"
_NODE = "node.json"
_HEAD = "head.json"
_LEFT_S_MAX = 7 * 24 * 3600.0  # so long what a head has left is kept
_PARENT_BYTES_MAX = 60  # what follows of a socket's path takes up to 45, and it may have 107
_YOUNG_S = 60.0  # a session that has no lock yet may be just being made


def parent_directory(parent: str = "") -> str:
    """Where the directory of this user's sessions lies.

    Args:
        parent: what was asked for; by default where ``ZRAY_TMPDIR`` says, or in the directory for temporary files. If that has
            a long path, it is /tmp.

    Raises:
        ValueError: the path that was asked for is too long for sockets.
    """
    asked = parent or os.environ.get("ZRAY_TMPDIR", "")
    path = os.path.abspath(asked or tempfile.gettempdir())
    size = len(os.fsencode(path))
    if size <= _PARENT_BYTES_MAX:
        return path
    if asked:
        raise ValueError(
            f"the directory for sessions {path!r} has {size} bytes in its path, and sockets in it need one with "
            f"{_PARENT_BYTES_MAX} at most: choose a shorter one (_temp_dir, --session-dir or ZRAY_TMPDIR)"
        )
    return "/tmp"


def base_directory(parent: str = "") -> str:
    """The directory of this user's sessions, made if need be.

    Args:
        parent: where it lies; see ``parent_directory``.

    Raises:
        PermissionError: it exists and belongs to somebody else, or others may enter it.
        ValueError: the path of ``parent`` is too long.
    """
    parent = parent_directory(parent)
    os.makedirs(parent, exist_ok=True)
    path = os.path.join(parent, f"zray-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(
            f"{path} must be a directory of yours that nobody else may enter (mode 0700): remove it, or set ZRAY_TMPDIR"
        )
    return path


class Session:
    """A session's directory, locked while this object or a child that inherited the descriptor lives.

    Args:
        path: an existing directory to join, or "" to make a new one.
        lock_fd: the locked descriptor that was inherited.
        parent: where a new one is made; see ``base_directory``.
    """

    def __init__(self, path: str = "", lock_fd: int = -1, parent: str = "") -> None:
        if not path:
            path = tempfile.mkdtemp(prefix="s-", dir=base_directory(parent))
            os.mkdir(os.path.join(path, "logs"), 0o700)
            lock = os.path.join(path, _LOCK)
            lock_fd = os.open(lock + ".new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock_fd, fcntl.LOCK_EX)
            os.rename(lock + ".new", lock)  # nobody ever finds it free
        self.path = path
        self.lock_fd = lock_fd
        self.name = os.path.basename(path)

    def endpoint(self, name: str) -> str:
        """The ipc endpoint of a process of this session."""
        return f"ipc://{self.path}/{name}"

    def log_path(self, name: str) -> str:
        return os.path.join(self.path, "logs", f"{name}.log")

    def arena_name(self) -> str:
        """The name of the node's shared-memory segment."""
        return _arena_name(self.path)

    def note_directories(self, paths: list[str]) -> None:
        """Remember directories elsewhere that belong to this session and must go with it."""
        with open(os.path.join(self.path, _DIRECTORIES), "w", encoding="utf-8", opener=_private) as file:
            file.write("\n".join(paths))

    def describe(self, node: dict[str, Any]) -> None:
        """Say which node this session is: programs of this user that want to join its cluster find it so."""
        _write(os.path.join(self.path, _NODE), node)

    def note_head(self, head: dict[str, Any]) -> None:
        """Say that this session is that of a head; its ``port`` is 0 if nobody has chosen it."""
        _write(os.path.join(self.path, _HEAD), head)

    def release(self) -> None:
        """Let go of the lock; others of the session may still hold it."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1

    def remove(self) -> None:
        """Remove the directory and the shared memory."""
        _remove(self.path)


def _arena_name(path: str) -> str:
    return f"zray-{os.getuid()}-{os.path.basename(path)}"


def remove_segment(name: str) -> None:
    """Remove a shared-memory segment by name, if it exists."""
    try:
        os.unlink(os.path.join(SHM_DIRECTORY, name))
    except FileNotFoundError:
        pass


def _remove(path: str) -> None:
    remove_segment(_arena_name(path))
    with contextlib.suppress(OSError), open(os.path.join(path, _DIRECTORIES)) as file:
        for directory in file.read().splitlines():
            if os.path.basename(directory) in (_arena_name(path), "spill"):
                shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _write(path: str, contents: dict[str, Any]) -> None:
    """The file is there completely or not at all, after a power cut too."""
    with open(path + ".new", "w", encoding="utf-8", opener=_private) as file:
        json.dump(contents, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)


def living_nodes(parent: str = "") -> list[dict[str, Any]]:
    """The nodes of this user that run on this machine, as they described themselves; the newest first."""
    return _described(parent, _NODE, living=True)


def living_heads(parent: str = "") -> list[dict[str, Any]]:
    """The heads of this user that run on this machine, as they described themselves; the newest first."""
    return _described(parent, _HEAD, living=True)


def forget_heads(parent: str = "") -> list[str]:
    """Remove what heads have left that were killed. Returns the paths."""
    left = [head["session"] for head in _described(parent, _HEAD, living=False)]
    for path in left:
        _remove(path)
    return left


def take_up(port: int, parent: str = "") -> Session | None:
    """The session that a head on this port has left, locked; what still older ones have left is removed.

    Args:
        port: that the operator has chosen; 0: none, and nothing is taken up.
        parent: see ``base_directory``.
    """
    mine = [head for head in _described(parent, _HEAD) if port and head.get("port") == port]
    left = [head["session"] for head in mine if not _lives(head["pid"])]
    for path in left[1:]:
        _remove(path)
    if not left:
        return None
    fd = os.open(os.path.join(left[0], _LOCK), os.O_RDWR | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)  # its processes end with it, if not before it
    return Session(left[0], fd)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's by now: better not to touch what it may be
    return True


def _described(parent: str, name: str, *, living: bool | None = None) -> list[dict[str, Any]]:
    """The sessions that have a certain description, all or those whose processes live, or do not; the newest first."""
    found = []
    with os.scandir(base_directory(parent)) as entries:
        paths = [e.path for e in entries if e.name.startswith("s-") and e.is_dir(follow_symlinks=False)]
    for path in paths:
        with contextlib.suppress(FileNotFoundError, ValueError):  # or it is no description
            with open(os.path.join(path, name), encoding="utf-8") as file:
                description = json.load(file)
                made = os.fstat(file.fileno()).st_mtime
            fd = os.open(os.path.join(path, _LOCK), os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it: all are gone
                free = True
            except BlockingIOError:
                free = False
            finally:
                os.close(fd)
            if living is None or free != living:
                found.append((made, path, description))
    return [{**description, "session": path} for _, path, description in sorted(found, key=lambda row: -row[0])]


def _waits_for_a_head(path: str) -> bool:
    """Whether a head may come that takes up what lies here."""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):  # or nobody knows for which one
        with open(os.path.join(path, _HEAD), encoding="utf-8") as file:
            port = json.load(file)["port"]
        return port != 0 and time.time() - os.stat(path).st_mtime < _LEFT_S_MAX
    return False


def clear(folder: str) -> None:
    """Remove a folder of parents of sessions (see ``base_directory``), as far as no session in them is alive."""
    for parent in glob.glob(os.path.join(glob.escape(folder), "*", "")):
        sweep(parent)
        if not glob.glob(os.path.join(glob.escape(base_directory(parent)), "s-*")):
            shutil.rmtree(parent, ignore_errors=True)
    if not glob.glob(os.path.join(glob.escape(folder), "*", "")):
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: str = "") -> list[str]:
    """Remove the sessions of this user whose processes are all gone. Returns their paths."""
    removed = []
    with os.scandir(base_directory(parent)) as entries:
        paths = [e.path for e in entries if e.name.startswith("s-") and e.is_dir(follow_symlinks=False)]
    for path in paths:
        try:
            fd = os.open(os.path.join(path, _LOCK), os.O_RDWR)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - os.stat(path).st_mtime > _YOUNG_S:
                    _remove(path)
                    removed.append(path)
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _waits_for_a_head(path):
                _remove(path)
                removed.append(path)
        except BlockingIOError:
            pass  # alive
        finally:
            os.close(fd)
    return removed
