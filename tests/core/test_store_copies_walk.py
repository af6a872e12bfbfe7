"""ObjectStore: random walks with copies that come from other nodes and objects that are lent to them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from zray.core.arena import PAGE
from zray.core.effects import ANSWER
from zray.core.store import PULLS, PUSHES

from .reading import process, verbs
from .store_bench import OTHER, OWNER, Bench, answers

PRIMARIES = [process("primary"), process("elsewhere"), OTHER]
PEERS = [process(f"peer{n}") for n in range(3)]
EVENTS = ["create", "seal", "copy", "copy", "arrive", "arrive", "pin", "pin", "unpin", "unpin", "lend", "give_back", "free"]
EVENTS += ["withdraw", "lose", "written", "restored", "die", "pass_time", "abort"]
steps = st.lists(
    st.tuples(st.sampled_from(EVENTS), st.integers(0, 4), st.integers(0, 2), st.integers(1, 7)), max_size=80
)


class Life:
    """A store, its clients, and what each of them waits for."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self.bench = Bench(6, directories, grace_s=3.0)
        self.asked: dict[int, bytes] = {}  # requests without an answer, and whose they are
        self.coming: dict[bytes, None] = {}  # room that PULLS has
        self.wanted: dict[int, bytes] = {}  # ... and that it has asked for
        self.now = 0.0

    def does(self, event: str, *args: Any, **kwargs: Any) -> None:
        """An event of the store, and who is answered by it: everybody once."""
        self.bench.does(event, *args, **kwargs)
        self.hear()

    def hear(self) -> None:
        for receiver, request_id, _, _ in answers(self.bench.last):
            assert self.asked.pop(request_id) == receiver
        for client, request_id, ok, value in verbs(self.bench.last, ANSWER):
            assert self.asked.pop(request_id) == client
            object_id = self.wanted.pop(request_id, b"")
            if client == PULLS and ok and value != "exists":
                self.coming[object_id] = None
        for object_id in self.bench.store.copies:
            stored = self.bench.store.objects[object_id]
            assert stored.offset >= 0 or stored.pins, "a copy in a file is there only while it is read"

    def request(self, peer: bytes) -> int:
        self.bench.requests += 1
        self.asked[self.bench.requests] = peer
        return self.bench.requests

    def create(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("create", self.now, PEERS[who], self.request(PEERS[who]), object_id, amount * PAGE)

    def copy(self, object_id: bytes, who: int, amount: int) -> None:
        if object_id not in self.coming and object_id not in self.wanted.values():
            request = self.request(PULLS)
            self.wanted[request] = object_id
            self.does("create", self.now, PULLS, request, object_id, amount * PAGE, "a copy", amount % 3)

    def withdraw(self, object_id: bytes, who: int, amount: int) -> None:
        store = self.bench.store
        waiting = store._demands + (store.objects[object_id].makers if object_id in store.objects else [])
        mine = [d for d in waiting if d.peer == PULLS and d.object_id == object_id]
        for demand in mine:
            del self.wanted[demand.request_id], self.asked[demand.request_id]
        self.does("withdraw", object_id)

    def arrive(self, object_id: bytes, who: int, amount: int) -> None:
        if self.coming.pop(object_id, 0) is None:
            self.does("seal", object_id, OWNER, 7, PRIMARIES[who])

    def lose(self, object_id: bytes, who: int, amount: int) -> None:
        if self.coming.pop(object_id, 0) is None:
            self.does("abort", object_id)

    def seal(self, object_id: bytes, who: int, amount: int) -> None:
        if object_id not in self.coming:
            self.does("seal", object_id, OWNER)

    def abort(self, object_id: bytes, who: int, amount: int) -> None:
        if object_id not in self.coming:
            self.does("abort", object_id)

    def pin(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("pin", PEERS[who], self.request(PEERS[who]), object_id, now=self.now, urgent=amount > 3)

    def unpin(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("unpin", PEERS[who], [object_id])

    def lend(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("lend", self.now, self.request(PUSHES), object_id)

    def give_back(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("unpin", PUSHES, [object_id])

    def free(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("free", [object_id])

    def die(self, object_id: bytes, who: int, amount: int) -> None:
        self.does("drop_client", PRIMARIES[who])

    def pass_time(self, object_id: bytes, who: int, amount: int) -> None:
        self.now += amount
        self.does("on_timer", self.now)

    def written(self, object_id: bytes, who: int, amount: int) -> None:
        if self.bench.spills:
            self.bench.written()
            self.hear()

    def restored(self, object_id: bytes, who: int, amount: int) -> None:
        if self.bench.restores:
            self.bench.restored()
            self.hear()

    def end(self) -> None:
        """Everybody leaves; what is under way comes to its end."""
        for _ in range(9):
            for object_id in list(self.bench.store.objects):
                self.lose(object_id, 0, 0)
                self.abort(object_id, 0, 0)
            while self.bench.spills or self.bench.restores:
                self.written(b"", 0, 0)
                self.restored(b"", 0, 0)
            self.pass_time(b"", 0, 100)
        for process_id in [*PEERS, OWNER]:
            for request in [r for r, peer in self.asked.items() if peer == process_id]:
                raise AssertionError(f"request {request} was not answered")
            self.does("drop_client", process_id)
        for object_id in list(self.bench.store.objects):
            while PUSHES in self.bench.store.objects[object_id].pins if object_id in self.bench.store.objects else False:
                self.give_back(object_id, 0, 0)
            self.free(object_id, 0, 0)
        while self.bench.spills or self.bench.restores:
            self.written(b"", 0, 0)
            self.restored(b"", 0, 0)


@given(steps, st.sampled_from([(), ("/d0",), ("memory://x",)]))
@settings(max_examples=300)
def test_walk_copies_come_and_go_and_nothing_is_left(
    walk: list[tuple[str, int, int, int]], directories: tuple[str, ...]
) -> None:
    life = Life(directories)
    for what, number, who, amount in walk:
        getattr(life, what)(bytes([number]) * 20, who, amount)
    life.end()
    store = life.bench.store
    assert life.asked == {} and store.objects == {} and store.copies == {} and store.arena.used_bytes == 0
    assert store.files.live == {} and store.statistics()["creations_waiting"] == 0
