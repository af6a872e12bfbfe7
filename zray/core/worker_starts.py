"""WorkerStarts: when another worker may be started, on a node where that fails.

Theory of operation
-------------------
A worker process can end before it is ready: memory or processes are short, or something that every process here imports ends
it. That may be bad luck, and another is started at once. After that the next would most likely fare no better: each further
failure is followed by a rest, twice as long each time, and then one worker alone is started, to see. When that one is ready all
is as before. When ``worker_start_failures_max`` in a row were not, starting is *hopeless*: what waits for a worker is refused,
with the reason of the last failure, and what comes later has one attempt.
"""

from __future__ import annotations

from zray.base.config import Config
from zray.core.effects import TIMER, Effect

START_TIMER = "agent.start"


class WorkerStarts:
    """The failures of one node.

    Args:
        config: limits.
        out: where effects go.
    """

    __slots__ = ("_config", "_out", "_resting", "failures", "reason")

    def __init__(self, config: Config, out: list[Effect]) -> None:
        self._config = config
        self._out = out
        self._resting = False
        self.failures = 0  # in a row; those that come together are one
        self.reason = ""  # of the last one

    def failed(self, now: float, reason: str) -> None:
        """A worker ended before it was ready."""
        self.reason = reason
        if self._resting:
            return
        self.failures += 1
        if self.failures > 1:
            self._resting = True
            rest_s = self._config.worker_start_rest_ms / 1000 * 2.0 ** min(self.failures - 2, 30)
            self._out.append((TIMER, now + min(rest_s, self._config.worker_start_rest_max_s), (START_TIMER,)))

    def rested(self) -> None:
        """The rest is over."""
        self._resting = False

    def succeeded(self) -> bool:
        """A worker is ready; whether it is the first one after failures."""
        recovered = self.failures > 0
        self.failures = 0
        self._resting = False
        self.reason = ""
        return recovered

    def allowed(self, starting: int) -> bool:
        """Whether another worker may be started while so many are."""
        return not self.failures or (not self._resting and starting == 0)

    def hopeless(self) -> bool:
        """Whether nobody should wait for a worker any more."""
        return self.failures >= self._config.worker_start_failures_max
