"""The interface of multiprocessing.Pool: processes that are prepared once, by an initializer, and then serve many calls.

Here each has a table of word lengths in a global variable, as a forked process would have it.
"""

import random

import zray as ray
from zray.util.multiprocessing import Pool

table = None


def prepare(seed, size):
    """In each process, when it starts."""
    global table
    letters = random.Random(seed)
    table = {number: "".join(letters.choices("abcde", k=letters.randrange(1, 9))) for number in range(size)}


def length(number):
    return len(table[number])


def joined(first, second):
    return table[first] + table[second]


def main():
    size = 2000
    with Pool(2, prepare, (7, size), maxtasksperchild=100) as pool:
        lengths = pool.map(length, range(size))
        pairs = pool.starmap(joined, [(number, number + 1) for number in range(10)])
        total = sum(pool.imap_unordered(length, range(size), chunksize=200))
        longest = pool.apply_async(max, (lengths,), callback=lambda value: print("the longest has", value, "letters"))
        assert longest.get(timeout=60) == max(lengths)
        pool.close()
        pool.join()
    assert table is None, "it is filled in the processes of the pool, not here"
    prepare(7, size)
    assert lengths == [length(number) for number in range(size)]
    assert pairs == [joined(number, number + 1) for number in range(10)]
    assert total == sum(lengths)
    print(f"{size} words have {total} letters")


if __name__ == "__main__":
    with ray.init():
        main()
