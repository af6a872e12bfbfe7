"""The mean of many large arrays, by a tree of reductions. The arrays never leave shared memory.

Each task reads its arguments as views of shared memory and writes its result there; only references pass through this
program until the last line.
"""

import sys

import zray as ray

try:
    import numpy
except ModuleNotFoundError:
    print("skipped: this example needs numpy")
    sys.exit(0)

IMAGES = 32
SHAPE = (512, 512)


def image(number):
    return numpy.random.default_rng(number).integers(0, 256, SHAPE).astype(numpy.float64)


def main():
    make = ray.remote(image)
    add = ray.remote(numpy.add)
    layer = [make.remote(number) for number in range(IMAGES)]
    while len(layer) > 1:
        pairs = zip(layer[::2], layer[1::2], strict=True)  # IMAGES is a power of two
        layer = [add.remote(left, right) for left, right in pairs]
    total = ray.get(layer[0])

    assert not total.flags.writeable  # objects are immutable: it is a view of shared memory
    plain = sum(image(number) for number in range(IMAGES))
    assert numpy.array_equal(total, plain)
    print(f"the mean of {IMAGES} images of {SHAPE[0]} x {SHAPE[1]} is {(total / IMAGES).mean():.3f}")


if __name__ == "__main__":
    with ray.init():
        main()
