"""One simulation, from the start of a cluster to its rest."""

from __future__ import annotations

from zray import object_ref
from zray.base.wire_actors import KillActor
from zray.core.actor import ActorState

from .bodies import CONTROL, OwnerBody
from .checkers import accounted_for, at_rest, reconcile
from .cluster import Cluster
from .faults import Faults
from .workloads import construct, run_task, script
from .world import SimulationError, World

QUIET_S = 70.0  # virtual: longer than any timeout


def simulate(seed: int, *, trace: bool = False) -> World:
    """One seed, from the start of the cluster to its rest; raises at the first thing that is wrong."""
    world = World(seed, trace=trace)
    try:
        cluster = Cluster(world, run_task, construct)
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
    if not all(driver.finished and not driver.owner.tasks.pending for driver in cluster.drivers if driver.alive):
        return False
    return not any(w.alive and (w.busy or w.owner.tasks.pending) for w in cluster.workers.values())


def end_actors(cluster: Cluster, *, detached: bool) -> bool:
    """End the actors that live still, all or those that are detached; whether there were any."""
    manager = cluster.control.brain.actors
    left = [a for a in manager.actors.values() if a.state is not ActorState.DEAD and a.detached >= detached]
    driver = next(driver for driver in cluster.drivers if driver.alive)
    for actor in left:
        driver.send(CONTROL, KillActor(actor.id, True))
    return bool(left)


def come_to_rest(world: World, cluster: Cluster) -> None:
    """Everything that somebody holds is let go. What then is left holds itself: actors and values in a circle."""
    cluster.may_keep = False
    for worker in cluster.workers.values():
        if worker.alive:
            worker.forget()
            worker.finish()
    end_actors(cluster, detached=True)
    quiet = world.now + QUIET_S
    world.run(lambda: world.now > quiet)
    bodies: dict[bytes, OwnerBody] = {b.id: b for b in (*cluster.drivers, *cluster.workers.values()) if b.alive}
    reconcile(world, cluster.judge, bodies)
    quiet = world.now + QUIET_S
    world.run(lambda: world.now > quiet)
    for body in bodies.values():
        if body.alive:
            accounted_for(body)
    end_actors(cluster, detached=False)
    world.run()
    at_rest(world, cluster.agent.brain, cluster.control.brain.actors, cluster.owners())


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
    for worker in cluster.workers.values():
        if worker.alive and worker.busy:
            raise SimulationError(f"{worker.name} waits for ever in a task")
    come_to_rest(world, cluster)
    for name, taken, given in cluster.budgets():
        if taken != given:
            raise SimulationError(f"{name} has made {taken} calls, and {given} were given back")
    if cluster.disk.files:
        raise SimulationError(f"files are left: {list(cluster.disk.files)}")
    for driver in cluster.drivers:
        if driver.alive:
            cluster.judge.finished_jobs[driver.job_id] = None
            driver.leave()
    world.run()
    jobs = [w.name for w in cluster.workers.values() if w.alive and w.job_id]
    if jobs:
        raise SimulationError(f"all jobs are finished and {jobs} still live")
