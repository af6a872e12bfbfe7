"""Each actor of one class may be given other resources than the class says.

The example's class is empty; this one tells what it was given. The three together need six CPUs.
"""

import zray as ray

ray.init(num_cpus=6)


@ray.remote(num_cpus=4)
class Counter(object):  # noqa: UP004 - as the example has it
    def cpus(self):
        return ray.get_runtime_context().get_assigned_resources()["CPU"]


a1 = Counter.options(num_cpus=1).remote()
a2 = Counter.options(num_cpus=2).remote()
a3 = Counter.options(num_cpus=3).remote()
assert ray.get([a.cpus.remote() for a in (a1, a2, a3)]) == [1, 2, 3]
