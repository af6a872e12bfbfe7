"""NormalTaskSubmitter: brings ready tasks to workers.

Theory of operation
-------------------
A *lease* is the right to push tasks to one worker, granted by a node agent for one scheduling key (the resources of the
task, which node it wants, and which other node has most of its arguments if they are large). The local agent is asked first, and
may send this process on to another that has room. Ready tasks queue per key; ``pump`` spreads the queue evenly over the
leases of the key and asks for more leases while there are more tasks than leases. An idle lease goes back after
``lease_idle_ms``, or as soon as its agent wants it for others.

*Sharing.* An agent calls leases back when others wait. An idle lease goes at once; a busy one is used until its slice
(``lease_slice_ms`` from the grant) is over and then goes as soon as it is empty, so that the price of changing hands is paid
once for many tasks.

*Pipelining.* A worker that has only one task at a time idles for a round trip after each. So up to ``depth`` tasks are
pushed ahead, where depth is how many fit into ``pipeline_window_ms`` by the measured run time of that function:
hundreds for no-op tasks, one for anything slow or unknown. When the guess is wrong, because a short task turned long or
blocks in ``get``, the worker hands what it has not started back, and nothing more is pushed to it until it finishes
something (``stalled``).

*Blame.* When a worker dies with several tasks in its queue nobody can say which one it was running, so none is charged, but
all become *suspects* and run alone from then on: a second death is then certain to be its task's own. Tasks that must not be
retried are never queued behind others, so that none of them is ever started twice or failed for another's crash. Where a task
was to be ended by force (``cancellation``) it is known why the worker died, and nobody is a suspect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zray.base.config import Config
from zray.base.ids import agent_id, agent_of
from zray.base.resources import ResourceSet
from zray.base.wire import (
    PUSH,
    CancelLease,
    OpenLease,
    RequestLease,
    ReturnLease,
)
from zray.core.effects import DIAL, SEND, TIMER, Effect
from zray.core.tasks import FORCED, Task
from zray.exceptions import InvariantError

IDLE_TIMER = "leases.idle"
_RUN_TIMES_MAX = 10_000  # functions whose run times are remembered
Locality = tuple[tuple[bytes, int], ...]  # how many bytes lie on which nodes, the most first
_GO_TO_ARGUMENTS = ("default", "labels")  # strategies that say nothing against it


class Lease:
    """A worker lent to this process."""

    __slots__ = ("agent", "alone", "closing", "fresh", "id", "idle_since", "inflight", "queue", "stalled", "until", "worker")

    def __init__(self, id: int, agent: bytes, worker: bytes, queue: LeaseQueue, until: float) -> None:
        self.id = id
        self.agent = agent  # that granted it
        self.worker = worker
        self.queue = queue
        self.until = until  # it may be used for so long even if it is wanted back
        self.inflight: dict[bytes, Task] = {}
        self.alone = False  # its one task must not have others behind it
        self.closing = False  # the agent wants it back
        self.fresh = True  # nothing was pushed yet: it serves one task even if it is wanted back already
        self.stalled = False  # the worker is busy with something long, or blocked
        self.idle_since: float | None = None


class LeaseQueue:
    """The tasks of one scheduling key, and the leases that serve them."""

    __slots__ = (
        "cancelled",
        "dirty",
        "give_up_at",
        "infeasible",
        "leases",
        "locality",
        "requests",
        "resources",
        "strategy",
        "tasks",
    )

    def __init__(self, resources: ResourceSet, strategy: tuple[Any, ...]) -> None:
        self.resources = resources
        self.strategy = strategy
        self.locality: Locality = ()  # of the arguments of the last task
        self.tasks: deque[Task] = deque()
        self.cancelled: set[Task] = set()  # those that will be taken out together
        self.leases: dict[int, Lease] = {}
        self.requests: dict[int, tuple[bytes, int]] = {}  # id -> the agent that was asked, and after how many others
        self.dirty = False
        self.infeasible = ""  # why no node can serve it, until somebody is asked again
        self.give_up_at: float | None = None  # when, if it stays so

    def served(self) -> bool:
        """Whether there is a worker that gets on with its tasks."""
        return any(not lease.stalled for lease in self.leases.values())


class NormalTaskSubmitter:
    """The leases of one owner.

    Args:
        job_id: the job of this owner.
        agent: process id of the local node agent.
        config: limits.
        out: where effects go.
        make_spec: turns a task into the tuple that is pushed; None if it must wait for its arguments after all.
    """

    __slots__ = (
        "_agent",
        "_config",
        "_dirty",
        "_gone",
        "_make_spec",
        "_next_request",
        "_out",
        "_requests",
        "_timer_set",
        "job_id",
        "leases",
        "queues",
        "run_us",
    )

    def __init__(
        self,
        job_id: bytes,
        agent: bytes,
        config: Config,
        out: list[Effect],
        make_spec: Callable[[Task], tuple[Any, ...] | None],
    ) -> None:
        self.job_id = job_id
        self._agent = agent
        self._config = config
        self._out = out
        self._make_spec = make_spec
        self._next_request = 1
        self._gone: dict[bytes, None] = {}  # agents of other nodes, that were asked and have died
        self._requests: dict[int, LeaseQueue] = {}
        self._dirty: list[LeaseQueue] = []
        self._timer_set = False
        self.queues: dict[tuple[Any, ...], LeaseQueue] = {}  # by resources, strategy, perhaps depth, and a node
        self.leases: dict[int, Lease] = {}
        self.run_us: dict[bytes, float] = {}  # measured run time by function

    # -- tasks ----------------------------------------------------------------------------------------------------

    def submit(self, task: Task, locality: Locality = ()) -> None:
        """A task is ready to run; ``locality``: of its arguments, where that is a reason to go there."""
        key: tuple[Any, ...] = task.template.key
        if locality and key[1][0] in _GO_TO_ARGUMENTS:
            key = (*key, locality[0][0])
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = LeaseQueue(key[0], key[1])
        if len(key) > 2:
            queue.locality = locality
        queue.tasks.append(task)
        if not queue.dirty:
            queue.dirty = True
            self._dirty.append(queue)

    def pump(self, now: float) -> None:
        """Push what can be pushed and ask for what is missing, in every queue that changed."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        for queue in dirty:
            queue.dirty = False
            if queue.cancelled:
                queue.tasks = deque(task for task in queue.tasks if task not in queue.cancelled)
                queue.cancelled.clear()
            if queue.tasks:
                self._push(now, queue)
                self._request(queue)
            self._settle(now, queue)

    def on_done(self, now: float, lease_id: int, items: list[Any]) -> None:
        """A worker reported finished tasks: take them off its lease and learn how long they run."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return
        inflight = lease.inflight
        run_us = self.run_us
        for item in items:
            task = inflight.pop(item[0], None)
            if task is not None:
                function_id = task.template.function_id
                known = run_us.get(function_id)
                if known is None:
                    run_us[function_id] = float(item[2])
                    if len(run_us) > _RUN_TIMES_MAX:
                        del run_us[next(iter(run_us))]
                else:
                    run_us[function_id] = known + (item[2] - known) * 0.3
        lease.stalled = False
        self._touch(lease.queue)

    def on_handed_back(self, lease_id: int, task_ids: list[bytes]) -> list[Task]:
        """A worker will not start these now: they go to the front of the queue. Returns those that were cancelled."""
        lease = self.leases.get(lease_id)
        if lease is None:
            return []
        tasks = [lease.inflight.pop(t) for t in task_ids if t in lease.inflight]
        back = [task for task in tasks if not task.cancelled]
        # With nothing left there, no DONE would ever end it; and what was taken out says nothing about the others.
        lease.stalled = bool(lease.inflight) and (bool(back) or lease.stalled)
        lease.queue.tasks.extendleft(reversed(back))
        self._touch(lease.queue)
        return [task for task in tasks if task.cancelled]

    def cancel(self, task: Task) -> bytes:
        """Take a task out of its queue, if it is there; if it was sent, the worker that has it."""
        queue = self.queues.get(task.template.key)
        if queue is None or task.missing:
            return b""
        for lease in queue.leases.values():
            if task.id in lease.inflight:
                return lease.worker
        queue.cancelled.add(task)
        self._touch(queue)
        return b""

    def give_up(self, queue: LeaseQueue) -> list[Task]:
        """Take all waiting tasks out of a queue."""
        tasks = [task for task in queue.tasks if task not in queue.cancelled]
        queue.tasks.clear()
        self._touch(queue)
        return tasks

    def retry(self, queue: LeaseQueue) -> None:
        """Look at a queue again."""
        self._touch(queue)

    # -- leases ---------------------------------------------------------------------------------------------------

    def on_granted(
        self,
        now: float,
        agent: bytes,
        request_id: int,
        lease_id: int,
        worker: bytes,
        endpoint: str,
        gpu_ids: tuple[int, ...] = (),
    ) -> None:
        """An agent lends a worker."""
        queue = None  # of what a dead node has granted nobody would tell the end; another was asked meanwhile
        if agent_of(worker) not in self._gone:
            queue = self._requests.pop(request_id, None)
        if queue is not None:
            queue.requests.pop(request_id, None)
            queue.give_up_at = None
        if queue is None or not (queue.tasks or _wants_all(queue)):
            self._out.append((SEND, agent, ReturnLease(lease_id)))
            return
        lease = Lease(lease_id, agent, worker, queue, now + self._config.lease_slice_ms / 1000)
        if queue.locality and agent != agent_id(queue.locality[0][0]):
            lease.closing = True  # there was no room where the arguments are: the next task tries again
            lease.until = now
        self.leases[lease_id] = queue.leases[lease_id] = lease
        self._out.append((DIAL, worker, endpoint))
        self._out.append((SEND, worker, OpenLease(lease_id, self.job_id, dict(queue.resources), gpu_ids)))
        self._touch(queue)

    def on_rejected(self, request_id: int) -> LeaseQueue | None:
        """The agent can not grant a request: the queue it was for."""
        queue = self._requests.pop(request_id, None)
        if queue is not None:
            queue.requests.pop(request_id, None)
        return queue

    def on_redirected(self, request_id: int, agent: bytes, endpoint: str) -> bool:
        """The agent that was asked says who has room; whether the request is still wanted."""
        queue = self._requests.get(request_id)
        if queue is None:
            return False
        _, hops = queue.requests[request_id]
        self._out.append((DIAL, agent, endpoint))
        self._ask(queue, request_id, agent, hops + 1)
        return True

    def on_agent_lost(self, agent: bytes) -> list[int]:
        """A node is gone: what was asked of it is asked here again. Returns the leases that it had granted."""
        self._gone[agent] = None
        for queue in self.queues.values():
            for request_id, (asked, _) in list(queue.requests.items()):
                if asked == agent:
                    self._ask(queue, request_id, self._agent, 0)
        return [lease.id for lease in self.leases.values() if lease.agent == agent]

    def on_reclaimed(self, lease_id: int) -> None:
        """The agent wants a lease back: it goes when it is idle, or has served out its slice and is empty."""
        lease = self.leases.get(lease_id)
        if lease is not None:
            lease.closing = True
            self._touch(lease.queue)

    def on_lost(self, lease_id: int) -> list[Task]:
        """The worker died. Returns the tasks it had; the caller decides on each and submits them again or fails them."""
        lease = self.leases.pop(lease_id, None)
        if lease is None:
            return []
        del lease.queue.leases[lease_id]
        self._touch(lease.queue)
        tasks = list(lease.inflight.values())
        forced = any(task.cancelled == FORCED for task in tasks)
        for task in tasks:
            task.tried_on(lease.worker)
            task.suspect |= len(tasks) > 1 and not forced
        return tasks

    def requeue(self, tasks: list[Task]) -> None:
        """Tasks whose worker died go to the front again."""
        for task in reversed(tasks):
            key = task.template.key  # wherever its arguments lay: they may be gone with the worker
            queue = self.queues.setdefault(key, LeaseQueue(key[0], key[1]))
            queue.tasks.appendleft(task)
            self._touch(queue)

    def on_idle_timer(self, now: float) -> None:
        """Give back what has been idle for long enough, and forget the queues that have nothing left."""
        self._timer_set = False
        limit = now - self._config.lease_idle_ms / 1000
        idle_left = False
        for key, queue in list(self.queues.items()):
            if queue.tasks:  # they are pushed in a moment, and may leave leases idle for which nobody else sets a timer
                idle_left = idle_left or any(lease.idle_since is not None for lease in queue.leases.values())
                continue
            for lease in list(queue.leases.values()):
                if lease.idle_since is not None and lease.idle_since <= limit + 1e-6:
                    self._return(lease)
                else:
                    idle_left = idle_left or lease.idle_since is not None
            for request_id, (agent, _) in queue.requests.items():
                del self._requests[request_id]
                self._out.append((SEND, agent, CancelLease(request_id)))
            queue.requests.clear()
            if not queue.leases and not queue.infeasible and not queue.dirty:
                del self.queues[key]  # a lease that was granted meanwhile goes back, as no request of ours is known for it
        if idle_left:
            self._set_timer(now)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _touch(self, queue: LeaseQueue) -> None:
        if not queue.dirty:
            queue.dirty = True
            self._dirty.append(queue)

    def _depth(self, task: Task) -> int:
        if task.template.max_retries == 0:
            return 1
        config = self._config
        run_us = self.run_us.get(task.template.function_id)
        if run_us is None:
            return 1
        payload = task.payload
        size = len(payload) if type(payload) is bytes else 4096
        by_time = int(config.pipeline_window_ms * 1000 / (run_us + 1.0))
        by_size = config.pipeline_bytes_max // (size + 256)
        return max(1, min(by_time, by_size, config.pipeline_depth_max))

    def _push(self, now: float, queue: LeaseQueue) -> None:
        tasks = queue.tasks
        # A lease that is wanted back serves out its slice, and one task at least: owners that share a node would otherwise
        # exchange their leases after each task, or for ever before the first.
        leases = [
            lease
            for lease in queue.leases.values()
            if (not lease.closing or now < lease.until or lease.fresh) and not lease.stalled
        ]
        if not leases:
            return
        share = -(-len(tasks) // len(leases))
        make_spec = self._make_spec
        for lease in leases:
            if not tasks:
                break
            inflight = lease.inflight
            if inflight and lease.alone:
                continue
            lease.alone = False
            room = min(self._depth(tasks[0]) - len(inflight), share)
            if lease.closing and now >= lease.until:
                room = 1
            specs = []
            while room > 0 and tasks:
                task = tasks[0]
                alone = task.suspect or task.template.max_retries == 0
                if alone and inflight:
                    break
                tasks.popleft()
                spec = make_spec(task)
                if spec is None:  # it comes again when its arguments do
                    continue
                inflight[task.id] = task
                lease.alone = alone
                specs.append(spec)
                room = 0 if alone else room - 1
            if specs:
                lease.idle_since = None
                lease.fresh = False
                self._out.append((SEND, lease.worker, (PUSH, lease.id, specs)))

    def _request(self, queue: LeaseQueue) -> None:
        """Ask for a lease per task that has none to itself, a few at a time."""
        if queue.infeasible:
            return
        busy = sum(len(lease.inflight) for lease in queue.leases.values())
        spare = len(queue.leases) + len(queue.requests)
        missing = min(busy + len(queue.tasks) - spare, self._config.lease_requests_max - len(queue.requests))
        for _ in range(missing):
            request_id = self._next_request
            self._next_request += 1
            self._requests[request_id] = queue
            self._ask(queue, request_id, self._agent, 0)

    def _ask(self, queue: LeaseQueue, request_id: int, agent: bytes, hops: int) -> None:
        queue.requests[request_id] = (agent, hops)
        depth = queue.tasks[0].depth if queue.tasks else 0
        retriable = not queue.tasks or queue.tasks[0].template.max_retries != 0
        resources = dict(queue.resources)
        request = RequestLease(
            request_id, self.job_id, resources, depth, retriable, queue.strategy, hops, queue.locality
        )
        self._out.append((SEND, agent, request))

    def _settle(self, now: float, queue: LeaseQueue) -> None:
        """Leases with nothing to do: back at once if wanted, else after a while."""
        for lease in list(queue.leases.values()):
            if lease.inflight:
                continue
            if lease.closing:
                self._return(lease)
                if queue.tasks:
                    self._request(queue)
            elif lease.idle_since is None:
                lease.idle_since = now
                self._set_timer(now)
        if not queue.tasks and (queue.requests or not queue.leases):
            self._set_timer(now)

    def _return(self, lease: Lease) -> None:
        del self.leases[lease.id]
        del lease.queue.leases[lease.id]
        self._out.append((SEND, lease.agent, ReturnLease(lease.id)))

    def _set_timer(self, now: float) -> None:
        if not self._timer_set:
            self._timer_set = True
            self._out.append((TIMER, now + self._config.lease_idle_ms / 1000, (IDLE_TIMER,)))

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants."""
        for queue in self.queues.values():
            for lease_id, lease in queue.leases.items():
                if self.leases.get(lease_id) is not lease or lease.queue is not queue:
                    raise InvariantError(f"lease {lease_id} is listed twice or not at all")
                if lease.idle_since is not None and lease.inflight:
                    raise InvariantError(f"lease {lease_id} is idle with tasks in flight")
            for request_id in queue.requests:
                if self._requests.get(request_id) is not queue:
                    raise InvariantError(f"request {request_id} is not listed")

    def statistics(self) -> dict[str, int]:
        return {
            "queued": sum(len(q.tasks) for q in self.queues.values()),
            "inflight": sum(len(lease.inflight) for lease in self.leases.values()),
            "leases": len(self.leases),
            "lease_requests": len(self._requests),
        }


def _wants_all(queue: LeaseQueue) -> bool:
    """Whether a lease that comes when all tasks are pushed is kept for those to come: short ones are to be spread as well."""
    return queue.strategy[0] == "spread" and any(lease.inflight for lease in queue.leases.values())
