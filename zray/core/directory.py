"""ObjectDirectory: where the large objects of an owner lie.

The owner of an object knows the node that holds its primary copy (the entry says so) and, once the node has written it to
disk, the place of that copy: what is needed to read the object after the node is gone, if the disk can still be reached.
Tasks had better run where their large arguments lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from zray.base.wire import STORED, Entry
from zray.core.views import LOCALITY_BYTES_MIN

NODES_TOLD_MAX = 4  # of those that have arguments of a task


class ObjectDirectory:
    """The locations of one owner's objects."""

    __slots__ = ("spilled",)

    def __init__(self) -> None:
        self.spilled: dict[bytes, tuple[str, int, int]] = {}  # the copy on disk: path, position, checksum

    def on_spilled(self, rows: list[Any]) -> None:
        """A node has written objects to disk: ``(object_id, path, position, checksum)`` each."""
        for object_id, *place in rows:
            self.spilled[object_id] = tuple(place)

    def forget(self, object_id: bytes) -> None:
        """The object was freed."""
        self.spilled.pop(object_id, None)

    def locality(
        self, slots: Iterable[tuple[Any, Any]], memory: Mapping[bytes, Entry], here: bytes
    ) -> tuple[tuple[bytes, int], ...]:
        """Where the arguments of a task lie, ``(node, bytes)`` each, the most first; nothing if ``here`` is as good.

        Args:
            slots: the references among its arguments, each with its place.
            memory: what is known of them.
            here: the own node.
        """
        entries = {ref.binary(): memory.get(ref.binary()) for _, ref in slots}  # one may have been lost meanwhile
        sizes: dict[bytes, int] = {}
        for entry in entries.values():
            if entry is not None and entry[0] == STORED:
                sizes[entry[2]] = sizes.get(entry[2], 0) + entry[1]
        ranked = sorted(sizes.items(), key=lambda row: (-row[1], row[0]))[:NODES_TOLD_MAX]
        return tuple(ranked) if ranked and ranked[0][1] >= sizes.get(here, 0) + LOCALITY_BYTES_MIN else ()

    def statistics(self) -> dict[str, int]:
        return {"spilled": len(self.spilled)}
