"""PushManager: who may read which object of this node, and which of several nodes serves whom.

Theory of operation
-------------------
*Tickets.* Another node reads an object with a ticket. The object is pinned in the store while there is one, so the bytes stay
where they are, in the arena or in a spill file; sending needs no memory. The body takes the ticket back (UNSERVE) before the
pin goes, and says when nothing looks at the place any more, since the network may still be sending from it.

*Broadcasts.* The agent that has the primary decides who reads from whom. No node serves the same object to more than
``copy_receivers_max`` others at once; who comes later waits, and is sent to one that has completed its copy in the meantime.
Who brings a large object serves it already, as far as it has come: so a broadcast becomes a chain through which the bytes flow,
and takes little longer than one transfer. The primary's agent counts who reads from whom; those who read report to it how that
ended.

*Frees.* When the primary is freed, all who have a copy, bring one, or wait for one are told.

What is lost on the way heals: who reads says so from time to time, and what nobody has said for three periods is taken back.
Who has a copy says that too, and hears if the primary is gone.
"""

from __future__ import annotations

from typing import Any

from zray.base.config import Config
from zray.base.wire_transfer import CopyElsewhere, CopyOffered, CopyRefused, CopyWaits, FreeCopies
from zray.core.effects import SEND, SERVE, SERVE_REST, UNSERVE, Effect
from zray.core.store import PUSHES, ObjectStore
from zray.exceptions import InvariantError

_PERIODS = 3  # without a word
_RELAYS_MAX = 8  # nodes that pass an object on before they have all of it, one behind the other
_RELAYED_CHUNKS_MIN = 4  # of an object that is passed on so


class _Ticket:
    """A node may read an object from here."""

    __slots__ = ("closing", "number", "object_id", "place", "receiver", "renewed_at", "whole")

    def __init__(self, number: int, object_id: bytes, receiver: bytes, now: float) -> None:
        self.number = number
        self.object_id = object_id
        self.receiver = receiver
        self.place: tuple[Any, ...] | None = None  # (offset, size) or (path, position, size, checksum)
        self.whole = True  # all of the object is here
        self.closing = False  # taken back; the store's or the body's last word is awaited
        self.renewed_at = now


class _Spread:
    """Where the copies of one primary are, and go."""

    __slots__ = ("assigned", "holders", "loads", "waiting")

    def __init__(self) -> None:
        self.holders: dict[bytes, None] = {}  # agents that have a complete copy
        self.assigned: dict[bytes, tuple[bytes, float]] = {}  # who reads: from whom, and when that was last said
        self.loads: dict[bytes, int] = {}  # how many read from each
        self.waiting: dict[bytes, list[bytes]] = {}  # who waits, and from whom each can not read

    def relays(self, receiver: bytes) -> list[bytes]:
        """Who reads, and can pass it on to this one meanwhile: not if it would come from that one itself."""
        found = []
        for agent in self.assigned:
            source, hops = agent, 0
            while source in self.assigned and source != receiver and hops <= _RELAYS_MAX:
                source = self.assigned[source][0]
                hops += 1
            if source != receiver and hops <= _RELAYS_MAX:
                found.append(agent)
        return found

    def unassign(self, receiver: bytes) -> bytes:
        """Who read ends; returns from whom that was, b"" if from nobody."""
        source, _ = self.assigned.pop(receiver, (b"", 0.0))
        if source:
            self.loads[source] -= 1
            if not self.loads[source]:
                del self.loads[source]
        return source


