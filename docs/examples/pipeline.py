"""A pipeline of actors joined by bounded queues: the slowest stage sets the pace, and no queue grows beyond its bound.

A queue is an actor too. Whoever has it may put and get, wherever that runs; a put into a full one waits.
"""

import re

import zray as ray
from zray.util.queue import Queue

PAGES = [f"<p>page <b>{number}</b> is {'odd' if number % 2 else 'even'}</p>" for number in range(200)]
BOUND = 8
END = None


def without_tags(text):
    return re.sub(r"<[^>]+>", "", text)


def words(text):
    return text.split()


@ray.remote
def feed(queue):
    for page in [*PAGES, END]:
        queue.put(page)


@ray.remote
class Stage:
    """Takes from one queue and puts into the next, until the end comes, which it passes on."""

    def __init__(self, function, source, target):
        self.function, self.source, self.target = function, source, target

    def run(self):
        done = 0
        while (item := self.source.get()) is not END:
            self.target.put(self.function(item))
            done += 1
        self.target.put(END)
        return done


if __name__ == "__main__":
    with ray.init():
        first, second, last = queues = [Queue(maxsize=BOUND) for _ in range(3)]
        stages = [Stage.remote(without_tags, first, second), Stage.remote(words, second, last)]
        running = [feed.remote(first), *[stage.run.remote() for stage in stages]]
        found, fullest = [], 0
        while (item := last.get()) is not END:
            found.append(item)
            fullest = max(fullest, *(queue.qsize() for queue in queues))
        assert ray.get(running) == [None, len(PAGES), len(PAGES)]
        assert found == [words(without_tags(page)) for page in PAGES]
        assert fullest <= BOUND
        print(f"{len(found)} pages, the last one {found[-1]}, with at most {BOUND} in a queue")
