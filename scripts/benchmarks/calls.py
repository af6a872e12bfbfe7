"""Bodies of the cases about tasks. A body takes the engine and its time budget in seconds, and returns metrics by key."""

from benchmarks import stopwatch, tasks

BATCH = 1000
CLIENTS = 4
CALLS_PER_CLIENT = 1000


def tasks_sync(engine, seconds):
    timing = stopwatch.run(engine.call_one, seconds)
    return {"tasks_sync": timing.rate, **_price("sync", timing, 1)}


def tasks_async(engine, seconds):
    timing = stopwatch.run(lambda: engine.call_batch(BATCH), seconds)
    # Ray's program measures the same thing twice under two names, once in tasks and once in rounds.
    rounds = {"tasks_and_get": timing.rate} if hasattr(engine, "api") else {}
    return {"tasks_async": timing.rate * BATCH, **rounds, **_price("async", timing, BATCH)}


def _price(kind, timing, tasks_per_call):
    n = timing.calls * tasks_per_call
    return {
        f"driver_us_{kind}": timing.driver_seconds / n * 1e6,
        f"engine_us_{kind}": timing.engine_seconds / n * 1e6,
    }


def tasks_and_waits(engine, seconds):
    api = engine.api
    nop = api.remote(tasks.nop)

    def one_round():
        refs = [nop.remote() for _ in range(BATCH)]
        while refs:
            _ready, refs = api.wait(refs)

    return {"tasks_and_waits": stopwatch.run(one_round, seconds).rate}


def tasks_awaited(engine, seconds):
    """One event loop that awaits many references at once, and one after the other."""
    import asyncio

    nop = engine.api.remote(tasks.nop)
    many, few = 10 * BATCH, 100
    values = [engine.api.put(None) for _ in range(many)]

    async def plain():
        return None

    def gathered(make):
        async def main():
            await asyncio.gather(*make())

        return lambda: asyncio.run(main())

    async def one_by_one():
        for _ in range(few):
            await nop.remote()

    def cost_us(body, count):
        return 1e6 / (stopwatch.run(body, seconds / 4).rate * count)

    return {
        "tasks_awaited_us": cost_us(gathered(lambda: [nop.remote() for _ in range(many)]), many),
        "awaits_us": cost_us(gathered(lambda: values), many),
        "coroutines_us": cost_us(gathered(lambda: [plain() for _ in range(many)]), many),
        "await_one_us": cost_us(lambda: asyncio.run(one_by_one()), few),
    }


def multi_client_tasks(engine, seconds):
    # Clients ask for no processor, as in Ray's program: they only wait, and the processors are for what they submit.
    client = engine.api.remote(tasks.client_calls).options(num_cpus=0)

    def one_round():
        engine.api.get([client.remote(engine.name, CALLS_PER_CLIENT) for _ in range(CLIENTS)])

    return {"multi_client_tasks": stopwatch.run(one_round, seconds).rate * CLIENTS * CALLS_PER_CLIENT}
