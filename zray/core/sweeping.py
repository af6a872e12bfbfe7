"""Sweeper: what lies in stores for an owner and is not needed there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zray.base.ids import END_INDEX, agent_id
from zray.base.wire import ERROR, STORED, Entry, FreeObjects
from zray.core.actor_calls import ActorTaskSubmitter
from zray.core.directory import ObjectDirectory
from zray.core.effects import SEND, Effect
from zray.core.entries import contained_in
from zray.core.lineage import Lineage
from zray.core.recovery import LostObject
from zray.core.references import ReferenceCounter
from zray.core.tasks import TaskManager


class Sweeper:
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    _agent: bytes
    _node_id: bytes
    _remote_gets: dict[bytes, list[bytes]]
    calls: ActorTaskSubmitter
    directory: ObjectDirectory
    lineage: Lineage
    lost: dict[bytes, LostObject]
    memory: dict[bytes, Entry]
    out: list[Effect]
    references: ReferenceCounter
    streams: dict[bytes, Any]
    tasks: TaskManager
    unread: dict[bytes, Any]

    def _answer_lost(self, peer: bytes, object_id: bytes) -> None:
        """Tell a borrower that there is no such object."""
        raise NotImplementedError

    def _out_of_scope(self, handle_id: bytes) -> None:
        """No handle of an actor is left."""
        raise NotImplementedError

    def _free(self) -> None:
        """Let go of what nobody needs any more."""
        references = self.references
        freed, references.freed = references.freed, []
        memory = self.memory
        stored: dict[bytes, list[bytes]] = {}
        for object_id in freed:
            if object_id in self.calls.handles:
                self._out_of_scope(object_id)
            stream = self.streams.get(object_id[:16]) if object_id[16:] == END_INDEX else None
            if stream is not None and stream.dropped and not stream.dynamic:  # nobody needs the object at its end either
                self.unread[stream.task_id] = stream
            entry = memory.pop(object_id, None)
            if entry is not None and entry[0] == STORED:
                stored.setdefault(entry[2], []).append(object_id)
                self.directory.forget(object_id)
            if self.lineage.origins:
                self.lineage.on_freed(object_id)
            lost = self.lost.pop(object_id, None)
            if lost is not None:
                self.directory.forget(object_id)
                for peer in self._remote_gets.pop(object_id, ()):
                    self._answer_lost(peer, object_id)
                if lost.entry is not None:  # the node where it was lost may live
                    stored.setdefault(lost.entry[2], []).append(object_id)
        for node_id, object_ids in stored.items():
            self._free_at(node_id, object_ids)

    def _discard(self, object_id: bytes, entry: Entry) -> None:
        """A value arrived that nobody needs."""
        self.references.decline(contained_in(entry))
        known = self.memory.get(object_id)
        if entry[0] != STORED or object_id[:16] in self.tasks.pending:
            return
        if known is None or known[0] != STORED or known[2] != entry[2]:  # else it is what is needed
            self._free_at(entry[2], [object_id])

    def _sweep(self, returns: Iterable[bytes], agents: Iterable[bytes]) -> None:
        """Attempts on these nodes, or this one half way through its results, may have left some where nobody knows of them."""
        for agent in dict.fromkeys(agents):
            known = {object_id: self.memory.get(object_id, (ERROR,)) for object_id in returns}
            # Where the value is said to lie, another attempt has made it.
            left = [o for o, entry in known.items() if entry[0] != STORED or agent_id(entry[2]) != agent]
            if left:
                self.out.append((SEND, self._agent, FreeObjects(left, b"" if agent == self._agent else agent)))

    def _free_at(self, node_id: bytes, object_ids: list[bytes]) -> None:
        agent = b"" if node_id == self._node_id else agent_id(node_id)
        self.out.append((SEND, self._agent, FreeObjects(object_ids, agent)))
