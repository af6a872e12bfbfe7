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
    """The object can not be had here. ``kind``: ``lost``, or ``full`` or ``disk``, where there was no room to read it into."""

    object_id: bytes
    reason: str
    kind: str = "lost"


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


# When a node is gone its primaries are, but not the copies on other nodes: an owner has its agent look for them.


@message(122, "owner", "owner")
class RecoverObject(NamedTuple):
    """The copy of that node can not be read; ObjectValue is the answer, when the object is there again or given up."""

    object_id: bytes
    node_id: bytes


@message(123, "owner", "agent")
class FindCopies(NamedTuple):
    """The primaries of these are lost; CopiesFound is the answer, for each once."""

    object_ids: list[bytes]


@message(124, "agent", "agent")
class AskForCopies(NamedTuple):
    """Who has copies of these? CopiesKnown is the answer."""

    object_ids: list[bytes]


@message(125, "agent", "agent")
class CopiesKnown(NamedTuple):
    """Of those asked for, the sender has copies of the first, the primaries of the second, and none of the others."""

    known: list[bytes]
    primaries: list[bytes]
    unknown: list[bytes]


@message(126, "agent", "agent")
class AdoptCopies(NamedTuple):
    """The sender's search has chosen the receiver: its copies are to be the primaries now. CopiesAdopted is the answer."""

    owner: bytes
    object_ids: list[bytes]


@message(127, "agent", "agent")
class CopiesAdopted(NamedTuple):
    """The first are primaries now; the copies of the others are gone meanwhile."""

    adopted: list[bytes]
    gone: list[bytes]


@message(128, "agent", "owner", rows=4)
class CopiesFound(NamedTuple):
    """``(object_id, found, node_id, endpoint)`` each: where the primary is now; no ``node_id``: on the sender's node."""

    rows: list[Any]


@message(129, "agent", "agent")
class CopyDamaged(NamedTuple):
    """What the receiver has of an object is not what was written: nobody shall be sent to it any more."""

    object_id: bytes
