"""SpillFiles: which copies of objects lie on disk, in which files.

Small objects share a file. A file is deleted when nothing in it is needed any more. The directories are used in turn; one
that failed (full, gone, read-only) rests until its timer.
"""

from __future__ import annotations

from zray.core.effects import DELETE_FILE, TIMER, Effect
from zray.exceptions import InvariantError

SPILL_TIMER = "store.spill"


class Copy:
    """A copy of an object on disk."""

    __slots__ = ("checksum", "path", "position")

    def __init__(self, path: str, position: int, checksum: int) -> None:
        self.path = path
        self.position = position
        self.checksum = checksum


class SpillFiles:
    """The spill files of one node.

    Args:
        directories: where files may be made; none: nothing is ever spilled.
        rest_s: how long a directory that failed is left alone.
        out: where effects go.
    """

    __slots__ = ("_directories", "_next", "_out", "_rest_s", "_resting", "live", "reason")

    def __init__(self, directories: list[str], rest_s: float, out: list[Effect]) -> None:
        self._directories = directories
        self._rest_s = rest_s
        self._out = out
        self._next = 0
        self._resting: dict[int, None] = {}
        self.live: dict[str, int] = {}  # how many objects of each file are needed
        self.reason = ""  # why the last attempt to write a file failed, if it did

    def choose(self) -> int | None:
        """The directory whose turn it is."""
        for step in range(len(self._directories)):
            index = (self._next + step) % len(self._directories)
            if index not in self._resting:
                self._next = index + 1
                return index
        return None

    def has_local(self) -> bool:
        """Whether ``local`` would find one."""
        return any("://" not in path and index not in self._resting for index, path in enumerate(self._directories))

    def local(self) -> str | None:
        """A directory of this machine's own, in which an object can be used where it lies, in turn too."""
        for step in range(len(self._directories)):
            index = (self._next + step) % len(self._directories)
            if index not in self._resting and "://" not in self._directories[index]:
                self._next = index + 1
                return self._directories[index]
        return None

    def on_failed(self, now: float, index: int, reason: str) -> None:
        """A directory could not be written."""
        self.reason = reason
        if index not in self._resting:
            self._resting[index] = None
            self._out.append((TIMER, now + self._rest_s, (SPILL_TIMER, index)))

    def avoid(self, now: float, path: str, reason: str) -> None:
        """A client could not write ``path``: use another directory, if there is one. The object may just be too large."""
        if len(self._directories) > 1:
            self.refused(now, path, reason)

    def refused(self, now: float, path: str, reason: str) -> None:
        """There was no room for ``path``."""
        for index, directory in enumerate(self._directories):
            if path.startswith(directory + "/"):
                self.on_failed(now, index, reason)

    def on_rested(self, index: int) -> None:
        """Try a directory again."""
        self._resting.pop(index, None)

    def keep(self, path: str) -> None:
        """One more object in a file is needed."""
        self.live[path] = self.live.get(path, 0) + 1

    def drop(self, path: str) -> None:
        """One less; the file goes with the last."""
        self.live[path] -= 1
        if not self.live[path]:
            del self.live[path]
            self._out.append((DELETE_FILE, path))

    def check(self) -> None:
        """Assert the invariants."""
        if any(count <= 0 for count in self.live.values()):
            raise InvariantError(f"a spill file is kept for nothing: {self.live}")
