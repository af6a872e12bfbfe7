"""Links: the connections between processes, as the transport makes them.

Who dials introduces itself, and from then on both can say something. The messages of one direction of a connection arrive
in order; those of different connections overtake each other. What is said over a connection that the other end has closed is
lost; on the way between machines the listener asks who that is, and the dialler introduces itself anew. What is sent goes
through the real codec, so that no two processes ever share an object. A process that dies takes with it the tail of what it had
sent and was not delivered yet, as a crash takes what lies in its buffers. A machine that is cut off from another loses nothing:
it all comes later. So it is with a connection between machines that breaks: what was on its way in it is said again on the next
one, in order, while other connections between the same machines go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zray.base import wire

if TYPE_CHECKING:
    from .world import Inhabitant, World

WHO = b"?"
FAR = 3.0  # as long as on one machine takes a message between two


class Connection:
    """The way between a process that dialled and one that listens; direction 0 is that of the dialler's words."""

    __slots__ = (
        "accepted",
        "asked",
        "away",
        "broken_until",
        "closed",
        "dialler",
        "heard",
        "held",
        "last",
        "listener",
        "lost",
        "name",
        "pending",
        "remote",
        "slow",
        "unheard",
    )

    def __init__(self, dialler: Inhabitant, name: bytes, listener: bytes, remote: bool, slow: float) -> None:
        self.dialler = dialler
        self.name = name  # that the dialler has for the listener
        self.listener = listener
        self.remote = remote
        self.slow = slow
        self.accepted = False  # the listener knows whose it is
        self.asked = False  # ... or has asked
        self.closed = False  # by the dialler
        self.broken_until = 0.0
        self.last = [0.0, 0.0]
        self.pending: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})  # messages on the way, by serial number
        self.lost = [0, 0]  # messages with this serial number or a later one are lost
        self.away = 0  # the listener has ended, and will be back: how often that has happened
        self.held: list[bytes] = []  # what the dialler says meanwhile, and said before and does not know to be heard
        self.unheard: dict[int, bytes] = {}  # by serial number
        self.heard: list[bytes] = []  # the latest, of which the dialler may not know yet


