"""One simulation, from the start of a cluster to its rest."""

from __future__ import annotations

from zray import object_ref

from .checkers import at_rest
from .cluster import Cluster
from .faults import Faults
from .workloads import run_task, script
from .world import SimulationError, World


def simulate(seed: int, *, trace: bool = False) -> World:
    """One seed, from the start of the cluster to its rest; raises at the first thing that is wrong."""
    world = World(seed, trace=trace)
    try:
        cluster = Cluster(world, run_task)
        live(world, cluster)
    except Exception as error:
        error.add_note(f"seed {seed}, at {world.now * 1000:.4f} ms: scripts/sim --seed {seed}")
        if trace:
            print("\n".join(world.lines))
        raise
    finally:
        object_ref.connected = None
    return world


def idle(cluster: Cluster) -> bool:
    """Whether no program runs any more; what lives only to keep objects for others may go on for ever."""
    if not all(driver.finished for driver in cluster.drivers if driver.alive):
        return False
    return not any(w.alive and (w.running or w.owner.tasks.pending) for w in cluster.workers.values())


def live(world: World, cluster: Cluster) -> None:
    """Faults, then healing, then rest."""
    workers = world.rng.choice([0, 0, 1, 3, 10])
    faults = Faults(cluster, workers, driver=world.rng.random() < 0.25)
    for driver in cluster.drivers:
        driver.run(script)
    world.run(lambda: world.now > 0.15)
    faults.stop()
    world.run(lambda: idle(cluster))
    for driver in cluster.drivers:
        if driver.alive and not driver.finished:
            raise SimulationError(f"{driver.name} waits for ever for something that never comes")
    cluster.may_keep = False
    for worker in cluster.workers.values():
        if worker.alive and worker.running is not None:
            raise SimulationError(f"{worker.name} waits for ever in a task")
        if worker.alive:
            worker.kept.clear()
            worker.finish()
    world.run()
    at_rest(world, cluster.agent.brain, cluster.owners())
    if cluster.disk.files:
        raise SimulationError(f"files are left: {list(cluster.disk.files)}")
    for driver in cluster.drivers:
        if driver.alive:
            driver.leave()
    world.run()
    jobs = [w.name for w in cluster.workers.values() if w.alive and w.job_id]
    if jobs:
        raise SimulationError(f"all jobs are finished and {jobs} still live")
