"""A hundred arrays are added up two by two."""

import sys

try:
    import numpy as np
except ModuleNotFoundError:
    print("skipped: this example needs numpy")
    sys.exit(0)

import zray as ray


@ray.remote
def generate_data():
    return np.random.normal(size=1000)


@ray.remote
def aggregate_data(x, y):
    return x + y


data = [generate_data.remote() for _ in range(100)]
parts = ray.get(data)

while len(data) > 1:
    data.append(aggregate_data.remote(data.pop(0), data.pop(0)))

(total,) = ray.get(data)
assert total.shape == (1000,)
assert np.allclose(total, sum(parts))
