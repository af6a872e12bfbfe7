"""Pi by throwing darts: independent tasks, each with a seed of its own, so that the answer is the same every time."""

import math
import random

import zray as ray

TASKS = 20
DARTS_PER_TASK = 50_000


def hits(seed):
    """How many darts thrown at the unit square fall into the quarter circle."""
    uniform = random.Random(seed).random
    return sum(uniform() ** 2 + uniform() ** 2 <= 1.0 for _ in range(DARTS_PER_TASK))


def main():
    throw = ray.remote(hits)
    refs = [throw.remote(seed) for seed in range(TASKS)]
    done, total = 0, 0
    while refs:  # take results as they come, in whatever order
        ready, refs = ray.wait(refs)
        total += ray.get(ready[0])
        done += 1
        if done % 5 == 0:
            print(f"after {done * DARTS_PER_TASK:>9,} darts: {4 * total / (done * DARTS_PER_TASK):.5f}")

    assert total == sum(hits(seed) for seed in range(TASKS)), "the workers threw other darts"
    assert abs(4 * total / (TASKS * DARTS_PER_TASK) - math.pi) < 0.01
    print(f"                    pi is: {math.pi:.5f}")


if __name__ == "__main__":
    with ray.init():
        main()
