"""The world: one clock, one heap of events, one source of chance, and the links between processes.

Messages of one link arrive in order; those of different links overtake each other. What is sent goes through the real codec, so
that no two processes ever share an object. A process that dies takes with it the tail of what it had sent and was not delivered
yet, as a crash takes what lies in its buffers.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Any, Protocol

from zray.base import wire
from zray.base.config import Config

EVENTS_MAX = 200_000


class SimulationError(AssertionError):
    """Something that must never happen did; the text says what and when."""


class Inhabitant(Protocol):
    """A process, as the world sees it."""

    id: bytes
    name: str
    role: str
    alive: bool

    def receive(self, peer: bytes, message: tuple[Any, ...]) -> None: ...

    def die(self) -> None: ...


class Link:
    """The way from one process to another."""

    __slots__ = ("cut", "last", "pending", "slow")

    def __init__(self, slow: float) -> None:
        self.slow = slow
        self.last = 0.0
        self.pending: list[int] = []  # serial numbers of messages on the way
        self.cut = 0  # messages with this serial number or a later one are lost


class World:
    """Time, chance and links.

    Args:
        seed: decides everything.
        trace: whether to keep the lines that ``scripts/sim --seed`` prints; their hash is always made.
    """

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.processes: dict[bytes, Inhabitant] = {}
        self.dead: dict[bytes, float] = {}  # processes that ended, and when
        self.crashed: dict[bytes, None] = {}  # those of them that could not say all they had to say
        self.faults = 0  # how often somebody was killed who should have lived
        self.lines: list[str] = []
        self.events = 0
        self._keep = trace
        self._hash = hashlib.blake2b(digest_size=16)
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._links: dict[tuple[bytes, bytes], Link] = {}
        self.delay_s = self.rng.choice([0.0002, 0.001, 0.004])
        self.config = draw_limits(self.rng)

    # -- time -----------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *args: Any) -> int:
        """Have ``what(*args)`` called at a time; events of one time keep the order in which they were made."""
        self._serial += 1
        heapq.heappush(self._heap, (max(when, self.now), self._serial, what, args))
        return self._serial

    def after(self, delay_s: float, what: Callable[..., None], *args: Any) -> None:
        self.at(self.now + delay_s, what, *args)

    def some(self, most_s: float) -> float:
        """A random span of time: short ones are likely, the longest ones rare."""
        return most_s * self.rng.random() ** 3

    def run(self, done: Callable[[], bool] | None = None) -> None:
        """Let time pass until nothing is left to happen, or until ``done()``."""
        while self._heap and not (done is not None and done()):
            self.now, _, what, args = heapq.heappop(self._heap)
            self.events += 1
            if self.events > EVENTS_MAX:
                raise SimulationError(f"no end after {EVENTS_MAX} events: something goes round in circles")
            what(*args)

    # -- links ----------------------------------------------------------------------------------------------------

    def send(self, sender: Inhabitant, receiver: bytes, message: tuple[Any, ...]) -> None:
        """Put a message on its way."""
        packed = wire.pack(message)
        if not wire.well_formed(packed):
            raise SimulationError(f"{sender.name} sends {message}, which is not what the schema says")
        link = self._links.get((sender.id, receiver))
        if link is None:
            slow = self.rng.choice([1.0, 1.0, 1.0, 10.0])
            link = self._links[sender.id, receiver] = Link(slow)
        link.last = max(link.last, self.now + self.some(self.delay_s * link.slow))
        serial = self.at(link.last, self._deliver, link, sender.id, receiver, wire.encode([packed]), self._serial + 1)
        link.pending.append(serial)

    def _deliver(self, link: Link, sender: bytes, receiver: bytes, frame: bytes, serial: int) -> None:
        link.pending.remove(serial)
        process = self.processes.get(receiver)
        if process is None or not process.alive or (link.cut and serial >= link.cut):
            return
        decode = wire.decode_plain if process.role in ("agent", "control") else wire.decode
        [message] = decode(frame)
        self.note(process, f"<- {self.name(sender)} {describe(message, self.name)}")
        process.receive(sender, message)

    def end(self, process: Inhabitant, *, politely: bool) -> float:
        """A process ends; when it does so politely, it waits until all it said is heard, else some of it never is.

        Returns:
            When its end can be seen.
        """
        self.note(process, "LEAVES" if politely else "DIES")
        for (sender, _), link in self._links.items():
            if sender == process.id and link.pending and not politely:
                link.cut = self.rng.choice([*link.pending, link.pending[-1] + 1])
        self.dead[process.id] = self.now
        if not politely:
            self.crashed[process.id] = None
        process.die()
        last = max((link.last for (sender, _), link in self._links.items() if sender == process.id), default=0.0)
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


def draw_limits(rng: random.Random) -> Config:
    """Limits so small that each of them is met; ``workers_max`` stays large enough for the deepest nesting."""
    return Config(
        inline_bytes_max=rng.choice([200, 1000, 100_000]),
        store_full_grace_s=rng.choice([0.02, 0.3]),
        infeasible_grace_s=rng.choice([0.01, 1.0]),
        pipeline_window_ms=rng.choice([0.1, 1.0, 5.0]),
        pipeline_depth_max=rng.choice([2, 512]),
        handback_ms=rng.choice([0.5, 5.0, 20.0]),
        lease_idle_ms=rng.choice([1.0, 10.0, 100.0]),
        lease_requests_max=rng.choice([1, 2, 8]),
        workers_max=rng.choice([4] + [300] * 9),
        exhausted_grace_ms=rng.choice([1.0, 100.0]),
        worker_idle_s=rng.choice([0.05, 0.1, 2.0]),
        heartbeat_ms=rng.choice([1.0, 100.0]),
        actors_max=rng.choice([3] + [4096] * 9),
        actor_starts_max=rng.choice([1, 2, 16]),
        actor_restart_delay_ms=rng.choice([1.0, 50.0]),
        actor_restart_delay_max_s=rng.choice([0.05, 10.0]),
        actor_calls_bytes_max=rng.choice([300, 2000, 8 << 20]),
        dead_actors_max=rng.choice([30, 10_000]),
    )


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
