"""Refusal: why there is no room in the store, in words."""

from __future__ import annotations

from collections.abc import Collection

from zray.core.arena import Arena
from zray.core.stored_object import StoredObject

_LARGEST = 3


def refusal(size: int, objects: Collection[StoredObject], arena: Arena, disk: str) -> tuple[str, str]:
    """What is said to somebody who gets no room.

    Args:
        size: bytes that are wanted.
        objects: all that is in the store.
        arena: its memory.
        disk: why nothing can be moved to disk; "": that is not the reason.

    Returns:
        ``("full", text)``, or ``("disk", text)``.
    """
    here = [stored for stored in objects if stored.offset >= 0]
    pinned = sum(stored.size for stored in here if stored.pins)
    written = sum(stored.size for stored in here if not stored.sealed)
    text = (
        f"an object of {size} bytes does not fit into the object store: {arena.used_bytes} of {arena.capacity} bytes are used "
        f"by {len(objects)} objects ({pinned} bytes of them being read, {written} being written). Drop references that are "
        "not needed, or give init() more object_store_memory"
    )
    largest = sorted(objects, key=lambda stored: -stored.size)[:_LARGEST]
    if largest:
        text += "; the largest: " + ", ".join(f"{o.size} bytes of {o.call_site or 'an unknown line'}" for o in largest)
    if not disk:
        return "full", text
    return "disk", f"{text}. Objects can not be moved to disk: {disk}"
