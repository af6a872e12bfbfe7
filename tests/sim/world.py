"""The world: one clock, one heap of events, one source of chance, and the processes that live in it."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any, Protocol

from zray.base import wire
from zray.base.config import Config

from .links import Connection, Network

EVENTS_MAX = 200_000
MACHINES = [1, 1, 2, 3, 3, 4]


class SimulationError(AssertionError):
    """Something that must never happen did; the text says what and when."""


class Inhabitant(Protocol):
    """A process, as the world sees it."""

    id: bytes
    name: str
    role: str
    machine: str
    alive: bool
    frozen: bool
    backlog: list[tuple[Callable[..., None], tuple[Any, ...]]]
    links: dict[bytes, Connection]
    accepted: dict[bytes, list[Connection]]

    def hello(self) -> tuple[Any, ...]: ...

    def on_broken(self, peer: bytes) -> None: ...

    def receive(self, peer: bytes, message: tuple[Any, ...]) -> None: ...

    def die(self) -> None: ...


class World:
    """Time, chance and links.

    Args:
        seed: decides everything.
        trace: whether to keep the lines that ``scripts/sim --seed`` prints; their hash is always made.
        machines: how many the cluster has; drawn if nobody says.
    """

    def __init__(self, seed: int, *, trace: bool = False, machines: int | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.processes: dict[bytes, Inhabitant] = {}
        self.dead: dict[bytes, float] = {}  # processes that ended, or whose node was given up, and when
        self.crashed: dict[bytes, None] = {}  # those of them that could not say all they had to say
        self.faults = 0  # how often somebody was killed who should have lived
        self.lines: list[str] = []
        self.events = 0
        self.serial = 0
        self.network = Network(self)
        self._keep = trace
        self._hash = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.delay_s = self.rng.choice([0.0002, 0.001, 0.004])
        drawn = self.rng.choice(MACHINES)
        self.machines = machines or drawn
        self.config = draw_limits(self.rng, alone=self.machines == 1)

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *args: Any) -> int:
        """Have ``what(*args)`` called at a time; events of one time keep the order in which they were made."""
        self.serial += 1
        heapq.heappush(self._heap, (max(when, self.now), self.serial, what, args))
        return self.serial

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay_s, what, *args)

    def some(self, most_s: float) -> float:
        """A random span of time: short ones are likely, the longest ones rare."""
        return most_s * self.rng.random() ** 3

    def run(self, done: Callable[[], bool] | None = None) -> None:
        """Let time pass until nothing is left to happen, or until ``done()``; what is frozen goes on later."""
        while self._heap and not (done is not None and done()):
            self.now, _, what, args = heapq.heappop(self._heap)
            doer = getattr(what, "__self__", None)
            doer = getattr(doer, "body", doer)
            if getattr(doer, "frozen", False):
                doer.backlog.append((what, args))
                continue
            self.events += 1
            if self.events > EVENTS_MAX:
                raise SimulationError(f"no end after {EVENTS_MAX} events: something goes round in circles")
            what(*args)

    def thaw(self, doer: Any) -> None:
        """What was frozen goes on, with its timers first or with what it was told."""
        doer.frozen = False
        backlog, doer.backlog = doer.backlog, []
        if self.rng.random() < 0.5:
            backlog.sort(key=lambda entry: entry[0].__name__ != "on_timer")
        for what, args in backlog:
            self.at(self.now, what, *args)

    # -- processes ------------------------------------------------------------------------------------------------

    def send(self, sender: Inhabitant, receiver: bytes, message: tuple[Any, ...]) -> bool:
        """Put a message on its way; False: there is none."""
        if not wire.well_formed(wire.pack(message)):
            raise SimulationError(f"{sender.name} sends {message}, which is not what the schema says")
        return self.network.send(sender, receiver, message)

    def heard(self, receiver: Inhabitant, sender: bytes, message: tuple[Any, ...]) -> None:
        """A message arrives."""
        self.note(receiver, f"<- {self.name(sender)} {describe(message, self.name)}")
        receiver.receive(sender, message)

    def end(self, process: Inhabitant, *, politely: bool) -> float:
        """A process ends; when it does so politely, it waits until all it said is heard, else some of it never is.

        Returns:
            When its end can be seen.
        """
        self.note(process, "LEAVES" if politely else "DIES")
        if not politely:
            self.network.tear(process.id)
        self.dead[process.id] = self.now
        if not politely:
            self.crashed[process.id] = None
        process.die()
        last = self.network.silence(process.id)
        self.network.forget(process.id)
        return (max(last, self.now) if politely else self.now) + self.some(0.005)

    # -- the trace ------------------------------------------------------------------------------------------------

    def name(self, process: bytes) -> str:
        known = self.processes.get(process)
        return known.name if known is not None else process[:10].hex()

    def note(self, process: Inhabitant, text: str) -> None:
        line = f"{self.now * 1000:10.4f}ms  {process.name:8s} {text}"
        self._hash.update(line.encode())
        if self._keep:
            self.lines.append(line)

    def fingerprint(self) -> str:
        """A hash of all that happened."""
        return self._hash.hexdigest()


def draw_limits(rng: random.Random, *, alone: bool) -> Config:
    """Limits so small that each of them is met; ``workers_max`` stays large enough for the deepest nesting."""
    limits: dict[str, Any] = {
        "inline_bytes_max": rng.choice([200, 1000, 100_000]),
        "store_full_grace_s": rng.choice([0.02, 0.3]),
        "infeasible_grace_s": rng.choice([0.01, 1.0]),
        "pipeline_window_ms": rng.choice([0.1, 1.0, 5.0]),
        "pipeline_depth_max": rng.choice([2, 512]),
        "handback_ms": rng.choice([0.5, 5.0, 20.0]),
        "lease_idle_ms": rng.choice([1.0, 10.0, 100.0]),
        "lease_requests_max": rng.choice([1, 2, 8]),
        "workers_max": rng.choice([4] + [300] * 9),
        "exhausted_grace_ms": rng.choice([1.0, 100.0]),
        "worker_idle_s": rng.choice([0.05, 0.1, 2.0]),
        "heartbeat_ms": rng.choice([1.0, 100.0]),
        "actors_max": rng.choice([3] + [4096] * 9),
        "actor_starts_max": rng.choice([1, 2, 16]),
        "actor_restart_delay_ms": rng.choice([1.0, 50.0]),
        "actor_restart_delay_max_s": rng.choice([0.05, 10.0]),
        "actor_calls_bytes_max": rng.choice([300, 2000, 8 << 20]),
        "dead_actors_max": rng.choice([30, 10_000]),
    }
    if not alone:  # there are heartbeats for ever, so what takes long takes seconds
        limits |= {
            "inline_bytes_max": rng.choice([200, 200, 1000, 100_000]),
            "workers_max": 300,
            "infeasible_grace_s": rng.choice([0.4, 2.0]),
            "infeasible_retry_s": rng.choice([0.02, 0.1]),
            "actor_restart_delay_max_s": rng.choice([0.05, 1.0]),
            "function_fetch_timeout_s": 5.0,
            "worker_idle_s": rng.choice([0.05, 0.1, 1.0]),
            "heartbeat_ms": rng.choice([1.0, 20.0, 100.0]),
            "health_check_ms": 100.0,
            "node_suspect_s": rng.choice([0.15, 0.3]),
            "node_death_s": rng.choice([0.4, 0.7]),
            "control_death_s": rng.choice([1.0, 3.0]),
            "lease_hops_max": rng.choice([1, 3, 3]),
            "pull_bytes_max": rng.choice([5000, 512 << 20]),
            "pulls_max": rng.choice([1, 64]),
            "copy_receivers_max": rng.choice([1, 2]),
            "transfer_renew_s": rng.choice([0.3, 0.5]),
            "transfer_stall_s": rng.choice([0.3, 0.5]),
            "transfer_attempts_max": 4,  # so that a node that is silent is dead before it is no source any more
            "lineage_bytes_max": rng.choice([2000, 1 << 30]),
            "orphan_copy_s": rng.choice([0.5, 2.0]),
            "transfer_chunk_bytes": rng.choice([500, 4000, 1 << 20]),
            "placement_retry_ms": rng.choice([1.0, 50.0]),
            "placement_retry_max_s": rng.choice([0.1, 1.0]),
            "dead_placement_groups_max": rng.choice([3, 1000]),
        }
    return Config(**limits)


def describe(message: tuple[Any, ...], name: Callable[[bytes], str]) -> str:
    """A message in one readable line."""
    schema = wire.SCHEMA[message[0]]
    fields = zip(schema.cls._fields, message[1:], strict=True)  # type: ignore[attr-defined]
    return schema.name + "(" + ", ".join(f"{key}={_short(value, name)}" for key, value in fields) + ")"


def _short(value: Any, name: Callable[[bytes], str]) -> str:
    if isinstance(value, bytes):
        if len(value) == 16:
            return name(value)
        return value.hex() if len(value) <= 20 else f"<{len(value)} bytes>"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_short(v, name) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_short(v, name)}" for k, v in value.items()) + "}"
    return repr(value)
