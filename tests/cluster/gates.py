"""A gate that calls in other processes wait at: a file that the test has locked."""

from __future__ import annotations

import fcntl
import os
from typing import Any, TypeVar

from .driving import PATIENCE_S, eventually

T = TypeVar("T")


class Gate:
    """Closed until ``open()``. It is passed to calls, and knows how many have come to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: Any = open(path, "ab")  # noqa: SIM115 - it stays open, and locked, until ``open()``
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Visitor, (self.path,)

    def open(self) -> None:
        self._file.close()

    def arrived(self) -> int:
        return os.path.getsize(self.path)

    def wait_for(self, count: int) -> None:
        """Wait until so many calls have come."""
        eventually(lambda: self.arrived() >= count, f"{count} calls came to the gate; {self.arrived()} did", PATIENCE_S)


class _Visitor:
    """The gate as a call sees it."""

    def __init__(self, path: str) -> None:
        self.path = path

    def passed(self) -> None:
        with open(self.path, "ab") as file:
            file.write(b"x")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_SH)


def through(gate: Any, value: T) -> T:
    """Wait at a gate."""
    gate.passed()
    return value
