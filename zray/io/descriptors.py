"""Descriptors: how many files this process may have open.

Each process that one deals with is one or two descriptors. Python is told when there are no more, libzmq ends the process.
"""

from __future__ import annotations

import os
import resource

_LIMIT = 1 << 16


def raise_limit() -> None:
    """Have this process, and those it will start, open as many files as the system lets them, up to 65,536."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _LIMIT if hard == resource.RLIM_INFINITY else min(hard, _LIMIT)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def left() -> int:
    """How many more files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    return _LIMIT if soft == resource.RLIM_INFINITY else max(0, soft - used)
