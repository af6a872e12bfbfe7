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
from typing import Any, TextIO

from zray.core.output import mark
from zray.runtime.executor import NO_LEASE, Executor

_TITLE_MAX = 200  # characters


class _Stream(io.TextIOWrapper):
    """A standard stream of a worker, which says who speaks."""

    def __init__(self, fd: int, old: TextIO, executor: Executor) -> None:
        buffer = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
        super().__init__(buffer, old.encoding, old.errors, line_buffering=True)
        self._old = old  # its end would close the descriptor
        self._executor = executor
        self._speaker: object = ""  # the name of a task, or the actor
        self.on_speaker: Callable[[object], None] = lambda speaker: None  # another task or actor speaks
        self.unfinished = False  # a line was begun, and may be in the buffer still

    def write(self, text: str) -> int:
        speaker = self._executor.actor or self._executor.task_name
        if speaker != self._speaker:
            self._speaker = speaker
            self.on_speaker(speaker)
        self.unfinished = not text.endswith("\n")
        return super().write(text)

    def close(self) -> None:
        """Others write here after the task that closes it, and the pipe stays open for what is not Python anyway."""
        self.flush()


class Voice:
    """The standard streams of this worker process, from now on.

    Args:
        executor: knows the name of what runs.
    """

    def __init__(self, executor: Executor) -> None:
        self._out = _Stream(1, sys.stdout, executor)
        self._err = _Stream(2, sys.stderr, executor)
        self._out.on_speaker = self._err.on_speaker = self._on_speaker
        self._executor = executor
        self._name = ""
        self._title = ""  # of the actor, if this worker has become one
        sys.stdout = sys.__stdout__ = self._out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._err  # type: ignore[misc]
        faulthandler.enable(file=2)  # what a crash in C code says reaches the driver

    def _on_speaker(self, speaker: object) -> None:
        """Another task or actor begins to write."""
        executor = self._executor
        if executor.actor is not None:
            name = self._title = self._title or _title(executor.actor.instance, executor.actor.extra["class_name"])
        elif executor.lease_id == NO_LEASE:
            name = executor.task_name.partition(".")[0]  # an actor in its constructor: the name of its class
        else:
            name = executor.task_name.rpartition("<locals>.")[2]
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


def _title(instance: Any, class_name: str) -> str:
    """What an actor is called: by its own ``__repr__``, if it has one; it is asked once."""
    cls: Any = type(instance)
    if cls.__repr__ is object.__repr__:
        return class_name
    try:
        return " ".join(repr(instance).split())[:_TITLE_MAX] or class_name
    except Exception:
        return class_name  # to say something else must not fail because of it


def say(kind: str, payload: str, fd: int = 2) -> None:
    """Tell the agent something among the output of this worker."""
    with contextlib.suppress(OSError):  # the task closed it
        os.write(fd, mark(kind, payload))
