"""ActorManager on a random walk: a node, workers and owners whose words overtake each other."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base.config import Config
from zray.base.wire_actors import ActorUpdated, EndActor, PlaceActor
from zray.core.actor import ActorState
from zray.core.actor_places import Place
from zray.core.actors import ActorManager

from .reading import AGENT, drain, process, sent, timers

OWNERS = [process("owner1"), process("owner2")]
CALLERS = [*OWNERS, process("caller")]

STEPS = ["register", "create", "create", "node", "node", "node", "work", "work", "work", "exit", "comeback"]
STEPS = [*STEPS, *STEPS, "kill", "scope"] + ["hear"] * 16 + ["die", "subscribe", "subscribe", "unsubscribe", "timer"]


class Process:
    """A worker that was told to become an actor."""

    def __init__(self, id: bytes, actor_id: bytes, incarnation: int) -> None:
        self.id = id
        self.actor_id = actor_id
        self.incarnation = incarnation
        self.started = False


class Walk:
    """The manager, and everybody around it; what is said is on its way until it is heard."""

    def __init__(self) -> None:
        self.out: list[Any] = []
        config = Config(actor_restart_delay_ms=100.0, infeasible_grace_s=1.0, function_fetch_timeout_s=5.0, dead_actors_max=3)
        self.manager = ActorManager(config, self.out, lambda demand, strategy: Place(AGENT))
        self.now = 0.0
        self.names = 0
        self.to_node: list[Any] = []
        self.links: dict[bytes, list[tuple[str, tuple[Any, ...]]]] = {}  # sender -> words on their way to the manager
        self.timers: list[tuple[float, Any]] = []
        self.processes: dict[bytes, Process] = {}
        self.registered: dict[bytes, bytes] = {}  # actor -> owner
        self.created: dict[bytes, None] = {}
        self.dead: dict[bytes, None] = {}  # owners
        self.gone: dict[bytes, None] = {}  # those of whose death the manager has heard
        self.told: dict[tuple[bytes, bytes], ActorUpdated] = {}  # the last word to each subscriber

    # -- links ----------------------------------------------------------------------------------------------------

    def say(self, sender: bytes, event: str, *fields: Any) -> None:
        self.links.setdefault(sender, []).append((event, fields))

    def absorb(self) -> None:
        self.manager.check()
        effects = drain(self.out)
        for effect in effects:
            for kind in (PlaceActor, EndActor):
                self.to_node += [message for _, message in sent([effect], kind)]
            for peer, update in sent([effect], ActorUpdated):
                assert peer not in self.gone, "nothing is told to the dead"
                last = self.told.get((peer, update.actor_id))
                unknown = last is not None and last.incarnation == 0  # its registration was waited for in vain
                assert last is None or last.state != "DEAD" or unknown or update.state == "DEAD", "death is for ever"
                assert last is None or update.incarnation >= last.incarnation or update.incarnation == 0
                self.told[peer, update.actor_id] = update
        self.timers += timers(effects)

    def hear(self, index: int) -> None:
        senders = [s for s, words in self.links.items() if words]
        if senders:
            sender = senders[index % len(senders)]
            event, fields = self.links[sender].pop(0)
            if event == "process_ended":
                self.manager.process_ended(self.now, *fields)
                self.gone[fields[0]] = None
            else:
                getattr(self.manager, "on_" + event)(self.now, sender, *fields)
            self.absorb()

    # -- the node -------------------------------------------------------------------------------------------------

    def node(self, index: int) -> None:
        if not self.to_node:
            return
        message = self.to_node.pop(0)
        if isinstance(message, PlaceActor):
            if index in (0, 1):
                kind = "infeasible" if index else "exhausted"
                self.say(AGENT, "actor_refused", message.actor_id, message.incarnation, kind, "no room")
                return
            assert all(p.actor_id != message.actor_id for p in self.processes.values()), "two processes of one actor"
            self.names += 1
            new = Process(b"worker-%08d" % self.names, message.actor_id, message.incarnation)
            self.processes[new.id] = new
            self.say(AGENT, "actor_placed", new.actor_id, new.incarnation, b"node", new.id, "sim://", 1)
            return
        for found in list(self.processes.values()):
            if (found.actor_id, found.incarnation) == message[:2] and message.force:
                self.die(found)
            elif (found.actor_id, found.incarnation) == message[:2]:
                del self.processes[found.id]

    def die(self, worker: Process, *, willing: bool = False) -> None:
        del self.processes[worker.id]
        self.say(AGENT, "actor_lost", worker.actor_id, worker.incarnation, "killed", willing)

    def work(self, index: int) -> None:
        """A constructor ends."""
        for worker in self.processes.values():
            if not worker.started:
                worker.started = True
                error = b"error" if index == 0 else b""
                self.say(worker.id, "actor_started", worker.actor_id, worker.incarnation, error)
                return

    # -- users ----------------------------------------------------------------------------------------------------

    def register(self, index: int) -> None:
        owner = OWNERS[index % 2]
        if owner in self.dead:
            return
        self.names += 1
        actor_id = b"actor-%06d" % self.names
        self.registered[actor_id] = owner
        name, restarts = ["", "one", "two"][index % 3], [0, 0, 2, -1][index % 4]
        what = (b"handle", "C", name, "space", index > 8, index % 5 == 0, restarts, {}, {}, b"")
        self.say(owner, "register_actor", 0, actor_id, b"job1", "sim://", *what)

    def user(self, what: str, index: int) -> None:
        if not self.registered:
            return
        actor_id = list(self.registered)[index % len(self.registered)]
        owner, caller = self.registered[actor_id], CALLERS[index % 3]
        if what == "create" and owner not in self.dead and actor_id not in self.created:
            self.created[actor_id] = None
            self.say(owner, "create_actor", actor_id, b"" if index == 11 else b"c", b"error" if index == 11 else b"")
        elif what == "scope" and owner not in self.dead:
            self.say(owner, "actor_out_of_scope", actor_id)
        elif caller not in self.dead and what in ("kill", "comeback"):
            self.say(caller, "kill_actor", actor_id, what == "kill")
        elif caller not in self.dead and what in ("subscribe", "unsubscribe"):
            self.say(caller, what + "_actor", actor_id)

    def step(self, what: str, index: int) -> None:
        self.now += 0.01
        workers = list(self.processes.values())
        if what in ("register", "hear", "node", "work"):
            getattr(self, what)(index)
        elif what in ("die", "exit") and workers:
            self.die(workers[index % len(workers)], willing=what == "exit")
        elif what == "timer" and self.timers:
            self.fire(index)
        elif what == "owner dies" and OWNERS[index % 2] not in self.dead:
            self.dead[OWNERS[index % 2]] = None
            self.say(AGENT, "process_ended", OWNERS[index % 2])
        else:
            self.user(what, index)

    def fire(self, index: int) -> None:
        at, key = self.timers.pop(index % len(self.timers))
        self.now = max(self.now, at)
        self.manager.on_timer(self.now, key)
        self.absorb()

    def settle(self) -> None:
        """All that was said is heard, and nobody dies any more."""
        for actor_id in list(self.registered):
            self.user("create", list(self.registered).index(actor_id))
        for _ in range(3000):
            if any(self.links.values()):
                self.hear(0)
            elif self.to_node:
                self.node(5)
            elif not all(worker.started for worker in self.processes.values()):
                self.work(5)
            elif self.timers:
                self.fire(0)
            else:
                return
        raise AssertionError("it never comes to rest")


@settings(max_examples=300)
@given(st.integers(0, 1 << 30), st.integers(20, 250))
def test_random_walk_every_actor_lives_in_one_process_or_is_dead_in_none_and_all_know_it(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    world = Walk()
    for _ in range(steps):
        world.step("owner dies" if rng.random() < 0.004 else rng.choice(STEPS), rng.randrange(12))
    world.settle()
    living = {worker.actor_id: worker for worker in world.processes.values()}
    assert len(living) == len(world.processes)
    for actor in world.manager.actors.values():
        if actor.state is ActorState.DEAD:
            assert actor.id not in living
            continue
        assert actor.state is ActorState.ALIVE and living.pop(actor.id).id == actor.worker_id
        for peer in actor.subscribers:
            update = world.told[peer, actor.id]
            assert (update.state, update.worker_id) == ("ALIVE", actor.worker_id)
        assert actor.owner[0] not in world.dead or actor.detached
    assert not living, "no process is left of an actor that is dead or forgotten"
