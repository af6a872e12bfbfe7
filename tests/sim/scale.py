"""Scale: what a large cluster costs the control and the agents, in processor time.

The real brains of the control and of so many agents, with owners and workers that only do what leases need: some nodes have
drivers, which ask for leases in turns, go where they are sent, keep each for a while and give it back. Every message is put into
the form in which it travels, on the account of its sender; links take the same time each.
"""

from __future__ import annotations

import gc
import heapq
import random
import time
from typing import Any, NamedTuple

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import agent_id, process_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, LeaseGranted, LeaseRejected, RequestLease, ReturnLease
from zray.base.wire_nodes import ClusterLoads, ClusterView, LeaseRedirected
from zray.core import effects as e
from zray.core.agent import NodeAgent
from zray.core.gcs import Gcs

LINK_S = 0.0005
START_S = 0.02  # of a worker
CPUS = 4
DRIVERS = 0.1  # of the nodes have one
HELD_S = 0.2  # by whom a lease was granted
LEASES_PER_NODE_S = 10.0
_ONE = {"CPU": 10_000}


class Figures(NamedTuple):
    """What was measured; processor time is that of the brains and of encoding."""

    nodes: int
    leases: int
    redirected: int  # how often an owner was sent on
    waited_ms: float  # from the first question to the grant, on average, of which links are a part
    decision_us: float  # one RequestLease at an agent
    lease_us: float  # all that agents do for one lease, views not included
    view_ms: float  # what one agent spends on views in a second
    control_ms: float  # what the control spends in a second
    rows: float  # of views that the control tells in a second


