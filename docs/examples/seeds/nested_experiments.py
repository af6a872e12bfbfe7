"""Tasks that start tasks: five experiments of ten parts each."""

import zray as ray


@ray.remote
def sub_experiment(i, j):
    return i + j


@ray.remote
def run_experiment(i):
    sub_results = []
    for j in range(10):
        sub_results.append(sub_experiment.remote(i, j))  # noqa: PERF401 - as the example has it
    return sum(ray.get(sub_results))


results = [run_experiment.remote(i) for i in range(5)]
assert ray.get(results) == [45, 55, 65, 75, 85]
