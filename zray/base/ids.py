"""Identifiers: fixed-width bytes, derived from one another.

``WorkerID`` is random per process incarnation, so an id is never reused after a restart. The first ten bytes of a
worker's id start every ``TaskID`` it makes, and a ``TaskID`` starts every ``ObjectID`` the task returns: from an object
one can read which task made it and which process owns it. On the hot path ids travel as plain ``bytes``; the classes
here are for the public API and for reading.
"""

from __future__ import annotations

import os
from itertools import count
from typing import ClassVar


class BaseID(bytes):
    """An immutable identifier of ``SIZE`` bytes.

    Example:
        >>> JobID.from_hex("00000001").hex()
        '00000001'
    """

    __slots__ = ()
    SIZE: ClassVar[int] = 16

    def __new__(cls, raw: bytes) -> BaseID:
        if len(raw) != cls.SIZE:
            raise ValueError(f"{cls.__name__} has {cls.SIZE} bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def from_random(cls) -> BaseID:
        """An id that nobody else has."""
        return cls(os.urandom(cls.SIZE))

    @classmethod
    def from_hex(cls, text: str) -> BaseID:
        """Read an id.

        Args:
            text: its bytes as hexadecimal digits, as ``hex()`` gives them.

        Returns:
            The id.

        Raises:
            ValueError: the text is not hexadecimal, or has another length.
        """
        return cls(bytes.fromhex(text))

    def is_nil(self) -> bool:
        """Whether it is the id of nothing."""
        return not any(self)

    def binary(self) -> bytes:
        """The id as plain bytes."""
        return bytes(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hex()})"

    __str__ = __repr__


class JobID(BaseID):
    """A driver's run: four bytes, counted up by the control process."""

    __slots__ = ()
    SIZE = 4


class NodeID(BaseID):
    """One incarnation of a node agent."""

    __slots__ = ()


class WorkerID(BaseID):
    """One incarnation of a process that can own objects: a driver or a worker."""

    __slots__ = ()


class TaskID(BaseID):
    """Ten bytes of the submitting worker's id and a six-byte count."""

    __slots__ = ()


class ActorID(BaseID):
    """The job's id and eight random bytes."""

    __slots__ = ()
    SIZE = 12


class PlacementGroupID(BaseID):
    """The job's id and twelve random bytes."""

    __slots__ = ()


class ObjectID(BaseID):
    """The id of the task that made it and a four-byte index: 0 for a put, 1.. for returns and items."""

    __slots__ = ()
    SIZE = 20

    def task_id(self) -> TaskID:
        """The id of the task that makes the object."""
        return TaskID(self[:16])


OWNER_PREFIX_BYTES = 10
PUT_INDEX = bytes(4)
FIRST_RETURN = (1).to_bytes(4, "big")
END_INDEX = b"\xff\xff\xff\xff"  # of the object that is there when a generator is over


def return_id(task_id: bytes, index: int) -> bytes:
    """The object id of a task's return number ``index`` (1 is the first)."""
    return task_id + index.to_bytes(4, "big")


class TaskIDs:
    """Makes the task ids of one process: call it for the next one. Safe to call from any thread."""

    __slots__ = ("_counter", "_prefix")

    def __init__(self, worker_id: bytes) -> None:
        self._prefix = bytes(worker_id[:OWNER_PREFIX_BYTES])
        self._counter = count(1)

    def __call__(self) -> bytes:
        return self._prefix + next(self._counter).to_bytes(6, "big")


# Where a process lives can be read from its id: six bytes of its node's id, four of its own, six of its node's again. Agents have
# zeros in the middle, workers count up from one, and drivers have the highest bit set.


def process_id(node_id: bytes, own: bytes) -> bytes:
    """The id of a process of a node."""
    return bytes(node_id[:6] + own + node_id[6:12])


def agent_id(node_id: bytes) -> bytes:
    """The process id of the agent of a node."""
    return process_id(node_id, bytes(4))


def agent_of(process: bytes) -> bytes:
    """The process id of the agent of the node on which a process lives."""
    return bytes(process[:6] + bytes(4) + process[10:16])


def driver_id(node_id: bytes) -> bytes:
    """A new process id for a driver on a node."""
    own = bytearray(os.urandom(4))
    own[0] |= 0x80
    return process_id(node_id, bytes(own))
