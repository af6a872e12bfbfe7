"""Utilities, written against the public API as any user could write them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zray.base.serialization import deregister_serializer, register_serializer
from zray.util.inspection import inspect_serializability
from zray.util.placement_group import (  # at once: a function has the name of the module it is in, and hides it
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

if TYPE_CHECKING:
    from zray.util import joblib as joblib
    from zray.util import multiprocessing as multiprocessing
    from zray.util import queue as queue
    from zray.util.actor_pool import ActorPool as ActorPool
    from zray.util.executor import Executor as Executor
    from zray.util.iteration import as_completed as as_completed
    from zray.util.iteration import map_unordered as map_unordered
    from zray.util.named_actors import list_named_actors as list_named_actors

_LATE = {
    "ActorPool": "zray.util.actor_pool",
    "Executor": "zray.util.executor",
    "as_completed": "zray.util.iteration",
    "list_named_actors": "zray.util.named_actors",
    "map_unordered": "zray.util.iteration",
}
_MODULES = ("joblib", "multiprocessing", "queue")

__all__ = [
    "ActorPool",
    "Executor",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_placement_group",
    "inspect_serializability",
    "joblib",
    "list_named_actors",
    "map_unordered",
    "multiprocessing",
    "placement_group",
    "placement_group_table",
    "queue",
    "register_serializer",
    "remove_placement_group",
]


def __getattr__(name: str) -> Any:
    """What is loaded when it is first used."""
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"zray.util.{name}")
    raise AttributeError(f"module 'zray.util' has no attribute {name!r}")
