"""LeaseScheduler: which request for a lease is granted next on a node.

Theory of operation
-------------------
The job with the fewest leases is served first, so that jobs share a node evenly, however much each asks for. The requests of
one job queue by depth, the deepest first, then by age: a child goes before its parents' siblings, so that trees of tasks
finish branch by branch instead of starting all branches at once. A request whose resources are free takes them; one that does
not fit is passed over for the moment. A request that could never fit on this node is refused at once, with the reason. A
worker that blocks in ``get`` lends its CPU out (not its other resources) and takes it back at once when it wakes, even below
zero: nothing is granted until the balance is restored.

While requests wait, leases held by others are called back (``reclaim``): their owners return them when what they pushed is
done. This is what shares a node fairly between owners that could keep it busy for ever.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any

from zray.base.resources import UNIT, NodeResources, ResourceSet, from_units
from zray.base.wire_actors import PlaceActor
from zray.core.bundles import Bundle, BundleState, NodeBundles
from zray.core.gpus import GpuSlots
from zray.exceptions import InvariantError

Shape = tuple[ResourceSet, tuple[Any, ...]]  # of a request: its demand, and the placement group and bundle that it takes from


class Request:
    """An owner wants a lease; with ``actor``, the control wants one for an actor."""

    __slots__ = ("actor", "demand", "depth", "id", "job_id", "owner", "retriable", "sequence", "shape", "strategy")

    def __init__(
        self,
        owner: bytes,
        id: int,
        job_id: bytes,
        demand: ResourceSet,
        depth: int,
        sequence: int,
        retriable: bool,
        strategy: tuple[Any, ...],
    ) -> None:
        self.actor: PlaceActor | None = None
        self.strategy = strategy
        self.shape: Shape = (demand, strategy[1:3] if strategy[0] == "bundle" else ())
        self.owner = owner
        self.id = id
        self.job_id = job_id
        self.demand = demand
        self.depth = depth
        self.sequence = sequence
        self.retriable = retriable


class GrantedLease:
    """Resources that are lent out, with a worker as soon as there is one."""

    __slots__ = ("blocked", "bundle", "gpu_ids", "id", "reclaiming", "request", "worker")

    def __init__(self, id: int, request: Request, gpu_ids: tuple[int, ...], bundle: Bundle | None = None) -> None:
        self.bundle = bundle  # that it takes from, if it is not the node itself
        self.id = id
        self.request = request
        self.gpu_ids = gpu_ids
        self.worker: bytes | None = None
        self.blocked = False
        self.reclaiming = False


Line = list[tuple[int, int, Request]]  # depth (negative) and sequence of each request, in order


class _Turns:
    """The order in which requests are looked at: each time one of the job with the fewest leases, the deepest and oldest.

    Of those of one shape only the first is looked at: if that does not fit, no other does.
    """

    __slots__ = ("_heads", "_held", "_lines")

    def __init__(self, lines: Mapping[bytes, Mapping[Shape, Line]], leases: Iterable[GrantedLease]) -> None:
        self._lines = lines
        self._heads = {job: [line[0] for line in shapes.values()] for job, shapes in lines.items()}
        for heads in self._heads.values():
            heapify(heads)
        self._held: Counter[bytes] = Counter()
        if len(lines) > 1:
            using = (lease.request for lease in leases if not lease.blocked and lease.request.actor is None)
            self._held.update(request.job_id for request in using)

    def next(self) -> Request | None:
        """The next request, if there is one."""
        waiting = self._heads
        if not waiting:
            return None
        job = next(iter(waiting))
        if len(waiting) > 1:
            job = min(waiting, key=lambda each: (self._held[each], waiting[each][0][1]))
        request = heappop(waiting[job])[2]
        if not waiting[job]:
            del waiting[job]
        return request

    def served(self, request: Request) -> None:
        """It has its resources, and waits no more: the next of its shape may come."""
        self._held[request.job_id] += 1
        line = self._lines.get(request.job_id, {}).get(request.shape)
        if line:
            heappush(self._heads.setdefault(request.job_id, []), line[0])


class LeaseScheduler:
    """The leases of one node.

    Args:
        total: what the node has.
        first_lease: the number before that of the first lease, which no other node uses.
    """

    __slots__ = ("_lines", "_next_lease", "_sequence", "bundles", "by_worker", "gpus", "leases", "queue", "resources")

    def __init__(self, total: ResourceSet, first_lease: int = 0) -> None:
        self.resources = NodeResources(total)
        self.gpus = GpuSlots(total["GPU"] // UNIT)
        self.bundles: NodeBundles | None = None
        self.queue: dict[tuple[bytes, int], Request] = {}
        self._lines: dict[bytes, dict[Shape, Line]] = {}  # the same requests by job and shape, in the order of their turns
        self.leases: dict[int, GrantedLease] = {}
        self.by_worker: dict[bytes, GrantedLease] = {}
        self._next_lease = first_lease + 1
        self._sequence = 0

    def explain(self, owner: bytes, request_id: int) -> str:
        """Why a request is not granted."""
        request = self.queue.get((owner, request_id))
        if request is None:
            granted = [lease for lease in self.leases.values() if (lease.request.owner, lease.request.id) == (owner, request_id)]
            return "it is granted, and a worker starts" if granted else "an answer to its request is on its way"
        rank = (-request.depth, request.sequence)
        before = sum((-other.depth, other.sequence) < rank for other in self.queue.values())
        free = {name: max(0, self.resources.available.get(name, 0)) for name in request.demand}
        return (
            f"it is queued there{f' behind {before} others' if before else ''}: it asks for {_amounts(request.demand)}, where "
            f"{_amounts(free)} is free; {len(self.leases)} leases are held, "
            f"{sum(lease.blocked for lease in self.leases.values())} of them by tasks that wait for others"
        )

    def request(
        self,
        owner: bytes,
        request_id: int,
        job_id: bytes,
        demand: ResourceSet,
        depth: int,
        *,
        retriable: bool = True,
        strategy: tuple[Any, ...] = ("default",),
    ) -> str:
        """Queue a request. Returns why it can never be granted here, or nothing."""
        refusal = "" if strategy[0] == "bundle" else self._refusal(demand)  # what a bundle holds is known to the policy
        if not refusal:
            self._queue(owner, request_id, job_id, demand, depth, retriable, strategy)
        return refusal

    def place(self, owner: bytes, request_id: int, actor: PlaceActor) -> str:
        """Queue the request for an actor. Returns why it can never be granted here, or nothing.

        What the node must have and what the actor holds while it lives are two things, as in Ray: by default one CPU and none.
        """
        refusal = ""
        if actor.strategy[0] != "bundle":
            refusal = self._refusal(ResourceSet(actor.placement)) or self._refusal(ResourceSet(actor.resources))
        if not refusal:
            demand = ResourceSet(actor.resources)
            request = self._queue(owner, request_id, actor.job_id, demand, 0, actor.retriable, actor.strategy)
            request.actor = actor
        return refusal

    def _refusal(self, demand: ResourceSet) -> str:
        if self.resources.could_ever_fit(demand):
            return ""
        short = ", ".join(
            f"{want:g} {name} where the largest node has {have:g}"
            for name, (want, have) in self.resources.shortfall(demand).items()
        )
        return f"it asks for {short}"

    def _queue(
        self,
        owner: bytes,
        request_id: int,
        job_id: bytes,
        demand: ResourceSet,
        depth: int,
        retriable: bool,
        strategy: tuple[Any, ...],
    ) -> Request:
        self.cancel(owner, request_id)
        self._sequence += 1
        request = Request(owner, request_id, job_id, demand, depth, self._sequence, retriable, strategy)
        self.queue[owner, request_id] = request
        insort(self._lines.setdefault(job_id, {}).setdefault(request.shape, []), (-depth, self._sequence, request))
        return request

    def cancel(self, owner: bytes, request_id: int) -> None:
        """A request is not wanted any more."""
        request = self.queue.pop((owner, request_id), None)
        if request is not None:
            shapes = self._lines[request.job_id]
            line = shapes[request.shape]
            del line[bisect_left(line, (-request.depth, request.sequence))]
            if not line:
                del shapes[request.shape]
                if not shapes:
                    del self._lines[request.job_id]

    def grant(self) -> list[GrantedLease]:
        """Give resources to all requests that fit, in order."""
        if not self.queue:
            return []
        granted = []
        failed: set[Shape] = set()
        turns = _Turns(self._lines, self.leases.values())
        while (request := turns.next()) is not None:
            taken = self._take(*request.shape) if request.shape not in failed else None
            if taken is None:
                failed.add(request.shape)
                continue
            self.cancel(request.owner, request.id)
            turns.served(request)
            bundle, gpu_ids = taken
            lease = GrantedLease(self._next_lease, request, gpu_ids, bundle)
            self._next_lease += 1
            self.leases[lease.id] = lease
            granted.append(lease)
        return granted

    def _take(self, demand: ResourceSet, pool: tuple[Any, ...]) -> tuple[Bundle | None, tuple[int, ...]] | None:
        """Resources from the node or one of its bundles; None if there is no room now."""
        if pool:
            return self.bundles.take(pool[0], pool[1], demand) if self.bundles is not None else None
        if not self.resources.fits(demand):
            return None
        gpu_ids = self.gpus.assign(demand["GPU"]) if demand["GPU"] else ()
        if gpu_ids is None:
            return None
        self.resources.acquire(demand)
        return None, gpu_ids

    def assign(self, lease_id: int, worker: bytes) -> GrantedLease:
        """A lease has its worker."""
        lease = self.leases[lease_id]
        lease.worker = worker
        self.by_worker[worker] = lease
        return lease

    def end(self, lease_id: int) -> GrantedLease | None:
        """A lease is over, whoever ended it."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            return None
        if lease.worker is not None:
            self.by_worker.pop(lease.worker, None)
        demand = lease.request.demand
        if lease.blocked:
            demand = ResourceSet({name: demand[name] for name in demand if name != "CPU"})
        if lease.bundle is not None:
            lease.bundle.give(demand, lease.gpu_ids)
            return lease
        self.resources.release(demand)
        self.gpus.release(lease.gpu_ids, demand["GPU"])
        return lease

    def on_blocked(self, worker: bytes) -> bool:
        """The worker waits: its CPU is free for others."""
        lease = self.by_worker.get(worker)
        if lease is None or lease.blocked:
            return False
        lease.blocked = True
        cpu = lease.request.demand.only("CPU")
        if lease.bundle is not None:
            lease.bundle.give(cpu)
        else:
            self.resources.release(cpu)
        return True

    def on_unblocked(self, worker: bytes) -> None:
        """The worker goes on and takes its CPU back."""
        lease = self.by_worker.get(worker)
        if lease is not None and lease.blocked:
            lease.blocked = False
            cpu = lease.request.demand.only("CPU")
            if lease.bundle is not None:
                lease.bundle.retake(cpu)
            else:
                self.resources.acquire(cpu)

    def to_reclaim(self) -> list[GrantedLease]:
        """Leases to call back for the requests that wait: one each, of another owner or another shape."""
        wanted = []
        candidates = [
            lease
            for lease in self.leases.values()
            if lease.worker is not None and not lease.reclaiming and not lease.blocked and lease.request.actor is None
        ]
        if not candidates:
            return []
        held = Counter(lease.request.job_id for lease in self.leases.values())
        candidates.sort(key=lambda lease: -held[lease.request.job_id])  # first of those that have most
        pending = sum(1 for lease in self.leases.values() if lease.reclaiming and not lease.blocked)
        hopeless: set[tuple[bytes, Shape]] = set()  # whose requests none of these leases would help
        for request in islice(self.queue.values(), pending, None):
            kind = (request.owner, request.shape)
            for lease in candidates if kind not in hopeless else ():
                other = lease.request.owner != request.owner or lease.request.demand != request.demand
                if other and _group(lease.request) == _group(request):
                    lease.reclaiming = True
                    candidates.remove(lease)
                    wanted.append(lease)
                    break
            else:
                hopeless.add(kind)
            if not candidates:
                break
        return wanted

    def jobs(self) -> list[bytes]:
        """Those that have leases here, or ask for some."""
        requests = [*self.queue.values(), *[lease.request for lease in self.leases.values()]]
        return [request.job_id for request in requests]

    def holds(self, owner: bytes) -> bool:
        """Whether an owner has leases, or asks for some."""
        held = any(lease.request.owner == owner for lease in self.leases.values())
        return held or any(asking == owner for asking, _ in self.queue)

    def drop_owner(self, owner: bytes) -> list[GrantedLease]:
        """An owner is gone: forget its requests. Returns the leases it held."""
        for key in [k for k in self.queue if k[0] == owner]:
            self.cancel(*key)
        return [lease for lease in self.leases.values() if lease.request.owner == owner]

    def check(self) -> None:
        """Assert the invariants: what is free and what is lent is all there is."""
        lent: dict[str, int] = {}
        set_apart = self.bundles.reserved() if self.bundles is not None else ResourceSet({})
        lent.update(set_apart)
        for lease in self.leases.values():
            demand = lease.request.demand
            if lease.bundle is not None and lease.bundle.state is not BundleState.RETURNED:
                continue
            for name in demand:
                if not (lease.blocked and name == "CPU"):
                    lent[name] = lent.get(name, 0) + demand[name]
        for name, total in self.resources.total.items():
            if self.resources.available.get(name, 0) + lent.get(name, 0) != total:
                raise InvariantError(f"{name} does not add up: {lent.get(name, 0)} lent of {total}")
        self.gpus.check()
        lines = {id(r): (-r.depth, r.sequence, r) for r in self.queue.values()}
        listed = [entry for shapes in self._lines.values() for line in shapes.values() for entry in line]
        if lines != {id(entry[2]): entry for entry in listed} or len(listed) != len(self.queue):
            raise InvariantError("the requests that wait are not those that are listed by shape")
        for worker, lease in self.by_worker.items():
            if lease.worker != worker or self.leases.get(lease.id) is not lease:
                raise InvariantError(f"lease {lease.id} and its worker disagree")

    def statistics(self) -> dict[str, int]:
        return {"lease_requests": len(self.queue), "leases": len(self.leases)}


def _group(request: Request) -> Any:
    """The placement group that a request is for: what others have in other pools is of no use for it."""
    return request.strategy[1] if request.strategy[0] == "bundle" else None


def _amounts(amounts: Mapping[str, int]) -> str:
    return ", ".join(f"{from_units(units):g} {name}" for name, units in amounts.items()) or "nothing"
