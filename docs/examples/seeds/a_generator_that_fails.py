"""A generator gives its items as they are made, and its exception in the place of the item that is missing."""

import zray as ray


@ray.remote
def f():
    for i in range(5):
        if i == 1:
            raise ValueError
        yield i


seen = []
try:
    for obj_ref in f.remote():
        seen.append(ray.get(obj_ref))  # noqa: PERF401 - as the example has it
except ValueError as e:
    print(e)
    seen.append("ValueError")

assert seen == [0, "ValueError"]
