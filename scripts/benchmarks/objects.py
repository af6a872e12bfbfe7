"""Bodies of the cases about put, get and memory bandwidth."""

import mmap
import time

from benchmarks import stopwatch, tasks

LARGE = 100_000_000
CLIENTS = 4
PUTS_PER_CLIENT = 1000
LARGE_PUTS_PER_CLIENT = 5
WARM_UP_PUTS = 20
CONTAINED = 10_000


def get_small(engine, seconds):
    get, ref = engine.api.get, engine.api.put(0)
    return {"get_small": stopwatch.run(lambda: get(ref), seconds).rate}


def put_small(engine, seconds):
    put = engine.api.put
    return {"put_small": stopwatch.run(lambda: put(0), seconds).rate}


def multi_client_puts(engine, seconds):
    client = engine.api.remote(tasks.client_puts)

    def one_round():
        engine.api.get([client.remote(engine.name, PUTS_PER_CLIENT) for _ in range(CLIENTS)])

    return {"multi_client_puts": stopwatch.run(one_round, seconds).rate * CLIENTS * PUTS_PER_CLIENT}


def put_first(engine, seconds):
    """The first large put of a session: the store's memory has never been touched. Must run before all other large puts."""
    put, array = engine.api.put, tasks.touched_array(LARGE)
    # The first pickling of an array imports modules, which is no matter of the store.
    put(array[:10])
    _back_memory(5 * LARGE)
    start = time.perf_counter()
    ref = put(array)
    elapsed = time.perf_counter() - start
    del ref
    return {"put_first": LARGE / elapsed / 1e9}


def _back_memory(size):
    """Has the kernel hold free pages that are real.

    A virtual machine may lend its free memory back to the host, and touching such a page costs five times what touching a
    page costs. Which engine meets them is chance, and no matter of the engine.
    """
    import numpy

    # Shared, since that is what stores are made of, and the kernel keeps free pages apart by use.
    with mmap.mmap(-1, size) as memory:
        numpy.frombuffer(memory, dtype=numpy.uint8)[:: mmap.PAGESIZE] = 1


def put_large(engine, seconds):
    """Warm puts beside plain copies, in alternating slices, since memory bandwidth is what neighbours disturb most."""
    import numpy

    put, array = engine.api.put, tasks.touched_array(LARGE)
    target = array.copy()
    # A store that frees behind the caller's back puts the next array into memory still cold, which is some twenty times
    # slower than warm; only after many puts has it touched all the memory it goes round in.
    for _ in range(WARM_UP_PUTS):
        put(array)
    puts, copies = [], []
    for _ in range(3):
        puts.append(stopwatch.run(lambda: put(array), seconds / 3, warm_up=0))
        copies.append(stopwatch.run(lambda: numpy.copyto(target, array), seconds / 3, warm_up=0))
    put_rate, copy_rate = _total_rate(puts), _total_rate(copies)
    return {
        "put_large": put_rate * LARGE / 1e9,
        "memcpy": copy_rate * LARGE / 1e9,
        "put_large_of_memcpy": put_rate / copy_rate,
    }


def _total_rate(timings):
    """The mean and not the median: puts are either cold or warm, and a median would pick one of the two."""
    return sum(timing.calls for timing in timings) / sum(timing.seconds for timing in timings)


def multi_client_large_puts(engine, seconds):
    client = engine.api.remote(tasks.client_large_puts)

    def one_round():
        engine.api.get([client.remote(engine.name, LARGE_PUTS_PER_CLIENT, LARGE) for _ in range(CLIENTS)])

    rate = stopwatch.run(one_round, seconds, warm_up=seconds).rate
    return {"multi_client_large_puts": rate * CLIENTS * LARGE_PUTS_PER_CLIENT * LARGE / 1e9}


def get_refs(engine, seconds):
    put, get = engine.api.put, engine.api.get
    ref = put([put(1) for _ in range(CONTAINED)])
    return {"get_refs": stopwatch.run(lambda: get(ref), seconds).rate}
