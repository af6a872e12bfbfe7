"""Workers that end before they are ready: they are tried again with rests, then what waits fails with the cause."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import zray as ray
from zray.exceptions import ActorDiedError, TaskUnschedulableError

from .driving import PATIENCE_S, eventually

BROKEN = """
import os, sys

def broken(*arguments):
    with open({mark!r} + ".attempts", "a") as file:
        file.write("x")
    raise MemoryError("there is no room for a worker")

def in_child():
    with open("/proc/self/comm") as file:
        forked = file.read().strip() == "zray-zygote"
    if forked and os.path.exists({mark!r}):
        sys.modules["zray.runtime.worker"].TaskExecutor.__init__ = broken

os.register_at_fork(after_in_child=in_child)
"""
CAUSE = "attempts in a row failed; the last one: pid .* exited with code 1; its last words: MemoryError: there is no room"


class Trouble:
    """Workers end before they are ready while a file is there."""

    def __init__(self, path: Path) -> None:
        self._mark = path / "mark"
        self._attempts = path / "mark.attempts"
        (path / "sitecustomize.py").write_text(BROKEN.format(mark=str(self._mark)))

    def begin(self) -> None:
        self._mark.touch()

    def end(self) -> None:
        self._mark.unlink()

    def attempts(self) -> int:
        return len(self._attempts.read_text()) if self._attempts.exists() else 0


@pytest.fixture
def trouble(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    """It has begun; the parameter is how many attempts in a row may fail."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    limits = {"worker_start_failures_max": request.param, "worker_start_rest_ms": 20.0, "worker_start_rest_max_s": 0.1}
    made = Trouble(tmp_path)
    made.begin()
    with ray.init(num_cpus=2, _system_config=limits):
        yield made


@ray.remote
def twice(number: int) -> int:
    return 2 * number


@ray.remote(num_cpus=0)
class Actor:
    def there(self) -> bool:
        return True


@pytest.mark.parametrize("trouble", [4], indirect=True)
def test_tasks_and_actors_fail_with_the_cause_and_work_when_it_is_gone(trouble: Trouble) -> None:
    with pytest.raises(TaskUnschedulableError, match=CAUSE):
        ray.get(twice.remote(1), timeout=PATIENCE_S)
    with pytest.raises(ActorDiedError, match=CAUSE):
        ray.get(Actor.remote().there.remote(), timeout=PATIENCE_S)
    trouble.end()

    def works() -> bool:
        """Attempts that were under way may still fail."""
        try:
            return bool(ray.get(twice.remote(21), timeout=PATIENCE_S) == 42)
        except TaskUnschedulableError:
            return False

    eventually(works, "a worker")
    assert ray.get([twice.remote(number) for number in range(20)], timeout=PATIENCE_S) == list(range(0, 40, 2))
    assert ray.get(Actor.remote().there.remote(), timeout=PATIENCE_S)


@pytest.mark.parametrize("trouble", [10_000], indirect=True)
def test_trouble_that_passes_in_time_costs_only_time(trouble: Trouble) -> None:
    results = [twice.remote(number) for number in range(20)]
    eventually(lambda: trouble.attempts() >= 2, "an attempt or two")
    trouble.end()
    assert ray.get(results, timeout=PATIENCE_S) == list(range(0, 40, 2))
