"""Supervisor: the process of ``zray-head``: it starts the control and the agent of its machine, and lets none of them be missing.

It has no sockets and no threads, so that it can fork: a control that was killed is there again before most others have
noticed. The children end with it (PR_SET_PDEATHSIG). One that can not be started several times in a row is given up, and with
it the head.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from zray.io.spawn import describe_exit, die_with_parent, guarded
from zray.runtime.process import log

FAILURES_MAX = 5  # in a row
_YOUNG_S = 3.0  # a child that ends sooner by itself has failed
_REST_S = 0.2  # after a failure; twice as long after each further one
_END_S = 20.0  # how long children may take to end
_REPORT_BYTES_MAX = 65536

Run = Callable[[Callable[[str], None]], int]


class Child:
    """One process that must be there.

    Args:
        name: what logs call it.
        run: what it runs, given what reports to the supervisor that it is up; returns the exit code.
    """

    def __init__(self, name: str, run: Run) -> None:
        self.name = name
        self.pid = 0
        self.report = ""  # what the process said when it was up
        self.failures = 0  # in a row
        self.due = 0.0  # when it is started, if it does not run
        self._run = run
        self._started_at = 0.0
        self._pidfd = -1
        self._pipe = -1

    def start(self) -> None:
        """Fork it."""
        read, write = os.pipe()
        parent = os.getpid()
        self._started_at = time.monotonic()
        self.report = ""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            guarded(lambda: self._live(parent, write))
        os.close(write)
        self._pipe = read
        self._pidfd = os.pidfd_open(self.pid)

    def sources(self) -> list[int]:
        """What becomes readable when it has something to say, or has ended."""
        return [fd for fd in (self._pipe, self._pidfd) if fd >= 0]

    def hear(self) -> None:
        """Read its report."""
        text = os.read(self._pipe, _REPORT_BYTES_MAX).decode(errors="replace")
        os.close(self._pipe)
        self._pipe = -1
        self.report = text

    def reap(self) -> str:
        """It has ended: how."""
        if self._pipe >= 0:
            self.hear()
        _, status = os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1
        self.pid = 0
        by_itself = not os.WIFSIGNALED(status) and time.monotonic() - self._started_at < _YOUNG_S
        self.failures = self.failures + 1 if by_itself or not self.report.startswith("up ") else 0
        self.due = time.monotonic() + (_REST_S * 2.0 ** (self.failures - 1) if self.failures else 0.0)
        return describe_exit(status)

    def end(self, number: signal.Signals, timeout_s: float) -> None:
        """Have it end, and wait for that."""
        if self.pid == 0:
            return
        signal.pidfd_send_signal(self._pidfd, number)
        ended, _, _ = select.select([self._pidfd], [], [], timeout_s)
        if not ended:
            log.warning("the %s (pid %d) does not end and is killed", self.name, self.pid)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.reap()

    def is_event(self, readable: list[int]) -> tuple[bool, bool]:
        """Whether it has said something, and whether it has ended."""
        return self._pipe in readable, self._pidfd in readable

    def _live(self, parent: int, write: int) -> NoReturn:
        die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which ends its children in their order

        reported = False

        def report(text: str) -> None:
            nonlocal reported
            reported = True
            os.write(write, f"up {text}".encode())
            os.close(write)

        try:
            code = self._run(report)
        except (OSError, RuntimeError, ValueError) as error:
            log.error("the %s can not run: %s", self.name, error)
            if not reported:  # else the descriptor is somebody else's by now
                os.write(write, str(error).encode())
            code = 1
        raise SystemExit(code)


class Supervisor:
    """Keeps the children of ``zray-head`` running until it is told to end.

    Args:
        control: the control: started first, ended first.
        agent: the agent of this machine: started when the control is up.
        on_control: called with what the control reports each time it is up.
        on_agent: called with what the agent reports the first time.
        maker: a pidfd of the process with which all of this ends; -1: none.
    """

    def __init__(
        self,
        control: Child,
        agent: Child,
        on_control: Callable[[str], None],
        on_agent: Callable[[str], None],
        maker: int = -1,
    ) -> None:
        self._maker = maker
        self._control = control
        self._agent = agent
        self._on_control = on_control
        self._on_agent = on_agent
        self._joined = False
        self._stopped = ""

    def run(self) -> int:
        """Returns the exit code.

        Raises:
            OSError: a child could not be started the first time; the text says why.
        """
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        try:
            self._control.start()
            while not self._stopped:
                self._wait(wake_read)
            log.info("ending: %s", self._stopped)
        finally:
            signal.set_wakeup_fd(-1)
            self._control.end(signal.SIGTERM, _END_S)
            self._agent.end(signal.SIGTERM, _END_S)
            os.close(wake_read)
            os.close(wake_write)
        return int(self._control.failures >= FAILURES_MAX or self._agent.failures >= FAILURES_MAX)

    def _wait(self, wake: int) -> None:
        """Until something happens."""
        children = [self._control, self._agent]
        absent = [child for child in children if not child.pid and (child is self._control or self._control.report)]
        timeout_s = max(0.0, min(child.due for child in absent) - time.monotonic()) if absent else None
        sources = [wake, *[self._maker] * (self._maker >= 0), *[fd for child in children for fd in child.sources()]]
        readable, _, _ = select.select(sources, [], [], timeout_s)
        if wake in readable:
            os.read(wake, 4096)
        if self._maker in readable:
            self._stopped = "the process that made it ended"
        for child in children:
            spoke, ended = child.is_event(readable)
            if spoke:
                child.hear()
                self._heard(child)
            if ended:
                self._ended(child)
        for child in absent:
            if not child.pid and child.due <= time.monotonic() and not self._stopped:
                child.start()

    def _heard(self, child: Child) -> None:
        if not child.report.startswith("up "):
            return
        text = child.report.removeprefix("up ")
        if child is self._control:
            self._on_control(text)
        elif not self._joined:
            self._joined = True
            self._on_agent(text)

    def _ended(self, child: Child) -> None:
        pid = child.pid
        how = child.reap()
        if self._stopped:
            return
        if not self._joined and child.failures:
            raise OSError(child.report or f"the {child.name} {how} before it was up")
        if child.failures >= FAILURES_MAX:
            self._stopped = f"the {child.name} ended {FAILURES_MAX} times in a row soon after its start; the last time it {how}"
            log.error("%s. Its reason is above", self._stopped)
            return
        log.warning("the %s (pid %d) %s: it is started again", child.name, pid, how)

    def _on_signal(self, number: int, frame: object) -> None:
        self._stopped = signal.Signals(number).name
