"""The messages about generators: items from the worker, and how many of them were taken."""

from typing import Any, NamedTuple

from zray.base.schema import OPS, message

ALL_TAKEN = 1 << 62  # said instead of a number: make them as fast as you can


@message(170, "worker", "owner", hot=True)
class Items(NamedTuple):
    """Items of a generator, in their order; none at all says only which process runs it."""

    task_id: bytes
    attempt: int
    first: int  # the index of the first of them
    entries: list[tuple[Any, ...]]


@message(171, "owner", "worker")
class ItemsTaken(NamedTuple):
    """So many items of a generator were taken by now: there is room for as many more as may wait."""

    task_id: bytes
    taken: int


ITEMS = OPS[Items]
