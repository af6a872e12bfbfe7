"""Spill files: written and read back by threads, and never a wrong byte from a damaged one."""

from __future__ import annotations

import gc
import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zray.base import serialization
from zray.io.session import Session
from zray.io.spill import Directory, FsspecDirectory, LocalDirectory, SpillStorage, open_directories
from zray.io.storage import Arena, map_file, write_file

SIZE = 1 << 20
PAGE = 4096
PATIENCE_S = 30.0


class Disk:
    """A SpillStorage, and its outcomes as they would reach the loop."""

    def __init__(self, directories: list[Directory]) -> None:
        self.arena = Arena(f"zray-test-{os.getpid()}", SIZE)
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.storage = SpillStorage(directories, self.arena, "n", self.calls.put)
        self._batch = 0

    def spill(self, *rows: tuple[int, int], directory: int = 0) -> tuple[Any, ...]:
        """("done", path, places) or ("failed", reason)."""
        self._batch += 1
        self.storage.spill(
            self._batch,
            directory,
            list(rows),
            lambda batch, path, places: None,
            lambda batch, reason: None,
        )
        _, batch, *rest = self.calls.get(timeout=PATIENCE_S)
        assert batch == self._batch
        return ("done", *rest) if len(rest) == 2 else ("failed", *rest)

    def restore(self, path: str, position: int, size: int, checksum: int, target: int | str) -> str:
        """The reason why it failed, or ""."""

        def refused(object_id: bytes, reason: str) -> None:
            raise NotImplementedError

        place = (path, position, size, checksum)
        self.storage.restore(b"o" * 20, place, target, lambda o: None, lambda o, why: None, refused)
        event, _, *reason = self.calls.get(timeout=PATIENCE_S)
        return ("no room: " if event is refused else "") + reason[0] if reason else ""

    def fill(self, offset: int, data: bytes) -> tuple[int, int]:
        view: Any = self.arena.buf
        view[offset : offset + len(data)] = data
        return offset, len(data)

    def look(self, offset: int, size: int) -> bytes:
        view: Any = self.arena.buf
        return bytes(view[offset : offset + size])

    def close(self) -> None:
        self.storage.close()
        self.arena.unlink()
        self.arena.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk([LocalDirectory(str(tmp_path / "d0")), LocalDirectory(str(tmp_path / "d1"))])
    yield made
    made.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    """A file system of 1 MB."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False, capture_output=True).returncode:
        pytest.skip("mounting takes root")
    yield str(tmp_path)
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_what_was_spilled_comes_back_elsewhere(disk: Disk) -> None:
    rows = [disk.fill(0, b"a" * 5000), disk.fill(2 * PAGE, b"b"), disk.fill(3 * PAGE, os.urandom(3 * PAGE))]
    expected = [disk.look(*row) for row in rows]
    outcome, path, places = disk.spill(*rows)
    assert outcome == "done" and [position for position, _ in places] == [0, 5000, 5001]
    disk.fill(0, bytes(10 * PAGE))
    for (position, checksum), (_, size), data in zip(places, rows, expected, strict=True):
        assert disk.restore(path, position, size, checksum, 20 * PAGE) == ""
        assert disk.look(20 * PAGE, size) == data


def test_each_directory_has_its_own_files_and_close_removes_them(disk: Disk, tmp_path: Path) -> None:
    row = disk.fill(0, b"x" * 100)
    paths = [disk.spill(row, directory=n)[1] for n in (0, 1, 0)]
    assert [os.path.dirname(path) for path in paths] == [str(tmp_path / d) for d in ("d0", "d1", "d0")]
    disk.storage.delete(paths[0])
    disk.storage.delete(paths[0])  # once more does no harm
    disk.spill(row)
    disk.storage.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "empty", "directory"])
def test_a_damaged_file_is_an_error_that_names_it(disk: Disk, damage: str) -> None:
    _, path, [_, (position, checksum)] = disk.spill(disk.fill(0, b"a" * 100), disk.fill(PAGE, b"b" * 5000))
    if damage == "cut":
        os.truncate(path, position + 4999)
    elif damage == "flip":
        with open(path, "r+b") as file:
            file.seek(position + 2500)
            file.write(b"c")
    elif damage == "empty":
        os.truncate(path, 0)
    else:
        os.unlink(path)
        if damage == "directory":
            os.mkdir(path)
    reason = disk.restore(path, position, 5000, checksum, 0)
    assert path in reason and (b"o" * 20).hex() in reason
    if damage == "directory":
        os.rmdir(path)


def test_damage_to_one_object_of_a_file_spares_the_others(disk: Disk) -> None:
    _, path, [(first, checksum), _] = disk.spill(disk.fill(0, b"a" * 100), disk.fill(PAGE, b"b" * 5000))
    os.truncate(path, 100)
    assert disk.restore(path, first, 100, checksum, 8 * PAGE) == "" and disk.look(8 * PAGE, 100) == b"a" * 100


def test_a_directory_that_was_removed_is_made_again(disk: Disk, tmp_path: Path) -> None:
    row = disk.fill(0, b"x" * 100)
    _, path, _ = disk.spill(row)
    os.unlink(path)
    os.rmdir(tmp_path / "d0")
    assert disk.spill(row)[0] == "done"


def test_a_file_in_place_of_the_directory_is_a_failure_with_a_reason(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "d0").write_text("")
    outcome, reason = disk.spill(disk.fill(0, b"x" * 100))
    assert outcome == "failed" and str(tmp_path / "d0") in reason


def test_a_full_disk_is_a_failure_that_leaves_nothing_behind(small_disk: str) -> None:
    disk = Disk([LocalDirectory(os.path.join(small_disk, "d"))])
    try:
        assert disk.spill(disk.fill(0, b"x" * (SIZE - PAGE)))[0] == "done"
        outcome, reason = disk.spill(disk.fill(0, b"x" * (SIZE // 2)))
        assert outcome == "failed" and "No space left" in reason
        assert len(os.listdir(os.path.join(small_disk, "d"))) == 1
    finally:
        disk.close()


def test_a_path_of_nowhere_is_an_error(disk: Disk) -> None:
    assert "/nowhere/x" in disk.restore("/nowhere/x", 0, 1, 0, 0)


def test_an_object_can_be_read_into_a_file_of_this_machine(disk: Disk, tmp_path: Path) -> None:
    _, path, [(position, checksum)] = disk.spill(disk.fill(0, b"abc" * 1000))
    near = str(tmp_path / "d1" / "x.object")
    assert disk.restore(path, position, 3000, checksum, near) == ""
    assert bytes(map_file(near, 0, 3000, checksum, lambda: None)) == b"abc" * 1000
    assert "not the checksum" in disk.restore(path, position, 2999, checksum, near)
    (tmp_path / "file").write_text("")
    assert disk.restore(path, position, 3000, checksum, str(tmp_path / "file" / "y")).startswith("no room: ")


# -- fsspec ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_any_file_system_of_fsspec_will_do(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    address = "memory://bucket/prefix" if kind == "memory" else f"local://{tmp_path}/prefix"
    directory = FsspecDirectory(address, "session")
    disk = Disk([directory])
    try:
        data = os.urandom(3 * PAGE + 17)
        outcome, path, [(_, _), (position, checksum)] = disk.spill(disk.fill(0, b"a" * 100), disk.fill(PAGE, data))
        assert outcome == "done" and path.startswith(f"{address}/session/")
        assert disk.restore(path, position, len(data), checksum, 30 * PAGE) == ""
        assert disk.look(30 * PAGE, len(data)) == data
        assert "not the checksum" in disk.restore(path, 1, len(data), checksum, 30 * PAGE)
        assert "bytes" in disk.restore(path, position, len(data) + 1, checksum, 30 * PAGE)
        disk.storage.delete(path)
        disk.storage.delete(path)
        assert disk.spill(disk.fill(0, b"x"))[0] == "done"
        assert path in disk.restore(path, position, len(data), checksum, 30 * PAGE)
    finally:
        disk.close()
    assert not directory._files.exists(directory._root)


def test_without_fsspec_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"zray\[fsspec\]"):
        FsspecDirectory("s3://bucket/x", "session")


# -- the setting ----------------------------------------------------------------------------------------------------


@pytest.fixture
def session(short_path: str) -> Iterator[Session]:
    made = Session(parent=short_path)
    yield made
    made.release()
    made.remove()


def test_by_default_the_directory_lies_in_the_session(session: Session) -> None:
    directories, paths = open_directories("", session)
    assert paths == [f"{session.path}/spill"] and os.path.isdir(paths[0]) and len(directories) == 1


def test_several_are_separated_as_in_PATH_and_go_with_the_session(session: Session, tmp_path: Path) -> None:
    setting = os.pathsep.join([str(tmp_path / "x"), str(tmp_path / "y" / "z")])
    _, paths = open_directories(setting, session)
    assert [os.path.dirname(path) for path in paths] == [str(tmp_path / "x"), str(tmp_path / "y" / "z")]
    session.remove()
    assert not any(os.path.exists(path) for path in paths) and os.path.isdir(tmp_path / "x")


def test_addresses_are_separated_by_commas(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    directories, paths = open_directories(f"memory://a/b, {tmp_path}/x", session)
    assert paths[0].startswith("memory://a/b/") and paths[1].startswith(f"{tmp_path}/x/")
    assert [type(directory) for directory in directories] == [FsspecDirectory, LocalDirectory]


def test_a_directory_that_can_not_be_made_is_an_error_with_advice(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"spilled to .*file.*ZRAY_SPILL_DIRECTORIES"):
        open_directories(str(tmp_path / "file"), session)


# -- objects that live in a file ------------------------------------------------------------------------------------


def read(path: str, size: int, checksum: int, on_unused: Callable[[], None] = lambda: None) -> Any:
    view = map_file(path, 0, size, checksum, on_unused)
    return serialization.deserialize_parts(*serialization.parse_stored(view))


values = st.recursive(
    st.binary(max_size=200) | st.integers() | st.builds(bytearray, st.binary(max_size=300)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@given(values)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_value_written_to_a_file_can_be_mapped(tmp_path: Path, value: Any) -> None:
    serialized = serialization.serialize(value)
    path = str(tmp_path / "made" / "x.object")
    checksum = write_file(path, serialized)
    assert read(path, serialization.stored_size(serialized), checksum) == value


def test_arrays_of_any_length_can_be_mapped(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    for lengths in ([0], [1], [7, 0, 4097], [100_000, 3], [0, 0]):
        value = [np.arange(length, dtype=np.uint8) for length in lengths]
        serialized = serialization.serialize(value)
        checksum = write_file(str(tmp_path / "x"), serialized)
        back = read(str(tmp_path / "x"), serialization.stored_size(serialized), checksum)
        assert all((a == b).all() and not b.flags.writeable for a, b in zip(value, back, strict=True))


def test_a_mapping_in_the_middle_of_a_file(tmp_path: Path) -> None:
    data = os.urandom(10_000)
    (tmp_path / "x").write_bytes(data)
    import zlib

    for position, size in ((0, 10_000), (1, 9_999), (4096, 10), (5000, 5000)):
        part = data[position : position + size]
        unused: list[int] = []
        view = map_file(str(tmp_path / "x"), position, size, zlib.crc32(part), lambda unused=unused: unused.append(1))
        assert view == part and view.readonly
        assert unused == []
        del view
        gc.collect()
        assert unused == [1]


@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_file_is_not_mapped(tmp_path: Path, damage: str) -> None:
    serialized = serialization.serialize(bytearray(10_000))
    path = str(tmp_path / "x")
    checksum = write_file(path, serialized)
    size = serialization.stored_size(serialized)
    if damage == "cut":
        os.truncate(path, size - 1)
    elif damage == "flip":
        with open(path, "r+b") as file:
            file.seek(5000)
            file.write(b"c")
    else:
        os.unlink(path)
    with pytest.raises((OSError, ValueError), match="x"):
        read(path, size, checksum, lambda: pytest.fail("there was no view"))


def test_a_full_disk_is_known_before_anything_is_written(small_disk: str) -> None:
    with pytest.raises(OSError, match="No space"):
        write_file(os.path.join(small_disk, "x"), serialization.serialize(bytearray(2 << 20)))
