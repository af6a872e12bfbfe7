"""ObjectTransfer: random lives of four nodes, with messages that get lost, links that break, and nodes that die."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.core.arena import PAGE
from zray.core.transfer import GET

from .reading import process
from .transfer_bench import OWNER, Net

WRITER = process("writer")
NAMES = ("n0", "n1", "n2", "n3")
EVENTS = ["make", "make", "again", "pin", "pin", "pin", "pin", "unpin", "free", "leave", "lose", "cut", "mend", "die", "time"]
walks = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 3), st.integers(0, 5), st.integers(0, 40)), max_size=60
)
# Fewer things happen, to more who read the same.
CHAIN = ["make", "again", "broadcast", "broadcast", "broadcast", "unpin", "free", "leave", "lose", "cut", "mend", "die", "time"]
chains = st.lists(
    st.tuples(st.sampled_from(CHAIN), st.integers(0, 3), st.integers(0, 5), st.integers(0, 40)), max_size=25
)


class Walk:
    """A random life of four nodes, and what is known of it from outside."""

    def __init__(self, directories: tuple[str, ...], **limits: Any) -> None:
        chosen: dict[str, Any] = {"pages": 6, "pull_bytes_max": 3 * PAGE, "pulls_max": 2, **limits}
        self.net = Net(
            *NAMES, directories=directories, copy_receivers_max=1, transfer_attempts_max=2, store_full_grace_s=3.0, **chosen
        )
        self.size = 4 if chosen["pages"] == 6 else 10  # pages of the largest object
        self.home: dict[bytes, Any] = {}  # objects that exist, and their primary's node
        self.pages: dict[bytes, int] = {}
        self.asked: list[tuple[Any, int, bytes, bytes]] = []  # node, request, object, reader
        self.made = 0
        self.gone: dict[bytes, None] = {}  # readers that ended

    def does(self, what: str, who: int, which: int, amount: int) -> None:
        net = self.net
        node = net.node(NAMES[who])
        known = list(self.home)
        object_id = known[which % len(known)] if known else b""
        if what == "time":
            net.wait(amount / 4)
        elif what == "mend":
            net.cut.clear()
            net.lose = 0
        elif what == "lose":
            net.lose = amount % 4
        elif what == "cut":
            net.cut.add(frozenset((node.agent, net.node(NAMES[which % 4]).agent)))
        elif not node.alive:
            return
        elif what == "die":
            if sum(other.alive for other in net.nodes.values()) > 2 and amount < 20:
                net.kill(NAMES[who])
                self.home = {o: home for o, home in self.home.items() if home is not node}
        elif what == "make":
            self.made += 1
            new = self.made.to_bytes(20, "big")
            self.pages[new] = 1 + amount % self.size
            node.store.create(net.now, OWNER, net.request(), new, self.pages[new] * PAGE)
            node.settle()
            if new in node.store.objects:
                node.store.seal(new, OWNER)
                node.settle()
                self.home[new] = node
        elif what == "leave":
            reader = process(f"{node}-{which % 2}")
            node.does("drop_client", reader)
            self.asked = [row for row in self.asked if row[3] != reader]
        elif known:
            self.does_with(what, node, object_id, process(f"{node}-{amount % 2}"), amount)

    def does_with(self, what: str, node: Any, object_id: bytes, reader: bytes, amount: int) -> None:
        net = self.net
        if what == "pin":
            home = self.home[object_id]
            request = node.pin(object_id, home, self.pages[object_id], peer=reader, priority=amount % 3)
            self.asked.append((node, request, object_id, reader))
        elif what == "broadcast":
            for other in net.nodes.values():
                if other.alive and other is not self.home[object_id]:
                    self.does_with("pin", other, object_id, process(f"{other}-0"), GET)
        elif what == "unpin":
            node.unpin(object_id, reader)
        elif what == "again":  # a task that was tried twice makes here what lies elsewhere
            node.store.create(net.now, WRITER, net.request(), object_id, self.pages[object_id] * PAGE)
            node.settle()
            stored = node.store.objects.get(object_id)
            if amount % 2 and stored is not None and stored.creator == WRITER:
                node.store.seal(object_id, OWNER)
                node.settle()
        else:
            node.does("free", [object_id], self.home.pop(object_id).agent)

    def steps(self, amount: int) -> None:
        """Some of what is under way goes on, in any order; the messages between two nodes stay in order."""
        net = self.net
        for _ in range(amount % 24):
            if net.tasks:
                index = (amount * 7919) % len(net.tasks)
                node, what, value = net.tasks[index]
                if what == "message":
                    index = next(
                        i for i, task in enumerate(net.tasks)
                        if task[0] is node and task[1] == "message" and task[2][0] == value[0]
                    )  # fmt: skip
                elif what in ("spilled", "restored"):
                    index = next(i for i, task in enumerate(net.tasks) if task[0] is node and task[1] == what)
                net.step(index)


@given(walks, st.sampled_from([(), ("/d0",)]))
@settings(max_examples=250, deadline=None)
def test_walk_every_reader_is_answered_and_everything_is_given_back(
    events: list[tuple[str, int, int, int]], directories: tuple[str, ...]
) -> None:
    live(Walk(directories), events)


@given(chains)
@settings(max_examples=250, deadline=None)
def test_walk_of_objects_that_are_passed_on_while_they_come(events: list[tuple[str, int, int, int]]) -> None:
    walk = Walk((), pages=24, pull_bytes_max=100 * PAGE, pulls_max=10, transfer_chunk_bytes=PAGE // 2)
    live(walk, [("make", 0, 0, 9), ("broadcast", 0, 0, 20), *events])


def live(walk: Walk, events: list[tuple[str, int, int, int]]) -> None:
    """Let it all happen, and then come to an end."""
    net = walk.net
    for event in events:
        walk.does(*event)
        walk.steps(event[3])
    net.cut.clear()
    net.lose = 0
    living = [node for node in net.nodes.values() if node.alive]
    for node in living:
        node.does("drop_client", WRITER)
    net.wait(300)
    for node in living:  # who reads lets go; then others that wait for room are served
        for reader in (process(f"{node}-0"), process(f"{node}-1")):
            for object_id in list(node.store.objects):
                while reader in node.store.objects[object_id].pins if object_id in node.store.objects else False:
                    node.unpin(object_id, reader)
    net.wait(300)
    for node, request, _, _ in walk.asked:
        assert not node.alive or node.ok(request) is not None, "every reader is answered"
    for node in living:
        assert node.transfer.pulls.pulls == {} and node.served == {} and node.fetches == {}
        node.does("drop_client", process(f"{node}-0"))
        node.does("drop_client", process(f"{node}-1"))
        assert not any(stored.pins for stored in node.store.objects.values())
    for object_id, home in walk.home.items():
        home.does("free", [object_id])
    for node in living:
        node.does("drop_client", OWNER)
    net.wait(300)
    for node in living:
        assert node.store.objects == {} and node.store.arena.used_bytes == 0, node
        assert node.transfer.pushes.tickets == {} and node.transfer.statistics()["frees_unconfirmed"] == 0


@given(walks)
@settings(max_examples=150, deadline=None)
def test_walk_while_a_primary_lives_and_the_network_works_nothing_is_lost(events: list[tuple[str, int, int, int]]) -> None:
    walk = Walk(("/d0",))
    net = walk.net
    allowed = {"make", "pin", "unpin", "leave", "time"}
    for event in events:
        if event[0] in allowed:
            walk.does(*event)
            walk.steps(event[3])
    for _ in range(3):
        net.wait(100)
        for node in net.nodes.values():
            for reader in (process(f"{node}-0"), process(f"{node}-1")):
                for object_id in list(node.store.objects):
                    node.unpin(object_id, reader)
    for node, request, object_id, _ in walk.asked:
        answered, value = node.ok(request), node.answers.get(request)
        assert answered is not None and (answered or value[2][0] in ("full", "disk")), (object_id, value)
