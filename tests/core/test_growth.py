"""What machines remember does not grow with what is over, and an event does not look at what it is not about."""

from __future__ import annotations

from typing import Any

import pytest

from zray.base.ids import agent_id
from zray.base.wire import STORED
from zray.core import recovery

from .owner_bench import WORKER, Bench

FAR = b"far".ljust(16, b"-")


class Looked(dict[Any, Any]):
    """A table that counts how often somebody looks at all of it."""

    scans = 0

    def items(self) -> Any:
        self.scans += 1
        return super().items()

    def values(self) -> Any:
        self.scans += 1
        return super().values()

    def copy(self) -> Any:
        self.scans += 1
        return dict(self)

    def __iter__(self) -> Any:
        self.scans += 1
        return super().__iter__()


# -- owners ---------------------------------------------------------------------------------------------------------


def test_the_death_of_a_worker_makes_nobody_look_at_all_objects() -> None:
    bench = Bench()
    keep = [bench.put(b"1") for _ in range(3)]
    memory, borrowers = Looked(bench.owner.memory), Looked({keep[0].binary(): {FAR: 1}})
    bench.owner.memory, bench.owner.references.borrowers = memory, borrowers
    bench.owner.on_worker_died(0.0, WORKER[0], WORKER[0], "killed")
    assert memory.scans == borrowers.scans == 0
    bench.owner.on_worker_died(0.0, WORKER[0], agent_id(FAR), "its node is dead")
    assert memory.scans > 0, "only a node takes objects with it"


def test_a_thread_may_put_while_the_objects_of_a_lost_node_are_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    memory = bench.owner.memory
    object_id = bench.ids() + bytes(4)
    bench.owner.put(object_id, (STORED, 1 << 20, FAR, ()))
    ref = bench.ref(object_id)
    bench.turn()

    def and_meanwhile(node_id: bytes) -> bytes:
        memory[bench.ids() + bytes(4)] = (STORED, 1 << 20, FAR, ())
        return agent_id(node_id)

    monkeypatch.setattr(recovery, "agent_id", and_meanwhile)
    bench.owner.on_worker_died(0.0, WORKER[0], agent_id(FAR), "its node is dead")
    assert ref.binary() in bench.owner.lost
