"""Screen: the driver's standard output and error, with progress bars below what was written last.

Bars are drawn on standard error if that is a terminal. As long as there are some, the program's own standard streams are
wrapped, so that what it prints itself stands above them too. Where there is no terminal, a bar that has come to its end leaves
one line, and nothing is wrapped.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Hashable, Iterable
from typing import Any, TextIO, cast

from zray.base.wire_output import OUT
from zray.core.bars import describe

_BARS_MAX = 20  # that are drawn; the others are counted
_WIDTH, _HEIGHT = 80, 24

Bar = tuple[Hashable, dict[str, Any] | None]  # of whom, and its state; None: whoever had bars is gone


class Screen:
    """What a person sees of a job. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a bar may be collected, and come to its end, at any moment
        self._bars: dict[tuple[Hashable, str], dict[str, Any]] = {}
        self._drawn = 0  # lines
        self._above: list[_Above] = []  # the wrapped streams
        self._begun: TextIO | None = None  # where the program has begun a line, through one of them

    def show(self, lines: Iterable[tuple[int, str]] = (), bars: Iterable[Bar] = ()) -> None:
        """Show lines, ``(kind, text)`` each, and that bars have moved, or come to their ends.

        Neighbours of one kind are written in one piece.
        """
        with self._lock:
            self._erase()
            lines = list(lines)
            if lines:
                self._end_line()
            pieces: list[str] = []
            last = OUT
            for kind, text in lines:
                if kind != last:
                    _put(_own(sys.stdout if last == OUT else sys.stderr), "".join(pieces))
                    pieces = []
                    last = kind
                pieces.append(text)
            _put(_own(sys.stdout if last == OUT else sys.stderr), "".join(pieces))
            for source, state in bars:
                if state is None:
                    self._end([key for key in self._bars if key[0] == source])
                elif state["closed"]:
                    self._bars.pop((source, state["id"]), None)
                    if state["leave"]:
                        self._leave(state)
                else:
                    self._bars[source, state["id"]] = state
            self._draw()

    def close(self) -> None:
        """Leave the bars that have not come to their ends as they are."""
        with self._lock:
            self._erase()
            self._end(list(self._bars))
            self._draw()

    def write_above(self, stream: TextIO, text: str) -> int:
        """The program itself writes something. While its line is not complete there are no bars."""
        with self._lock:
            self._erase()
            count = stream.write(text)
            if text:
                stream.flush()
                self._begun = None if text.endswith("\n") else stream
            self._draw()
            return count

    # -- drawing --------------------------------------------------------------------------------------------------

    def _end(self, keys: list[tuple[Hashable, str]]) -> None:
        for key in keys:
            self._leave(self._bars.pop(key))

    def _leave(self, state: dict[str, Any]) -> None:
        self._end_line()
        _put(_own(sys.stderr), describe(state, self._size()[0]) + "\n")

    def _end_line(self) -> None:
        """What comes now is not the program's own: it stands in a line of its own."""
        _put(self._begun, "\n")
        self._begun = None

    def _erase(self) -> None:
        if self._drawn:
            up = f"\x1b[{self._drawn - 1}A" if self._drawn > 1 else ""
            _put(_own(sys.stderr), f"\r{up}\x1b[J")
            self._drawn = 0

    def _draw(self) -> None:
        if not self._bars or not _is_terminal(sys.stderr):
            self._unwrap()
            return
        self._wrap()
        if self._begun is not None:
            return
        width, height = self._size()
        states = sorted(self._bars.values(), key=lambda state: state["position"])
        most = min(_BARS_MAX, max(1, height - 2))
        lines = [describe(state, width) for state in states[:most]]
        if len(states) > most:
            lines.append(f"... and {len(states) - most} more")
        _put(_own(sys.stderr), "\n".join(lines))
        self._drawn = len(lines)

    def _size(self) -> tuple[int, int]:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            width, height = os.get_terminal_size(sys.stderr.fileno())
            return max(20, width - 1), height or _HEIGHT
        return _WIDTH, _HEIGHT

    def _wrap(self) -> None:
        if not self._above and sys.stdout is not None:
            self._above = [_Above(self, sys.stdout), _Above(self, sys.stderr)]
            sys.stdout, sys.stderr = map(_as_stream, self._above)

    def _unwrap(self) -> None:
        """Give the streams back; what the program has put in their place meanwhile stays."""
        if self._above:
            out, error = self._above
            if _as_stream(out) is sys.stdout:
                sys.stdout = out.stream
            if _as_stream(error) is sys.stderr:
                sys.stderr = error.stream
            self._above = []
            self._begun = None


class _Above:
    """A standard stream of the program's, while there are bars below what it writes."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self.stream = stream
        self._screen = screen
        self._pid = os.getpid()

    def write(self, text: str) -> int:
        if os.getpid() != self._pid:
            return self.stream.write(text)  # a fork has no bars, and the lock may be taken for ever
        return self._screen.write_above(self.stream, text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _as_stream(above: _Above) -> TextIO:
    return cast(TextIO, above)


def _own(stream: TextIO | None) -> TextIO | None:
    """The stream itself, if it is wrapped."""
    return stream.stream if isinstance(stream, _Above) else stream


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
