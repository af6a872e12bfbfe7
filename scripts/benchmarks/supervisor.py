"""Starts sessions, hears their figures, and cleans up whatever they leave."""

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.case import Case

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
LINGER_LIMIT_S = 5.0
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _end_with_supervisor() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Use it as a context: whichever way that ends, no process and no file of a session remains."""

    def __enter__(self) -> "Supervisor":
        # Daemons that detach from a session come to us instead of to init: so they can be counted, and killed.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        self._folder = tempfile.mkdtemp(prefix="bench-")
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep(0.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def _interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def run(self, engine: str, cases: list[Case], seconds: float) -> Iterator[dict]:
        """Runs one session; yields what it tells, and as the last message how it ended if not well."""
        reading, writing = os.pipe()
        log = Path(self._folder, "log")
        plan = json.dumps({"cases": [case.name for case in cases], "seconds": seconds})
        command = [sys.executable, "-c", "from benchmarks.session import main; main()", engine, str(writing), plan]
        # A session of the operating system's kind too: the terminal's Ctrl-C reaches us alone, and we end it in order.
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                pass_fds=(writing,), start_new_session=True,
                preexec_fn=_end_with_supervisor,  # noqa: PLW1509 - it is threads that make this unsafe; we have one
            )
        os.close(writing)
        try:
            yield from self._messages(process, reading, cases, log)
        finally:
            left = self._end(process)
            os.close(reading)
        if left:
            yield {"left": left}

    def _environment(self) -> dict[str, str]:
        paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
        ours = {
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self._folder,
        }
        return {**os.environ, **ours}

    def _messages(self, process, reading, cases, log) -> Iterator[dict]:
        """The session's messages; a death or a hang becomes a message that names the case it happened in."""
        limits = [(None, START_LIMIT_S)] + [(case.name, case.limit_s) for case in cases] + [(None, STOP_LIMIT_S)]
        lines = _Lines(reading, process)
        for current, limit in limits:
            line = lines.next(limit)
            if line is None:
                what = "died" if process.poll() is not None else f"said nothing for {limit:.0f} s"
                yield {"case": current, "ended": what, "log": _tail(log)}
                return
            message = json.loads(line)
            if "error" in message or "failed" in message:
                message["log"] = _tail(log)
            yield message
            if "absent" in message or "failed" in message:
                return

    def _end(self, process: subprocess.Popen) -> list[str]:
        """Ends the session; returns the names of the processes which its engine should have ended and did not."""
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            asked = False
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                asked = True
                process.terminate()
                try:
                    process.wait(LINGER_LIMIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            left = self._sweep(LINGER_LIMIT_S)
            return [] if asked else left
        finally:
            signal.signal(signal.SIGINT, previous)

    @staticmethod
    def _sweep(patience: float) -> list[str]:
        """Waits for all descendants to be gone, then kills those that are not and returns their names."""
        end = time.monotonic() + patience
        killed: list[str] = []
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return killed
            if time.monotonic() >= end:
                for process in psutil.Process().children(recursive=True):
                    try:
                        if process.status() != psutil.STATUS_ZOMBIE:
                            killed.append(process.name())
                            process.kill()
                    except psutil.Error:
                        continue
                # Those that die now hand us their children; look again a little later.
                end = time.monotonic() + 0.5
            time.sleep(0.02)


class _Lines:
    """Lines from a pipe, with a limit to the patience. The pipe's end says nothing, as forked workers may hold it open."""

    def __init__(self, reading: int, process: subprocess.Popen) -> None:
        self._fd = reading
        self._process = process
        self._buffer = b""

    def next(self, limit: float) -> bytes | None:
        end = time.monotonic() + limit
        while b"\n" not in self._buffer:
            dead = self._process.poll() is not None
            readable, _, _ = select.select([self._fd], [], [], 0 if dead else 0.25)
            data = os.read(self._fd, 65536) if readable else b""
            self._buffer += data
            if not data and (dead or time.monotonic() > end):
                return None
            if readable and not data:
                time.sleep(0.05)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


def _tail(log: Path) -> list[str]:
    """The last lines of the session's output."""
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-25:]
