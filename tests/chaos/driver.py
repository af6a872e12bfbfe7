"""A driver that does work whose answer is known, round after round: ``driver.py HOME SEED``.

It joins the node whose sessions lie in HOME, and prints a line of JSON for each round: the kind of work, how long it took, and
``exact``, the type of a documented error, or what was wrong. It ends when its standard input is closed.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

import zray as ray
from zray.exceptions import ActorDiedError, NodeDiedError, RayActorError, RayError

BLOCKS = 8
PARTS = 3
NUMBERS = 30_000  # 240 kB: too many for a message
ROUND_S = 60.0  # whoever waits longer than this waits for ever
NODE_DIED = 3


def numbers(seed: int, number: int) -> Any:
    return np.random.default_rng([seed, number]).integers(0, 1 << 40, NUMBERS)


@ray.remote(max_retries=-1)
def block(seed: int, number: int) -> Any:
    return numbers(seed, number)


@ray.remote(max_retries=-1)
def ordered(values: Any) -> Any:
    return np.sort(values)


@ray.remote(max_retries=-1)
def merged(left: Any, right: Any) -> Any:
    return np.sort(np.concatenate([left, right]), kind="stable")


def sort(rng: random.Random) -> str:
    """Blocks are made, sorted and merged in pairs."""
    seed = rng.getrandbits(30)
    parts = [ordered.remote(block.remote(seed, number)) for number in range(BLOCKS)]
    while len(parts) > 1:
        parts = [merged.remote(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    expected = np.sort(np.concatenate([numbers(seed, number) for number in range(BLOCKS)]))
    return "exact" if np.array_equal(ray.get(parts[0], timeout=ROUND_S), expected) else "wrong: not sorted"


@ray.remote(max_retries=-1, num_returns=PARTS)
def split(seed: int, number: int) -> tuple[Any, ...]:
    values = numbers(seed, number)
    return tuple(values[values % PARTS == part] for part in range(PARTS))


@ray.remote(max_retries=-1)
def total(*parts: Any) -> int:
    return int(sum(part.sum() for part in parts))


def map_reduce(rng: random.Random) -> str:
    """Each block is split by remainder, and the remainders are summed over all blocks."""
    seed = rng.getrandbits(30)
    rows = [split.remote(seed, number) for number in range(BLOCKS)]
    sums = ray.get([total.remote(*(row[part] for row in rows)) for part in range(PARTS)], timeout=ROUND_S)
    whole = np.concatenate([numbers(seed, number) for number in range(BLOCKS)])
    expected = [int(whole[whole % PARTS == part].sum()) for part in range(PARTS)]
    return "exact" if sums == expected else f"wrong: {sums} for {expected}"


@ray.remote(max_retries=-1, num_cpus=0.5)
def tree(low: int, high: int) -> int:
    """The sum of a range, by tasks that call tasks."""
    if high - low <= 4:
        return sum(range(low, high))
    middle = (low + high) // 2
    return sum(ray.get([tree.remote(low, middle), tree.remote(middle, high)]))


def nested(rng: random.Random) -> str:
    high = rng.randint(20, 60)
    answer = ray.get(tree.remote(0, high), timeout=ROUND_S)
    return "exact" if answer == sum(range(high)) else f"wrong: {answer} for {sum(range(high))}"


@ray.remote(max_restarts=-1, num_cpus=0)
class Counting:
    """Counts its calls, from one for each of its processes."""

    def __init__(self) -> None:
        self.calls = 0

    def call(self) -> tuple[int, int]:
        self.calls += 1
        return os.getpid(), self.calls

    def square(self, number: int) -> Any:
        return np.full(NUMBERS, number * number)


def counters(rng: random.Random) -> str:
    """Each process of an actor counts without a gap what it ran; calls that must not be lost are not."""
    actors = [Counting.remote() for _ in range(3)]
    plain = [(n, actor.call.remote()) for _ in range(20) for n, actor in enumerate(actors)]
    again = [actor.square.options(max_task_retries=-1).remote(i) for i, actor in enumerate(actors * 3)]
    seen: dict[tuple[int, int], list[int]] = {}
    lost: Counter[str] = Counter()
    for number, ref in plain:
        try:
            pid, calls = ray.get(ref, timeout=ROUND_S)
            seen.setdefault((number, pid), []).append(calls)
        except RayActorError as error:
            lost[type(error).__name__] += 1
    for counts in seen.values():
        if counts != sorted(set(counts)):
            return f"wrong: one process counted {counts}"
    if not lost and any(counts != list(range(1, 21)) for counts in seen.values()):
        return f"wrong: {seen} with no error"
    values = [int(value[-1]) for value in ray.get(again, timeout=ROUND_S)]
    if values != [i * i for i in range(len(again))]:
        return f"wrong: {values}"
    return "exact" if not lost else ", ".join(lost)


WORK = (sort, map_reduce, nested, counters)


def main() -> int:
    home, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    try:
        ray.init(address="auto", _temp_dir=home)
    except (ConnectionError, NodeDiedError, RayError) as error:
        print(json.dumps({"work": "init", "outcome": type(error).__name__}), flush=True)
        return NODE_DIED
    while not select.select([sys.stdin], [], [], 0.0)[0]:
        work = rng.choice(WORK)
        started = time.monotonic()
        try:
            outcome = work(rng)
        except NodeDiedError:
            return NODE_DIED
        except ActorDiedError as error:  # the cluster may know sooner than this process that its node is dead
            outcome = "ActorDiedError" if "its job ended" in str(error) else f"wrong: {error}"
        except Exception as error:
            outcome = f"wrong: {type(error).__name__}: {error}"
        print(json.dumps({"work": work.__name__, "outcome": outcome, "s": time.monotonic() - started}), flush=True)
    ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
