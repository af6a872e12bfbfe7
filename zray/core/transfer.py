"""ObjectTransfer: the copies of objects on several nodes, as one agent sees them.

Theory of operation
-------------------
An object lies on the node where it was made: that is its *primary* copy, which its owner knows of. Whoever reads it on another
node pins it at the agent there, naming the agent of the primary. If the store has no copy, one is pulled (``pulls``) from the
primary's node or from one that has a copy already (``pushes``), into room that the store gives, and the pin is answered.
Such a *secondary* copy stays for others to read until memory is short, or the primary goes. When the node of the primary is
lost, the copy stays for ``orphan_copy_s``: the owner may have it made the primary (``copy_search``).

One pull in messages, R the reader's agent, P the primary's, H another with a copy::

    R -> P  RequestCopy          P pins the object (or R waits, or is sent on: CopyElsewhere, and R -> H OpenCopy)
    P -> R  CopyOffered          a ticket, and where to go with it
    R == P  chunks               on sockets of their own, from the arena of one to the arena of the other (io/transfer)
    R -> P  CopyEnded            P unpins it; R is one of those that have a copy (H hears it too)
    P -> R  FreeCopies           later, when the owner needs the object no more; or R -> P CopiesDropped before that

Agents are named by their process ids. This machine joins the three and the store, passes frees on to the node that has the
primary (again and again until it answers), and keeps the one timer: every ``transfer_renew_s`` an agent says what it is
bringing, and less often what it has copies of, so that what was lost on the way is noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zray.base.config import Config
from zray.base.wire_transfer import CopiesHeld, CopyRefused, FreePrimaries, PrimariesFreed
from zray.core.copy_search import CopySearch
from zray.core.effects import SEND, TIMER, Effect
from zray.core.pulls import REST_TIMER, PullManager
from zray.core.pushes import PushManager
from zray.core.store import ARGUMENT, GET, PULLS, ObjectStore
from zray.core.views import NodeView

RENEW_TIMER = "transfer.renew"
_COMPLETE_EVERY = 6  # renewals: who has copies says so more rarely
_FREES_MAX = 100  # renewals without an answer: then that agent is no part of the cluster any more

__all__ = ["ARGUMENT", "GET", "ObjectTransfer"]


class ObjectTransfer:
    """The transfers of one node.

    Args:
        me: process id of this node's agent.
        config: limits.
        out: where effects go; the store's too.
        store: the index of this node's objects.
        others: the agents of the other nodes that live.
    """

    __slots__ = (
        "_config",
        "_died_at",
        "_frees",
        "_me",
        "_out",
        "_renewals",
        "_set",
        "_store",
        "_unheard",
        "pulls",
        "pushes",
        "search",
    )

    def __init__(
        self, me: bytes, config: Config, out: list[Effect], store: ObjectStore, others: Mapping[bytes, NodeView] | None = None
    ) -> None:
        self._me = me
        self._config = config
        self._out = out
        self._store = store
        self._frees: dict[bytes, dict[bytes, None]] = {}  # of primaries elsewhere, which were not confirmed yet
        self._died_at: dict[bytes, float] = {}  # agents of nodes that are gone
        self._unheard: dict[bytes, int] = {}  # how often they were said again since the last answer
        self._renewals = 0
        self._set = False  # the timer
        self.pushes = PushManager(me, config, out, store)
        self.pulls = PullManager(me, config, out, store, self.pushes.on_abandoned)
        self.search = CopySearch(out, store, {} if others is None else others)

    # -- this node ------------------------------------------------------------------------------------------------

    def pin(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        object_id: bytes,
        *,
        size: int = 0,
        primary: bytes = b"",
        owner: bytes = b"",
        priority: int = GET,
    ) -> None:
        """A client wants to read an object.

        Args:
            now: the time.
            peer: the client.
            request_id: of its question; the answer is that of ``ObjectStore.pin``.
            object_id: which object.
            size: its bytes, as its owner knows them.
            primary: the agent of the node that has the primary copy; b"" is this one.
            owner: who owns it.
            priority: ``GET`` or ``ARGUMENT``.
        """
        coming = object_id in self.pulls.pulls
        stored = self._store.objects.get(object_id)
        if coming or ((stored is None or not stored.sealed) and primary not in (b"", self._me)):
            self.pulls.pull(now, object_id, size, primary, owner, (peer, request_id), priority)
            self._plan(now)
        else:
            self._store.pin(peer, request_id, object_id, now=now, urgent=priority < ARGUMENT)

    def free(self, now: float, object_ids: list[bytes], primary: bytes = b"") -> None:
        """An owner needs these no more; ``primary``: the agent of the node that has them, b"" is this one.

        An object that was made again lies on another node than before: a free of what was there says nothing of it.
        """
        if primary in (b"", self._me):
            self._free_primaries(object_ids)
            return
        self._free_copies(now, primary, object_ids)
        if not self.pulls.is_dead(primary):
            self._frees.setdefault(primary, {}).update(dict.fromkeys(object_ids))
            self._out.append((SEND, primary, FreePrimaries(object_ids)))
            self._plan(now)

    def drop_client(self, now: float, peer: bytes) -> None:
        """A process is gone, of this node or another: what it read, wrote and owned."""
        self.pulls.drop_client(now, peer)
        self._store.drop_client(peer)
        self.pushes.on_freed()
        self.search.drop_client(peer)

    def on_node_died(self, now: float, agent: bytes, reason: str) -> None:
        """A node is gone, with all primaries there. Copies of them are kept for a while: their owners may want them instead."""
        self._died_at[agent] = now
        if len(self._died_at) > self._config.dead_nodes_max:
            del self._died_at[next(iter(self._died_at))]  # copies of its objects were freed long ago
        self._forget_frees(agent)
        self.pulls.on_node_died(now, agent, reason)
        self.pushes.on_node_died(now, agent)
        self.search.on_node_died(agent)
        self.drop_client(now, agent)

    # -- the body -------------------------------------------------------------------------------------------------

    def on_answer(self, now: float, client: bytes, request_id: int, ok: bool, value: Any) -> None:
        """The store answers one of the two: the effect ANSWER."""
        if client == PULLS:
            self.pulls.on_answer(now, request_id, ok, value)
        else:
            self.pushes.on_answer(now, request_id, ok, value)

    def on_fetched(self, now: float, object_id: bytes, checksum: int) -> None:
        """The end of a FETCH: all bytes are here; ``checksum`` is theirs, where the place is a file."""
        self.pulls.on_fetched(now, object_id, checksum)
        self.pushes.on_complete(object_id)
        self._plan(now)

    def on_fetch_failed(self, now: float, object_id: bytes, received: int, kind: str, reason: str) -> None:
        """The other end of a FETCH; see ``PullManager``."""
        self.pulls.on_fetch_failed(now, object_id, received, kind, reason)

    def on_unserved(self, now: float, ticket: int) -> None:
        """The end of an UNSERVE."""
        self.pushes.on_unserved(now, ticket)

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        """A timer whose key starts with "transfer"."""
        if key[0] == REST_TIMER:
            self.pulls.on_rested(now, key[1])
        else:
            self._set = False
            self._renew(now)
            self._plan(now)

    # -- other agents ---------------------------------------------------------------------------------------------

    def on_request_copy(self, now: float, peer: bytes, object_id: bytes, failed: list[bytes]) -> None:
        if self.pulls.is_dead(peer):
            return  # what the dead have said may come late, and nobody would give back what they were given
        self.pushes.on_request_copy(now, peer, object_id, failed)
        self._plan(now)

    def on_open_copy(self, now: float, peer: bytes, object_id: bytes) -> None:
        if self.pulls.is_stuck(object_id):
            self._out.append((SEND, peer, CopyRefused(object_id, "it does not come here any more")))
        elif not self.pulls.is_dead(peer):
            self.pushes.on_open_copy(now, peer, object_id)
            self._plan(now)

    def on_copy_offered(
        self,
        now: float,
        peer: bytes,
        object_id: bytes,
        ticket: int,
        endpoint: str,
        size_bytes: int,
        checksum: int,
        holders: list[bytes],
    ) -> None:
        self.pulls.on_copy_offered(now, peer, object_id, ticket, endpoint, size_bytes, checksum, holders)

    def on_copy_elsewhere(self, now: float, peer: bytes, object_id: bytes, agent: bytes) -> None:
        self.pulls.on_copy_elsewhere(now, peer, object_id, agent)

    def on_copy_waits(self, now: float, peer: bytes, object_id: bytes) -> None:
        self.pulls.on_copy_waits(now, peer, object_id)

    def on_copy_refused(self, now: float, peer: bytes, object_id: bytes, reason: str, kind: str = "lost") -> None:
        self.pulls.on_copy_refused(now, peer, object_id, reason, kind)

    def on_copy_ended(self, now: float, peer: bytes, object_id: bytes, complete: bool) -> None:
        if not self.pulls.is_dead(peer):
            self.pushes.on_copy_ended(now, peer, object_id, complete)

    def on_copies_dropped(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        self.pushes.on_copies_dropped(now, peer, object_ids)

    def on_copies_held(self, now: float, peer: bytes, rows: list[Any]) -> None:
        if not self.pulls.is_dead(peer):
            self.pushes.on_copies_held(now, peer, rows)

    def on_free_copies(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        """The agent that has the primaries says that they are freed. What it does not have the primary of is not its business."""
        self._free_copies(now, peer, object_ids)

    def on_free_primaries(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        self._free_primaries(object_ids)
        self._out.append((SEND, peer, PrimariesFreed(object_ids)))

    def on_primaries_freed(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        waiting = self._frees.get(peer, {})
        self._unheard.pop(peer, None)
        for object_id in object_ids:
            waiting.pop(object_id, None)
        if not waiting:
            self._forget_frees(peer)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _free_primaries(self, object_ids: list[bytes]) -> None:
        self._store.free([o for o in object_ids if o not in self._store.copies])
        self.pushes.on_freed(object_ids)

    def _free_copies(self, now: float, primary: bytes, object_ids: list[bytes]) -> None:
        """What is here, or comes, of the primaries of an agent is not needed any more."""
        self.pulls.on_freed(now, [o for o in object_ids if self.pulls.primary_of(o) == primary])
        self._store.free([o for o in object_ids if self._store.copies.get(o) == primary])

    def _forget_frees(self, agent: bytes) -> None:
        self._frees.pop(agent, None)
        self._unheard.pop(agent, None)

    def _plan(self, now: float) -> None:
        """Have the timer run while there is something to say or to expire."""
        if not self._set and (self.pulls.pulls or self._frees or self.pushes.busy or self._store.copies):
            self._set = True
            self._out.append((TIMER, now + self._config.transfer_renew_s, (RENEW_TIMER,)))

    def _renew(self, now: float) -> None:
        rows: dict[bytes, list[tuple[bytes, bool]]] = {}
        for agent, object_id in self.pulls.renew(now):
            rows.setdefault(agent, []).append((object_id, False))
        self._renewals += 1
        if self._renewals % _COMPLETE_EVERY == 0:
            for object_id, agent in self._store.copies.items():
                rows.setdefault(agent, []).append((object_id, True))
        for agent, held in rows.items():
            self._out.append((SEND, agent, CopiesHeld(held)))
        for agent, object_ids in list(self._frees.items()):
            self._unheard[agent] = self._unheard.get(agent, 0) + 1
            if self._unheard[agent] > _FREES_MAX:
                self._forget_frees(agent)
            else:
                self._out.append((SEND, agent, FreePrimaries(list(object_ids))))
        self.pushes.expire(now)
        limit = now - self._config.orphan_copy_s
        self._store.free([o for o, agent in self._store.copies.items() if self._died_at.get(agent, now) < limit])

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants of this machine and its leaves; the store checks itself."""
        self.pulls.check()
        self.pushes.check()
        self.search.check()

    def statistics(self) -> dict[str, int]:
        return {
            "frees_unconfirmed": sum(map(len, self._frees.values())),
            **self.pulls.statistics(),
            **self.pushes.statistics(),
            **self.search.statistics(),
        }
