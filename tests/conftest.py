"""The leak check: a test that leaves something behind fails.

Looked at: descriptors and threads of this process, its child processes, every other process that these tests have started,
shared memory of zray's, and session directories. A test that starts without a cluster must leave everything as it found it. In a
module whose cluster all of its tests share, descriptors are compared for the module as a whole, since connections to new
workers stay open; the rest for each test too. Processes that were left are ended.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from zray import object_ref

_MARK = "TESTS_OF_ZRAY"  # an environment variable, with a value of its own for each run
_SETTLE_S = 5.0  # a thread that was told to end, or a process that was killed, has this long to be gone


def pytest_configure(config: Any) -> None:
    """The sessions of the tests lie apart from those of other programs of this user, and keys of a terminal are heard.

    What a shell runs in the background ignores Ctrl-C, and so would the tests that press it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    config.zray_home = os.environ["ZRAY_TMPDIR"] = os.environ[_MARK] = tempfile.mkdtemp(prefix="zt-", dir="/tmp")


def pytest_unconfigure(config: Any) -> None:
    shutil.rmtree(config.zray_home, ignore_errors=True)


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the descriptor of the listing itself
    return found


def _threads() -> dict[str, str]:
    """Without those of tasks and actors in local mode, which come and go until ``shutdown``."""
    local = getattr(object_ref.connected, "address", (b"", ""))[1] == "local"
    threads = [thread for thread in threading.enumerate() if not (local and thread.name.startswith("zray-"))]
    return {str(thread.ident): thread.name for thread in threads}


def _children() -> dict[str, str]:
    """Child processes of this one, zombies too."""
    me = os.getpid()
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    head, _, tail = file.read().rpartition(")")
            except OSError:
                continue  # it ended meanwhile
            if int(tail.split()[1]) == me:
                found[name] = head.partition("(")[2]
    return found


def _marked() -> Iterator[tuple[int, str, str]]:
    """The processes that these tests have started and all that those started, by the mark in their environment; no zombies.

    With each what it counts as, and its name. A node has a (Unix) session of its own, in which workers come and go: that counts
    as one. The processes in the session of this one count each for itself.
    """
    mark = f"{_MARK}={os.environ[_MARK]}".encode()
    me, mine = os.getpid(), os.getsid(0)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != me:
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    marked = mark in file.read().split(b"\0")
                if marked:
                    session = os.getsid(int(name))
                    with open(f"/proc/{name}/comm") as file:
                        yield int(name), name if session == mine else f"session {session}", file.read().strip()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended meanwhile, or is another user's


def _started() -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for pid, key, title in _marked():
        found.setdefault(key, []).append(f"{title} {pid}")
    return {key: ", ".join(processes) for key, processes in found.items()}


def _end_all_but(before: dict[str, str]) -> None:
    """End processes that were left behind."""
    for pid, key, _ in list(_marked()):
        if key not in before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _shared_memory() -> dict[str, str]:
    """Segments of sessions and of this process, but not those of sessions elsewhere that have nothing to do with these tests."""
    mine = f"zray-{os.getuid()}"
    names = [n for n in os.listdir("/dev/shm") if n.startswith((f"{mine}-s-", f"zray-test-{os.getpid()}"))]
    elsewhere = {
        os.path.basename(path)
        for path in glob.glob(f"{tempfile.gettempdir()}/{mine}/s-*") + glob.glob(f"/tmp/*/{mine}/s-*")
        + glob.glob(f"/tmp/*/*/{mine}/s-*")  # those of zray.cluster_utils
        if not path.startswith(os.environ["ZRAY_TMPDIR"])
    }
    return {name: "/dev/shm" for name in names if name.removeprefix(f"{mine}-") not in elsewhere}


def _sessions() -> dict[str, str]:
    base = os.path.join(os.environ["ZRAY_TMPDIR"], f"zray-{os.getuid()}")
    try:
        return dict.fromkeys(os.listdir(base), base)
    except FileNotFoundError:
        return {}


_LOOKS = {
    "threads": _threads,
    "child processes": _children,
    "processes": _started,
    "shared memory": _shared_memory,
    "session directories": _sessions,
    "descriptors": _descriptors,
}


def _snapshot(*, descriptors: bool) -> dict[str, dict[str, str]]:
    return {what: look() for what, look in _LOOKS.items() if descriptors or what != "descriptors"}


def _difference(before: dict[str, dict[str, str]]) -> list[str]:
    after = _snapshot(descriptors="descriptors" in before)
    return [
        f"{what}: {name} ({after[what][name]})"
        for what in before
        for name in sorted(set(after[what]) - set(before[what]))
    ]


def _check(before: dict[str, dict[str, str]], where: str) -> None:
    """Fail if there is something now that was not there before, and that does not go away."""
    deadline = time.monotonic() + _SETTLE_S
    left = _difference(before)
    if left:
        gc.collect()
    while left and time.monotonic() < deadline:
        left = _difference(before)
        time.sleep(0.01)
    if left:
        _end_all_but(before["processes"])
        pytest.fail(f"{where} left behind: " + "; ".join(left))


@pytest.fixture(autouse=True, scope="module")
def no_leak_in_module(request: Any) -> Iterator[None]:
    """The tests of a module together leave nothing behind, the cluster they share included."""
    before = _snapshot(descriptors=True)
    yield
    _check(before, f"the tests of {request.node.name}")


@pytest.fixture(autouse=True)
def no_leak(request: Any, no_leak_in_module: None) -> Iterator[None]:
    """A test leaves nothing behind."""
    connected = object_ref.connected
    before = _snapshot(descriptors=connected is None)
    yield
    if object_ref.connected is not connected and connected is None:
        import zray

        zray.shutdown()
        pytest.fail("the test left a cluster running")
    _check(before, "the test")
