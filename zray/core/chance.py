"""Chance, for machines that nobody gave any: always the first."""

from __future__ import annotations


class First:
    """In the place of a ``random.Random``."""

    def randrange(self, stop: int, /) -> int:
        """The first of ``stop`` numbers."""
        return 0
