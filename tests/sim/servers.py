"""The processes that serve: the control, and the agents of the nodes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zray.base import wire
from zray.base.wire import HELLO
from zray.base.wire_actors import PlaceActor
from zray.core import effects as e
from zray.core.agent import SIGN_TIMER, NodeAgent
from zray.core.gcs import Gcs
from zray.core.nodes import HEALTH_TIMER
from zray.io.db import STATEMENTS, storable

from . import room
from .bodies import CONTROL, Body
from .transfer import ByteService

if TYPE_CHECKING:
    from .cluster import Cluster
    from .nodes import SimNode


class ControlBody(Body):
    """The control: one brain for the tables, and two inside it for actors and placement groups.

    Unless it is a process of its own it lives in that of the first machine's agent: who comes from elsewhere and greets the one
    greets both, and who is hung up on by the agent can not be reached by the control.
    """

    def __init__(self, cluster: Cluster, brain: Gcs, machine: str, database: sqlite3.Connection) -> None:
        super().__init__(cluster, CONTROL, "control", "control", machine, brain, "control")
        self._database = database

    def leaves(self) -> list[Any]:
        return [self.brain.actors, self.brain.placement]

    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if message[0] == HELLO:
            home, known = self.cluster.home.agent, self.world.processes[peer]
            if known.machine != home.machine and not self.cluster.control_alone:
                home.handle(peer, message)
                home.after_event()
                home.finish()
        else:
            super().handle(peer, message)

    def fire(self, key: tuple[Any, ...]) -> None:
        leaf = {"actors": self.brain.actors, "placement": self.brain.placement}.get(key[0].partition(".")[0])
        (leaf or self.brain).on_timer(self.world.now, key)

    def execute(self, effect: tuple[Any, ...]) -> None:
        super().execute(effect)
        if effect[0] == e.PERSIST:
            self.world.at(self._durable_at, self._commit, *effect[1:])

    def _commit(self, statement: str, parameters: tuple[Any, ...]) -> None:
        if self.alive:
            self._database.execute(STATEMENTS[statement], tuple(storable(value) for value in parameters))
            if statement == "save_node" and parameters[-1] == "DEAD":
                self.cluster.give_up(parameters[0])

    def _excused(self, peer: bytes, message: tuple[Any, ...]) -> bool:
        return True  # who has not come back to a control that was started again can not be reached

    def send(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if isinstance(message, PlaceActor):
            self.cluster.judge.actor_placed(message.actor_id, peer)
        super().send(peer, message)

    def on_timer(self, key: tuple[Any, ...]) -> None:
        if key == (HEALTH_TIMER,) and self.alive:
            self.fire(key)  # nothing has changed, most of the time
            self.finish()
        else:
            super().on_timer(key)


class AgentBody(Body):
    """The agent of a node."""

    def __init__(self, cluster: Cluster, node: SimNode, brain: NodeAgent) -> None:
        self.node = node
        super().__init__(cluster, node.agent_id, node.name, "agent", node.machine.name, brain, "agent")
        self.bytes = ByteService(self)
        brain.transfer.pushes.endpoint = self.bytes.endpoint
        cluster.byte_services[self.bytes.endpoint] = self.bytes
        self.dial(CONTROL)

    def leaves(self) -> list[Any]:
        return [self.brain.bundles, self.brain.transfer, self.brain.transfer.search]

    def on_broken(self, peer: bytes) -> None:
        if peer == CONTROL:
            self.turn()  # what the one before had said came first
            self.brain.on_control_broken(self.world.now)
            self.after_event()
            self.finish()

    def handle(self, peer: bytes, message: tuple[Any, ...]) -> None:
        if message[0] == HELLO:
            hello = wire.Hello(*message[1:])
            self.brain.on_peer_joined(self.world.now, hello.sender, hello.role, hello.pid)
        else:
            super().handle(peer, message)

    def fire(self, key: tuple[Any, ...]) -> None:
        machine = self.brain.transfer if key[0].startswith("transfer.") else self.brain
        machine.on_timer(self.world.now, key)

    def after_event(self) -> None:
        super().after_event()
        self._watch_refusals(self.brain.out)

    def _watch_refusals(self, effects: list[tuple[Any, ...]]) -> None:
        """Whoever is refused for want of room must be so for a reason."""
        judge = self.cluster.judge
        for text in room.refusals(effects):
            if not judge.no_room(text):  # it may be what another node has said
                writes = "could not be written here" in text and self.node.disk.fails > 0
                judge.refused(self.name, text, "" if writes else room.wrongly_refused(self.brain.store, text))

    def on_timer(self, key: tuple[Any, ...]) -> None:
        if key == (SIGN_TIMER,) and self.alive:
            self.fire(key)
            self.finish()
        else:
            super().on_timer(key)

    def execute(self, effect: tuple[Any, ...]) -> None:
        verb, world, node = effect[0], self.world, self.node
        self._watch_refusals([effect])
        if verb == e.SPILL:
            _, batch_id, directory, rows = effect
            event = node.disk.spill(self.brain.store, batch_id, directory, rows)
            world.after(world.some(0.01), self.report, event)
        elif verb == e.RESTORE:
            world.after(world.some(0.01), self.report, node.disk.restore(self.brain.store, *effect[1:]))
        elif verb == e.DELETE_FILE:
            node.disk.delete(effect[1])
        elif verb == e.COLLECT:
            self.brain.collect(world.now)
        elif verb == e.MEASURE:
            world.after(world.some(0.001), self._measure)
        elif verb == e.START_WORKER:
            node.start_worker(effect[1])
        elif verb == e.KILL_WORKER:
            world.after(world.some(0.002), node.end_told_worker, effect[1])
        elif verb == e.WATCH:
            node.watch(effect[1])
        elif verb == e.LOOK:
            self.brain.on_drivers_seen(world.now, [])  # here whole machines stop, not drivers
        elif verb == e.JOINED:
            world.note(self, "has joined")
            node.joined = True
        elif verb == e.STOP:
            world.note(self, f"STOPS: {effect[1]}")
            node.stop(rejoin=self.brain.rejoin)
        elif verb in (e.SERVE, e.SERVE_REST, e.UNSERVE, e.FETCH, e.CANCEL_FETCH, e.ANSWER):
            self._move_bytes(verb, effect[1:])
        else:
            super().execute(effect)

    def _move_bytes(self, verb: int, fields: tuple[Any, ...]) -> None:
        if verb == e.ANSWER:
            self.brain.transfer.on_answer(self.world.now, *fields)
        elif verb == e.SERVE:
            self.bytes.serve(*fields)
        elif verb == e.SERVE_REST:
            self.bytes.serve_rest(*fields)
        elif verb == e.UNSERVE:
            self.bytes.unserve(*fields)
        elif verb == e.FETCH:
            self.bytes.fetch(*fields)
        else:
            self.bytes.cancel(*fields)

    def transferred(self, event: str, *args: Any) -> None:
        """The thread that moves bytes says how something ended."""
        if self.alive:
            self.world.note(self, f"{event} {args[0].hex() if isinstance(args[0], bytes) else args[0]} {args[1:]}")
            getattr(self.brain.transfer, event)(self.world.now, *args)
            self.after_event()
            self.finish()

    def hang_up(self, peer: bytes) -> None:
        super().hang_up(peer)
        if self.node is self.cluster.home and not self.cluster.control_alone:
            self.world.network.hang_up(self.cluster.control, peer)

    def report(self, happen: Callable[[], tuple[Any, ...]]) -> None:
        """A file operation is over: only now it has happened."""
        if self.alive:
            event, *args = happen()
            self.world.note(self, event.__name__)
            event(*args)
            self.after_event()
            self.finish()

    def _measure(self) -> None:
        workers = [w.id for w in self.node.workers.values() if w.alive]
        self.witness("on_memory_measured", self.node.memory_used(), 100, dict.fromkeys(workers, 30))

    def child_exited(self, worker_id: bytes, reason: str, politely: bool) -> None:
        """The zygote saw a worker end."""
        if politely:
            self.turn()  # a process that ends in good order is heard to the end
        self.witness("on_worker_exited", worker_id, reason)

    def witness(self, event: str, *args: Any) -> None:
        """Something ended on this machine."""
        if self.alive:
            getattr(self.brain, event)(self.world.now, *args)
            self.after_event()
            self.finish()
