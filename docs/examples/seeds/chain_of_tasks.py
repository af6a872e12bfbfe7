"""Each task waits for the one before it, because it takes its result."""

import zray as ray


@ray.remote
def f(x):
    return x + 1


x = f.remote(0)
y = f.remote(x)
z = f.remote(y)
assert ray.get(z) == 3
