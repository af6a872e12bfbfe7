"""WorkerPipes: reads what the workers of a node write, and keeps it in a file for each.

A worker's standard output and error are pipes whose other ends the agent has: so C code and the last words of a process that
crashes are caught too, and a worker that writes without end waits when nobody reads, as at any pipe. After a pipe was read it
rests for a moment, so that small lines gather; as many are read in a round as leave the agent time for its work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable

from zray.base.wire_output import ERR, OUT
from zray.io.loop import Loop

REST_TIMER = "pipes.rest"
_REST_S = 0.01
_ROUND_MAX = 16  # pipes that are read again after a rest
_READ_BYTES = 1 << 16
_LAST_BYTES = 1000  # of a file, in which its last line is looked for
_DRAIN_READS_MAX = 64  # of one pipe whose worker may go on writing

log = logging.getLogger("zray")


class _Pipe:
    """One stream of a worker. A source of the loop."""

    def __init__(self, pipes: WorkerPipes, worker_id: bytes, kind: int, fd: int) -> None:
        self.worker_id = worker_id
        self.kind = kind
        self.resting = False
        self._pipes = pipes
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def read(self) -> bytes | None:
        """What is there; None if nothing is, no bytes if nothing will be."""
        try:
            return os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return None

    def on_readable(self) -> None:
        self._pipes.on_readable(self)

    def close(self) -> None:
        os.close(self._fd)


class _LogFile:
    """The file of one worker, made when it writes something."""

    def __init__(self, path: str, bytes_max: int) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._fd = -1
        self._size = 0
        self._rotated = 0  # bytes of the file before
        self._broken = False

    @property
    def size(self) -> int:
        return self._size + self._rotated

    def write(self, data: bytes) -> None:
        if self._broken:
            return
        try:
            if self._fd >= 0 and self._size + len(data) > self._bytes_max:
                self.close()
                os.rename(self.path, self.path + ".1")
                self._rotated, self._size = self._size, 0
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            while data:
                data = data[os.write(self._fd, data) :]
                self._size = os.lseek(self._fd, 0, os.SEEK_CUR)
        except OSError as error:
            self._broken = True
            log.warning("the output of a worker is not kept any more in %s: %s", self.path, error)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def last_line(self) -> str:
        with contextlib.suppress(OSError), open(self.path, "rb") as file:  # it could not be written either, or is removed
            file.seek(max(0, self._size - _LAST_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
            return lines[-1].strip() if lines else ""
        return ""

    def remove(self) -> None:
        for path in (self.path, self.path + ".1"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


class WorkerPipes:
    """The output of the workers of a node.

    Args:
        loop: of the agent.
        directory: where the files go.
        log_bytes_max: of one file; then a new one is begun, and one old one kept.
        ended_bytes_max: of all files whose workers have ended.
        heard: called with the worker's id, the kind of the stream and what was read; returns what belongs into the file.
    """

    def __init__(
        self,
        loop: Loop,
        directory: str,
        log_bytes_max: int,
        ended_bytes_max: int,
        heard: Callable[[bytes, int, bytes], bytes],
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._log_bytes_max = log_bytes_max
        self._ended_bytes_max = ended_bytes_max
        self._heard = heard
        self._pipes: dict[bytes, list[_Pipe]] = {}
        self._files: dict[bytes, _LogFile] = {}
        self._ended: deque[_LogFile] = deque()
        self._ended_bytes = 0
        self._resting: deque[_Pipe] = deque()
        self._timed = False

    def open(self, worker_id: bytes) -> tuple[int, int]:
        """Pipes for a new worker: the ends into which it writes, which the caller closes."""
        ends = []
        for kind in (OUT, ERR):
            read, write = os.pipe()
            os.set_blocking(read, False)
            pipe = _Pipe(self, worker_id, kind, read)
            self._pipes.setdefault(worker_id, []).append(pipe)
            self._loop.add_source(pipe)
            ends.append(write)
        return ends[0], ends[1]

    def drain(self, worker_id: bytes) -> None:
        """Read all that a worker has written so far."""
        for pipe in list(self._pipes.get(worker_id, ())):
            for _ in range(_DRAIN_READS_MAX):
                data = pipe.read()
                if not data:
                    break
                self._on_data(pipe, data)

    def end(self, worker_id: bytes) -> str:
        """A worker is gone: read the rest, and close its pipes. Returns the last line that it wrote."""
        self.drain(worker_id)
        for pipe in self._pipes.pop(worker_id, ()):
            self._drop(pipe)
        file = self._files.pop(worker_id, None)
        if file is None:
            return ""
        file.close()
        words = file.last_line()
        self._ended.append(file)
        self._ended_bytes += file.size
        while self._ended_bytes > self._ended_bytes_max:
            oldest = self._ended.popleft()
            self._ended_bytes -= oldest.size
            oldest.remove()
        return words

    def close(self) -> None:
        """Keep what has come, and close all."""
        for worker_id in list(self._pipes):
            self.end(worker_id)

    def on_readable(self, pipe: _Pipe) -> None:
        data = pipe.read()
        if data is None:
            return
        if not data:
            self._pipes[pipe.worker_id].remove(pipe)
            self._drop(pipe)
            return
        pipe.resting = True
        self._loop.remove_source(pipe)
        self._resting.append(pipe)
        if not self._timed:
            self._timed = True
            self._loop.add_timer(time.monotonic() + _REST_S, (REST_TIMER,))
        self._on_data(pipe, data)

    def on_timer(self, now: float, key: tuple[str]) -> None:
        """Some pipes have rested."""
        self._timed = False
        for _ in range(min(_ROUND_MAX, len(self._resting))):
            pipe = self._resting.popleft()
            pipe.resting = False
            self._loop.add_source(pipe)
        if self._resting:
            self._timed = True
            self._loop.add_timer(now + _REST_S, (REST_TIMER,))

    def _on_data(self, pipe: _Pipe, data: bytes) -> None:
        plain = self._heard(pipe.worker_id, pipe.kind, data)
        if plain:
            file = self._files.get(pipe.worker_id)
            if file is None:
                path = os.path.join(self._directory, f"worker-{pipe.worker_id[6:10].hex()}.log")
                file = self._files[pipe.worker_id] = _LogFile(path, self._log_bytes_max)
            file.write(plain)

    def _drop(self, pipe: _Pipe) -> None:
        if pipe.resting:
            self._resting.remove(pipe)
        else:
            self._loop.remove_source(pipe)
        pipe.close()
