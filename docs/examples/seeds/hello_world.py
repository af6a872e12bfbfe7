"""Four tasks in parallel, and their results in order."""

import time

import zray as ray

SECOND = 0.1  # the example sleeps for a whole one

ray.init()


@ray.remote
def f(x):
    time.sleep(SECOND)
    return x


result_ids = []
for i in range(4):
    result_ids.append(f.remote(i))  # noqa: PERF401 - as the example has it

results = ray.get(result_ids)
print(results)
assert results == [0, 1, 2, 3]
