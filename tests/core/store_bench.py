"""A store with a disk whose outcomes are told by the test, and one call that checks after each event."""

from __future__ import annotations

from typing import Any

from zray.base.config import Config
from zray.base.wire import Reply
from zray.core.arena import PAGE
from zray.core.effects import DELETE_FILE, RESTORE, SPILL
from zray.core.store import ObjectStore

from .reading import drain, process, sent, verbs

CLIENT, OTHER, OWNER = process("client"), process("other"), process("owner")
A, B, C, D, E, F = (bytes([n]) * 20 for n in range(1, 7))


class Bench:
    """A store with directories, and the disk: spills and restores are answered when the test says so."""

    def __init__(
        self,
        pages: int = 4,
        directories: tuple[str, ...] = ("/d0",),
        threshold: float = 1.0,
        file_pages: int = 100,
        grace_s: float = 10.0,
    ) -> None:
        self.dead: dict[bytes, None] = {}
        self.out: list[Any] = []
        config = Config(
            store_full_grace_s=grace_s, spill_threshold=threshold, spill_file_bytes_max=file_pages * PAGE, spill_rest_s=2.0
        )
        self.directories = directories
        self.store = ObjectStore(pages * PAGE, config, self.out, self.dead.__contains__, list(directories))
        self.requests = 0
        self.spills: list[tuple[int, int, list[tuple[int, int]]]] = []  # under way
        self.restores: list[Any] = []  # under way
        self.files: dict[str, None] = {}  # on disk
        self.last: list[Any] = []

    def does(self, event: str, *args: Any, **kwargs: Any) -> list[Any]:
        getattr(self.store, event)(*args, **kwargs)
        self.store.check()
        effects = drain(self.out)
        self.spills += verbs(effects, SPILL)
        self.restores += verbs(effects, RESTORE)
        for (path,) in verbs(effects, DELETE_FILE):
            self.files.pop(path, None)
        self.last = effects
        return effects

    def create(self, object_id: bytes, pages: int = 1, peer: bytes = CLIENT, now: float = 0.0) -> list[Any]:
        self.requests += 1
        return self.does("create", now, peer, self.requests, object_id, pages * PAGE)

    def sealed(self, object_id: bytes, pages: int = 1, owner: bytes = OWNER) -> None:
        assert [a[2] for a in answers(self.create(object_id, pages))] == [True]
        self.does("seal", object_id, owner)

    def pin(self, object_id: bytes, peer: bytes = OTHER, *, urgent: bool = True, now: float = 0.0) -> list[Any]:
        self.requests += 1
        return self.does("pin", peer, self.requests, object_id, now=now, urgent=urgent)

    def written(self) -> list[Any]:
        """The oldest spill succeeds."""
        batch_id, directory, rows = self.spills.pop(0)
        path = f"{self.directories[directory]}/{batch_id}.spill"
        self.files[path] = None
        places, position = [], 0
        for _, size in rows:
            places.append((position, 1000 + position))
            position += size
        return self.does("on_spilled", batch_id, path, places)

    def not_written(self, reason: str = "no space", now: float = 0.0) -> list[Any]:
        """The oldest spill fails."""
        return self.does("on_spill_failed", now, self.spills.pop(0)[0], reason)

    def restored(self) -> list[Any]:
        return self.does("on_restored", self.restores.pop(0)[0])

    def not_restored(self, reason: str = "gone") -> list[Any]:
        return self.does("on_restore_failed", self.restores.pop(0)[0], reason)

    def not_brought(self, reason: str = "no space", now: float = 0.0) -> list[Any]:
        """There is no room for the file into which the oldest restore reads."""
        return self.does("on_restore_refused", now, self.restores.pop(0)[0], reason)

    def state(self, object_id: bytes) -> str:
        return self.store.objects[object_id].state.name

    def on_disk(self, *object_ids: bytes) -> None:
        """Make these of one page each, and have them on disk only."""
        for object_id in object_ids:
            self.sealed(object_id)
        filler = bytes([200]) * 20
        self.create(filler, self.store.arena.capacity // PAGE)
        while self.spills:
            self.written()
        self.does("abort", filler)
        assert {self.state(o) for o in object_ids} == {"ON_DISK"}


def answers(effects: list[Any]) -> list[tuple[bytes, int, bool, Any]]:
    return [(peer, reply.request_id, reply.ok, reply.value) for peer, reply in sent(effects, Reply)]
