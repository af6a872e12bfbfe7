"""Five tasks that sleep take as long as one, when there are five CPUs."""

import time

import zray as ray

SECOND = 0.4  # the example sleeps for a whole one

ray.init(num_cpus=5)


def f1():
    time.sleep(SECOND)


@ray.remote
def f2():
    time.sleep(SECOND)


t1 = time.time()
[f1() for _ in range(5)]
t2 = time.time()
print(t2 - t1)

assert ray.get([f2.remote() for _ in range(5)]) == [None] * 5
print(time.time() - t2)  # a fifth of it
