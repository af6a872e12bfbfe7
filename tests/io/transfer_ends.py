"""Ends of transfers: services with arenas of their own, and what they tell."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from typing import Any

from zray.io.cluster_key import ClusterKey
from zray.io.storage import Arena
from zray.io.transfer import TransferService

PATIENCE_S = 30.0
HOST = "127.0.0.1"


class TransferEnd:
    """One node's service, and its outcomes as they would reach the loop."""

    def __init__(self, name: str, size: int, key: ClusterKey | None = None, **options: Any) -> None:
        self.arena = Arena(f"zray-test-{os.getpid()}-{name}", size)
        self.told: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.service = TransferService(
            self.arena, HOST, "", key, self.told.put, self.fetched, self.failed, self.unserved, **options
        )
        self.closed = False

    def fetched(self, object_id: bytes, checksum: int) -> None:
        """A name for the outcome."""

    def failed(self, object_id: bytes, received: int, kind: str, reason: str) -> None:
        """Likewise."""

    def unserved(self, ticket: int) -> None:
        """Likewise."""

    def hear(self, timeout_s: float = PATIENCE_S) -> tuple[Any, ...]:
        """The next outcome: ("fetched", ...), ("failed", ...) or ("unserved", ticket)."""
        function, *values = self.told.get(timeout=timeout_s)
        assert function in (self.fetched, self.failed, self.unserved), (function, values)
        return (function.__name__, *values)

    def fill(self, offset: int, data: bytes) -> tuple[int, int]:
        """Lay bytes down in the arena; returns their place."""
        view: Any = self.arena.buf
        view[offset : offset + len(data)] = data
        return offset, len(data)

    def look(self, offset: int, size: int) -> bytes:
        view: Any = self.arena.buf
        return bytes(view[offset : offset + size])

    def fetch(
        self, source: TransferEnd | str, object_id: bytes, size: int, ticket: int = 1, *, received: int = 0, **options: Any
    ) -> None:
        endpoint = source if isinstance(source, str) else source.service.endpoint
        place, checksum = options.get("place", (0, False)), options.get("checksum", -1)
        self.service.fetch(object_id, endpoint, ticket, size, received, place, checksum)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.service.close()
            self.arena.unlink()
            self.arena.close()


class Wire:
    """A connection that can be cut: what listens here passes bytes on to an endpoint, as many as it may."""

    def __init__(self, endpoint: str, bytes_max: int) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self._target = (host, int(port))
        self._left = bytes_max
        self._listener = socket.create_server((HOST, 0))
        self.endpoint = f"tcp://{HOST}:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._sockets += [near, far]
            for source, target, limited in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._pass, args=(source, target, limited), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, source: socket.socket, target: socket.socket, limited: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if limited and self._left > -1 << 50:
                    self._left -= len(data)
                    if self._left < 0:
                        break
                target.sendall(data)
        except OSError:
            pass  # the other direction has cut it
        for each in (source, target):
            with contextlib.suppress(OSError):  # likewise
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """From now on everything passes."""
        self._left = -1 << 60

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):  # it was cut
                each.shutdown(socket.SHUT_RDWR)  # which ends the waiting of its threads, as closing does not
            each.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)
