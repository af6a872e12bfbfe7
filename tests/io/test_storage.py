"""The bytes of the object store: written, read where they lie, and refused when /dev/shm is full."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from zray.base import serialization
from zray.exceptions import ObjectStoreFullError
from zray.io import storage
from zray.io.storage import Arena, remove_segment, shared_memory_free_bytes

SIZE = 1 << 20
NAME = f"zray-test-{os.getpid()}"


@pytest.fixture
def arena() -> Iterator[Arena]:
    made = Arena(NAME, SIZE)
    yield made
    made.unlink()
    made.close()


def read(arena: Arena, offset: int, value: serialization.Serialized, on_unused: Any = lambda: None) -> Any:
    view = arena.view(offset, serialization.stored_size(value), on_unused)
    return serialization.deserialize_parts(*serialization.parse_stored(view))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("value", [b"", b"x" * 70_000, bytearray(b"y" * 70_000), {"a": b"z" * 1000}, list(range(5000))])
def test_what_is_written_can_be_read(arena: Arena, value: Any, warm: bool) -> None:
    serialized = serialization.serialize(value)
    arena.write(4096, serialized, warm=warm)
    assert read(arena, 4096, serialized) == value


def test_another_mapping_of_the_same_name_sees_the_same_bytes(arena: Arena) -> None:
    value = serialization.serialize(b"x" * 100_000)
    arena.write(0, value, warm=False)
    other = Arena(NAME)
    assert read(other, 0, value) == b"x" * 100_000
    gc.collect()
    other.close()


def test_a_view_is_read_only(arena: Arena) -> None:
    view = arena.view(0, 100, lambda: None)
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(TypeError):
        view.cast("B")[0:2] = b"xx"


def test_the_end_of_the_last_view_is_told_once(arena: Arena) -> None:
    told: list[int] = []
    view = arena.view(0, 100, lambda: told.append(1))
    part = view[10:20]
    of_part = memoryview(part)[1:]
    del view, part
    gc.collect()
    assert told == []
    del of_part
    gc.collect()
    assert told == [1]


def test_arrays_keep_the_view_they_were_made_of(arena: Arena) -> None:
    np = pytest.importorskip("numpy")
    told: list[int] = []
    value = serialization.serialize({"a": np.arange(1000), "b": np.ones(3000)})
    arena.write(0, value, warm=False)
    both = read(arena, 0, value, lambda: told.append(1))
    a, b = both["a"][5:], both["b"]
    del both
    gc.collect()
    assert told == []
    assert not a.flags.writeable
    del a
    gc.collect()
    assert told == []
    assert b.sum() == 3000
    del b
    gc.collect()
    assert told == [1]


def test_a_view_survives_close_and_unlink(arena: Arena) -> None:
    """And nothing stays open once it is gone: the leak check of this test sees to that."""
    other = Arena(NAME)
    other.write(0, serialization.serialize(b"still here" * 1000), warm=False)
    view = other.view(0, 20_000, lambda: None)
    other.unlink()
    other.close()
    other.close()
    assert b"still here" in bytes(view)
    del view, other
    gc.collect()
    with pytest.raises(FileNotFoundError):
        Arena(NAME)


def test_descriptors_are_closed_while_views_live_on(arena: Arena) -> None:
    """A program that starts and stops clusters and keeps arrays must not run out of descriptors."""
    before = len(os.listdir("/proc/self/fd"))
    views = []
    for _ in range(5):
        other = Arena(NAME)
        views.append(other.view(0, 10, lambda: None))
        other.close()
    del other
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + len(views)  # a mapping keeps one of its own
    del views
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_starts_no_tracker_process(arena: Arena) -> None:
    """It would unlink the segment at the end of whichever process it belongs to."""
    program = (
        f"import sys, os\nfrom zray.io.storage import Arena\na = Arena({NAME!r})\na.close()\n"
        "from multiprocessing import resource_tracker\nassert resource_tracker._resource_tracker._fd is None\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(storage.__file__)))
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": root}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.path.exists(f"/dev/shm/{NAME}")


def test_a_name_that_is_taken_and_one_that_does_not_exist(arena: Arena) -> None:
    with pytest.raises(FileExistsError):
        Arena(NAME, SIZE)
    with pytest.raises(FileNotFoundError):
        Arena(NAME + "-other")
    remove_segment(NAME + "-other")


def test_cold_space_on_a_full_machine_is_an_error_with_the_mend(arena: Arena, monkeypatch: Any) -> None:
    def full(fd: int, data: Any, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "pwrite", full)
    with pytest.raises(ObjectStoreFullError, match=r"No space left[\s\S]*--shm-size"):
        arena.write(0, serialization.serialize(b"x" * 1000), warm=False)


def test_writes_that_are_cut_short_are_continued(arena: Arena, monkeypatch: Any) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(storage.os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))
    value = serialization.serialize(os.urandom(100_000))
    arena.write(0, value, warm=False)
    monkeypatch.undo()
    assert read(arena, 0, value) == serialization.deserialize(value.inline())


FULL = """
import os, subprocess, sys
from zray.base import serialization
from zray.io import storage
from zray.exceptions import ObjectStoreFullError

arena = storage.Arena("zray-full", 64 << 20)
assert storage.shared_memory_free_bytes() < 16 << 20
value = serialization.serialize(bytes(1 << 19))
written = 0
try:
    for i in range(64):
        arena.write(i << 20, value, warm=False)
        written += 1
except ObjectStoreFullError as error:
    print("refused after", 0 < written < 32, "--shm-size" in str(error), flush=True)
size = serialization.stored_size(value)
parts = serialization.parse_stored(arena.view(0, size, lambda: None))
print("intact", serialization.deserialize_parts(*parts) == bytes(1 << 19), flush=True)
os.unlink("/dev/shm/zray-full")
os._exit(0)
"""


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
def test_a_shared_memory_that_is_really_full_is_an_error_and_no_crash(tmp_path: Any) -> None:
    """In a mount namespace of its own, with a small /dev/shm."""
    program = tmp_path / "full.py"
    program.write_text(FULL)
    root = os.path.dirname(os.path.dirname(os.path.dirname(storage.__file__)))
    script = f"mount -t tmpfs -o size=12m tmpfs /dev/shm && exec {sys.executable} {program}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["refused after True True", "intact True"], done.stderr


def test_the_room_that_is_left_is_known() -> None:
    assert shared_memory_free_bytes() > 0
