"""Four actors of one class, each with a state of its own."""

import zray as ray

ray.init()


@ray.remote
class Counter(object):  # noqa: UP004 - as the example has it
    def __init__(self):
        self.n = 0

    def increment(self):
        self.n += 1

    def read(self):
        return self.n


counters = [Counter.remote() for i in range(4)]
[c.increment.remote() for c in counters]
refs = [c.read.remote() for c in counters]
print(ray.get(refs))
assert ray.get(refs) == [1, 1, 1, 1]
