"""Process: what the body of every process does: carries messages to brains and effects to tools."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from zray.base.wire import SCHEMA, Hello, pack, well_formed
from zray.core import effects as e
from zray.io.loop import Loop

if TYPE_CHECKING:
    from zray.io.cluster_key import ClusterKey

log = logging.getLogger("zray")


class Links(Protocol):
    """The ways to other processes: sockets, or what stands in their place."""

    endpoint: str
    counts: dict[str, int]
    on_refused: Callable[[bytes, str], None]
    on_lost: Callable[[bytes], None]
    on_broken: Callable[[bytes], None]

    def dial(self, peer: bytes, endpoint: str, watched: bool = False) -> None: ...

    def reach(self, peer: bytes, endpoint: str) -> None: ...

    def alias(self, name: bytes, peer: bytes) -> None: ...

    def hang_up(self, peer: bytes) -> None: ...

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> bool: ...

    def peers(self) -> list[bytes]: ...

    def flush(self) -> None: ...

    def pending(self) -> bool: ...

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None: ...

    def close(self, linger_ms: int = 0) -> None: ...


class PidWatch:
    """Tells when a process of this machine ends. A source of the loop."""

    def __init__(self, pid: int, on_ended: Callable[[], None]) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        self._on_ended = on_ended

    def fileno(self) -> int:
        return self._fd

    def on_readable(self) -> None:
        self._on_ended()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Process:
    """The body shared by all processes.

    Args:
        me: id of this process.
        role: what it introduces itself as.
        endpoint: where it can be reached.
        cluster: identity of the cluster.
        decode: how to read frames.
        lazy_s: see Loop.
        message_bytes_max: larger frames are refused by the socket.
        tcp: where to listen for other machines; see Transport.
        key: what proves that a process belongs to the cluster.
    """

    def __init__(
        self,
        me: bytes,
        role: str,
        endpoint: str,
        cluster: bytes,
        decode: Callable[[bytes], Any],
        lazy_s: float,
        message_bytes_max: int,
        *,
        tcp: tuple[str, int, str] | None = None,
        key: ClusterKey | None = None,
    ) -> None:
        self.me = me
        self.reason = ""  # why it ends
        self.loop = Loop(lazy_s)
        self.loop.on_inbox = self.on_calls
        self.transport = self.open_links(role, endpoint, cluster, decode, message_bytes_max, tcp, key)
        self.loop.pending = self.transport.pending
        self.loop.settle = self.settle
        self.loop.on_timer = self.on_timer
        self._brains: list[Any] = []
        self._handlers: dict[int, Callable[..., None]] = {}
        self._timer_targets: dict[str, Callable[[float, Any], None]] = {}
        self.on_timers("door", self.transport.on_timer)
        self._local: dict[bytes, None] = {}
        self._verbs: dict[int, Callable[..., None]] = {
            e.SEND: self.send,
            e.DIAL: self.transport.reach,
            e.HANG_UP: self.transport.hang_up,
            e.TIMER: self.loop.add_timer,
        }

    def open_links(
        self,
        role: str,
        endpoint: str,
        cluster: bytes,
        decode: Callable[[bytes], Any],
        message_bytes_max: int,
        tcp: tuple[str, int, str] | None,
        key: ClusterKey | None,
    ) -> Links:
        """What carries messages from and to other processes."""
        from zray.io.transport import Transport  # and with it zmq, which not every process has

        return Transport(
            self.loop,
            self.me,
            role,
            endpoint,
            cluster,
            decode,
            self.on_batch,
            self.on_peer_joined,
            message_bytes_max=message_bytes_max,
            tcp=tcp,
            key=key,
        )

    def add_brain(self, brain: Any, *receivers: str) -> None:
        """Route messages for ``receivers`` to ``brain``, and execute its effects."""
        self._brains.append(brain)
        self.add_handlers(brain, *receivers)

    def add_handlers(self, target: Any, *receivers: str) -> None:
        for schema in SCHEMA.values():
            handler = getattr(target, schema.handler, None)
            if schema.receiver in receivers and handler is not None:
                self._handlers[schema.op] = handler

    def count_messages(self, receiver: str, counts: dict[str, int]) -> None:
        """Count the messages that come for a receiver, by kind."""

        def counting(kind: str, handler: Callable[..., None]) -> Callable[..., None]:
            def count(*message: Any) -> None:
                counts[kind] = counts.get(kind, 0) + 1
                handler(*message)

            return count

        for schema in SCHEMA.values():
            if schema.receiver == receiver:
                self._handlers[schema.op] = counting(schema.name, self._handlers[schema.op])

    def add_local(self, peer: bytes) -> None:
        """``peer`` is a brain of this very process."""
        self._local[peer] = None

    def on_effect(self, verb: int, function: Callable[..., None]) -> None:
        """Execute effects of this verb with ``function(*fields)``."""
        self._verbs[verb] = function

    def on_timers(self, prefix: str, function: Callable[[float, Any], None]) -> None:
        """Timers whose key's first field starts with ``prefix`` go to ``function(now, key)``."""
        self._timer_targets[prefix] = function

    # -- the loop's calls -----------------------------------------------------------------------------------------

    def on_batch(self, peer: bytes, batch: list[Any]) -> None:
        """Messages arrived: each goes to its handler; what fits no handler is counted and dropped."""
        handlers = self._handlers
        now = time.monotonic()
        for msg in batch:
            handler = handlers.get(msg[0]) if well_formed(msg) else None
            if handler is None:
                counts = self.transport.counts
                counts["unhandled"] = counts.get("unhandled", 0) + 1
            else:
                handler(now, peer, *msg[1:])

    def on_peer_joined(self, hello: Hello) -> None:
        """A peer introduced itself."""

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        self._timer_targets[key[0].partition(".")[0]](now, key)

    def now(self) -> float:
        return time.monotonic()

    def stop(self, reason: str) -> None:
        """End this process in good order."""
        self.reason = reason
        self.loop.stopped = True

    def on_calls(self, now: float) -> None:
        """Take what was posted: calls, in a process that has no users."""
        while self.loop.inbox:
            entry = self.loop.inbox.popleft()
            entry[0](*entry[1:])

    def settle(self, now: float) -> None:
        """Let the brains draw consequences, execute their effects until there are none, then send."""
        busy = True
        while busy:
            busy = False
            for brain in self._brains:
                if brain.out:
                    busy = True
                    self.execute(brain)
        self.transport.flush()

    def execute(self, brain: Any) -> None:
        """Execute what a brain has asked for so far; local deliveries may make it ask for more."""
        out = brain.out
        count = len(out)
        verbs = self._verbs
        for index in range(count):
            effect = out[index]
            verbs[effect[0]](*effect[1:])
        del out[:count]

    def send(self, peer: bytes, msg: tuple[Any, ...]) -> None:
        """Send a message, or deliver it to a brain of this process."""
        if peer in self._local:
            self.on_batch(self.me, [pack(msg)])
        else:
            self.transport.send(peer, msg)
