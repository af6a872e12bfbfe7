"""OutputFold: what a driver shows of its workers' lines.

Each line gets the name, pid and node of who wrote it. When several workers write the very same line within a short time, it is
shown once at once, and when the time is over once more with the number of the others.
"""

from __future__ import annotations

from zray.base.wire_output import BAR

Line = tuple[int, str]  # kind and text, its end included
_REMEMBERED_MAX = 10_000  # lines, within the time


class _Seen:
    """A line that was shown a moment ago."""

    __slots__ = ("count", "prefix", "source", "until")

    def __init__(self, source: tuple[bytes, int], until: float) -> None:
        self.source = source  # who wrote it first
        self.until = until
        self.count = 0  # how often others did
        self.prefix = ""  # of the last of them


class OutputFold:
    """Rows of output to lines for a person.

    Args:
        fold_s: for how long a line is remembered.
    """

    __slots__ = ("_fold_s", "_seen")

    def __init__(self, fold_s: float) -> None:
        self._fold_s = fold_s
        self._seen: dict[tuple[int, str, str], _Seen] = {}

    def take(self, now: float, agent: bytes, node: str, rows: list[tuple[int, str, int, bytes]]) -> list[Line]:
        """What is to be shown of these rows, of a node: its short id, or nothing if it is the driver's own."""
        shown: list[Line] = []
        for pid, name, kind, block in rows:
            if kind == BAR:
                continue
            prefix = _prefix(name, pid, node)
            source = (agent, pid)
            for line in block.decode("utf-8", "backslashreplace").split("\n")[:-1]:
                text = line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line
                if self._fresh(now, source, (kind, name, text), prefix):
                    shown.append((kind, f"{prefix}{text}\n"))
        return shown

    def due(self, now: float) -> list[Line]:
        """The lines whose time is over, where others wrote them too."""
        shown: list[Line] = []
        while self._seen:
            key = next(iter(self._seen))
            seen = self._seen[key]
            if seen.until > now:
                break
            del self._seen[key]
            if seen.count:
                shown.append((key[0], f"{seen.prefix}{key[2]} [repeated {seen.count}x]\n"))
        return shown

    def next_at(self) -> float | None:
        """When ``due`` may have something."""
        return next(iter(self._seen.values())).until if self._seen else None

    def _fresh(self, now: float, source: tuple[bytes, int], key: tuple[int, str, str], prefix: str) -> bool:
        """Whether a line is shown now; one worker may repeat itself."""
        seen = self._seen.get(key)
        if seen is not None and seen.until > now:
            if seen.source == source:
                return True
            seen.count += 1
            seen.prefix = prefix
            return False
        if seen is None and len(self._seen) < _REMEMBERED_MAX and key[2].strip():
            self._seen[key] = _Seen(source, now + self._fold_s)
        return True


def _prefix(name: str, pid: int, node: str) -> str:
    who = f"{name} pid={pid}" if name and pid else f"pid={pid}" if pid else name or "a worker that starts"
    return f"({who}, node={node}) " if node else f"({who}) "
