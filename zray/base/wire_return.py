"""The messages by which owners find their control again. They belong to the one schema, as those of ``wire`` do."""

from typing import Any, NamedTuple

from zray.base.schema import message


@message(140, "owner", "control")
class OwnerReturned(NamedTuple):
    """A driver or worker has found a control process that does not know it; OwnerKnown is the answer."""


@message(141, "control", "owner", rows=3)
class OwnerKnown(NamedTuple):
    """What the control knows of its owner."""

    actors: list[Any]  # (actor id, handle id, state) of those that live
