"""ObjectDesk: the part of a node agent that clients talk to about large objects.

It decides nothing by itself: the store knows where objects lie on this node, the transfer which come from other nodes. The dead
get nothing, since nobody would give it back.
"""

from __future__ import annotations

from zray.base.config import Config
from zray.base.ids import agent_id
from zray.base.wire import CollectGarbage, Reply
from zray.core.death_watch import DeathWatch
from zray.core.effects import SEND, Effect
from zray.core.store import ARGUMENT, GET, ObjectStore
from zray.core.transfer import ObjectTransfer


class ObjectDesk:
    """What ``NodeAgent`` inherits; the fields are made there."""

    __slots__ = ("_collected",)

    _collected: float
    _config: Config
    deaths: DeathWatch
    _node_id: bytes
    clients: dict[bytes, str]
    out: list[Effect]
    store: ObjectStore
    transfer: ObjectTransfer

    def _meet(self, process: bytes) -> None:
        """A process holds something here: its end must be noticed."""
        raise NotImplementedError

    def on_create_object(
        self, now: float, peer: bytes, request_id: int, object_id: bytes, size_bytes: int, call_site: str = ""
    ) -> None:
        if not self.deaths.is_dead(peer) and request_id >= 0:
            self.store.create(now, peer, request_id, object_id, size_bytes, call_site)

    def on_list_objects(self, now: float, peer: bytes, request_id: int) -> None:
        self.out.append((SEND, peer, Reply(request_id, True, self.store.rows())))

    def on_seal_object(self, now: float, peer: bytes, object_id: bytes, owner: bytes, checksum: int = 0) -> None:
        if not self.deaths.is_dead(peer):  # another may be writing the same object by now
            self._meet(owner)
            self.store.seal(object_id, owner, checksum)

    def on_abort_object(self, now: float, peer: bytes, object_id: bytes, reason: str = "") -> None:
        if not self.deaths.is_dead(peer):
            self.store.abort(object_id, reason, now)

    def on_pin_object(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        object_id: bytes,
        urgent: bool = True,
        node_id: bytes = b"",
        size_bytes: int = 0,
        owner: bytes = b"",
    ) -> None:
        if not self.deaths.is_dead(peer):
            primary = agent_id(node_id) if node_id and node_id != self._node_id else b""
            priority = GET if urgent else ARGUMENT
            self.transfer.pin(
                now, peer, request_id, object_id, size=size_bytes, primary=primary, owner=owner, priority=priority
            )

    def collect(self, now: float) -> None:
        """The store is full: have every process here collect its garbage, which may hold references in cycles."""
        if now >= self._collected + self._config.collect_interval_s:
            self._collected = now
            for client in self.clients:
                self.out.append((SEND, client, CollectGarbage("the object store is full")))

    def on_object_damaged(self, now: float, peer: bytes, object_id: bytes) -> None:
        self.store.on_damaged(object_id)

    def on_unpin_objects(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        self.store.unpin(peer, object_ids)

    def on_free_objects(self, now: float, peer: bytes, object_ids: list[bytes], agent: bytes = b"") -> None:
        self.transfer.free(now, object_ids, agent)
