"""Sweeper: what lies in stores for an owner and is not needed there."""

from __future__ import annotations

from collections.abc import Iterable

from zray.base.ids import agent_id, agent_of
from zray.base.wire import ERROR, STORED, Entry, FreeObjects
from zray.core.effects import SEND, Effect
from zray.core.entries import contained_in
from zray.core.references import ReferenceCounter
from zray.core.tasks import TaskManager


class Sweeper:
    """What ``Owner`` inherits; the fields are made there."""

    __slots__ = ()

    _agent: bytes
    _agents: dict[bytes, None]
    _node_id: bytes
    memory: dict[bytes, Entry]
    out: list[Effect]
    references: ReferenceCounter
    tasks: TaskManager

    def _discard(self, object_id: bytes, entry: Entry) -> None:
        """A value arrived that nobody needs."""
        self.references.decline(contained_in(entry))
        known = self.memory.get(object_id)
        if entry[0] == STORED and object_id[:16] not in self.tasks.pending and (known is None or known[0] != STORED):
            self._free_at(entry[2], [object_id])

    def _sweep(self, returns: Iterable[bytes], worker: bytes) -> None:
        """A task failed: an earlier attempt, or this one half way through its results, may have left some in the store."""
        agent = agent_of(worker)
        left = [o for o in returns if self.memory.get(o, (ERROR,))[0] != STORED]  # another attempt may have made it
        if left:
            self.out.append((SEND, self._agent, FreeObjects(left, agent if agent in self._agents else b"")))

    def _free_at(self, node_id: bytes, object_ids: list[bytes]) -> None:
        agent = b"" if node_id == self._node_id else agent_id(node_id)
        self.out.append((SEND, self._agent, FreeObjects(object_ids, agent)))
