"""Link and channel: a peer as the transport sees it, and a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.io.conversation import Conversation

if TYPE_CHECKING:
    from zray.io.handshake import DialWatch
    from zray.io.transport import Transport


class Link:
    """One peer and how to reach it."""

    __slots__ = ("again", "away_since", "channel", "connected", "outbox", "peer", "role", "routing_id", "talk")

    def __init__(
        self, peer: bytes, role: str, channel: Channel, routing_id: bytes | None, talk: Conversation | None = None
    ) -> None:
        self.peer = peer
        self.role = role
        self.channel = channel
        self.routing_id = routing_id  # for a peer that connected to our ROUTER
        self.outbox: list[tuple[Any, ...]] = []
        self.talk = talk  # over tcp
        self.connected = True  # as far as we know; what is said meanwhile is kept
        self.away_since = 0.0  # for a peer that connected to our ROUTER and is not connected any more
        self.again: list[bytes] = []  # what was said in a conversation that had to be begun anew


class Channel:
    """One socket, as a source of the loop."""

    __slots__ = ("accepted", "asked", "link", "remote", "socket", "touched", "transport", "watch")

    def __init__(self, transport: Transport, socket: Any, remote: bool) -> None:
        self.transport = transport
        self.socket = socket
        self.remote = remote  # over tcp
        self.link: Link | None = None  # of a DEALER
        self.watch: DialWatch | None = None  # of a DEALER
        self.accepted: dict[bytes, Link] = {}  # of a ROUTER: by routing ids, which only it understands
        self.asked: dict[bytes, float] = {}  # of a ROUTER: when connections were answered WHO
        self.touched = False

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def on_readable(self) -> None:
        self.transport.drain(self)