class Scale:
    """One run.

    Args:
        nodes: how many.
        seed: of the choices.
    """

    def __init__(self, nodes: int, seed: int = 0) -> None:
        self._rng = random.Random(seed)
        self._heap: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._serial = 0
        self._now = 0.0
        config = Config()
        ids = [b"n%05d" % number + b"-" * 10 for number in range(nodes)]
        total = ResourceSet.of({"CPU": CPUS, "memory": 1 << 30})
        self._gcs = Gcs(b"cluster", config, home=agent_id(ids[0]), rng=random.Random(seed))
        self._agents = {agent_id(i): NodeAgent(i, total, 0, 0, CONTROL, config, rng=self._rng, remote=True) for i in ids}
        self._node_ids = dict(zip(self._agents, ids, strict=True))
        self._handlers = {
            schema.op: schema.handler for schema in wire.SCHEMA.values() if schema.receiver in ("agent", "control", "any")
        }
        self._asked: dict[tuple[bytes, int], tuple[float, int]] = {}
        self._next = 1
        self._waited = 0.0
        self._total = dict(total)
        self._leases = self._redirected = self._decisions = self._rows = 0
        self.spent = {"decisions": 0.0, "leases": 0.0, "views": 0.0, "control": 0.0}

    def run(self, seconds: float) -> Figures:
        """Let all nodes join, and measure for so long."""
        for number, (agent_process, agent) in enumerate(self._agents.items()):
            node_id = self._node_ids[agent_process]
            registration = (node_id, "tcp://x", f"h{number}", 1, self._total, {}, "arena", 0)
            self._at(0.001 * number, self._deliver, CONTROL, agent_process, wire.pack(wire.RegisterNode(*registration)))
            agent.start(0.0)
            self._settle(agent_process, agent, "leases")
        count = len(self._agents)
        begin = 0.001 * count + 0.5
        drivers = list(self._agents)[: max(1, int(count * DRIVERS))]
        rate = LEASES_PER_NODE_S * count / len(drivers)
        warm = begin + 1.0
        for agent_process in drivers:
            at = begin + self._rng.random() / rate
            while at < warm + seconds:
                self._at(at, self._ask, agent_process)
                at += 1 / rate
        self._go_on(warm)
        self.spent = dict.fromkeys(self.spent, 0.0)
        self._leases = self._redirected = self._decisions = self._rows = 0
        self._waited = 0.0
        gc.collect()
        gc.disable()  # the garbage of a thousand agents is not that of one
        try:
            self._go_on(warm + seconds)
        finally:
            gc.enable()
        spent, leases = self.spent, max(1, self._leases)
        return Figures(
            count,
            self._leases,
            self._redirected,
            self._waited / leases * 1e3,
            spent["decisions"] / max(1, self._decisions) * 1e6,
            (spent["decisions"] + spent["leases"]) / leases * 1e6,
            spent["views"] / count / seconds * 1e3,
            spent["control"] / seconds * 1e3,
            self._rows / seconds,
        )

    # -- owners and workers ---------------------------------------------------------------------------------------

    def _ask(self, agent_process: bytes) -> None:
        owner = process_id(self._node_ids[agent_process], b"\x80\0\0\1")
        if owner not in self._agents[agent_process].clients:
            self._agents[agent_process].on_peer_joined(self._now, owner, "driver", 1)
        self._asked[owner, self._next] = (self._now, 0)
        self._say(owner, agent_process, RequestLease(self._next, b"job1", _ONE, 0))
        self._next += 1

    def _tell_owner(self, owner: bytes, agent_process: bytes, message: Any) -> None:
        if isinstance(message, LeaseGranted):
            since, _ = self._asked.pop((owner, message.request_id))
            self._leases += 1
            self._waited += self._now - since
            self._at(self._now + HELD_S, self._say, owner, agent_process, ReturnLease(message.lease_id))
        elif isinstance(message, LeaseRedirected):
            since, hops = self._asked[owner, message.request_id]
            self._asked[owner, message.request_id] = (since, hops + 1)
            self._redirected += 1
            request = RequestLease(message.request_id, b"job1", _ONE, 0, True, ("default",), hops + 1)
            self._say(owner, message.agent, request)
        elif isinstance(message, LeaseRejected):
            raise AssertionError(f"a lease was refused: {message}")

    def _born(self, agent_process: bytes, worker_id: bytes) -> None:
        self._do(agent_process, "leases", "on_peer_joined", worker_id, "worker", 1)
        self._do(agent_process, "leases", "on_worker_ready", worker_id, worker_id, "ipc://w", 1)

    # -- the world ------------------------------------------------------------------------------------------------

    def _at(self, when: float, what: Any, *args: Any) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, what, args))

    def _go_on(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self._now, _, what, args = heapq.heappop(self._heap)
            what(*args)

    def _say(self, sender: bytes, receiver: bytes, message: Any) -> None:
        self._at(self._now + LINK_S, self._deliver, receiver, sender, wire.pack(message))

    def _deliver(self, receiver: bytes, sender: bytes, packed: tuple[Any, ...]) -> None:
        handler = self._handlers[packed[0]]
        kinds = {"on_request_lease": "decisions", "on_cluster_view": "views", "on_cluster_loads": "views"}
        self._decisions += handler == "on_request_lease"
        account = "control" if receiver == CONTROL else kinds.get(handler, "leases")
        self._do(receiver, account, handler, sender, *packed[1:])

    def _do(self, process: bytes, account: str, handler: str, *args: Any) -> None:
        brain = self._gcs if process == CONTROL else self._agents[process]
        begun = time.thread_time()
        getattr(brain, handler)(self._now, *args)
        self.spent[account] += time.thread_time() - begun
        self._settle(process, brain, account)

    def _settle(self, process: bytes, brain: Any, account: str) -> None:
        """Carry out what a brain asks for, as far as it matters here."""
        while brain.out:
            effects, brain.out[:] = list(brain.out), []
            frames: dict[int, bytes] = {}
            for effect in effects:
                if effect[0] == e.SEND:
                    self._send(process, effect[1], effect[2], account, frames)
                elif effect[0] == e.TIMER:
                    self._at(effect[1], self._do, process, "control" if process == CONTROL else "leases", "on_timer", effect[2])
                elif effect[0] == e.START_WORKER:
                    self._at(self._now + START_S, self._born, process, effect[1])

    def _send(self, sender: bytes, receiver: bytes, message: Any, account: str, frames: dict[int, bytes]) -> None:
        if isinstance(message, (ClusterLoads, ClusterView)):
            self._rows += len(message.rows)
        if receiver in self._agents or receiver == CONTROL:
            begun = time.thread_time()
            wire.encode([wire.pack(message)])
            self.spent[account] += time.thread_time() - begun
            self._at(self._now + LINK_S, self._deliver, receiver, sender, wire.pack(message))
        else:
            self._at(self._now + LINK_S, self._tell_owner, receiver, sender, message)


def report(nodes: int, seconds: float) -> str:
    """One line of figures."""
    figures = Scale(nodes).run(seconds)
    return (
        f"{figures.nodes:5d} nodes {figures.leases / seconds:8.0f} leases/s: {figures.decision_us:6.1f} us per decision, "
        f"{figures.lease_us:6.1f} us per lease in all agents together, {figures.redirected / max(1, figures.leases):4.2f} "
        f"redirections, {figures.waited_ms:6.1f} ms of waiting; views cost an agent {figures.view_ms:6.2f} ms per second, the "
        f"control spends {figures.control_ms:7.1f} ms per second and tells {figures.rows:9.0f} rows"
    )
