"""A generator that is cancelled: whoever takes its next item gets a TaskCancelledError."""

import itertools
import time

import zray as ray
from zray.exceptions import TaskCancelledError


@ray.remote
def f():
    for i in itertools.count():
        time.sleep(0.01)
        yield i


gen = f.remote()
assert ray.get(next(gen)) == 0
ray.cancel(gen)
try:
    while True:
        ray.get(next(gen))
except TaskCancelledError:
    print("cancelled")
