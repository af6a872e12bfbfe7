"""What a cluster knows of its objects and workers, for people and programs that look into it."""

from __future__ import annotations

from typing import Any

from zray import api
from zray.base.wire import ListObjects, ListWorkers


def list_objects() -> list[dict[str, Any]]:
    """The objects in this node's store, the largest first.

    Returns:
        For each: ``object_id``, ``size_bytes``, ``state`` (WRITING, IN_MEMORY, SPILLING, ON_DISK, RESTORING), ``owner``
        (process id), ``pins`` (readers), ``path`` of its copy on disk or "", and ``call_site``: the line that put it, or
        the task that returned it.

    Example:
        >>> list_objects()[0]["call_site"]  # doctest: +SKIP
        'train.py:12'
    """
    worker = api.runtime()
    names = ("object_id", "size_bytes", "state", "owner", "pins", "path", "call_site")
    rows = [dict(zip(names, row, strict=True)) for row in worker.call(worker.agent, ListObjects)]
    for row in rows:
        row["object_id"] = row["object_id"].hex()
        row["owner"] = row["owner"].hex()
    return sorted(rows, key=lambda row: -int(row["size_bytes"]))


def list_workers() -> list[dict[str, Any]]:
    """The worker processes of this node: ``worker_id``, ``pid`` and ``state``."""
    worker = api.runtime()
    return [
        {"worker_id": worker_id.hex(), "pid": pid, "state": state}
        for worker_id, _, pid, state in worker.call(worker.agent, ListWorkers)
    ]
