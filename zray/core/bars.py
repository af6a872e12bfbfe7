"""Bars: how progress bars look."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_MAX = 40  # characters
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def describe(state: dict[str, Any], width: int) -> str:
    """One bar as a line of text.

    Args:
        state: ``desc``, ``n``, ``initial`` (steps done before), ``total`` (None if nobody knows), ``unit``, ``postfix``, and
            ``elapsed`` in seconds; ``divisor`` if counts are to be shown in thousands of it, millions and so on.
        width: columns of a line.

    Example:
        >>> state = {"desc": "load", "n": 5, "initial": 0, "total": 10, "unit": "it", "postfix": "", "elapsed": 2.0}
        >>> describe(state, 60)
        'load:  50%|██████████          | 5/10 [00:02<00:02, 2.5it/s]'
    """
    n, total, elapsed, divisor = state["n"], state["total"], state["elapsed"], state.get("divisor")
    count = (lambda value: scaled(value, divisor)) if divisor else number
    rate = (n - state["initial"]) / elapsed if elapsed > 0 else 0.0
    speed = f"{count(rate)}{state['unit']}/s" if rate >= 1 or not rate else f"{1 / rate:.2f}s/{state['unit']}"
    head = plain(f"{state['desc']}: ") if state["desc"] else ""
    notes = plain(f"{speed}, {state['postfix']}" if state["postfix"] else speed)
    if not total:
        return fitting(f"{head}{count(n)}{plain(state['unit'])} [{clock(elapsed)}, {notes}]", width)
    done = min(max(n / total, 0.0), 1.0)
    left = clock((total - n) / rate) if rate and n <= total else "?"
    start = f"{head}{int(100 * done):3d}%|"
    end = f"| {count(n)}/{count(total)} [{clock(elapsed)}<{left}, {notes}]"
    room = min(_BAR_MAX, width - columns(start) - columns(end))
    return fitting(start + (block(done, room) if room > 0 else "") + end, width)


def block(done: float, width: int) -> str:
    """A bar that is filled so far."""
    eighths = int(done * width * 8)
    full, part = divmod(eighths, 8)
    return (_BLOCKS[8] * full + (_BLOCKS[part] if part else "")).ljust(width)


def clock(seconds: float) -> str:
    """A time as minutes and seconds, and hours if there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"


def number(value: float) -> str:
    """A count, or a rate with three digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def scaled(value: float, divisor: float) -> str:
    """A count with three digits and a letter for its size.

    Example:
        >>> scaled(1_234_567, 1000)
        '1.23M'
    """
    power = 0
    while abs(value) >= 999.5 and power < len(_PREFIXES) - 1:
        value /= divisor
        power += 1
    digits = f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    return digits + _PREFIXES[power]


def plain(text: str) -> str:
    """A text in one line and without what moves the cursor."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in _COLOURS.sub("", text))


def columns(text: str) -> int:
    """How wide a text is on a terminal."""
    return len(text) if text.isascii() else sum(map(_columns_of, text))


def fitting(text: str, width: int) -> str:
    """As much of a text as fits."""
    if columns(text) <= width:
        return text
    end = 0
    for char in text:
        width -= _columns_of(char)
        if width < 0:
            break
        end += 1
    return text[:end]


def _columns_of(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "FW" else 1
