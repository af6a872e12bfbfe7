"""The state of a cluster, under the name that programs written for Ray use."""

from __future__ import annotations

from zray.state import list_actors, list_objects, list_workers

__all__ = ["list_actors", "list_objects", "list_workers"]
