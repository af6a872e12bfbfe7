"""Transport: ROUTER and DEALER sockets, and who is at the other end.

Each process binds one ROUTER to an ipc place, in a cluster of several machines another one to a tcp place, and has one DEALER
per peer it connected to. The first frame on a connection is a Hello; until a valid one has come, nothing else from that
connection is looked at. Messages to a peer gather in its outbox and go out as one frame at the end of the turn. Nothing is
dropped silently: ROUTER_MANDATORY turns an unroutable message into an error, which is counted, and queues have no limit of
their own (HWM 0), since senders bound what is in flight themselves.

A tcp connection can break while both ends live. libzmq makes it again without a word, and what was under way is lost. So each
link over tcp is a ``Conversation``, whose frames are said again if need be. A ROUTER that hears from a connection it does not
know asks WHO that is, and the DEALER introduces itself with the number of its conversation. If the ROUTER knows that they go on;
if not, it answers ANEW, and what the dialler had said is said to somebody who does not know the past (``on_broken``).

libzmq's descriptor of a socket is edge-triggered: it may stay silent although messages wait, after any operation on the
socket. So sockets that were used are *touched*, and ``pending`` looks at their EVENTS before the loop may sleep.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from zray.base.wire import PROTOCOL_VERSION, Hello, Refuse, encode, pack
from zray.io import descriptors
from zray.io.conversation import NEVER, Conversation
from zray.io.endpoint import advertised, choose, directory_of, places, tcp_place
from zray.io.greeting import PYTHON, decode_hello, encode_hello, unfit
from zray.io.handshake import BACKLOG, DialWatch, Doorkeeper, bound_handshakes, connect_soon, show_key
from zray.io.link import Channel, Link
from zray.io.loop import Loop

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

# As plain integers: pyzmq's enums cost a microsecond each time they are combined.
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
# A context keeps twelve bytes for each socket it may ever have, touched at once: a worker, of which there may be thousands, gets
# by with fewer than a driver or the head.
_SOCKETS_MAX = {"worker": 8192}
_PART_BYTES_MAX = 1 << 18  # of what goes over tcp at once: strangers may have as much memory each, before they prove themselves
_RECEIVED_BYTES_MAX = 1 << 18  # that the kernel takes from anybody before they are read: to throw them away takes time too
_PART_BYTES_MORE = 1024  # what CURVE adds to it
_BATCH_MAX = 100  # frames read from one socket before the others have their turn
_WHO = b"?"  # no pickle starts so, and no frame of a conversation
_ANEW = b"!%d"
_NUMBERED = 0  # the first byte of the frames of a conversation
_AWAY_S = 60.0  # a peer that dialled and whose connection is gone for so long is forgotten
_LINKS_MIN = 64  # nobody is looked for among fewer
_ASK_AGAIN_S = 1.0
_ASKED_MAX = 1000  # connections that we remember to have asked for an introduction
_CONNECTIONS_MAX = 4  # of one peer that are heard: it closes one before it makes another, unless they broke


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
    set ``on_refused(peer, reason)``, for peers that were dialled ``watched``; ``on_lost(peer)``, for those and for peers that
    connected over tcp: the connection is gone, and may come back; and ``on_broken(peer)``: who was dialled over tcp knows
    nothing of us, as after a new start. What the owner says in that call is the first thing it hears; then it hears once more
    whatever the one before may not have heard.

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
        descriptors.raise_limit()
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX.get(role, 65535))
        self._message_bytes_max = message_bytes_max
        self._key = key
        self.links: dict[bytes, Link] = {}
        self._addresses: dict[bytes, str] = {}  # of peers that were not dialled yet
        self._accepted: dict[bytes, list[Link]] = {}  # connections of peers that connected to us, the newest last
        self._channels: dict[Channel, None] = {}
        self._touched: list[Channel] = []
        self._dirty: list[Link] = []
        self._lost: list[bytes] = []
        self._numbers = itertools.count(1)  # of conversations
        self._look_at = _LINKS_MIN  # when there are as many peers that connected, those that went are looked for
        self._doorkeeper: Doorkeeper | None = None
        self.counts: dict[str, int] = {}  # of what was dropped, and why
        self.on_refused: Callable[[bytes, str], None] = lambda peer, reason: None
        self.on_lost: Callable[[bytes], None] = lambda peer: None
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
            watched: tell ``on_refused`` why there is no connection, and ``on_lost`` at once when it breaks. That takes two
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
        link = Link(peer, "", channel, None, Conversation(next(self._numbers)) if remote else None)
        if watched:
            channel.watch = DialWatch(
                self._loop,
                self._context,
                channel.socket,
                remote and self._key is not None,
                lambda reason: self.on_refused(peer, reason),
                lambda: self.on_lost(peer),
            )
        try:
            channel.socket.connect(place)
        except (zmq.ZMQError, UnicodeError):
            self._close(channel)
            self._on_bad_address(peer, endpoint, watched)
            return
        channel.link = link
        self.links[peer] = link
        if link.talk is None:
            self._introduce(link)
        else:
            link.connected = False  # and will be asked who it is

    def reach(self, peer: bytes, endpoint: str) -> None:
        """A peer can be reached there: it is dialled when something is said to it. In a large cluster most never are."""
        if peer not in self.links:
            self._addresses[peer] = endpoint

    def alias(self, name: bytes, peer: bytes) -> None:
        """Reach ``peer`` under a second name."""
        self.links[name] = self.links[peer]

    def hang_up(self, peer: bytes) -> None:
        """Forget a peer, and close the socket to it."""
        self._addresses.pop(peer, None)
        for accepted in self._accepted.pop(peer, ()):
            self._forget(accepted)
        link = self.links.pop(peer, None)
        if link is not None and link.routing_id is None and link not in self.links.values():
            link.outbox.clear()  # it may be among those that the next flush looks at
            link.again.clear()
            self._close(link.channel)

    # -- messages -------------------------------------------------------------------------------------------------

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> bool:
        """Queue a message for a peer; False, and counted, if it is not known."""
        link = self.links.get(peer)
        if link is None:
            if peer in self._addresses:
                self.dial(peer, self._addresses.pop(peer))
                link = self.links.get(peer)
            if link is None:
                self._count("to an unknown peer")
                return False
        if not link.outbox:
            self._dirty.append(link)
        link.outbox.append(msg if type(msg) is tuple else pack(msg))
        return True

    def peers(self) -> list[bytes]:
        """Those to whom something can be sent."""
        return list(self.links)

    def flush(self) -> None:
        """Send what has gathered, one frame per peer."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        for link in dirty:
            batch, link.outbox = link.outbox, []
            if link.talk is None:
                if batch:
                    self._put(link, encode(batch))
                continue
            contents = [encode(batch)] if batch else []
            contents += link.again
            link.again = []
            for content in contents:
                self._say(link, link.talk, content)

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
        if self._lost:
            lost, self._lost = self._lost, []
            for peer in lost:
                self.on_lost(peer)
            return True
        return found

    def drain(self, channel: Channel) -> bool:
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

    def _bind(self, place: str, remote: bool = False) -> Any:
        channel = self._open(zmq.ROUTER, remote, place)
        channel.socket.set(zmq.ROUTER_MANDATORY, 1)
        if remote:
            channel.socket.set(zmq.RCVBUF, _RECEIVED_BYTES_MAX)
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

    def _open(self, kind: int, remote: bool, place: str) -> Channel:
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
            if kind == zmq.DEALER:
                # A connection that is made again is one that libzmq begins with an empty frame, and nothing goes into one that
                # is not there yet.
                socket.set(zmq.IMMEDIATE, 1)
                socket.set(zmq.PROBE_ROUTER, 1)
                connect_soon(socket)
                if self._key is not None:
                    show_key(socket, self._key)
        channel = Channel(self, socket, remote)
        self._channels[channel] = None
        self._loop.add_source(channel)
        self._touch(channel)
        return channel

    def _close(self, channel: Channel, linger_ms: int = 0) -> None:
        if self._channels.pop(channel, 0) is None:
            if channel.watch is not None:
                channel.watch.close()
            self._loop.remove_source(channel)
            channel.socket.close(linger_ms)

    def _touch(self, channel: Channel) -> None:
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
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            if link.talk is None:
                self._count("to a peer that is gone")  # or one that came over tcp and was not introduced yet
            else:
                self._on_disconnected(link)
        if not channel.touched:
            channel.touched = True
            self._touched.append(channel)

    def _say(self, link: Link, talk: Conversation, content: bytes) -> None:
        """Say something to a peer that may be disconnected: then it is said later."""
        frame = talk.say(content)
        if link.connected:
            self._put(link, frame)

    def _say_again(self, link: Link, talk: Conversation) -> None:
        """There is a new connection."""
        link.connected = True
        link.away_since = 0.0
        for frame in talk.unheard():
            if link.connected:
                self._put(link, frame)

    def _on_disconnected(self, link: Link) -> None:
        link.connected = False
        if link.routing_id is not None and not link.away_since and link.talk is not None and link.peer:
            link.away_since = time.monotonic()
            self._lost.append(link.peer)  # told when the sending is over: it may be in the middle of it

    def _on_routed(self, channel: Channel, routing_id: bytes, frame: bytes) -> None:
        link = channel.accepted.get(routing_id)
        if link is not None:
            self._on_frame(link, frame)
        else:
            self._greet(channel, routing_id, frame)

    def _on_frame(self, link: Link, frame: bytes) -> None:
        talk = link.talk
        if talk is not None:
            if not frame or frame[0] != _NUMBERED:
                self._on_aside(link, talk, frame)
                return
            content = talk.hear(frame)
            if talk.owes():
                self._put(link, talk.word())
            if content is None:
                return
            frame = content
        self._on_content(link, frame)

    def _on_content(self, link: Link, content: bytes) -> None:
        try:
            batch = self._decode(content)
        except Exception:  # a broken pickle can raise anything
            self._count("introduced twice" if decode_hello(content) else "undecodable")
            return
        if type(batch) is not list:
            self._count("malformed")
            return
        self._on_batch(link.peer, batch)

    def _on_aside(self, link: Link, talk: Conversation, frame: bytes) -> None:
        """What is said about a conversation."""
        if link.routing_id is not None:
            hello = decode_hello(frame)
            if hello is None or hello.sender != link.peer:
                self._count("undecodable")
            elif hello.conversation == talk.number:
                self._go_on(link, talk, hello)
            else:  # it has begun anew
                routing_id = link.routing_id
                self._forget(link)
                link.routing_id, link.connected, link.away_since = b"", False, time.monotonic()
                self._greet(link.channel, routing_id, frame)
        elif frame == _WHO:
            self._introduce(link)
            self._say_again(link, talk)
        elif frame == _ANEW % talk.number:  # and not the answer to an earlier introduction
            self._begin_anew(link, talk)
        elif not frame.startswith(_ANEW[:1]):
            link.connected = False
            self._on_content(link, frame)  # a refusal

    def _greet(self, channel: Channel, routing_id: bytes, frame: bytes) -> None:
        """The first frame of a connection: a Hello that fits, or nothing."""
        hello = decode_hello(frame)
        if hello is None:
            if frame or not channel.remote:  # libzmq says nothing, in a frame, when a tcp connection is made
                self._count("before hello")
            if channel.remote and time.monotonic() > channel.asked.get(routing_id, 0.0) + _ASK_AGAIN_S:
                self._put(Link(b"", "", channel, routing_id), _WHO)
                self._note_asked(channel, routing_id)
            return
        link = Link(hello.sender, hello.role, channel, routing_id)
        reason = unfit(hello, self._cluster, link.channel.remote)
        if reason:
            self._count("refused")
            self._put(link, encode([pack(Refuse(reason))]))
            self._note_asked(channel, routing_id, math.inf)  # to ask would only have it say the same again
            return
        channel.asked.pop(routing_id, None)
        if channel.remote and not self._join(link, hello):
            return
        self._accept(link)
        self._on_hello(hello)

    def _note_asked(self, channel: Channel, routing_id: bytes, until: float = 0.0) -> None:
        if len(channel.asked) >= _ASKED_MAX:
            channel.asked.clear()
        channel.asked[routing_id] = until or time.monotonic()

    def _join(self, link: Link, hello: Hello) -> bool:
        """A peer has connected over tcp. Whether it is a new one: it may go on with what it said before."""
        assert link.routing_id is not None
        for known in self._accepted.get(hello.sender, ()):
            if known.talk is not None and known.talk.number == hello.conversation:
                known.channel.accepted.pop(known.routing_id or b"", None)
                known.routing_id = link.routing_id
                known.channel.accepted[link.routing_id] = known
                self._go_on(known, known.talk, hello)
                return False
        if hello.heard != NEVER:
            self._put(link, _ANEW % hello.conversation)
            return False
        link.talk = Conversation(hello.conversation)
        self._put(link, link.talk.word())
        return True

    def _go_on(self, link: Link, talk: Conversation, hello: Hello) -> None:
        """A peer that connected to us says how much it has heard."""
        talk.confirm(max(0, hello.heard))
        link.connected = True
        self._put(link, talk.word())
        self._say_again(link, talk)

    def _begin_anew(self, link: Link, talk: Conversation) -> None:
        """Who was dialled knows nothing of us."""
        link.again = talk.begin_anew(next(self._numbers)) + link.again
        self._introduce(link)
        self._dirty.append(link)
        self._count("begun anew")
        self.on_broken(link.peer)

    def _accept(self, link: Link) -> None:
        """A peer has connected: again, if there is a connection of it already, which then is the one that broke."""
        assert link.routing_id is not None
        link.channel.accepted[link.routing_id] = link
        links = self._accepted.setdefault(link.peer, [])
        links.append(link)
        if len(links) > _CONNECTIONS_MAX:
            self._forget(links.pop(0))
        self.links.setdefault(link.peer, link)
        for older in links[:-1]:
            self._replace(older, link)
        if len(self._accepted) >= self._look_at:
            self._look_for_the_gone()

    def _replace(self, older: Link, newer: Link) -> None:
        """What would be sent over the older connection is sent over the newer one."""
        for name, link in self.links.items():
            if link is older:
                self.links[name] = newer
        if older.outbox:
            newer.outbox[:0] = older.outbox
            older.outbox = []
            self._dirty.append(newer)

    def _forget(self, link: Link) -> None:
        """A connection to our ROUTER is none of ours any more."""
        link.channel.accepted.pop(link.routing_id or b"", None)
        link.outbox.clear()

    def _look_for_the_gone(self) -> None:
        """Forget the peers that had connected over tcp and are gone for long: nobody else may ever have to do with them."""
        limit = time.monotonic() - _AWAY_S
        for link in [link for links in self._accepted.values() for link in links if link.talk is not None]:
            assert link.talk is not None
            if link.connected:
                self._put(link, link.talk.word())
            elif link.away_since < limit:
                self._accepted[link.peer].remove(link)
                self._forget(link)
                for name in [name for name, other in self.links.items() if other is link]:
                    del self.links[name]
        self._accepted = {peer: links for peer, links in self._accepted.items() if links}
        self._look_at = max(_LINKS_MIN, 2 * len(self._accepted))

    def _introduce(self, link: Link) -> None:
        talk = link.talk
        conversation, heard = (0, NEVER) if talk is None else (talk.number, talk.heard)
        hello = Hello(
            PROTOCOL_VERSION, PYTHON, self._cluster, self._me, self._role, self.endpoint, os.getpid(), conversation, heard
        )
        self._put(link, encode_hello(hello))

    def _on_bad_address(self, peer: bytes, endpoint: str, watched: bool) -> None:
        self._count("to a bad address")
        if watched:
            self.on_refused(peer, f"this is no address: {endpoint!r}")

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _send_all_but_the_last_part(socket: zmq.Socket[bytes], frame: bytes) -> bytes:
    whole = memoryview(frame)
    last = (len(frame) - 1) // _PART_BYTES_MAX * _PART_BYTES_MAX
    for start in range(0, last, _PART_BYTES_MAX):
        try:
            socket.send(whole[start : start + _PART_BYTES_MAX], _NOBLOCK | _SNDMORE)
        except zmq.Again:
            if start:  # libzmq drops all up to a last part, whatever comes next
                socket.send(b"", _NOBLOCK)
            raise
    return frame[last:]
