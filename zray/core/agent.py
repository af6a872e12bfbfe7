"""NodeAgent: the brain of a node.

Theory of operation
-------------------
The agent joins the scheduler (who gets resources), the worker pool (who runs), and the store (where large objects
lie). Every event ends in ``_advance``: requests that fit are granted resources, granted leases get workers, and when
requests remain, leases of others are called back.

The agent is also the witness of deaths on its machine. The body tells it which processes ended; it frees what they held,
ends the workers that ran tasks for an owner that is gone, and tells those who wanted to know: a process asks for that when it
first deals with another. What the dead have sent may arrive after the news of their death; nothing is given to them any
more, because nobody would give it back.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from zray.base.config import Config
from zray.base.ids import agent_id, agent_of
from zray.base.resources import ResourceSet
from zray.base.wire import (
    Heartbeat,
    LeaseGranted,
    LeaseLost,
    LeaseReclaimed,
    LeaseRejected,
    ProcessDied,
    Reply,
)
from zray.base.wire_nodes import JobEnded, LeaseRedirected
from zray.core.bundles import Bundle, NodeBundles
from zray.core.chance import First
from zray.core.control_desk import ControlDesk
from zray.core.death_watch import DeathWatch
from zray.core.effects import DIAL, HANG_UP, JOINED, KILL_WORKER, LOOK, MEASURE, SEND, STOP, TIMER, WARN, WATCH, Effect
from zray.core.memory import Candidate, verdicts
from zray.core.neighbours import Neighbours
from zray.core.output import OutputDesk
from zray.core.policy import DEFAULT, Rng, Verdict, Waiting, read_locality, readable
from zray.core.scheduler import GrantedLease, LeaseScheduler, Request
from zray.core.spilling import SPILL_TIMER
from zray.core.stopped import StoppedDrivers
from zray.core.store import CREATE_TIMER, ObjectStore
from zray.core.transfer import ObjectTransfer
from zray.core.worker_starts import START_TIMER
from zray.core.workers import Worker, WorkerPool, WorkerState

HEARTBEAT_TIMER = "agent.heartbeat"
MEMORY_TIMER = "agent.memory"
REAP_TIMER = "agent.reap"
SIGN_TIMER = "agent.sign"
HANG_UP_TIMER = "agent.hang_up"
_GOODBYE_S = 1.0  # a driver whose job is over hears that it is
RELIEF_TIMER = "agent.relief"


class NodeAgent(ControlDesk):
    """The brain of one node.

    Args:
        node_id: this incarnation of the node.
        total: its resources.
        store_bytes: size of its object store.
        prestart: workers to keep.
        control: process id of the control process.
        config: limits.
        directories: where objects are spilled to.
        rng: chance, for choices among nodes that are equally good.
        remote: whether the control is another process, which must hear from this one.
        labels: of this node.
    """

    __slots__ = (
        "_config",
        "_control",
        "_control_heard",
        "_ended_for_memory",
        "_heartbeat_set",
        "_me",
        "_memory_watched",
        "_node_id",
        "_reap_set",
        "_relief_at",
        "_remote",
        "_stopped",
        "bundles",
        "clients",
        "deaths",
        "neighbours",
        "out",
        "output",
        "pool",
        "rejoin",
        "scheduler",
        "store",
        "transfer",
    )

    def __init__(
        self,
        node_id: bytes,
        total: ResourceSet,
        store_bytes: int,
        prestart: int,
        control: bytes,
        config: Config,
        directories: list[str] | None = None,
        *,
        rng: Rng | None = None,
        remote: bool = False,
        labels: dict[str, str] | None = None,
    ) -> None:
        self._node_id = node_id
        self._control = control
        self._config = config
        self._me = agent_id(node_id)
        self._remote = remote
        self.rejoin = False  # the cluster gave this node up by mistake, and would have it back
        self._actors: dict[bytes, GrantedLease] = {}  # actor -> its lease
        self._exiting: dict[bytes, str] = {}  # workers whose actors end by their own will, and why
        self._ends: dict[bytes, tuple[int, str, bool]] = {}  # actors that ended lately: incarnation, reason, if by their will
        self._placements = count(1)  # requests of the control for actors
        self._fields: tuple[Any, ...] = ()  # of the registration of this node
        self._registrations = 0
        self._control_heard = float("inf")  # when; nothing is missed before it was heard first
        self._collected = float("-inf")
        self._ended_for_memory: dict[bytes, str] = {}  # workers on their way out, and the report
        self._memory_watched = False
        self._heartbeat_set = False
        self._reap_set = False
        self._relief_at = 0.0  # when the node counts as exhausted; 0: it does not look like that
        self._reported: tuple[dict[str, int], tuple[Any, ...]] = (dict(total), ())  # what is free, in the bundles too
        self.out: list[Effect] = []
        self.clients: dict[bytes, str] = {}  # processes of this node: id -> role
        self.neighbours = Neighbours(node_id, self._me, rng or First(), config.lease_hops_max)
        self.deaths = DeathWatch(self._me, self.out, self.clients.__contains__, self.neighbours.by_agent.__contains__)
        self._stopped = StoppedDrivers(config.health_check_ms / 1000, config.driver_death_s)
        self.neighbours.describe(total, labels or {})
        self.scheduler = LeaseScheduler(total, int.from_bytes(node_id[:4], "big") << 28)
        self.bundles = NodeBundles(
            node_id, control, self.scheduler.resources, self.scheduler.gpus, self.out, self._evict, self._go_on
        )
        self.scheduler.bundles = self.bundles
        self.pool = WorkerPool(prestart, node_id, config, self.out, self.scheduler.holds)
        self.output = OutputDesk(control, config, self.out, self.pool.workers, self._me)
        self.store = ObjectStore(store_bytes, config, self.out, self.deaths.is_dead, directories)
        self.transfer = ObjectTransfer(self._me, config, self.out, self.store, self.neighbours.by_agent)

    def start(self, now: float) -> None:
        """The node is up: fill the pool in the background."""
        self.pool.prestart()
        if self._remote:
            self.out.append((TIMER, now + self._config.health_check_ms / 1000, (SIGN_TIMER,)))

    # -- clients --------------------------------------------------------------------------------------------------

    def on_peer_joined(self, now: float, peer: bytes, role: str, pid: int) -> None:
        """A process introduced itself: one of this node is a client, wherever else it may be known already."""
        if self.deaths.is_dead(peer) or role == "agent" or agent_of(peer) != self._me:
            return
        self.clients[peer] = role
        if role == "driver":
            self.out.append((WATCH, peer, pid))

    def on_process_ended(self, now: float, peer: bytes) -> None:
        """A watched process ended."""
        if self.clients.get(peer) == "driver":
            self._forget(now, peer, "the driver ended")
            self._advance(now)

    def on_driver_started(self, now: float, peer: bytes, driver: bytes, pid: int) -> None:
        """A driver of this machine has registered with the control, and may end before it says a word here."""
        if self.deaths.is_dead(driver):
            self.out.append((SEND, self._control, ProcessDied(driver, self.deaths.dead[driver])))
        else:
            self.on_peer_joined(now, driver, "driver", pid)

    def on_drivers_seen(self, now: float, stopped: list[bytes]) -> None:
        """Which drivers are stopped."""
        for driver in self._stopped.seen(peer for peer in stopped if self.clients.get(peer) == "driver"):
            reason = f"the driver was stopped for {self._config.driver_death_s:g} s (ZRAY_DRIVER_DEATH_S)"
            self.out.append((WARN, f"{reason}: its job is ended"))
            self.out.append((SEND, driver, JobEnded(reason)))
            self._forget(now, driver, reason, at=now + _GOODBYE_S)
            self._advance(now)

    def on_watch_process(self, now: float, peer: bytes, process: bytes) -> None:
        if not self.deaths.is_dead(peer):
            self.deaths.watch(peer, process)

    def on_process_gone(self, now: float, peer: bytes, process: bytes, reason: str) -> None:
        """A process of another node ended."""
        self._forget(now, process, reason)
        self._advance(now)

    def on_job_finished(self, now: float, peer: bytes, job_id: bytes, driver: bytes) -> None:
        """A job is over: end its workers and free what is left of it."""
        self.pool.kill_job(job_id)
        self.output.job_finished(now, job_id)
        self._forget(now, driver, "its job is finished", at=now + _GOODBYE_S)
        self._advance(now)

    # -- workers --------------------------------------------------------------------------------------------------

    def on_worker_ready(self, now: float, peer: bytes, worker_id: bytes, endpoint: str, pid: int) -> None:
        self._serve(self.pool.on_ready(now, worker_id, endpoint, pid))
        self._advance(now)

    def on_worker_late(self, now: float, worker_id: bytes) -> None:
        """A worker has had all the time it may take to start: one that hangs is ended, and another started for it."""
        if self.pool.on_late(worker_id):
            self.out.append((WARN, f"worker {worker_id.hex()} did not start in time and is ended"))

    def on_worker_exited(self, now: float, worker_id: bytes, reason: str) -> None:
        """The body saw a worker process end."""
        worker = self.pool.on_exited(now, worker_id, reason)
        if worker is None:
            return
        lease = self.scheduler.by_worker.get(worker_id)
        shortage = self._ended_for_memory.pop(worker_id, "")
        if lease is not None:
            self.scheduler.end(lease.id)
            if lease.request.actor is not None:
                self._actor_gone(lease, lease.request.actor, shortage or reason)
            elif not self.deaths.is_dead(lease.request.owner):
                lost = LeaseLost(lease.id, shortage or reason, bool(shortage))
                self.out.append((SEND, lease.request.owner, lost))
        self._forget(now, worker_id, reason)
        self.pool.prestart()
        if self.pool.starts.hopeless():
            self._refuse_unstartable()
        self._advance(now)

    def on_worker_stays(self, now: float, peer: bytes, worker_id: bytes) -> None:
        self._serve(self.pool.on_stays(now, worker_id))
        self._advance(now)

    def on_worker_blocked(self, now: float, peer: bytes, worker_id: bytes) -> None:
        if self.scheduler.on_blocked(worker_id):
            self._advance(now)

    def on_worker_unblocked(self, now: float, peer: bytes, worker_id: bytes) -> None:
        self.scheduler.on_unblocked(worker_id)
        self._advance(now)  # what could not be called back while it was blocked can be now

    def on_list_workers(self, now: float, peer: bytes, request_id: int) -> None:
        rows = [(w.id, w.endpoint, w.pid, w.state.name) for w in self.pool.workers.values()]
        self.out.append((SEND, peer, Reply(request_id, True, rows)))

    def on_memory_measured(self, now: float, used: int, limit: int, rss: dict[bytes, int]) -> None:
        """How much memory is used, of how much; ``rss`` of each worker, where there is too little left."""
        leases = [lease for lease in self.scheduler.leases.values() if lease.worker is not None]
        if not leases:
            self._memory_watched = False  # nobody runs anything: the next lease starts the watch again
            return
        self.out.append((TIMER, now + self._config.memory_check_ms / 1000, (MEMORY_TIMER,)))
        candidates = [
            Candidate(lease.worker, rss.get(lease.worker, 0), lease.id, retriable=lease.request.retriable)
            for lease in leases
            if lease.worker is not None and lease.worker not in self._ended_for_memory
        ]
        excess = used - int(limit * self._config.memory_fraction_max)
        pids = {worker.id: worker.pid for worker in self.pool.workers.values()} if excess > 0 else {}
        for worker_id, text in verdicts(excess, used, limit, candidates, pids):
            self._ended_for_memory[worker_id] = text
            self.out.append((KILL_WORKER, worker_id))
            self.out.append((WARN, text))

    # -- leases ---------------------------------------------------------------------------------------------------

    def on_request_lease(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        job_id: bytes,
        resources: dict[str, int],
        depth: int,
        retriable: bool = True,
        strategy: tuple[Any, ...] = ("default",),
        hops: int = 0,
        locality: tuple[Any, ...] = (),
    ) -> None:
        if self.deaths.is_dead(peer):
            return
        demand = ResourceSet(resources)
        if not readable(strategy):
            self.out.append((SEND, peer, LeaseRejected(request_id, "infeasible", f"{strategy!r} is no strategy")))
            return
        if self.neighbours.views or strategy != DEFAULT:
            free, queued = self.scheduler.resources.available, len(self.scheduler.queue)
            near = read_locality(locality) if locality else None
            decision = self.neighbours.choose(free, queued, demand, strategy, hops, self.bundles, near)
            if strategy[0] == "bundle":
                self.bundles.learn(strategy[1])
            if decision.verdict is Verdict.SEND and decision.node is not None:
                node = decision.node
                self.out.append((SEND, peer, LeaseRedirected(request_id, node.agent, node.endpoint)))
                return
            if decision.verdict in (Verdict.INFEASIBLE, Verdict.IMPOSSIBLE):
                kind = "infeasible" if decision.verdict is Verdict.INFEASIBLE else "exhausted"
                self.out.append((SEND, peer, LeaseRejected(request_id, kind, decision.reason)))
                return
        self._meet(peer)
        reason = self.scheduler.request(
            peer, request_id, job_id, demand, depth, retriable=retriable, strategy=strategy
        )
        if reason:
            self.out.append((SEND, peer, LeaseRejected(request_id, "infeasible", reason)))
        else:
            self._advance(now)

    def on_cluster_loads(self, now: float, peer: bytes, rows: list[Any]) -> None:
        """Something else is free on other nodes."""
        self._control_heard = now
        for node_id, available in rows:
            self.neighbours.load(node_id, available)
        self._go_on(now)

    def on_cluster_view(self, now: float, peer: bytes, rows: list[Any]) -> None:
        """Other nodes came, changed, or ended: what waits here may run there. An empty one only says that the control lives."""
        if self._remote and self._control_heard == float("inf"):
            self.out.append((JOINED,))
        self._control_heard = now
        if not rows:
            if self.neighbours.correct():
                self._go_on(now)
            return
        for row in rows:
            node = self.neighbours.update(row)
            if node.alive:
                self.out.append((DIAL, node.agent, node.endpoint))
                self.deaths.heard_of(node.agent)
                continue
            reason = f"its node {node.title()} is dead"
            for process in self.deaths.of_node(node.agent):
                self._forget(now, process, reason)
            self.transfer.on_node_died(now, node.agent, reason)
            self._forget(now, node.agent, reason)
            self.deaths.heard_of(node.agent)
            later = (TIMER, now + self._config.control_death_s, (HANG_UP_TIMER, node.agent))  # the control may answer it
            self.out.append((HANG_UP, node.agent) if self._remote else later)
        self._go_on(now)

    def _evict(self, bundle: Bundle, reason: str) -> None:
        """A bundle is no more: what runs in it ends."""
        for lease in list(self.scheduler.leases.values()):
            if lease.bundle is not bundle:
                continue
            if lease.worker is not None:
                self.pool.kill(self.pool.workers[lease.worker])
                continue
            self.scheduler.end(lease.id)
            self.pool.cancel(lease.id)
            self._refuse(lease.request, reason)

    def _refuse(self, request: Request, reason: str) -> None:
        """What was asked for is not here any more, and never will be; the control may know of another place for an actor."""
        if request.actor is not None:
            self._send_back(request, reason)
            return
        self.scheduler.cancel(request.owner, request.id)
        self.out.append((SEND, request.owner, LeaseRejected(request.id, "exhausted", reason)))

    def _go_on(self, now: float) -> None:
        """There is room, or news: what waits may run here or elsewhere, or never."""
        for request in list(self.scheduler.queue.values()):
            if request.strategy[0] == "bundle":
                decision = self.neighbours.judge(
                    self.scheduler.resources.available, 0, request.demand, request.strategy, 0, self.bundles
                )
                if decision.verdict is Verdict.IMPOSSIBLE:
                    self._refuse(request, decision.reason)
        self._advance(now)
        waiting = [Waiting(request, request.demand, request.strategy) for request in self.scheduler.queue.values()]
        if not waiting:
            return
        free = self.scheduler.resources.available
        for (request, _, _), view, reason in self.neighbours.relocate(free, len(waiting), waiting, self.bundles):
            if request.actor is not None:
                self._send_back(request, reason)
                continue
            self.scheduler.cancel(request.owner, request.id)
            self.out.append((SEND, request.owner, LeaseRedirected(request.id, view.agent, view.endpoint)))

    def on_cancel_lease(self, now: float, peer: bytes, request_id: int) -> None:
        self.scheduler.cancel(peer, request_id)
        for lease in list(self.scheduler.leases.values()):  # granted, but no worker yet
            if lease.worker is None and lease.request.owner == peer and lease.request.id == request_id:
                self.scheduler.end(lease.id)
                self.pool.cancel(lease.id)
        self._advance(now)

    def on_return_lease(self, now: float, peer: bytes, lease_id: int) -> None:
        lease = self.scheduler.leases.get(lease_id)
        if lease is None or lease.request.owner != peer:
            return
        self.scheduler.end(lease_id)
        if lease.worker is not None:
            self._serve(self.pool.on_returned(now, lease.worker))
        self._advance(now)

    def on_node_statistics(self, now: float, peer: bytes, request_id: int) -> None:
        self.out.append((SEND, peer, Reply(request_id, True, self.statistics())))

    def on_explain_lease(self, now: float, peer: bytes, request_id: int, lease_request_id: int) -> None:
        text = f"node {bytes(self._node_id).hex()[:8]}: {self.scheduler.explain(peer, lease_request_id)}"
        self.out.append((SEND, peer, Reply(request_id, True, text)))

    # -- time -----------------------------------------------------------------------------------------------------

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        if key[0] in (CREATE_TIMER, SPILL_TIMER):
            self.store.on_timer(now, key)
        elif key[0] == HEARTBEAT_TIMER:
            self._heartbeat_set = False
            if (self.scheduler.resources.available, self.bundles.rows()) != self._reported:
                self._report()
        elif key[0] == SIGN_TIMER:
            self.on_probe_node(now, self._control)
            silent_s = now - self._control_heard
            if silent_s > self._config.control_death_s:
                self.out.append((STOP, f"the head has been silent for {silent_s:.0f} s"))
            self.out.append((TIMER, now + self._config.health_check_ms / 1000, (SIGN_TIMER,)))
            self.out.append((LOOK,))
        elif key[0] == REAP_TIMER:
            self._reap_set = False
            if self.pool.reap(now):
                self._plan_reaping(now)
        elif key[0] == START_TIMER:
            self.pool.on_rested()
        elif key[0] == MEMORY_TIMER:
            self.out.append((MEASURE,))
        elif key[0] == HANG_UP_TIMER:
            self.out.append((HANG_UP, key[1]))
        elif key[0] == RELIEF_TIMER and self._relief_at and now + 1e-6 >= self._relief_at:
            self._relief_at = 0.0
            self._refuse_exhausted()
            self._advance(now)

    def on_probe_node(self, now: float, peer: bytes) -> None:
        """A sign of life is due."""
        self._report()

    def _report(self) -> None:
        """Tell the control what is free."""
        self._reported = (dict(self.scheduler.resources.available), self.bundles.rows())
        self.out.append((SEND, self._control, Heartbeat(self._node_id, *self._reported)))

    def on_node_refused(self, now: float, peer: bytes, reason: str, rejoin: bool) -> None:
        """The cluster does not want this node any more."""
        if self._remote:  # a head is not told by its own control
            self.rejoin = rejoin
            for driver in [peer for peer, role in self.clients.items() if role == "driver"]:  # the process may live on
                self.out.append((SEND, driver, JobEnded(reason)))
            self.out.append((STOP, reason))

    # -- inside ---------------------------------------------------------------------------------------------------

    def _meet(self, process: bytes) -> None:
        """A process that may be of another node holds something here: it must be noticed when that ends."""
        if agent_of(process) != self._me:
            self.deaths.watch(self._me, process)

    def _advance(self, now: float) -> None:
        """Grant what can be granted; call leases back for the rest."""
        for lease in self.scheduler.grant():
            request = lease.request
            if request.actor is None:
                worker = self.pool.lease(lease.id, request.job_id, request.owner)
            else:
                self._actors[request.actor.actor_id] = lease
                worker = self.pool.dedicate(lease.id, request.job_id)
            if worker is not None:
                self._assign(lease, worker)
        if not self._exhausted():
            self._relief_at = 0.0
        elif not self._relief_at:  # it may only look like that: what wakes a worker can be on its way
            self._relief_at = now + self._config.exhausted_grace_ms / 1000
            self.out.append((TIMER, self._relief_at, (RELIEF_TIMER,)))
        if self.scheduler.queue:
            for lease in self.scheduler.to_reclaim():
                self.out.append((SEND, lease.request.owner, LeaseReclaimed(lease.id)))
        if not self._heartbeat_set and (self.scheduler.resources.available != self._reported[0] or self.bundles.bundles):
            self._heartbeat_set = True
            pause_s = self._config.heartbeat_ms / 1000 * self.neighbours.crowd()
            self.out.append((TIMER, now + pause_s, (HEARTBEAT_TIMER,)))
        self._plan_reaping(now)

    def _exhausted(self) -> bool:
        """Whether every worker is taken by a task that waits for another, and no more may be started for those."""
        if not self.pool.full() or not (self.pool.waiting or self._queued_tasks()):
            return False
        for worker in self.pool.workers.values():
            stays = worker.state is WorkerState.IDLE and (worker.needed or self.scheduler.holds(worker.id))
            if worker.state is not WorkerState.LEASED and not stays:
                return False
        return all(lease.blocked for lease in self.scheduler.by_worker.values())

    def _refuse_exhausted(self) -> None:
        """Waiting would be for ever. What the blocked tasks ask for goes first: that wakes them, and the others may run."""
        granted = {i: self.scheduler.leases[i].request for i in self.pool.waiting}
        requests = [*granted.values(), *self._queued_tasks()]
        own = [request for request in requests if request.owner in self.scheduler.by_worker]
        reason = (
            f"all {len(self.pool.workers)} workers of the node wait for other tasks and no more may be started "
            "(ZRAY_WORKERS_MAX): the tasks are nested too deeply"
        )
        for request in own or requests:
            self.scheduler.cancel(request.owner, request.id)
            self.out.append((SEND, request.owner, LeaseRejected(request.id, "exhausted", reason)))
        for lease_id, request in granted.items():
            if request in own or not own:
                self.scheduler.end(lease_id)
                self.pool.cancel(lease_id)

    def _refuse_unstartable(self) -> None:
        """Workers can not be started: what waits for one fails, unless a worker that is there may serve it later."""
        starts = self.pool.starts
        title = f"node {bytes(self._node_id).hex()[:8]}"
        reason = f"{title} can not start workers: {starts.failures} attempts in a row failed; the last one: {starts.reason}"
        for lease_id in list(self.pool.actors_waiting):
            lease = self.scheduler.leases[lease_id]
            assert lease.request.actor is not None
            self.pool.cancel(lease_id)
            self.scheduler.end(lease_id)
            self._actor_gone(lease, lease.request.actor, reason)
        running = [self.pool.workers[w] for w, lease in self.scheduler.by_worker.items() if not lease.blocked]
        served = {worker.job_id for worker in running if not worker.dedicated}
        for lease_id in [i for i, (job_id, _) in self.pool.waiting.items() if job_id not in served]:
            request = self.scheduler.leases[lease_id].request
            self.scheduler.end(lease_id)
            self.pool.cancel(lease_id)
            self.out.append((SEND, request.owner, LeaseRejected(request.id, "unstartable", reason)))

    def _queued_tasks(self) -> list[Request]:
        """The requests that wait for resources, without those of actors, which have processes of their own."""
        return [request for request in self.scheduler.queue.values() if request.actor is None]

    def _serve(self, served: tuple[int, Worker] | None) -> None:
        if served is not None:
            self._assign(self.scheduler.leases[served[0]], served[1])

    def _assign(self, lease: GrantedLease, worker: Worker) -> None:
        self.scheduler.assign(lease.id, worker.id)
        if not self._memory_watched:
            self._memory_watched = True
            self.out.append((MEASURE,))
        if lease.request.actor is not None:
            self._become(lease, lease.request.actor, worker)
            return
        grant = LeaseGranted(lease.request.id, lease.id, worker.id, worker.endpoint, lease.gpu_ids)
        self.out.append((SEND, lease.request.owner, grant))

    def _plan_reaping(self, now: float) -> None:
        if not self._reap_set and self.pool.resting():
            self._reap_set = True
            self.out.append((TIMER, now + self._config.worker_idle_s, (REAP_TIMER,)))

    def _forget(self, now: float, peer: bytes, reason: str, at: float = 0.0) -> None:
        """A process is gone: undo all it held, and tell the others."""
        if not self.deaths.note(peer, reason):
            return
        known = self.clients.pop(peer, None)
        for lease in self.scheduler.drop_owner(peer):
            # Its worker runs a task that nobody waits for, and may run it for ever.
            self.scheduler.end(lease.id)
            self.pool.cancel(lease.id)
            worker = self.pool.workers.get(lease.worker or b"")
            if worker is not None:
                self.pool.kill(worker)
        self.transfer.drop_client(now, peer)
        if known is not None:
            self.out.append((TIMER, at, (HANG_UP_TIMER, peer)) if at else (HANG_UP, peer))
            self.out.append((SEND, self._control, ProcessDied(peer, reason)))
        self.deaths.ended(peer, reason)

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants of this machine and its leaves."""
        self.deaths.check()
        self.scheduler.check()
        self.bundles.check()
        self.pool.check()
        self.store.check()
        self.transfer.check()

    def statistics(self) -> dict[str, int]:
        return {
            "clients": len(self.clients),
            **self.deaths.statistics(),
            **self.scheduler.statistics(),
            **self.bundles.statistics(),
            **self.pool.statistics(),
            **self.transfer.statistics(),
            **{f"store_{name}": value for name, value in self.store.statistics().items()},
        }
