"""Sessions: where they lie, who may enter, and when what is left of one is swept away."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from zray.io.session import Session, base_directory, forget_heads, living_heads, sweep, take_up

_SHM = "/dev/shm"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = tempfile.mkdtemp(prefix="zt-", dir="/tmp")
    monkeypatch.setenv("ZRAY_TMPDIR", path)
    yield path
    shutil.rmtree(path)


def segment_of(session: Session) -> str:
    """A shared-memory segment as the session's node would make it."""
    path = os.path.join(_SHM, session.arena_name())
    with open(path, "xb") as file:
        file.write(b"x")
    return path


def test_a_session_is_private_and_its_names_are_short(home: str) -> None:
    session = Session()
    assert os.path.dirname(session.path) == base_directory() == f"{home}/zray-{os.getuid()}"
    for path in (session.path, base_directory(), os.path.dirname(session.log_path("x"))):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert session.endpoint("w12345678").startswith(f"ipc://{session.path}/")
    session.release()
    session.remove()
    assert not os.path.exists(session.path)


def test_a_path_that_is_too_long_for_a_socket_is_refused(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long = os.path.join(home, "x" * 80)
    with pytest.raises(ValueError, match=rf"'{long}' has {len(long)} bytes .*60 at most"):
        Session(parent=long)
    monkeypatch.setenv("ZRAY_TMPDIR", long)
    with pytest.raises(ValueError, match="ZRAY_TMPDIR"):
        base_directory()
    assert not os.path.exists(long)


def test_the_directory_for_temporary_files_may_have_a_long_path(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has asked that sockets be there: they are made in /tmp."""
    monkeypatch.delenv("ZRAY_TMPDIR")
    monkeypatch.setattr(tempfile, "tempdir", os.path.join(home, "x" * 80))
    existed = os.path.exists(f"/tmp/zray-{os.getuid()}")
    assert base_directory() == f"/tmp/zray-{os.getuid()}"
    if not existed:
        os.rmdir(f"/tmp/zray-{os.getuid()}")


def test_the_directory_may_be_named_and_is_made(home: str) -> None:
    parent = os.path.join(home, "new")
    session = Session(parent=parent)
    assert session.path.startswith(parent)
    session.release()
    assert sweep(parent) == [session.path]


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_directory_that_others_may_enter_is_refused(home: str, mode: int) -> None:
    os.mkdir(f"{home}/zray-{os.getuid()}")
    os.chmod(f"{home}/zray-{os.getuid()}", mode)
    with pytest.raises(PermissionError, match="mode 0700"):
        base_directory()


def test_a_link_in_place_of_the_directory_is_refused(home: str) -> None:
    os.mkdir(f"{home}/elsewhere", 0o700)
    os.symlink(f"{home}/elsewhere", f"{home}/zray-{os.getuid()}")
    with pytest.raises(PermissionError):
        base_directory()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(home: str) -> None:
    os.mkdir(f"{home}/zray-0", 0o700)
    os.chown(f"{home}/zray-0", 12345, 12345)
    with pytest.raises(PermissionError):
        base_directory()


def test_a_living_session_is_not_swept() -> None:
    session = Session()
    assert sweep() == []
    session.release()
    assert sweep() == [session.path]
    assert not os.path.exists(session.path)


def test_a_session_lives_as_long_as_any_process_that_inherited_its_lock() -> None:
    session = Session()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    session.release()
    assert sweep() == []
    os.close(write)
    os.waitpid(pid, 0)
    assert sweep() == [session.path]


def test_the_lock_of_a_killed_process_is_free() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        session = Session()
        os.write(write, session.path.encode())
        signal.pause()
    os.close(write)
    path = os.read(read, 4096).decode()
    os.close(read)
    assert sweep() == []
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert sweep() == [path]


def test_a_sweep_takes_the_shared_memory_too() -> None:
    session = Session()
    segment = segment_of(session)
    session.release()
    sweep()
    assert not os.path.exists(segment)


def test_remove_takes_the_shared_memory_and_may_be_repeated() -> None:
    session = Session()
    segment = segment_of(session)
    session.remove()
    session.remove()
    session.release()
    session.release()
    assert not os.path.exists(segment)
    assert not os.path.exists(session.path)


def test_a_sweep_that_comes_while_a_session_is_made_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lock, swept = fcntl.flock, []

    def late(fd: int, operation: int) -> Any:
        monkeypatch.setattr(fcntl, "flock", lock)
        swept.append(sweep())
        return lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    session = Session()
    assert swept == [[]] and os.path.isdir(session.path)
    assert sweep() == [], "it is locked"
    session.release()
    session.remove()


def test_a_session_without_a_lock_is_left_alone_while_it_is_young() -> None:
    path = tempfile.mkdtemp(prefix="s-", dir=base_directory())
    assert sweep() == []
    os.utime(path, (0, 0))
    assert sweep() == [path]


def test_a_sweep_looks_at_nothing_else(home: str) -> None:
    base = base_directory()
    os.mkdir(f"{base}/other")
    os.symlink(home, f"{base}/s-link")
    with open(f"{base}/s-file", "x", encoding="utf-8"):
        pass
    assert sweep() == []
    assert sorted(os.listdir(base)) == ["other", "s-file", "s-link"]


def test_two_sweeps_at_once_do_not_disturb_each_other() -> None:
    sessions = [Session() for _ in range(20)]
    for session in sessions:
        session.release()
    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sweep()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    sweep()
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert not any(os.path.exists(session.path) for session in sessions)


# -- what heads leave -------------------------------------------------------------------------------------------------


def left_by_a_head(port: int, pid: int = 0) -> str:
    """The session of a head that was killed; its path."""
    session = Session()
    session.note_head({"role": "zray-head", "pid": pid or ended_process(), "port": port})
    session.release()
    return session.path


def ended_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_a_head_takes_up_what_one_on_the_same_port_has_left() -> None:
    older, other = left_by_a_head(6390), left_by_a_head(6391)
    os.utime(os.path.join(older, "head.json"), (1, 1))
    path = left_by_a_head(6390)
    assert sweep() == [], "it is waited for"
    session = take_up(6390)
    assert session is not None and session.path == path and not os.path.exists(older) and os.path.exists(other)
    assert take_up(6392) is None
    session.note_head({"role": "zray-head", "pid": os.getpid(), "port": 6390})
    assert [head["session"] for head in living_heads()] == [path] and take_up(6390) is None
    assert forget_heads() == [other]
    session.release()
    session.remove()


def test_a_port_that_nobody_has_chosen_says_nothing() -> None:
    path = left_by_a_head(0)
    assert take_up(0) is None and sweep() == [path]


def test_what_a_head_has_left_is_not_kept_for_ever() -> None:
    path = left_by_a_head(6390)
    os.utime(path, (1, 1))
    assert sweep() == [path]


@pytest.mark.parametrize("text", ["", '{"role": "zray-h', "{}"])
def test_a_description_that_can_not_be_read_is_none(text: str) -> None:
    """A power cut may leave it empty: nobody can take such a session up."""
    path = left_by_a_head(6390)
    with open(os.path.join(path, "head.json"), "w", encoding="utf-8") as file:
        file.write(text)
    assert take_up(6390) is None
    assert sweep() == [path]


def test_a_description_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    session = Session()
    session.note_head({"role": "zray-head", "pid": os.getpid(), "port": 0})
    assert synced == [os.stat(os.path.join(session.path, "head.json")).st_ino]
    session.release()
    session.remove()
