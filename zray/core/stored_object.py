"""StoredObject: one object of a node's store, and the states it goes through."""

from __future__ import annotations

from enum import Enum

from zray.core.demand import Demand
from zray.core.lifecycle import Lifecycle
from zray.core.spilling import Copy


class ObjectState(Enum):
    WRITING = 1
    IN_MEMORY = 2
    SPILLING = 3
    ON_DISK = 4
    RESTORING = 5


OBJECT_LIFECYCLE = Lifecycle(
    "stored object",
    {
        ObjectState.WRITING: "Its creator has room and writes; nobody can read it yet.",
        ObjectState.IN_MEMORY: "It is complete and lies in shared memory, perhaps with a copy on disk.",
        ObjectState.SPILLING: "It lies in shared memory and is being written to disk.",
        ObjectState.ON_DISK: "It lies on disk only.",
        ObjectState.RESTORING: "It is read back into shared memory, or from a storage elsewhere into a file of this machine.",
    },
    {
        ObjectState.WRITING: {"sealed": ObjectState.IN_MEMORY, "sealed on disk": ObjectState.ON_DISK},
        ObjectState.IN_MEMORY: {"chosen": ObjectState.SPILLING, "dropped": ObjectState.ON_DISK},
        ObjectState.SPILLING: {"written": ObjectState.IN_MEMORY, "failed": ObjectState.IN_MEMORY},
        ObjectState.ON_DISK: {"wanted": ObjectState.RESTORING},
        ObjectState.RESTORING: {
            "restored": ObjectState.IN_MEMORY,
            "brought near": ObjectState.ON_DISK,
            "failed": ObjectState.ON_DISK,
        },
    },
)


class StoredObject:
    """One object of the store."""

    __slots__ = (
        "call_site",
        "copy",
        "creator",
        "freed",
        "makers",
        "near",
        "offset",
        "owner",
        "pins",
        "readers",
        "size",
        "state",
    )

    def __init__(self, offset: int, size: int, creator: bytes) -> None:
        self.offset = offset  # in the arena; -1 when it is not there
        self.size = size
        self.creator = creator
        self.owner = b""
        self.call_site = ""
        self.state = ObjectState.WRITING
        self.freed = False
        self.copy: Copy | None = None
        self.near: Copy | None = None  # a file of this machine, for those who use it while its copy lies elsewhere
        self.pins: dict[bytes, int] = {}
        self.readers: list[tuple[bytes, int]] = []  # pins that wait until it is complete, or back in memory
        self.makers: list[Demand] = []  # others that want to make it, and wait until it is complete

    @property
    def sealed(self) -> bool:
        return self.state is not ObjectState.WRITING

    @property
    def usable(self) -> bool:
        """Whether it is complete, and somebody needs it."""
        return self.sealed and not self.freed

    def row(self) -> tuple[object, ...]:
        """(size, state, owner, pins, path, call site)."""
        path = self.copy.path if self.copy is not None else ""
        return self.size, self.state.name, self.owner, sum(self.pins.values()), path, self.call_site

    @property
    def in_local_file(self) -> bool:
        """Whether it lies in a file of this machine, and only there."""
        place = self.near or self.copy
        return self.state is ObjectState.ON_DISK and place is not None and "://" not in place.path

    @property
    def comes_to_memory(self) -> bool:
        """Whether it is being written into shared memory."""
        return not self.sealed and self.offset >= 0

    def move(self, event: str) -> None:
        self.state = OBJECT_LIFECYCLE.next(self.state, event)
