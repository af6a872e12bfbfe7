"""Unreadable: an object that can not be read where it is said to lie, and when it is given up.

Its owner has it brought back, or says that it is where it was. Then it is the way from there to this node that does not work:
that may pass, so the object is read again, but not for ever, and nobody else is told that it is lost.
"""

from __future__ import annotations

from zray.exceptions import ObjectFetchTimedOutError, ObjectLostError

RECOVERIES_MAX = 10  # of one get: more often nothing is read that way
STAYS_MAX = 3  # ... and if the object has not moved


class Unreadable(Exception):
    """An object can not be read where it is said to lie.

    Args:
        object_id: which.
        node_id: where; b"" if that is not known.
        cause: why not.
    """

    def __init__(self, object_id: bytes, node_id: bytes, cause: ObjectLostError) -> None:
        super().__init__(str(cause))
        self.object_id = object_id
        self.node_id = node_id
        self.cause = cause
        self.stays = 0  # how often it was to be read there before

    def after(self, before: Unreadable) -> Unreadable:
        """The same, knowing what could not be read before it."""
        if self.node_id and (self.object_id, self.node_id) == (before.object_id, before.node_id):
            self.stays = before.stays + 1
        return self

    def final(self, here: bytes) -> ObjectLostError:
        """What the user is told in the end, on the node ``here``."""
        if self.stays < STAYS_MAX or self.node_id == here:
            return self.cause
        text = (
            f"{self.cause}. Its owner says that it still lies on node {self.node_id.hex()[:8]}: the link between that node and "
            f"this one, {here.hex()[:8]}, does not work. Get it again when that is mended"
        )
        return ObjectFetchTimedOutError(text, self.object_id.hex())
