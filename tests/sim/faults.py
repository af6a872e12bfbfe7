"""Faults: who dies, stops or is cut off, and when. They only begin while the workload runs; afterwards the world heals."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cluster import Cluster
    from .nodes import SimNode

SPAN_S = 0.12  # virtual: in which faults begin


class Faults:
    """Faults at random until they are told to stop.

    Each kind is a method, and ``plan`` has one of them happen at a time of its own; further kinds are added there.

    Args:
        cluster: where.
        workers: how many workers will die.
        driver: whether one of the drivers dies too.
        nodes: how many faults will befall whole nodes, or the ways between them.
    """

    def __init__(self, cluster: Cluster, workers: int, *, driver: bool, nodes: int) -> None:
        self._cluster = cluster
        self._world = world = cluster.world
        self._on = True
        cluster.short_of_memory = workers > 0 and world.rng.random() < 0.2
        for _ in range(workers):
            world.after(world.rng.uniform(0.002, SPAN_S), self._kill_worker)
        if driver:
            world.after(world.rng.uniform(0.002, 0.08), self._kill_driver)
        self.plan(nodes)
        self._apart = apart = Random(world.seed + 1)  # drawn apart, so that worlds without this fault stay as they were
        if world.machines > 1 and apart.random() < 0.4:
            for _ in range(apart.choice([1, 5, 20])):
                world.after(apart.uniform(0.002, 2 * SPAN_S), self._break)
        if cluster.control_alone:
            for _ in range(world.rng.choice([0, 1, 3, 10])):
                world.after(world.rng.uniform(0.002, SPAN_S), self._kill_control)

    def plan(self, count: int) -> None:
        """Have so many faults of nodes happen."""
        kinds = [self._kill_node, self._kill_node, self._freeze_node, self._freeze_node, self._freeze_head, self._cut]
        for _ in range(count):
            fault = self._world.rng.choice(kinds)
            self._world.after(self._world.rng.uniform(0.002, 2 * SPAN_S), fault)

    def stop(self) -> None:
        """No more faults begin; what is frozen or cut off goes on in its time."""
        self._on = False
        self._cluster.short_of_memory = False

    # -- processes ------------------------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        """Any worker may die: starting, idle, running, blocked, or owner of what others need."""
        alive = [w for w in self._cluster.workers.values() if w.alive]
        if self._on and alive:
            self._world.faults += 1
            busy = [w for w in alive if w.busy or w.actor is not None]
            worker = self._world.rng.choice(busy or alive)
            worker.node.end_worker(worker, "killed by the simulator")

    def _kill_driver(self) -> None:
        drivers = [d for d in self._cluster.drivers if d.alive and not d.finished]
        if self._on and len(drivers) > 1:
            self._world.faults += 1
            self._cluster.end_driver(drivers[-1])

    def _kill_control(self) -> None:
        """Nobody dies of that, and nothing fails."""
        if self._on and not self._cluster.control.frozen:
            self._cluster.judge.control_ends = True
            self._cluster.end_control()

    # -- nodes ----------------------------------------------------------------------------------------------------

    def _others(self) -> list[SimNode]:
        """The nodes that may die."""
        return [node for node in self._cluster.living() if node is not self._cluster.home]

    def _kill_node(self) -> None:
        """The agent of a node is gone, and so are its workers."""
        others = self._others()
        if self._on and others:
            self._world.faults += 1
            self._world.rng.choice(others).stop()

    def _freeze_node(self) -> None:
        """A node stops, all of it or its agent alone, and goes on: before anybody notices, when it is suspected, or too late."""
        others = [node for node in self._others() if not node.agent.frozen]
        if self._on and others:
            self._freeze(self._world.rng.choice(others), agent_only=self._world.rng.random() < 0.4)

    def _freeze_head(self) -> None:
        """The machine of the control stops: nobody dies of that, unless it takes too long for the others."""
        home, config, rng = self._cluster.home, self._world.config, self._world.rng
        control = self._cluster.control
        if self._on and not home.agent.frozen and control.alive and not control.frozen:
            span_s = rng.choice([0.02, config.node_death_s * 1.5])
            if self._cluster.control_alone:  # else the first machine, where a driver is, would end as the others do
                span_s = min(span_s, config.control_death_s * 0.5)
            if span_s > 0.1:
                self._cluster.judge.late_news = True
            if span_s > config.control_death_s * 0.8:
                self._world.faults += 1
            if not self._cluster.control_alone:
                home.freeze(agent_only=True)
            control.frozen = True
            self._world.after(span_s, self._thaw_head, home)

    def _thaw_head(self, home: SimNode) -> None:
        self._world.thaw(self._cluster.control)
        if not self._cluster.control_alone:
            home.thaw()

    def _freeze(self, node: SimNode, *, agent_only: bool) -> None:
        world, config = self._world, self._world.config
        longest = config.node_death_s + world.rng.choice([0.1, 1.0])
        span_s = world.rng.choice([0.02, config.node_suspect_s + 0.1, longest, longest])
        world.faults += 1
        node.freeze(agent_only=agent_only)
        world.after(span_s, self._thaw, node)

    def _thaw(self, node: SimNode) -> None:
        node.thaw()

    # -- the ways between machines --------------------------------------------------------------------------------

    def _break(self) -> None:
        """Connections break, and are made again after a while; what else goes between those machines goes on."""
        world, config, rng = self._world, self._world.config, self._apart
        connections = world.network.between_machines()
        if not self._on or not connections:
            return
        span_s = rng.choice([0.005, 0.05, 0.05, config.node_suspect_s, config.node_death_s + 0.3])
        if span_s > 0.1:
            self._blame_links()
        for connection in rng.sample(connections, min(len(connections), rng.choice([1, 1, 3, 10]))):
            world.network.break_off(connection, world.now + span_s)
            ends = (world.name(connection.dialler.id), world.name(connection.listener))
            world.note(self._cluster.control, f"the connection of {ends[0]} to {ends[1]} BREAKS for {span_s:g} s")

    def _blame_links(self) -> None:
        """From now on it can be the fault of the ways between machines that something does not come, or comes late."""
        self._world.faults += 1
        self._cluster.judge.links_break = True
        self._cluster.judge.late_news = True

    def _cut(self) -> None:
        """Two machines do not hear each other: for a moment, or for so long that one gives the other up."""
        world, config, machines = self._world, self._world.config, self._cluster.machines
        if not self._on or len(machines) < 2:
            return
        one, other = world.rng.sample(machines, 2)
        span_s = world.rng.choice([0.01, 0.05, config.node_suspect_s, config.node_death_s + 0.3, config.control_death_s + 0.5])
        if span_s > 0.1:
            self._blame_links()
        world.network.cut(one.name, other.name, world.now + span_s)
        world.note(self._cluster.control, f"{one.name} and {other.name} are CUT OFF from each other for {span_s:g} s")
