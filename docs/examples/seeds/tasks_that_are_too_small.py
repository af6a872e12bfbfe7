"""Ten thousand tiny tasks, one after the other: it works, and a plain loop is faster."""

import zray as ray


@ray.remote
def double(number):
    return number * 2


numbers = list(range(10000))

doubled_numbers = []
for i in numbers:
    doubled_numbers.append(ray.get(double.remote(i)))  # noqa: PERF401 - as the example has it

assert doubled_numbers == [2 * number for number in numbers]
