"""What tests that run on processes and in local mode must know of the two."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import zray as ray

from .driving import PATIENCE_S


def in_local_mode() -> bool:
    """Whether tasks and actors are in this very process."""
    return ray.get_runtime_context().gcs_address == "local"


def crash(code: int = 1) -> None:
    """In a task or actor: end the worker at once, with whatever else it does. In local mode a process can not be spared."""
    assert code, "an actor that ends in good order does not crash"
    if in_local_mode():
        sys.exit(code)
    os._exit(code)


def held(event: threading.Event | None = None) -> bool:
    """In a task or actor: wait for an event, or for ever; in small pieces, between which a thread of local mode can be ended."""
    event = event or threading.Event()
    deadline = time.monotonic() + PATIENCE_S
    while not event.wait(0.02):
        if time.monotonic() > deadline:
            return False
    return True


shared: dict[str, Any] = {}  # between a test and its tasks in local mode, which reach it through this module
