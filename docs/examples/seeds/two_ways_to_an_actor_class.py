"""A class becomes an actor class by the decorator, or by a call.

The example shows the first way twice, the second time with the call after it; a class can be made one only once.
"""

import zray as ray


@ray.remote
class Counter(object):  # noqa: UP004 - as the example has it
    def __init__(self):
        self.value = 0

    def read(self):
        return self.value


counter_actor = Counter.remote()
assert ray.get(counter_actor.read.remote()) == 0


class Counter(object):  # noqa: UP004
    def __init__(self):
        self.value = 0

    def read(self):
        return self.value


Counter = ray.remote(Counter)

counter_actor = Counter.remote()
assert ray.get(counter_actor.read.remote()) == 0
