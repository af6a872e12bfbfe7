"""Three tasks are given a handle of one actor and call it; this program watches it count.

The actor holds two CPUs and each task one, so there must be five for all to run at once.
"""

import time

import zray as ray

SECOND = 0.05  # the example sleeps for a whole one

ray.init(num_cpus=5)


@ray.remote(num_cpus=2)
class Counter:
    def __init__(self):
        self.value = 0

    def increment(self):
        self.value += 1
        return self.value

    def get_counter(self):
        return self.value


@ray.remote
def f(counter):
    for _ in range(10):
        time.sleep(SECOND)
        counter.increment.remote()


counter = Counter.options(name="demo").remote()
refs = [f.remote(counter) for _ in range(3)]
for _ in range(10):
    time.sleep(SECOND)
    print(ray.get(counter.get_counter.remote()))

ray.get(refs)  # then all calls are submitted, and the last of them may still be on their way
while ray.get(counter.get_counter.remote()) < 30:
    pass
assert ray.get(counter.get_counter.remote()) == 30
