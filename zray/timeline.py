"""timeline: which worker ran which task when, for chrome://tracing or ui.perfetto.dev."""

from __future__ import annotations

import json
import time
from typing import Any

from zray import api
from zray.base.wire import ListEvents, ListWorkers

_ANSWER_S = 3.0


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """The tasks that the workers of this node ran lately, as Chrome trace events.

    Each living worker remembers its last ``ZRAY_TIMELINE_EVENTS_MAX`` tasks; what a worker had run that has ended, or gives no
    answer within 3 seconds, is not shown.

    Args:
        filename: where to write the events as JSON.

    Returns:
        The events if no file was named, times in microseconds; else None.

    Example:
        >>> timeline("trace.json")  # doctest: +SKIP
    """
    worker = api.runtime()
    events: list[dict[str, Any]] = []
    asked = []
    for worker_id, endpoint, pid, state in worker.call(worker.agent, ListWorkers):
        if state in ("IDLE", "LEASED") and worker_id != worker.me:
            worker.loop.post((worker.transport.dial, worker_id, endpoint))
            asked.append((pid, worker.ask(worker_id, ListEvents)))
    deadline = time.monotonic() + _ANSWER_S
    for pid, request in asked:
        if not worker.loop.wait(request, max(0.0, deadline - time.monotonic())) or not request.ok:
            continue  # it has ended meanwhile, or is stopped
        for name, started_s, ended_s in request.value:
            events.append(
                {
                    "name": name,
                    "cat": "task",
                    "ph": "X",
                    "ts": started_s * 1e6,
                    "dur": (ended_s - started_s) * 1e6,
                    "pid": worker.node_id.hex()[:8],
                    "tid": f"worker:{pid}",
                }
            )
    events.sort(key=lambda event: float(event["ts"]))
    if filename is None:
        return events
    with open(filename, "w") as file:
        json.dump(events, file)
    return None
