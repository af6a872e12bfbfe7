"""The result of one task is the argument of another: fetching it in between works too, and costs a copy."""

import zray as ray


@ray.remote
def generate_array(num):
    return range(num)


@ray.remote
def sum_array(array):
    return sum(array)


array1 = ray.get(generate_array.remote(10))
print(array1)
assert ray.get(sum_array.remote(array1)) == 45

array1 = generate_array.remote(10)
print(array1)
assert ray.get(sum_array.remote(array1)) == 45
