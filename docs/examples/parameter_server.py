"""A parameter server: one actor holds the weights of a model, workers hold the data and compute gradients.

Synchronously, a step takes the gradients of all workers. Asynchronously, each gradient is applied when it comes, although the
weights may have moved since: no worker waits for a slower one. Weights and gradients never pass through this program.
"""

import random

import zray as ray

START, TRUTH = [0.0, 0.0, 0.0], [3.0, -2.0, 0.5]
STEPS, RATE = 60, 0.3


@ray.remote
class ParameterServer:
    def __init__(self):
        self.weights = START

    def apply(self, *gradients):
        columns = zip(*gradients, strict=True)
        self.weights = [w - RATE * sum(column) / len(column) for w, column in zip(self.weights, columns, strict=True)]
        return self.weights


@ray.remote
class Worker:
    def __init__(self, seed):
        draw = random.Random(seed).gauss
        rows = [[draw(0, 1) for _ in TRUTH] for _ in range(200)]
        self.data = [(row, sum(w * x for w, x in zip(TRUTH, row, strict=True)) + draw(0, 0.01)) for row in rows]

    def gradient(self, weights):
        errors = [(sum(w * x for w, x in zip(weights, row, strict=True)) - y, row) for row, y in self.data]
        return [sum(error * row[i] for error, row in errors) / len(errors) for i in range(len(TRUTH))]


def synchronous(server, workers):
    weights = START
    for _ in range(STEPS):
        weights = server.apply.remote(*[worker.gradient.remote(weights) for worker in workers])
    return ray.get(weights)


def asynchronous(server, workers):
    running = {worker.gradient.remote(START): (worker, STEPS - 1) for worker in workers}
    while running:  # as many steps for each: a slow worker's last gradients are of weights that the others have left behind
        [gradient], _ = ray.wait(list(running))
        worker, left = running.pop(gradient)
        weights = server.apply.remote(gradient)
        running |= {worker.gradient.remote(weights): (worker, left - 1)} if left else {}
    return ray.get(weights)


if __name__ == "__main__":
    with ray.init():
        for train in (synchronous, asynchronous):
            found = train(ParameterServer.remote(), [Worker.remote(seed) for seed in range(3)])
            print(f"{train.__name__:>12}: " + "  ".join(f"{w:+.4f}" for w in found))
            assert all(abs(w - t) < 0.01 for w, t in zip(found, TRUTH, strict=True))
