"""Lineage: how the large results of tasks can be made again.

Theory of operation
-------------------
A small result lives with its owner and can only be lost with it. A large one lies on the node that made it and is lost with
that node; so its owner remembers the task, the *origin* of its large results, for as long as one of them is needed: as a
value, or as an argument of another origin. That is the lineage of the ownership paper (NSDI'21): values are freed when nobody
refers to them, what made them only when nothing that could be lost depends on it.

Arguments of an origin are kept in three ways. Large results of this process's own tasks need not be kept: their origins are
(``needed`` counts by how many others). Small values are held, since nothing could make them again. Large objects that were
put, objects of other owners, and handles of actors are not kept: who wants to have results rebuilt from these holds references
to them.

Of each origin about as many bytes are kept as were sent to its worker; above ``lineage_bytes_max`` the oldest are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from zray.base.config import Config
from zray.base.wire import STORED, Entry
from zray.core.references import ReferenceCounter
from zray.core.tasks import Task, payload_bytes
from zray.exceptions import InvariantError

_OVERHEAD_BYTES = 500  # of an origin, beside its arguments


class Origin:
    """A task that has made large objects, and how it can be run again."""

    __slots__ = (
        "depth",
        "held",
        "id",
        "live",
        "needs",
        "nested",
        "payload",
        "rebuilds_left",
        "returns",
        "size_bytes",
        "slots",
        "template",
    )

    def __init__(self, task: Task) -> None:
        self.id = task.id
        self.template = task.template
        self.payload = task.payload
        self.slots = tuple((where, ref.binary(), ref.owner) for where, ref in task.slots)
        self.nested = tuple((ref.binary(), ref.owner) for ref in task.nested)
        self.returns = task.returns
        self.depth = task.depth
        self.rebuilds_left = task.template.max_retries  # -1: any number
        self.live: dict[bytes, None] = {}  # its large results that are needed
        self.needs: list[bytes] = []  # arguments that others have made
        self.held: list[bytes] = []  # arguments whose values are kept
        self.size_bytes = _OVERHEAD_BYTES + payload_bytes(task.payload)

    def arguments(self) -> Iterable[tuple[bytes, Any]]:
        """The references among its arguments: ``(object_id, owner)``."""
        yield from ((object_id, owner) for _, object_id, owner in self.slots)
        yield from self.nested


class Lineage:
    """The origins that one owner remembers.

    Args:
        config: limits.
        references: the counts of this process.
        memory: the values that it knows.
    """

    __slots__ = ("_config", "_memory", "_references", "forgotten", "needed", "origins", "size_bytes")

    def __init__(self, config: Config, references: ReferenceCounter, memory: dict[bytes, Entry]) -> None:
        self._config = config
        self._references = references
        self._memory = memory
        self.origins: dict[bytes, Origin] = {}  # by task, the oldest first
        self.needed: dict[bytes, int] = {}  # large results -> how many origins have them as arguments
        self.size_bytes = 0
        self.forgotten = 0  # for want of room

    def record(self, task: Task, stored: list[bytes]) -> None:
        """A task has made these large objects, which are needed."""
        origin = self.origins.get(task.id)
        if origin is None:
            origin = self.origins[task.id] = Origin(task)
            for object_id, owner in origin.arguments():
                self._keep(origin, object_id, owner)
            self.size_bytes += origin.size_bytes
        origin.live.update(dict.fromkeys(stored))
        while self.size_bytes > self._config.lineage_bytes_max:
            self.forgotten += 1
            self._end([next(iter(self.origins.values()))])

    def origin_of(self, object_id: bytes) -> Origin | None:
        """The task that can make an object again."""
        origin = self.origins.get(object_id[:16])
        return origin if origin is not None and object_id in origin.live else None

    def on_freed(self, object_id: bytes) -> None:
        """The value of an object is not needed any more; others may still depend on what made it."""
        if object_id not in self.needed:
            self._release(object_id)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _keep(self, origin: Origin, object_id: bytes, owner: Any) -> None:
        references = self._references
        if owner[0] != references.me[0]:
            return
        if self.origin_of(object_id) is not None:
            origin.needs.append(object_id)
            self.needed[object_id] = self.needed.get(object_id, 0) + 1
            return
        entry = self._memory.get(object_id)
        if entry is not None and entry[0] != STORED:
            references.hold(object_id, owner)
            origin.held.append(object_id)
            origin.size_bytes += payload_bytes(entry[1])

    def _release(self, object_id: bytes) -> None:
        """One result of an origin is needed no more."""
        origin = self.origins.get(object_id[:16])
        if origin is not None and object_id in origin.live:
            del origin.live[object_id]
            if not origin.live:
                self._end([origin])

    def _end(self, ending: list[Origin]) -> None:
        """Forget origins, and those that only they needed; a chain of many must not recurse."""
        while ending:
            origin = ending.pop()
            if self.origins.pop(origin.id, None) is None:
                continue
            self.size_bytes -= origin.size_bytes
            for object_id in origin.held:
                self._references.release(object_id)
            for object_id in origin.needs:
                self.needed[object_id] -= 1
                if self.needed[object_id]:
                    continue
                del self.needed[object_id]
                before = self.origins.get(object_id[:16])
                if before is not None and not self._references.needed(object_id):
                    before.live.pop(object_id, None)
                    if not before.live:
                        ending.append(before)

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants; true when all that was freed has been told."""
        needed: dict[bytes, int] = {}
        for origin in self.origins.values():
            if not origin.live:
                raise InvariantError(f"task {origin.id.hex()} is remembered, and nothing that it made is needed")
            for object_id in origin.live:
                if not self._references.needed(object_id) and object_id not in self.needed:
                    raise InvariantError(f"what made {object_id.hex()} is remembered, and nobody needs it")
            for object_id in origin.needs:
                needed[object_id] = needed.get(object_id, 0) + 1
            for object_id in origin.held:
                if object_id not in self._references.counts:
                    raise InvariantError(f"argument {object_id.hex()} of task {origin.id.hex()} is not held")
        if needed != self.needed:
            raise InvariantError("the counts of what others depend on are wrong")
        if self.size_bytes != sum(origin.size_bytes for origin in self.origins.values()):
            raise InvariantError("the size of the lineage is wrong")

    def statistics(self) -> dict[str, int]:
        return {"origins": len(self.origins), "lineage_bytes": self.size_bytes, "origins_forgotten": self.forgotten}
