"""Transport: ROUTER and DEALER sockets, and who is at the other end.

Each process binds one ROUTER and has one DEALER per peer it connected to. The first frame on a connection is a Hello; until a
valid one has come, nothing else from that connection is looked at. Messages to a peer gather in its outbox and go out as one
frame at the end of the turn. Nothing is dropped silently: ROUTER_MANDATORY turns an unroutable message into an error,
which is counted, and queues have no limit of their own (HWM 0), since senders bound what is in flight themselves.

libzmq's descriptor of a socket is edge-triggered: it may stay silent although messages wait, after any operation on the
socket. So sockets that were used are *touched*, and ``pending`` looks at their EVENTS before the loop may sleep.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import zmq

from zray.base.wire import HELLO, PROTOCOL_VERSION, Hello, Refuse, encode, pack, well_formed
from zray.io.loop import Loop

_HELLO_BYTES_MAX = 4096
# As plain integers: pyzmq's enums cost a microsecond each time they are combined.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
# A context keeps twelve bytes for each socket it may ever have, touched at once: a worker, of which there may be thousands, gets by
# with fewer than a driver or the head.
_SOCKETS_MAX = {"worker": 8192}
_BATCH_MAX = 100  # frames read from one socket before the others have their turn
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


class Link:
    """One peer and how to reach it."""

    __slots__ = ("channel", "outbox", "peer", "role", "routing_id")

    def __init__(self, peer: bytes, role: str, channel: _Channel, routing_id: bytes | None) -> None:
        self.peer = peer
        self.role = role
        self.channel = channel
        self.routing_id = routing_id  # for a peer that connected to our ROUTER
        self.outbox: list[tuple[Any, ...]] = []


class _Channel:
    """One socket, as a source of the loop."""

    __slots__ = ("link", "socket", "touched", "transport")

    def __init__(self, transport: Transport, socket: zmq.Socket[bytes]) -> None:
        self.transport = transport
        self.socket = socket
        self.link: Link | None = None  # of a DEALER
        self.touched = False

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def on_readable(self) -> None:
        self.transport.drain(self)


class Transport:
    """The sockets of one process.

    Args:
        loop: the loop that reads them.
        me: id of this process.
        role: "driver", "worker", "agent" or "control".
        endpoint: where to bind, or "" to bind nothing.
        cluster: identity of the cluster; peers of another are refused.
        decode: how to read frames of accepted peers.
        on_batch: called with the peer's id and a list of messages.
        on_hello: called with a valid Hello.
    """

    def __init__(
        self,
        loop: Loop,
        me: bytes,
        role: str,
        endpoint: str,
        cluster: bytes,
        decode: Callable[[bytes], Any],
        on_batch: Callable[[bytes, list[Any]], None],
        on_hello: Callable[[Hello], None],
        *,
        message_bytes_max: int = -1,
    ) -> None:
        self._loop = loop
        self._me = me
        self._role = role
        self._cluster = cluster
        self._decode = decode
        self._on_batch = on_batch
        self._on_hello = on_hello
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX.get(role, 65535))
        self._message_bytes_max = message_bytes_max
        self.links: dict[bytes, Link] = {}
        self._by_routing_id: dict[bytes, Link] = {}
        self._accepted: dict[bytes, bytes] = {}  # peers that connected to us: peer -> routing id
        self._channels: dict[_Channel, None] = {}
        self._touched: list[_Channel] = []
        self._dirty: list[Link] = []
        self.counts: dict[str, int] = {}  # of what was dropped, and why
        self.endpoint = endpoint
        if endpoint:
            self._router = self._open(zmq.ROUTER)
            self._router.socket.set(zmq.ROUTER_MANDATORY, 1)
            self._router.socket.bind(endpoint)

    # -- peers ----------------------------------------------------------------------------------------------------

    def dial(self, peer: bytes, endpoint: str) -> None:
        """Connect to a peer, unless there is a connection."""
        if peer in self.links:
            return
        channel = self._open(zmq.DEALER)
        channel.socket.connect(endpoint)
        link = Link(peer, "", channel, None)
        channel.link = link
        self.links[peer] = link
        hello = Hello(PROTOCOL_VERSION, PYTHON, self._cluster, self._me, self._role, self.endpoint, os.getpid())
        self._put(link, encode_hello(hello))

    def alias(self, name: bytes, peer: bytes) -> None:
        """Reach ``peer`` under a second name."""
        self.links[name] = self.links[peer]

    def hang_up(self, peer: bytes) -> None:
        """Forget a peer, and close the socket to it."""
        accepted = self._accepted.pop(peer, None)
        if accepted is not None:
            del self._by_routing_id[accepted]
        link = self.links.pop(peer, None)
        if link is not None and link.routing_id is None and link not in self.links.values():
            link.outbox.clear()  # it may be among those that the next flush looks at
            self._close(link.channel)

    # -- messages -------------------------------------------------------------------------------------------------

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> bool:
        """Queue a message for a peer; False, and counted, if it is not known."""
        link = self.links.get(peer)
        if link is None:
            self._count("to an unknown peer")
            return False
        if not link.outbox:
            self._dirty.append(link)
        link.outbox.append(msg if type(msg) is tuple else pack(msg))
        return True

    def flush(self) -> None:
        """Send what has gathered, one frame per peer."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            batch, link.outbox = link.outbox, []
            if batch:
                self._put(link, encode(batch))

    def pending(self) -> bool:
        """Whether any socket that was used since it was last empty has something to read; reads it."""
        if not self._touched:
            return False
        touched, self._touched = self._touched, []
        found = False
        for channel in touched:
            channel.touched = False
            if channel in self._channels and self.drain(channel):
                found = True
        return found

    def drain(self, channel: _Channel) -> bool:
        """Read what a socket has; whether there was anything."""
        socket = channel.socket
        get = socket.get
        found = False
        for _ in range(_BATCH_MAX):
            if not int(get(_EVENTS)) & _POLLIN:
                return found
            frames = socket.recv_multipart(_NOBLOCK)
            found = True
            if channel.link is not None:
                self._on_frame(channel.link, frames[0])
            elif len(frames) == 2:
                self._on_routed(channel, frames[0], frames[1])
            else:
                self._count("malformed")
            if channel not in self._channels:
                return True
        self._touch(channel)
        return True

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket; what was sent has ``linger_ms`` to leave."""
        for channel in list(self._channels):
            self._close(channel, linger_ms)
        self._context.destroy(linger=linger_ms)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _open(self, kind: int) -> _Channel:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.MAXMSGSIZE, self._message_bytes_max)
        socket.set(zmq.IPV6, 1)
        socket.set(zmq.RECONNECT_IVL_MAX, 5000)
        socket.set(zmq.BACKLOG, 4096)
        channel = _Channel(self, socket)
        self._channels[channel] = None
        self._loop.add_source(channel)
        self._touch(channel)
        return channel

    def _close(self, channel: _Channel, linger_ms: int = 0) -> None:
        if self._channels.pop(channel, 0) is None:
            self._loop.remove_source(channel)
            channel.socket.close(linger_ms)

    def _touch(self, channel: _Channel) -> None:
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    def _put(self, link: Link, frame: bytes) -> None:
        channel = link.channel
        try:
            if link.routing_id is None:
                channel.socket.send(frame, _NOBLOCK)
            else:
                channel.socket.send(link.routing_id, _NOBLOCK | _SNDMORE)
                channel.socket.send(frame, _NOBLOCK)
        except zmq.Again:
            self._count("to a full pipe")
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._count("to a peer that is gone")
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    def _on_routed(self, channel: _Channel, routing_id: bytes, frame: bytes) -> None:
        link = self._by_routing_id.get(routing_id)
        if link is not None:
            self._on_frame(link, frame)
        else:
            self._greet(channel, routing_id, frame)

    def _on_frame(self, link: Link, frame: bytes) -> None:
        try:
            batch = self._decode(frame)
        except Exception:  # a broken pickle can raise anything
            self._count("undecodable")
            return
        if type(batch) is not list:
            self._count("malformed")
            return
        self._on_batch(link.peer, batch)

    def _greet(self, channel: _Channel, routing_id: bytes, frame: bytes) -> None:
        """The first frame of a connection: a Hello that fits, or nothing."""
        hello = decode_hello(frame)
        if hello is None:
            self._count("before hello")
            return
        link = Link(hello.sender, hello.role, channel, routing_id)
        reason = self._unfit(hello)
        if reason:
            self._count("refused")
            self._put(link, encode([pack(Refuse(reason))]))
            return
        self._by_routing_id[routing_id] = link
        self._accepted[hello.sender] = routing_id
        self.links.setdefault(hello.sender, link)
        self._on_hello(hello)

    def _unfit(self, hello: Hello) -> str:
        if hello.version != PROTOCOL_VERSION:
            return f"protocol version {hello.version} does not fit {PROTOCOL_VERSION}: install the same zray everywhere"
        if hello.python != PYTHON:
            return f"Python {hello.python} does not fit Python {PYTHON} of the cluster: use the same minor version"
        if hello.cluster != self._cluster:
            return "this is another cluster: check the address"
        if not hello.sender or not 0 < hello.pid < 1 << 31:
            return "the introduction makes no sense"
        return ""

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def encode_hello(hello: Hello) -> bytes:
    """The first frame of a connection. It is no pickle: even reading one can take all memory, and nobody knows the sender yet."""
    return json.dumps([field.hex() if isinstance(field, bytes) else field for field in hello]).encode()


def decode_hello(frame: bytes) -> Hello | None:
    """The Hello of a first frame, or None if it is something else."""
    if len(frame) > _HELLO_BYTES_MAX:
        return None
    try:
        fields = json.loads(frame)
        version, python, cluster, sender, role, endpoint, pid = fields
        message = (HELLO, version, python, bytes.fromhex(cluster), bytes.fromhex(sender), role, endpoint, pid)
    except (ValueError, TypeError, RecursionError):
        return None
    return Hello(*message[1:]) if well_formed(message) else None