class Network:
    """All connections, and what has happened to the ways between machines."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._by_process: dict[bytes, list[Connection]] = {}
        self._cuts: dict[tuple[str, str], float] = {}
        self.returning: dict[bytes, None] = {}  # listeners that end and come back

    # -- what processes do ----------------------------------------------------------------------------------------

    def dial(self, process: Inhabitant, peer: bytes) -> None:
        """Connect to a peer, unless there is a connection."""
        if peer in process.links:
            return
        world = self._world
        listener = world.processes.get(peer)
        remote = listener is not None and listener.machine != process.machine
        slow = world.rng.choice([1.0, 1.0, 1.0, 10.0]) * (FAR if remote else 1.0)
        connection = Connection(process, peer, peer, remote, slow)
        connection.away = int(listener is not None and not listener.alive and peer in self.returning)
        process.links[peer] = connection
        for end in (process.id, peer):
            self._by_process.setdefault(end, []).append(connection)
        self._put(connection, 0, process.hello())

    def hang_up(self, process: Inhabitant, peer: bytes) -> None:
        """Forget a peer. What was said to it just now may never leave."""
        process.links.pop(peer, None)
        for connection in process.accepted.pop(peer, ()):
            connection.accepted = False
        for connection in self._by_process.get(process.id, ()):
            if connection.dialler is process and connection.name == peer and not connection.closed:
                connection.closed = True
                self._lose(connection, 0)

    def send(self, process: Inhabitant, peer: bytes, message: tuple[Any, ...]) -> bool:
        """Say something to a peer; False: there is no connection, and it is lost."""
        connection = process.links.get(peer)
        if connection is None:
            return False
        side = 0 if connection.dialler is process else 1
        if side == 1 and connection.closed:
            if connection.remote:
                del process.links[peer]
            return True
        self._put(connection, side, wire.pack(message))
        return True

    # -- what happens to them -------------------------------------------------------------------------------------

    def cut(self, one: str, other: str, until: float) -> None:
        """Nothing gets from one machine to the other, either way, until then."""
        self._cuts[min(one, other), max(one, other)] = until

    def between_machines(self) -> list[Connection]:
        """The connections over which something could be said from one machine to another."""
        known = {id(c): c for connections in self._by_process.values() for c in connections}
        return [c for c in known.values() if c.remote and not c.closed and not c.away and c.dialler.alive and not any(c.lost)]

    def break_off(self, connection: Connection, until: float) -> None:
        """A connection is gone, with what was on its way in it; until then there is no other."""
        world = self._world
        connection.broken_until = until = max(connection.broken_until, until)
        for side, pending in enumerate(connection.pending):
            connection.last[side] = max(connection.last[side], until)
            for serial, frame in list(pending.items()):
                del pending[serial]
                again = world.at(until, self._deliver, connection, side, frame, world.serial + 1)
                pending[again] = frame
                if connection.unheard.pop(serial, None) is not None:
                    connection.unheard[again] = frame

    def heal(self) -> None:
        self._cuts.clear()

    def open_at(self, one: str, other: str) -> float:
        """When something that is sent now can set off."""
        return max(self._world.now, self._cuts.get((min(one, other), max(one, other)), 0.0))

    def tear(self, process: bytes) -> None:
        """A process died: some of its last words are lost."""
        for connection in self._by_process.get(process, ()):
            self._lose(connection, 0 if connection.dialler.id == process else 1)

    def silence(self, process: bytes) -> float:
        """When the last word of a process arrives."""
        return max(
            (
                connection.last[0 if connection.dialler.id == process else 1]
                for connection in self._by_process.get(process, ())
            ),
            default=0.0,
        )

    def forget(self, process: bytes) -> None:
        """Nobody can say anything to a process any more, nor it to them, once this has arrived."""
        self._by_process.pop(process, None)

    def leave(self, listener: bytes) -> None:
        """A listener ended, and will be back: what was on its way to it is said again then, and perhaps more than that."""
        rng = self._world.rng
        for connection in self._by_process.get(listener, ()):
            if connection.dialler.alive and not connection.closed:
                connection.away += 1
                known = rng.randrange(len(connection.heard) + 1)
                connection.held = [*connection.heard[known:], *connection.unheard.values(), *connection.held]
                connection.heard.clear()
                connection.unheard.clear()
                connection.pending[0].clear()
                for serial in list(connection.pending[1])[rng.randrange(len(connection.pending[1]) + 1) :]:
                    del connection.pending[1][serial]

    def come_back(self, listener: bytes) -> None:
        """It is there again, another process: who had dialled it finds that out one after the other."""
        for connection in self._by_process.get(listener, ()):
            if connection.away:  # the last words of the one before come over a connection that is over then
                when = max(self._world.now + self._world.some(0.1), connection.last[1])
                self._world.at(when, self._find, connection, connection.away)

    def _find(self, connection: Connection, time: int) -> None:
        dialler = connection.dialler
        listener = self._world.processes[connection.listener]
        if connection.away != time or connection.closed or not dialler.alive or not listener.alive:
            return
        if dialler.frozen:
            dialler.backlog.append((self._find, (connection, time)))
            return
        connection.away = 0
        connection.accepted = True
        listener.links[dialler.id] = connection
        listener.accepted.setdefault(dialler.id, []).append(connection)
        held, connection.held = connection.held, []
        dialler.on_broken(connection.name)
        for frame in held:
            self._put(connection, 0, frame)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _lose(self, connection: Connection, side: int) -> None:
        pending = connection.pending[side]
        if pending and not connection.lost[side]:
            connection.lost[side] = self._world.rng.choice([*pending, list(pending)[-1] + 1])

    def _put(self, connection: Connection, side: int, packed: Any) -> None:
        world = self._world
        frame = packed if type(packed) is bytes else wire.encode([packed])
        if connection.away:
            if side == 0:
                connection.held.append(frame)
            return
        start = world.now
        if connection.remote:
            listener = world.processes.get(connection.listener)
            if listener is not None:
                start = max(self.open_at(connection.dialler.machine, listener.machine), connection.broken_until)
        when = max(connection.last[side], start + world.some(world.delay_s * connection.slow))
        connection.last[side] = when
        serial = world.at(when, self._deliver, connection, side, frame, world.serial + 1)
        connection.pending[side][serial] = frame
        if side == 0 and connection.listener in self.returning:
            connection.unheard[serial] = frame

    def _deliver(self, connection: Connection, side: int, frame: bytes, serial: int) -> None:
        world = self._world
        receiver = connection.dialler if side else world.processes.get(connection.listener)
        if receiver is not None and receiver.frozen and receiver.alive:
            receiver.backlog.append((self._deliver, (connection, side, frame, serial)))
            return
        if connection.pending[side].pop(serial, None) is None:
            return  # it was on its way to a process that ended, or is said again on another connection
        if side == 0 and connection.unheard.pop(serial, None) is not None:
            connection.heard = [*connection.heard[-2:], frame]
        lost = connection.lost[side]
        if receiver is None or not receiver.alive or (lost and serial >= lost):
            return
        sender = connection.name if side else connection.dialler.id
        if frame == WHO:
            if not connection.closed:
                self._put(connection, 0, connection.dialler.hello())
            return
        decode = wire.decode_plain if receiver.role in ("agent", "control") else wire.decode
        [message] = decode(frame)
        if side == 0 and not self._admit(connection, receiver, message):
            return
        if side == 1 and connection.closed:
            return
        world.heard(receiver, sender, message)

    def _admit(self, connection: Connection, receiver: Inhabitant, message: tuple[Any, ...]) -> bool:
        """Whether the listener looks at a message: only if it knows who says it."""
        if message[0] != wire.HELLO:
            if not connection.accepted and connection.remote and not connection.asked:
                connection.asked = True
                self._put(connection, 1, WHO)
            return connection.accepted
        if connection.accepted:
            return False
        connection.accepted = True
        connection.asked = False
        peer = connection.dialler.id
        others = receiver.accepted.setdefault(peer, [])
        if receiver.links.get(peer) in (None, *others):
            receiver.links[peer] = connection
        others.append(connection)
        return True
