"""The cluster: one control, machines with a node each, drivers, and what all of them share."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from random import Random

from zray.base.ids import process_id
from zray.core.gcs import Gcs
from zray.core.owner import Owner
from zray.io.db import load, migrate

from .bodies import CONTROL, OwnerBody
from .checkers import Judge
from .nodes import Machine, SimNode
from .processes import DriverBody, WorkerBody
from .servers import ControlBody
from .storage import Bucket
from .threads import Steps
from .transfer import ByteService
from .world import World

JOINING_S = 0.05  # virtual: by then all machines that are there from the start are nodes


class Cluster:
    """One control, machines, and the drivers on them."""

    def __init__(self, world: World, run_task: Callable[..., Steps], construct: Callable[..., Steps]) -> None:
        self.world = world
        self.judge = Judge(world)
        self.short_of_memory = False
        self.may_keep = True  # tasks may leave references in their process
        self.run_task = run_task
        self.construct = construct
        self.workers: dict[bytes, WorkerBody] = {}  # all that ever were
        self.nodes: list[SimNode] = []  # all that ever were
        self.drivers: list[DriverBody] = []
        self.bucket: Bucket = {}  # files that every machine can read
        self.byte_services: dict[str, ByteService] = {}
        rng = world.rng
        self.machines = [Machine(self, number) for number in range(world.machines)]
        self.links_break = rng.choice([0.0, 0.0, 0.1]) if world.machines > 1 else 0.0
        # Where few workers may be started, an actor that lives hides that all others wait for each other.
        self.with_actors = rng.random() < 0.75 and world.config.workers_max > 100
        self.with_groups = rng.random() < 0.6 and world.config.workers_max > 100
        self.cancels = Random(world.seed).random() < 0.3  # users cancel; drawn apart, so that other worlds stay as they were
        self.copies = world.machines > 1 and rng.random() < 0.4  # what is made on one machine is read on others
        self.violent = rng.random() < 0.4  # users kill actors, and actors exit
        self.cpus_to_hold = self.machines[0].cpus - 1.0  # for actors and groups; tasks would wait for ever without the rest
        home = process_id(b"n000" + b"-" * 12, bytes(4))
        self.judge.links_break = self.links_break > 0
        self.control_alone = rng.random() < 0.5  # a process of its own, which may end and be started again
        self._home_agent = b"" if self.control_alone else home
        self._database = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self._database)
        self.start_control()
        if self.control_alone:
            world.network.returning[CONTROL] = None
        self.home = self.start_node(self.machines[0])
        late = rng.random() < 0.3
        self.judge.late_news = late
        for number, machine in enumerate(self.machines[1:], 1):
            if late and number == len(self.machines) - 1:
                world.after(rng.uniform(0.05, 0.2), self.start_node, machine)
            else:
                self.start_node(machine)
        for number in range(2 if rng.random() < 0.8 else 3):
            node = self.home if number == 0 else rng.choice(self.nodes)
            own = (1 << 31 | number + 1).to_bytes(4, "big")
            self.drivers.append(DriverBody(self, node, process_id(node.id, own), f"driver{number + 1}"))

    def start_control(self) -> None:
        """The control begins, with what an earlier one had on disk."""
        rng = random.Random(self.world.rng.getrandbits(40))
        gcs = Gcs(b"cluster", self.world.config, home=self._home_agent, rng=rng, saved=load(self._database))
        self.control = ControlBody(self, gcs, self.machines[0].name, self._database)
        gcs.start(self.world.now)
        self.control.finish()
        self.world.network.come_back(CONTROL)

    def end_control(self) -> None:
        """The control is killed, and started again."""
        if self.control.alive:
            self.world.note(self.control, "DIES")
            self.control.die()
            self.world.network.leave(CONTROL)
            self.world.after(self.world.some(0.05), self.start_control)

    def start_node(self, machine: Machine) -> SimNode:
        """A node comes, unless one is there."""
        return machine.node or SimNode(self, machine)

    def give_up(self, node_id: bytes) -> None:
        """The control says that a node is dead."""
        self.node(node_id).give_up()

    def node(self, node_id: bytes) -> SimNode:
        return next(node for node in self.nodes if node.id == node_id)

    def living(self) -> list[SimNode]:
        return [node for node in self.nodes if node.alive]

    def bodies(self) -> list[OwnerBody]:
        """All drivers and workers that live."""
        return [body for body in (*self.drivers, *self.workers.values()) if body.alive]

    def end_driver(self, driver: DriverBody) -> None:
        self.judge.finished_jobs[driver.job_id] = None
        self.world.end(driver, politely=False)
        driver.node.tell_end(driver.id)

    def budgets(self) -> list[tuple[str, int, int]]:
        """How many calls each process that lives has made, and of how many it has the result."""
        return [(b.name, sum(x._taken for x in b.budgets), sum(x._given for x in b.budgets)) for b in self.bodies()]

    def owners(self) -> list[tuple[str, Owner]]:
        """The brains of all drivers and workers that live."""
        return [(body.name, body.owner) for body in self.bodies()]
