"""TransferService: moves the bytes of objects between nodes.

It decides nothing: ``core/transfer`` says what may be read here (``serve``), and what to bring from where (``fetch``). The work
is done by one thread with sockets of its own, so that neither the loop nor a message ever waits behind bytes. Who fetches
connects a DEALER to the ROUTER of the other node and asks for chunks, several ahead; the objects that come from one node take
turns. A request is a few numbers, packed: nothing is unpickled here. Over tcp both sides prove with the cluster's key who
they are before anything passes (``handshake``).

A chunk is sent straight out of the arena: libzmq gets a view of it, and the place counts as looked at until the last view is
gone (``Arena.view``). It is written into the other arena with ``pwrite``, the only copy that is made: that lets other threads
run meanwhile, is fast for memory that was not touched yet, and answers ENOSPC where a mapping would kill the process.

Bytes come in order, and the connection checks them (tcp, or CURVE, which is more); what comes from a file is compared with
its checksum as well. A link that breaks ends the fetches on it, with what they have; the machine decides what comes next.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from zray.io.endpoint import advertised, tcp_place
from zray.io.handshake import BACKLOG, DOOR_TIMER, DialWatch, Doorkeeper, bound_handshakes, connect_soon, show_key
from zray.io.loop import Loop
from zray.io.storage import Arena

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)
_NOBLOCK = int(zmq.NOBLOCK)
_SNDMORE = int(zmq.SNDMORE)
_REQUEST = struct.Struct(">20sQQI")  # object, ticket, position, bytes
_ANSWER = struct.Struct(">20sQQIB")  # the same, and what follows
_BYTES, _CLOSED, _BROKEN = 0, 1, 2  # ... a chunk; nothing, since the ticket is not valid; the reason why it can not be read
_CHUNK_BYTES_MAX = 4 << 20
_REQUESTS_BYTES_MAX = 1 << 16  # that the kernel takes before they are read
_GREETING_BYTES_MAX = 4096  # what libzmq itself says first is longer than a request
_BATCH_MAX = 16  # chunks that one socket sends or takes before the others have their turn
_SOCKETS_MAX = 8192  # a link takes three
_WAITING_MAX = 10_000  # requests of one node for what is not here yet; it bounds them itself
_IDLE_S = 10.0  # a link that nothing comes over is closed after this
_PIECE_BYTES = 1 << 20  # of a checksum
_CHECK_TIMER, _LAZY_S = "transfer.check", 0.005


class _Source:
    """A socket as a source of the loop: it ends the sleep, and what there is to read is read before the next one."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._fd = int(socket.fileno())

    def fileno(self) -> int:
        return self._fd

    def on_readable(self) -> None:
        """Nothing here: the descriptor does not tell of everything, so all are looked at anyway."""


class _Served:
    """An object that may be read."""

    __slots__ = ("here", "object_id", "path", "position", "size", "view", "waiting")

    def __init__(self, object_id: bytes, size: int, here: int) -> None:
        self.object_id = object_id
        self.size = size
        self.here = here  # bytes from the start that can be read: all, unless it is still being brought
        self.waiting: deque[tuple[bytes, int, int]] = deque()  # who asked for others: receiver, position, bytes
        self.view: memoryview | None = None  # of the arena
        self.path = ""  # or where it lies on disk
        self.position = 0


class _Fetch:
    """An object that is being brought here."""

    __slots__ = (
        "asked",
        "checked",
        "checksum",
        "expected",
        "fd",
        "link",
        "object_id",
        "offset",
        "owned",
        "received",
        "size",
        "ticket",
    )

    def __init__(self, object_id: bytes, ticket: int, size: int, received: int, expected: int) -> None:
        self.object_id = object_id
        self.ticket = ticket
        self.size = size
        self.received = received
        self.asked = received
        self.expected = expected  # checksum; -1: none is known
        self.checksum = 0
        self.checked = -1  # how far the checksum goes; -1: none is wanted
        self.fd = -1
        self.owned = False  # whether the descriptor is of this fetch alone
        self.offset = 0
        self.link: _Link | None = None


class _Link:
    """The connection to another node."""

    __slots__ = ("endpoint", "fetches", "heard_at", "outstanding", "socket", "source", "watch")

    def __init__(self, endpoint: str, socket: zmq.Socket[bytes], now: float) -> None:
        self.endpoint = endpoint
        self.socket = socket
        self.source = _Source(socket)
        self.watch: DialWatch
        self.fetches: deque[_Fetch] = deque()  # those with bytes to ask for, in turn
        self.outstanding = 0  # bytes asked for and not here
        self.heard_at = now


