"""Two tasks take work from one queue until it has been empty for a while."""

import zray as ray
from zray.util.queue import Empty, Queue

SECOND = 0.2  # the example waits for a whole one

ray.init()
queue = Queue(maxsize=100)


@ray.remote
def consumer(id, queue):
    try:
        while True:
            next_item = queue.get(block=True, timeout=SECOND)
            print(f"consumer {id} got work {next_item}")
    except Empty:
        pass


[queue.put(i) for i in range(10)]
consumers = [consumer.remote(id, queue) for id in range(2)]
assert ray.get(consumers) == [None, None]
assert queue.empty()
