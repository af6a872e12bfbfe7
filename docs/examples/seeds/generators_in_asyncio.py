"""Two generators are read side by side in one event loop."""

import asyncio
import time

import zray as ray

SECOND = 0.05  # the example sleeps for a whole one


@ray.remote
def task():
    for i in range(5):
        time.sleep(SECOND)
        yield i


async def async_task():
    items = []
    async for ref in task.remote():
        items.append(await ref)  # noqa: PERF401 - as the example has it
    return items


async def main():
    t1 = async_task()
    t2 = async_task()
    assert await asyncio.gather(t1, t2) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


asyncio.run(main())
