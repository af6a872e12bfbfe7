"""An actor keeps its state between calls, and runs the calls of one caller in order."""

import time

import zray as ray

SECOND = 0.05  # the example sleeps for a whole one


@ray.remote
class Counter(object):  # noqa: UP004 - as the example has it
    def __init__(self):
        self.value = 0

    def increment(self):
        time.sleep(SECOND)
        self.value += 1
        return self.value


counter = Counter.remote()
r1 = [counter.increment.remote() for _ in range(5)]
print(ray.get(r1))
assert ray.get(r1) == [1, 2, 3, 4, 5]
