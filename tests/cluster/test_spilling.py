"""A store of 24 MB and several times as much data: every value stays right, and nothing is left of it on disk."""

from __future__ import annotations

import gc
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import zray as ray
from zray import object_ref
from zray.base import wire
from zray.exceptions import ObjectLostError

from .driving import eventually

np = pytest.importorskip("numpy")

MB = 1 << 20
STORE = 24 * MB
_home = ""


@pytest.fixture(autouse=True, scope="module")
def spilling_store(no_leak_in_module: None) -> Iterator[None]:
    """A store that spills to two directories."""
    global _home
    _home = tempfile.mkdtemp(prefix="zt-", dir="/tmp")
    setting = os.pathsep.join([f"{_home}/d0", f"{_home}/d1"])
    limits = {"spill_directories": setting, "spill_rest_s": 0.05, "store_full_grace_s": 20.0, "collect_interval_s": 0.2}
    with ray.init(num_cpus=2, object_store_memory=STORE, _system_config=limits):
        ray.put(0).future().result(30)
        yield
    assert files() == [], "shutdown leaves nothing"
    assert os.listdir(f"{_home}/d0") == os.listdir(f"{_home}/d1") == []
    shutil.rmtree(_home)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """When the references are gone, so is everything in memory and on disk."""
    yield
    gc.collect()
    eventually(lambda: objects() == [], "an empty store")
    eventually(lambda: files() == [], "empty directories")


def objects() -> list[Any]:
    """(id, size, state, owner, pins, path, call site) of all in the store."""
    worker: Any = object_ref.connected
    rows: list[Any] = worker.call(worker.agent, wire.ListObjects)
    return rows


def files() -> list[str]:
    return [os.path.join(place, name) for place, _, names in os.walk(_home) for name in names]


def on_disk(ref: Any) -> str:
    """The file in which an object lies, and nowhere else."""
    [(state, path)] = [(row[2], row[5]) for row in objects() if row[0] == ref.binary()]
    return path if state == "ON_DISK" else ""


def put(number: int, size: int = 2 * MB) -> Any:
    return ray.put(np.full(size, number % 256, dtype=np.uint8))


def right(array: Any, number: int, size: int = 2 * MB) -> bool:
    """Whether it is what ``put`` made."""
    return len(array) == size and bool((array == number % 256).all())


def push_out(ref: Any) -> tuple[str, list[Any]]:
    """Have an object on disk only: its file, and what fills the store meanwhile."""
    others = []

    def gone() -> str:
        others.append(put(0, 4 * MB))
        return on_disk(ref)

    return eventually(gone, "the object on disk"), others


@ray.remote
def plus_one(array: Any) -> Any:
    return array + np.uint8(1)


@ray.remote
def total(*arrays: Any) -> int:
    return int(sum(int(array[0]) + int(array[-1]) for array in arrays))


@ray.remote
def make(number: int, size: int) -> Any:
    return np.full(size, number % 256, dtype=np.uint8)


