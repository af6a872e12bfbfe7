"""Transport: ROUTER and DEALER sockets, and who is at the other end.

Each process binds one ROUTER to an ipc place, in a cluster of several machines another one to a tcp place, and has one DEALER
per peer it connected to. The first frame on a connection is a Hello; until a valid one has come, nothing else from that
connection is looked at. Messages to a peer gather in its outbox and go out as one frame at the end of the turn. Nothing is
dropped silently: ROUTER_MANDATORY turns an unroutable message into an error, which is counted, and queues have no limit of
their own (HWM 0), since senders bound what is in flight themselves.

A tcp connection can break while both ends live. libzmq makes it again without a word, and what was under way is lost. The
ROUTER sees a connection that begins with something else than a Hello, drops that and answers WHO; the dialler introduces
itself anew. Both are told that the connection *broke* (``on_broken``): what they do about the loss is theirs to know.

libzmq's descriptor of a socket is edge-triggered: it may stay silent although messages wait, after any operation on the
socket. So sockets that were used are *touched*, and ``pending`` looks at their EVENTS before the loop may sleep.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from zray.base.wire import HELLO, PROTOCOL_VERSION, Hello, Refuse, encode, pack, well_formed
from zray.io.endpoint import advertised, choose, directory_of, places, tcp_place
from zray.io.handshake import BACKLOG, DialWatch, Doorkeeper, bound_handshakes, show_key
from zray.io.loop import Loop

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

_HELLO_BYTES_MAX = 4096
# As plain integers: pyzmq's enums cost a microsecond each time they are combined.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
# A context keeps twelve bytes for each socket it may ever have, touched at once: a worker, of which there may be thousands, gets
# by with fewer than a driver or the head.
_SOCKETS_MAX = {"worker": 8192}
_PART_BYTES_MAX = 1 << 18  # of what goes over tcp at once: strangers may have as much memory each, before they prove themselves
_PART_BYTES_MORE = 1024  # what CURVE adds to it
_BATCH_MAX = 100  # frames read from one socket before the others have their turn
_WHO = b"?"  # no pickle starts so
_ASKED_MAX = 1000  # connections that we remember to have asked for an introduction
_CONNECTIONS_MAX = 4  # of one peer that are heard: it closes one before it makes another, unless they broke
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

    __slots__ = ("accepted", "asked", "link", "remote", "socket", "touched", "transport", "watch")

    def __init__(self, transport: Transport, socket: zmq.Socket[bytes], remote: bool) -> None:
        self.transport = transport
        self.socket = socket
        self.remote = remote  # over tcp
        self.link: Link | None = None  # of a DEALER
        self.watch: DialWatch | None = None  # of a DEALER
        self.accepted: dict[bytes, Link] = {}  # of a ROUTER: by routing ids, which only it understands
        self.asked: dict[bytes, None] = {}  # of a ROUTER: routing ids that were answered WHO
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
        endpoint: the ipc place to bind, or "" to bind none.
        cluster: identity of the cluster; peers of another are refused.
        decode: how to read frames of accepted peers.
        on_batch: called with the peer's id and a list of messages.
        on_hello: called with a valid Hello.
        message_bytes_max: larger frames end the connection they come from. Over tcp frames come in parts, which are small.
        tcp: the host or address to bind for other machines, the port (0: any), and the host or address to tell them; None to
            bind none. Names that others connect to stand for addresses of IPv4.
        key: what proves on tcp that a process belongs to the cluster; None admits everybody.

    ``endpoint`` becomes the text that tells others where this process can be reached (see ``zray.io.endpoint``). The owner may
    set ``on_refused(peer, reason)``, for peers that were dialled ``watched``, and ``on_broken(peer)``.

    Raises:
        OSError: a place can not be bound.
        ValueError: others could not connect to what they would be told.
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
        tcp: tuple[str, int, str] | None = None,
        key: ClusterKey | None = None,
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
        self._key = key
        self.links: dict[bytes, Link] = {}
        self._accepted: dict[bytes, list[Link]] = {}  # connections of peers that connected to us, the newest last
        self._channels: dict[_Channel, None] = {}
        self._touched: list[_Channel] = []
        self._dirty: list[Link] = []
        self._broken: list[bytes] = []
        self._doorkeeper: Doorkeeper | None = None
        self.counts: dict[str, int] = {}  # of what was dropped, and why
        self.on_refused: Callable[[bytes, str], None] = lambda peer, reason: None
        self.on_broken: Callable[[bytes], None] = lambda peer: None
        self._directory = directory_of(places(endpoint)[0])
        self.endpoint = endpoint
        try:
            if endpoint:
                self._bind(endpoint)
            if tcp is not None:
                self.endpoint = f"{endpoint} {self._bind_tcp(*tcp)}".lstrip()
        except BaseException:
            self.close()
            raise

    # -- peers ----------------------------------------------------------------------------------------------------

    def dial(self, peer: bytes, endpoint: str, watched: bool = False) -> None:
        """Connect to a peer, unless there is a connection.

        Args:
            peer: whom.
            endpoint: where; of its places, the one that fits is taken.
            watched: tell ``on_refused`` why there is no connection, and ``on_broken`` at once when it breaks. That takes two
                more sockets. A peer that gave no answer is tried again and again; one that refuses may not be: hang up and
                dial to try once more.
        """
        if peer in self.links:
            return
        place = choose(endpoint, self._directory)
        if not place:
            self._on_bad_address(peer, endpoint, watched)
            return
        remote = place.startswith("tcp")
        channel = self._open(zmq.DEALER, remote, place)
        link = Link(peer, "", channel, None)
        if watched:
            channel.watch = DialWatch(
                self._loop,
                self._context,
                channel.socket,
                remote and self._key is not None,
                lambda reason: self.on_refused(peer, reason),
                lambda: self._introduce_again(link),
            )
        try:
            channel.socket.connect(place)
        except (zmq.ZMQError, UnicodeError):
            self._close(channel)
            self._on_bad_address(peer, endpoint, watched)
            return
        channel.link = link
        self.links[peer] = link
        self._introduce(link)

    def alias(self, name: bytes, peer: bytes) -> None:
        """Reach ``peer`` under a second name."""
        self.links[name] = self.links[peer]

    def hang_up(self, peer: bytes) -> None:
        """Forget a peer, and close the socket to it."""
        for accepted in self._accepted.pop(peer, ()):
            assert accepted.routing_id is not None
            del accepted.channel.accepted[accepted.routing_id]
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
        if self._broken:
            broken, self._broken = self._broken, []
            for peer in broken:
                self.on_broken(peer)
            return True
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
                self._on_frame(channel.link, frames[0] if len(frames) == 1 else b"".join(frames))
            elif len(frames) == 2:
                self._on_routed(channel, frames[0], frames[1])
            elif channel.remote and len(frames) > 2:
                self._on_routed(channel, frames[0], b"".join(frames[1:]))
            else:
                self._count("malformed")
            if channel not in self._channels:
                return True
        self._touch(channel)
        return True

    def on_timer(self, now: float, key: Any) -> None:
        """A timer whose key is of the door (see ``zray.io.handshake``)."""
        if self._doorkeeper is not None:
            self._doorkeeper.on_timer(now)

    def close(self, linger_ms: int = 0) -> None:
        """Close every socket; what was sent has ``linger_ms`` to leave."""
        if self._doorkeeper is not None:
            self._doorkeeper.close()
            self._doorkeeper = None
        for channel in list(self._channels):
            self._close(channel, linger_ms)
        self._context.destroy(linger=linger_ms)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _bind(self, place: str, remote: bool = False) -> zmq.Socket[bytes]:
        channel = self._open(zmq.ROUTER, remote, place)
        channel.socket.set(zmq.ROUTER_MANDATORY, 1)
        if remote:
            self._doorkeeper = Doorkeeper(self._loop, self._context, channel.socket, self._key, self.counts)
        try:
            channel.socket.bind(place)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"can not listen at {place}: {zmq.strerror(error.errno or 0)}") from None
        return channel.socket

    def _bind_tcp(self, host: str, port: int, told: str) -> str:
        """Returns the place under which it is bound, for others."""
        told = advertised(host, told)
        socket = self._bind(tcp_place(host or "*", port or "*"), remote=True)
        place = socket.get_string(zmq.LAST_ENDPOINT)
        return tcp_place(told, place.rstrip("\0").rpartition(":")[2])

    def _open(self, kind: int, remote: bool, place: str) -> _Channel:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.MAXMSGSIZE, _PART_BYTES_MAX + _PART_BYTES_MORE if remote else self._message_bytes_max)
        socket.set(zmq.RECONNECT_IVL_MAX, 5000)
        socket.set(zmq.BACKLOG, BACKLOG if remote else 4096)
        if remote:
            # With it libzmq looks names up as those of IPv6 alone, if they have such an address.
            socket.set(zmq.IPV6, int("[" in place or "*:" in place))
            bound_handshakes(socket)
            if kind == zmq.DEALER and self._key is not None:
                show_key(socket, self._key)
        channel = _Channel(self, socket, remote)
        self._channels[channel] = None
        self._loop.add_source(channel)
        self._touch(channel)
        return channel

    def _close(self, channel: _Channel, linger_ms: int = 0) -> None:
        if self._channels.pop(channel, 0) is None:
            if channel.watch is not None:
                channel.watch.close()
            self._loop.remove_source(channel)
            channel.socket.close(linger_ms)

    def _touch(self, channel: _Channel) -> None:
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    def _put(self, link: Link, frame: bytes) -> None:
        channel = link.channel
        try:
            if link.routing_id is not None:
                channel.socket.send(link.routing_id, _NOBLOCK | _SNDMORE)
            if channel.remote and len(frame) > _PART_BYTES_MAX:
                frame = _send_all_but_the_last_part(channel.socket, frame)
            channel.socket.send(frame, _NOBLOCK)
        except zmq.Again:  # there are no limits, so there is no connection: libzmq gave it up
            self._count("to a full pipe")
            if channel.remote:
                self._broken.append(link.peer)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._count("to a peer that is gone")
            if channel.remote:
                self._drop(link)
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    def _on_routed(self, channel: _Channel, routing_id: bytes, frame: bytes) -> None:
        link = channel.accepted.get(routing_id)
        if link is not None:
            self._on_frame(link, frame)
        else:
            self._greet(channel, routing_id, frame)

    def _on_frame(self, link: Link, frame: bytes) -> None:
        try:
            batch = self._decode(frame)
        except Exception:  # a broken pickle can raise anything
            self._on_undecodable(link, frame)
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
            if channel.remote and routing_id not in channel.asked:
                self._put(Link(b"", "", channel, routing_id), _WHO)
                self._note_asked(channel, routing_id)
            return
        link = Link(hello.sender, hello.role, channel, routing_id)
        reason = self._unfit(hello)
        if reason:
            self._count("refused")
            self._put(link, encode([pack(Refuse(reason))]))
            self._note_asked(channel, routing_id)  # to ask would only have it say the same again
            return
        channel.asked.pop(routing_id, None)
        self._accept(link)
        self._on_hello(hello)

    def _note_asked(self, channel: _Channel, routing_id: bytes) -> None:
        if len(channel.asked) >= _ASKED_MAX:
            channel.asked.clear()
        channel.asked[routing_id] = None

    def _accept(self, link: Link) -> None:
        """A peer has connected: again, if there is a connection of it already, which then is the one that broke."""
        assert link.routing_id is not None
        link.channel.accepted[link.routing_id] = link
        links = self._accepted.setdefault(link.peer, [])
        links.append(link)
        if len(links) > _CONNECTIONS_MAX:
            oldest = links.pop(0)
            assert oldest.routing_id is not None
            del oldest.channel.accepted[oldest.routing_id]
        self.links.setdefault(link.peer, link)
        for older in links[:-1]:
            self._replace(older, link)

    def _replace(self, older: Link, newer: Link) -> None:
        """What would be sent over the older connection is sent over the newer one."""
        for name, link in self.links.items():
            if link is older:
                self.links[name] = newer
        if older.outbox:
            newer.outbox[:0] = older.outbox
            older.outbox = []
            self._dirty.append(newer)

    def _drop(self, link: Link) -> None:
        """A connection to our tcp ROUTER is gone. Told when the sending is over: it may be in the middle of it."""
        links = self._accepted.get(link.peer, [])
        if link not in links:
            return
        links.remove(link)
        if not links:
            del self._accepted[link.peer]
        del link.channel.accepted[link.routing_id or b""]
        if self.links.get(link.peer) is link:
            for name in [name for name, other in self.links.items() if other is link]:
                del self.links[name]
            self._broken.append(link.peer)

    def _introduce(self, link: Link) -> None:
        hello = Hello(PROTOCOL_VERSION, PYTHON, self._cluster, self._me, self._role, self.endpoint, os.getpid())
        self._put(link, encode_hello(hello))

    def _introduce_again(self, link: Link) -> None:
        """The connection to a peer broke, or there is another process now."""
        self._introduce(link)  # before anything that is said because of it
        self._count("broken connections")
        self.on_broken(link.peer)

    def _on_undecodable(self, link: Link, frame: bytes) -> None:
        if link.routing_id is None and frame == _WHO:
            self._introduce_again(link)
        elif link.routing_id is not None and decode_hello(frame) is not None:
            self._count("introduced twice")
        else:
            self._count("undecodable")

    def _on_bad_address(self, peer: bytes, endpoint: str, watched: bool) -> None:
        self._count("to a bad address")
        if watched:
            self.on_refused(peer, f"this is no address: {endpoint!r}")

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


def _send_all_but_the_last_part(socket: zmq.Socket[bytes], frame: bytes) -> bytes:
    whole = memoryview(frame)
    last = (len(frame) - 1) // _PART_BYTES_MAX * _PART_BYTES_MAX
    for start in range(0, last, _PART_BYTES_MAX):
        socket.send(whole[start : start + _PART_BYTES_MAX], _NOBLOCK | _SNDMORE)
    return frame[last:]


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
