"""Waiting for a task, blocking and in asyncio."""

import asyncio

import zray as ray


@ray.remote
def task():
    return 1


ready, not_ready = ray.wait([task.remote()])
assert (ray.get(ready), not_ready) == ([1], [])


async def wait_obj():
    # Since Python 3.11 asyncio.wait() takes futures only, so the reference is made one first.
    done, pending = await asyncio.wait([asyncio.ensure_future(task.remote())])
    assert not pending
    assert [future.result() for future in done] == [1]


asyncio.run(wait_obj())
