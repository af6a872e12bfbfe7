"""The functions that run in the engines' workers.

This module imports nothing at its top: a session loads it before it takes the start time.
"""

_nops = {}
_arrays = {}


def nop():
    return b"ok"


def where(engine):
    """The node this runs on."""
    return __import__(engine).get_runtime_context().get_node_id()


def nap(seconds):
    import time

    time.sleep(seconds)


def successor(x):
    return x + 1


def burst(seconds):
    """Keeps a processor busy."""
    import time

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def count(*values):
    return len(values)


def spread(n):
    return list(range(n))


def numbers(n):
    for number in range(n):  # noqa: UP028 - Ray can not run generators that yield from others
        yield number


def numbers_and_memory(n, every):
    """Numbers, and now and then the bytes of memory of this process."""
    from benchmarks.footprint import resident_bytes

    for number in range(n):
        yield number if number % every else resident_bytes()


def arrays(n, size):
    for _ in range(n):
        yield touched_array(size)


class Counter:
    def numbers(self, n):
        for number in range(n):  # noqa: UP028 - see above
            yield number


def client_puts(engine, n):
    put = __import__(engine).put
    for _ in range(n):
        put(0)


def client_calls(engine, n):
    """Submits n tasks from inside a task, and gets them."""
    api = __import__(engine)
    if engine not in _nops:
        # A second RemoteFunction would export the same function again.
        _nops[engine] = api.remote(nop)
    remote = _nops[engine].remote
    api.get([remote() for _ in range(n)])


def client_actor_calls(engine, actors, n):
    """Calls the actors in turn, n times in all, from inside a task, and gets the results."""
    get = __import__(engine).get
    get([actors[i % len(actors)].nop.remote() for i in range(n)])


def client_large_puts(engine, n, size):
    put = __import__(engine).put
    array = touched_array(size)
    for _ in range(n):
        put(array)


def touched_array(size):
    """An array of `size` bytes which the process keeps, so that only its first use pays for the pages.

    Not zeros: pages that nobody wrote all map to one cached page, and reading them tells nothing about memory.
    """
    import numpy

    if size not in _arrays:
        _arrays[size] = numpy.arange(size // 8, dtype=numpy.int64)
    return _arrays[size]
