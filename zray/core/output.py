"""OutputDesk: what the workers of a node write, on its way to the drivers of their jobs.

Theory of operation
-------------------
The body reads the pipes of the workers and hands over the bytes. They are cut at the ends of lines; a line that is not complete
waits for its end, or for that of its worker. Blocks of lines wait for their job's driver, errors apart from the rest, and go out
at once when it was quiet, else a few times a second and so much at a time. What finds no room while it waits is dropped and
counted: the file of the worker has it. The control says where the driver is, when a job's first words are there, and
whether it wants them.

Among the bytes are *marks*, ``NUL zray:kind:payload NUL``: from then on the worker speaks as the task or actor of that name, or a
progress bar has moved. They are taken out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping

from zray.base.config import Config
from zray.base.ids import agent_of
from zray.base.wire import Reply
from zray.base.wire_output import BAR, ERR, OUT, FindDriver, Output
from zray.core.effects import DIAL, DRAIN, HANG_UP, SEND, TIMER, Effect
from zray.core.workers import Worker

OUTPUT_TIMER = "output.send"
HANG_UP_TIMER = "output.hang_up"
_TICK_S = 0.05  # between two sendings to a driver
_LINE_BYTES_MAX = 1 << 18  # a longer line is cut
_GOODBYE_S = 1.0
_MARK = b"\0zray:"
_MARKS = re.compile(rb"\0zray:(name|bar):([^\0\n]*)\0")
_MARK_BYTES_MAX = 4096

Row = tuple[int, str, int, bytes]  # pid, name of the task or actor, kind, whole lines


def mark(kind: str, payload: str) -> bytes:
    """What a worker writes among its output to tell its agent something."""
    text = payload.replace("\0", " ").replace("\n", " ").encode(errors="replace")
    return b"\0zray:" + kind.encode() + b":" + text[: _MARK_BYTES_MAX - 32] + b"\0"


class WorkerStream:
    """One of the two streams of a worker: bytes to blocks of whole lines."""

    __slots__ = ("_held", "_kind", "_partial", "has_bars", "name", "pid")

    def __init__(self, kind: int, name: str = "") -> None:
        self._kind = kind
        self.pid = 0
        self.name = name
        self.has_bars = False
        self._partial = b""  # a line without its end
        self._held = b""  # a mark without its end

    def feed(self, data: bytes) -> tuple[list[Row], bytes]:
        """The rows that are complete now, and the bytes without marks."""
        rows: list[Row] = []
        if b"\0" not in data and not self._held:
            self._text(data, rows)
            return rows, data
        data = self._held + data
        self._held = b""
        plain = []
        position = 0
        for found in _MARKS.finditer(data):
            plain.append(data[position : found.start()])
            self._text(plain[-1], rows)
            position = found.end()
            if found[1] == b"name":
                name = found[2].decode(errors="replace")
                if name != self.name:
                    rows += self._rest()  # nobody goes on with another's line
                self.name = name
            else:
                self.has_bars = True
                rows.append((self.pid, self.name, BAR, found[2]))
        rest = data[position:]
        start = rest.rfind(b"\0")
        if start >= 0 and len(rest) - start < _MARK_BYTES_MAX and rest[start : start + len(_MARK)] == _MARK[: len(rest) - start]:
            self._held = rest[start:]
            rest = rest[:start]
        plain.append(rest)
        self._text(rest, rows)
        return rows, b"".join(plain)

    def end(self) -> list[Row]:
        """The stream is over, or its driver leaves: a line without its end is all there will be of it."""
        self._partial, self._held = self._partial + self._held, b""
        return self._rest()

    def _rest(self) -> list[Row]:
        rest, self._partial = self._partial, b""
        return [(self.pid, self.name, self._kind, rest + b"\n")] if rest else []

    def _text(self, text: bytes, rows: list[Row]) -> None:
        if not text:
            return
        if self._partial:
            text = self._partial + text
        end = text.rfind(b"\n") + 1
        if end:
            rows.append((self.pid, self.name, self._kind, text[:end]))
        partial = text[end:]
        if len(partial) > _LINE_BYTES_MAX:
            partial = partial[partial.rfind(b"\r", 0, -1) + 1 :]  # what was drawn over is not missed
        if len(partial) > _LINE_BYTES_MAX:
            rows.append((self.pid, self.name, self._kind, partial + b"\n"))
            partial = b""
        self._partial = partial


class _Reader:
    """The driver of one job."""

    __slots__ = ("bytes", "driver", "dropped", "errors", "lines", "timed", "wants")

    def __init__(self) -> None:
        self.driver = b""  # not known yet
        self.wants = True
        self.errors: deque[Row] = deque()
        self.lines: deque[Row] = deque()
        self.bytes = [0, 0]  # that wait, of lines and of errors
        self.dropped = 0  # lines
        self.timed = False

    def forget(self) -> None:
        self.errors.clear()
        self.lines.clear()
        self.bytes = [0, 0]
        self.dropped = 0


class OutputDesk:
    """The output of a node's workers.

    Args:
        control: process id of the control.
        config: limits.
        out: where effects go.
        workers: of the node.
        me: process id of the agent.
    """

    __slots__ = ("_config", "_control", "_me", "_out", "_readers", "_streams", "_workers")

    def __init__(
        self, control: bytes, config: Config, out: list[Effect], workers: Mapping[bytes, Worker], me: bytes
    ) -> None:
        self._control = control
        self._config = config
        self._out = out
        self._workers = workers
        self._me = me
        self._streams: dict[tuple[bytes, int], WorkerStream] = {}
        self._readers: dict[bytes, _Reader] = {}

    def heard(self, now: float, worker_id: bytes, kind: int, data: bytes) -> bytes:
        """A worker wrote something; returns it without the marks, for its file."""
        stream = self._streams.get((worker_id, kind))
        worker = self._workers.get(worker_id)
        if stream is None:
            other = self._streams.get((worker_id, ERR if kind == OUT else OUT))
            stream = self._streams[worker_id, kind] = WorkerStream(kind, other.name if other is not None else "")
        if worker is not None:
            stream.pid = worker.pid
        rows, plain = stream.feed(data)
        self._take(now, worker_id, rows)
        return plain

    def ended(self, now: float, worker_id: bytes) -> None:
        """A worker is gone, and everything it wrote was heard. An empty state of a bar ends all it had."""
        for kind in (OUT, ERR):
            stream = self._streams.pop((worker_id, kind), None)
            if stream is not None:
                bars = [(stream.pid, stream.name, BAR, b"")] if stream.has_bars else []
                self._take(now, worker_id, stream.end() + bars)
        worker = self._workers.get(worker_id)
        if worker is not None and worker.job_id is not None:
            self._forget_reader(worker.job_id)

    def job_finished(self, now: float, job_id: bytes) -> None:
        """Nobody reads what is still written for this job."""
        reader = self._readers.get(job_id)
        if reader is None:
            return
        reader.wants = False
        reader.forget()
        self._forget_reader(job_id)
        if reader.driver and agent_of(reader.driver) != self._me:
            self._out.append((TIMER, now + _GOODBYE_S, (HANG_UP_TIMER, reader.driver)))

    # -- messages -------------------------------------------------------------------------------------------------

    def on_driver_found(
        self, now: float, peer: bytes, job_id: bytes, driver: bytes, endpoint: str, wants_output: bool
    ) -> None:
        reader = self._readers.get(job_id)
        if reader is None or not reader.wants or reader.driver:
            return
        reader.driver = driver
        reader.wants = wants_output
        if not wants_output:
            reader.forget()
            return
        self._out.append((DIAL, driver, endpoint))
        self._send(now, job_id, reader)

    def on_flush_output(self, now: float, peer: bytes, request_id: int, job_id: bytes) -> None:
        """The driver leaves: what was written up to now is read and sent before the answer."""
        reader = self._readers.setdefault(job_id, _Reader())
        reader.driver = peer
        workers = [worker.id for worker in self._workers.values() if worker.job_id == job_id]
        self._out.append((DRAIN, workers, job_id, peer, request_id))

    def drained(self, now: float, workers: list[bytes], job_id: bytes, peer: bytes, request_id: int) -> None:
        """The body has read what these workers had written."""
        for worker_id in workers:
            for kind in (OUT, ERR):
                stream = self._streams.get((worker_id, kind))
                if stream is not None:
                    self._take(now, worker_id, stream.end())
        reader = self._readers.get(job_id)
        if reader is not None and reader.wants:
            self._post(reader, sum(reader.bytes) + 1)
        self._out.append((SEND, peer, Reply(request_id, True, None)))

    def on_timer(self, now: float, key: tuple[str, bytes]) -> None:
        if key[0] == HANG_UP_TIMER:
            self._out.append((HANG_UP, key[1]))
            return
        reader = self._readers.get(key[1])
        if reader is None:
            return
        reader.timed = False
        if reader.wants and (reader.lines or reader.errors or reader.dropped):
            self._send(now, key[1], reader)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _forget_reader(self, job_id: bytes) -> None:
        """That nobody reads a job need not be known when none of those that have written for it is left."""
        reader = self._readers.get(job_id)
        if reader is not None and not reader.wants:
            writers = [self._workers.get(worker_id) for worker_id, _ in self._streams]
            if not any(writer is not None and writer.job_id == job_id for writer in writers):
                del self._readers[job_id]

    def _take(self, now: float, worker_id: bytes, rows: list[Row]) -> None:
        worker = self._workers.get(worker_id)
        if not rows or worker is None or worker.job_id is None:
            return
        job_id = worker.job_id
        reader = self._readers.get(job_id)
        if reader is None:
            reader = self._readers[job_id] = _Reader()
            self._out.append((SEND, self._control, FindDriver(job_id)))
        if not reader.wants:
            return
        for row in rows:
            urgent = row[2] != OUT
            if reader.bytes[urgent] + len(row[3]) > self._config.output_backlog_bytes_max:
                reader.dropped += row[3].count(b"\n")
                continue
            reader.bytes[urgent] += len(row[3])
            (reader.errors if urgent else reader.lines).append(row)
        if reader.driver and not reader.timed:
            self._send(now, job_id, reader)

    def _send(self, now: float, job_id: bytes, reader: _Reader) -> None:
        self._post(reader, int(self._config.output_bytes_per_s * _TICK_S))
        reader.timed = True
        self._out.append((TIMER, now + _TICK_S, (OUTPUT_TIMER, job_id)))

    def _post(self, reader: _Reader, room: int) -> None:
        """Send so many bytes, errors first."""
        rows: list[Row] = []
        for urgent, queue in ((1, reader.errors), (0, reader.lines)):
            while queue and room > 0:
                row = queue.popleft()
                reader.bytes[urgent] -= len(row[3])
                room -= len(row[3])
                rows.append(row)
        if rows or reader.dropped:
            self._out.append((SEND, reader.driver, Output(reader.dropped, rows)))
            reader.dropped = 0
