"""Calls per second."""

import gc
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.footprint import ProcessorTime


class Timing(NamedTuple):
    calls: int
    seconds: float
    driver_seconds: float
    engine_seconds: float

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


def run(call: Callable[[], object], seconds: float, warm_up: float | None = None) -> Timing:
    """Repeats `call` for about `seconds`, after a warm-up that also tells how often the clock need be read."""
    gc.collect()
    calls = 0
    start = time.perf_counter()
    end = start + (seconds / 4 if warm_up is None else warm_up)
    while True:
        call()
        calls += 1
        if time.perf_counter() >= end:
            break
    step = max(1, calls // 10)
    processor = ProcessorTime()
    calls = 0
    start = time.perf_counter()
    end = start + seconds
    while True:
        for _ in range(step):
            call()
        calls += step
        now = time.perf_counter()
        if now >= end:
            break
    driver, engine = processor.spent()
    return Timing(calls, now - start, driver, engine)
