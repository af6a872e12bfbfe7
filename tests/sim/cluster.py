"""The cluster: one control, one node with its shared memory, two drivers, and the workers that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

from zray.base import wire
from zray.base.resources import ResourceSet
from zray.core.agent import NodeAgent
from zray.core.arena import PAGE
from zray.core.gcs import Gcs
from zray.core.owner import Owner

from .bodies import AGENT, CONTROL, NODE, AgentBody, ControlBody, OwnerBody, Steps
from .checkers import Judge
from .processes import DriverBody, WorkerBody
from .world import SimulationError, World


class Memory:
    """The shared memory of the node: which object's bytes lie in each page."""

    def __init__(self) -> None:
        self._pages: dict[int, bytes] = {}
        self._bytes: dict[int, bytes] = {}  # by offset

    def write(self, offset: int, object_id: bytes, data: bytes) -> int:
        for page in range(offset // PAGE, (offset + len(data) + PAGE - 1) // PAGE):
            self._pages[page] = object_id
        self._bytes[offset] = data
        return crc32(data)

    def read(self, offset: int, object_id: bytes) -> bytes:
        data = self._bytes[offset]
        for page in range(offset // PAGE, (offset + len(data) + PAGE - 1) // PAGE):
            if self._pages.get(page) != object_id:
                raise SimulationError(f"the bytes of {object_id.hex()} were overwritten while somebody reads them")
        return data

    def at(self, offset: int) -> tuple[bytes, bytes]:
        """What lies at an offset: whose bytes, and the bytes."""
        object_id = self._pages[offset // PAGE]
        return object_id, self.read(offset, object_id)


class Disk:
    """The spill files. Operations return what will have happened when they are over."""

    def __init__(self, world: World, memory: Memory) -> None:
        self._world = world
        self._memory = memory
        self._serial = 0
        self.files: dict[str, dict[int, bytes]] = {}  # path -> position -> bytes
        self.fails = 0.0  # how likely a file can not be written

    def spill(self, store: Any, batch_id: int, directory: int, rows: list[tuple[int, int]]) -> Callable[[], Any]:
        if self._world.rng.random() < self.fails:
            return lambda: (store.on_spill_failed, self._world.now, batch_id, "no space left on device")
        self._serial += 1
        path = f"disk{directory}/{self._serial}"
        before = [self._memory.at(offset) for offset, _ in rows]

        def happen() -> Any:
            places, position, content = [], 0, {}
            for (offset, size), (object_id, data) in zip(rows, before, strict=True):
                if self._memory.read(offset, object_id) != data:
                    raise SimulationError(f"{object_id.hex()} changed while it was written to disk")
                content[position] = data
                places.append((position, crc32(data)))
                position += size
            self.files[path] = content
            return store.on_spilled, batch_id, path, places

        return happen

    def restore(
        self, store: Any, object_id: bytes, path: str, position: int, size: int, checksum: int, offset: int
    ) -> Callable[[], Any]:
        def happen() -> Any:
            self._memory.write(offset, object_id, self.read(path, position, checksum))
            return store.on_restored, object_id

        return happen

    def write(self, path: str, data: bytes) -> int:
        self.files[path] = {0: data}
        return crc32(data)

    def read(self, path: str, position: int, checksum: int) -> bytes:
        if path not in self.files:
            raise SimulationError(f"{path} was deleted while somebody needs it")
        data = self.files[path][position]
        if crc32(data) != checksum:
            raise SimulationError(f"{path} at {position} has another checksum than was noted")
        return data

    def delete(self, path: str) -> None:
        self.files.pop(path, None)  # a writer may have died before it made the file


class Cluster:
    """One control, one node, two drivers, and the workers that come and go."""

    def __init__(self, world: World, run_task: Callable[..., Steps], construct: Callable[..., Steps]) -> None:
        self.world = world
        self.judge = Judge(world)
        self.memory = Memory()
        self.disk = Disk(world, self.memory)
        self.short_of_memory = False
        self.may_keep = True  # tasks may leave references in their process
        self.run_task = run_task
        self.construct = construct
        self.workers: dict[bytes, WorkerBody] = {}
        self._starting: dict[bytes, None] = {}
        self._watched: dict[bytes, None] = {}
        rng = world.rng
        cpus = rng.choice([1, 2, 2, 4])
        store_bytes = rng.choice([6 * PAGE, 12 * PAGE, 1 << 22, 1 << 22])
        directories = rng.choice([[], ["disk0"], ["disk0", "disk1"], ["s3://bucket", "disk1"]])
        self.disk.fails = rng.choice([0.0, 0.0, 0.3])
        # Where few workers may be started, an actor that lives hides that all others wait for each other.
        self.with_actors = rng.random() < 0.75 and world.config.workers_max > 100
        self.violent = rng.random() < 0.4  # users kill actors, and actors exit
        self.cpus_for_actors = cpus - 1.0  # the rest is for tasks, which would wait for ever without
        self.judge.small_store = store_bytes < 1 << 20 and (not directories or self.disk.fails > 0)
        prestart = min(rng.choice([0, cpus]), world.config.workers_max)
        gcs = Gcs(b"cluster", world.config, home=AGENT)
        self.control = ControlBody(self, CONTROL, "control", "control", gcs, "control")
        brain = NodeAgent(NODE, ResourceSet.of({"CPU": cpus}), store_bytes, prestart, CONTROL, world.config, directories)
        self.agent = AgentBody(self, AGENT, "agent", "agent", brain, "agent")
        registration = (NODE, "sim://agent", "host", 1, {"CPU": cpus * 10_000}, {}, "arena", store_bytes)
        self.agent.send(CONTROL, wire.RegisterNode(*registration))
        brain.start(0.0)
        self.agent.finish()
        self.drivers = [DriverBody(self, b"driver%d" % n + bytes(9), f"driver{n}") for n in (1, 2)]

    def memory_used(self) -> int:
        """Percent of the machine's memory in use."""
        if self.short_of_memory and self.world.rng.random() < 0.3:
            self.world.faults += 1
            return 99
        return 10

    def start_worker(self, worker_id: bytes) -> None:
        self._starting[worker_id] = None
        self.world.after(0.001 + self.world.some(0.03), self._born, worker_id)

    def _born(self, worker_id: bytes) -> None:
        if worker_id in self._starting:
            del self._starting[worker_id]
            self.workers[worker_id] = WorkerBody(self, worker_id, f"w{int.from_bytes(worker_id[6:10], 'big')}")

    def end_told_worker(self, worker_id: bytes) -> None:
        """The agent wants a worker's process to end."""
        if worker_id in self._starting:
            del self._starting[worker_id]
            self.world.dead[worker_id] = self.world.now
            self.agent.witness("on_worker_exited", worker_id, "ended before it started")
        elif worker_id in self.workers and self.workers[worker_id].alive:
            self.end_worker(self.workers[worker_id], "told to end")

    def end_worker(self, worker: WorkerBody, reason: str, *, politely: bool = False) -> None:
        """A worker's process ends; whether it sends first what it has to say."""
        seen = self.world.end(worker, politely=politely)
        self.world.at(seen, self._exited, worker.id, reason, politely)

    def _exited(self, worker_id: bytes, reason: str, politely: bool) -> None:
        if politely:
            self.agent.turn()  # a process that ends in good order is heard to the end
        self.agent.witness("on_worker_exited", worker_id, reason)

    def end_driver(self, driver: DriverBody) -> None:
        self.judge.finished_jobs[driver.job_id] = None
        self.world.end(driver, politely=False)
        self._tell_end(driver.id)

    def watch(self, process: bytes) -> None:
        """The agent wants to know when a process ends; it may have ended already."""
        self._watched[process] = None
        self._tell_end(process)

    def _tell_end(self, process: bytes) -> None:
        if process in self._watched and process in self.world.dead:
            self.world.after(self.world.some(0.005), self.agent.witness, "on_process_ended", process)

    def budgets(self) -> list[tuple[str, int, int]]:
        """How many calls each process that lives has made, and of how many it has the result."""
        bodies: list[OwnerBody] = [body for body in (*self.drivers, *self.workers.values()) if body.alive]
        return [(b.name, sum(x._taken for x in b.budgets), sum(x._given for x in b.budgets)) for b in bodies]

    def owners(self) -> list[tuple[str, Owner]]:
        """The brains of all drivers and workers that live."""
        bodies: list[OwnerBody] = [*self.drivers, *self.workers.values()]
        return [(body.name, body.owner) for body in bodies if body.alive]
