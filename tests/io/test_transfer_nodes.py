"""Machines and bytes together: several nodes in one process, with real arenas, files and sockets between them."""

from __future__ import annotations

import heapq
import os
import queue
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transfer_ends import HOST, PATIENCE_S
from zmq.utils.garbage import gc as zero_copy

from zray.base.config import Config
from zray.base.schema import SCHEMA
from zray.base.wire import Reply, decode_plain, encode, pack, well_formed
from zray.core import effects as e
from zray.core.store import ObjectStore
from zray.core.transfer import ObjectTransfer
from zray.io.cluster_key import ClusterKey
from zray.io.spill import LocalDirectory, SpillStorage
from zray.io.storage import Arena, map_file
from zray.io.transfer import TransferService

MB = 1 << 20
OWNER, READER = b"owner".ljust(16, b"-"), b"reader".ljust(16, b"-")
A, B, C = (bytes([n]) * 20 for n in (1, 2, 3))
Calls = queue.SimpleQueue[tuple[Any, ...]]


class FullNode:
    """One node as the runtime joins it, but with all nodes' events in one queue, which the test takes from."""

    def __init__(self, world: World, name: str, size: int, directory: str, key: ClusterKey | None) -> None:
        self.world = world
        self.agent = name.encode().ljust(16, b"-")
        self.alive = True
        self.out: list[Any] = []
        self.answers: dict[int, tuple[bool, Any]] = {}
        self.arena = Arena(f"zray-test-{os.getpid()}-{name}", size)
        self.store = ObjectStore(size, world.config, self.out, lambda process: False, [directory])
        self.transfer = transfer = ObjectTransfer(self.agent, world.config, self.out, self.store)
        now, post = time.monotonic, self.post
        self.spills = SpillStorage([LocalDirectory(directory)], self.arena, name, post)
        self.service = TransferService(
            self.arena, HOST, "", key, post,
            lambda object_id, checksum: transfer.on_fetched(now(), object_id, checksum),
            lambda object_id, count, kind, reason: transfer.on_fetch_failed(now(), object_id, count, kind, reason),
            lambda ticket: transfer.on_unserved(now(), ticket),
            stall_s=2.0,
        )  # fmt: skip
        transfer.pushes.endpoint = self.service.endpoint
        store = self.store
        self.verbs: dict[int, Callable[..., Any]] = {
            e.SEND: self.send,
            e.ANSWER: lambda *fields: transfer.on_answer(now(), *fields),
            e.TIMER: lambda at, key: heapq.heappush(world.timers, (at, next(world.counter), self, key)),
            e.SERVE: self.service.serve,
            e.SERVE_REST: self.service.serve_rest,
            e.UNSERVE: self.service.unserve,
            e.FETCH: self.service.fetch,
            e.CANCEL_FETCH: self.service.cancel,
            e.SPILL: lambda *fields: self.spills.spill(
                *fields, store.on_spilled, lambda b, why: store.on_spill_failed(now(), b, why)
            ),
            e.RESTORE: lambda o, path, position, size, checksum, target: self.spills.restore(
                o,
                (path, position, size, checksum),
                target,
                store.on_restored,
                store.on_restore_failed,
                lambda o, why: store.on_restore_refused(now(), o, why),
            ),
            e.DELETE_FILE: self.spills.delete,
            e.COLLECT: lambda: None,
        }

    def post(self, call: tuple[Any, ...]) -> None:
        self.world.calls.put((self, *call))

    def send(self, peer: bytes, message: Any) -> None:
        if peer in self.world.nodes:
            [packed] = decode_plain(encode([pack(message)]))  # as agents read it
            assert well_formed(packed)
            node = self.world.nodes[peer]
            node.post((getattr(node.transfer, SCHEMA[packed[0]].handler), time.monotonic(), self.agent, *packed[1:]))
        elif isinstance(message, Reply):
            self.answers[message.request_id] = (message.ok, message.value)

    def settle(self) -> None:
        while self.out:
            self.store.check()
            self.transfer.check()
            effects, self.out[:] = list(self.out), []
            for effect in effects:
                self.verbs[effect[0]](*effect[1:])

    def make(self, object_id: bytes, data: bytes) -> None:
        """A task of this node makes an object."""
        request = self.world.request()
        self.store.create(time.monotonic(), OWNER, request, object_id, len(data))
        self.world.until(lambda: request in self.answers)
        offset, _ = self.answers[request][1]
        view: Any = self.arena.buf
        view[offset : offset + len(data)] = data
        self.store.seal(object_id, OWNER)
        self.settle()

    def pin(self, object_id: bytes, source: FullNode, size: int) -> int:
        request = self.world.request()
        self.transfer.pin(
            time.monotonic(), READER, request, object_id, size=size, primary=source.agent, owner=OWNER
        )
        self.settle()
        return request

    def read(self, request: int) -> bytes:
        """What the reader of a pin that was answered sees."""
        ok, place = self.answers[request]
        assert ok, place
        if len(place) == 2:
            view: Any = self.arena.buf
            return bytes(view[place[0] : place[0] + place[1]])
        return bytes(map_file(*place, lambda: None))

    def unpin(self, object_id: bytes) -> None:
        self.store.unpin(READER, [object_id])
        self.settle()

    def die(self) -> None:
        """The node is gone, and the others hear of it."""
        self.close()
        for node in self.world.nodes.values():
            if node.alive:
                node.transfer.on_node_died(time.monotonic(), self.agent, "its node died")
                node.settle()

    def close(self) -> None:
        if self.alive:
            self.alive = False
            self.service.close()
            self.spills.close()
            self.arena.unlink()
            self.arena.close()


