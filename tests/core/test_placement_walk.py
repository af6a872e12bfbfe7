"""PlacementGroupManager and NodeBundles on a random walk: nodes that die, views that are old, words that overtake each other."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.base import wire
from zray.base.config import Config
from zray.base.resources import UNIT, NodeResources, ResourceSet
from zray.base.wire import Reply
from zray.core.bundles import Bundle, BundleState, NodeBundles
from zray.core.effects import AFTER_PERSIST, SEND
from zray.core.gpus import GpuSlots
from zray.core.packing import STRATEGIES, pack_bundles
from zray.core.placement import GroupState, PlacementGroupManager
from zray.core.views import NodeView

from .reading import CONTROL, drain, process, timers

OWNER = process("owner")
JOBS = [b"job1", b"job2"]
STEPS = ["register"] * 3 + ["remove", "wait", "subscribe", "join", "lend", "lend", "end", "timer"] + ["view"] * 3 + ["hear"] * 20


class Machine:
    """A node: its bundles, and leases outside and inside of them."""

    def __init__(self, world: Walk, number: int, cpus: int, gpus: int) -> None:
        self.id = b"node-%02d---------" % number
        self.agent = b"agent-%02d--------" % number
        self.total = ResourceSet.of({"CPU": cpus, "GPU": gpus})
        self.resources = NodeResources(self.total)
        self.gpus = GpuSlots(gpus)
        self.out: list[Any] = []
        self.leases: list[tuple[ResourceSet, Bundle | None, tuple[int, ...]]] = []
        self.bundles = NodeBundles(
            self.id, CONTROL, self.resources, self.gpus, self.out, self.evict, lambda now: None
        )

    def evict(self, bundle: Bundle, reason: str) -> None:
        """The processes of its leases end, and with them the leases, at some time."""

    def lend(self, rng: random.Random) -> None:
        demand = ResourceSet.of({"CPU": 1, "GPU": rng.choice([0, 0, 1])})
        taken = self.bundles.take(rng.choice([g for g, _ in self.bundles.bundles] or [b""]), -1, demand)
        if taken is not None:
            self.leases.append((demand, *taken))
        elif self.resources.fits(demand):
            gpu_ids = self.gpus.assign(demand["GPU"]) if demand["GPU"] else ()
            if gpu_ids is not None:
                self.resources.acquire(demand)
                self.leases.append((demand, None, gpu_ids))

    def end(self, index: int) -> None:
        demand, bundle, gpu_ids = self.leases.pop(index)
        if bundle is not None:
            bundle.give(demand, gpu_ids)
        else:
            self.resources.release(demand)
            self.gpus.release(gpu_ids, demand["GPU"])

    def check(self) -> None:
        self.bundles.check()
        self.gpus.check()
        for name, total in self.total.items():
            outside = [d for d, b, _ in self.leases if b is None or b.state is BundleState.RETURNED]
            lent = sum(demand[name] for demand in outside)
            assert self.resources.available[name] + lent + self.bundles.reserved()[name] == total


class Walk:
    """The manager, the nodes, and the links between them, each of which keeps its order."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.out: list[Any] = []
        self.views: dict[bytes, NodeView] = {}
        config = Config(infeasible_grace_s=2.0, dead_placement_groups_max=3)
        self.manager = PlacementGroupManager(config, self.out, lambda: self.views)
        self.now = 0.0
        self.count = 0
        self.machines: dict[bytes, Machine] = {}  # by agent
        self.down: dict[bytes, list[Any]] = {}  # control -> agent
        self.up: dict[bytes, list[Any]] = {}
        self.timers: list[tuple[float, Any]] = []
        self.waiting: dict[int, bytes] = {}
        self.answered: dict[int, Any] = {}
        self.removed: dict[bytes, None] = {}
        for _ in range(3):
            self.join(0)

    def absorb(self) -> None:
        self.manager.check()
        effects = drain(self.out)
        for effect in effects:
            if effect[0] in (SEND, AFTER_PERSIST):
                peer, message = effect[1], effect[2]
                assert wire.well_formed(wire.pack(message))
                if isinstance(message, Reply):
                    if message.request_id in self.waiting:
                        self.waiting.pop(message.request_id)
                        self.answered[message.request_id] = message
                elif peer in self.machines:
                    self.down.setdefault(peer, []).append(message)
        self.timers += timers(effects)
        for machine in self.machines.values():
            for effect in drain(machine.out):
                assert effect[:2] == (SEND, CONTROL)
                self.up.setdefault(machine.agent, []).append(effect[2])
            machine.check()

    def deliver(self, agent: bytes, message: Any) -> None:
        handler = wire.SCHEMA[wire.OPS[type(message)]].handler
        if agent in self.machines and message in self.down.get(agent, []):
            self.down[agent].remove(message)
            getattr(self.machines[agent].bundles, handler)(self.now, CONTROL, *message)
        else:
            self.up[agent].remove(message)
            getattr(self.manager, handler)(self.now, agent, *message)
        self.absorb()

    def hear(self, index: int) -> None:
        links = [(agent, words[0]) for link in (self.down, self.up) for agent, words in link.items() if words]
        if links:
            self.deliver(*links[index % len(links)])

    def view(self, index: int) -> None:
        """What a node says of what is free arrives."""
        machines = list(self.machines.values())
        if machines:
            machine = machines[index % len(machines)]
            self.views[machine.id].available = ResourceSet(machine.resources.available)
            self.manager.nodes_changed(self.now)
            self.absorb()

    def join(self, index: int) -> None:
        if len(self.machines) < 5:
            self.count += 1
            machine = Machine(self, self.count, self.rng.randint(1, 4), self.rng.randint(0, 2))
            self.machines[machine.agent] = machine
            self.views[machine.id] = NodeView(machine.id, machine.agent, "", machine.total, machine.total)
            self.manager.nodes_changed(self.now)
            self.absorb()

    def die(self, index: int) -> None:
        if len(self.machines) > 1:
            machine = self.machines.pop(list(self.machines)[index % len(self.machines)])
            self.down.pop(machine.agent, None)  # what it has said may still arrive
            self.views[machine.id].alive = False
            self.manager.node_ended(self.now, machine.id, machine.agent)
            self.absorb()

    def register(self, index: int) -> None:
        if len(self.manager.groups) >= 8:
            return
        self.count += 1
        rng = self.rng
        bundles = [{"CPU": UNIT * rng.randint(1, 2), "GPU": UNIT * rng.choice([0, 0, 1])} for _ in range(rng.randint(1, 3))]
        what = (b"", "", "space", index == 0, rng.choice(STRATEGIES), bundles, [])
        group_id = b"group-%02d--------" % self.count
        self.manager.on_register_placement_group(self.now, OWNER, 0, group_id, rng.choice(JOBS), *what)

    def step(self, what: str, index: int) -> None:
        self.now += 0.01
        groups = list(self.manager.groups.values())
        machines = list(self.machines.values())
        if what in ("register", "hear", "view", "join", "die"):
            getattr(self, what)(index)
        elif what == "timer" and self.timers:
            self.fire(index)
        elif what == "lend":
            machines[index % len(machines)].lend(self.rng)
        elif what == "end" and machines[index % len(machines)].leases:
            machines[index % len(machines)].end(0)
        elif what == "job ends":
            self.manager.job_finished(self.now, JOBS[index % 2])
        elif groups:
            group = groups[index % len(groups)]
            if what == "remove":
                self.manager.on_remove_placement_group(self.now, OWNER, 0, group.id)
            elif what == "wait":
                self.count += 1
                self.waiting[self.count] = group.id
                self.manager.on_wait_placement_group(self.now, OWNER, self.count, group.id, self.rng.choice([-1.0, 0.5]))
            elif what == "subscribe":
                machines[index % len(machines)].bundles.learn(group.id)
        self.absorb()

    def fire(self, index: int) -> None:
        at, key = self.timers.pop(index % len(self.timers))
        self.now = max(self.now, at)
        self.manager.on_timer(self.now, key)
        self.absorb()

    def settle(self) -> None:
        """All that was said is heard, all leases end, and nodes die no more."""
        for machine in self.machines.values():
            while machine.leases:
                machine.end(0)
        end = self.now + 5
        for _ in range(3000):
            if any(self.down.values()) or any(self.up.values()):
                self.hear(0)
            elif any(self.views[m.id].available != ResourceSet(m.resources.available) for m in self.machines.values()):
                for index in range(len(self.machines)):
                    self.view(index)
            elif self.timers and self.now < end:
                self.timers.sort(key=lambda timer: timer[0])
                self.fire(0)
            else:
                return
        raise AssertionError("it never comes to rest")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(20, 250))
