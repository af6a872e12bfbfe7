"""An actor that holds two CPUs and a GPU for as long as it lives. The node is told here that it has them.

The example's class is empty; this one tells which GPU it was given.
"""

import zray as ray

ray.init(num_cpus=2, num_gpus=1)


@ray.remote(num_cpus=2, num_gpus=1)
class GPUActor(object):  # noqa: UP004 - as the example has it
    def gpus(self):
        return ray.get_gpu_ids()


actor = GPUActor.remote()
gpus = ray.get(actor.gpus.remote())
print(gpus)
assert len(gpus) == 1
