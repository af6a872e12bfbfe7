"""A hundred tasks of a hundred numbers each instead of ten thousand of one."""

import zray as ray


@ray.remote
def double_list(list_of_numbers):
    return [number * 2 for number in list_of_numbers]


numbers = list(range(10000))
doubled_list_refs = []
BATCH_SIZE = 100
for i in range(0, len(numbers), BATCH_SIZE):
    batch = numbers[i : i + BATCH_SIZE]
    doubled_list_refs.append(double_list.remote(batch))

doubled = sum(ray.get(doubled_list_refs), [])  # noqa: RUF017 - as the example has it
assert doubled == [2 * number for number in numbers]
