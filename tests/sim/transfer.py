"""The bytes between simulated nodes: chunks that take time, come late, fail half way, or never come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from zlib import crc32

from .world import SimulationError

if TYPE_CHECKING:
    from .servers import AgentBody


class Fetch:
    """An object on its way."""

    def __init__(
        self, object_id: bytes, endpoint: str, ticket: int, size: int, received: int, place: tuple[Any, ...], checksum: int
    ) -> None:
        self.object_id = object_id
        self.endpoint = endpoint
        self.ticket = ticket
        self.size = size
        self.received = received
        self.place = place
        self.checksum = checksum
        self.asked = 0  # how many chunks so far


class ByteService:
    """What ``TransferService`` is in a real node.

    Args:
        body: the process of the agent.
    """

    def __init__(self, body: AgentBody) -> None:
        self.body = body
        self.endpoint = f"bytes://{body.name}"
        self.served: dict[int, tuple[bytes, tuple[Any, ...]]] = {}
        self.fetches: dict[bytes, Fetch] = {}
        self._world = body.world
        self._sending: dict[int, int] = {}  # ticket -> chunks that the network still reads from there
        self._partial: dict[int, list[tuple[ByteService, Fetch, int]]] = {}  # tickets of what still comes, and who waits for more

    # -- sending --------------------------------------------------------------------------------------------------

    def serve(self, ticket: int, object_id: bytes, place: tuple[Any, ...], whole: bool) -> None:
        self.served[ticket] = (object_id, place)
        if not whole:
            self._partial[ticket] = []

    def serve_rest(self, ticket: int) -> None:
        for waiting in self._partial.pop(ticket, ()):
            self.answer(*waiting)

    def _pass_on(self, object_id: bytes) -> None:
        """More of an object has come: others may wait for that."""
        for ticket in [ticket for ticket in self._partial if self.served[ticket][0] == object_id]:
            waiting, self._partial[ticket] = self._partial[ticket], []
            for each in waiting:
                self.answer(*each)

    def _here(self, ticket: int) -> int:
        """How many bytes of an object that still comes can be sent on."""
        coming = self.fetches.get(self.served[ticket][0])
        return coming.received if coming is not None else 0

    def unserve(self, ticket: int) -> None:
        self._world.after(self._world.some(0.001), self._unserved, ticket)

    def _unserved(self, ticket: int) -> None:
        if self._sending.get(ticket):
            self._world.after(0.0005, self._unserved, ticket)
            return
        if self._partial.pop(ticket, None) is None:
            self.read(ticket)  # until now the bytes must have been left alone
        del self.served[ticket]
        self._tell("on_unserved", ticket)

    def read(self, ticket: int) -> bytes:
        object_id, place = self.served[ticket]
        node = self.body.node
        if isinstance(place[0], str):
            return node.disk.read(place[0], place[1], place[3])
        return node.memory.read(place[0], object_id)

    # -- receiving ------------------------------------------------------------------------------------------------

    def fetch(
        self, object_id: bytes, endpoint: str, ticket: int, size: int, received: int, place: tuple[Any, ...], checksum: int
    ) -> None:
        if object_id in self.fetches:
            raise SimulationError(f"{object_id.hex()} is fetched twice at once")
        fetch = self.fetches[object_id] = Fetch(object_id, endpoint, ticket, size, received, place, checksum)
        disk = self.body.node.disk
        if isinstance(place[0], str) and self._world.rng.random() < disk.fails:
            self._fail(fetch, "disk", "no space left on device")
        else:
            self._next(fetch)

    def cancel(self, object_id: bytes) -> None:
        fetch = self.fetches.get(object_id)
        if fetch is not None:
            self._fail(fetch, "cancelled", "nobody wants it any more")

    def _next(self, fetch: Fetch) -> None:
        """Ask for a chunk, or end."""
        world = self._world
        if fetch.received == fetch.size:
            self._world.after(world.some(0.001), self._finish, fetch)
            return
        fetch.asked += 1
        source = self.body.cluster.byte_services.get(fetch.endpoint)
        world.after(world.config.transfer_stall_s, self._stall, fetch, fetch.asked)
        if world.rng.random() < self.body.cluster.links_break:
            world.after(world.some(0.005), self._break, fetch, fetch.asked)
        elif source is not None:
            start = world.network.open_at(self.body.machine, source.body.machine)
            world.at(start + world.some(0.002), source.answer, self, fetch, fetch.asked)

    def answer(self, reader: ByteService, fetch: Fetch, number: int) -> None:
        """In the source: send a chunk."""
        world = self._world
        if not self.body.alive:
            return
        start = world.network.open_at(self.body.machine, reader.body.machine)
        when = start + world.some(0.002)
        known = self.served.get(fetch.ticket)
        if known is None or known[0] != fetch.object_id:
            world.at(when, reader.take, fetch, number, None, self)
            return
        wanted = min(fetch.size, fetch.received + world.config.transfer_chunk_bytes)
        if fetch.ticket in self._partial and wanted > self._here(fetch.ticket):
            self._partial[fetch.ticket].append((reader, fetch, number))
            return
        chunk = self.read(fetch.ticket)[fetch.received : fetch.received + world.config.transfer_chunk_bytes]
        self._sending[fetch.ticket] = self._sending.get(fetch.ticket, 0) + 1
        world.at(world.now + world.some(0.001), self._sent, fetch.ticket)
        world.at(when, reader.take, fetch, number, chunk, self)

    def _sent(self, ticket: int) -> None:
        if self.body.alive:
            self.read(ticket)
            self._sending[ticket] -= 1

    def take(self, fetch: Fetch, number: int, chunk: bytes | None, source: ByteService) -> None:
        """In the receiver: a chunk has come."""
        if not self._waits(fetch, number):
            return
        if chunk is None:
            self._fail(fetch, "ticket", "the source does not know the ticket")
            return
        node = self.body.node
        if isinstance(fetch.place[0], str):
            node.disk.append(fetch.place[0], fetch.received, chunk)
        else:
            node.memory.append(fetch.place[0], fetch.object_id, fetch.received, chunk, fetch.size)
        fetch.received += len(chunk)
        self._pass_on(fetch.object_id)
        self._next(fetch)

    def _finish(self, fetch: Fetch) -> None:
        if not self._waits(fetch, fetch.asked):
            return
        node = self.body.node
        if isinstance(fetch.place[0], str):
            data = node.disk.files[fetch.place[0]][0]
        else:
            data = node.memory.read(fetch.place[0], fetch.object_id)
        if fetch.checksum >= 0 and crc32(data) != fetch.checksum:
            raise SimulationError(f"the bytes of {fetch.object_id.hex()} have another checksum than was offered")
        del self.fetches[fetch.object_id]
        self._tell("on_fetched", fetch.object_id, crc32(data))

    def _waits(self, fetch: Fetch, number: int) -> bool:
        return self.body.alive and self.fetches.get(fetch.object_id) is fetch and fetch.asked == number

    def _stall(self, fetch: Fetch, number: int) -> None:
        if self._waits(fetch, number):
            self._fail(fetch, "link", f"{fetch.endpoint} sent nothing")

    def _break(self, fetch: Fetch, number: int) -> None:
        if self._waits(fetch, number):
            self._fail(fetch, "link", f"the connection to {fetch.endpoint} broke")

    def _fail(self, fetch: Fetch, kind: str, reason: str) -> None:
        del self.fetches[fetch.object_id]
        self._tell("on_fetch_failed", fetch.object_id, fetch.received, kind, reason)

    def _tell(self, event: str, *args: Any) -> None:
        self._world.after(self._world.some(0.0003), self.body.transferred, event, *args)
