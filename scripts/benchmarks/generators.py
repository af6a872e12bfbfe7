"""Bodies of the cases about generators."""

import gc
import time

from benchmarks import stopwatch, tasks
from benchmarks.footprint import resident_bytes

ITEMS = 5000
LARGE_ITEMS = 50
MANY = 1_000_000
EVERY = 100_000


def generator_items(engine, seconds):
    """Small items, each got as it comes."""
    api = engine.api
    numbers = api.remote(tasks.numbers)

    def one_round():
        for ref in numbers.remote(ITEMS):
            api.get(ref)

    return {"generator_items": stopwatch.run(one_round, seconds).rate * ITEMS}


def generator_actor(engine, seconds):
    """The same from a method of an actor."""
    api = engine.api
    actor = api.remote(tasks.Counter).remote()

    def one_round():
        for ref in actor.numbers.remote(ITEMS):
            api.get(ref)

    return {"generator_actor": stopwatch.run(one_round, seconds).rate * ITEMS}


def generator_large(engine, seconds):
    """Items of a megabyte."""
    api = engine.api
    arrays = api.remote(tasks.arrays)

    def one_round():
        for ref in arrays.remote(LARGE_ITEMS, 1 << 20):
            api.get(ref)

    return {"generator_large": stopwatch.run(one_round, seconds).rate * LARGE_ITEMS}


def generator_million(engine, seconds):
    """A million items through one generator: how fast, and how much the memory of both sides grows after the first."""
    api = engine.api
    numbers = api.remote(tasks.numbers_and_memory)
    for ref in numbers.remote(EVERY, EVERY):
        api.get(ref)
    gc.collect()
    before, there, most = resident_bytes(), [], 0
    start = time.perf_counter()
    for index, ref in enumerate(numbers.remote(MANY, EVERY)):
        value = api.get(ref)
        if index % EVERY == 0:
            there.append(value)
            most = max(most, resident_bytes())
    elapsed = time.perf_counter() - start
    return {
        "generator_million": MANY / elapsed,
        "generator_reader_mb": (most - before) / 1e6,
        "generator_worker_mb": (max(there) - there[0]) / 1e6,
    }
