"""Machines of the simulated world, and the nodes that run on them, one after the other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from zray.base.ids import agent_id
from zray.base.resources import ResourceSet
from zray.core.agent import NodeAgent
from zray.core.arena import PAGE

from .bodies import CONTROL, Body
from .processes import DriverBody, WorkerBody
from .servers import AgentBody
from .storage import Disk, Memory

if TYPE_CHECKING:
    from .cluster import Cluster


class Machine:
    """What a machine has; ``node`` is the one that runs there, if any does."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        rng = cluster.world.rng
        self.name = f"m{number}"
        self.cpus = rng.choice([1, 2, 2, 4]) if number == 0 else rng.choice([1, 2, 3])
        self.own = f"here{number}"  # a resource that no other machine has
        self.resources = ResourceSet.of({"CPU": self.cpus, self.own: 2.0})
        self.labels = {"zone": "a" if number == 0 else rng.choice("ab")}
        self.store_bytes = rng.choice([6 * PAGE, 12 * PAGE, 1 << 22, 1 << 22])
        self.directories: list[str] = rng.choice([[], ["disk0"], ["disk0", "disk1"], ["s3://bucket", "disk1"]])
        self.disk_fails = rng.choice([0.0, 0.0, 0.3])
        self.prestart = min(rng.choice([0, self.cpus]), cluster.world.config.workers_max)
        self.node: SimNode | None = None


class SimNode:
    """One incarnation of a node: an agent, its shared memory and disk, and the workers that come and go."""

    def __init__(self, cluster: Cluster, machine: Machine) -> None:
        self.cluster = cluster
        self.world = world = cluster.world
        self.machine = machine
        machine.node = self
        self.alive = True
        self.given_up = False  # by the control
        self.frozen = False
        self.backlog: list = []
        serial = len(cluster.nodes)
        self.id = b"n%03d" % serial + bytes(12).replace(b"\0", b"-")
        self.name = f"n{serial}"
        self.agent_id = agent_id(self.id)
        cluster.nodes.append(self)
        self.memory = Memory()
        self.disk = Disk(world, self.memory, self.name, machine.directories, cluster.bucket)
        self.disk.fails = machine.disk_fails
        self.short_of_memory = False
        self.workers: dict[bytes, WorkerBody] = {}
        self._starting: dict[bytes, None] = {}
        self._watched: dict[bytes, None] = {}
        remote = machine is not cluster.machines[0] or cluster.control_alone
        self.joined = not remote
        brain = NodeAgent(
            self.id,
            machine.resources,
            machine.store_bytes,
            machine.prestart,
            CONTROL,
            world.config,
            machine.directories,
            rng=random.Random(world.rng.getrandbits(40)),
            remote=remote,
            labels=machine.labels,
        )
        self.agent = AgentBody(cluster, self, brain)
        hostname, resources = machine.name, dict(machine.resources)
        registration = (self.id, self.agent.endpoint, hostname, 1, resources, machine.labels, "arena", machine.store_bytes)
        brain.register(registration)
        brain.start(world.now)
        self.agent.finish()

    # -- workers --------------------------------------------------------------------------------------------------

    def memory_used(self) -> int:
        """Percent of the machine's memory in use."""
        if self.cluster.short_of_memory and self.world.rng.random() < 0.3:
            self.world.faults += 1
            return 99
        return 10

    def start_worker(self, worker_id: bytes) -> None:
        self._starting[worker_id] = None
        self.world.after(0.001 + self.world.some(0.03), self._born, worker_id)

    def _born(self, worker_id: bytes) -> None:
        if worker_id in self._starting and self.alive:
            del self._starting[worker_id]
            name = f"{self.name}w{int.from_bytes(worker_id[6:10], 'big')}"
            self.workers[worker_id] = WorkerBody(self.cluster, self, worker_id, name)
            self.cluster.workers[worker_id] = self.workers[worker_id]
            self._mourn(self.workers[worker_id])

    def end_told_worker(self, worker_id: bytes) -> None:
        """The agent wants a worker's process to end."""
        if worker_id in self._starting:
            del self._starting[worker_id]
            self.world.dead[worker_id] = self.world.now
            self.agent.witness("on_worker_exited", worker_id, "ended before it started")
        elif worker_id in self.workers and self.workers[worker_id].alive:
            self.end_worker(self.workers[worker_id], "told to end")

    def end_worker(self, worker: WorkerBody, reason: str, *, politely: bool = False) -> None:
        """A worker's process ends; whether it sends first what it has to say."""
        seen = self.world.end(worker, politely=politely)
        self.world.at(seen, self.agent.child_exited, worker.id, reason, politely)

    def watch(self, process: bytes) -> None:
        """The agent wants to know when a process ends; it may have ended already."""
        driver = self.world.processes.get(process)
        if driver is not None and driver.machine != self.machine.name:
            raise AssertionError(f"{self.name} watches the pid of {driver.name}, which lives on {driver.machine}")
        self._watched[process] = None
        self.tell_end(process)

    def tell_end(self, process: bytes) -> None:
        if process in self._watched and process in self.world.dead:
            self.world.after(self.world.some(0.005), self.agent.witness, "on_process_ended", process)

    # -- the end --------------------------------------------------------------------------------------------------

    def processes(self) -> list[Body]:
        """All that live, the agent first."""
        drivers = [driver for driver in self.cluster.drivers if driver.node is self]
        return [body for body in (self.agent, *self.workers.values(), *drivers) if body.alive]

    def stop(self, *, rejoin: bool = False) -> None:
        """The agent's process ends, and with it the node; what comes back is another one."""
        if not self.alive:
            return
        self.alive = False
        self.machine.node = None
        self.world.end(self.agent, politely=False)
        for body in self.processes():
            self.world.after(self.world.some(0.01), self._end, body)
        if rejoin or self.world.rng.random() < 0.7:
            self.world.after(self.world.rng.uniform(0.02, 0.5), self.cluster.start_node, self.machine)

    def _end(self, body: Body) -> None:
        """Without its agent no process of the node can live."""
        if not body.alive:
            return
        if isinstance(body, DriverBody):
            self.cluster.judge.finished_jobs[body.job_id] = None
        self.world.end(body, politely=False)

    def give_up(self) -> None:
        """The cluster believes that the node is dead: from now on it is, whatever its processes do."""
        self.given_up = True
        self.world.note(self.agent, "is GIVEN UP")
        for body in self.processes():
            self._mourn(body)

    def _mourn(self, body: Body) -> None:
        if self.given_up:
            self.world.dead.setdefault(body.id, self.world.now)
            self.world.crashed[body.id] = None
            if isinstance(body, DriverBody):
                self.cluster.judge.finished_jobs[body.job_id] = None

    def freeze(self, *, agent_only: bool) -> None:
        """SIGSTOP, of the agent's process or of all."""
        for doer in [self.agent] if agent_only else [self, *self.processes()]:
            doer.frozen = True
        self.world.note(self.agent, "FREEZES" + (", alone" if agent_only else ""))

    def thaw(self) -> None:
        """SIGCONT."""
        self.world.note(self.agent, "THAWS")
        for doer in (self, *self.processes()):
            if doer.frozen:
                self.world.thaw(doer)
