"""Nodes on a bench: real agents and owners, whose messages are delivered one after the other; workers are only noted."""

from __future__ import annotations

import re
from collections import deque
from typing import Any

from zray.base import wire
from zray.base.config import Config
from zray.base.ids import TaskIDs, agent_id, agent_of, process_id, return_id
from zray.base.resources import ResourceSet
from zray.base.wire import CONTROL, Push
from zray.base.wire_nodes import ClusterView
from zray.core.agent import NodeAgent
from zray.core.effects import KILL_WORKER, SEND, START_WORKER
from zray.core.owner import Owner
from zray.core.tasks import Task, TaskTemplate
from zray.object_ref import ObjectRef

from .reading import drain

KINDS = {op: kind for kind, op in wire.OPS.items()}
ONE = ResourceSet.of({"CPU": 1})


def node(name: str) -> bytes:
    return (name + "-" + name).encode().ljust(16, b"-")[:16]


def handler(kind: type) -> str:
    return "on_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


class Driver:
    """An owner, and what it has pushed to which worker."""

    def __init__(self, net: Net, at: bytes, number: int) -> None:
        self.me = process_id(at, bytes([0x80, 0, 0, number]))
        refs: list[bytes] = []  # nobody here drops any
        me = (self.me, "sim://driver")
        self.brain = Owner(me, b"job1", at, agent_id(at), net.config, lambda i, owner: ObjectRef(i, owner, refs.append))
        self.ids = TaskIDs(self.me)
        self.pushed: dict[bytes, tuple[bytes, int]] = {}  # task -> worker and lease of its last attempt
        self.attempts: dict[bytes, int] = {}
        self.net = net

    def call(
        self,
        count: int = 1,
        demand: ResourceSet = ONE,
        retries: int = 3,
        strategy: Any = ("default",),
        args: tuple[Any, ...] = (),
    ) -> list[Task]:
        """Submit tasks with these references as arguments; the net delivers what follows from that."""
        template = TaskTemplate(b"f" * 16, "fun", demand, 1, retries, None, strategy)
        tasks = []
        for _ in range(count):
            task_id = self.ids()
            ids = (return_id(task_id, 1),)
            tasks.append(Task(task_id, template, b"p", tuple(enumerate(args)), (), ids, 1))
            self.brain.submit(self.net.now, tasks[-1])
        self.net.turn()
        return tasks

    def where(self, tasks: list[Task]) -> list[str]:
        """The node on which each was pushed to a worker last; "" for those that wait."""
        return [self.net.node_of(self.pushed[t.id][0]) if t.id in self.pushed else "" for t in tasks]

    def finish(self, *tasks: Task) -> None:
        for task in tasks:
            worker, lease = self.pushed.pop(task.id)
            self.net.post(worker, self.me, wire.Done(lease, [(task.id, [(wire.INLINE, b"1")], 10**7, [])]))
        self.net.turn()

    def entry(self, task: Task) -> Any:
        return self.brain.memory.get(task.returns[0])


