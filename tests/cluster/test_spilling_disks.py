"""Disks that are full, read-only or missing, and storage elsewhere; each test has a cluster of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray import object_ref
from zray.base import wire
from zray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError

from .driving import eventually

np = pytest.importorskip("numpy")

MB = 1 << 20
STORE = 12 * MB


@pytest.fixture
def place() -> Iterator[str]:
    """A directory with a short name."""
    with tempfile.TemporaryDirectory(prefix="zt-", dir="/tmp") as path:
        yield path


@pytest.fixture
def small_disk(place: str) -> Iterator[str]:
    """A file system of 16 MB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield place
    subprocess.run(["umount", place], check=True)


def start(directories: str, grace_s: float = 0.3) -> Any:
    limits = {"spill_directories": directories, "spill_rest_s": 0.05, "store_full_grace_s": grace_s}
    return ray.init(num_cpus=1, object_store_memory=STORE, _system_config=limits)


def put(number: int, size: int = MB) -> Any:
    return ray.put(np.full(size, number, dtype=np.uint8))


def assert_right(refs: list[Any], size: int = MB) -> None:
    for i, ref in enumerate(refs):
        array = ray.get(ref)
        assert len(array) == size and (array == i).all()


def objects() -> list[Any]:
    worker: Any = object_ref.connected
    rows: list[Any] = worker.call(worker.agent, wire.ListObjects)
    return rows


def put_until_refused(limit: int = 100) -> tuple[list[Any], RayError]:
    refs: list[Any] = []
    for i in range(limit):
        try:
            refs.append(put(i))
        except RayError as error:
            return refs, error
    raise AssertionError("the disk never was full")


def test_a_full_disk_refuses_keeps_what_it_has_and_recovers(small_disk: str) -> None:
    with start(small_disk):
        refs, error = put_until_refused()
        assert isinstance(error, OutOfDiskError) and "No space left" in str(error)
        assert len(refs) > 20, "both the store and the disk are in use"
        assert_right(refs)
        with pytest.raises(OutOfDiskError):
            put(0, 8 * MB)

        @ray.remote
        def make() -> Any:
            return np.zeros(8 * MB, dtype=np.uint8)

        with pytest.raises(OutOfDiskError, match=r"make\(\)"):
            ray.get(make.remote())
        assert_right(refs)
        del refs[len(refs) // 2 :]
        gc.collect()
        again = [put(i) for i in range(6)]
        assert_right(again)
        assert_right(refs)
    assert os.listdir(small_disk) == []


def test_a_put_waits_until_the_disk_has_room_again(small_disk: str) -> None:
    with start(small_disk, grace_s=30.0):
        filler = os.path.join(small_disk, "filler")
        with open(filler, "wb") as file:
            file.write(bytes(15 * MB))
        refs = [put(i) for i in range(10)]

        @ray.remote
        def remove() -> None:
            os.unlink(filler)

        removed = remove.remote()
        refs += [put(i) for i in range(10, 20)]
        assert_right(refs)
        ray.get(removed)


def test_an_object_larger_than_store_and_disk(small_disk: str) -> None:
    with start(small_disk):
        kept = put(0)
        with pytest.raises(OutOfDiskError, match="bytes fits neither") as caught:
            ray.put(bytes(20 * MB))
        assert small_disk in str(caught.value) and "No space left" in str(caught.value)
        assert_right([kept])
        assert ray.get(ray.put(bytes(14 * MB))) == bytes(14 * MB)
        assert_right([put(0, 6 * MB)], 6 * MB)


def test_an_object_that_one_disk_has_no_room_for_goes_to_the_other(small_disk: str) -> None:
    with tempfile.TemporaryDirectory(prefix="zt-", dir="/tmp") as large:
        with start(os.pathsep.join([small_disk, large])):
            refs = [put(i, 20 * MB) for i in range(3)]
            assert_right(refs, 20 * MB)
            small = [put(i) for i in range(40)]
            assert_right(small)
            assert_right(refs, 20 * MB)
        assert os.listdir(large) == []


def test_a_read_only_directory_is_refused_at_the_start(place: str) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    try:
        with pytest.raises(RuntimeError, match=f"spilled to {place}.*Read-only"):
            start(place)
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_directory_that_becomes_read_only(small_disk: str) -> None:
    with start(small_disk):
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        refs, error = put_until_refused()
        assert isinstance(error, OutOfDiskError) and "Read-only" in str(error)
        assert_right(refs)
        with pytest.raises(OutOfDiskError, match="Read-only"):
            put(0, 20 * MB)
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        refs += [put(i) for i in range(len(refs), 16)]
        assert_right(refs)


def test_a_missing_directory_is_made_and_the_rest_of_it_stays(place: str) -> None:
    wanted = os.path.join(place, "not", "there")
    with start(wanted):
        refs = [put(i) for i in range(24)]
        assert_right(refs)
        assert os.listdir(wanted) != []
    assert os.listdir(wanted) == []


def test_a_file_in_place_of_the_directory_is_refused_at_the_start(place: str) -> None:
    path = os.path.join(place, "file")
    open(path, "w").close()
    with pytest.raises(RuntimeError, match=f"spilled to {path}.*ZRAY_SPILL_DIRECTORIES"):
        start(path)


def test_a_file_system_that_nobody_knows_is_refused_at_the_start() -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(RuntimeError, match="nosuchthing"):
        start("nosuchthing://x")


@pytest.mark.parametrize("kind", ["memory", "local", "both"])
def test_storage_elsewhere(kind: str, place: str) -> None:
    pytest.importorskip("fsspec")
    address = {"memory": "memory://zray", "local": f"local://{place}", "both": f"memory://zray,{place}"}[kind]
    with start(address, grace_s=2.0):
        refs = [put(i) for i in range(40)]
        assert_right(refs)

        @ray.remote
        def first(array: Any) -> int:
            return int(array[0])

        assert ray.get([first.remote(ref) for ref in refs]) == list(range(40))
        addresses = {row[5].partition("://")[0] if "://" in row[5] else "path" for row in objects() if row[5]}
        assert addresses == {"memory": {"memory"}, "local": {"local"}, "both": {"memory", "path"}}[kind]
        if kind == "both":
            assert_right([put(0, 20 * MB)], 20 * MB)
        else:
            with pytest.raises(ObjectStoreFullError, match="does not fit"):
                put(0, 20 * MB)
        del refs
        gc.collect()
        eventually(lambda: objects() == [], "an empty store")
    assert os.listdir(place) == []


def test_what_is_stored_elsewhere_and_finds_no_room_is_not_lost() -> None:
    pytest.importorskip("fsspec")
    with start("memory://zray"):
        refs = [put(i, 3 * MB) for i in range(8)]
        held = []
        with pytest.raises(ObjectStoreFullError, match="being read"):
            held.extend(ray.get(ref) for ref in refs)
        assert len(held) >= 2
        assert all((array == i).all() for i, array in enumerate(held))
        held.clear()
        assert_right(refs, 3 * MB)


def test_the_variable_says_where_too(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZRAY_SPILL_DIRECTORIES", place)
    with ray.init(num_cpus=1, object_store_memory=STORE):
        refs = [put(i) for i in range(24)]
        assert [name for name in os.listdir(place) if name.startswith("zray-")] != []
        assert_right(refs)
    assert os.listdir(place) == []
