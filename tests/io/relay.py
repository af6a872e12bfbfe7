"""Relay: a tcp connection between two ends, which can be cut, broken and healed."""

from __future__ import annotations

import contextlib
import select
import socket
import struct

_READ_BYTES = 1 << 16


class Relay:
    """Listens, and carries what comes to a port of this machine and back, whenever it is turned."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.setblocking(False)
        self.port = int(self._listener.getsockname()[1])
        self._pairs: dict[socket.socket, socket.socket] = {}
        self.connections = 0
        self.cut = False  # nothing is carried, and nobody is told

    @property
    def place(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def turn(self) -> None:
        """Carry what is there."""
        if self.cut:
            return
        readable, _, _ = select.select([self._listener, *self._pairs], [], [], 0)
        for each in readable:
            if each is self._listener:
                near, _ = each.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for one in (near, far):
                    one.setblocking(False)
                self._pairs[near], self._pairs[far] = far, near
                self.connections += 1
            elif each in self._pairs:
                self._carry(each)

    def carry_part(self, count: int) -> None:
        """Carry only that many bytes of what is there, each way: a connection may break in the middle of a frame."""
        readable, _, _ = select.select(list(self._pairs), [], [], 0)
        for each in readable:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self._pairs[each].send(each.recv(count))

    def _carry(self, source: socket.socket) -> None:
        sink = self._pairs[source]
        try:
            data = source.recv(_READ_BYTES)
            sink.setblocking(True)
            sink.sendall(data)
            sink.setblocking(False)
        except ConnectionError:
            data = b""
        if not data:
            self._end(source, reset=False)

    def break_all(self, reset: bool = False) -> None:
        """End all connections; ``reset``: with an error, and what is under way is lost."""
        while self._pairs:
            self._end(next(iter(self._pairs)), reset)

    def _end(self, one: socket.socket, reset: bool) -> None:
        other = self._pairs.pop(one)
        del self._pairs[other]
        for each in (one, other):
            if reset:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            each.close()

    def close(self) -> None:
        self.break_all()
        self._listener.close()
