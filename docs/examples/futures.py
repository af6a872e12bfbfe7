"""The interface of concurrent.futures: results, callbacks, a deadline, cancelling, and an input without an end.

Here the next prime is looked for after several numbers; the program would be the same with a ProcessPoolExecutor.
"""

import itertools
from concurrent import futures

import zray as ray
from zray.util import Executor


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def next_prime(number):
    return next(candidate for candidate in itertools.count(number + 1) if is_prime(candidate))


def main():
    starts = [10**6, 10**7, 10**8]
    with Executor() as executor:
        under_way = {executor.submit(next_prime, start): start for start in starts}
        seen = []
        for future in under_way:
            future.add_done_callback(lambda done: seen.append(done.result()))
        for future in futures.as_completed(under_way, timeout=60):  # in whatever order
            print(f"{under_way[future]:>11,} -> {future.result():,}")

        try:
            executor.submit(next_prime, "ten").result()
        except TypeError as error:  # the function's own exception; its cause has the worker's traceback
            print("refused:", error)

        # The primes below come from a search without an end, of which only so much is under way as the buffer says.
        found = executor.map(next_prime, itertools.count(0, 100), chunksize=10, buffersize=4)
        first = list(itertools.islice(found, 50))
        found.close()
        assert first[:3] == [2, 101, 211]
        assert first == [next_prime(start) for start in range(0, 5000, 100)]

        queue = [executor.submit(next_prime, 10**9 + i) for i in range(1000)]
        cancelled = sum(future.cancel() for future in reversed(queue))
        print(f"{cancelled} of {len(queue)} calls were cancelled before they began")
        assert cancelled > 0
    assert sorted(seen) == [1000003, 10000019, 100000007]


if __name__ == "__main__":
    with ray.init():
        main()
