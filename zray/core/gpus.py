"""GpuSlots: which GPU of a node a lease gets.

Whole GPUs are given whole. Fractions share one: the fullest that still has room, so that the others stay free for demands of
a whole one.
"""

from __future__ import annotations

from zray.base.resources import UNIT
from zray.exceptions import InvariantError


class GpuSlots:
    """The GPUs of one node.

    Args:
        count: how many it has.
    """

    __slots__ = ("free",)

    def __init__(self, count: int) -> None:
        self.free = [UNIT] * count  # units left on each

    def assign(self, units: int) -> tuple[int, ...] | None:
        """Take ``units``; the GPUs they are on, or None if no choice of GPUs has them."""
        if units >= UNIT:
            whole = [index for index, free in enumerate(self.free) if free == UNIT][: units // UNIT]
            if units % UNIT or len(whole) < units // UNIT:
                return None
            for index in whole:
                self.free[index] = 0
            return tuple(whole)
        fitting = [index for index, free in enumerate(self.free) if free >= units]
        if not fitting:
            return None
        index = min(fitting, key=lambda i: (self.free[i], i))
        self.free[index] -= units
        return (index,)

    def release(self, ids: tuple[int, ...], units: int) -> None:
        """Give back what ``assign`` gave."""
        for index in ids:
            self.free[index] += min(units, UNIT)

    def check(self) -> None:
        """Assert the invariants."""
        if any(not 0 <= free <= UNIT for free in self.free):
            raise InvariantError(f"GPUs do not add up: {self.free}")
