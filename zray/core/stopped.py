"""StoppedDrivers: drivers of this node whose processes are stopped, as by SIGSTOP or Ctrl-Z, and for how long.

Theory of operation
-------------------
The end of a driver is seen by its node at once. A driver that is stopped has not ended and may go on, so what it has made is
kept; but what it holds others can not have, so not for ever. Whether a process is stopped the kernel knows: a driver that is
only busy, or waits, is never taken for one. Time counts while this agent looks, so that one which was held up itself
ends nobody when it goes on.
"""

from __future__ import annotations

from collections.abc import Iterable


class StoppedDrivers:
    """Who is stopped, and who has been for too long.

    Args:
        interval_s: between two looks.
        limit_s: how long a driver may be stopped.
    """

    __slots__ = ("_interval_s", "_limit_s", "_looks")

    def __init__(self, interval_s: float, limit_s: float) -> None:
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._looks: dict[bytes, int] = {}  # driver -> how often in a row it was seen stopped

    def seen(self, stopped: Iterable[bytes]) -> list[bytes]:
        """These are stopped now, all others are not. Returns those that have been stopped for too long."""
        self._looks = {driver: self._looks.get(driver, 0) + 1 for driver in stopped}
        return [driver for driver, looks in self._looks.items() if (looks - 1) * self._interval_s >= self._limit_s]
