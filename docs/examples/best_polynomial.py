"""An experiment with experiments inside: which degree of polynomial fits noisy points best, by cross-validation.

One task per degree starts one task per fold and waits for them. A task that waits lends its CPU to others, so nested tasks
can not starve each other, however few CPUs there are.
"""

import math
import random

import zray as ray

FOLDS = 5
DEGREES = range(1, 8)


def points():
    noise = random.Random(7).gauss
    return [(x / 30, math.sin(x / 10) + noise(0, 0.2)) for x in range(60)]


def fit(data, degree):
    """Least squares by the normal equations, solved by elimination."""
    n = degree + 1
    rows = [[sum(x ** (i + j) for x, _ in data) for j in range(n)] + [sum(y * x**i for x, y in data)] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def fold_error(data, degree, fold):
    weights = fit([p for k, p in enumerate(data) if k % FOLDS != fold], degree)
    held_out = data[fold::FOLDS]
    return sum((y - sum(w * x**i for i, w in enumerate(weights))) ** 2 for x, y in held_out)


fold_task = ray.remote(fold_error)


@ray.remote
def degree_error(data, degree):
    return sum(ray.get([fold_task.remote(data, degree, fold) for fold in range(FOLDS)]))


if __name__ == "__main__":
    with ray.init():
        data = ray.put(points())  # once, for all tasks
        errors = ray.get([degree_error.remote(data, degree) for degree in DEGREES])
    assert errors == [sum(fold_error(points(), degree, fold) for fold in range(FOLDS)) for degree in DEGREES]
    for degree, error in zip(DEGREES, errors, strict=True):
        print(f"degree {degree}: error {error:8.3f}{'   <- best' if error == min(errors) else ''}")
