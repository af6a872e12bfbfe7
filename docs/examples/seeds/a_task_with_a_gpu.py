"""A task that asks for a CPU and a GPU. GPUs are counted resources: the node is told here that it has one."""

import zray as ray

ray.init(num_gpus=1)


@ray.remote(num_cpus=1, num_gpus=1)
def f():
    return 1


print(ray.get(f.remote()))
assert ray.get(f.remote()) == 1
