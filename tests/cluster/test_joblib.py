"""joblib's Parallel on zray: what comes back, what fails, and that large arrays travel once."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zray as ray
from zray.util.joblib import Arrays, register_ray, register_zray

from .driving import eventually
from .gates import Gate, through

joblib = pytest.importorskip("joblib", reason="joblib is not installed: pip install 'zray[joblib]'")
numpy = pytest.importorskip("numpy")
from joblib import Parallel, delayed, parallel_config  # noqa: E402 - only where it is installed

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(autouse=True)
def backend(cluster: Any) -> Iterator[None]:
    register_zray()
    with parallel_config(backend="zray"):
        yield


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(str(tmp_path / "gate"))
    yield gate
    gate.open()


def pid_and_double(value: int) -> tuple[int, int]:
    return os.getpid(), 2 * value


def fail_at(bad: int, value: int) -> int:
    if value == bad:
        raise KeyError(value)
    return value


def facts(array: Any) -> Any:
    return float(array.sum()), array.flags.writeable, type(array).__name__


def inner(count: int) -> list[int]:
    return list(Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(count)))


@pytest.mark.processes("it compares processes")
@pytest.mark.parametrize("n_jobs", [2, -1, None])
def test_results_come_in_order_from_other_processes(n_jobs: int | None) -> None:
    found = Parallel(n_jobs=n_jobs)(delayed(pid_and_double)(i) for i in range(300))
    assert [value for _, value in found] == [2 * i for i in range(300)]
    assert os.getpid() not in {pid for pid, _ in found}


def test_one_job_runs_here() -> None:
    assert Parallel(n_jobs=1)(delayed(pid_and_double)(i) for i in range(3)) == [(os.getpid(), 2 * i) for i in range(3)]


@pytest.mark.parametrize("how", ["generator", "generator_unordered"])
def test_results_as_they_come(how: str) -> None:
    found = Parallel(n_jobs=2, return_as=how)(delayed(abs)(-i) for i in range(50))
    assert sorted(found) == list(range(50))


def test_one_parallel_for_several_calls() -> None:
    with Parallel(n_jobs=2) as parallel:
        for _ in range(3):
            assert parallel(delayed(abs)(-i) for i in range(20)) == list(range(20))


def test_parallel_in_parallel() -> None:
    assert Parallel(n_jobs=2)(delayed(inner)(i) for i in range(6)) == [list(range(i)) for i in range(6)]


def test_an_error_ends_the_call_and_nothing_else() -> None:
    for _ in range(3):
        with pytest.raises(KeyError, match="7"):
            Parallel(n_jobs=2)(delayed(fail_at)(7, i) for i in range(1000))
        assert Parallel(n_jobs=2)(delayed(fail_at)(-1, i) for i in range(20)) == list(range(20))


def test_time_that_runs_out(gate: Gate) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(n_jobs=2, timeout=0.05)(delayed(through)(gate, i) for i in range(4))
    gate.open()
    assert Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(20)) == list(range(20))


def test_options_of_the_tasks() -> None:
    with parallel_config(backend="zray", n_jobs=3, num_cpus=0, max_retries=0):
        assert Parallel()(delayed(abs)(-i) for i in range(20)) == list(range(20))
    with parallel_config(backend="zray", n_jobs=3, num_cpu=0):
        with pytest.raises(ValueError, match="num_cpu"):
            Parallel()(delayed(abs)(-i) for i in range(20))
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(abs)(-i) for i in range(20))


def test_large_arrays_are_put_once(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = numpy.ones(1 << 18), numpy.ones(10)
    puts = []
    put = ray.put

    def counted(value: Any) -> Any:
        puts.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", counted)
    found = Parallel(n_jobs=2)(delayed(facts)(large if i % 2 else small) for i in range(20))
    assert found == [(float(1 << 18), False, "ndarray") if i % 2 else (10.0, False, "ndarray") for i in range(20)]
    assert [value is large for value in puts] == [True]
    assert Parallel(n_jobs=2)(delayed(facts)(array=large) for _ in range(3)) == [(float(1 << 18), False, "ndarray")] * 3
    assert len(puts) == 2, "what one call shared is not kept for the next"
    Parallel(n_jobs=2, max_nbytes=None)(delayed(facts)(large) for _ in range(3))
    assert len(puts) == 2
    Parallel(n_jobs=2, max_nbytes=50)(delayed(facts)(small) for _ in range(3))
    assert len(puts) == 3


def test_what_is_not_a_batch_of_joblibs_is_left_alone() -> None:
    batch = object()
    assert Arrays().shared_by(batch) is batch


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    for _ in range(3):
        Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(20))
    eventually(lambda: threading.active_count() <= before, "the threads of the executors end")


def test_without_joblib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    for register in (register_zray, register_ray):
        with pytest.raises(ImportError, match=r"joblib is not installed: pip install 'zray\[joblib\]'"):
            register()


def test_the_name_it_had_in_ray() -> None:
    register_ray()
    with parallel_config(backend="ray", n_jobs=2):
        assert Parallel()(delayed(abs)(-i) for i in range(20)) == list(range(20))


def test_a_grid_search_of_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    dice = numpy.random.default_rng(1)
    points = dice.normal(size=(200, 700))
    sides = (points[:, 0] > 0).astype(int)
    search = GridSearchCV(LogisticRegression(), {"C": [0.0001, 0.01, 1.0]}, cv=2)
    search.fit(points, sides)
    with parallel_config(backend="sequential"):
        alone = GridSearchCV(LogisticRegression(), {"C": [0.0001, 0.01, 1.0]}, cv=2).fit(points, sides)
    assert search.best_params_ == alone.best_params_
    assert search.cv_results_["mean_test_score"] == pytest.approx(alone.cv_results_["mean_test_score"])
