"""Several nodes with stores and transfers, and a network between them that the test can break.

Nothing happens by itself: ``run`` carries on what is under way until nothing is. Bytes are not there, but each chunk checks that
its bytes could be: the source still has the object at the place that its ticket is for, and the receiver still has the room.
"""

from __future__ import annotations

import heapq
from typing import Any

from zray.base.config import Config
from zray.base.schema import SCHEMA
from zray.base.wire import Reply, pack, well_formed
from zray.core import effects as e
from zray.core.arena import PAGE
from zray.core.store import PULLS, ObjectStore
from zray.core.transfer import GET, ObjectTransfer

from .reading import drain, process

OWNER = process("owner")
CHUNK = PAGE


class SimNode:
    """One node: the machines, and a body that only keeps books."""

    def __init__(self, net: Net, name: str, pages: int, config: Config, directories: list[str]) -> None:
        self.net = net
        self.agent = process(name)
        self.out: list[Any] = []
        self.dead: dict[bytes, None] = {}
        self.store = ObjectStore(pages * PAGE, config, self.out, self.dead.__contains__, directories)
        self.transfer = ObjectTransfer(self.agent, config, self.out, self.store)
        self.transfer.pushes.endpoint = f"tcp://{name}"
        self.alive = True
        self.served: dict[int, tuple[bytes, Any]] = {}
        self.partial: dict[int, list[tuple[SimNode, bytes]]] = {}  # tickets of what is being brought: who waits for more
        self.fetches: dict[bytes, list[Any]] = {}  # [endpoint, ticket, size, received, place]
        self.cancelled: dict[bytes, None] = {}
        self.answers: dict[int, tuple[bytes, bool, Any]] = {}  # to clients, by request
        self.spills: list[tuple[Any, ...]] = []
        self.restores: list[tuple[Any, ...]] = []
        self.fetched: list[bytes] = []

    def does(self, event: str, *args: Any, **kwargs: Any) -> None:
        """An event of the transfer machine, then the checks, then what it asks for."""
        getattr(self.transfer, event)(self.net.now, *args, **kwargs)
        self.settle()

    def settle(self) -> None:
        while True:
            self.store.check()
            self.transfer.check()
            effects = drain(self.out)
            if not effects:
                return
            for effect in effects:
                self.execute(*effect)

    def execute(self, verb: int, *fields: Any) -> None:
        if verb == e.SEND:
            self.send(*fields)
        elif verb == e.ANSWER:
            self.transfer.on_answer(self.net.now, *fields)
        elif verb == e.TIMER:
            self.net.add_timer(self, *fields)
        elif verb == e.SERVE:
            ticket, object_id, place, whole = fields
            assert ticket not in self.served
            self.served[ticket] = (object_id, place)
            if not whole:
                self.partial[ticket] = []
        elif verb == e.SERVE_REST:
            self.go_on(fields[0])
            self.partial.pop(fields[0], None)
        elif verb == e.UNSERVE:
            del self.served[fields[0]]
            self.go_on(fields[0])
            self.partial.pop(fields[0], None)
            self.net.tasks.append((self, "unserved", fields[0]))
        elif verb == e.FETCH:
            object_id, endpoint, ticket, size, received, place, _ = fields
            assert object_id not in self.fetches, "one fetch of an object at a time"
            self.fetches[object_id] = [endpoint, ticket, size, received, place]
            self.net.tasks.append((self, "chunk", object_id))
        elif verb == e.CANCEL_FETCH:
            self.cancelled[fields[0]] = None
            self.net.go_on()
        elif verb == e.SPILL:
            self.spills.append(fields)
            self.net.tasks.append((self, "spilled", None))
        elif verb == e.RESTORE:
            self.restores.append(fields)
            self.net.tasks.append((self, "restored", None))
        else:
            assert verb in (e.COLLECT, e.DELETE_FILE), verb

    def send(self, peer: bytes, message: Any) -> None:
        packed = pack(message)
        assert well_formed(packed), message
        if peer in self.net.nodes:
            self.net.tasks.append((self.net.nodes[peer], "message", (self.agent, packed)))
        elif isinstance(message, Reply):
            assert message.request_id not in self.answers, "a request is answered once"
            self.answers[message.request_id] = (peer, message.ok, message.value)

    def go_on(self, ticket: int) -> None:
        """Whoever waits for more of an object looks again."""
        for node, object_id in self.partial.get(ticket, ()):
            self.net.tasks.append((node, "chunk", object_id))
        self.partial[ticket] = []

    def here(self, ticket: int, object_id: bytes, size: int) -> int:
        """How much of an object can be sent."""
        if ticket not in self.partial:
            return size
        return int(self.fetches[object_id][3]) if object_id in self.fetches else 0

    # -- what tests do ----------------------------------------------------------------------------------------------

    def make(self, object_id: bytes, pages: int = 1, owner: bytes = OWNER) -> None:
        """A task of this node makes an object."""
        request = self.net.request()
        self.store.create(self.net.now, OWNER, request, object_id, pages * PAGE)
        self.settle()
        self.net.run()
        assert self.answers[request][1], self.answers[request]
        self.store.seal(object_id, owner)
        self.settle()

    def pin(
        self, object_id: bytes, source: SimNode, pages: int = 1, *, peer: bytes = b"", priority: int = GET
    ) -> int:
        """A client of this node wants to read; returns the number of its request."""
        request = self.net.request()
        reader = peer or process("reader")
        options: Any = {"size": pages * PAGE, "primary": source.agent, "owner": OWNER, "priority": priority}
        self.does("pin", reader, request, object_id, **options)
        return request

    def unpin(self, object_id: bytes, peer: bytes = b"") -> None:
        self.store.unpin(peer or process("reader"), [object_id])
        self.settle()

    def ok(self, request: int) -> bool | None:
        """Whether a pin was answered well; None: not yet."""
        return self.answers[request][1] if request in self.answers else None

    def has(self, object_id: bytes) -> bool:
        return object_id in self.store.objects and self.store.objects[object_id].sealed

    def __repr__(self) -> str:
        return self.agent.decode().rstrip("-")


