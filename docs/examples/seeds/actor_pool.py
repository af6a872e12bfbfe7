"""Four values are doubled by a pool of two actors. The example writes `import ray.util import ActorPool`."""

import zray as ray
from zray.util import ActorPool


@ray.remote
class Actor:
    def double(self, n):
        return n * 2


pool = ActorPool([Actor.remote(), Actor.remote()])
gen = pool.map(lambda a, v: a.double.remote(v), [1, 2, 3, 4])
doubled = list(gen)
print(doubled)
assert doubled == [2, 4, 6, 8]
