"""WorkerPool: the worker processes of a node.

Theory of operation
-------------------
As many workers as the node has CPUs are started in the background when the node starts, before anybody asks. A lease takes an
idle worker of its job, else one that no job has used yet (from then on it belongs to that job: modules a job
imported stay loaded, so workers are never shared between jobs), else a new one is started. A worker is never lent to itself:
what it submitted and did not wait for would come to it as to a stranger. Leases that wait for a worker
queue here and are served as workers become ready, in order.

An actor has a worker to itself: one that nobody used before, and nobody will after it. When the actor is gone, its worker is
asked to leave, and stays for as long as others need what it owns. Actors are counted apart (``actors_max``): they must
not take the places of the workers that tasks need, nor tasks theirs.

A worker that ends before it is ready is followed by others, with rests between them (``worker_starts``).

Workers above the prestarted number that stay idle, and idle ones in the way of another job when no more may be started, are
*asked* to leave: a worker that owns what others need says that it stays, because its objects would end with it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from zray.base.config import Config
from zray.base.ids import process_id
from zray.base.wire import ExitWorker
from zray.core.effects import KILL_WORKER, SEND, START_WORKER, Effect
from zray.core.lifecycle import Lifecycle
from zray.core.worker_starts import WorkerStarts
from zray.exceptions import InvariantError


class WorkerState(Enum):
    STARTING = 1
    IDLE = 2
    LEASED = 3
    LEAVING = 4
    ENDING = 5


WORKER_LIFECYCLE = Lifecycle(
    "worker",
    {
        WorkerState.STARTING: "The process was forked and has not said yet that it is ready.",
        WorkerState.IDLE: "It waits for a lease.",
        WorkerState.LEASED: "It is lent to an owner, which pushes tasks to it.",
        WorkerState.LEAVING: "It was asked to end unless somebody needs what it owns; nothing is lent to it meanwhile.",
        WorkerState.ENDING: "It was told to end; its exit has not been seen yet.",
    },
    {
        WorkerState.STARTING: {"ready": WorkerState.IDLE, "killed": WorkerState.ENDING},
        WorkerState.IDLE: {"leased": WorkerState.LEASED, "asked": WorkerState.LEAVING, "killed": WorkerState.ENDING},
        WorkerState.LEASED: {"returned": WorkerState.IDLE, "killed": WorkerState.ENDING},
        WorkerState.LEAVING: {"stays": WorkerState.IDLE, "killed": WorkerState.ENDING},
        WorkerState.ENDING: {"killed": WorkerState.ENDING},
    },
)


class Worker:
    """One worker process."""

    __slots__ = (
        "_unleased",
        "dedicated",
        "endpoint",
        "id",
        "idle_since",
        "job_id",
        "lasting",
        "late",
        "needed",
        "overdue",
        "pid",
        "state",
    )

    def __init__(self, id: bytes, unleased: dict[bytes, Worker] | None = None) -> None:
        self._unleased = unleased if unleased is not None else {}
        self._unleased[id] = self
        self.id = id
        self.state = WorkerState.STARTING
        self.job_id: bytes | None = None
        self.endpoint = ""
        self.pid = 0
        self.idle_since = 0.0
        self.dedicated = False  # to one actor
        self.lasting = False  # ... which outlives its job
        self.late = False  # it was not ready in time, and is ended for that
        self.overdue = False  # it was asked to leave a while ago, and has said nothing
        self.needed = False  # it was asked to leave since its last lease, and stays

    def move(self, event: str) -> None:
        self.state = WORKER_LIFECYCLE.next(self.state, event)
        if self.state is WorkerState.LEASED:
            del self._unleased[self.id]
        else:
            self._unleased[self.id] = self


class WorkerPool:
    """The workers of one node.

    Args:
        prestart: how many to start before anybody asks, and to keep when idle.
        node_id: starts the worker ids this pool makes, so that they are unique in the cluster.
        config: limits.
        out: where effects go.
        holds_leases: whether a worker holds leases itself, as an owner: then it can not leave.
    """

    __slots__ = (
        "_born_for",
        "_config",
        "_dedicated",
        "_finished",
        "_holds_leases",
        "_next",
        "_node_id",
        "_out",
        "_prestart",
        "_unleased",
        "actors_waiting",
        "starts",
        "waiting",
        "workers",
    )

    def __init__(
        self,
        prestart: int,
        node_id: bytes,
        config: Config,
        out: list[Effect],
        holds_leases: Callable[[bytes], bool] = lambda worker_id: False,
    ) -> None:
        self._holds_leases = holds_leases
        self._prestart = prestart
        self._node_id = node_id
        self._config = config
        self._out = out
        self._next = 1
        self.starts = WorkerStarts(config, out)
        self._finished: dict[bytes, None] = {}  # jobs
        self.workers: dict[bytes, Worker] = {}
        self._unleased: dict[bytes, Worker] = {}  # few of them all, so that these can be looked at often
        self._dedicated = 0  # workers of actors
        self.waiting: dict[int, tuple[bytes, bytes]] = {}  # leases that wait for a worker: id -> job and owner
        self.actors_waiting: dict[int, bytes] = {}  # ... of actors, for which no worker was started yet: id -> job
        self._born_for: dict[bytes, int] = {}  # workers that start, and the actor's lease that gets them

    def prestart(self) -> None:
        """Start workers until as many live as the node keeps."""
        ending = sum(1 for w in self._unleased.values() if w.state is WorkerState.ENDING and not w.dedicated)
        alive = self._shared() - ending
        room = self._config.workers_max - self._shared()
        for _ in range(min(self._prestart - alive, room)):
            if not self._may_start():
                return
            self._start()

    def lease(self, lease_id: int, job_id: bytes, owner: bytes = b"") -> Worker | None:
        """A worker for a lease, or None: then the lease waits and ``on_ready`` will name it."""
        worker = self._choose(job_id, owner)
        if worker is not None:
            worker.move("leased")
            worker.job_id = job_id
            return worker
        self.waiting[lease_id] = (job_id, owner)
        self._start_missing()
        return None

    def dedicate(self, lease_id: int, job_id: bytes) -> Worker | None:
        """A worker for an actor, or None: then its lease waits and ``on_ready`` will name it."""
        for worker in self._idle():
            if worker.job_id is None:
                worker.move("leased")
                worker.job_id = job_id
                self._dedicate(worker)
                self.prestart()  # so that the next actor finds one too
                return worker
        self.actors_waiting[lease_id] = job_id
        self._start_for_actors()
        return None

    def resting(self) -> bool:
        """Whether there are workers that may be asked to leave, or were."""
        return any(w.state is WorkerState.IDLE or w.state is WorkerState.LEAVING for w in self._unleased.values())

    def full(self) -> bool:
        """Whether no further worker may be started for tasks."""
        return self._shared() >= self._config.workers_max

    def full_of_actors(self, queued: int) -> bool:
        """Whether no further actor may be placed here, when so many wait for resources."""
        return self._dedicated + len(self.actors_waiting) + queued >= self._config.actors_max

    def cancel(self, lease_id: int) -> None:
        """A lease that waited for a worker is not wanted any more."""
        self.waiting.pop(lease_id, None)
        self.actors_waiting.pop(lease_id, None)
        for worker_id in [w for w, lease in self._born_for.items() if lease == lease_id]:
            del self._born_for[worker_id]
            self.kill(self.workers[worker_id])

    def on_ready(self, now: float, worker_id: bytes, endpoint: str, pid: int) -> tuple[int, Worker] | None:
        """A worker has started; returns the lease that gets it, if one waits."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.STARTING:
            return None
        worker.endpoint = endpoint
        worker.pid = pid
        worker.move("ready")
        worker.idle_since = now
        recovered = self.starts.succeeded()
        if worker.dedicated:
            worker.move("leased")
            served: tuple[int, Worker] | None = (self._born_for.pop(worker_id), worker)
            self._start_for_actors()
        else:
            served = self._serve(worker)
        if recovered:
            self.start()
        return served

    def start(self) -> None:
        """Start what is missing, as far as that is allowed."""
        self._start_for_actors()
        self._start_missing()
        self.prestart()

    def on_rested(self) -> None:
        """It was waited for long enough after a worker that ended before it was ready."""
        self.starts.rested()
        self.start()

    def on_late(self, worker_id: bytes) -> bool:
        """A worker has had all the time it may take to start; whether it is ended for that."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.STARTING:
            return False
        worker.late = True
        self.kill(worker)
        return True

    def on_returned(self, now: float, worker_id: bytes) -> tuple[int, Worker] | None:
        """A lease ended; returns the lease that gets the worker next, if one waits."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.LEASED:
            return None
        worker.move("returned")
        worker.needed = False
        if worker.dedicated:
            self._ask(worker, "its actor is gone")
            return None
        return self._rest(now, worker)

    def on_stays(self, now: float, worker_id: bytes) -> tuple[int, Worker] | None:
        """A worker that was asked to leave owns what others need; returns the lease that gets it, if one waits."""
        worker = self.workers.get(worker_id)
        if worker is None or worker.state is not WorkerState.LEAVING:
            return None
        worker.move("stays")
        worker.needed = True
        return self._rest(now, worker)

    def _rest(self, now: float, worker: Worker) -> tuple[int, Worker] | None:
        worker.idle_since = now
        served = self._serve(worker)
        if served is None:
            self._start_missing()  # those who wait may not have this one, but it can make room
        return served

    def on_exited(self, now: float, worker_id: bytes, reason: str = "") -> Worker | None:
        """A worker process is gone."""
        worker = self.workers.pop(worker_id, None)
        if worker is not None:
            if worker.late:
                self.starts.failed(now, f"it was not ready within {self._config.worker_start_timeout_s:g} s")
            elif worker.state is WorkerState.STARTING:
                self.starts.failed(now, reason)
            lease_id = self._born_for.pop(worker_id, None)
            if lease_id is not None and worker.job_id is not None:  # it never came to be: another must
                self.actors_waiting[lease_id] = worker.job_id
            self._unleased.pop(worker_id, None)
            self._dedicated -= worker.dedicated
            self._start_for_actors()
            self._start_missing()
        return worker

    def kill(self, worker: Worker) -> None:
        """End a worker, whatever it does."""
        worker.move("killed")
        self._out.append((KILL_WORKER, worker.id))

    def kill_job(self, job_id: bytes) -> None:
        """A job is over: its workers go, and new ones take their places. Detached actors stay."""
        self._finished[job_id] = None
        if len(self._finished) > self._config.dead_jobs_max:
            del self._finished[next(iter(self._finished))]  # a worker of an actor that outlived it leaves a little later
        for worker in list(self.workers.values()):
            if worker.job_id == job_id and not worker.lasting and worker.id not in self._born_for:
                self.kill(worker)  # an actor that is not born yet is cancelled by the control, if it is to go
        lasting = {worker.id for worker in self.workers.values() if worker.lasting}
        for lease_id in [i for i, (job, owner) in self.waiting.items() if job == job_id and owner not in lasting]:
            del self.waiting[lease_id]

    def reap(self, now: float) -> bool:
        """Ask idle workers above the number the node keeps to leave; whether any is left to be asked later.

        One that was asked a while ago and has neither ended nor answered hangs: it is ended.
        """
        gone = (WorkerState.LEAVING, WorkerState.ENDING)
        idle = [w for w in self.workers.values() if w.state is WorkerState.IDLE]
        alive = sum(1 for w in self.workers.values() if w.state not in gone and not w.dedicated)
        surplus = min(alive - self._prestart, sum(1 for w in idle if not w.dedicated))
        left = False
        for worker in self.workers.values():
            if worker.state is WorkerState.LEAVING:
                left = True
                if worker.overdue:
                    self.kill(worker)
                worker.overdue = True
        for worker in idle:
            if surplus <= 0 and not worker.dedicated and worker.job_id not in self._finished:
                continue
            rested = worker.idle_since + self._config.worker_idle_s <= now + 1e-6
            if rested and not self._holds_leases(worker.id):
                self._ask(worker, "it was idle")
                surplus -= not worker.dedicated
            left = True
        return left

    # -- inside ---------------------------------------------------------------------------------------------------

    def _dedicate(self, worker: Worker) -> None:
        worker.dedicated = True
        self._dedicated += 1

    def _idle(self) -> list[Worker]:
        """Those that could have a lease, the oldest first, so that the others rest if there are too many."""
        idle = [w for w in self._unleased.values() if w.state is WorkerState.IDLE and not w.dedicated]
        return sorted(idle, key=lambda worker: worker.id) if len(idle) > 1 else idle

    def _choose(self, job_id: bytes, owner: bytes) -> Worker | None:
        fresh = None
        for worker in self._idle():
            if worker.id != owner:
                if worker.job_id == job_id:
                    return worker
                if worker.job_id is None and fresh is None:
                    fresh = worker
        return fresh

    def _serve(self, worker: Worker) -> tuple[int, Worker] | None:
        if worker.dedicated:
            return None
        for lease_id, (job_id, owner) in self.waiting.items():
            if worker.job_id in (None, job_id) and worker.id != owner:
                del self.waiting[lease_id]
                worker.move("leased")
                worker.job_id = job_id
                return lease_id, worker
        return None

    def _start_for_actors(self) -> None:
        """Start workers for actors, so many at the same time."""
        for lease_id in list(self.actors_waiting)[: max(0, self._config.actor_starts_max - len(self._born_for))]:
            if not self._may_start():
                return
            worker = self._start()
            worker.job_id = self.actors_waiting.pop(lease_id)
            self._dedicate(worker)
            self._born_for[worker.id] = lease_id

    def _shared(self) -> int:
        """Workers that are not an actor's."""
        return len(self.workers) - self._dedicated

    def _start_missing(self) -> None:
        states = [w.state for w in self._unleased.values() if not w.dedicated]
        starting = states.count(WorkerState.STARTING)
        ending = states.count(WorkerState.ENDING) + states.count(WorkerState.LEAVING)
        for missing in range(len(self.waiting) - starting, 0, -1):
            if self.full():
                if missing > ending:  # those that end already make room as well
                    self._evict()
                return
            if not self._may_start():
                return
            self._start()

    def _evict(self) -> None:
        """Make room: ask one idle worker, of another job, to leave."""
        for worker in self._idle():
            if not worker.needed and not self._holds_leases(worker.id):
                self._ask(worker, "another job needs its place")
                return

    def _ask(self, worker: Worker, reason: str) -> None:
        worker.move("asked")
        worker.overdue = False
        self._out.append((SEND, worker.id, ExitWorker(reason)))

    def _may_start(self) -> bool:
        """Whether starting workers succeeds, as far as is known, or may be tried."""
        starts = self.starts
        return not starts.failures or starts.allowed(sum(w.state is WorkerState.STARTING for w in self.workers.values()))

    def _start(self) -> Worker:
        worker_id = process_id(self._node_id, self._next.to_bytes(4, "big"))
        self._next += 1
        worker = self.workers[worker_id] = Worker(worker_id, self._unleased)
        self._out.append((START_WORKER, worker_id))
        return worker

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        if self._shared() > self._config.workers_max:
            raise InvariantError(f"{self._shared()} workers, more than the limit")
        if self._unleased != {w.id: w for w in self.workers.values() if w.state is not WorkerState.LEASED}:
            raise InvariantError("workers are leased and not listed so, or the other way round")
        if self._dedicated != sum(w.dedicated for w in self.workers.values()):
            raise InvariantError(f"{self._dedicated} workers are counted as those of actors")
        for worker in self.workers.values():
            if worker.state is WorkerState.LEASED and worker.job_id is None:
                raise InvariantError(f"worker {worker.id.hex()} is leased to no job")

    def statistics(self) -> dict[str, int]:
        counts = {state.name.lower(): 0 for state in WorkerState}
        for worker in self.workers.values():
            counts[worker.state.name.lower()] += 1
        waiting = len(self.waiting) + len(self.actors_waiting) + len(self._born_for)
        return {"workers": len(self.workers), "leases_waiting": waiting, **counts}
