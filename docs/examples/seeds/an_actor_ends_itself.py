"""An actor that ends itself finishes what was submitted before; what is submitted later fails.

The example's class has shutdown() only.
"""

import zray as ray


@ray.remote
class Counter(object):  # noqa: UP004 - as the example has it
    def increment(self):
        return "finished"

    def shutdown(self):
        ray.actor.exit_actor()


counter = Counter.remote()
before = [counter.increment.remote() for _ in range(3)]
end = counter.shutdown.remote()
assert ray.get(before) == ["finished"] * 3

for ref in (end, counter.increment.remote()):
    try:
        ray.get(ref)
    except ray.exceptions.ActorDiedError as error:
        print(type(error).__name__)
    else:
        raise AssertionError("the actor should be gone")
