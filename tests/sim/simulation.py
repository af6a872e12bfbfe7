"""One simulation, from the start of a cluster to its rest."""

from __future__ import annotations

from zray import object_ref
from zray.base.wire_actors import KillActor
from zray.core.actor import ActorState

from .bodies import CONTROL, OwnerBody
from .cluster import JOINING_S, Cluster
from .faults import Faults
from .groups import remove_groups
from .rest import accounted_for, at_rest, reconcile
from .workloads import construct, run_task, script
from .world import SimulationError, World

QUIET_S = 70.0  # virtual: longer than any timeout
CLUSTER_QUIET_S = 8.0  # ... where there are several machines: their timeouts are shorter
HANG_S = 60.0  # virtual: then whoever waits waits for ever


def simulate(seed: int, *, trace: bool = False, machines: int | None = None) -> World:
    """One seed, from the start of the cluster to its rest; raises at the first thing that is wrong.

    Args:
        seed: decides everything.
        trace: whether to keep what happens, line by line.
        machines: how many the cluster has; drawn if nobody says.
    """
    world = World(seed, trace=trace, machines=machines)
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


def be_quiet(world: World) -> None:
    """Let so much time pass that all that can happen by itself has happened."""
    quiet = world.now + (QUIET_S if world.machines == 1 else CLUSTER_QUIET_S)
    world.run(lambda: world.now > quiet)


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
    for body in cluster.bodies():
        body.forget()
        body.finish()
    end_actors(cluster, detached=True)
    remove_groups(cluster)
    be_quiet(world)
    bodies: dict[bytes, OwnerBody] = {b.id: b for b in cluster.bodies()}
    reconcile(world, cluster.judge, bodies)
    be_quiet(world)
    for body in bodies.values():
        if body.alive:
            accounted_for(body)
    end_actors(cluster, detached=False)
    be_quiet(world)
    at_rest(cluster)


def heal(world: World, cluster: Cluster) -> None:
    """All machines have nodes again, and nothing is frozen or cut off."""
    world.network.heal()
    for machine in cluster.machines:
        cluster.start_node(machine)


def live(world: World, cluster: Cluster) -> None:
    """Faults, then healing, then rest."""
    workers = world.rng.choice([0, 0, 1, 3, 10])
    nodes = world.rng.choice([0, 1, 1, 2, 4]) if world.machines > 1 else 0
    if nodes:
        world.run(lambda: world.now > JOINING_S)
    faults = Faults(cluster, workers, driver=world.rng.random() < 0.25, nodes=nodes)
    for driver in cluster.drivers:
        driver.run(script)
    world.run(lambda: world.now > JOINING_S + (0.15 if world.machines == 1 else 0.3))
    faults.stop()
    end = world.now + HANG_S
    if world.machines > 1:
        calm = world.now + 2.0
        world.run(lambda: world.now > calm)
        heal(world, cluster)
    world.run(lambda: idle(cluster) or world.now > end)
    for driver in cluster.drivers:
        if driver.alive and not driver.finished:
            raise SimulationError(f"{driver.name} waits for ever for something that never comes: {driver.waits_for()}")
    for worker in cluster.workers.values():
        if worker.alive and worker.busy:
            raise SimulationError(f"{worker.name} waits for ever in a task: {worker.waits_for()}")
    if not idle(cluster):
        pending = [(b.name, [t.id.hex() for t in b.owner.tasks.pending.values()]) for b in cluster.bodies()]
        raise SimulationError(f"tasks are pending for ever: {[row for row in pending if row[1]]}")
    come_to_rest(world, cluster)
    for name, taken, given in cluster.budgets():
        if taken != given:
            raise SimulationError(f"{name} has made {taken} calls, and {given} were given back")
    finish_jobs(world, cluster)


def finish_jobs(world: World, cluster: Cluster) -> None:
    """The drivers leave, and with them their workers."""
    for driver in cluster.drivers:
        if driver.alive:
            cluster.judge.finished_jobs[driver.job_id] = None
            driver.leave()
    be_quiet(world)
    jobs = [w.name for w in cluster.workers.values() if w.alive and w.job_id]
    if jobs:
        raise SimulationError(f"all jobs are finished and {jobs} still live")
