"""CopySearch: several agents, each with a store, and owners who have lost primaries."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zray.base.config import Config
from zray.base.ids import agent_id
from zray.base.resources import ResourceSet
from zray.base.schema import SCHEMA
from zray.base.wire import pack
from zray.base.wire_transfer import CopiesFound, FreePrimaries
from zray.core.copy_search import CopySearch
from zray.core.effects import SEND
from zray.core.store import PULLS, ObjectStore
from zray.core.views import NodeView

from .reading import drain, process

OWNER, GONE = process("owner"), process("gone")
NOTHING = ResourceSet({})


class Agents:
    """The searches of some nodes, and the messages between them, which the test delivers one by one."""

    def __init__(self, count: int) -> None:
        self.nodes = [bytes([n]) * 16 for n in range(count)]
        self.ids = [agent_id(node) for node in self.nodes]
        self.outs: list[list[Any]] = [[] for _ in range(count)]
        self.others: list[dict[bytes, NodeView]] = []
        for me in range(count):
            views = [NodeView(n, agent_id(n), f"sim://{n[0]}", NOTHING, NOTHING) for n in self.nodes if n != self.nodes[me]]
            self.others.append({view.agent: view for view in views})
        self.stores = [ObjectStore(1 << 24, Config(), out, lambda peer: False) for out in self.outs]
        self.searches = [CopySearch(*parts) for parts in zip(self.outs, self.stores, self.others, strict=True)]
        self.links: dict[tuple[int, int], list[Any]] = {}
        self.found: dict[bytes, list[Any]] = {}  # object -> what owners were told
        self.freed: list[tuple[int, bytes]] = []
        self.dead: list[int] = []

    def copy(self, at: int, object_id: bytes) -> None:
        store = self.stores[at]
        store.create(0.0, PULLS, 1, object_id, 4096)
        store.seal(object_id, OWNER, 0, GONE)
        drain(self.outs[at])

    def primary(self, at: int, object_id: bytes, owner: bytes = OWNER) -> None:
        store = self.stores[at]
        store.create(0.0, owner, 1, object_id, 4096)
        store.seal(object_id, owner)
        drain(self.outs[at])

    def find(self, at: int, *object_ids: bytes) -> None:
        self.searches[at].on_find_copies(0.0, OWNER, list(object_ids))
        self.post()

    def post(self) -> None:
        for me, out in enumerate(self.outs):
            self.searches[me].check()
            for effect in drain(out):
                if effect[0] != SEND:
                    continue
                message = pack(effect[2])
                name = SCHEMA[message[0]].cls
                if name is CopiesFound:
                    for object_id, *place in message[1]:
                        self.found.setdefault(object_id, []).append(tuple(place))
                elif name is FreePrimaries:
                    self.freed += [(self.ids.index(effect[1]), o) for o in message[1]]
                elif effect[1] in self.ids:
                    self.links.setdefault((me, self.ids.index(effect[1])), []).append(message)

    def deliver(self, rng: random.Random | None = None) -> bool:
        """One message arrives; False if there is none on its way."""
        ways = [way for way, messages in self.links.items() if messages]
        if not ways:
            return False
        way = rng.choice(ways) if rng else ways[0]
        message = self.links[way].pop(0)
        if way[1] not in self.dead and way[0] not in self.dead:
            schema = SCHEMA[message[0]]
            getattr(self.searches[way[1]], schema.handler)(0.0, self.ids[way[0]], *message[1:])
            self.post()
        return True

    def settle(self) -> None:
        while self.deliver():
            pass

    def kill(self, node: int) -> None:
        self.dead.append(node)
        for me in range(len(self.nodes)):
            if me not in self.dead:
                self.others[me].pop(self.ids[node], None)
                self.searches[me].on_node_died(self.ids[node])
        self.post()


A, B = b"a" * 20, b"b" * 20


def test_a_copy_at_home_is_adopted_without_a_question() -> None:
    agents = Agents(3)
    agents.copy(0, A)
    agents.find(0, A)
    assert agents.found == {A: [(True, b"", "")]} and not agents.links and A not in agents.stores[0].copies


def test_one_of_those_who_have_a_copy_is_chosen_and_the_others_keep_theirs() -> None:
    agents = Agents(4)
    for at in (1, 2, 3):
        agents.copy(at, A)
    agents.find(0, A, B)
    agents.settle()
    [(found, node, endpoint)] = agents.found[A]
    assert found and endpoint == f"sim://{node[0]}" and agents.found[B] == [(False, b"", "")]
    assert sum(A in store.copies for store in agents.stores) == 2
    assert not agents.searches[0].searches


def test_a_single_node_knows_at_once_that_there_is_none() -> None:
    agents = Agents(1)
    agents.find(0, A)
    assert agents.found == {A: [(False, b"", "")]}


@pytest.mark.parametrize("at", [0, 1])
def test_a_primary_that_could_not_be_read_from_one_node_is_where_it_was(at: int) -> None:
    agents = Agents(3)
    agents.primary(at, A)
    agents.find(0, A)
    agents.settle()
    place = (True, agents.nodes[at], f"sim://{at}") if at else (True, b"", "")
    assert agents.found == {A: [place]} and not agents.freed and agents.stores[at].objects[A].usable


def test_a_single_node_that_has_the_primary_says_so() -> None:
    agents = Agents(1)
    agents.primary(0, A)
    agents.find(0, A)
    assert agents.found == {A: [(True, b"", "")]}


@pytest.mark.parametrize("at", [0, 1])
def test_a_copy_elsewhere_is_of_more_use_than_a_primary_that_could_not_be_read(at: int) -> None:
    agents = Agents(3)
    agents.primary(at, A)
    agents.copy(2, A)
    agents.find(0, A)
    agents.settle()
    assert agents.found == {A: [(True, agents.nodes[2], "sim://2")]}


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("why", ["freed", "another owner", "not complete"])
def test_a_primary_of_no_use_is_not_found(at: int, why: str) -> None:
    agents = Agents(3)
    store = agents.stores[at]
    if why == "not complete":
        store.create(0.0, OWNER, 1, A, 4096)
    else:
        agents.primary(at, A, GONE if why == "another owner" else OWNER)
    store.pin(GONE, 2, A)
    drain(agents.outs[at])
    agents.find(0, A)
    if why == "freed":  # while others are asked, or because it is damaged; somebody reads it still
        store.objects[A].freed = True
    agents.settle()
    assert agents.found == {A: [(False, b"", "")]}


def test_a_primary_whose_node_dies_while_others_are_asked_is_lost() -> None:
    agents = Agents(3)
    agents.primary(1, A)
    agents.find(0, A)
    while not agents.searches[0].searches[A].keeper:
        assert agents.deliver()
    agents.kill(1)
    agents.settle()
    assert agents.found == {A: [(False, b"", "")]}


def test_a_copy_that_was_dropped_meanwhile_is_looked_for_elsewhere() -> None:
    agents = Agents(3)
    agents.copy(1, A)
    agents.copy(2, A)
    agents.find(0, A)
    while agents.searches[0].searches[A].chosen == b"":
        assert agents.deliver()
    chosen = agents.ids.index(agents.searches[0].searches[A].chosen)
    agents.stores[chosen].free([A])
    agents.settle()
    assert [found for found, *_ in agents.found[A]] == [True]


def test_a_node_that_dies_has_answered() -> None:
    agents = Agents(2)
    agents.copy(1, A)
    agents.find(0, A)
    agents.kill(1)
    agents.settle()
    assert agents.found == {A: [(False, b"", "")]}


def test_what_is_adopted_for_an_owner_that_has_died_is_freed() -> None:
    agents = Agents(2)
    agents.copy(1, A)
    agents.find(0, A)
    agents.deliver()
    agents.deliver()
    agents.searches[0].drop_client(OWNER)
    agents.settle()
    assert agents.found == {} and agents.freed == [(1, A)]


@pytest.mark.parametrize("seed", range(60))
def test_every_question_has_one_answer_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    agents = Agents(rng.randint(2, 5))
    objects = [bytes([n]) * 20 for n in range(5)]
    for object_id in objects:
        for at in range(len(agents.nodes)):
            if rng.random() < 0.4:
                agents.copy(at, object_id)
            elif rng.random() < 0.2:
                agents.primary(at, object_id)
    agents.find(0, *objects)
    for _ in range(60):
        what = rng.random()
        if what < 0.05 and len(agents.dead) < len(agents.nodes) - 1:
            agents.kill(rng.choice([n for n in range(1, len(agents.nodes)) if n not in agents.dead]))
        elif what < 0.15:
            agents.stores[rng.randrange(len(agents.nodes))].free([rng.choice(objects)])
        else:
            agents.deliver(rng)
    agents.settle()
    assert sorted(agents.found) == objects and all(len(told) == 1 for told in agents.found.values())
    assert not agents.searches[0].searches