class PushManager:
    """The sender's side of one node.

    Args:
        me: process id of this node's agent.
        config: limits.
        out: where effects go.
        store: where the objects lie.
    """

    __slots__ = ("_by_reader", "_config", "_me", "_next", "_out", "_spreads", "_store", "endpoint", "tickets")

    def __init__(self, me: bytes, config: Config, out: list[Effect], store: ObjectStore) -> None:
        self._me = me
        self._config = config
        self._out = out
        self._store = store
        self._next = 1
        self._by_reader: dict[tuple[bytes, bytes], _Ticket] = {}  # (object, receiver): the ticket that is open
        self._spreads: dict[bytes, _Spread] = {}
        self.tickets: dict[int, _Ticket] = {}
        self.endpoint = ""  # of the sockets for bytes; the body knows it

    # -- other agents ---------------------------------------------------------------------------------------------

    def on_request_copy(self, now: float, peer: bytes, object_id: bytes, failed: list[bytes]) -> None:
        """A node wants a copy of a primary that is here."""
        stored = self._store.objects.get(object_id)
        if stored is None or (stored.freed and object_id not in self._store.copies):
            self._refuse(peer, object_id, "it is not in the store of the node that made it any more")
            return
        spread = self._spreads.setdefault(object_id, _Spread())
        spread.holders.pop(peer, None)  # it would not ask
        for agent in failed:
            spread.holders.pop(agent, None)
        source = spread.assigned.get(peer, (b"", 0.0))[0]
        if source and source not in failed:
            spread.assigned[peer] = (source, now)
            self._direct(now, peer, object_id, source)
            return
        if spread.unassign(peer) == self._me:
            self._close(object_id, peer)
        spread.waiting[peer] = failed
        self._assign(now, object_id, spread)
        if peer in spread.waiting:
            self._out.append((SEND, peer, CopyWaits(object_id)))

    def on_open_copy(self, now: float, peer: bytes, object_id: bytes) -> None:
        """A node was sent here by the agent that has the primary."""
        if object_id in self._store.objects:
            self._serve(now, peer, object_id)
        else:
            self._refuse(peer, object_id, "the copy was dropped")

    def on_copy_ended(self, now: float, peer: bytes, object_id: bytes, complete: bool) -> None:
        """A node reads no more."""
        self._close(object_id, peer)
        stored = self._store.objects.get(object_id)
        if complete and stored is not None and not stored.freed:
            if stored.sealed and object_id not in self._store.copies:
                self._spreads.setdefault(object_id, _Spread()).holders[peer] = None
        elif complete:
            self._out.append((SEND, peer, FreeCopies([object_id])))
        spread = self._spreads.get(object_id)
        if spread is not None:
            spread.unassign(peer)
            spread.waiting.pop(peer, None)
            self._assign(now, object_id, spread)

    def on_copies_dropped(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        """A node has forgotten its copies."""
        for object_id in object_ids:
            spread = self._spreads.get(object_id)
            if spread is not None:
                spread.holders.pop(peer, None)
                self._prune(object_id, spread)

    def on_copies_held(self, now: float, peer: bytes, rows: list[tuple[bytes, bool]]) -> None:
        """A node says what it still reads, and what it has copies of."""
        gone = []
        for object_id, complete in rows:
            stored = self._store.objects.get(object_id)
            spread = self._spreads.get(object_id)
            ticket = self._by_reader.get((object_id, peer))
            if ticket is not None:
                ticket.renewed_at = now
            if stored is None or (stored.freed and object_id not in self._store.copies):
                gone.append(object_id)
            elif complete and object_id not in self._store.copies:
                self.on_copy_ended(now, peer, object_id, True)
            elif spread is not None and peer in spread.assigned:
                spread.assigned[peer] = (spread.assigned[peer][0], now)
        if gone:
            self._out.append((SEND, peer, FreeCopies(gone)))

    def on_node_died(self, now: float, agent: bytes) -> None:
        """A node is gone: nobody reads there, and nobody reads from there."""
        for object_id, receiver in [key for key in self._by_reader if key[1] == agent]:
            self._close(object_id, receiver)
        for object_id, spread in list(self._spreads.items()):
            spread.holders.pop(agent, None)
            spread.waiting.pop(agent, None)
            spread.unassign(agent)
            self._assign(now, object_id, spread)

    # -- this node ------------------------------------------------------------------------------------------------

    def on_freed(self, object_ids: list[bytes] | None = None) -> None:
        """These primaries, or any, may be gone: those who have copies of them, or want some, are told."""
        told: dict[bytes, list[bytes]] = {}
        for object_id in list(self._spreads) if object_ids is None else object_ids:
            stored = self._store.objects.get(object_id)
            spread = self._spreads.get(object_id)
            if spread is not None and (stored is None or stored.freed):
                del self._spreads[object_id]
                for agent in dict.fromkeys([*spread.holders, *spread.assigned, *spread.waiting]):
                    told.setdefault(agent, []).append(object_id)
        for agent, freed in told.items():
            self._out.append((SEND, agent, FreeCopies(freed)))

    def on_answer(self, now: float, number: int, ok: bool, value: Any) -> None:
        """The store has pinned an object, or has lost it."""
        ticket = self.tickets[number]
        if not ok:
            del self.tickets[number]
            if not ticket.closing:
                del self._by_reader[ticket.object_id, ticket.receiver]
                self._on_unreadable(now, ticket.object_id, ticket.receiver, *value)
        elif ticket.closing:
            del self.tickets[number]
            self._store.unpin(PUSHES, [ticket.object_id])
        else:
            ticket.place = value
            ticket.whole = self._store.objects[ticket.object_id].sealed
            self._out.append((SERVE, number, ticket.object_id, value, ticket.whole))
            self._offer(ticket)

    def on_complete(self, object_id: bytes) -> None:
        """What was passed on while it came is here now."""
        for ticket in self.tickets.values():
            if ticket.object_id == object_id and not ticket.whole:
                ticket.whole = True
                self._out.append((SERVE_REST, ticket.number))

    def on_abandoned(self, object_id: bytes) -> None:
        """The rest of what is passed on while it comes may not come."""
        for ticket in list(self.tickets.values()):
            if ticket.object_id == object_id and not ticket.whole and not ticket.closing:
                self._close(object_id, ticket.receiver)

    def on_unserved(self, now: float, number: int) -> None:
        """The body looks at the object no more."""
        ticket = self.tickets.pop(number)
        self._store.unpin(PUSHES, [ticket.object_id])

    def expire(self, now: float) -> None:
        """Take back what nobody has spoken of for long."""
        before = now - _PERIODS * self._config.transfer_renew_s
        for object_id, receiver in [key for key, ticket in self._by_reader.items() if ticket.renewed_at < before]:
            self._close(object_id, receiver)
        for object_id, spread in list(self._spreads.items()):
            late = [receiver for receiver, (_, said_at) in spread.assigned.items() if said_at < before]
            for receiver in late:
                spread.unassign(receiver)
            if late:
                self._assign(now, object_id, spread)

    @property
    def busy(self) -> bool:
        """Whether there is something that could expire."""
        return bool(self._by_reader) or any(spread.assigned for spread in self._spreads.values())

    # -- inside ---------------------------------------------------------------------------------------------------

    def _assign(self, now: float, object_id: bytes, spread: _Spread) -> None:
        """Give those who wait somebody who serves them."""
        stored = self._store.objects.get(object_id)
        large = stored is not None and stored.size >= _RELAYED_CHUNKS_MIN * self._config.transfer_chunk_bytes
        for receiver, failed in list(spread.waiting.items()):
            sources = [agent for agent in (*spread.holders, self._me) if agent not in failed]
            if large:
                sources += [agent for agent in spread.relays(receiver) if agent not in failed]
            source = min(sources, key=lambda agent: spread.loads.get(agent, 0), default=b"")
            if not source and not spread.assigned:
                del spread.waiting[receiver]
                self._refuse(receiver, object_id, "no other node has a copy")
            elif source and spread.loads.get(source, 0) < self._config.copy_receivers_max:
                del spread.waiting[receiver]
                spread.assigned[receiver] = (source, now)
                spread.loads[source] = spread.loads.get(source, 0) + 1
                self._direct(now, receiver, object_id, source)
            elif not failed:
                break  # who comes later fares no better
        self._prune(object_id, spread)

    def _direct(self, now: float, receiver: bytes, object_id: bytes, source: bytes) -> None:
        if source == self._me:
            self._serve(now, receiver, object_id)
        else:
            self._out.append((SEND, receiver, CopyElsewhere(object_id, source)))

    def _serve(self, now: float, receiver: bytes, object_id: bytes) -> None:
        """Open a ticket, or say again which it is."""
        ticket = self._by_reader.get((object_id, receiver))
        if ticket is not None:
            ticket.renewed_at = now
            if ticket.place is not None:
                self._offer(ticket)
            return
        ticket = _Ticket(self._next, object_id, receiver, now)
        self._next += 1
        self.tickets[ticket.number] = self._by_reader[object_id, receiver] = ticket
        self._store.lend(now, ticket.number, object_id)

    def _on_unreadable(self, now: float, object_id: bytes, receiver: bytes, kind: str, reason: str) -> None:
        """This node can not read its own copy: another may have one."""
        spread = self._spreads.get(object_id)
        if spread is not None and spread.unassign(receiver) and spread.holders:
            spread.waiting[receiver] = [self._me]
        else:
            self._refuse(receiver, object_id, reason, kind)
        if spread is not None:
            self._assign(now, object_id, spread)

    def _offer(self, ticket: _Ticket) -> None:
        assert ticket.place is not None
        size, checksum = (ticket.place[1], -1) if len(ticket.place) == 2 else ticket.place[2:]
        spread = self._spreads.get(ticket.object_id)
        holders = list(spread.holders)[: self._config.transfer_attempts_max] if spread is not None else []
        offer = CopyOffered(ticket.object_id, ticket.number, self.endpoint, size, checksum, holders)
        self._out.append((SEND, ticket.receiver, offer))

    def _close(self, object_id: bytes, receiver: bytes) -> None:
        """Take a ticket back, if there is one."""
        ticket = self._by_reader.pop((object_id, receiver), None)
        if ticket is not None:
            ticket.closing = True
            if ticket.place is not None:
                self._out.append((UNSERVE, ticket.number))

    def _refuse(self, receiver: bytes, object_id: bytes, reason: str, kind: str = "lost") -> None:
        self._out.append((SEND, receiver, CopyRefused(object_id, reason, kind)))

    def _prune(self, object_id: bytes, spread: _Spread) -> None:
        if not (spread.holders or spread.assigned or spread.waiting):
            self._spreads.pop(object_id, None)

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        pins: dict[bytes, int] = {}
        for number, ticket in self.tickets.items():
            key = (ticket.object_id, ticket.receiver)
            if ticket.number != number or (self._by_reader.get(key) is ticket) == ticket.closing:
                raise InvariantError(f"ticket {number} is listed wrongly")
            if ticket.place is not None:
                pins[ticket.object_id] = pins.get(ticket.object_id, 0) + 1
        for object_id, count in pins.items():
            stored = self._store.objects.get(object_id)
            if stored is None or stored.pins.get(PUSHES, 0) < count:
                raise InvariantError(f"object {object_id.hex()} is read by other nodes and not pinned")
        for object_id, spread in self._spreads.items():
            loads: dict[bytes, int] = {}
            for source, _ in spread.assigned.values():
                loads[source] = loads.get(source, 0) + 1
            if loads != spread.loads or any(load > self._config.copy_receivers_max for load in loads.values()):
                raise InvariantError(f"object {object_id.hex()} is served wrongly: {spread.loads} for {loads}")
            if any(receiver in spread.assigned for receiver in spread.waiting):
                raise InvariantError(f"somebody waits for {object_id.hex()}, and is served")

    def statistics(self) -> dict[str, int]:
        return {
            "tickets": len(self.tickets),
            "spread_objects": len(self._spreads),
            "copies_elsewhere": sum(len(spread.holders) for spread in self._spreads.values()),
        }
