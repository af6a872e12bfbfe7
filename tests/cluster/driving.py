"""Conditions with deadlines, and drivers that run as processes of their own."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 30.0  # only a broken test waits this long

_PROLOGUE = """
import os, signal, sys, threading, time
import zray as ray

def say(*words):
    # In one piece: between the two of print() a worker's line might come.
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()

def start(**arguments):
    context = ray.init(**{"num_cpus": 1, "object_store_memory": 1 << 24, **arguments})
    say("session", context.session_dir)
    return context
"""


def eventually(condition: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Wait until ``condition()`` is true, and return its value."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"it never happened: {what}")
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not reaped does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def title(pid: int) -> str:
    """What a process calls itself."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip()
    return ""


def processes_of(session_dir: str) -> dict[int, str]:
    """The living processes of a session, by pid: head, zygote and workers share the command line that names it."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if session_dir.encode() in file.read() and alive(int(name)):
                        found[int(name)] = title(int(name))
    return found


def pid_of(session_dir: str, name: str) -> int:
    """The process of a session that calls itself ``name``."""
    return eventually(
        lambda: [pid for pid, own in processes_of(session_dir).items() if own == name], f"a process {name}"
    )[0]


def remains_of(session_dir: str) -> list[str]:
    """Whatever is left of a session."""
    left = [f"process {pid} ({name})" for pid, name in processes_of(session_dir).items()]
    segment = f"/dev/shm/zray-{os.getuid()}-{os.path.basename(session_dir)}"
    return left + [path for path in (segment, session_dir) if os.path.exists(path)]


def assert_nothing_remains(session_dir: str) -> None:
    """Nothing of a session is left, if not at once then in a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while remains_of(session_dir) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert remains_of(session_dir) == []


class Script:
    """A driver in a process of its own.

    Args:
        program: what it runs, after a prologue with ``say`` and ``start``.
        home: where its session directory is made.
        environment: further variables.
        before: a shell command to run first, in a mount namespace of the script's own.
    """

    def __init__(self, program: str, home: str, environment: dict[str, str], before: str = "") -> None:
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self.path = os.path.join(home, f"script{len(os.listdir(home))}.py")
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(_PROLOGUE + textwrap.dedent(program))
        variables = {**os.environ, "PYTHONPATH": root, "ZRAY_TMPDIR": home, **environment}
        command = [sys.executable, self.path]
        if before:
            command = ["unshare", "--mount", "sh", "-c", f"{before} && exec {sys.executable} {self.path}"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # open until ``finish``
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=variables,
        )
        self.pid = self._process.pid
        self._buffer = b""
        self._errors = b""
        self._session = ""

    @property
    def session(self) -> str:
        """The directory of its session."""
        while not self._session:
            word, _, rest = self.line().partition(" ")
            if word == "session":
                self._session = rest
        return self._session

    def line(self) -> str:
        """The next line it prints."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._process.stdout], [], [], deadline - time.monotonic())
            data = os.read(self._process.stdout.fileno(), 65536) if readable else b""
            if not data:
                raise AssertionError(f"the script said no more, after {self._buffer!r}; its errors: {self.finish()[2]}")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def until(self, word: str) -> str:
        """Read lines up to the one that starts with ``word``; the rest of that line."""
        while True:
            first, _, rest = self.line().partition(" ")
            if first == "session":
                self._session = rest
            if first == word:
                return rest

    def say(self, words: str) -> None:
        """A line for it to read."""
        assert self._process.stdin is not None
        self._process.stdin.write(words.encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, what else it printed, its errors."""
        try:
            out, errors = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
            raise AssertionError(f"the script did not end; its errors: {errors.decode()}") from None
        return self._process.returncode, (self._buffer + out).decode(), errors.decode()

    def close(self) -> None:
        """End it, and all it started."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        if self._session:
            for pid in processes_of(self._session):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
