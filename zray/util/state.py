"""The state of a cluster, under the name that programs written for Ray use."""

from __future__ import annotations

from zray.state import explain, list_actors, list_objects, list_workers

__all__ = ["explain", "list_actors", "list_objects", "list_workers"]
