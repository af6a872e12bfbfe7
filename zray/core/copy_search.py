"""CopySearch: finds copies of objects whose primaries are lost, and makes them primaries.

Theory of operation
-------------------
Nobody keeps a list of all copies of an object: that would cost a message for each that is made or dropped, for a list that is
hardly ever read. When a primary is lost, its owner asks the agent of its own node to find a copy. That one looks at home, and
then asks the agents of all other nodes at once. The first that has a copy is told to adopt it: from then on it is a primary, is
spilled rather than dropped, and lives until its owner frees it. If the copy has gone meanwhile the next is asked. An agent that
dies has answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zray.base.wire_transfer import AdoptCopies, AskForCopies, CopiesAdopted, CopiesFound, CopiesKnown, FreePrimaries
from zray.core.effects import SEND, Effect
from zray.core.store import ObjectStore
from zray.core.views import NodeView
from zray.exceptions import InvariantError

_Row = tuple[bytes, bool, bytes, str]


class _Search:
    """One object that is looked for."""

    __slots__ = ("asked", "chosen", "holders", "owner")

    def __init__(self, owner: bytes, asked: Iterable[bytes]) -> None:
        self.owner = owner
        self.asked = dict.fromkeys(asked)  # agents that have not answered yet
        self.holders: list[bytes] = []
        self.chosen = b""  # the agent that was told to adopt


class CopySearch:
    """The searches of one agent, and its answers to those of others.

    Args:
        out: where effects go.
        store: the index of this node's objects.
        others: the agents of the other nodes that live.
    """

    __slots__ = ("_others", "_out", "_store", "searches")

    def __init__(self, out: list[Effect], store: ObjectStore, others: Mapping[bytes, NodeView]) -> None:
        self._out = out
        self._store = store
        self._others = others
        self.searches: dict[bytes, _Search] = {}

    # -- owners ---------------------------------------------------------------------------------------------------

    def on_find_copies(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        found: list[_Row] = []
        wanted: list[bytes] = []
        for object_id in object_ids:
            if self._store.adopt(object_id, peer):
                found.append((object_id, True, b"", ""))
            elif not self._others:
                found.append((object_id, False, b"", ""))
            else:
                self.searches[object_id] = _Search(peer, self._others)
                wanted.append(object_id)
        if found:
            self._out.append((SEND, peer, CopiesFound(found)))
        if wanted:
            for agent in self._others:
                self._out.append((SEND, agent, AskForCopies(wanted)))

    def drop_client(self, peer: bytes) -> None:
        """A process is gone: what it had looked for is not wanted any more. What is adopted for it goes with it."""
        for object_id in [o for o, search in self.searches.items() if search.owner == peer]:
            del self.searches[object_id]

    # -- other agents ---------------------------------------------------------------------------------------------

    def on_ask_for_copies(self, now: float, peer: bytes, object_ids: list[bytes]) -> None:
        known = [object_id for object_id in object_ids if object_id in self._store.copies]
        unknown = [object_id for object_id in object_ids if object_id not in self._store.copies]
        self._out.append((SEND, peer, CopiesKnown(known, unknown)))

    def on_copies_known(self, now: float, peer: bytes, known: list[bytes], unknown: list[bytes]) -> None:
        for object_id in known:
            search = self.searches.get(object_id)
            if search is not None and search.asked.pop(peer, self) is None:
                search.holders.append(peer)
        for object_id in unknown:
            search = self.searches.get(object_id)
            if search is not None:
                search.asked.pop(peer, None)
        self._go_on([*known, *unknown])

    def on_adopt_copies(self, now: float, peer: bytes, owner: bytes, object_ids: list[bytes]) -> None:
        adopted = [object_id for object_id in object_ids if self._store.adopt(object_id, owner)]
        known = set(adopted)
        gone = [object_id for object_id in object_ids if object_id not in known]
        self._out.append((SEND, peer, CopiesAdopted(adopted, gone)))

    def on_copies_adopted(self, now: float, peer: bytes, adopted: list[bytes], gone: list[bytes]) -> None:
        place = self._others.get(peer)
        found: dict[bytes, list[_Row]] = {}
        for object_id in adopted:
            search = self.searches.get(object_id)
            if search is None or search.chosen != peer or place is None:
                self._out.append((SEND, peer, FreePrimaries([object_id])))  # its owner is gone
            else:
                del self.searches[object_id]
                found.setdefault(search.owner, []).append((object_id, True, place.node_id, place.endpoint))
        for owner, rows in found.items():
            self._out.append((SEND, owner, CopiesFound(rows)))
        for object_id in gone:
            search = self.searches.get(object_id)
            if search is not None and search.chosen == peer:
                search.chosen = b""
        self._go_on(gone)

    def on_node_died(self, agent: bytes) -> None:
        """A node is gone: it will not answer."""
        for search in self.searches.values():
            search.asked.pop(agent, None)
            search.holders = [holder for holder in search.holders if holder != agent]
            if search.chosen == agent:
                search.chosen = b""
        self._go_on(list(self.searches))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _go_on(self, object_ids: list[bytes]) -> None:
        """Choose holders for those that have none, or give them up."""
        chosen: dict[tuple[bytes, bytes], list[bytes]] = {}
        in_vain: dict[bytes, list[_Row]] = {}
        for object_id in object_ids:
            search = self.searches.get(object_id)
            if search is None or search.chosen:
                continue
            if search.holders:
                search.chosen = search.holders.pop(0)
                chosen.setdefault((search.chosen, search.owner), []).append(object_id)
            elif not search.asked:
                del self.searches[object_id]
                in_vain.setdefault(search.owner, []).append((object_id, False, b"", ""))
        for (agent, owner), ids in chosen.items():
            self._out.append((SEND, agent, AdoptCopies(owner, ids)))
        for owner, rows in in_vain.items():
            self._out.append((SEND, owner, CopiesFound(rows)))

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        for object_id, search in self.searches.items():
            if not search.chosen and (search.holders or not search.asked):
                raise InvariantError(f"the search for a copy of {object_id.hex()} does not go on")
            if any(agent not in self._others for agent in [*search.asked, *search.holders]):
                raise InvariantError(f"the search for a copy of {object_id.hex()} waits for a node that is gone")

    def statistics(self) -> dict[str, int]:
        return {"searches": len(self.searches)}
