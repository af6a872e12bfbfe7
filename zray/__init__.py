"""zray: a distributed engine in pure Python with the public API of Ray Core.

Write ``import zray as ray`` and use it as you would use Ray. Importing does nothing and loads nothing: every public
name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "init": "zray.api",
    "shutdown": "zray.api",
    "is_initialized": "zray.api",
    "put": "zray.api",
    "get": "zray.api",
    "wait": "zray.api",
    "cancel": "zray.api",
    "nodes": "zray.state",
    "cluster_resources": "zray.state",
    "available_resources": "zray.state",
    "get_gpu_ids": "zray.api",
    "timeline": "zray.timeline",
    "remote": "zray.remote_function",
    "method": "zray.actor",
    "get_actor": "zray.actor",
    "kill": "zray.actor",
    "ObjectRef": "zray.object_ref",
    "ObjectRefGenerator": "zray.object_ref_generator",
    "DynamicObjectRefGenerator": "zray.object_ref",
    "get_runtime_context": "zray.runtime_context",
    "JobID": "zray.base.ids",
    "NodeID": "zray.base.ids",
    "WorkerID": "zray.base.ids",
    "TaskID": "zray.base.ids",
    "ActorID": "zray.base.ids",
    "ObjectID": "zray.base.ids",
}
_MODULES = ("actor", "exceptions", "util")

__all__ = ["__version__", *_PUBLIC, *_MODULES]  # noqa: PLE0604 - all of them are strings

if TYPE_CHECKING:
    from zray import actor as actor
    from zray import exceptions as exceptions
    from zray import util as util
    from zray.actor import get_actor as get_actor
    from zray.actor import kill as kill
    from zray.actor import method as method
    from zray.api import cancel as cancel
    from zray.api import get as get
    from zray.api import get_gpu_ids as get_gpu_ids
    from zray.api import init as init
    from zray.api import is_initialized as is_initialized
    from zray.api import put as put
    from zray.api import shutdown as shutdown
    from zray.api import wait as wait
    from zray.base.ids import ActorID as ActorID
    from zray.base.ids import JobID as JobID
    from zray.base.ids import NodeID as NodeID
    from zray.base.ids import ObjectID as ObjectID
    from zray.base.ids import TaskID as TaskID
    from zray.base.ids import WorkerID as WorkerID
    from zray.object_ref import DynamicObjectRefGenerator as DynamicObjectRefGenerator
    from zray.object_ref import ObjectRef as ObjectRef
    from zray.object_ref_generator import ObjectRefGenerator as ObjectRefGenerator
    from zray.remote_function import remote as remote
    from zray.runtime_context import get_runtime_context as get_runtime_context
    from zray.state import available_resources as available_resources
    from zray.state import cluster_resources as cluster_resources
    from zray.state import nodes as nodes
    from zray.timeline import timeline as timeline


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is not None:
        value = getattr(importlib.import_module(module), name)
    elif name in _MODULES:
        value = importlib.import_module(f"zray.{name}")
    else:
        raise AttributeError(f"module 'zray' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
