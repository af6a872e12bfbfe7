"""Bodies of the cases about actors. "1:n" is one caller and n actors."""

import time
from contextlib import contextmanager

from benchmarks import stopwatch, tasks
from benchmarks.engine import CPUS
from benchmarks.footprint import proportional_bytes
from benchmarks.servers import AsyncServer, Client, Server

BATCH = 1000
THREADS = 16
SERVERS = CPUS
CLIENTS = 4
IDLE_ACTORS = 20


@contextmanager
def _running(engine, cls, *each, **options):
    """One actor for every tuple of arguments; all of them answer when this begins, and are killed when it ends."""
    # They ask for no processor, as in Ray's program: the processors are for the tasks of the cases.
    actor_class = engine.api.remote(cls).options(num_cpus=0, **options)
    actors = [actor_class.remote(*arguments) for arguments in each]
    try:
        engine.api.get([actor.nop.remote() for actor in actors])
        yield actors
    finally:
        for actor in actors:
            engine.api.kill(actor)


def actor_sync(engine, seconds):
    return {"actor_sync": _sync(engine, seconds, Server)}


def async_actor_sync(engine, seconds):
    return {"async_actor_sync": _sync(engine, seconds, AsyncServer)}


def _sync(engine, seconds, cls):
    get = engine.api.get
    with _running(engine, cls, ()) as [actor]:
        return stopwatch.run(lambda: get(actor.nop.remote()), seconds).rate


def actor_async(engine, seconds):
    return {"actor_async": _async(engine, seconds, Server)}


def actor_concurrent(engine, seconds):
    return {"actor_concurrent": _async(engine, seconds, Server, max_concurrency=THREADS)}


def async_actor_async(engine, seconds):
    return {"async_actor_async": _async(engine, seconds, AsyncServer)}


def _async(engine, seconds, cls, **options):
    get = engine.api.get
    with _running(engine, cls, (), **options) as [actor]:
        return stopwatch.run(lambda: get([actor.nop.remote() for _ in range(BATCH)]), seconds).rate * BATCH


def async_actor_with_argument(engine, seconds):
    get = engine.api.get
    with _running(engine, AsyncServer, ()) as [actor]:
        timing = stopwatch.run(lambda: get([actor.nop_of.remote(i) for i in range(BATCH)]), seconds)
    return {"async_actor_with_argument": timing.rate * BATCH}


def actor_one_to_n(engine, seconds):
    get = engine.api.get
    with _running(engine, Server, *[()] * SERVERS) as servers, _running(engine, Client, (engine.name, servers)) as [client]:
        timing = stopwatch.run(lambda: get(client.calls.remote(BATCH)), seconds)
    return {"actor_one_to_n": timing.rate * SERVERS * BATCH}


def actor_n_to_n(engine, seconds):
    get = engine.api.get
    client = engine.api.remote(tasks.client_actor_calls)
    with _running(engine, Server, *[()] * SERVERS) as servers:

        def one_round():
            get([client.remote(engine.name, servers, BATCH) for _ in range(CLIENTS)])

        timing = stopwatch.run(one_round, seconds)
    return {"actor_n_to_n": timing.rate * CLIENTS * BATCH}


def actor_n_to_n_with_object(engine, seconds):
    get = engine.api.get
    with _running(engine, Server, *[()] * SERVERS) as servers:
        with _running(engine, Client, *[(engine.name, [server]) for server in servers]) as clients:
            timing = stopwatch.run(lambda: get([client.calls_with_object.remote(BATCH) for client in clients]), seconds)
    return {"actor_n_to_n_with_object": timing.rate * SERVERS * BATCH}


def actor_life(engine, seconds):
    """Actors made, called once and killed, one after the other."""

    def one_life():
        with _running(engine, Server, ()):
            pass

    return {"actor_life": stopwatch.run(one_life, seconds).rate}


def actor_memory(engine, seconds):
    with _running(engine, Server, *[()] * IDLE_ACTORS) as actors:
        pids = engine.api.get([actor.pid.remote() for actor in actors])
        # What their start left to do is done in the meantime, as in idle_memory.
        time.sleep(2.0)
        return {"actor_memory": sum(proportional_bytes(pid) for pid in pids) / IDLE_ACTORS / 1e6}
