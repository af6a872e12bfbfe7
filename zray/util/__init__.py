"""Utilities, written against the public API as any user could write them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zray.base.serialization import deregister_serializer, register_serializer
from zray.util.inspection import inspect_serializability

if TYPE_CHECKING:
    from zray.util import queue as queue
    from zray.util.actor_pool import ActorPool as ActorPool
    from zray.util.named_actors import list_named_actors as list_named_actors

__all__ = [
    "ActorPool",
    "deregister_serializer",
    "inspect_serializability",
    "list_named_actors",
    "queue",
    "register_serializer",
]


def __getattr__(name: str) -> Any:
    """What is loaded when it is first used."""
    if name == "ActorPool":
        from zray.util.actor_pool import ActorPool

        return ActorPool
    if name == "list_named_actors":
        from zray.util.named_actors import list_named_actors

        return list_named_actors
    if name == "queue":
        return importlib.import_module("zray.util.queue")
    raise AttributeError(f"module 'zray.util' has no attribute {name!r}")
