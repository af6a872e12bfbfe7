"""ObjectDirectory: where the large objects of an owner lie.

The owner of an object knows the node that holds its primary copy (the entry says so) and, once the node has written it to
disk, the place of that copy: what is needed to read the object after the node is gone, if the disk can still be reached.
"""

from __future__ import annotations

from typing import Any


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

    def statistics(self) -> dict[str, int]:
        return {"spilled": len(self.spilled)}
