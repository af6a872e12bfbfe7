"""Bodies of the cases about the standard interfaces: Executor, Pool and joblib, beside the originals."""

import importlib
import time
from contextlib import contextmanager

from benchmarks import stopwatch, tasks
from benchmarks.case import Skipped
from benchmarks.engine import CPUS

BATCH = 10_000
INTS = 1_000_000
CHUNKS = 4 * CPUS
NAPS = 2_000
BURST_S = 0.001


@contextmanager
def _executor(engine):
    """The engine's executor; those of the standard library are the engine itself."""
    if hasattr(engine, "executor"):
        yield engine.executor
    else:
        from zray.util import Executor

        with Executor(CPUS) as executor:
            yield executor


@contextmanager
def _pool(engine):
    if hasattr(engine, "pool"):
        yield engine.pool
    else:
        with importlib.import_module(f"{engine.name}.util.multiprocessing").Pool(CPUS) as pool:
            pool.map(tasks.successor, range(CPUS))
            yield pool


def executor_sync(engine, seconds):
    with _executor(engine) as executor:
        return {"executor_sync": stopwatch.run(lambda: executor.submit(tasks.nop).result(), seconds).rate}


def executor_async(engine, seconds):
    def one_round():
        for future in [executor.submit(tasks.nop) for _ in range(BATCH)]:
            future.result()

    with _executor(engine) as executor:
        return {"executor_async": stopwatch.run(one_round, seconds).rate * BATCH}


def executor_map(engine, seconds):
    def one_round():
        for _ in executor.map(tasks.successor, range(BATCH), chunksize=100):
            pass

    with _executor(engine) as executor:
        return {"executor_map": stopwatch.run(one_round, seconds).rate * BATCH}


def pool_map(engine, seconds):
    numbers = list(range(INTS))
    with _pool(engine) as pool:
        timing = stopwatch.run(lambda: pool.map(tasks.successor, numbers, INTS // CHUNKS), seconds)
    return {"pool_map": timing.rate * INTS / 1e6}


def pool_imap(engine, seconds):
    def one_round():
        for _ in pool.imap(tasks.successor, range(BATCH)):
            pass

    with _pool(engine) as pool:
        return {"pool_imap": stopwatch.run(one_round, seconds).rate * BATCH}


def joblib_bursts(engine, seconds):
    """joblib on zray and on loky, its own processes, in one session: each is a call of Parallel with short tasks."""
    try:
        import joblib
    except ImportError as error:
        raise Skipped(str(error)) from error
    importlib.import_module("zray.util.joblib").register_zray()
    rates = {}
    for backend in ("zray", "loky"):
        with joblib.parallel_config(backend=backend, n_jobs=CPUS):
            _parallel(joblib)  # starts processes, and imports what they need
            rates[backend] = max(_parallel(joblib) for _ in range(3))
    return {"joblib": rates["zray"], "joblib_loky": rates["loky"], "joblib_of_loky": rates["zray"] / rates["loky"]}


def _parallel(joblib):
    started = time.perf_counter()
    joblib.Parallel()(joblib.delayed(tasks.burst)(BURST_S) for _ in range(NAPS))
    return NAPS / (time.perf_counter() - started)
