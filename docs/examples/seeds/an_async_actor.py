"""An actor whose method is a coroutine: four calls wait at the same time. It can be awaited as well.

The example calls run_task and async_get, which it does not define, and start() before .remote(): here they are start, monitor,
and start.remote().
"""

import asyncio

import zray as ray

SECOND = 0.1  # the example sleeps for whole ones


@ray.remote
class AsyncActor:
    async def start(self):
        print("start")
        await asyncio.sleep(2 * SECOND)
        print("finished")


actor = AsyncActor.remote()
assert ray.get([actor.start.remote() for _ in range(4)]) == [None] * 4


async def monitor(actor):
    await actor.start.remote()


asyncio.run(monitor(actor))
