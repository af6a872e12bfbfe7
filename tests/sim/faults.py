"""Faults: who dies when. Deaths only happen while the workload runs; afterwards the world heals."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cluster import Cluster


class Faults:
    """Kills processes at random until it is told to stop.

    Args:
        cluster: where.
        workers: how many workers will die.
        driver: whether one of the drivers dies too.
    """

    def __init__(self, cluster: Cluster, workers: int, *, driver: bool) -> None:
        self._cluster = cluster
        self._on = True
        world = cluster.world
        cluster.short_of_memory = workers > 0 and world.rng.random() < 0.2
        for _ in range(workers):
            world.after(world.rng.uniform(0.002, 0.12), self._kill_worker)
        if driver:
            world.after(world.rng.uniform(0.002, 0.08), self._kill_driver)

    def stop(self) -> None:
        self._on = False
        self._cluster.short_of_memory = False

    def _kill_worker(self) -> None:
        """Any worker may die: starting, idle, running, blocked, or owner of what others need."""
        alive = [w for w in self._cluster.workers.values() if w.alive]
        if self._on and alive:
            self._cluster.world.faults += 1
            busy = [w for w in alive if w.busy or w.actor is not None]
            self._cluster.end_worker(self._cluster.world.rng.choice(busy or alive), "killed by the simulator")

    def _kill_driver(self) -> None:
        drivers = [d for d in self._cluster.drivers if d.alive and not d.finished]
        if self._on and len(drivers) > 1:
            self._cluster.world.faults += 1
            self._cluster.end_driver(drivers[-1])
