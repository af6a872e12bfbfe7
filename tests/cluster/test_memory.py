"""A worker that takes too much memory is ended before the kernel ends something else; its task has a budget of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import zray as ray

LIMIT_MB = 200


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    limits = {"memory_limit_bytes": LIMIT_MB << 20, "oom_retries_max": 1, "memory_check_ms": 50.0}
    ray.init(num_cpus=2, _system_config=limits)
    yield
    ray.shutdown()


@ray.remote
def hog(megabytes: int, marks: str) -> int:
    """Take memory and keep it until somebody ends this."""
    with open(marks, "a") as file:
        file.write("x")
    held = bytearray(megabytes << 20)
    held[::4096] = b"\1" * len(held[::4096])
    while megabytes > LIMIT_MB:
        pass
    return len(held)


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


def test_a_task_that_takes_too_much_is_ended_retried_and_fails_with_the_figures(tmp_path) -> None:
    marks = tmp_path / "marks"
    figures = rf"of {LIMIT_MB} MiB used; workers: pid \d+: \d+ MiB"
    counts = r"tried 2 time\(s\): 2 time\(s\) memory was short"
    with pytest.raises(ray.exceptions.OutOfMemoryError, match=rf"{figures}[\s\S]*{counts}"):
        ray.get(hog.remote(2 * LIMIT_MB, str(marks)))
    assert marks.read_text() == "xx", "once, and again from the budget for want of memory"
    assert ray.get(add.remote(1, 2)) == 3


def test_a_task_that_must_not_be_retried_is_not(tmp_path) -> None:
    marks = tmp_path / "marks"
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        ray.get(hog.options(max_retries=0).remote(2 * LIMIT_MB, str(marks)))
    assert marks.read_text() == "x"


def test_what_fits_is_left_alone(tmp_path) -> None:
    assert ray.get(hog.remote(LIMIT_MB // 4, str(tmp_path / "marks"))) == (LIMIT_MB // 4) << 20
