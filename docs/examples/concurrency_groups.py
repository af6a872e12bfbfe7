"""An actor with two groups of threads: long computations in one, quick questions in another, which never wait behind them.

Calls without a group share one thread of their own. Threads share the state of the actor, so what both groups write needs a lock.
"""

import threading

import zray as ray


@ray.remote(concurrency_groups={"compute": 1, "io": 2})
class Search:
    """Looks for the longest chain of n -> n/2 or 3n+1 until it is told to stop."""

    def __init__(self):
        self.lock = threading.Lock()
        self.best = (0, 1)
        self.tried = 0
        self.enough = threading.Event()

    @ray.method(concurrency_group="compute")
    def run(self):
        while not self.enough.is_set():
            length = self.chain(self.tried + 1)
            with self.lock:
                self.tried += 1
                self.best = max(self.best, (length, -self.tried))
        return self.tried

    def chain(self, n):
        length = 1
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            length += 1
        return length

    @ray.method(concurrency_group="io")
    def look(self):
        with self.lock:
            return self.tried, self.best[0], -self.best[1]

    @ray.method(concurrency_group="io")
    def stop(self):
        self.enough.set()


if __name__ == "__main__":
    with ray.init():
        search = Search.remote()
        running = search.run.remote()
        tried = 0
        while tried < 20_000:  # each answer comes while run() computes
            tried, length, start = ray.get(search.look.remote())
        ray.get(search.stop.remote())
        total = ray.get(running)
        _, length, start = ray.get(search.look.options(concurrency_group="compute").remote())  # groups can be chosen per call
        assert total >= tried
        assert ray.get(search.chain.remote(start)) == length >= 279  # which is that of 17,647, the longest below 20,000
        print(f"tried 1 to {total:,}: the chain from {start:,} has {length} numbers")
