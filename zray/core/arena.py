"""Arena: which bytes of a node's shared memory are free.

Theory of operation
-------------------
Free space is a list of extents in order of offset. An extent is *warm* when its pages have been written before: copying
into warm pages runs at memory speed, into cold ones at a fifth of it (the kernel has to find and clear each page), so
warm space is used first, the tightest extent that fits. Neighbours of equal temperature are joined when space is freed.
Where nothing fits alone, neighbours of different temperature are taken together as cold space.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from zray.exceptions import InvariantError

PAGE = 4096


class Arena:
    """The free list of one arena.

    Args:
        capacity: bytes in all, a multiple of the page size.

    Example:
        >>> arena = Arena(1 << 20)
        >>> arena.allocate(5000)
        (0, False)
    """

    __slots__ = ("_free", "_used", "capacity", "used_bytes")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // PAGE * PAGE
        self._free: list[tuple[int, int, bool]] = [(0, self.capacity, False)] if self.capacity else []
        self._used: dict[int, int] = {}
        self.used_bytes = 0

    def allocate(self, size: int) -> tuple[int, bool] | None:
        """Room for ``size`` bytes: ``(offset, warm)``, or None if there is none."""
        size = max(PAGE, (size + PAGE - 1) // PAGE * PAGE)
        best = -1
        for index, (_, length, warm) in enumerate(self._free):
            if length < size:
                continue
            if best < 0 or (warm, -length) > (self._free[best][2], -self._free[best][1]):
                best = index
        if best < 0:
            best = self._join(size)
            if best < 0:
                return None
        offset, length, warm = self._free[best]
        if length == size:
            del self._free[best]
        else:
            self._free[best] = (offset + size, length - size, warm)
        self._used[offset] = size
        self.used_bytes += size
        return offset, warm

    def reaches(self, offset: int, size: int) -> bool:
        """Whether the free extents that touch one another around the free place ``offset`` hold ``size`` bytes together."""
        free = self._free
        first = bisect_right(free, (offset, self.capacity + 1)) - 1
        last = first
        length = free[first][1]
        while length < size and first > 0 and sum(free[first - 1][:2]) == free[first][0]:
            first -= 1
            length += free[first][1]
        while length < size and last + 1 < len(free) and sum(free[last][:2]) == free[last + 1][0]:
            last += 1
            length += free[last][1]
        return length >= size

    def free(self, offset: int, *, warm: bool) -> None:
        """Give room back; ``warm``: all of it was written."""
        size = self._used.pop(offset)
        self.used_bytes -= size
        free = self._free
        index = bisect_left(free, (offset,))
        if index < len(free) and free[index][0] == offset + size and free[index][2] == warm:
            size += free[index][1]
            del free[index]
        if index > 0:
            before, length, temperature = free[index - 1]
            if before + length == offset and temperature == warm:
                free[index - 1] = (before, length + size, warm)
                return
        free.insert(index, (offset, size, warm))

    def _join(self, size: int) -> int:
        """Join neighbours of different temperature until one is large enough; its index, or -1."""
        free = self._free
        start = 0
        while start < len(free):
            end = start + 1
            length = free[start][1]
            while end < len(free) and free[end - 1][0] + free[end - 1][1] == free[end][0] and length < size:
                length += free[end][1]
                end += 1
            if length >= size:
                free[start:end] = [(free[start][0], length, False)]
                return start
            start += 1
        return -1

    def check(self) -> None:
        """Assert the invariants: extents and allocations tile the arena."""
        pieces = sorted([(o, s) for o, s, _ in self._free] + list(self._used.items()))
        end = 0
        for offset, size in pieces:
            if offset != end or size <= 0:
                raise InvariantError(f"the arena has a hole or an overlap at {end}")
            end = offset + size
        if end != self.capacity or self.used_bytes != sum(self._used.values()):
            raise InvariantError("the arena does not add up")

    def statistics(self) -> dict[str, int]:
        return {
            "capacity_bytes": self.capacity,
            "used_bytes": self.used_bytes,
            "extents": len(self._free),
            "largest_free_bytes": max((size for _, size, _ in self._free), default=0),
        }
