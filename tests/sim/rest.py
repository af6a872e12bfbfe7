"""Rest: when nothing runs and nobody holds anything, nothing may be left anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zray.base.ids import agent_of
from zray.core.actor import ActorState
from zray.core.nodes import NodeState
from zray.core.placement import GroupState

from .world import SimulationError, World

if TYPE_CHECKING:
    from .bodies import OwnerBody
    from .checkers import Judge
    from .cluster import Cluster
    from .nodes import SimNode


def reconcile(world: World, judge: Judge, bodies: dict[bytes, OwnerBody]) -> None:
    """Give back what was registered for values that died with their givers: only the end of the receiver would.

    Anything else that owners and borrowers do not agree on is a mistake.
    """
    for body in bodies.values():
        for object_id, by in list(body.owner.references.borrowers.items()):
            for borrower, count in list(by.items()):
                other = bodies.get(borrower)
                handed = other.owner.references.handed.get(object_id, 0) if other is not None else 0
                if count == handed:
                    continue
                givers = judge.givers.get((object_id, borrower), {})
                if count < handed or not any(giver in world.crashed for giver in givers):
                    raise SimulationError(
                        f"{body.name} has {world.name(borrower)} registered {count} times for {object_id.hex()}, "
                        f"and {handed} is right"
                    )
                body.owner.references.on_refs([(object_id, borrower, handed - count)])
                body.finish()


def accounted_for(body: OwnerBody) -> None:
    """Nothing runs: every reference that is counted is in a value, or among the arguments of a constructor."""
    owner = body.owner
    needs: dict[bytes, int] = {}
    held = [object_id for inner in owner.references.contained.values() for object_id in inner]
    held += [object_id for origin in owner.lineage.origins.values() for object_id in origin.held]
    refs = [ref for task in owner.creations.values() for ref in (*(ref for _, ref in task.slots), *task.nested)]
    held += [ref.binary() for ref in {id(ref): ref for ref in refs}.values()]  # each counts once, wherever it is
    for object_id in held:
        needs[object_id] = needs.get(object_id, 0) + 1
    if needs != owner.references.counts:
        raise SimulationError(f"{body.name} holds {needs} and counts {owner.references.counts}")


def control_at_rest(cluster: Cluster) -> list[str]:
    """What is left in the control."""
    gcs = cluster.control.brain
    manager, groups = gcs.actors, gcs.placement
    living = [node.id for node in cluster.living()]
    known = [node.id for node in gcs.members.nodes.values() if node.state is not NodeState.DEAD]
    problems = []
    if sorted(living) != sorted(known):
        problems.append(f"the control knows the nodes {known}, and there are {living}")
    problems += [
        f"the control believes that {node.id!r} has {node.available} of {node.total} free"
        for node in gcs.members.alive()
        if node.available != node.total
    ]
    for what, left in (
        ("names", manager.names),
        ("living actors", [a for a in manager.actors.values() if a.state is not ActorState.DEAD]),
        ("subscriptions", [s for s in manager._subscriptions.values() if s]),
        ("questions for unknown actors", manager._unknown),
        ("placement groups", [g for g in groups.groups.values() if g.state is not GroupState.REMOVED]),
        ("names of placement groups", groups.names),
        ("waits for placement groups", groups._waits),
        ("functions that are waited for", gcs._wanted),
    ):
        if left:
            problems.append(f"{what}: {len(left)}")
    return problems


def node_at_rest(cluster: Cluster, node: SimNode) -> list[str]:
    """What is left on a node."""
    agent, dead = node.agent.brain, cluster.world.dead
    scheduler, transfer = agent.scheduler, agent.transfer
    others = {other.id for other in cluster.living() if other is not node}
    problems = []
    if scheduler.resources.available != dict(scheduler.resources.total):
        problems.append(f"resources: {scheduler.resources.available} of {dict(scheduler.resources.total)}")
    if set(agent.neighbours.views) != others:
        problems.append(f"neighbours: {sorted(agent.neighbours.views)}, and there are {sorted(others)}")
    for what, left in (
        ("leases", scheduler.leases),
        ("lease requests", scheduler.queue),
        ("leases waiting for workers", agent.pool.waiting),
        ("leases of actors", agent._actors),
        ("actors waiting for workers", agent.pool.actors_waiting),
        ("workers that start for actors", agent.pool._born_for),
        ("processes of actors", [w for w in agent.pool.workers.values() if w.dedicated]),
        ("bundles", agent.bundles.bundles),
        ("spill files", agent.store.files.live),
        ("files", node.disk.files),
        ("objects in the store", agent.store.objects),
        ("creations waiting", agent.store._demands),
        ("copies", agent.store.copies),
        ("pulls", transfer.pulls.pulls),
        ("tickets", transfer.pushes.tickets),
        ("spreads", transfer.pushes._spreads),
        ("frees", transfer._frees),
        ("searches for copies", transfer.search.searches),
        ("bytes that are served", node.agent.bytes.served),
        ("bytes that are fetched", node.agent.bytes.fetches),
        ("clients that are dead", [c for c in agent.clients if c in dead]),
        ("clients of other nodes", [c for c in agent.clients if agent_of(c) != node.agent_id]),
        ("watches of the dead", [p for p in agent.deaths._watchers if p in dead]),
    ):
        if left:
            problems.append(f"{what}: {len(left)}")
    for lease in scheduler.leases.values():
        who = [cluster.world.name(process) for process in (lease.request.owner, lease.worker or b"nobody")]
        problems.append(f"lease {lease.id} of {who[0]} for {who[1]}")
    problems += [
        f"object {object_id.hex()} of {cluster.world.name(stored.owner)}, pinned by {stored.pins}, {stored.state.name}"
        for object_id, stored in agent.store.objects.items()
    ]
    for watcher, watched in agent.deaths._watching.items():
        if watcher in dead:
            names = [cluster.world.name(process) for process in watched]
            problems.append(f"{cluster.world.name(watcher)} is dead and watches {names}")
    if agent.store.arena.used_bytes:
        problems.append(f"the arena has {agent.store.arena.used_bytes} bytes in use")
    return [f"{node.name}: {problem}" for problem in problems]


def at_rest(cluster: Cluster) -> None:
    """Nothing runs and nobody holds anything: so nothing may be left anywhere."""
    problems = control_at_rest(cluster)
    for node in cluster.living():
        problems += node_at_rest(cluster, node)
    for name, owner in cluster.owners():
        references = owner.references
        left_over = {key: value for key, value in owner.statistics().items() if value and key != "origins_forgotten"}
        for what, table in (
            ("watchers", owner.waiters.watchers),
            ("gets of others", owner._remote_gets),
            ("registrations", references.handed),
            ("notes of passed arguments", references.passed),
            ("words to owners", references.deltas),
            ("actors' constructors", owner.creations),
            ("watches of the dead", [p for p in owner._watched if p in cluster.world.dead]),
            ("results of the dead", owner._unswept),
        ):
            if table:
                left_over[what] = len(table)
        if left_over:
            problems.append(f"{name}: {left_over}")
    if problems:
        raise SimulationError("at rest, but there is still: " + "; ".join(problems))
