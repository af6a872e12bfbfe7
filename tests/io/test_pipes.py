"""The pipes of workers, and their files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zray.base.wire_output import ERR, OUT
from zray.io.loop import Loop
from zray.io.pipes import WorkerPipes

PATIENCE_S = 30.0
ONE, TWO = b"node--\0\0\0\1------", b"node--\0\0\0\2------"


class Node:
    """An agent's loop, its pipes, and what was heard."""

    def __init__(self, folder: Path, log_bytes_max: int = 1 << 20, ended_bytes_max: int = 1 << 20) -> None:
        self.folder = folder
        self.heard: list[tuple[bytes, int, bytes]] = []
        self.loop = Loop(0.0)
        self.pipes = WorkerPipes(self.loop, str(folder), log_bytes_max, ended_bytes_max, self.on_heard)
        self.loop.on_timer = self.pipes.on_timer

    def on_heard(self, worker_id: bytes, kind: int, data: bytes) -> bytes:
        self.heard.append((worker_id, kind, data))
        return data.replace(b"secret", b"")

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"it never happened; heard: {self.heard[-3:]}"
            self.loop.turn(0.05)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def node(**limits: Any) -> Node:
        made.append(Node(tmp_path, **limits))
        return made[-1]

    yield node
    for each in made:
        each.pipes.close()
        each.loop.close()


def test_both_streams_are_heard_and_kept_in_one_file(make: Callable[..., Node]) -> None:
    node = make()
    out, err = node.pipes.open(ONE)
    os.write(out, b"out\n")
    node.until(lambda: len(node.heard) == 1)
    os.write(err, b"secret err\n")
    node.until(lambda: len(node.heard) == 2)
    assert node.heard == [(ONE, OUT, b"out\n"), (ONE, ERR, b"secret err\n")]
    assert node.files() == {"worker-00000001.log": b"out\n err\n"}
    os.close(out)
    os.close(err)


def test_a_silent_worker_has_no_file(make: Callable[..., Node]) -> None:
    node = make()
    for end in node.pipes.open(ONE):
        os.close(end)
    node.loop.turn(0.0)
    node.pipes.end(ONE)
    assert node.files() == {} and node.heard == []


def test_a_pipe_is_read_again_after_a_rest(make: Callable[..., Node]) -> None:
    node = make()
    out, err = node.pipes.open(ONE)
    for number in range(5):
        os.write(out, b"%d\n" % number)
        node.until(lambda count=number + 1: b"".join(row[2] for row in node.heard).count(b"\n") == count)  # type: ignore[misc]
    os.close(out)
    os.close(err)


def test_the_rest_is_read_when_a_worker_is_gone(make: Callable[..., Node]) -> None:
    node = make()
    out, err = node.pipes.open(ONE)
    os.write(out, b"last words")
    os.close(out)
    os.close(err)
    node.pipes.end(ONE)
    assert node.heard == [(ONE, OUT, b"last words")]
    node.pipes.end(ONE)  # it is known already


def test_many_that_write_without_end_are_all_read(make: Callable[..., Node]) -> None:
    node = make()
    workers = [b"node--" + number.to_bytes(4, "big") + b"------" for number in range(40)]
    ends = {worker: node.pipes.open(worker) for worker in workers}
    for out, _ in ends.values():
        os.write(out, b"x" * 60_000)
    node.until(lambda: {row[0] for row in node.heard} == set(workers))
    for out, _ in ends.values():
        os.write(out, b"y\n")
    node.until(lambda: sum(row[2] == b"y\n" for row in node.heard) == 40)
    for pair in ends.values():
        for end in pair:
            os.close(end)


def test_a_full_file_becomes_the_old_one(make: Callable[..., Node]) -> None:
    node = make(log_bytes_max=1000)
    out, err = node.pipes.open(ONE)
    for letter in b"abcd":
        os.write(out, bytes([letter]) * 600)
        node.pipes.drain(ONE)
    assert node.files() == {"worker-00000001.log": b"d" * 600, "worker-00000001.log.1": b"c" * 600}
    os.close(out)
    os.close(err)


def test_files_of_the_dead_are_kept_up_to_a_limit(make: Callable[..., Node]) -> None:
    node = make(ended_bytes_max=1000)
    for worker in (ONE, TWO):
        out, err = node.pipes.open(worker)
        os.write(out, b"z" * 600)
        os.close(out)
        os.close(err)
        node.pipes.end(worker)
    assert node.files() == {"worker-00000002.log": b"z" * 600}


def test_a_file_that_can_not_be_written_does_not_stop_the_output(make: Callable[..., Node], tmp_path: Path) -> None:
    node = make()
    (tmp_path / "worker-00000001.log").mkdir()
    out, err = node.pipes.open(ONE)
    for _ in range(2):
        os.write(out, b"heard\n")
        node.pipes.drain(ONE)
    assert [row[2] for row in node.heard] == [b"heard\n"] * 2
    os.close(out)
    os.close(err)
