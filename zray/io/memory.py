"""Memory: how much of it this machine, or the container we are in, has and uses."""

from __future__ import annotations

import contextlib
import os

_CGROUP_V2 = "/sys/fs/cgroup"
_CGROUP_V1 = "/sys/fs/cgroup/memory"
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        return int(file.read())
    return None  # "max", or no such file


def _field(path: str, name: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(path) as file:
        for line in file:
            words = line.split()
            if words and words[0].rstrip(":") == name:
                return int(words[1])
    return 0


def usage(root_v2: str = _CGROUP_V2, root_v1: str = _CGROUP_V1, meminfo: str = "/proc/meminfo") -> tuple[int, int]:
    """Bytes used and bytes there are: of the control group if it has a limit, else of the machine.

    What the kernel can drop at once (inactive file pages) does not count as used.
    """
    total = _field(meminfo, "MemTotal") * 1024
    for limit_path, used_path, stat_path, field in (
        (f"{root_v2}/memory.max", f"{root_v2}/memory.current", f"{root_v2}/memory.stat", "inactive_file"),
        (
            f"{root_v1}/memory.limit_in_bytes",
            f"{root_v1}/memory.usage_in_bytes",
            f"{root_v1}/memory.stat",
            "total_inactive_file",
        ),
    ):
        limit, used = _number(limit_path), _number(used_path)
        if limit is not None and used is not None and limit < total:
            return max(0, used - _field(stat_path, field)), limit
    return total - _field(meminfo, "MemAvailable") * 1024, total


def private_bytes(pid: int) -> int:
    """Resident memory of a process that it does not share; 0 if it is gone."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/statm") as file:
        words = file.read().split()
        return (int(words[1]) - int(words[2])) * _PAGE
    return 0
