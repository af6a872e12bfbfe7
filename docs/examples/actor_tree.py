"""A tree of actors: a supervisor makes its workers, hands out work, and replaces those that die. When it goes, they go too.

The workers belong to the supervisor, since it made them: they end with it, even while others hold handles of them.
"""

import os
import threading

import zray as ray


@ray.remote
class Worker:
    def count_letters(self, word):
        if not word.isalpha():
            os._exit(1)  # stands for whatever may crash a process
        return len(word)

    def wait_for_ever(self):
        threading.Event().wait()


@ray.remote
class Supervisor:
    def __init__(self, workers):
        self.idle = [Worker.remote() for _ in range(workers)]

    def count_letters(self, words):
        """One word at a time to each worker; where a worker dies of a word, the count is None."""
        counts, left, running = {}, list(words), {}
        while left or running:
            while left and self.idle:
                worker, word = self.idle.pop(), left.pop()
                running[worker.count_letters.remote(word)] = worker, word
            [ref], _ = ray.wait(list(running))
            worker, word = running.pop(ref)
            try:
                counts[word] = ray.get(ref)
            except ray.exceptions.ActorDiedError:
                counts[word], worker = None, Worker.remote()
            self.idle.append(worker)
        return counts

    def workers(self):
        return self.idle


if __name__ == "__main__":
    with ray.init():
        supervisor = Supervisor.remote(3)
        counts = ray.get(supervisor.count_letters.remote(["one", "two", "b@d", "three", "four"]))
        assert counts == {"one": 3, "two": 3, "b@d": None, "three": 5, "four": 4}
        print(f"{counts}: a worker died and was replaced")
        waiting = [worker.wait_for_ever.remote() for worker in ray.get(supervisor.workers.remote())]
        ray.kill(supervisor)
        for ref in waiting:
            try:
                raise AssertionError(f"it outlived its supervisor, and returned {ray.get(ref)}")
            except ray.exceptions.ActorDiedError:
                print("a worker went with its supervisor")
