"""Room: whether a store was right to refuse somebody. It looks at all there is, and does not believe what the store has noted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from zray.base.wire import Reply
from zray.core import effects as e
from zray.core.arena import PAGE
from zray.core.store import ObjectStore
from zray.core.stored_object import ObjectState, StoredObject

_SIZE = re.compile(r"an object of (\d+) bytes does not fit")


def refusals(effects: Iterable[tuple[Any, ...]]) -> list[str]:
    """What is said to those who get no room."""
    values = [effect[4] for effect in effects if effect[0] == e.ANSWER and not effect[3]]
    values += [effect[2].value for effect in effects if effect[0] == e.SEND and isinstance(effect[2], Reply) and not effect[2].ok]
    return [value[1] for value in values if isinstance(value, tuple) and value[0] in ("full", "disk")]


def wrongly_refused(store: ObjectStore, text: str) -> str:
    """How the demand could have been met; "" if it could not.

    It is right to refuse who wants more than the memory in which nothing has to stay where it is, if no directory of this machine
    can take a file either. What is being written or read has to stay, and so has what can only go to directories that all failed
    a moment ago.
    """
    found = _SIZE.search(text)
    if found is None:
        return f"it does not say what did not fit: {text}"
    if store._batches:
        return ""  # a disk that says nothing for so long as somebody waits for room
    usable = [path for index, path in enumerate(store.files._directories) if index not in store.files._resting]
    if any("://" not in path for path in usable):
        return f"it could be written to {usable}"
    fixed = sorted(
        (stored.offset // PAGE, (stored.offset + stored.size - 1) // PAGE + 1)
        for object_id, stored in store.objects.items()
        if stored.offset >= 0 and _stays(stored, has_copy=stored.copy is not None or object_id in store.copies, disk=bool(usable))
    )
    free, end = 0, 0
    for first, last in [*fixed, (store.arena.capacity // PAGE, 0)]:
        free, end = max(free, first - end), last
    wanted = int(found.group(1))
    return f"{free} pages in a row are free, or can be freed" if free * PAGE >= wanted else ""


def _stays(stored: StoredObject, *, has_copy: bool, disk: bool) -> bool:
    """Whether an object has to stay where it is in memory."""
    return stored.state is not ObjectState.IN_MEMORY or bool(stored.pins) or not (has_copy or disk)