def test_random_walk_every_group_has_all_its_bundles_on_living_nodes_or_none_anywhere(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    world = Walk(rng)
    for _ in range(steps):
        chance = rng.random()
        world.step("die" if chance < 0.01 else "job ends" if chance < 0.012 else rng.choice(STEPS), rng.randrange(12))
    world.settle()
    held: dict[tuple[bytes, int], tuple[bytes, ResourceSet]] = {}
    for machine in world.machines.values():
        for key, bundle in machine.bundles.bundles.items():
            assert key not in held, "one bundle on two nodes"
            assert bundle.state is BundleState.COMMITTED
            held[key] = (machine.id, bundle.resources.total)
        assert ResourceSet(machine.resources.available) == machine.total.minus(machine.bundles.reserved())
    for group in world.manager.groups.values():
        places = [held.pop((group.id, index), None) for index in range(len(group.bundles))]
        if group.state is GroupState.CREATED:
            assert places == list(zip(group.nodes, group.bundles))
            if group.strategy == "STRICT_PACK":
                assert len(set(group.nodes)) == 1
            elif group.strategy == "STRICT_SPREAD":
                assert len(set(group.nodes)) == len(group.nodes)
            continue
        if group.state is not GroupState.REMOVED:
            placed = {index: node for index, node in enumerate(group.nodes) if node}
            assert pack_bundles(world.views, group.bundles, group.strategy, placed=placed).nodes is None, "there is room"
        if group.state is GroupState.RESCHEDULING:
            assert [p and p[0] for p in places] == [node or None for node in group.nodes], "what is left of it stays"
        else:
            assert places == [None] * len(places)
    for group in world.manager.groups.values():
        for machine in world.machines.values():
            known = machine.bundles.groups.get(group.id)
            assert known is None or (known.state, known.nodes) == (group.state.name, tuple(group.nodes))
    assert not held, "nothing is left of groups that were removed"
    for group_id in world.waiting.values():
        assert world.manager.groups[group_id].state in (GroupState.PENDING, GroupState.RESCHEDULING)