def test_random_gets_over_four_times_the_store() -> None:
    refs = [put(i) for i in range(4 * STORE // (2 * MB))]
    rng = random.Random(1)
    for _ in range(100):
        i = rng.randrange(len(refs))
        assert right(ray.get(refs[i]), i)
    assert len(files()) > 0


def test_chains_of_tasks_over_four_times_the_store() -> None:
    count = 2 * STORE // (2 * MB)
    refs = [make.remote(i, 2 * MB) for i in range(count)]
    refs += [plus_one.remote(ref) for ref in refs]
    for i, ref in enumerate([plus_one.remote(ref) for ref in refs]):
        expected = i + 1 if i < count else i - count + 2
        assert right(ray.get(ref), expected)


def test_many_at_once_as_arguments_and_in_one_get() -> None:
    refs = [put(i, MB) for i in range(64)]
    assert ray.get(total.remote(*refs[:24])) == sum(2 * i for i in range(24))
    assert all(right(array, i, MB) for i, array in enumerate(ray.get(refs)))  # twice the store, all of it held


def test_a_reader_sees_its_bytes_unchanged_whatever_happens_around_it() -> None:
    refs = [put(i) for i in range(24)]
    held = ray.get(refs)
    for round_number in range(3):
        others = [put(100 + i) for i in range(24)]
        assert all(right(ray.get(other), 100 + i) for i, other in enumerate(others))
        assert all(right(array, i) for i, array in enumerate(held)), round_number
    del refs  # and when the object is not needed any more, except by the reader
    others = [put(200 + i) for i in range(24)]
    assert all(right(array, i) for i, array in enumerate(held))
    assert all(right(ray.get(other), 200 + i) for i, other in enumerate(others))


def test_an_object_larger_than_the_store() -> None:
    ref = put(7, STORE + 5 * MB)
    array = ray.get(ref)
    assert right(array, 7, STORE + 5 * MB) and not array.flags.writeable
    assert ray.get(total.remote(ref)) == 14
    assert len(files()) == 1


def test_a_result_and_an_argument_larger_than_the_store() -> None:
    ref = plus_one.remote(make.remote(3, STORE + MB))
    assert right(ray.get(ref), 4, STORE + MB)
    assert ray.get(total.remote(np.full(STORE + MB, 9, dtype=np.uint8))) == 18


def test_directories_are_used_in_turn() -> None:
    refs = [put(i, 4 * MB) for i in range(24)]
    counts = eventually(
        lambda: [n for n in (len([f for f in files() if f"/{d}/" in f]) for d in ("d0", "d1")) if n], "files in both"
    )
    eventually(lambda: {f.split("/")[3] for f in files()} == {"d0", "d1"}, f"files in both directories: {counts}")
    assert right(ray.get(refs[0]), 0, 4 * MB)


def test_small_objects_share_files() -> None:
    refs = [put(i, 150_000) for i in range(500)]
    assert len(files()) < 60
    rng = random.Random(2)
    for i in rng.sample(range(500), 60):
        assert right(ray.get(refs[i]), i, 150_000)
    kept = refs[::50]
    del refs[:]
    assert all(right(ray.get(ref), i * 50, 150_000) for i, ref in enumerate(kept))


def test_references_inside_objects_that_went_to_disk() -> None:
    inner = [put(i) for i in range(16)]
    outer = ray.put({"refs": inner, "data": np.zeros(2 * MB, dtype=np.uint8)})
    del inner
    push_out(outer)
    assert all(right(ray.get(ref), i) for i, ref in enumerate(ray.get(outer)["refs"]))


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_file_is_an_error_and_never_a_wrong_value(damage: str) -> None:
    ref = put(5)
    path, others = push_out(ref)
    if damage == "cut":
        os.truncate(path, os.path.getsize(path) // 2)
    elif damage == "flip":
        with open(path, "r+b") as file:
            for position in range(MB // 2, os.path.getsize(path), MB):
                file.seek(position)
                file.write(b"\xff")
    else:
        os.unlink(path)
    lost = 0
    for each in [ref, *others]:
        try:
            array = ray.get(each)
        except ObjectLostError as error:
            assert path in str(error) and each.hex() in str(error)
            lost += 1
        else:
            assert array.max() == array.min() == (5 if each is ref else 0)
    assert lost > 0
    with pytest.raises(ray.exceptions.RayError, match="read back"):
        ray.get([plus_one.remote(each) for each in [ref, *others]])


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_to_an_object_larger_than_the_store(damage: str) -> None:
    ref = put(5, STORE + MB)
    [path] = files()
    if damage == "cut":
        os.truncate(path, MB)
    elif damage == "flip":
        with open(path, "r+b") as file:
            file.seek(3 * MB)
            file.write(b"\xff")
    else:
        os.unlink(path)
    with pytest.raises(ObjectLostError, match=path):
        ray.get(ref)


def test_directories_removed_while_in_use() -> None:
    refs = [put(i) for i in range(48)]
    eventually(files, "files on disk")
    for name in ("d0", "d1"):
        os.rename(f"{_home}/{name}", f"{_home}/gone-{name}")  # at once: the store may be writing, and makes it again
        shutil.rmtree(f"{_home}/gone-{name}")
    lost = 0
    for i, ref in enumerate(refs):
        try:
            assert right(ray.get(ref), i)
        except ObjectLostError as error:
            assert _home in str(error)
            lost += 1
    assert lost > 0
    again = [put(i) for i in range(48)]
    assert all(right(ray.get(ref), i) for i, ref in enumerate(again))
    os.makedirs(f"{_home}/d0", exist_ok=True)
    os.makedirs(f"{_home}/d1", exist_ok=True)
    assert right(ray.get(put(1, STORE + MB)), 1, STORE + MB)


def test_a_directory_that_can_not_be_written_is_passed_over() -> None:
    shutil.rmtree(f"{_home}/d0")
    open(f"{_home}/d0", "w").close()
    try:
        refs = [put(i) for i in range(48)]
        assert all(right(ray.get(ref), i) for i, ref in enumerate(refs))
        big = [put(i, STORE + MB) for i in range(2)]
        assert all(right(ray.get(ref), i, STORE + MB) for i, ref in enumerate(big))
    finally:
        os.unlink(f"{_home}/d0")
        os.mkdir(f"{_home}/d0")


def test_references_in_cycles_are_collected_when_the_store_is_full() -> None:
    def cycle(number: int) -> None:
        ring: list[Any] = [put(number)]
        ring.append(ring)

    gc.collect()
    gc.disable()
    try:
        count = 0

        def collected() -> bool:
            nonlocal count
            cycle(count)
            count += 1
            return len(objects()) < count

        eventually(collected, "the end of a cycle")
    finally:
        gc.enable()


def test_a_worker_killed_while_it_reads_and_writes_leaves_nothing() -> None:
    @ray.remote(max_retries=0)
    def die(array: Any, size: int) -> None:
        kept = ray.put(np.zeros(size, dtype=np.uint8))
        os._exit(int(array[0]) + len([kept]))

    refs = [put(0) for _ in range(24)]
    for size in (2 * MB, STORE + MB):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(die.remote(refs[0], size))
    assert all(right(ray.get(ref), 0) for ref in refs)


def test_what_was_read_before_and_whose_owner_was_killed_says_so() -> None:
    @ray.remote
    def own() -> Any:
        return os.getpid(), [ray.put(np.ones(2 * MB, dtype=np.uint8))]

    pid, [ref] = ray.get(own.remote())
    array = ray.get(ref)
    os.kill(pid, 9)

    def lost() -> bool:
        try:
            ray.get(ref)
        except ray.exceptions.OwnerDiedError:
            return True
        return False

    eventually(lost, "the news of the death")
    others = [put(0, 4 * MB) for _ in range(12)]
    assert right(array, 1) and right(ray.get(others[0]), 0, 4 * MB), "who reads it can go on"


def test_an_interrupted_get_gives_its_pins_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Any = object_ref.connected
    refs = [put(i) for i in range(24)]
    with monkeypatch.context() as patch:

        def interrupted(waiter: Any, timeout_s: float | None = None) -> bool:
            raise KeyboardInterrupt

        patch.setattr(worker.loop, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ray.get(refs)
    eventually(lambda: not any(row[4] for row in objects()), "the end of all pins")
    assert all(right(ray.get(ref), i) for i, ref in enumerate(refs))
