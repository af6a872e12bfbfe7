"""The zygote: workers by fork, their ends reported, nobody left behind."""

from __future__ import annotations

import faulthandler
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zray.io.spawn import Zygote, describe_exit

PATIENCE_S = 30.0
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


class Node:
    """What a node sees of its zygote."""

    def __init__(self, run_worker: Callable[[bytes], None], at_end: Callable[[], None] = lambda: None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.zygote = Zygote(run_worker, at_end, self.events.append)

    def until(self, kind: str, worker: bytes | None = None) -> tuple[Any, ...]:
        """The next event of a kind, of one worker if it is named."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for event in self.events:
                if event[0] == kind and worker in (None, *event[1:2]):
                    self.events.remove(event)
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind}; there were {self.events}"
            assert ("lost",) not in self.events, "the zygote ended"
            select.select([self.zygote], [], [], left)
            self.zygote.on_readable()


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Wait for the end of a process that is nobody's child here."""
    deadline = time.monotonic() + PATIENCE_S
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.002)
    return not alive(pid)


def behave(worker_id: bytes) -> None:
    """A worker that does what its name says."""
    if worker_id.startswith(b"sleep"):
        signal.pause()
    elif worker_id.startswith(b"code"):
        sys.exit(int(worker_id[4:]))
    elif worker_id.startswith(b"signal"):
        faulthandler.disable()  # what it would print is not for the output of the test
        os.kill(os.getpid(), int(worker_id[6:]))
    elif worker_id.startswith(b"raise"):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its traceback is not for the test's output
        raise LookupError


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node(behave)
    yield made
    made.zygote.close()


def test_a_worker_runs_and_its_end_is_reported(node: Node) -> None:
    node.zygote.start(b"good")
    _, _, pid = node.until("started")
    assert node.until("exited") == ("exited", b"good", 0)
    assert not alive(pid)


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (b"code3", "exited with code 3"),
        (b"signal9", r"killed by signal 9 (SIGKILL)"),
        (b"signal11", r"killed by signal 11 (SIGSEGV)"),
        (b"raise", "exited with code 1"),
    ],
)
def test_how_a_worker_ended_is_said_in_words(node: Node, worker: bytes, text: str) -> None:
    node.zygote.start(worker)
    assert describe_exit(node.until("exited")[2]) == text


def test_what_only_the_node_needs_is_closed_in_the_zygote() -> None:
    read, write = os.pipe()
    zygote = Zygote(behave, lambda: None, lambda event: None, (write,))
    os.close(write)
    readable, _, _ = select.select([read], [], [], PATIENCE_S)
    assert readable and os.read(read, 1) == b"", "nobody else has its other end"
    os.close(read)
    zygote.close()


def test_many_workers_at_once(node: Node) -> None:
    names = [b"%d" % i for i in range(50)]
    for name in names:
        node.zygote.start(name)
    assert sorted(node.until("exited")[1] for _ in names) == sorted(names)
    assert len({node.until("started")[2] for _ in names}) == 50


def test_a_worker_is_killed_by_its_name(node: Node) -> None:
    for name in (b"sleep1", b"sleep2"):
        node.zygote.start(name)
    other = node.until("started", b"sleep1")[2]
    node.zygote.kill(b"sleep2")
    assert describe_exit(node.until("exited")[2]) == "killed by signal 9 (SIGKILL)"
    assert alive(other)
    node.zygote.kill(b"sleep2")  # it is gone already
    node.zygote.kill(b"never was")
    node.zygote.start(b"good")
    node.until("exited", b"good")
    assert alive(other)


def test_a_worker_killed_at_once_after_its_start(node: Node) -> None:
    for i in range(20):
        node.zygote.start(b"sleep%d" % i)
        node.zygote.kill(b"sleep%d" % i)
    for _ in range(20):
        assert os.WTERMSIG(node.until("exited")[2]) == signal.SIGKILL


def test_what_a_worker_started_ends_with_it() -> None:
    read, write = os.pipe()

    def spawn(worker_id: bytes) -> None:
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        os.write(write, b"%d" % child.pid)
        if worker_id == b"stay":
            signal.pause()

    node = Node(spawn)
    try:
        for name in (b"leave", b"stay"):
            node.zygote.start(name)
            child = int(os.read(read, 100))
            if name == b"stay":
                assert alive(child)
                node.zygote.kill(name)
            node.until("exited", name)
            assert gone(child)
    finally:
        node.zygote.close()
        os.close(read)
        os.close(write)


def test_close_ends_all_workers_and_does_the_last_thing(tmp_path: Any) -> None:
    last = tmp_path / "last"
    node = Node(behave, last.touch)
    pids = []
    for i in range(5):
        node.zygote.start(b"sleep%d" % i)
        pids.append(node.until("started")[2])
    node.zygote.close()
    assert last.exists()
    assert not any(alive(pid) for pid in [*pids, node.zygote.pid])


def test_a_zygote_that_is_killed_is_reported_and_its_workers_die() -> None:
    node = Node(behave)
    node.zygote.start(b"sleep")
    worker = node.until("started")[2]
    os.kill(node.zygote.pid, signal.SIGKILL)
    assert node.until("lost") == ("lost",)
    assert gone(worker)
    node.zygote.start(b"sleep")  # nobody hears it, and that is no error
    node.zygote.kill(b"sleep")
    node.zygote.close()


def test_a_zygote_that_does_not_answer_is_killed() -> None:
    node = Node(behave)
    node.zygote.start(b"sleep")
    worker = node.until("started")[2]
    os.kill(node.zygote.pid, signal.SIGSTOP)
    node.zygote.close(timeout_s=0.01)
    assert gone(worker)
    assert not alive(node.zygote.pid)


def test_a_node_that_is_killed_takes_zygote_and_workers_with_it(tmp_path: Any) -> None:
    read, write = os.pipe()
    last = tmp_path / "last"
    pid = os.fork()
    if pid == 0:
        node = Node(behave, last.touch)
        node.zygote.start(b"sleep")
        os.write(write, pickle.dumps((node.zygote.pid, node.until("started")[2])))
        signal.pause()
    zygote, worker = pickle.loads(os.read(read, 4096))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(read)
    os.close(write)
    assert gone(worker)
    assert gone(zygote)
    assert last.exists()


def test_interrupts_are_not_for_the_zygote(node: Node) -> None:
    node.zygote.start(b"first")
    node.until("exited", b"first")  # it has been through its beginning
    for _ in range(3):
        os.kill(node.zygote.pid, signal.SIGINT)
    node.zygote.start(b"good")
    node.until("exited", b"good")


def test_a_worker_has_a_process_group_of_its_own(node: Node) -> None:
    node.zygote.start(b"sleep")
    worker = node.until("started")[2]
    deadline = time.monotonic() + PATIENCE_S
    while os.getpgid(worker) != worker:  # it does so itself, after the fork
        assert time.monotonic() < deadline
    assert os.getpgid(worker) != os.getpgid(0)


def test_every_exit_has_words() -> None:
    assert describe_exit(0) == "exited with code 0"
    assert describe_exit(7 << 8) == "exited with code 7"
    assert describe_exit(64 - 1) == "killed by signal 63 (unknown)"
