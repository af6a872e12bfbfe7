"""Ends of connections, made and closed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq
from ends import End

from zray.io.cluster_key import ClusterKey

KEY = ClusterKey.create("127.0.0.1:1")


@pytest.fixture
def short_path() -> Iterator[str]:
    """A directory whose name is short enough for the paths of sockets."""
    path = tempfile.mkdtemp(prefix="zt-", dir="/tmp")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def make(short_path: str) -> Iterator[Callable[..., End]]:
    """Makes ends whose ipc sockets lie in one directory."""
    made: list[End] = []

    def end(name: str, **options: Any) -> End:
        made.append(End(options.pop("path", short_path), name, **options))
        return made[-1]

    yield end
    for each in made:
        each.close()


@pytest.fixture
def raw() -> Iterator[Callable[..., Any]]:
    """A bare DEALER, connected to an end, or to a place."""
    context = zmq.Context()
    sockets: list[Any] = []

    def connect(end: Any, **options: Any) -> Any:
        socket = context.socket(zmq.DEALER)
        for name, value in options.items():
            socket.set(getattr(zmq, name), value)
        socket.connect(end if isinstance(end, str) else end.endpoint)
        sockets.append(socket)
        return socket

    yield connect
    for socket in sockets:
        socket.close(0)
    context.term()


@pytest.fixture(params=["insecure", "CURVE"])
def key(request: Any) -> ClusterKey | None:
    return KEY if request.param == "CURVE" else None