class TransferService:
    """The transfers of one node.

    Args:
        arena: the node's shared memory.
        host: the address to listen on, at any port that is free.
        told_host: under which others reach that; "" is the same.
        key: of the cluster; None: nobody has to prove anything.
        post: hands a call to the loop of the node.
        on_fetched: called there with (object, checksum).
        on_fetch_failed: called there with (object, bytes received, kind, reason).
        on_unserved: called there with a ticket.
        chunk_bytes: how much one request asks for.
        window_bytes: how much is asked of one node at once.
        stall_s: a node that sends nothing for so long has failed.
    """

    def __init__(
        self,
        arena: Arena,
        host: str,
        told_host: str,
        key: ClusterKey | None,
        post: Callable[[tuple[Any, ...]], None],
        on_fetched: Callable[[bytes, int], None],
        on_fetch_failed: Callable[[bytes, int, str, str], None],
        on_unserved: Callable[[int], None],
        *,
        chunk_bytes: int = 1 << 20,
        window_bytes: int = 8 << 20,
        stall_s: float = 10.0,
    ) -> None:
        told = advertised(host, told_host)
        self._arena = arena
        self._key = key
        self._post = post
        self._on_fetched = on_fetched
        self._on_fetch_failed = on_fetch_failed
        self._on_unserved = on_unserved
        self._chunk_bytes = min(chunk_bytes, _CHUNK_BYTES_MAX)
        self._window_bytes = max(window_bytes, self._chunk_bytes)
        self._stall_s = stall_s
        self._served: dict[int, _Served] = {}
        self._relayed: dict[bytes, dict[int, _Served]] = {}  # of those, what is still being brought here, by object and ticket
        self._fetches: dict[bytes, _Fetch] = {}
        self._links: dict[str, _Link] = {}
        self._closed = False
        self.counts: dict[str, int] = {}  # of what was dropped, and why
        self.sent_bytes = 0
        self.received_bytes = 0
        self._loop = Loop(_LAZY_S)
        self._loop.on_inbox = self._on_inbox
        self._loop.on_timer = self._on_timer
        self._loop.pending = self._drain
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _SOCKETS_MAX)
        self._router = self._open(zmq.ROUTER, _GREETING_BYTES_MAX)
        self._router.set(zmq.ROUTER_MANDATORY, 1)
        self._router.set(zmq.BACKLOG, BACKLOG)
        self._router.set(zmq.RCVBUF, _REQUESTS_BYTES_MAX)
        self._doorkeeper = Doorkeeper(self._loop, self._context, self._router, key, self.counts)
        self._thread = threading.Thread(target=self._run, name="zray-transfer", daemon=True)
        try:
            self._router.bind(tcp_place(host, 0))
        except zmq.ZMQError:
            self.close()
            raise
        self.endpoint = tcp_place(told, self._router.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        self._loop.add_source(_Source(self._router))
        self._thread.start()

    # -- for the loop of the node ---------------------------------------------------------------------------------

    def serve(self, ticket: int, object_id: bytes, place: tuple[Any, ...], whole: bool = True) -> None:
        """Let who has the ticket read the object: at (offset, size), or in a file at (path, position, size, checksum).

        If it is not ``whole``, it is being brought here, or was and will be again, and is passed on as it comes.
        """
        self._loop.post((self._serve, ticket, object_id, place, whole))

    def serve_rest(self, ticket: int) -> None:
        """The whole object is here now."""
        self._loop.post((self._serve_rest, ticket))

    def unserve(self, ticket: int) -> None:
        """No longer; ``on_unserved`` is called when nothing looks there any more."""
        self._loop.post((self._unserve, ticket))

    def fetch(
        self,
        object_id: bytes,
        endpoint: str,
        ticket: int,
        size: int,
        received: int,
        place: tuple[Any, ...],
        checksum: int,
    ) -> None:
        """Bring an object from another node, without the ``received`` bytes that are here, to (offset, warm) or (path, False).

        ``checksum``: of the whole, or -1.
        """
        self._loop.post((self._fetch, object_id, endpoint, ticket, size, received, place, checksum))

    def cancel(self, object_id: bytes) -> None:
        """Stop bringing an object, unless it is here."""
        self._loop.post((self._cancel, object_id))

    def close(self) -> None:
        """End the thread and close everything; nobody is called any more."""
        self._closed = True
        self._loop.stop()
        if self._thread.is_alive():
            self._thread.join()
        for link in list(self._links.values()):
            self._hang_up(link)
        for fetch in list(self._fetches.values()):
            self._forget(fetch)
        self._doorkeeper.close()
        self._router.close(0)
        self._context.destroy(0)
        self._served.clear()
        self._loop.close()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.add_timer(time.monotonic() + self._stall_s / 4, (_CHECK_TIMER,))
            self._loop.run()
        except BaseException as error:  # a bug of ours: it must end the process, as one in its loop would
            self._tell(_raise, error)

    def _on_inbox(self, now: float) -> None:
        inbox = self._loop.inbox
        while inbox:
            entry = inbox.popleft()
            entry[0](*entry[1:])

    def _on_timer(self, now: float, key: Any) -> None:
        """Look for links that are silent, or of no use."""
        if key[0] == DOOR_TIMER:
            self._doorkeeper.on_timer(now)
            return
        for link in list(self._links.values()):
            if link.outstanding and now > link.heard_at + self._stall_s:
                self._break(link, f"{link.endpoint} sent nothing for {self._stall_s:g} s")
            elif not link.outstanding and now > link.heard_at + _IDLE_S:
                self._break(link, "idle")
        self._loop.add_timer(now + self._stall_s / 4, (_CHECK_TIMER,))

    def _drain(self) -> bool:
        """Read what the sockets have; whether there was anything. (Their descriptors do not tell all of it.)"""
        found = self._drain_router()
        for link in list(self._links.values()):
            if self._drain_link(link):
                found = True
        return found

    def _tell(self, function: Callable[..., None], *args: Any) -> None:
        if not self._closed:
            self._post((function, *args))

    def _open(self, kind: int, message_bytes_max: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)  # who asks bounds what is on its way
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.MAXMSGSIZE, message_bytes_max)
        socket.set(zmq.IPV6, 1)
        bound_handshakes(socket)
        return socket

    # -- sending --------------------------------------------------------------------------------------------------

    def _serve(self, ticket: int, object_id: bytes, place: tuple[Any, ...], whole: bool) -> None:
        if len(place) == 2:
            fetch = self._fetches.get(object_id)
            served = _Served(object_id, place[1], place[1] if whole else _sound(fetch))
            served.view = self._arena.view(place[0], place[1], lambda: self._tell(self._on_unserved, ticket))
        else:
            served = _Served(object_id, place[2], place[2])
            served.path, served.position = place[:2]
        self._served[ticket] = served
        if not whole:
            self._relayed.setdefault(object_id, {})[ticket] = served

    def _serve_rest(self, ticket: int) -> None:
        served = self._served.get(ticket)
        if served is not None:
            self._forget_relay(ticket, served)
            served.here = served.size
            self._answer_waiting(ticket, served)

    def _forget_relay(self, ticket: int, served: _Served) -> None:
        relayed = self._relayed.get(served.object_id, {})
        relayed.pop(ticket, None)
        if not relayed:
            self._relayed.pop(served.object_id, None)

    def _pass_on(self, fetch: _Fetch) -> None:
        """More of an object has come."""
        for ticket, served in self._relayed.get(fetch.object_id, {}).items():
            served.here = _sound(fetch)
            self._answer_waiting(ticket, served)

    def _answer_waiting(self, ticket: int, served: _Served) -> None:
        while served.waiting and served.waiting[0][1] + served.waiting[0][2] <= served.here:
            receiver, position, count = served.waiting.popleft()
            self._answer(receiver, served.object_id, ticket, position, count)

    def _unserve(self, ticket: int) -> None:
        served = self._served.pop(ticket)
        self._forget_relay(ticket, served)
        for receiver, position, count in served.waiting:
            self._answer(receiver, served.object_id, ticket, position, count)  # that it is over
        if served.view is None:
            self._tell(self._on_unserved, ticket)

    def _drain_router(self) -> bool:
        socket = self._router
        for count in range(_BATCH_MAX):
            if not int(socket.get(_EVENTS)) & _POLLIN:
                return count > 0
            frames = socket.recv_multipart(_NOBLOCK)
            if len(frames) == 2 and len(frames[1]) == _REQUEST.size:
                self._answer(frames[0], *_REQUEST.unpack(frames[1]))
            else:
                self._count("malformed requests")
        return True

    def _answer(self, receiver: bytes, object_id: bytes, ticket: int, position: int, count: int) -> None:
        if ticket not in self._served:
            self._on_inbox(time.monotonic())  # the request may have overtaken the word that it is allowed
        served = self._served.get(ticket)
        status = _BYTES
        data: Any = b""
        if served is None or served.object_id != object_id:
            status = _CLOSED
        elif count > _CHUNK_BYTES_MAX or position + count > served.size:
            self._count("malformed requests")
            return
        elif position + count > served.here:
            if len(served.waiting) < _WAITING_MAX:
                served.waiting.append((receiver, position, count))
            else:
                self._count("malformed requests")
            return
        elif served.view is not None:
            data = served.view[position : position + count]
        else:
            try:
                data = _read(served.path, served.position + position, count)
            except OSError as error:
                status, data = _BROKEN, f"{served.path}: {error.strerror or error}".encode()[:1000]
        self.sent_bytes += len(data)
        try:
            self._router.send(receiver, _NOBLOCK | _SNDMORE)
            self._router.send(_ANSWER.pack(object_id, ticket, position, count, status), _NOBLOCK | _SNDMORE)
            self._router.send(data, _NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self._count("chunks to a node that is gone")

    # -- receiving ------------------------------------------------------------------------------------------------

    def _fetch(
        self,
        object_id: bytes,
        endpoint: str,
        ticket: int,
        size: int,
        received: int,
        place: tuple[Any, ...],
        checksum: int,
    ) -> None:
        fetch = _Fetch(object_id, ticket, size, received, checksum)
        self._fetches[object_id] = fetch
        try:
            if isinstance(place[0], str):
                os.makedirs(os.path.dirname(place[0]), 0o700, exist_ok=True)
                fetch.fd = os.open(place[0], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fetch.owned = True
                os.posix_fallocate(fetch.fd, 0, size)  # a full disk is known before anything is sent
            else:
                fetch.fd = self._arena.descriptor
                fetch.offset = place[0]
        except OSError as error:
            self._fail(fetch, "disk", f"{place[0]}: {error.strerror}")
            return
        if checksum >= 0 or fetch.owned:
            fetch.checked = 0
        if received == size:
            self._finish(fetch)
            return
        self._pass_on(fetch)
        try:
            link = self._links.get(endpoint) or self._dial(endpoint)
        except zmq.ZMQError as error:
            self._fail(fetch, "link", f"{endpoint!r} is no place to connect to: {error}")
            return
        if not link.outstanding:
            link.heard_at = time.monotonic()
        fetch.link = link
        link.fetches.append(fetch)
        self._pump(link)

    def _dial(self, endpoint: str) -> _Link:
        socket = self._open(zmq.DEALER, _CHUNK_BYTES_MAX + _GREETING_BYTES_MAX)
        connect_soon(socket)
        if self._key is not None:
            show_key(socket, self._key)
        link = _Link(endpoint, socket, time.monotonic())
        link.watch = DialWatch(
            self._loop,
            self._context,
            socket,
            self._key is not None,
            lambda reason: self._break(link, f"{endpoint}: {reason}"),
            lambda: self._break(link, f"the connection to {endpoint} broke"),
        )
        self._loop.add_source(link.source)
        self._links[endpoint] = link
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self._hang_up(link)
            raise
        return link

    def _pump(self, link: _Link) -> None:
        """Ask for as much as may be on its way, each object in its turn."""
        while link.fetches and link.outstanding < self._window_bytes:
            fetch = link.fetches.popleft()
            count = min(self._chunk_bytes, fetch.size - fetch.asked)
            link.socket.send(_REQUEST.pack(fetch.object_id, fetch.ticket, fetch.asked, count), _NOBLOCK)
            fetch.asked += count
            link.outstanding += count
            if fetch.asked < fetch.size:
                link.fetches.append(fetch)

    def _drain_link(self, link: _Link) -> bool:
        socket = link.socket
        for number in range(_BATCH_MAX):
            if self._links.get(link.endpoint) is not link or not int(socket.get(_EVENTS)) & _POLLIN:
                return number > 0
            frames = socket.recv_multipart(_NOBLOCK, copy=False)
            if len(frames) != 2 or len(frames[0]) != _ANSWER.size:
                self._break(link, f"{link.endpoint} sends what makes no sense")
                return True
            object_id, ticket, position, count, status = _ANSWER.unpack(frames[0].buffer)
            link.heard_at = time.monotonic()
            link.outstanding -= count
            fetch = self._fetches.get(object_id)
            # What was asked for before a fetch was cancelled, or began anew, is no use.
            if fetch is not None and fetch.link is link and (fetch.ticket, fetch.received) == (ticket, position):
                self._take(fetch, count, status, frames[1].buffer)
            self._pump(link)
        return True

    def _take(self, fetch: _Fetch, count: int, status: int, data: memoryview) -> None:
        if status == _CLOSED:
            self._fail(fetch, "ticket", "the source does not know the ticket")
        elif status != _BYTES or data.nbytes != count:
            reason = bytes(data[:1000]).decode(errors="replace") if status == _BROKEN else "it sent a chunk of a wrong size"
            self._fail(fetch, "source", reason)
        else:
            try:
                done = 0
                while done < count:
                    done += os.pwrite(fetch.fd, data[done:], fetch.offset + fetch.received + done)
            except OSError as error:
                where = "disk" if fetch.owned else "full"
                self._fail(fetch, where, f"{error.strerror} (after {fetch.received} bytes)")
                return
            self.received_bytes += count
            fetch.received += count
            if fetch.received == fetch.size:
                self._finish(fetch)
            elif fetch.checked >= 0:
                self._check(fetch)
            if self._relayed:
                self._pass_on(fetch)

    def _check(self, fetch: _Fetch) -> None:
        """Take what is here into the checksum, while it is in the processor's cache."""
        while fetch.checked < fetch.received:
            piece = os.pread(fetch.fd, min(_PIECE_BYTES, fetch.received - fetch.checked), fetch.offset + fetch.checked)
            fetch.checksum = zlib.crc32(piece, fetch.checksum)
            fetch.checked += len(piece)

    def _finish(self, fetch: _Fetch) -> None:
        if fetch.checked >= 0:
            self._check(fetch)
        if fetch.expected >= 0 and fetch.checksum != fetch.expected:
            fetch.received = 0
            self._fail(fetch, "source", "the bytes do not have the checksum that was written with them")
            return
        self._forget(fetch)
        self._tell(self._on_fetched, fetch.object_id, fetch.checksum)

    def _cancel(self, object_id: bytes) -> None:
        fetch = self._fetches.get(object_id)
        if fetch is not None:
            self._fail(fetch, "cancelled", "nobody wants it any more")

    def _fail(self, fetch: _Fetch, kind: str, reason: str) -> None:
        self._forget(fetch)
        self._tell(self._on_fetch_failed, fetch.object_id, fetch.received, kind, reason)

    def _forget(self, fetch: _Fetch) -> None:
        del self._fetches[fetch.object_id]
        if fetch.link is not None and fetch in fetch.link.fetches:
            fetch.link.fetches.remove(fetch)
        if fetch.owned:
            os.close(fetch.fd)

    def _break(self, link: _Link, reason: str) -> None:
        """A link is of no use any more: whatever was to come over it does not."""
        if self._links.get(link.endpoint) is link:
            self._hang_up(link)
            for fetch in [fetch for fetch in self._fetches.values() if fetch.link is link]:
                self._fail(fetch, "link", reason)

    def _hang_up(self, link: _Link) -> None:
        del self._links[link.endpoint]
        self._loop.remove_source(link.source)
        link.watch.close()
        link.socket.close(0)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def statistics(self) -> dict[str, int]:
        return {
            "transfer_sent_bytes": self.sent_bytes,
            "transfer_received_bytes": self.received_bytes,
            "transfer_links": len(self._links),
        }


def _read(path: str, position: int, count: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, count, position)
    finally:
        os.close(fd)
    if len(data) < count:
        raise OSError("the file was cut short")
    return data


def _sound(fetch: _Fetch | None) -> int:
    """How much of what is being brought can be passed on: nothing, as long as its checksum may turn out to be wrong."""
    return fetch.received if fetch is not None and fetch.expected < 0 and not fetch.owned else 0


def _raise(error: BaseException) -> None:
    raise error
