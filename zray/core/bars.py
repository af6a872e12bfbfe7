"""Bars: how progress bars look."""

from __future__ import annotations

from typing import Any

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_MAX = 40  # characters


def describe(state: dict[str, Any], width: int) -> str:
    """One bar as a line of text.

    Args:
        state: ``desc``, ``n``, ``initial`` (steps done before), ``total`` (None if nobody knows), ``unit``, ``postfix``, and
            ``elapsed`` in seconds.
        width: characters that fit into a line.

    Example:
        >>> state = {"desc": "load", "n": 5, "initial": 0, "total": 10, "unit": "it", "postfix": "", "elapsed": 2.0}
        >>> describe(state, 60)
        'load:  50%|██████████          | 5/10 [00:02<00:02, 2.5it/s]'
    """
    n, total, elapsed = state["n"], state["total"], state["elapsed"]
    rate = (n - state["initial"]) / elapsed if elapsed > 0 else 0.0
    speed = f"{number(rate)}{state['unit']}/s" if rate >= 1 or not rate else f"{1 / rate:.2f}s/{state['unit']}"
    head = f"{state['desc']}: " if state["desc"] else ""
    postfix = f", {state['postfix']}" if state["postfix"] else ""
    if not total:
        return f"{head}{number(n)}{state['unit']} [{clock(elapsed)}, {speed}{postfix}]"[:width]
    done = min(max(n / total, 0.0), 1.0)
    left = clock((total - n) / rate) if rate and n <= total else "?"
    start = f"{head}{int(100 * done):3d}%|"
    end = f"| {number(n)}/{number(total)} [{clock(elapsed)}<{left}, {speed}{postfix}]"
    room = min(_BAR_MAX, width - len(start) - len(end))
    return (start + (block(done, room) if room > 0 else "") + end)[:width]


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