class World:
    """The nodes and their events."""

    def __init__(self, path: Path, key: ClusterKey | None, **limits: Any) -> None:
        self.path = path
        self.key = key
        self.config = Config(spill_threshold=1.0, **limits)
        self.calls: Calls = queue.SimpleQueue()
        self.timers: list[Any] = []
        self.counter = iter(range(1 << 60))
        self.nodes: dict[bytes, FullNode] = {}

    def node(self, name: str, size: int = 64 * MB) -> FullNode:
        node = FullNode(self, name, size, str(self.path / name), self.key)
        self.nodes[node.agent] = node
        return node

    def request(self) -> int:
        return next(self.counter)

    def until(self, condition: Callable[[], Any]) -> None:
        """Let things happen until something has."""
        deadline = time.monotonic() + PATIENCE_S
        for node in self.nodes.values():
            if node.alive:
                node.settle()
        while not condition():
            assert time.monotonic() < deadline, [node.transfer.statistics() for node in self.nodes.values()]
            try:
                node, function, *args = self.calls.get(timeout=0.01)
                if node.alive:
                    function(*args)
                    node.settle()
            except queue.Empty:
                pass
            while self.timers and self.timers[0][0] <= time.monotonic():
                _, _, node, key = heapq.heappop(self.timers)
                if node.alive:
                    (node.transfer if key[0].startswith("transfer") else node.store).on_timer(time.monotonic(), key)
                    node.settle()


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def world(key: ClusterKey | None = None, **limits: Any) -> World:
        made.append(World(tmp_path, key, **limits))
        return made[-1]

    yield world
    for each in made:
        for node in each.nodes.values():
            node.close()
    zero_copy.stop()


@pytest.mark.parametrize("keyed", [False, True])
def test_a_broadcast_reaches_all_whole_and_mostly_not_from_the_primary(make: Make, keyed: bool) -> None:
    world = make(ClusterKey.create("127.0.0.1:1") if keyed else None, copy_receivers_max=1)
    primary, *others = (world.node(f"n{n}") for n in range(7))
    data = os.urandom(MB) * 12 + b"end"
    primary.make(A, data)
    requests = {node: node.pin(A, primary, len(data)) for node in others}
    world.until(lambda: all(request in node.answers for node, request in requests.items()))
    assert all(node.read(request) == data for node, request in requests.items())
    assert primary.service.sent_bytes <= 4 * len(data)
    assert sum(node.service.received_bytes for node in others) == 6 * len(data)
    primary.transfer.free(time.monotonic(), [A])
    for node in others:
        node.unpin(A)
    world.until(lambda: not any(node.store.objects for node in world.nodes.values()))