class Net:
    """A few nodes by name, each with its CPUs. Nobody is told of anybody before ``views``."""

    def __init__(self, **cpus: float) -> None:
        self.config = Config()
        self.now = 0.0
        self.agents: dict[bytes, NodeAgent] = {}
        self.names: dict[bytes, str] = {}
        self.drivers: dict[bytes, Driver] = {}
        self.mail: deque[tuple[bytes, bytes, Any]] = deque()
        self.log: list[tuple[bytes, bytes, Any]] = []
        self.to_control: list[Any] = []
        self.effects: list[tuple[bytes, Any]] = []  # the others, with who had them
        self.cut: set[bytes] = set()  # processes that are gone without anybody having noticed
        for name, amount in cpus.items():
            node_id = node(name)
            total = ResourceSet.of({"CPU": amount, name: 1})
            agent = NodeAgent(node_id, total, 1 << 20, 0, CONTROL, self.config, remote=True)
            self.agents[agent_id(node_id)] = agent
            self.names[agent_id(node_id)] = name

    def node_of(self, process: bytes) -> str:
        return self.names[agent_of(process)]

    def agent(self, name: str) -> NodeAgent:
        return self.agents[agent_id(node(name))]

    def row(self, name: str, free: float | None = None, alive: bool = True) -> tuple[Any, ...]:
        """What the control says of a node: what is free there now, unless the test says it otherwise."""
        resources = self.agent(name).scheduler.resources
        available = dict(resources.available)
        if free is not None:
            available["CPU"] = int(free * 10_000)
        return node(name), agent_id(node(name)), f"tcp://{name}", name, dict(resources.total), available, {}, alive

    def views(self, *names: str, **free: float) -> None:
        """The control tells everybody of these nodes, or of all."""
        for peer in self.agents:
            rows = [self.row(n, free.get(n)) for n in (names or self.names.values()) if agent_id(node(n)) != peer]
            if peer not in self.cut:
                self.post(CONTROL, peer, ClusterView(rows))
        self.turn()

    def driver(self, at: str) -> Driver:
        driver = Driver(self, node(at), len(self.drivers) + 1)
        self.drivers[driver.me] = driver
        self.does(agent_id(node(at)), "on_peer_joined", driver.me, "driver", 7)
        return driver

    def die(self, name: str) -> None:
        """A node is gone; nobody knows yet."""
        gone = agent_id(node(name))
        self.cut |= {gone, *self.agents[gone].pool.workers, *(d for d in self.drivers if agent_of(d) == gone)}

    def dead(self, name: str) -> None:
        """A node is gone, and the control has noticed."""
        self.die(name)
        for peer in self.agents:
            if peer not in self.cut:
                self.post(CONTROL, peer, ClusterView([self.row(name, alive=False)]))
        self.turn()

    # -- the post -------------------------------------------------------------------------------------------------

    def post(self, sender: bytes, receiver: bytes, message: Any) -> None:
        packed = wire.pack(message)
        assert wire.well_formed(packed), f"{message} is not what the schema says"
        whole = KINDS[packed[0]](*packed[1:])
        self.mail.append((sender, receiver, whole))
        self.log.append((sender, receiver, whole))

    def sent(self, kind: type) -> list[tuple[bytes, bytes, Any]]:
        """All messages of a kind since the last ``forget``: sender, receiver, message."""
        return [entry for entry in self.log if type(entry[2]) is kind]

    def forget(self) -> None:
        self.log.clear()

    def does(self, agent: bytes, event: str, *args: Any) -> None:
        getattr(self.agents[agent], event)(self.now, *args)
        self.turn()

    def turn(self) -> None:
        """Deliver everything, and what follows from it."""
        self._collect()
        while self.mail:
            sender, receiver, message = self.mail.popleft()
            if sender in self.cut or receiver in self.cut:
                continue
            if receiver == CONTROL:
                self.to_control.append(message)
            elif receiver in self.agents:
                agent, name = self.agents[receiver], handler(type(message))
                targets = (agent, agent.transfer, agent.transfer.search, agent.bundles)
                next(getattr(each, name) for each in targets if hasattr(each, name))(self.now, sender, *message)
            elif receiver in self.drivers:
                getattr(self.drivers[receiver].brain, handler(type(message)))(self.now, sender, *message)
            elif isinstance(message, Push):
                self._push(receiver, sender, message)
            self._collect()

    def _push(self, worker: bytes, owner: bytes, push: Push) -> None:
        driver = self.drivers[owner]
        for spec in push[1]:
            driver.pushed[spec[0]] = (worker, push[0])
            driver.attempts[spec[0]] = driver.attempts.get(spec[0], 0) + 1

    def _collect(self) -> None:
        for driver in self.drivers.values():
            if driver.me not in self.cut:
                driver.brain.settle(self.now)
                driver.brain.check()
                self._take(driver.me, drain(driver.brain.out))
        for peer, agent in self.agents.items():
            if peer not in self.cut:
                agent.check()
                self._take(peer, drain(agent.out))

    def _take(self, who: bytes, effects: list[Any]) -> None:
        for effect in effects:
            if effect[0] == SEND:
                self.post(who, effect[1], effect[2])
                continue
            self.effects.append((who, effect))
            agent = self.agents.get(who)
            if effect[0] == START_WORKER and agent is not None:
                agent.on_peer_joined(self.now, effect[1], "worker", 1)
                agent.on_worker_ready(self.now, effect[1], effect[1], "sim://", 1)
                self._take(who, drain(agent.out))
            elif effect[0] == KILL_WORKER and agent is not None:
                self.cut.add(effect[1])
                agent.on_worker_exited(self.now, effect[1], "killed")
                self._take(who, drain(agent.out))
