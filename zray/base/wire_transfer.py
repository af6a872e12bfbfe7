"""The messages about copies of objects on several nodes. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message

# The primary copy is the one that the owner knows of; its node's agent says who gets the object from whom.


@message(110, "agent", "agent")
class RequestCopy(NamedTuple):
    """The sender's node wants a copy of a primary; CopyOffered, CopyElsewhere or CopyRefused is the answer, in its turn."""

    object_id: bytes
    failed: list[bytes]  # agents from whom it can not get it


@message(111, "agent", "agent")
class OpenCopy(NamedTuple):
    """The sender was told that the receiver has a copy, and wants to read it."""

    object_id: bytes


@message(112, "agent", "agent")
class CopyOffered(NamedTuple):
    """The object stays where it is until CopyEnded: it can be read with this ticket."""

    object_id: bytes
    ticket: int
    endpoint: str  # of the sockets for bytes
    size_bytes: int
    checksum: int  # of the whole; -1: it lies in memory, and has none
    holders: list[bytes]  # agents of other nodes that have a copy


@message(113, "agent", "agent")
class CopyElsewhere(NamedTuple):
    """Ask that agent: its node has a copy, and time."""

    object_id: bytes
    agent: bytes


@message(114, "agent", "agent")
class CopyWaits(NamedTuple):
    """All who have a copy are busy: the answer comes later."""

    object_id: bytes


@message(115, "agent", "agent")
class CopyRefused(NamedTuple):
    """The object is not here."""

    object_id: bytes
    reason: str


@message(116, "agent", "agent")
class CopyEnded(NamedTuple):
    """The sender reads the object no more. ``complete``: it has a copy now, and keeps it for a while."""

    object_id: bytes
    complete: bool


@message(117, "agent", "agent")
class CopiesDropped(NamedTuple):
    """The sender had copies, and has them no more."""

    object_ids: list[bytes]


@message(118, "agent", "agent", rows=2)
class CopiesHeld(NamedTuple):
    """What the sender reads from the receiver or by its leave, and what it has copies of: ``(object_id, complete)`` each."""

    rows: list[Any]


@message(119, "agent", "agent")
class FreeCopies(NamedTuple):
    """The primaries are freed: so are the copies."""

    object_ids: list[bytes]


@message(120, "agent", "agent")
class FreePrimaries(NamedTuple):
    """An owner on the sender's node needs these no more; PrimariesFreed is the answer, and it is said again until that comes."""

    object_ids: list[bytes]


@message(121, "agent", "agent")
class PrimariesFreed(NamedTuple):
    """The answer to FreePrimaries."""

    object_ids: list[bytes]
