"""ActorManager: the actors of owners that end with their nodes."""

from __future__ import annotations

from zray.base.ids import agent_id, process_id
from zray.base.wire_actors import EndActor
from zray.core.actor import ActorState

from .reading import sent
from .test_actors import A, B, Bench, C


def test_actors_whose_owners_lived_on_a_dead_node_end_with_it_wherever_they_run() -> None:
    bench = Bench()
    node = bytes(range(16))
    owner, later = process_id(node, b"aaaa"), process_id(node, b"bbbb")
    bench.register(A, peer=owner)
    bench.create(A, peer=owner)
    bench.register(B, peer=owner, detached=True)
    bench.create(B, peer=owner)
    bench.manager.node_ended(1.0, agent_id(node), "its node is dead")
    assert sent(bench.effects(), EndActor), "it runs elsewhere"
    actors = bench.manager.actors
    assert actors[A].state is ActorState.DEAD and actors[B].state is not ActorState.DEAD
    bench.register(C, peer=later)
    assert actors[C].state is ActorState.DEAD, "what the dead had sent comes late"
