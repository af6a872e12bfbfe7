"""No more than a few calls wait at the actor at any time: ray.wait holds the caller back.

The example prints the references too.
"""

import time

import zray as ray

SECOND = 0.005  # the example sleeps for a whole one


@ray.remote(num_cpus=1)
class Actor:
    def time_sleep(self):
        time.sleep(SECOND)


actor = Actor.remote()
task_limit = 4
result_refs = []
for i in range(100):
    if len(result_refs) > task_limit:
        num_ready = i - task_limit
        ready, _ = ray.wait(result_refs, num_returns=num_ready)
        assert len(ready) == num_ready
    result_refs.append(actor.time_sleep.remote())

print(len(result_refs))
assert ray.get(result_refs) == [None] * 100
