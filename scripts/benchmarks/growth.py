"""Bodies of the cases that ask how cost grows with the number of things: per item it should stay flat."""

import gc
import statistics
import time

from benchmarks import tasks
from benchmarks.case import Skipped
from benchmarks.footprint import resident_bytes

SMALL_QUEUE = 1000
LONGEST_S = 150.0


def queued_tasks(engine, seconds, n, key):
    """Submits n tasks, then gets them all, in a session of its own: memory left over from another size would hide growth.

    The same session measures 1,000 first, so that the ratio compares neighbours in time.
    """
    nop = engine.api.remote(tasks.nop)
    for _ in range(3):
        _queue_round(engine, nop, SMALL_QUEUE)
    small = statistics.median(_queue_round(engine, nop, SMALL_QUEUE)[0] for _ in range(7))
    if n == SMALL_QUEUE:
        return {f"queue_{key}_us": small}
    if small * n / 1e6 > LONGEST_S:
        raise Skipped(f"would take {small * n / 1e6:.0f} s or more")
    each, memory = _queue_round(engine, nop, n)
    return {f"queue_{key}_us": each, f"queue_{key}_ratio": each / small, f"queue_{key}_bytes": memory}


def _queue_round(engine, nop, n):
    """Microseconds and bytes of the driver's memory for each task."""
    gc.collect()
    before = resident_bytes()
    start = time.perf_counter()
    refs = [nop.remote() for _ in range(n)]
    submitted = time.perf_counter() - start
    memory = resident_bytes() - before
    start = time.perf_counter()
    engine.api.get(refs)
    elapsed = submitted + time.perf_counter() - start
    return elapsed / n * 1e6, memory / n


def many_arguments(engine, seconds, n):
    api = engine.api
    count = api.remote(tasks.count)
    refs = [api.put(i) for i in range(n)]
    return _grown("arguments", n, lambda k: api.get(count.remote(*refs[:k])))


def many_returns(engine, seconds, n):
    api = engine.api
    spread = api.remote(tasks.spread)
    return _grown("returns", n, lambda k: api.get(spread.options(num_returns=k).remote(k)))


def many_gets(engine, seconds, n):
    api = engine.api
    refs = [api.put(i) for i in range(n)]
    return _grown("gets", n, lambda k: api.get(refs[:k]))


def _grown(key, n, call):
    """The cost of each of n items, and how it compares with a tenth as many."""
    few, many = _cost_per_item(call, n // 10), _cost_per_item(call, n)
    return {f"{key}_us": many, f"{key}_ratio": many / few}


def _cost_per_item(call, n):
    call(n)
    costs = []
    for _ in range(3):
        gc.collect()
        start = time.perf_counter()
        call(n)
        costs.append((time.perf_counter() - start) / n * 1e6)
    return statistics.median(costs)
