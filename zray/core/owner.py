"""Owner: the brain of a driver or worker.

Theory of operation
-------------------
A process owns the objects that its tasks return and that it puts. ``memory`` has an *entry* for each object whose fate is
known: the small value itself, an error, or the fact that it lies in the store. Whoever waits for an object (a thread in
``get``, a task that takes it as an argument, a borrower in another process) is listed under its id and served when the
entry arrives. Entries go when ``references`` says that nobody needs the object any more.

Objects owned elsewhere are asked for at their owner when somebody here waits for them; the answer is kept as an
entry for as long as a reference lives here. When an owner dies, what it owned and was not here yet becomes an
``OwnerDiedError``.

Local calls and messages change the state; ``settle`` then draws the consequences (push tasks, free objects, tell
owners) once for the whole batch. The body calls it at the end of each turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from zray.base.config import Config
from zray.base.ids import END_INDEX, agent_id, agent_of, return_id
from zray.base.wire import (
    ERROR,
    INLINE,
    OBJECT_VALUE,
    REFS,
    STORED,
    Address,
    Entry,
    GetObject,
    WatchProcess,
)
from zray.core.actor_calls import CONTINUE_TIMER, ActorTaskSubmitter
from zray.core.actor_owner import ActorOwner
from zray.core.directory import ObjectDirectory
from zray.core.effects import DIAL, HANG_UP, SEND, TIMER, WARN, Effect
from zray.core.entries import contained_in, error_entry, lost, owner_died, worker_crashed
from zray.core.generators import GeneratorOwner, Stream
from zray.core.leases import IDLE_TIMER, LeaseQueue, Locality, NormalTaskSubmitter
from zray.core.lineage import Lineage
from zray.core.references import ReferenceCounter
from zray.core.sweeping import Sweeper
from zray.core.tasks import NODE_DIED, OUT_OF_MEMORY, RAISED, WORKER_DIED, Task, TaskManager
from zray.core.waiters import Waiter, Waiters
from zray.exceptions import InvariantError, TaskUnschedulableError

INFEASIBLE_TIMER = "owner.infeasible"
_LOST: Entry = (INLINE, b"")  # of an argument that was lost again: that is seen when the task is sent


class Owner(Sweeper, ActorOwner, GeneratorOwner):
    """The brain of a driver or worker.

    Args:
        me: address of this process.
        job_id: the job it works for.
        node_id: the node it lives on.
        agent: process id of the local node agent.
        config: limits.
        make_ref: makes a reference that is counted already.
    """

    __slots__ = (
        "_agent",
        "_agents",
        "_config",
        "_make_ref",
        "_me",
        "_node_id",
        "_remote_gets",
        "_unswept",
        "_watched",
        "calls",
        "creations",
        "directory",
        "fetching",
        "leases",
        "lineage",
        "lost",
        "memory",
        "out",
        "rebuilds",
        "references",
        "streams",
        "tasks",
        "unread",
        "waiters",
    )

    def __init__(
        self,
        me: Address,
        job_id: bytes,
        node_id: bytes,
        agent: bytes,
        config: Config,
        make_ref: Callable[[bytes, Address], Any],
    ) -> None:
        self._make_ref = make_ref
        self._me = me[0]
        self._node_id = node_id
        self._agent = agent
        self._config = config
        self._agents: dict[bytes, None] = {}  # of other nodes, that were asked for leases
        self.out: list[Effect] = []
        self.memory: dict[bytes, Entry] = {}
        self.references = ReferenceCounter(me)
        self.tasks = TaskManager(config.oom_retries_max)
        self.directory = ObjectDirectory()
        self.lineage = Lineage(config, self.references, self.memory)
        self.lost = {}
        self.rebuilds = deque()
        self.leases = NormalTaskSubmitter(job_id, agent, config, self.out, self._make_spec)
        held = self.references.counts.__contains__
        self.calls = ActorTaskSubmitter(config, self.out, self.tasks, self._make_spec, self._fail_call, held)
        self.creations = {}
        self.streams: dict[bytes, Stream] = {}
        self.unread: dict[bytes, Stream] = {}
        self.fetching: dict[bytes, None] = {}  # borrowed objects asked for at their owners
        self.waiters = Waiters(self.out)
        self._remote_gets: dict[bytes, list[bytes]] = {}
        self._unswept: dict[bytes, list[bytes]] = {}  # processes of dead actors -> results that they may be writing still
        self._watched: dict[bytes, None] = {}  # processes whose end the agent will tell

    # -- what the local user does ---------------------------------------------------------------------------------

    def submit(self, now: float, task: Task) -> None:
        """A task was called: its results belong to this process from now on."""
        counts = self.references.counts
        for object_id in task.returns:
            counts[object_id] = 1
        template = task.template
        if not task.slots:
            self.tasks.pending[task.id] = task
            if template.actor is None:
                self.leases.submit(task)
            else:
                self.calls.submit(task)
            return
        missing = self.tasks.submit(task, self.memory.__contains__)
        if template.actor is not None and template.ordered:
            self.calls.submit(task)  # it takes its place at once
        for ref in missing:
            self._seek(ref.binary(), ref.owner)
        if not missing:
            self._ready(now, task)

    def borrow(self, object_id: bytes, owner: Address) -> None:
        """A reference was made by hand, as that of an actor that was found by its name: register it at the owner."""
        if self.references.dropped:
            self._drop()
        self.references.borrow(object_id, owner)  # of an own object, this only holds it

    def put(self, object_id: bytes, entry: Entry) -> None:
        """A value of the local user is there."""
        self.references.own(object_id)
        contained = contained_in(entry)
        if contained:
            self.references.contain(object_id, contained, received=False)
        self.memory[object_id] = entry

    def watch(self, waiter: Waiter, refs: list[Any]) -> None:
        """Tell ``waiter`` when objects arrive; those that are here count at once."""
        memory = self.memory
        for ref in refs:
            object_id = ref.binary()
            entry = memory.get(object_id)
            if entry is not None:
                self.waiters.count_down(waiter, entry)
            elif self.waiters.watch(waiter, object_id):
                self._seek(object_id, ref.owner)

    def seek(self, refs: list[Any]) -> None:
        """Somebody here waits for these objects: have those that are owned elsewhere sent."""
        for ref in refs:
            self._seek(ref.binary(), ref.owner)

    def abandon(self) -> None:
        """The cluster is gone."""
        self.waiters.abandon()

    def adopt(self, object_id: bytes, owner: Address) -> None:
        """A reference came out of a value."""
        if self.references.dropped:
            self._drop()
        self.references.hold(object_id, owner)

    def kept(self, borrowed: dict[bytes, Address]) -> list[tuple[bytes, Address]]:
        """A task is over, its results given to the submitter: of the references that came along, those to name in its DONE."""
        return self.references.kept(borrowed)

    def needed(self) -> bool:
        """Whether others need this process: what it owns and what it submitted ends with it, and so do workers lent to it."""
        return bool(self.references.borrowers or self.tasks.pending or self.leases.leases)

    def enter_job(self, job_id: bytes) -> None:
        """A worker was taken into a job: what it submits belongs to that."""
        self.leases.job_id = job_id

    def settle(self, now: float) -> None:
        """Draw the consequences of all that happened since the last time."""
        references = self.references
        while True:
            if self.rebuilds:
                self.settle_rebuilds(now)
            if self.unread:
                self.settle_streams(now)
            self.leases.pump(now)
            self.calls.pump(now)
            if references.freed:
                self._free()
            if references.dropped:
                self._drop()
            if references.deltas:
                deltas, references.deltas = references.deltas, {}
                for (owner, endpoint), batch in deltas.items():
                    self.meet(owner)
                    self.out.append((DIAL, owner, endpoint))
                    self.out.append((SEND, owner, (REFS, batch)))
            if references.met:
                for borrower in references.met:
                    self.meet(borrower)
                references.met.clear()
            if not references.freed and not references.dropped and not self.rebuilds and not self.unread:
                return

    # -- messages -------------------------------------------------------------------------------------------------

    def on_done(self, now: float, peer: bytes, lease_id: int, items: list[Any]) -> None:
        """Tasks are finished."""
        if lease_id:
            self.leases.on_done(now, lease_id, items)
        else:
            self.calls.on_done(peer, items)
        pending = self.tasks.pending
        for task_id, entries, _, borrowed in items:
            task = pending.pop(task_id, None)
            for object_id, owner in borrowed:
                self.references.give(object_id, owner, peer)
            if task is None:  # the answer of an attempt that was given up
                for index, entry in enumerate(entries):
                    self._discard(return_id(task_id, index + 1), entry)
                continue
            entry = entries[0] if entries else None
            if entry is not None and entry[0] == ERROR and len(entry) > 2 and self.tasks.may_retry(task, RAISED):
                pending[task_id] = task
                task.tried_on(peer)
                (self.leases.submit if task.template.actor is None else self.calls.submit_again)(task)
                continue
            if task.template.budget is not None:
                task.template.budget.give()
            if task.template.creates:
                self._created(task)
            results = self._end_stream(task, entry) if self.streams and task_id in self.streams else entries
            if task_id in self.lineage.origins:
                for object_id, result in zip(task.returns, results, strict=True):
                    self._arrive_again(now, object_id, result)
                if entry is not None and task.template.num_returns < 0:
                    self._not_made(now, task_id, entry)
            else:
                for object_id, result in zip(task.returns, results, strict=True):
                    self._arrive(now, object_id, result)
            if entries and entries[-1][0] == STORED:
                self._remember(task)
            if task.tried or (len(entries) > 1 and entries[0][0] == ERROR):
                self._sweep(self._left_behind(task), (*task.tried, agent_of(peer)))
        if peer == self._me:  # an actor has called itself
            for entry in (entry for item in items for entry in item[1]):
                self.references.come_home(contained_in(entry))

    def on_lease_granted(
        self,
        now: float,
        peer: bytes,
        request_id: int,
        lease_id: int,
        worker_id: bytes,
        endpoint: str,
        gpu_ids: tuple[int, ...] = (),
    ) -> None:
        self.meet(worker_id)
        self.leases.on_granted(now, peer, request_id, lease_id, worker_id, endpoint, gpu_ids)

    def on_lease_redirected(self, now: float, peer: bytes, request_id: int, agent: bytes, endpoint: str) -> None:
        if self.leases.on_redirected(request_id, agent, endpoint) and agent != self._agent:  # it may be sent home
            self._agents[agent] = None
            self.meet(agent)

    def on_lease_rejected(self, now: float, peer: bytes, request_id: int, kind: str, reason: str) -> None:
        queue = self.leases.on_rejected(request_id)
        if queue is None:
            return
        if kind == "unstartable" and queue.served():
            return  # they ask again as they go on
        if kind in ("exhausted", "unstartable"):
            self._give_up(now, queue, reason)
        elif not queue.infeasible:
            queue.infeasible = reason
            if queue.give_up_at is None:
                waits, grace_s = self._config.infeasible == "wait", self._config.infeasible_grace_s
                queue.give_up_at = float("inf") if waits else now + grace_s
                fate = "it waits for a node that can" if waits else f"it fails in {grace_s:g} s"
                name = f"{queue.tasks[0].template.name}(): " if queue.tasks else ""
                self.out.append((WARN, f"no node can run {name}{reason}; {fate}"))
            retry_at = now + self._config.infeasible_retry_s
            self.out.append((TIMER, max(now, min(retry_at, queue.give_up_at)), (INFEASIBLE_TIMER, queue)))

    def on_lease_reclaimed(self, now: float, peer: bytes, lease_id: int) -> None:
        self.leases.on_reclaimed(lease_id)

    def on_lease_lost(
        self, now: float, peer: bytes, lease_id: int, reason: str, out_of_memory: bool = False
    ) -> None:
        self._lose_lease(now, lease_id, reason, OUT_OF_MEMORY if out_of_memory else WORKER_DIED)

    def _lose_lease(self, now: float, lease_id: int, reason: str, cause: str) -> None:
        """The worker of a lease died: what it had is run again or fails."""
        tasks = self.leases.on_lost(lease_id)
        again = []
        for task in tasks:
            if task.cancelled:
                self._end_cancelled(now, task)
                continue
            if task.id in self.tasks.pending and (len(tasks) > 1 or self.tasks.may_retry(task, cause)):
                again.append(task)
                continue
            self._sweep(self._left_behind(task), task.tried)
            self._fail(now, task, worker_crashed(task, reason, cause))
        self.leases.requeue(again)

    def on_worker_died(self, now: float, peer: bytes, worker_id: bytes, reason: str) -> None:
        """A process that owned or borrowed objects, or ran tasks, is gone."""
        self._watched.pop(worker_id, None)
        self._sweep(self._unswept.pop(worker_id, ()), (agent_of(worker_id),))
        if worker_id in self._agents:
            del self._agents[worker_id]
            for lease_id in self.leases.on_agent_lost(worker_id):
                self._lose_lease(now, lease_id, reason, NODE_DIED)
        self.lose_node(worker_id, reason)
        self.out.append((HANG_UP, worker_id))
        for object_id in self.references.on_process_died(worker_id):
            known = self.memory.get(object_id)
            if object_id in self.fetching:
                self._arrive(now, object_id, owner_died(object_id, worker_id, reason))
            elif known is not None and known[0] == STORED:  # the store has dropped it
                self.memory[object_id] = owner_died(object_id, worker_id, reason)
        for object_id in [o for o, peers in self._remote_gets.items() if worker_id in peers]:
            self._remote_gets[object_id] = [p for p in self._remote_gets[object_id] if p != worker_id]

    def on_objects_spilled(self, now: float, peer: bytes, rows: list[Any]) -> None:
        """A node has written objects of ours to disk."""
        self.directory.on_spilled([row for row in rows if self.memory.get(row[0], (ERROR,))[0] == STORED])

    def on_refs(self, now: float, peer: bytes, deltas: list[Any]) -> None:
        self.references.on_refs(deltas)

    def on_get_object(self, now: float, peer: bytes, object_id: bytes) -> None:
        """A borrower wants a value."""
        self.meet(peer)
        if object_id in self.memory:
            self._answer(peer, object_id)
        elif object_id in self.lost or object_id[:16] in self.tasks.pending:
            self._remote_gets.setdefault(object_id, []).append(peer)
            self._awaited(object_id)
        else:
            self._answer_lost(peer, object_id)

    def on_object_value(self, now: float, peer: bytes, object_id: bytes, entry: Entry) -> None:
        """The owner of a borrowed object answers."""
        if object_id in self.fetching and object_id in self.references.owners:
            self._arrive(now, object_id, entry)
        else:
            self.references.decline(contained_in(entry))

    def on_timer(self, now: float, key: tuple[Any, ...]) -> None:
        if key[0] == IDLE_TIMER:
            self.leases.on_idle_timer(now)
        elif key[0] == CONTINUE_TIMER:
            self.calls.on_timer(now, key)
        elif key[0] == INFEASIBLE_TIMER:
            queue = key[1]
            reason, queue.infeasible = queue.infeasible, ""
            if queue.give_up_at is not None and now + 1e-6 >= queue.give_up_at:
                queue.give_up_at = None
                self._give_up(now, queue, reason)
            self.leases.retry(queue)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _make_spec(self, task: Task) -> tuple[Any, ...] | None:
        """What is sent of a task; None if it waits for an argument again, which was lost after it had been there."""
        template = task.template
        slots: tuple[Any, ...] = ()
        if task.slots:
            memory = self.memory
            try:
                slots = tuple([(where, ref.binary(), ref.owner, memory[ref.binary()]) for where, ref in task.slots])
            except KeyError:
                for ref in self.tasks.submit(task, memory.__contains__):
                    self._seek(ref.binary(), ref.owner)
                return None
        return (
            task.id,
            template.function_id,
            task.payload,
            slots,
            template.num_returns,
            task.depth,
            template.name,
            template.extra if template.num_returns >= 0 else self.stream_extra(task),
        )

    def _ready(self, now: float, task: Task) -> None:
        """All arguments are there; one that is an error is the result."""
        far = False
        for _, ref in task.slots:
            entry = self.memory.get(ref.binary(), _LOST)
            if entry[0] == STORED and entry[2] != self._node_id:
                far = True
            elif entry[0] == ERROR:
                self._fail(now, task, entry[:2])
                self.calls.on_arguments_ready(task)  # those behind it need not wait any more
                return
        if task.template.actor is not None and task.template.ordered and not task.template.creates:
            self.calls.on_arguments_ready(task)
        else:
            self._submit_ready(task, self.directory.locality(task.slots, self.memory, self._node_id) if far else ())

    def _submit_ready(self, task: Task, locality: Locality) -> None:
        actor = task.template.actor
        if actor is None:
            self.leases.submit(task, locality)
        elif not task.template.creates:
            self.calls.submit(task)
        else:
            self.send_creation(actor[0], task)

    def _fail(self, now: float, task: Task, entry: Entry) -> None:
        if self.tasks.pending.pop(task.id, None) is None:
            return  # an answer came late, and is its result
        if task.template.budget is not None:
            task.template.budget.give()
        if task.template.creates:
            self._creation_failed(task, entry)
        if task.id in self.streams:
            self._end_stream(task, entry)
        again = task.id in self.lineage.origins
        for object_id in task.returns:
            (self._arrive_again if again else self._arrive)(now, object_id, entry)
        if again and task.template.num_returns < 0:
            self._not_made(now, task.id, entry)

    def _fail_call(self, now: float, task: Task, entry: Entry, worker: bytes) -> None:
        """The actor is gone, or soon will be, and may leave results of an attempt in the store."""
        if task.tried:
            self._sweep(self._left_behind(task), task.tried)
        if worker in self._watched:
            self._unswept.setdefault(worker, []).extend(self._left_behind(task))
        self._fail(now, task, entry)

    def _give_up(self, now: float, queue: LeaseQueue, reason: str) -> None:
        for task in self.leases.give_up(queue):
            self._sweep(self._left_behind(task), task.tried)
            text = f"{task.template.name}() (task {task.id.hex()}) can not be scheduled: {reason}"
            self._fail(now, task, error_entry(TaskUnschedulableError(text)))

    def _arrive(self, now: float, object_id: bytes, entry: Entry) -> None:
        """The fate of an object is known: keep it if anybody needs it, and serve those who wait."""
        references = self.references
        self.fetching.pop(object_id, None)
        if object_id not in references.counts and object_id not in references.borrowers:
            self.waiters.dismiss(object_id)
            for peer in self._remote_gets.pop(object_id, ()):
                self._answer_lost(peer, object_id)
            self._discard(object_id, entry)
            return
        if self.lost and object_id in self.lost:
            self._replaced(object_id, entry)
        if len(entry) > 2:
            contained = contained_in(entry)
            if contained:
                if references.dropped:
                    self._drop()
                references.contain(object_id, contained, received=True)
            if entry[0] == STORED and entry[2] != self._node_id:
                self.meet(agent_id(entry[2]))
        self._serve(now, object_id, entry)

    def _serve(self, now: float, object_id: bytes, entry: Entry) -> None:
        self.memory[object_id] = entry
        self.waiters.arrived(object_id, entry)
        if object_id in self.tasks.waiting:
            for task in self.tasks.on_object_ready(object_id):
                self._ready(now, task)
        if object_id in self._remote_gets:
            for peer in self._remote_gets.pop(object_id):
                self._answer(peer, object_id)

    def _answer(self, peer: bytes, object_id: bytes) -> None:
        entry = self.memory[object_id]
        for inner, owner in contained_in(entry):
            self.references.give(inner, owner, peer)
        self.out.append((SEND, peer, (OBJECT_VALUE, object_id, entry)))

    def _answer_lost(self, peer: bytes, object_id: bytes) -> None:
        self.out.append((SEND, peer, (OBJECT_VALUE, object_id, lost(object_id))))

    def _seek(self, object_id: bytes, owner: Address) -> None:
        """Somebody here waits for an object: make sure that it is on its way, or say that it never comes."""
        if object_id in self.memory or object_id in self.fetching:
            return
        if owner[0] == self._me:
            if object_id in self.lost or object_id[:16] in self.tasks.pending:
                self._awaited(object_id)
            elif not self._revive(object_id):
                self._arrive(0.0, object_id, lost(object_id))
        else:
            self.fetching[object_id] = None
            self.meet(owner[0])
            self.out.append((DIAL, owner[0], owner[1]))
            self.out.append((SEND, owner[0], GetObject(object_id)))

    def meet(self, process: bytes) -> None:
        """This process deals with another: have its end told, even if it has ended already."""
        if process not in self._watched:
            self._watched[process] = None
            self.out.append((SEND, self._agent, WatchProcess(process)))

    def _drop(self) -> None:
        """Forget the values of borrowed objects that nobody here holds any more.

        This comes before anything is held again: an old value would be found for the new reference, though what that
        value contains has been given back.
        """
        dropped, self.references.dropped = self.references.dropped, []
        for object_id in dropped:
            if object_id in self.calls.handles:
                self.calls.forget(object_id)
            self.memory.pop(object_id, None)
            self.lost.pop(object_id, None)
            self.fetching.pop(object_id, None)
            self.waiters.dismiss(object_id)

    def _free(self) -> None:
        references = self.references
        freed, references.freed = references.freed, []
        memory = self.memory
        stored: dict[bytes, list[bytes]] = {}
        for object_id in freed:
            if object_id in self.calls.handles:
                self._out_of_scope(object_id)
            if self.streams and object_id[16:] == END_INDEX and object_id[:16] in self.streams:
                self._end_freed(object_id[:16])
            entry = memory.pop(object_id, None)
            if entry is not None and entry[0] == STORED:
                stored.setdefault(entry[2], []).append(object_id)
                self.directory.forget(object_id)
            if self.lineage.origins:
                self.lineage.on_freed(object_id)
            if self.lost.pop(object_id, None) is not None:
                self.directory.forget(object_id)
                for peer in self._remote_gets.pop(object_id, ()):
                    self._answer_lost(peer, object_id)
        for node_id, object_ids in stored.items():
            self._free_at(node_id, object_ids)

    # -- checks ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants of this machine and its leaves; true after ``settle``."""
        self.calls.check()
        self.references.check()
        self.lineage.check()
        self.check_recovery()
        self.check_streams()
        self.tasks.check()
        self.leases.check()
        for object_id in self.memory:
            if not self.references.needed(object_id):
                raise InvariantError(f"a value is kept for {object_id.hex()}, which nobody needs")
        self.waiters.check(self.memory)

    def statistics(self) -> dict[str, int]:
        return {
            "objects": len(self.memory),
            "fetching": len(self.fetching),
            "lost": len(self.lost),
            "streams": len(self.streams),
            **self.directory.statistics(),
            **self.lineage.statistics(),
            **self.tasks.statistics(),
            **self.leases.statistics(),
            **self.calls.statistics(),
            **self.references.statistics(),
        }
