"""Demand: somebody waits for room in the store."""

from __future__ import annotations


class Demand:
    """Room for a new object, or (``request_id`` -1) for one to come back from disk.

    Args:
        priority: the lower, the sooner it is served.
        peer: the client that asked.
        request_id: of its question.
        object_id: which object.
        size: its bytes.
        deadline: when it is refused.
        call_site: the line of the user's program that makes the object.
    """

    __slots__ = ("call_site", "deadline", "object_id", "peer", "priority", "request_id", "seen", "size")

    def __init__(
        self,
        priority: int,
        peer: bytes,
        request_id: int,
        object_id: bytes,
        size: int,
        deadline: float,
        call_site: str = "",
    ) -> None:
        self.priority = priority
        self.peer = peer
        self.request_id = request_id
        self.object_id = object_id
        self.size = size
        self.deadline = deadline
        self.call_site = call_site
        self.seen = 0  # how far the disk had come when the deadline was set
