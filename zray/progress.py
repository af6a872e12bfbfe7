"""Where the progress bars of this process are drawn: at its driver, or here if it is one or has none."""

from __future__ import annotations

import atexit
import functools
import json
from typing import Any

from zray import object_ref
from zray.runtime.screen import Screen


@functools.cache
def _own_screen() -> Screen:
    screen = Screen()
    atexit.register(screen.close)
    return screen


def show_bar(state: dict[str, Any]) -> None:
    """A bar has moved, or come to its end.

    Args:
        state: what ``zray.core.bars.describe`` wants, with ``id``, ``closed``, and ``leave`` if the end is to stay visible.
    """
    worker: Any = object_ref.connected
    if worker is None:
        _own_screen().show(bars=[(b"", state)])
    else:
        worker.show_bar(json.dumps(state))
