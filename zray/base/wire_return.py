"""The messages by which processes find their control again. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message

# ------------------------------------------------------------------------------------------------------- to the control


@message(106, "owner", "control")
class OwnerReturned(NamedTuple):
    """A driver or worker found another control process where the one was that it knew; OwnerKnown is the answer."""

    functions: list[bytes]  # that it has exported


# --------------------------------------------------------------------------------------------------------- to the agent


@message(107, "control", "agent")
class NodeRegistered(NamedTuple):
    """The node is written down; if it is another control than before, the processes of the node must hear of it."""

    control: bytes  # new whenever the control process is


# -------------------------------------------------------------------------------------------------------- to an owner


@message(108, "agent", "owner")
class ControlReturned(NamedTuple):
    """There is another control process: introduce yourself to it, and say what it must know."""

    control: bytes


@message(109, "control", "owner")
class OwnerKnown(NamedTuple):
    """What the control knows of its owner."""

    control: bytes
    actors: list[Any]  # (actor id, handle id, state) of those that live
    missing: list[bytes]  # functions that it does not have
