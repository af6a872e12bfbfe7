"""Methods in groups, each with a limit of its own; a call may name another group than its method's.

The example's methods return nothing, and it calls only the last of them.
"""

import zray as ray


@ray.remote(concurrency_groups={"io": 2, "compute": 4})
class AsyncIOActor:
    def __init__(self):
        pass

    @ray.method(concurrency_group="io")
    async def f1(self):
        return "io"

    @ray.method(concurrency_group="compute")
    async def f2(self):
        return "compute"

    async def f3(self):
        return "default"


a = AsyncIOActor.remote()
assert ray.get([a.f1.remote(), a.f2.remote(), a.f3.remote()]) == ["io", "compute", "default"]
assert ray.get(a.f3.options(concurrency_group="compute").remote()) == "default"
