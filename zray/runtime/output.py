"""DriverOutput: shows what the workers of this driver's job write.

Rows arrive in the loop and are shown by a thread of their own, which lives while there are some: a terminal that is stopped,
or a pipe that nobody reads, must not stop the loop. What waits is bounded; what finds no room is dropped and counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from typing import Any

from zray.base.config import Config
from zray.base.wire import CONTROL
from zray.base.wire_output import BAR, ERR, OUT
from zray.core.bars import describe
from zray.core.folding import OutputFold
from zray.runtime.screen import Bar, Screen

_CLOSE_S = 5.0  # for a terminal that is stopped
_NOTICE_S = 2.0  # between two words about what was dropped
_IDLE_S = 1.0  # the thread ends when nothing came for so long
_ROUND_ROWS = 64
_TRIAL_WIDTH = 80


class DriverOutput:
    """The output of a driver's workers.

    Args:
        config: limits.
    """

    def __init__(self, config: Config) -> None:
        self.screen = Screen()
        self.agents: dict[bytes, None] = {}  # of nodes whose workers have written something
        self.own_agent = b""
        self.control_agent = b""  # of the node whose agent lives with the control
        self._config = config
        self._fold = OutputFold(config.output_fold_s)
        self._changed = threading.Condition()
        self._waiting: tuple[deque[Any], deque[Any]] = (deque(), deque())  # errors and bars, and the rest
        self._bytes = 0
        self._dropped = 0
        self._noticed_at = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None

    def on_output(self, now: float, peer: bytes, dropped: int, rows: list[Any]) -> None:
        """In the loop: workers of a node wrote something."""
        self.agents[peer] = None
        if peer == CONTROL:
            peer = self.control_agent
        with self._changed:
            self._dropped += dropped
            for row in rows:
                if not _is_row(row):
                    continue
                if self._bytes > 4 * self._config.output_backlog_bytes_max:
                    self._dropped += row[3].count(b"\n")
                    continue
                self._bytes += len(row[3])
                self._waiting[row[2] == OUT].append((peer, row))
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="zray-output", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Show what has come."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join(_CLOSE_S)
        self.screen.close()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting[0] or self._waiting[1] or self._closing):
                    left = self._rest_s()
                    if left is not None and left <= 0:
                        break
                    if not self._changed.wait(left or _IDLE_S) and left is None:
                        self._thread = None
                        return
                closing = self._closing
                rows = self._next_rows()
                dropped = self._dropped_lines(closing=closing and not rows)
            now = time.monotonic()
            lines = self._fold.due(float("inf") if closing and not rows else now)
            bars: list[Bar] = []
            for peer, row in rows:
                if row[2] == BAR:
                    bars += _bar((peer, row[0]), row[3])
                else:
                    node = "" if peer == self.own_agent else peer.hex()[:8]
                    lines += self._fold.take(now, peer, node, [row])
            if dropped:
                text = f"(zray) {dropped} lines of output were dropped: workers wrote more than is shown. Their files have it.\n"
                lines.append((ERR, text))
            if lines or bars:
                self.screen.show(lines, bars)
            if closing and not rows:
                return

    def _rest_s(self) -> float | None:
        """How long there is nothing to do, if nothing comes."""
        times = [self._noticed_at + _NOTICE_S] if self._dropped else []
        at = self._fold.next_at()
        if at is not None:
            times.append(at)
        return min(times) - time.monotonic() if times else None

    def _next_rows(self) -> list[Any]:
        """Some of what waits, errors first."""
        rows: list[Any] = []
        for queue in self._waiting:
            while queue and len(rows) < _ROUND_ROWS:
                rows.append(queue.popleft())
                self._bytes -= len(rows[-1][1][3])
        return rows

    def _dropped_lines(self, *, closing: bool) -> int:
        """How many lines were dropped, if it is time to say so."""
        now = time.monotonic()
        if not self._dropped or (now < self._noticed_at + _NOTICE_S and not closing):
            return 0
        self._noticed_at = now
        dropped, self._dropped = self._dropped, 0
        return dropped


def _bar(source: tuple[bytes, int], text: bytes) -> list[Bar]:
    if not text:
        return [(source, None)]
    try:
        state = json.loads(text)
        describe(state, _TRIAL_WIDTH)
        shown = {name: state[name] for name in ("closed", "id", "leave", "position")}
        hash(shown["id"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        return []  # a worker wrote what looks like a bar
    return [(source, state)] if type(shown["position"]) is int else []


def _is_row(row: Any) -> bool:
    return tuple(map(type, row)) == (int, str, int, bytes) and row[2] in (OUT, ERR, BAR)