def test_the_source_dies_in_the_middle_and_the_rest_comes_from_another(make: Make) -> None:
    world = make(copy_receivers_max=1, transfer_chunk_bytes=MB)
    primary, holder, reader = (world.node(n, 128 * MB) for n in ("p", "h", "r"))
    data = os.urandom(MB) * 100
    primary.make(A, data)
    request = holder.pin(A, primary, len(data))
    world.until(lambda: request in holder.answers)
    request = reader.pin(A, primary, len(data))  # is sent to the holder
    world.until(lambda: reader.service.received_bytes > 10 * MB)
    holder.die()
    world.until(lambda: request in reader.answers)
    assert reader.read(request) == data
    assert reader.service.received_bytes == len(data), "nothing has come twice"


def test_the_only_source_dies_and_the_reader_hears_of_it(make: Make) -> None:
    world = make()
    primary, reader = world.node("p", 128 * MB), world.node("r", 128 * MB)
    data = bytes(100 * MB)
    primary.make(A, data)
    request = reader.pin(A, primary, len(data))
    world.until(lambda: reader.service.received_bytes > 10 * MB)
    primary.die()
    world.until(lambda: request in reader.answers)
    ok, (kind, text) = reader.answers[request]
    assert not ok and kind == "lost" and "its node died" in text and reader.store.objects == {}
    assert reader.store.arena.used_bytes == 0


def test_what_was_spilled_is_brought_from_its_file_and_damage_is_noticed(make: Make) -> None:
    world = make()
    primary, reader = world.node("p", 4 * MB), world.node("r")
    data = {object_id: os.urandom(3 * MB + object_id[0]) for object_id in (A, B, C)}
    for object_id, value in data.items():
        primary.make(object_id, value)
    assert primary.store.objects[A].state.name == primary.store.objects[B].state.name == "ON_DISK"
    requests = {object_id: reader.pin(object_id, primary, len(value)) for object_id, value in data.items()}
    world.until(lambda: all(request in reader.answers for request in requests.values()))
    assert all(reader.read(requests[object_id]) == value for object_id, value in data.items())
    assert primary.store.objects[A].state.name == "ON_DISK", "its own memory was not needed for that"
    reader.unpin(B)
    reader.store.free([B])
    copy = primary.store.objects[B].copy
    assert copy is not None
    with open(copy.path, "r+b") as file:
        file.seek(copy.position + MB)
        file.write(b"damage")
    request = reader.pin(B, primary, len(data[B]))
    world.until(lambda: request in reader.answers)
    ok, (kind, text) = reader.answers[request]
    assert not ok and kind == "lost" and "checksum" in text


def test_what_is_larger_than_the_store_is_read_in_a_file(make: Make) -> None:
    world = make()
    primary, reader = world.node("p", 16 * MB), world.node("r", 4 * MB)
    data = os.urandom(MB) * 9 + b"end"
    primary.make(A, data)
    request = reader.pin(A, primary, len(data))
    world.until(lambda: request in reader.answers)
    path, position, size, checksum = reader.answers[request][1]
    assert (position, size, checksum) == (0, len(data), zlib.crc32(data)) and reader.read(request) == data
    reader.unpin(A)
    world.until(lambda: not os.path.exists(path))


def test_more_than_fits_comes_one_after_the_other_and_copies_make_room(make: Make) -> None:
    world = make(pull_bytes_max=4 * MB)
    primary, reader = world.node("p"), world.node("r", 10 * MB)
    data = {bytes([n]) * 20: os.urandom(2 * MB) for n in range(15)}
    for object_id, value in data.items():
        primary.make(object_id, value)
    requests = {object_id: reader.pin(object_id, primary, 2 * MB) for object_id in data}
    while requests:
        world.until(lambda: any(request in reader.answers for request in requests.values()))
        for object_id, request in list(requests.items()):
            if request in reader.answers:
                assert reader.read(request) == data[object_id]
                del requests[object_id]
                reader.unpin(object_id)
    assert len(reader.store.copies) == 5
    world.until(lambda: primary.transfer.statistics()["copies_elsewhere"] == 5 and not primary.transfer.pushes.tickets)
