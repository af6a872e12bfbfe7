"""Ten tasks that sleep take as long as one, when there are ten CPUs."""

import time

import zray as ray

SECOND = 0.2  # the example sleeps for a whole one

ray.init(num_cpus=10)


def f1():
    time.sleep(SECOND)


@ray.remote
def f2():
    time.sleep(SECOND)


start = time.time()
[f1() for _ in range(10)]
print("one after the other:", time.time() - start)

start = time.time()
assert ray.get([f2.remote() for _ in range(10)]) == [None] * 10
print("at once:", time.time() - start)
