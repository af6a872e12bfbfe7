"""NodeManager: which nodes the cluster has, what is free on them, and whether they live.

Theory of operation
-------------------
A node registers once, and then says what is free on it whenever that changes, and at least every ``health_check_ms``. What is
new goes to all other agents together, once per ``heartbeat_ms``, so that each can send work where there is room; nobody asks the
control for that. Who came and who ended is told at once; of what is free, so much is told each time that all agents together hear
of ``LOADS_PER_S`` changes in a second, what waits for longest first: in a cluster of a thousand nodes, each of which changes all
the time, views are a few seconds old, and the control has time for other things.

A node that has been silent for ``node_suspect_s`` is *suspected* and asked for a sign of life; when it has been silent for
``node_death_s`` it is dead: everybody is told, and nothing that it says later is believed. If it comes back, because only the
network was cut, it is told to end and to join anew, as another node. A control that was itself held up (its clock jumped
between two of its own ticks) gives every node the time it has missed.

A cut network says nothing, but the end of a process does: its connections end with it. A node that was heard lately and whose
connection has ended is given ``node_lost_s`` to make another, which takes a living one a moment. A connection that ends after
a silence was given up by one side, and says no more than the silence.

A node registers again when there is another control process, which knows the node from the database (``restore``) and gives it
``node_return_s`` for that.
"""

from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

from zray.base.config import Config
from zray.base.resources import UNIT
from zray.base.wire_nodes import ClusterLoads, ClusterView, NodeRefused, ProbeNode
from zray.core.effects import AFTER_PERSIST, PERSIST, SEND, TIMER, WARN, Effect
from zray.core.lifecycle import Lifecycle
from zray.exceptions import InvariantError

LOADS_PER_S = 200_000
VIEW_TIMER = "nodes.view"
HEALTH_TIMER = "nodes.health"


class NodeState(Enum):
    ALIVE = 1
    SUSPECTED = 2
    DEAD = 3


NODE_LIFECYCLE = Lifecycle(
    "node",
    {
        NodeState.ALIVE: "It has been heard lately.",
        NodeState.SUSPECTED: "It has been silent for a while, and was asked for a sign of life.",
        NodeState.DEAD: "It was silent for too long, or left; nothing it says is believed any more.",
    },
    {
        NodeState.ALIVE: {"silent": NodeState.SUSPECTED, "ended": NodeState.DEAD},
        NodeState.SUSPECTED: {"heard": NodeState.ALIVE, "ended": NodeState.DEAD},
        NodeState.DEAD: {},
    },
)


class Node:
    """What the control knows of one node."""

    __slots__ = (
        "agent",
        "available",
        "endpoint",
        "heard_at",
        "hostname",
        "id",
        "labels",
        "lost_at",
        "number",
        "pid",
        "registered",
        "state",
        "store_bytes",
        "store_name",
        "told",
        "total",
    )

    def __init__(self, id: bytes, agent: bytes, now: float) -> None:
        self.id = id
        self.agent = agent
        self.heard_at = now
        self.lost_at = float("inf")  # when its connection ended
        self.state = NodeState.ALIVE
        self.registered = True  # with this control process; else it is known from an earlier one
        self.number = -1  # of its last registration: words that were said again may be older
        self.endpoint = ""
        self.hostname = ""
        self.pid = 0
        self.total: dict[str, int] = {}
        self.available: dict[str, int] = {}
        self.told: dict[str, int] | None = None  # what the others believe to be free
        self.labels: dict[str, str] = {}
        self.store_name = ""
        self.store_bytes = 0

    def row(self) -> tuple[Any, ...]:
        """What the other agents must know of it."""
        alive = self.state is not NodeState.DEAD
        return (
            self.id,
            self.agent,
            self.endpoint,
            self.hostname,
            self.total if alive else {},
            self.available if alive else {},
            self.labels if alive else {},
            alive,
        )

    def description(self) -> dict[str, Any]:
        """What drivers see of it."""
        return {
            "node_id": self.id,
            "agent": self.agent,
            "endpoint": self.endpoint,
            "hostname": self.hostname,
            "pid": self.pid,
            "total": self.total,
            "available": self.available if self.state is not NodeState.DEAD else {},
            "labels": self.labels,
            "store_name": self.store_name,
            "store_bytes": self.store_bytes,
            "alive": self.state is not NodeState.DEAD,
        }


