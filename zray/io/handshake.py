"""Handshake: what happens on a tcp connection before the first message can pass.

CURVE encrypts, and proves to who connects that the other side has the secret key of the cluster. It does not ask who
connects: that is done by ZAP, a question that libzmq sends over ``inproc://zeromq.zap.01`` for every connection, and that the
``Doorkeeper`` answers: only who has the secret to the client's public key of the cluster comes in. Who fails is cut off by
libzmq: the ROUTER never hears of them.

libzmq tells what becomes of connections through *monitors*, sockets of their own. It writes to them from its own thread, with
a lock held, and would wait there for room; so they have no limit, and a monitor is switched off before its reader is closed.

Handshakes cost time, and each one that is not over yet costs a descriptor and memory. So if in one second many more
connections come than get through, the door is shut for the rest of it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils import z85

from zray.io.loop import Loop

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey
    from zray.io.door import Door

log = logging.getLogger("zray")

WRONG_KEY = "wrong cluster key"
KEY_NEEDED = "wrong cluster key: the cluster asks for one, and this process has none"
KEY_UNUSED = "wrong cluster key: what listens there asks for none"
NO_ANSWER = "no answer"
NO_CLUSTER = "what listens there is no zray cluster"

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"zray"
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_LOG_INTERVAL_S = 10.0
_HEARTBEAT_MS = 5000
_SILENCE_MS_MAX = 15_000  # a connection that did not answer heartbeats for so long is cut
_HANDSHAKE_MS_MAX = 5000
_STRANGERS_PER_S_MAX = 100  # connections that came and did not get through, or not yet
_UNANSWERED_MS_MAX = 2000  # what was sent is not confirmed for so long: make a new connection, sooner than TCP would try again
_CONNECT_MS_MAX = 1000  # ... in attempts that are short,
_RECONNECT_MS_MAX = 500  # and follow each other closely
BACKLOG = 256  # how many the kernel has let in already when the door is shut
DOOR_TIMER = "door.open"
_LISTENING = int(zmq.EVENT_LISTENING)
_UNREACHED_MIN = 2  # the first time the door may have been shut for a moment
_CONNECTED = int(zmq.EVENT_CONNECTED)
_RETRIED = int(zmq.EVENT_CONNECT_RETRIED)
_ACCEPTED = int(zmq.EVENT_ACCEPTED)
_DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
_SUCCEEDED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
_FAILED_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_FAILED_AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_FAILURES = _FAILED | _FAILED_PROTOCOL | _FAILED_AUTH
_MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
_names = itertools.count()


def key_pair() -> tuple[str, str]:
    """A new public key, and its secret."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_key(secret: str) -> str:
    """The public key of a secret one; ValueError if it is none."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, UnicodeError):
        pass
    raise ValueError("this is no secret key")  # not raised inside: what went wrong might hold the key


def bound_handshakes(socket: zmq.Socket[bytes]) -> None:
    """Set how long a tcp socket waits for the other side, in all respects. Before it is bound or connected."""
    socket.set(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.set(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS_MAX)
    socket.set(zmq.HEARTBEAT_TTL, _SILENCE_MS_MAX)
    socket.set(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS_MAX)


def connect_soon(socket: zmq.Socket[bytes]) -> None:
    """Set how a tcp socket that will connect makes a connection again. Before it is connected."""
    socket.set(zmq.TCP_MAXRT, _UNANSWERED_MS_MAX)
    socket.set(zmq.CONNECT_TIMEOUT, _CONNECT_MS_MAX)
    socket.set(zmq.RECONNECT_IVL_MAX, _RECONNECT_MS_MAX)


def show_key(socket: zmq.Socket[bytes], key: ClusterKey) -> None:
    """Have a socket that will connect prove that it belongs to the cluster, and ask for the same."""
    socket.set(zmq.CURVE_SERVERKEY, key.server_public.encode())
    socket.set(zmq.CURVE_PUBLICKEY, key.client_public.encode())
    socket.set(zmq.CURVE_SECRETKEY, key.client_secret.encode())


class _Reader:
    """A socket beside those that carry messages. A source of the loop, read to the end each time.

    Each of its messages costs who causes it a connection, which takes longer than reading does.
    """

    def __init__(self, loop: Loop, socket: zmq.Socket[bytes], on_frames: Callable[[list[bytes]], None]) -> None:
        self.socket = socket
        self._loop = loop
        self._on_frames = on_frames
        loop.add_source(self)
        self.on_readable()  # the descriptor speaks only after one has looked in vain

    def fileno(self) -> int:
        return int(self.socket.fileno())

    def on_readable(self) -> None:
        while not self.socket.closed and int(self.socket.get(_EVENTS)) & _POLLIN:
            self._on_frames(self.socket.recv_multipart(_NOBLOCK))

    def close(self) -> None:
        self._loop.remove_source(self)
        self.socket.close(0)


class _Monitor(_Reader):
    """What becomes of the connections of one socket."""

    def __init__(
        self, loop: Loop, context: zmq.Context[Any], socket: zmq.Socket[bytes], events: int, on_event: Callable[[int, int], None]
    ) -> None:
        self._watched = socket
        self._on_event = on_event
        name = f"inproc://handshakes-{next(_names)}"
        socket.monitor(name, events)
        reader = context.socket(zmq.PAIR)
        reader.set(zmq.RCVHWM, 0)
        reader.connect(name)
        super().__init__(loop, reader, self._on_monitored)

    def _on_monitored(self, frames: list[bytes]) -> None:
        self._on_event(*struct.unpack("=hi", frames[0]))

    def close(self) -> None:
        self._watched.monitor(None, 0)
        super().close()


class Doorkeeper:
    """Admits connections to the ROUTER of a process that is bound to tcp, and counts those that failed.

    Args:
        loop: the loop that reads what it is asked and told.
        context: that of the ROUTER.
        router: not bound yet.
        key: who has it may come in; without one everybody may.
        counts: where failures are counted.

    Whoever has the loop hands timers whose key is ``(DOOR_TIMER,)`` to ``on_timer``.
    """

    def __init__(
        self, loop: Loop, context: zmq.Context[Any], router: zmq.Socket[bytes], key: ClusterKey | None, counts: dict[str, int]
    ) -> None:
        self._counts = counts
        self._loop = loop
        self._door: Door | None = None
        self._strange = 0  # connections of this second that have not got through
        self._second_ends = -math.inf
        self._admitted = b""
        self._strangers: deque[str] = deque(maxlen=100)  # addresses of those whose key is not ours, until their failure is told
        self._accepted: dict[int, int] = {}  # descriptors of connections, with the number of successes before
        self._succeeded = 0
        self._failing = False
        self._unlogged = 0
        self._logged_at = -math.inf
        self._readers: list[_Reader] = []
        if key is not None:
            self._admitted = z85.decode(key.client_public)
            zap = context.socket(zmq.REP)
            zap.set(zmq.LINGER, 0)
            zap.set(zmq.RCVHWM, 0)
            zap.set(zmq.SNDHWM, 0)
            zap.bind(_ZAP_ENDPOINT)
            self._zap = zap
            self._readers.append(_Reader(loop, zap, self._on_asked))
            router.set(zmq.CURVE_SERVER, 1)
            router.set(zmq.CURVE_PUBLICKEY, key.server_public.encode())
            router.set(zmq.CURVE_SECRETKEY, key.server_secret.encode())
            router.set(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
            router.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody comes in while nobody answers
        events = _LISTENING | _ACCEPTED | _SUCCEEDED | _FAILURES | _DISCONNECTED
        self._readers.append(_Monitor(loop, context, router, events, self._on_event))

    def on_timer(self, now: float) -> None:
        """The second is over in which too many strangers came."""
        if self._door is not None:
            self._door.open()

    def close(self) -> None:
        """Stop listening; what asks from now on is refused by libzmq."""
        for reader in self._readers:
            reader.close()
        self._readers.clear()
        if self._door is not None:
            self._door.close()
            self._door = None

    def _on_asked(self, frames: list[bytes]) -> None:
        """One question of ZAP: version, number, domain, address, routing id, mechanism, and the public key."""
        number, address, mechanism, public = frames[1], frames[3], frames[5], b"".join(frames[6:])
        if mechanism == b"CURVE" and public == self._admitted:  # and who shows it has its secret: that is proven before
            answer, text = b"200", b"OK"
        else:
            answer, text = b"400", b"not a key of this cluster"
            self._strangers.append(address.decode(errors="replace").removeprefix("::ffff:"))
        self._zap.send_multipart([b"1.0", number, answer, text, b"", b""])

    def _on_event(self, event: int, value: int) -> None:
        if event == _LISTENING:
            from zray.io.door import Door  # a cluster of one machine does without it

            self._door = Door(value)
        elif event == _ACCEPTED:
            self._accepted[value] = self._succeeded
            self._on_knocked()
        elif event == _SUCCEEDED:
            self._succeeded += 1
            self._strange -= 1
        elif event == _DISCONNECTED:
            # What does not even speak the protocol is cut off without a word: told from the peers that leave only by there
            # having been no success since it came.
            if self._accepted.pop(value, -1) == self._succeeded and not self._failing:
                self._on_failed("it does not speak the protocol")
            self._failing = False
        else:
            self._failing = True
            if event == _FAILED_AUTH:
                address = self._strangers.popleft() if self._strangers else "somewhere"
                self._on_failed(f"{address} shows a key that is not the cluster's")
            elif event == _FAILED_PROTOCOL:
                self._on_failed("it has no key, or the key of another cluster")
            else:
                self._on_failed("it took too long" if value == errno.EAGAIN else "it hung up")

    def _on_knocked(self) -> None:
        now = time.monotonic()
        if now >= self._second_ends:
            self._second_ends = now + 1.0
            self._strange = 0
        self._strange += 1
        if self._strange > _STRANGERS_PER_S_MAX and self._door is not None and not self._door.is_shut and self._door.shut():
            self._counts["door shut"] = self._counts.get("door shut", 0) + 1
            self._loop.add_timer(self._second_ends, (DOOR_TIMER,))

    def _on_failed(self, why: str) -> None:
        self._counts["failed handshakes"] = self._counts.get("failed handshakes", 0) + 1
        self._unlogged += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_INTERVAL_S:
            log.warning("connections over tcp that failed before they were made: %d; the last one: %s", self._unlogged, why)
            self._logged_at = now
            self._unlogged = 0


class DialWatch:
    """Tells why a socket that connects does not come through, and when its connection breaks.

    Args:
        loop: the loop that reads what libzmq tells.
        context: that of the socket.
        socket: not connected yet.
        keyed: whether it shows a key.
        on_refused: called with a reason, once for each reason until a connection is made.
        on_broken: called when a connection that had been made is gone.
    """

    def __init__(
        self,
        loop: Loop,
        context: zmq.Context[Any],
        socket: zmq.Socket[bytes],
        keyed: bool,
        on_refused: Callable[[str], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._keyed = keyed
        self._on_refused = on_refused
        self._on_broken = on_broken
        self._told: dict[str, None] = {}
        self._unreached = 0  # attempts in a row that found nobody
        self._reached = False  # this attempt has found somebody who listens
        self._waiting = False  # ... and has heard nothing else yet
        self._made = False
        self._cut = 0  # attempts in a row in which the other side hung up
        events = _CONNECTED | _RETRIED | _SUCCEEDED | _FAILURES | _DISCONNECTED
        self._monitor = _Monitor(loop, context, socket, events, self._on_event)

    def close(self) -> None:
        self._monitor.close()

    def _on_event(self, event: int, value: int) -> None:
        if event == _CONNECTED:
            self._reached = self._waiting = True
        elif event == _SUCCEEDED:
            self._waiting = False
            self._made = True
            self._cut = 0
            self._told.clear()
        elif event == _DISCONNECTED:
            if self._waiting:
                self._refuse(NO_CLUSTER)
            elif self._made:
                self._made = False
                self._on_broken()
            self._waiting = False
        elif event == _RETRIED:
            self._unreached = 0 if self._reached else self._unreached + 1
            if self._unreached >= _UNREACHED_MIN:
                self._refuse(NO_ANSWER)
            self._reached = False
        else:
            self._waiting = False
            self._on_failed(event, value)

    def _on_failed(self, event: int, value: int) -> None:
        if event == _FAILED and value == errno.EAGAIN:
            self._refuse(NO_ANSWER)
        elif event == _FAILED:
            # That is all one sees of a server that can not read what was encrypted for another. It may also have ended at that
            # very moment: then the next attempt will tell.
            self._cut += 1
            if self._cut > 1:
                self._refuse(WRONG_KEY if self._keyed else KEY_NEEDED)
        elif event == _FAILED_PROTOCOL and value == _MISMATCH:
            self._refuse(KEY_UNUSED if self._keyed else KEY_NEEDED)
        else:
            self._refuse(WRONG_KEY)

    def _refuse(self, reason: str) -> None:
        if reason not in self._told:
            self._told[reason] = None
            self._on_refused(reason)
