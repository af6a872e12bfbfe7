"""Values and references may be mixed among the arguments: the function sees values."""

import zray as ray


@ray.remote
def add2(a, b):
    return a + b


refs = [add2.remote(1, 2), add2.remote(1, ray.put(2)), add2.remote(ray.put(1), ray.put(2))]
assert ray.get(refs) == [3, 3, 3]
