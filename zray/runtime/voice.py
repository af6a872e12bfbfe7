"""Voice: what a worker writes, under the name of the task or actor that runs.

The worker's standard streams are pipes to its agent. When something is written under another name than the last time, a mark with
that name goes first; so a task that writes nothing costs nothing. What C code writes has the name that was said last.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import sys
from collections.abc import Callable
from typing import TextIO

from zray.core.output import mark
from zray.runtime.executor import NO_LEASE, Executor


class _Stream(io.TextIOWrapper):
    """A standard stream of a worker, which says who speaks."""

    def __init__(self, fd: int, old: TextIO, executor: Executor) -> None:
        buffer = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        super().__init__(buffer, old.encoding, old.errors, line_buffering=True)
        self._old = old  # its end would close the descriptor
        self._executor = executor
        self._task_name = ""
        self.on_name: Callable[[str], None] = lambda name: None  # another task or actor speaks
        self.unfinished = False  # a line was begun, and may be in the buffer still

    def write(self, text: str) -> int:
        executor = self._executor
        name = executor.task_name
        if name != self._task_name:
            self._task_name = name
            self.on_name(name.partition(".")[0] if executor.lease_id == NO_LEASE else name.rpartition("<locals>.")[2])
        self.unfinished = not text.endswith("\n")
        return super().write(text)


class Voice:
    """The standard streams of this worker process, from now on.

    Args:
        executor: knows the name of what runs.
    """

    def __init__(self, executor: Executor) -> None:
        self._out = _Stream(1, sys.stdout, executor)
        self._err = _Stream(2, sys.stderr, executor)
        self._out.on_name = self._err.on_name = self._on_name
        self._name = ""
        sys.stdout = sys.__stdout__ = self._out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._err  # type: ignore[misc]
        faulthandler.enable(file=2)  # what a crash in C code says reaches the driver

    def _on_name(self, name: str) -> None:
        """Another task or actor begins to write; an actor's name is always that of its class."""
        if name != self._name:
            self._name = name
            for stream in (self._out, self._err):
                with contextlib.suppress(OSError, ValueError):  # the task closed it
                    stream.flush()
            say("name", name, 1)
            say("name", name, 2)

    def rest(self) -> None:
        """Nothing runs: what was written is let out, though its line is not complete."""
        for stream in (self._out, self._err):
            if stream.unfinished:
                stream.unfinished = False
                with contextlib.suppress(OSError, ValueError):  # the task closed it
                    stream.flush()


def say(kind: str, payload: str, fd: int = 2) -> None:
    """Tell the agent something among the output of this worker."""
    with contextlib.suppress(OSError):  # the task closed it
        os.write(fd, mark(kind, payload))
