"""Door: a listening socket that nobody can knock at for a while."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from zray.io.door import Door

MOMENT_S = 0.2


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def door(listener: socket.socket) -> Iterator[Door]:
    door = Door(listener.fileno())
    if not door.shut():
        pytest.skip("this system has no filters for sockets")
    door.open()
    yield door
    door.close()


def knock(listener: socket.socket, patience_s: float) -> socket.socket | None:
    stranger = socket.socket()
    stranger.settimeout(patience_s)
    with contextlib.suppress(TimeoutError):
        stranger.connect(listener.getsockname())
        return stranger
    stranger.close()
    return None


def test_nobody_gets_in_while_it_is_shut(listener: socket.socket, door: Door) -> None:
    door.shut()
    assert door.is_shut and knock(listener, MOMENT_S) is None
    door.open()
    late = knock(listener, 30.0)
    assert late is not None and not door.is_shut
    late.close()


def test_who_came_too_early_gets_in_by_himself(listener: socket.socket, door: Door) -> None:
    door.shut()
    with socket.socket() as stranger:
        stranger.setblocking(False)
        stranger.connect_ex(listener.getsockname())
        listener.settimeout(MOMENT_S)
        with pytest.raises(TimeoutError):
            listener.accept()
        door.open()
        listener.settimeout(30.0)
        connection, _ = listener.accept()
        connection.close()


def test_those_inside_notice_nothing(listener: socket.socket, door: Door) -> None:
    stranger = knock(listener, 30.0)
    assert stranger is not None
    connection, _ = listener.accept()
    door.shut()
    with stranger, connection:
        connection.settimeout(30.0)
        stranger.sendall(b"still here")
        assert connection.recv(100) == b"still here"
    door.open()
    door.open()  # once more does no harm
