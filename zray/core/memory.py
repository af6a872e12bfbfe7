"""Whom to end when a node is short of memory.

The kernel would end the largest process, whatever it is. Ending the task that came last loses the least work, if it can be run
again; a task that must not be retried is ended only when no other is left. As many are ended at once as it takes to get
below the threshold: one at a time is too slow when all of them grow.
"""

from __future__ import annotations

from collections.abc import Iterable

_MIB = 1 << 20


class Candidate:
    """A worker that runs a task."""

    __slots__ = ("granted", "retriable", "rss_bytes", "worker_id")

    def __init__(self, worker_id: bytes, rss_bytes: int, granted: int, *, retriable: bool) -> None:
        self.worker_id = worker_id
        self.rss_bytes = rss_bytes
        self.granted = granted  # grows with each lease: the last one has the highest
        self.retriable = retriable


def choose_victims(excess_bytes: int, candidates: Iterable[Candidate]) -> list[Candidate]:
    """Workers to end so that ``excess_bytes`` come free, the least loss first."""
    victims = []
    for candidate in sorted(candidates, key=lambda c: (not c.retriable, -c.granted)):
        if excess_bytes <= 0:
            break
        victims.append(candidate)
        excess_bytes -= candidate.rss_bytes
    return victims


def report(used_bytes: int, limit_bytes: int, candidates: Iterable[Candidate], pids: dict[bytes, int]) -> str:
    """Who used how much, for the error of the task that was ended."""
    rows = sorted(candidates, key=lambda c: -c.rss_bytes)[:10]
    table = ", ".join(f"pid {pids.get(c.worker_id, 0)}: {c.rss_bytes // _MIB} MiB" for c in rows)
    return f"the node was short of memory ({used_bytes // _MIB} of {limit_bytes // _MIB} MiB used; workers: {table})"


def verdicts(
    excess_bytes: int, used_bytes: int, limit_bytes: int, candidates: list[Candidate], pids: dict[bytes, int]
) -> list[tuple[bytes, str]]:
    """Who is to be ended so that ``excess_bytes`` come free, and the report for each."""
    text = report(used_bytes, limit_bytes, candidates, pids)
    victims = choose_victims(excess_bytes, candidates)
    return [(v.worker_id, f"{text}; pid {pids.get(v.worker_id, 0)} was ended") for v in victims]