class Net:
    """The nodes, and what is under way between them."""

    def __init__(self, *names: str, pages: int = 64, directories: tuple[str, ...] = (), **limits: Any) -> None:
        config = Config(spill_threshold=1.0, **limits)
        self.config = config
        self.now = 0.0
        self.tasks: list[tuple[SimNode, str, Any]] = []
        self.timers: list[tuple[float, int, SimNode, Any]] = []
        self.nodes: dict[bytes, SimNode] = {}
        self.log: list[tuple[SimNode, SimNode, Any]] = []  # messages that arrived: from, to, which
        self.lose = 0  # messages that get lost from now on
        self.cut: set[frozenset[bytes]] = set()  # pairs of nodes that can not send bytes to each other
        self._requests = 0
        self._timer_count = 0
        self.chunks = 0
        for name in names:
            node = SimNode(self, name, pages, config, list(directories))
            self.nodes[node.agent] = node

    def node(self, name: str) -> SimNode:
        return self.nodes[process(name)]

    def request(self) -> int:
        self._requests += 1
        return self._requests

    def add_timer(self, node: SimNode, at: float, key: Any) -> None:
        self._timer_count += 1
        heapq.heappush(self.timers, (at, self._timer_count, node, key))

    def run(self, limit: int = 1_000_000) -> None:
        """Carry on until nothing is under way, in order of time; no time passes."""
        while self.tasks and limit:
            limit -= 1
            self.step(0)

    def go_on(self) -> None:
        """Those who wait for what a node does not have yet look whether it comes."""
        for node in self.nodes.values():
            for ticket in list(node.partial):
                node.go_on(ticket)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        self.go_on()
        self.run()
        while self.timers and self.timers[0][0] <= until:
            self.fire()
            self.run()
        self.now = until

    def fire(self) -> None:
        at, _, node, key = heapq.heappop(self.timers)
        self.now = max(self.now, at)
        if not node.alive:
            return
        if key[0].startswith("transfer"):
            node.does("on_timer", key)
        else:
            node.store.on_timer(self.now, key)
            node.settle()

    def step(self, index: int) -> None:
        """Carry on one of the things that are under way."""
        node, what, value = self.tasks.pop(index)
        if not node.alive:
            return
        if what == "message":
            self.deliver(node, *value)
        elif what == "unserved":
            node.does("on_unserved", value)
        elif what == "chunk":
            self.chunk(node, value)
        elif what == "spilled":
            batch_id, directory, rows = node.spills.pop(0)
            node.store.on_spilled(batch_id, f"/d{directory}/{node}-{batch_id}", [(0, 7) for _ in rows])
            node.settle()
        else:
            node.store.on_restored(node.restores.pop(0)[0])
            node.settle()

    def deliver(self, node: SimNode, sender: bytes, packed: tuple[Any, ...]) -> None:
        if self.lose:
            self.lose -= 1
            return
        schema = SCHEMA[packed[0]]
        self.log.append((self.nodes[sender], node, schema.cls(*packed[1:])))
        if sender not in node.dead:
            node.does(schema.handler, sender, *packed[1:])

    def chunk(self, node: SimNode, object_id: bytes) -> None:
        """The body of a node gets one chunk, or learns that it does not."""
        fetch = node.fetches[object_id]
        endpoint, ticket, size, received, place = fetch
        source = self.node(endpoint.removeprefix("tcp://"))
        room = node.store.objects[object_id]
        assert not room.sealed and room.creator == PULLS and place[0] in (room.offset, room.copy and room.copy.path)
        reason = ""
        if object_id in node.cancelled:
            del node.cancelled[object_id]
            reason = "cancelled"
        elif not source.alive or frozenset((source.agent, node.agent)) in self.cut:
            reason = "link"
        elif source.served.get(ticket, (b"",))[0] != object_id:
            reason = "ticket"
        if reason:
            del node.fetches[object_id]
            node.does("on_fetch_failed", object_id, received, reason, f"{reason} of {source}")
            return
        if not reason and source.here(ticket, object_id, size) < min(size, received + CHUNK):
            source.partial[ticket].append((node, object_id))
            return
        where = source.served[ticket][1]
        there = source.store.objects[object_id]
        in_file = there.copy is not None and where[0] == there.copy.path
        assert where[0] == there.offset or in_file, "it is read from where it is not"
        self.chunks += 1
        fetch[3] = received = min(size, received + CHUNK)
        for other, (served, _) in list(node.served.items()):
            if served == object_id and other in node.partial:
                node.go_on(other)
        if received == size:
            del node.fetches[object_id]
            node.cancelled.pop(object_id, None)
            node.fetched.append(object_id)
            node.does("on_fetched", object_id, 7)
        else:
            self.tasks.append((node, "chunk", object_id))

    def kill(self, name: str) -> None:
        """A node is gone, and the others hear of it."""
        node = self.node(name)
        node.alive = False
        self.go_on()
        self.tasks = [task for task in self.tasks if task[0] is not node]
        for other in self.nodes.values():
            if other.alive:
                other.dead[node.agent] = None
                other.does("on_node_died", node.agent, f"{name} died")

    def sent(self, kind: type) -> list[tuple[str, str]]:
        """Who said a message of this kind to whom."""
        return [(repr(a), repr(b)) for a, b, message in self.log if isinstance(message, kind)]


def pull_of(net: Net, name: str, object_id: bytes) -> Any:
    """The pull of an object by a node, or None."""
    return net.node(name).transfer.pulls.pulls.get(object_id)
