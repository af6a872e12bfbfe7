"""The product waits for both factors, which are made in parallel."""

import sys

try:
    import numpy as np
except ModuleNotFoundError:
    print("skipped: this example needs numpy")
    sys.exit(0)

import zray as ray


@ray.remote
def create_matrix(size):
    return np.random.normal(size=size)


@ray.remote
def multiply_matrices(x, y):
    return np.dot(x, y)


x_id = create_matrix.remote([1000, 1000])
y_id = create_matrix.remote([1000, 1000])
z_id = multiply_matrices.remote(x_id, y_id)

z = ray.get(z_id)
assert np.allclose(z, np.dot(ray.get(x_id), ray.get(y_id)))
