"""Methods of actors of every kind yield; a generator that is not needed any more is dropped, or cancelled.

The example defines actor, asyncActor and threadActor, and calls Actor, AsyncActor and ThreadedActor. Its generators end by
themselves.
"""

import zray as ray
from zray.exceptions import TaskCancelledError


@ray.remote
class Actor:
    def f(self):
        for i in range(5):  # noqa: UP028 - as the example has it
            yield i


@ray.remote
class AsyncActor:
    async def f(self):
        for i in range(5):
            yield i


@ray.remote(max_concurrency=5)
class ThreadedActor:
    def f(self):
        for i in range(5):  # noqa: UP028 - as the example has it
            yield i

    def endless(self):
        while True:
            yield "more"


for cls in (Actor, AsyncActor, ThreadedActor):
    actor = cls.remote()
    items = []
    for ref in actor.f.remote():
        items.append(ray.get(ref))  # noqa: PERF401 - as the example has it
    assert items == [0, 1, 2, 3, 4]

gen = actor.f.remote()
del gen

gen = actor.endless.remote()
assert ray.get(next(gen)) == "more"
ray.cancel(gen)
*_, last = gen
try:
    ray.get(last)
except TaskCancelledError as error:
    print(error)
else:
    raise AssertionError("it was cancelled")
