"""Screen: the driver's standard output and error, with progress bars below what was written last.

Bars are drawn on standard error if that is a terminal. If not, a bar that has come to its end leaves one line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Hashable, Iterable
from typing import Any, TextIO

from zray.base.wire_output import OUT
from zray.core.bars import describe

_BARS_MAX = 20  # that are drawn; the others are counted
_WIDTH = 80


class Screen:
    """What a person sees of a job. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: dict[tuple[Hashable, str], dict[str, Any]] = {}
        self._drawn = 0  # lines

    def write(self, lines: Iterable[tuple[int, str]]) -> None:
        """Show lines, ``(kind, text)`` each, above the bars; neighbours of one kind in one piece."""
        with self._lock:
            self._erase()
            pieces: list[str] = []
            last = OUT
            for kind, text in lines:
                if kind != last:
                    _put(sys.stdout if last == OUT else sys.stderr, "".join(pieces))
                    pieces = []
                    last = kind
                pieces.append(text)
            _put(sys.stdout if last == OUT else sys.stderr, "".join(pieces))
            self._draw()

    def show(self, source: Hashable, state: dict[str, Any]) -> None:
        """A bar of ``source`` has moved, or come to its end."""
        key = (source, state["id"])
        with self._lock:
            self._erase()
            if state["closed"]:
                self._bars.pop(key, None)
                if state["leave"]:
                    _put(sys.stderr, describe(state, self._width()) + "\n")
            else:
                self._bars[key] = state
            self._draw()

    def drop(self, source: Hashable) -> None:
        """Whoever had these bars is gone."""
        self._end([key for key in self._bars if key[0] == source])

    def close(self) -> None:
        """Leave the bars that have not come to their ends as they are."""
        self._end(list(self._bars))

    def _end(self, keys: list[tuple[Hashable, str]]) -> None:
        with self._lock:
            self._erase()
            for key in keys:
                _put(sys.stderr, describe(self._bars.pop(key), self._width()) + "\n")
            self._draw()

    # -- drawing --------------------------------------------------------------------------------------------------

    def _erase(self) -> None:
        if self._drawn:
            up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
            _put(sys.stderr, f"\r{up}\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._bars or not _is_terminal(sys.stderr):
            return
        width = self._width()
        lines = [describe(state, width) for state in list(self._bars.values())[:_BARS_MAX]]
        if len(self._bars) > _BARS_MAX:
            lines.append(f"... and {len(self._bars) - _BARS_MAX} more")
        _put(sys.stderr, "\n".join(lines))
        self._drawn = len(lines)

    def _width(self) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return max(20, os.get_terminal_size(sys.stderr.fileno()).columns - 1)
        return _WIDTH


def _is_terminal(stream: TextIO | None) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        return bool(stream is not None and stream.isatty())
    return False


def _put(stream: TextIO | None, text: str) -> None:
    """Write, unless nobody can read it any more."""
    if text and stream is not None:
        with contextlib.suppress(OSError, ValueError):  # the reader is gone, or the program closed it
            try:
                stream.write(text)
            except UnicodeEncodeError:
                stream.write(text.encode("ascii", "backslashreplace").decode())
            stream.flush()
