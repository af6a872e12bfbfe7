"""A store of 8 MB: what is too much for it goes to disk and comes back; a full disk is an error, and nothing else is lost."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray

from .driving import Script

MB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def small_store(no_leak_in_module: None) -> Iterator[None]:
    with ray.init(num_cpus=1, object_store_memory=8 * MB, _system_config={"store_full_grace_s": 0.2}):
        yield


@pytest.fixture(autouse=True)
def the_store_works_again() -> Iterator[None]:
    """After each test all of it is free: an object of nearly all its size fits."""
    yield
    gc.collect()
    assert len(ray.get(ray.put(bytes(7 * MB)))) == 7 * MB


def test_an_object_larger_than_the_store() -> None:
    ref = ray.put(b"x" * (9 * MB))
    assert ray.get(ref) == b"x" * (9 * MB)


def test_a_full_store_keeps_what_it_has() -> None:
    refs = [ray.put(bytes([i]) * MB) for i in range(24)]
    assert [ray.get(ref)[0] for ref in refs] == list(range(24))
    assert [ray.get(ref)[-1] for ref in reversed(refs)] == list(reversed(range(24)))


def test_a_put_waits_for_room() -> None:
    first = ray.put(bytes(5 * MB))
    done: list[Any] = []
    ready = threading.Event()

    def put() -> None:
        ready.set()
        done.append(ray.put(b"x" * (5 * MB)))

    thread = threading.Thread(target=put)
    thread.start()
    ready.wait()
    del first
    thread.join()
    assert ray.get(done.pop())[:1] == b"x"


def test_the_room_of_an_object_in_use_is_not_given_away() -> None:
    np = pytest.importorskip("numpy")
    arrays = [ray.get(ray.put(np.full(3 * MB, i, dtype="u1"))) for i in range(6)]
    others = [ray.put(bytes(3 * MB)) for _ in range(3)]
    assert [bool((array == i).all()) for i, array in enumerate(arrays)] == [True] * 6
    assert all(ray.get(ref) == bytes(3 * MB) for ref in others)


def test_many_times_the_size_of_the_store_one_after_the_other() -> None:
    for i in range(30):
        assert ray.get(ray.put(bytes([i]) * (5 * MB)))[-1] == i


def test_results_and_arguments_larger_than_the_store() -> None:
    @ray.remote
    def double(data: bytes) -> bytes:
        return data + data

    assert ray.get(double.remote(b"x" * (9 * MB))) == b"x" * (18 * MB)


def test_arguments_are_freed_with_their_task() -> None:
    @ray.remote
    def size(data: bytes) -> int:
        return len(data)

    for _ in range(12):
        assert ray.get(size.remote(bytes(3 * MB))) == 3 * MB


def test_a_worker_that_dies_while_it_reads_frees_what_it_read() -> None:
    @ray.remote(max_retries=0)
    def die(data: bytes) -> None:
        import os

        os._exit(1)

    for _ in range(3):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(die.remote(bytes(5 * MB)))


def test_results_that_nobody_takes_are_freed() -> None:
    @ray.remote
    def big() -> bytes:
        return bytes(3 * MB)

    for _ in range(8):
        ray.wait([big.remote()])


def can_mount() -> bool:
    """Whether this user may mount a small disk, in a mount namespace of its own."""
    try:
        attempt = subprocess.run(
            ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        )
    except FileNotFoundError:
        return False
    return attempt.returncode == 0


@pytest.mark.skipif(not can_mount(), reason="a small disk can not be mounted here")
def test_store_and_disk_full(script: Any, home: str) -> None:
    """The error says what to do; what was there stays; and when something is freed the next put works."""
    os.mkdir(f"{home}/small")
    program: Script = script(
        f"""
        context = start(object_store_memory=8 << 20, _system_config={{
            "spill_directories": {home + "/small"!r}, "store_full_grace_s": 0.2, "spill_rest_s": 0.05}})
        refs = []
        try:
            while len(refs) < 100:
                refs.append(ray.put(bytes([len(refs)]) * (1 << 20)))
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
            say("refused", len(refs), error)
        big = ray.remote(lambda: bytes(50 << 20)).remote()
        try:
            ray.get(big)
        except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
            say("result", error)
        say("intact", [ray.get(ref)[0] for ref in refs] == list(range(len(refs))))
        del refs[::2]
        say("works", len(ray.get(ray.put(bytes(2 << 20)))))
        """,
        before=f"mount -t tmpfs -o size=4m tmpfs {home}/small",
    )
    count, _, text = program.until("refused").partition(" ")
    assert 4 <= int(count) <= 16
    assert "references" in text or "disk" in text
    assert "lambda" in program.until("result")
    assert program.until("intact") == "True"
    assert program.until("works") == str(2 * MB)
    assert program.finish()[::2] == (0, "")
