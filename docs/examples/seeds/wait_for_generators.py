"""ray.wait on a generator and a reference: a generator is ready when next() would not wait, and waits for its turn again.

The example takes ObjectRefGenerator from ray._raylet, and does not say what its other references are.
"""

import time

import zray as ray
from zray import ObjectRefGenerator

SECOND = 0.01  # the example sleeps for five whole ones


@ray.remote
def generator_task():
    for i in range(5):
        time.sleep(5 * SECOND)
        yield i


ref = [ray.put("a value")]
gen = [generator_task.remote()]
ready, unready = [], [*gen, *ref]
result = []
while unready:
    ready, unready = ray.wait(unready)
    for r in ready:
        if isinstance(r, ObjectRefGenerator):
            try:
                ref = next(r)
                result.append(ray.get(ref))
            except StopIteration:
                pass
            else:
                unready.append(r)
        else:
            result.append(ray.get(r))

assert result == ["a value", 0, 1, 2, 3, 4]
