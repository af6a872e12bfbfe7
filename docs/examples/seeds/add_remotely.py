"""An ordinary function, and the same one as a remote function."""

import zray as ray


def add1(a, b):
    return a + b


@ray.remote
def add2(a, b):
    return a + b


assert add1(1, 2) == 3

x_id = add2.remote(1, 2)
assert ray.get(x_id) == 3