class NodeManager:
    """All nodes of the cluster.

    Args:
        config: limits.
        out: where effects go.
        home: the agent that lives in the control's own process, and can not be silent.
    """

    __slots__ = ("_changed", "_config", "_dead", "_loaded", "_out", "_ticked_at", "_ticking", "_view_set", "home", "nodes")

    def __init__(self, config: Config, out: list[Effect], home: bytes = b"") -> None:
        self._config = config
        self._out = out
        self.home = home
        self.nodes: dict[bytes, Node] = {}
        self._dead: dict[bytes, None] = {}  # nodes, the oldest first
        self._changed: dict[bytes, None] = {}  # nodes that came or ended
        self._loaded: dict[bytes, None] = {}  # nodes where something else is free, the oldest news first
        self._view_set = False
        self._ticking = False
        self._ticked_at = 0.0

    def register(
        self,
        now: float,
        peer: bytes,
        node_id: bytes,
        endpoint: str,
        hostname: str,
        pid: int,
        resources: dict[str, int],
        labels: dict[str, str],
        store_name: str,
        store_bytes: int,
        number: int = 0,
    ) -> Node | None:
        """A machine is a node from now on, or still; None if it was given up, or has registered since that was said.

        It learns of all others, of those that are dead too: whom it does not know is new.
        """
        node = self.nodes.get(node_id)
        if node is None:
            node = Node(node_id, peer, now)
        elif node.state is NodeState.DEAD:
            self._refuse(peer)
            return None
        elif number <= node.number:
            return None
        node.number = number
        node.heard_at = now
        node.lost_at = float("inf")
        node.registered = True
        node.endpoint = endpoint
        node.hostname = hostname
        node.pid = pid
        node.total = resources
        node.available = dict(resources)
        node.labels = labels
        node.store_name = store_name
        node.store_bytes = store_bytes
        others = [other.row() for other in self.nodes.values() if other is not node]
        self.nodes[node_id] = node
        if others:
            self._out.append((SEND, peer, ClusterView(others)))
        self._note(now, node, self._changed)
        self._out.append((PERSIST, "save_node", _saved(node)))
        if peer != self.home:
            self._tick_on(now)
        return node

    def restore(self, row: dict[str, Any]) -> None:
        """A node that an earlier control process knew."""
        details = pickle.loads(row["details"])
        node = self.nodes[row["node_id"]] = Node(row["node_id"], details[0], 0.0)
        node.registered = False
        node.endpoint, node.hostname, node.pid = row["endpoint"], row["hostname"], row["pid"]
        _, node.total, node.labels, node.store_name, node.store_bytes = details
        if row["state"] == "DEAD":
            node.state = NodeState.DEAD
            self._dead[node.id] = None

    def expect(self, now: float) -> None:
        """From now on those that were restored are silent."""
        for node in self.alive():
            node.heard_at = now
            self._tick_on(now)

    def heard(self, now: float, peer: bytes, node_id: bytes, available: dict[str, int]) -> None:
        """A sign of life, and what is free."""
        node = self.nodes.get(node_id)
        if node is None:
            return
        if node.state is NodeState.DEAD:
            self._refuse(peer)
            return
        node.heard_at = now
        node.lost_at = float("inf")
        if node.state is NodeState.SUSPECTED:
            node.state = NODE_LIFECYCLE.next(node.state, "heard")
        if node.available != available:
            node.available = available
            self._note(now, node, self._loaded)

    def lost(self, now: float, agent: bytes) -> None:
        """The connection of an agent has ended: as that of a process that ended, unless it was silent before."""
        for node in self.alive():
            if node.agent == agent and now - node.heard_at < self._config.node_suspect_s:
                node.lost_at = min(now, node.lost_at)

    def end(self, now: float, node: Node, reason: str) -> None:
        """A node is dead."""
        node.state = NODE_LIFECYCLE.next(node.state, "ended")
        self._dead[node.id] = None
        self._out.append((PERSIST, "save_node", _saved(node)))
        self._out.append((WARN, f"node {node.id.hex()[:8]} on {node.hostname} is dead: {reason}"))
        self._note(now, node, self._changed)

    def explain(self, now: float, agent: bytes) -> str:
        """How a node is, in words."""
        node = next((node for node in self.nodes.values() if node.agent == agent), None)
        if node is None:
            return "its node is unknown to the control"
        heard = "" if agent == self.home else f", heard {now - node.heard_at:.1f} s ago"
        return f"node {node.id.hex()[:8]} on {node.hostname} is {node.state.name}{heard}"

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.state is not NodeState.DEAD]

    def tick(self, now: float) -> list[tuple[Node, str]]:
        """Look who is silent. Returns those who have been so for too long, and why they are dead; the caller ends them."""
        config = self._config
        interval_s = config.health_check_ms / 1000
        held_up = now - self._ticked_at - interval_s
        self._ticked_at = now
        late = []
        others = []
        for node in self.alive():
            self._out.append((SEND, node.agent, ClusterView([])))  # the control lives, and there is no other news
            if node.agent == self.home:
                continue
            others.append(node)
            if held_up > interval_s:  # it was this process that did not listen
                node.heard_at = min(now, node.heard_at + held_up)
                node.lost_at += held_up
            silent_s = now - node.heard_at
            if not node.registered and silent_s >= config.node_return_s:
                late.append((node, f"it did not come back within {config.node_return_s:g} s after the control had been away"))
            elif silent_s >= config.node_death_s:
                late.append((node, f"it was silent for {config.node_death_s:g} s"))
            elif now - node.lost_at >= config.node_lost_s:
                late.append((node, f"its connection ended, and it did not come back within {config.node_lost_s:g} s"))
            elif silent_s >= config.node_suspect_s:
                if node.state is NodeState.ALIVE:
                    node.state = NODE_LIFECYCLE.next(node.state, "silent")
                self._out.append((SEND, node.agent, ProbeNode()))
        self._ticking = bool(others)
        if others:
            self._out.append((TIMER, now + interval_s, (HEALTH_TIMER,)))
        return late

    def publish(self, now: float) -> None:
        """Tell all agents what has changed."""
        self._view_set = False
        changed, self._changed = self._changed, {}
        alive = self.alive()
        rows = [self.nodes[node_id].row() for node_id in changed]
        # Nobody may hear of a death that this process could forget: if it were started again the node would be alive for it.
        say = AFTER_PERSIST if any(self.nodes[node_id].state is NodeState.DEAD for node_id in changed) else SEND
        for node_id in changed:
            self.nodes[node_id].told = self.nodes[node_id].available
        for node in alive if rows else ():
            news = [row for row in rows if row[0] != node.id]
            if news:
                self._out.append((say, node.agent, ClusterView(news)))
        loads = ClusterLoads(self._loads(int(LOADS_PER_S * self._config.heartbeat_ms / 1000 / max(1, len(alive)))))
        for node in alive if loads.rows else ():
            self._out.append((SEND, node.agent, loads))
        if self._loaded:
            self._plan(now)
        while len(self._dead) > self._config.dead_nodes_max:  # everybody who lives has heard of their ends
            oldest = next(iter(self._dead))
            del self._dead[oldest], self.nodes[oldest]
            self._loaded.pop(oldest, None)
            self._out.append((PERSIST, "forget_node", (oldest,)))

    def _refuse(self, peer: bytes) -> None:
        reason = "the cluster had not heard of this node for too long and gave it up"
        self._out.append((SEND, peer, NodeRefused(reason, True)))

    def _tick_on(self, now: float) -> None:
        if not self._ticking:
            self._ticking = True
            self._ticked_at = now
            self._out.append((TIMER, now + self._config.health_check_ms / 1000, (HEALTH_TIMER,)))

    def _loads(self, most: int) -> list[tuple[bytes, dict[str, int]]]:
        """What is free on some of the nodes where that has changed."""
        rows: list[tuple[bytes, dict[str, int]]] = []
        while self._loaded and len(rows) < max(1, most):
            node_id = next(iter(self._loaded))
            del self._loaded[node_id]
            node = self.nodes[node_id]
            if node.available != node.told and node.state is not NodeState.DEAD:
                node.told = node.available
                rows.append((node_id, node.available))
        return rows

    def _note(self, now: float, node: Node, news: dict[bytes, None]) -> None:
        if len(self.nodes) > 1:  # else there is nobody to tell
            news[node.id] = None
            self._plan(now)

    def _plan(self, now: float) -> None:
        if not self._view_set:
            self._view_set = True
            self._out.append((TIMER, now + self._config.heartbeat_ms / 1000, (VIEW_TIMER,)))

    def check(self) -> None:
        """Assert the invariants."""
        agents = [node.agent for node in self.alive()]
        if len(agents) != len(set(agents)):
            raise InvariantError("two living nodes have the same agent")
        if self._dead.keys() != {node.id for node in self.nodes.values() if node.state is NodeState.DEAD}:
            raise InvariantError("the dead nodes are not those that are listed")
        if (self._changed or self._loaded) and not self._view_set:
            raise InvariantError("nodes changed and nobody will be told")

    def statistics(self) -> dict[str, int]:
        return {"nodes": len(self.nodes) - len(self._dead), "dead_nodes": len(self._dead)}


def _saved(node: Node) -> tuple[Any, ...]:
    details = pickle.dumps((node.agent, node.total, node.labels, node.store_name, node.store_bytes), 5)
    state = "DEAD" if node.state is NodeState.DEAD else "ALIVE"
    return node.id, node.endpoint, node.hostname, node.pid, as_text(node.total), details, state


def as_text(resources: dict[str, int]) -> str:
    """Resources as an operator reads them in SQLite."""
    return ", ".join(f"{name}={units / UNIT:g}" for name, units in sorted(resources.items()))
