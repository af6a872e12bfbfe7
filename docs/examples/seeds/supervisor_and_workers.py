"""A tree of actors: a supervisor starts three workers and hands them their work. They ask for four CPUs in all."""

import time

import zray as ray

SECOND = 0.1  # the example sleeps for a whole one


@ray.remote(num_cpus=1)
class Worker:
    def work(self):
        time.sleep(SECOND)
        return "end"


@ray.remote(num_cpus=1)
class Supervisor:
    def __init__(self):
        self.workers = [Worker.remote() for _ in range(3)]

    def work(self):
        return ray.get([w.work.remote() for w in self.workers])


ray.init(num_cpus=4)
sup = Supervisor.remote()
print(ray.get(sup.work.remote()))
assert ray.get(sup.work.remote()) == ["end", "end", "end"]
