"""Spawn: the zygote, a process that makes workers by forking itself.

A new interpreter takes a tenth of a second to start; a fork of one that has everything imported takes two milliseconds, and
shares its memory. The zygote is forked from the node's process before that has any thread or zmq context, and never
makes one itself: forking a process with threads is unsafe. It is also the parent of all workers, so it alone can end and reap
them without ever hitting a process that took over the number.

Nobody is left behind: workers die with the zygote (PR_SET_PDEATHSIG), the zygote ends when its node does (end of file on their
socket), and what a worker started itself dies with the worker's process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

_PR_SET_NAME = 15
_PR_SET_PDEATHSIG = 1

_prctl: Any
try:
    _prctl = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):  # not Linux
    _prctl = None


def set_title(name: str) -> None:
    """Name this process in ``ps`` and ``top``."""
    if _prctl is not None:
        _prctl(_PR_SET_NAME, name[:15].encode(), 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request
        os._exit(1)


def redirect_output(path: str) -> None:
    """Send this process's standard output and error to a file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = "unknown"
        return f"killed by signal {number} ({name})"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"


def has_ended(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], 0.0)[0])
    finally:
        os.close(pidfd)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP; one that a debugger holds is not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"
    return False


class Zygote:
    """The node's side: asks for workers and hears of their ends. A source of the loop.

    Args:
        run_worker: what a new worker runs, given its id; its return ends the process.
        at_end: what the zygote does last, when its node is gone.
        on_event: called with ``("started", worker_id, pid)``, ``("exited", worker_id, status)``, ``("failed", worker_id,
            reason)``, ``("gone", worker_id)`` when that was to be ended and had ended, and ``("lost",)`` when the zygote ended.
        unneeded: descriptors that neither the zygote nor its workers need.
    """

    def __init__(
        self,
        run_worker: Callable[[bytes], None],
        at_end: Callable[[], None],
        on_event: Callable[[tuple[Any, ...]], None],
        unneeded: Iterable[int] = (),
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._on_event = on_event
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _close_all(unneeded)
            guarded(_Nursery(theirs, run_worker, at_end).run)
        theirs.close()
        self._socket = ours
        self._outbox: deque[tuple[bytes, tuple[int, ...]]] = deque()
        ours.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def start(self, worker_id: bytes, output: tuple[int, ...] = ()) -> None:
        """Have a worker made.

        Args:
            worker_id: its id.
            output: descriptors for its standard output and error, which are closed here; without them it has the zygote's.
        """
        self._send(("start", worker_id), output)

    def kill(self, worker_id: bytes) -> None:
        self._send(("kill", worker_id))

    def on_readable(self) -> None:
        while True:
            try:
                data = self._socket.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._on_event(("lost",))
                return
            self._on_event(pickle.loads(data))
            self._flush()

    def close(self, timeout_s: float = 5.0) -> None:
        """End the zygote and all workers, and wait for it."""
        self._socket.close()
        self._forget_outbox()
        deadline = time.monotonic() + timeout_s
        pidfd = os.pidfd_open(self.pid)
        try:
            select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
        finally:
            os.close(pidfd)
        if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            os.kill(self.pid, signal.SIGKILL)  # its workers follow by PDEATHSIG
            os.waitpid(self.pid, 0)

    def _send(self, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        self._outbox.append((pickle.dumps(message), fds))
        self._flush()

    def _flush(self) -> None:
        """Send what the socket takes. Every message has an answer, so what is left goes when the next answer comes."""
        while self._outbox:
            data, fds = self._outbox[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                return
            except OSError:  # a dead zygote is reported by on_readable
                self._forget_outbox()
                return
            _close_all(fds)
            self._outbox.popleft()

    def _forget_outbox(self) -> None:
        for _, fds in self._outbox:
            _close_all(fds)
        self._outbox.clear()


def guarded(function: Callable[[], None]) -> NoReturn:
    """Run the rest of a forked process; its parent's stack must never be returned to."""
    code = 1
    try:
        function()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):  # whoever read them is gone, or the function closed them
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class _Nursery:
    """The zygote's side."""

    def __init__(
        self, sock: socket.socket, run_worker: Callable[[bytes], None], at_end: Callable[[], None]
    ) -> None:
        self._socket = sock
        self._run_worker = run_worker
        self._at_end = at_end
        self._pids: dict[int, bytes] = {}
        self._workers: dict[bytes, int] = {}

    def run(self) -> None:
        set_title("zray-zygote")
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._wake = (wake_read, wake_write)
        gc.collect()
        gc.freeze()  # what exists now is shared with all workers; the collector must not touch (copy) it
        while True:
            sources: list[Any] = [self._socket, wake_read]
            readable, _, _ = select.select(sources, [], [])
            if wake_read in readable:
                os.read(wake_read, 4096)
                self._reap()
            if self._socket in readable:
                try:
                    data, fds, _, _ = socket.recv_fds(self._socket, 65536, 2)
                except ConnectionResetError:  # the node ended with words of ours unread
                    break
                if not data:
                    break
                verb, worker_id = pickle.loads(data)
                if verb == "start":
                    self._start(worker_id, fds)
                    _close_all(fds)
                else:
                    self._kill(worker_id)
        self._end()

    def _start(self, worker_id: bytes, output: list[int]) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._tell(("failed", worker_id, f"no process could be made for it: {error}"))
            return
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)
            die_with_parent(parent)
            self._socket.close()
            for fd in self._wake:
                os.close(fd)
            for number, fd in enumerate(output, start=1):
                os.dup2(fd, number)
            _close_all(output)
            guarded(lambda: self._run_worker(worker_id))
        self._pids[pid] = worker_id
        self._workers[worker_id] = pid
        self._tell(("started", worker_id, pid))

    def _kill(self, worker_id: bytes) -> None:
        pid = self._workers.get(worker_id)
        if pid is None:
            self._tell(("gone", worker_id))
            return
        self._kill_group(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # in case it has not made its group yet

    def _kill_group(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Take note of ended workers. What they started themselves ends with them."""
        while self._pids:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            self._kill_group(pid)  # before the number can be given to another process
            _, status = os.waitpid(pid, 0)
            worker_id = self._pids.pop(pid, None)
            if worker_id is not None:
                del self._workers[worker_id]
                self._tell(("exited", worker_id, status))

    def _tell(self, event: tuple[Any, ...]) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(pickle.dumps(event))  # without a node the loop ends by end of file

    def _end(self) -> None:
        for pid in self._pids:
            self._kill_group(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._at_end()
