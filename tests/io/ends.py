"""Processes for the tests of the transport: a loop, a transport, and what arrived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from relay import Relay

from zray.base import wire
from zray.io.conversation import NEVER
from zray.io.greeting import PYTHON, encode_hello
from zray.io.loop import Loop
from zray.io.transport import Transport

PATIENCE_S = 30.0
CLUSTER = b"c" * 16
LOOPBACK = ("127.0.0.1", 0, "")
SAY = wire.OPS[wire.ListNodes]


class End:
    """One process.

    Args:
        path: the directory of its ipc socket.
        name: of its socket, and what its id is made of.
        cluster: which it believes to belong to.
        plain: whether it admits no classes in frames.
        bound: whether it has an ipc socket.
        tcp: see Transport.
        key: see Transport.
    """

    def __init__(
        self,
        path: Any,
        name: str,
        cluster: bytes = CLUSTER,
        plain: bool = True,
        bound: bool = True,
        tcp: tuple[str, int, str] | None = None,
        key: Any = None,
    ) -> None:
        self.me = name.encode().ljust(16, b"-")
        self.loop = Loop(0.005)
        self.got: list[tuple[bytes, Any]] = []
        self.hellos: list[wire.Hello] = []
        self.decoded = 0
        self.refused: list[tuple[bytes, str]] = []
        self.broken: list[bytes] = []
        self.lost: list[bytes] = []
        self._decode = wire.decode_plain if plain else wire.decode
        try:
            self.transport = Transport(
                self.loop,
                self.me,
                "worker",
                f"ipc://{path}/{name}" if bound else "",
                cluster,
                self.decode,
                lambda peer, batch: self.got.extend((peer, message) for message in batch),
                self.hellos.append,
                message_bytes_max=1 << 20,
                tcp=tcp,
                key=key,
            )
        except BaseException:
            self.loop.close()
            raise
        self.transport.on_refused = lambda peer, reason: self.refused.append((peer, reason))
        self.transport.on_broken = self.broken.append
        self.transport.on_lost = self.lost.append
        self.endpoint = self.transport.endpoint
        self.tcp = self.endpoint.rpartition(" ")[2]
        self.loop.pending = self.transport.pending
        self.loop.settle = lambda now: self.transport.flush()
        self.loop.on_timer = self.transport.on_timer
        self._closed = False

    def decode(self, frame: bytes) -> Any:
        self.decoded += 1
        return self._decode(frame)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.transport.close()
            self.loop.close()


def turn_until(condition: Callable[[], Any], *ends: End, relay: Relay | None = None) -> None:
    """Turn the loops until something has happened."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, [(end.transport.counts, end.refused) for end in ends]
        for end in ends:
            end.loop.turn(0.001)
            if relay is not None:
                relay.turn()


def hello(sender: bytes, conversation: int = 1, heard: int = NEVER) -> bytes:
    me = (wire.PROTOCOL_VERSION, PYTHON, CLUSTER, sender, "worker", "", os.getpid())
    return encode_hello(wire.Hello(*me, conversation, heard))


def batch(number: int) -> bytes:
    return wire.encode([(SAY, number)])


def port_of(end: End) -> int:
    return int(end.tcp.rpartition(":")[2])
