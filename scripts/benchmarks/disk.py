"""Bodies of the cases about objects that go to disk and come back."""

import os
import shutil
import tempfile
import time

from benchmarks import tasks

STORE = 400_000_000
SIZE = 20_000_000
COUNT = 80  # four times the store


def spill(engine, seconds):
    """Puts of four times the store, and gets of what is on disk by then, beside plain copies of files as large.

    The copies are made between the rounds and on the same file system, because disks and neighbours change their mind.
    """
    api = engine.api
    array = tasks.touched_array(SIZE)
    api.shutdown()
    with tempfile.TemporaryDirectory(prefix="zray-bench-") as directory:
        api.init(num_cpus=2, object_store_memory=STORE, _system_config={"spill_directories": directory})
        _copy_files(directory, array)
        _one_round(api, array)  # the first one meets memory that was never touched, the store's and the page cache's
        copies, puts, gets = [], [], []
        start = time.perf_counter()
        while not puts or time.perf_counter() - start < 3 * seconds:
            copies.append(_copy_files(directory, array))
            put_s, get_s = _one_round(api, array)
            puts.append(put_s)
            gets.append(get_s)
        api.shutdown()
    api.init(num_cpus=2)  # what stops the session stops this one
    copy = len(copies) * COUNT * SIZE / sum(copies) / 1e9
    put = len(puts) * COUNT * SIZE / sum(puts) / 1e9
    get = len(gets) * (COUNT // 2) * SIZE / sum(gets) / 1e9
    return {
        "spill": put,
        "restore": get,
        "file_copy": copy,
        "spill_of_copy": put / copy,
        "restore_of_copy": get / copy,
    }


def _one_round(api, array):
    start = time.perf_counter()
    refs = [api.put(array) for _ in range(COUNT)]
    middle = time.perf_counter()
    for ref in refs[: COUNT // 2]:  # the coldest ones: none of them is in memory any more
        api.get(ref)
    return middle - start, time.perf_counter() - middle


def _copy_files(directory, array):
    """Seconds that copies of a file take, each to a new one."""
    source = os.path.join(directory, "source")
    array.tofile(source)
    targets = [os.path.join(directory, f"copy{n}") for n in range(COUNT)]
    start = time.perf_counter()
    for target in targets:
        shutil.copyfile(source, target)
    elapsed = time.perf_counter() - start
    for path in [source, *targets]:
        os.unlink(path)
    return elapsed
